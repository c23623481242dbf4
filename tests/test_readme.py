"""The README is never ahead of the code: its code blocks and commands are run, and its tables are compared.

Only with `--all` are the pictures as large as in the README; else they are a hundredth of that.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asyncblend as ab
from benchmarks.soak.faults import KINDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
PYTHON: list[str] = [text for language, text in BLOCKS if language == "python"]
COMMANDS = {line for language, text in BLOCKS if language == "sh" for line in text.splitlines()}

MAKE = {"make demo": "asyncblend demo", "make test": "pytest", "make lint": "ruff check"}
INSTALL = {'pip install ".[bpy]"', "asyncblend demo"}
SCENES = [
    "python scene.py",
    "asyncblend stream scene.py --instances 2 --length 16",
    "asyncblend inspect labelled.py --out sheet.png",
]
RECORD = "asyncblend record labelled.py --out recording --length 16"
RECORDED = ["asyncblend inspect recording --out sheet.png", "asyncblend export recording --format coco --out coco"]

SCRIPTS = {
    "scene.py": "camera.project",
    "labelled.py": "bl.annotate",
    "animated.py": "# pre_animation",
    "rising.py": "speed * step",
    "reach.py": "class Reach",
}
"""The blocks that run inside Blender, each with a word that only it has."""
PROGRAMS = (
    *("set_epoch", "index / 8", "length=8).sync()", "validation", "MixedDataset", "bt.Receiver"),
    *("def item_transform", "def record", "# one question", "ab.Curriculum", "clip=4", "BlenderVectorEnv"),
    *("WeightedRandomSampler", "StatefulDataLoader", "asyncblend.ray.dataset", "cluster=Cluster"),
)
"""The other blocks."""

pytestmark = [pytest.mark.blender, pytest.mark.slow]


def block(word: str) -> str:
    """Return the one Python block with this word in it."""
    (found,) = [text for text in PYTHON if word in text]
    return found


@pytest.fixture
def size(request: pytest.FixtureRequest) -> tuple[int, int]:
    """Width and height of the scenes' pictures."""
    return (640, 480) if request.config.getoption("all") else (64, 48)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]) -> Path:
    """An empty folder, as the working directory, with the README's scripts; the commands are on the PATH."""
    monkeypatch.setenv("ASYNCBLEND_BLENDER", "bpy")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for name, word in SCRIPTS.items():
        assert f"`{name}`" in README
        assert "= 640, 480\n" in block(word) or name not in ("scene.py", "labelled.py")
        (tmp_path / name).write_text(block(word).replace("= 640, 480\n", f"= {size[0]}, {size[1]}\n"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*command: str, cwd: Path | None = None, environment: dict[str, str] | None = None) -> str:
    """Run a command, which must succeed, and return what it printed."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=600,
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_block(folder: Path, word: str) -> str:
    """Run the Python block with this word as a program, and return what it printed."""
    (folder / "block.py").write_text(block(word))
    return run(sys.executable, "block.py")


def test_everything_is_run_below() -> None:
    """All Python blocks and all commands are known to these tests: scripts, and what uses them."""
    assert {block(word) for word in (*SCRIPTS.values(), *PROGRAMS)} == set(PYTHON)
    assert {*MAKE, *INSTALL, *SCENES, RECORD, *RECORDED} == COMMANDS


def test_the_training_loop(folder: Path) -> None:
    """Two epochs of 32 samples come in batches of 8, the second with other indices."""
    lines = run_block(folder, "set_epoch").splitlines()
    assert len(lines) == 8
    indices = [[int(i) for i in re.findall(r"\d+", line.partition("[")[2].partition("]")[0])] for line in lines]
    assert sorted(i for batch in indices[:4] for i in batch) == list(range(32))
    assert sorted(i for batch in indices[4:] for i in batch) == list(range(32, 64))
    assert all("torch.Size([8, 8, 2])" in line for line in lines)


def test_the_asynchronous_loop(folder: Path) -> None:
    """Eight frames come in order, with their params, and then the statistics."""
    *lines, stats = run_block(folder, "index / 8").splitlines()
    assert [line.split()[0] for line in lines] == [str(i) for i in range(8)]
    assert [line.split()[2] for line in lines] == [str(i / 8) for i in range(8)]
    assert stats.startswith("StreamStats(delivered=8")


def test_the_loop_without_asyncio(folder: Path) -> None:
    """Eight frames come through `sync`, each with its corners."""
    lines = run_block(folder, "length=8).sync()").splitlines()
    assert sorted(lines) == [f"{i} (8, 2)" for i in range(8)]


def test_several_passes(folder: Path) -> None:
    """A sample that is rendered again has the same pixels, and another pass gives other samples in order."""
    again, *lines, stats, state = run_block(folder, "validation").splitlines()
    assert again == "the same pixels again: True"
    assert lines == [f"validation {i}" for i in range(1000, 1004)]
    assert stats.startswith("PassStats(delivered=4")
    assert state.startswith("{")


def test_a_recording_in_place_of_the_stream(folder: Path, size: tuple[int, int]) -> None:
    """Two workers read sixteen recorded samples, eight live ones come among recorded ones, and tools read them."""
    run(*RECORD.split())
    *lines, counts = run_block(folder, "MixedDataset").splitlines()
    numbers = [[int(i) for i in re.findall(r"\d+", line.partition("]")[0])] for line in lines]
    assert sorted(i for batch in numbers[:4] for i in batch) == list(range(16))
    shapes = f"torch.Size([4, {size[1]}, {size[0]}, 3]) torch.Size([4, 2, 4])"
    assert all(shapes in line for line in lines[:4])
    assert len(numbers) > 5
    assert "'live': 8" in counts
    for command in RECORDED:
        *words, out = command.split()
        run(*words, out)
        assert (folder / out).exists()


def test_the_origins_outline(folder: Path, size: tuple[int, int]) -> None:
    """Ten batches of four come through the origin's names."""
    lines = run_block(folder, "bt.Receiver").splitlines()
    assert len(lines) == 10
    start = f"torch.Size([4, {size[1]}, {size[0]}, 3]) torch.Size([4, 8, 2]) tensor(["
    assert all(line.startswith(start) for line in lines)


@pytest.mark.exhaustive
def test_the_origins_streaming_dataset(folder: Path, size: tuple[int, int]) -> None:
    """Two workers give sixteen transformed items in batches of four."""
    assert (
        run_block(folder, "def item_transform").splitlines()
        == [f"torch.Size([4, {size[1]}, {size[0]}, 3]) torch.Size([4, 8, 2])"] * 4
    )


@pytest.mark.exhaustive
def test_the_origins_file_dataset(folder: Path, size: tuple[int, int]) -> None:
    """Eight samples are recorded, and come in another order."""
    lines = run_block(folder, "def record").splitlines()
    indices = [int(i) for line in lines for i in re.findall(r"\d+", line.partition("]")[0])]
    assert sorted(indices) == list(range(8)) != indices
    assert all(line.endswith(f"torch.Size([4, {size[1]}, {size[0]}, 3])") for line in lines)


@pytest.mark.exhaustive
def test_the_origins_duplex_channel_and_animation(folder: Path) -> None:
    """Six episodes of five frames come, those begun later from higher up, and then one that was asked for.

    Its cube falls, and a second run gives the same pixels.
    """
    *lines, nearest = run_block(folder, "# one question").splitlines()
    found = [line.split(maxsplit=2) for line in lines]
    assert sorted(int(index) for index, *_ in found) == list(range(6))
    heights = [float(height) for _, height, _ in found]
    assert heights[0] == 0 < max(heights)  # the last to come may have been begun first, by a slow Blender
    assert all(shape == "(5, 48, 64)" for *_, shape in found)
    assert 5 < float(nearest) < 12

    first: list[dict[str, Any]] = []
    again: list[dict[str, Any]] = []
    for episodes, order in ((first, (0, 1)), (again, (1, 0))):
        with ab.BlenderStream(script=folder / "animated.py", instances=1).sync() as stream:
            episodes += [dict(stream.render(index)) for index in order]
    for one, other in zip(first, reversed(again), strict=True):
        for name in ("image", "depth", "normal"):
            np.testing.assert_array_equal(one[name], other[name])
        low = [np.argwhere(np.isfinite(depth))[:, 0].mean() for depth in one["depth"]]
        assert low[0] < low[2] < low[4]


def test_a_curriculum(folder: Path) -> None:
    """What is called hard is drawn more often in the end."""
    weights = json.loads(run_block(folder, "ab.Curriculum").replace("'", '"'))["distance"]
    assert weights == sorted(weights)
    assert sum(weights) == pytest.approx(1)


def test_clips_of_episodes(folder: Path) -> None:
    """Three episodes of eight frames give six clips of four."""
    lines = run_block(folder, "clip=4").splitlines()
    assert sorted(int(line.split()[0]) for line in lines) == [0, 0, 1, 1, 2, 2]
    assert all(line.endswith("torch.Size([4, 48, 64, 3]) tensor(True)") for line in lines)


@pytest.mark.exhaustive
@pytest.mark.parametrize("word", ["asyncblend.ray.dataset", "cluster=Cluster"])
def test_a_cluster(folder: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    """On this machine alone, 32 samples come in batches of 16; and 8 frames from Blenders that Ray has placed."""
    pytest.importorskip("ray.data", reason='pip install ".[ray]"')
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else a token is written into the home folder
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with tempfile.TemporaryDirectory(prefix="abr", dir="/tmp") as short:  # Ray's sockets need a short path
        monkeypatch.setenv("RAY_TMPDIR", short)
        lines = run_block(folder, word).splitlines()
    if word == "cluster=Cluster":
        assert sorted(int(line.split()[0]) for line in lines) == list(range(8))
        assert all(line.endswith(f"({size[1]}, {size[0]}, 3)") for line in lines)
        return
    assert lines == [f"torch.Size([16]) torch.Size([16, {size[1]}, {size[0]}, 3]) torch.float32"] * 2


def test_environments(folder: Path) -> None:
    """A step has its reward, and two environments begin at once."""
    pytest.importorskip("gymnasium", reason='pip install ".[gym]"')
    step, shape = run_block(folder, "BlenderVectorEnv").splitlines()
    assert step.endswith(" False")
    assert shape == "(2, 1)"


def test_random_access(folder: Path) -> None:
    """Sample 17 is the same twice, and a sampler gets two batches of four."""
    same, *batches = run_block(folder, "WeightedRandomSampler").splitlines()
    assert same == "tensor(True)"
    assert [len(re.findall(r"\d+", batch)) for batch in batches] == [4, 4]


def test_resuming(folder: Path) -> None:
    """Each index comes once, before the stop or after it."""
    pytest.importorskip("torchdata", reason='pip install ".[stateful]"')
    assert run_block(folder, "StatefulDataLoader").splitlines() == ["True"]


def test_commands_for_a_scene(folder: Path, size: tuple[int, int]) -> None:
    """A scene runs under `python`, and the commands show how fast it is and what it gives."""
    alone, stream, inspect = SCENES
    assert f"image: uint8, shape ({size[1]}, {size[0]}, 3)" in run(sys.executable, *alone.split()[1:])
    assert (folder / "scene.png").is_file()
    assert "frames" in run(*stream.split())
    run(*inspect.split())
    assert (folder / "sheet.png").is_file()


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_script_runs_by_itself(folder: Path, name: str) -> None:
    """Each renders a small picture with Cycles: an EEVEE without a GPU needs a minute for a large one."""
    shown = run(sys.executable, name)
    (shape,) = re.findall(r"image: uint8, shape \((?:\d+, )?(\d+), (\d+), 3\)", shown)
    assert int(shape[0]) <= 480
    assert int(shape[1]) <= 640
    assert '"CYCLES"' in block(SCRIPTS[name])


def test_what_make_would_do() -> None:
    """The targets exist, and end with the right command. `.ci/run` runs them all."""
    for line, ends_with in MAKE.items():
        assert ends_with in run("make", "-n", line.split()[1], cwd=ROOT)


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_the_package_installs_and_its_demo_runs(folder: Path) -> None:
    """The package is built and installed without what it needs, which is here already; then its demo draws cubes."""
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", "installed", f"{ROOT}[bpy]")
    for name in ("cube.py", "model.py", "model_options.py", "model_scene.py"):
        assert (folder / "installed/asyncblend/blender_scripts" / name).is_file()
    code = "import asyncblend, sys; assert 'installed' in asyncblend.__file__; from asyncblend.cli import main; main()"
    run(sys.executable, "-c", code, "demo", environment={"PYTHONPATH": str(folder / "installed")})
    pictures = sorted(path.name for path in (folder / "tmp").glob("*.png"))
    assert pictures == [f"output_{i:02d}.png" for i in range(10)]


def test_the_table_of_options_is_complete() -> None:
    """The table has each field of StreamConfig with its default, and no other."""
    rows = dict(re.findall(r"^\| `(\w+)` \| (\S.*?) \| .* \|$", README, flags=re.MULTILINE))
    defaults = {}
    for field in dataclasses.fields(ab.StreamConfig):
        if field.default is dataclasses.MISSING:
            defaults[field.name] = "required"
        elif dataclasses.is_dataclass(field.default):
            defaults[field.name] = f"`{type(field.default).__name__}()`"
        else:
            defaults[field.name] = f"`{field.default!r}`"
    assert rows == defaults
    for part in (ab.RestartPolicy(), ab.Timeouts()):
        for field in dataclasses.fields(part):
            assert f"`{field.name}={getattr(part, field.name)}`" in README


def test_the_soaks_table_has_every_fault() -> None:
    """Each kind of fault that the soak injects has its row."""
    assert re.findall(r"^\| faults: (.+?) \|", README, flags=re.MULTILINE) == [*KINDS]


def test_every_extra_is_named() -> None:
    """The README tells what each extra is for, but for those of who works on asyncblend itself."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    unnamed = [name for name in extras if f"`{name}`" not in README and f'".[{name}]"' not in README]
    assert unnamed == ["fuzz", "dev"]


def test_every_picture_is_there() -> None:
    """Each picture that the README shows is a PNG file."""
    for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).read_bytes().startswith(b"\x89PNG")


def test_every_command_that_is_named_exists() -> None:
    """Commands that are named within sentences exist too."""
    named = set(re.findall(r"`asyncblend (\w+)", README))
    assert named >= {"doctor", "demo", "stream", "link"}
    for program, words in (
        ("asyncblend", named),
        ("benchmarks", set(re.findall(r"`python -m benchmarks (\w+)", README))),
    ):
        page = run(sys.executable, "-m", program, "--help", cwd=ROOT)
        assert words <= set(re.findall(r"^\W+(\w+) {2,}", page, flags=re.MULTILINE))


def test_every_figure_is_a_benchmarks() -> None:
    """Each number of the table of speeds stands in RESULTS.md too."""
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    section = README.partition("## How fast")[2].partition("\n## ")[0]
    figures = re.findall(r"\*\*([\d.,]+)x?\*\*|\b([\d.,]+) (?:images|frames|round trips|ms|µs)", section)
    numbers = [one or other for one, other in figures]
    assert len(numbers) > 10
    assert [number for number in numbers if not re.search(rf"(?<![\d.,]){re.escape(number)}(?![\d])", results)] == []
