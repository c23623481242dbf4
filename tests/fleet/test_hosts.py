"""Hosts that have no bpy: Blender is in another environment, so the host's numpy and its Python may be newer."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from asyncblend.fleet.discovery import find_blender
from asyncblend.fleet.install.embedded import working_python
from asyncblend.scripts import script

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.slow, pytest.mark.blender, pytest.mark.exhaustive]

ROOT = Path(__file__).parents[2]
NEEDED = ("numpy>=2", "pyzmq", "filelock", "platformdirs", "pillow", "isal", "rich", "typer")
"""What asyncblend needs, but for torch, which is large, and uvloop, which is not there for each system."""
PROGRAM = """
import asyncio, importlib.util, json, sys
import asyncblend as ab
assert not {"numpy", "zmq"} & set(sys.modules)
there = [name for name in ("torch", "bpy") if importlib.util.find_spec(name)]

async def main():
    config = ab.StreamConfig(
        script=sys.argv[1], script_args=["--width", "48", "--height", "32"], blender=sys.argv[2], instances=2, length=4,
        ordered=True, seed=3,
    )
    async with ab.BlenderStream(config) as stream:
        frames = [frame async for frame in stream]
        version = stream.blender_version
    import numpy as np
    print(json.dumps([there, version, np.__version__, [frame["image"].tolist() for frame in frames]]))

asyncio.run(main())
"""


def make_host(number: str, environment: Path) -> str:
    """Make an environment with what asyncblend needs, numpy 2, and neither torch nor bpy, and return its Python."""
    major, minor = map(int, number.split("."))
    if (found := asyncio.run(working_python((major, minor)))) is None:
        pytest.skip(f"there is no Python {number} here: install one, and put python{number} on the PATH")
    subprocess.run([found[1], "-m", "venv", "--without-pip", environment], check=True, timeout=300)
    python = str(environment / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--only-binary=:all:", *NEEDED]
    subprocess.run(pip, check=True, timeout=250)
    return python


def run(python: str, *arguments: str | Path, status: int = 0) -> str:
    """Run a Python with the project's folder on its path, and return what it prints."""
    command = [python, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(900)
@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this environment has no pip")
@pytest.mark.parametrize(("number", "kind"), [("3.11", "bpy"), ("3.12", "bpy5"), ("3.13", "bpy")])
def test_a_host_without_bpy_streams(number: str, kind: str, real_kind: Callable[[str], Any], tmp_path: Path) -> None:
    """It gets the same bytes as this Python from the Blender that is named, and its doctor misses torch alone."""
    host, blender = make_host(number, tmp_path / "host"), find_blender(real_kind(kind).blender).path
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    arguments = program, script("cube.py"), blender
    there, version, numpy, images = json.loads(run(host, *arguments))
    assert (there, numpy.partition(".")[0]) == ([], "2")
    assert version.startswith(real_kind(kind).version)
    assert images == json.loads(run(sys.executable, *arguments))[-1]
    assert np.array(images).shape == (4, 32, 48, 3)
    assert np.array(images).any()

    found = json.loads(run(host, "-m", "asyncblend", "doctor", "--json", "--blender", blender, status=1))
    (one,) = found["blenders"]
    assert (one["works"], one["kind"], one["path"], found["problems"]) == (True, "module", blender, [])
    assert found["commands"][0].endswith("install torch")
