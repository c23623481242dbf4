"""Fixtures that run a script in each kind of real Blender."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from asyncblend.cli.link import prepare
from asyncblend.fleet.discovery import Blender, find_blender

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
PRELUDE = """\
import json, pathlib, sys
sys.path.insert(0, {root!r})
sys.path.append({packages!r})
import bpy, numpy as np
OUT = pathlib.Path(__file__).parent
"""
SEEN_FROM_ABOVE = """
from asyncblend import blender as bl

scene, data = bpy.context.scene, bpy.data
scene.render.engine = "CYCLES"
scene.cycles.samples, scene.cycles.use_denoising = 1, False
scene.render.resolution_x, scene.render.resolution_y = 96, 64
camera = scene.camera
camera.location, camera.rotation_euler, camera.data.type = (0, 0, 20), (0, 0, 0), "ORTHO"
camera.data.ortho_scale = 12  # 8 pixels are a unit: the image is 12 x 8 units
"""
NODES = """
def geometry_nodes(name):  # a tree that takes and gives geometry, and its two ends
    tree = bpy.data.node_groups.new(name, "GeometryNodeTree")
    if hasattr(tree, "interface"):
        for side in ("INPUT", "OUTPUT"):
            tree.interface.new_socket("Geometry", in_out=side, socket_type="NodeSocketGeometry")
    else:
        tree.inputs.new("NodeSocketGeometry", "Geometry")
        tree.outputs.new("NodeSocketGeometry", "Geometry")
    return tree, tree.nodes.new("NodeGroupInput").outputs[0], tree.nodes.new("NodeGroupOutput").inputs[0]
"""
EPILOGUE = """
sys.exit(0)  # else Blender exits with 1 when its last render failed, however well the script ended
"""
ANSWER = "the answer: "
TALK = f"""
for line in sys.stdin:
    print("{ANSWER}" + json.dumps(answer(json.loads(line))), flush=True)
"""


@dataclass(frozen=True)
class Inside:
    """One kind of Blender to run scripts in."""

    blender: Blender
    packages: str
    """The folder with the packages that its Python lacks; it need not exist."""

    def command(self, path: Path, script: str) -> list[str]:
        """Write the script to that path, and return the command that runs it."""
        path.write_text(PRELUDE.format(root=str(ROOT), packages=self.packages) + script + EPILOGUE)
        if self.blender.kind == "module":
            return [self.blender.path, "-W", "error::DeprecationWarning", str(path)]
        start = [self.blender.path, "-b", "--factory-startup", "--python-exit-code", "1"]
        return [*start, "--python", str(path)]


@pytest.fixture(scope="module", params=["bpy", "executable", "bpy5"])
def inside(request: pytest.FixtureRequest, real_kind: Callable[[str], Any]) -> Inside:
    """Return each kind of real Blender in turn."""
    blender = find_blender(real_kind(request.param).blender)
    return Inside(blender, asyncio.run(prepare(blender)).packages)


@pytest.fixture(scope="module")
def in_blender(inside: Inside, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return run(script), which runs a script in a fresh Blender, and returns the folder `OUT` with its results.

    It ends by itself before pytest's own limit, so that what Blender printed is seen.
    """

    def run(script: str, *, limit: int = 280) -> Path:
        out = tmp_path_factory.mktemp(inside.blender.kind)
        done = subprocess.run(
            inside.command(out / "script.py", script),
            cwd=out,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=limit,
            check=False,
        )
        assert done.returncode == 0, "\n".join(line for line in done.stdout.splitlines() if not line.startswith("Fra:"))
        return out

    return run


@pytest.fixture(scope="module")
def seen_from_above(in_blender: Callable[[str], Path]) -> Callable[[str], Any]:
    """Return run(script), which runs a script on Blender's own scene, seen from above, and returns `results` of it."""

    def run(script: str) -> Any:
        end = '\n(OUT / "results.json").write_text(json.dumps(results))\n'
        return json.loads((in_blender(SEEN_FROM_ABOVE + script + end) / "results.json").read_text())

    return run


@pytest.fixture(scope="module")
def talk_to_blender(
    inside: Inside, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Callable[[Any], Any]]]:
    """Return talk(script), which starts a script in a Blender that keeps running, and returns a function ask(value).

    ask(value) returns what the script's answer(value) returns. It is meant for Hypothesis, which asks hundreds of
    questions, each one after the last answer. Values travel as JSON.
    """
    with contextlib.ExitStack() as stack:

        def talk(script: str) -> Callable[[Any], Any]:
            out = tmp_path_factory.mktemp(inside.blender.kind)
            process = stack.enter_context(
                subprocess.Popen(
                    inside.command(out / "script.py", script + TALK),
                    cwd=out,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
            stack.callback(process.kill)

            def ask(value: Any) -> Any:
                assert process.stdin is not None
                assert process.stdout is not None
                print(json.dumps(value), file=process.stdin, flush=True)
                said = []
                for line in process.stdout:  # between the answers are Blender's own words
                    if line.startswith(ANSWER):
                        return json.loads(line.removeprefix(ANSWER))
                    said.append(line)
                raise AssertionError("".join(said))

            return ask

        yield talk
