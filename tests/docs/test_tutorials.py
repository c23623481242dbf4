"""The blocks of code and the commands of the README and of the tutorials are run."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path

import pytest

from tests.docs.pages import SCRIPTS, block
from tests.docs.running import run, run_block

pytestmark = [pytest.mark.blender, pytest.mark.slow]

SCENES = [
    "python scene.py",
    "asyncblend stream scene.py --instances 2 --length 16",
    "asyncblend inspect labelled.py --out sheet.png",
]
RECORD = "asyncblend record labelled.py --out recording --length 16"
RECORDED = ["asyncblend inspect recording --out sheet.png", "asyncblend export recording --format coco --out coco"]


def test_the_training_loop(folder: Path) -> None:
    """Two epochs of 32 samples come in batches of 8, the second with other indices."""
    lines = run_block(folder, "set_epoch").splitlines()
    assert len(lines) == 8
    indices = [[int(i) for i in re.findall(r"\d+", line.partition("[")[2].partition("]")[0])] for line in lines]
    assert sorted(i for batch in indices[:4] for i in batch) == list(range(32))
    assert sorted(i for batch in indices[4:] for i in batch) == list(range(32, 64))
    assert all("torch.Size([8, 8, 2])" in line for line in lines)


@pytest.mark.exhaustive
def test_the_asynchronous_loop(folder: Path) -> None:
    """Eight frames come in order, with their params, and then the statistics."""
    *lines, stats = run_block(folder, "index / 8").splitlines()
    assert [line.split()[0] for line in lines] == [str(i) for i in range(8)]
    assert [line.split()[2] for line in lines] == [str(i / 8) for i in range(8)]
    assert stats.startswith("StreamStats(delivered=8")


@pytest.mark.exhaustive
def test_the_loop_without_asyncio(folder: Path) -> None:
    """Eight frames come through `sync`, each with its corners."""
    lines = run_block(folder, "length=8).sync()").splitlines()
    assert sorted(lines) == [f"{i} (8, 2)" for i in range(8)]


@pytest.mark.exhaustive
def test_several_passes(folder: Path) -> None:
    """A sample that is rendered again has the same pixels, and another pass gives other samples in order."""
    again, *lines, stats, state = run_block(folder, "validation").splitlines()
    assert again == "the same pixels again: True"
    assert lines == [f"validation {i}" for i in range(1000, 1004)]
    assert stats.startswith("PassStats(delivered=4")
    assert state.startswith("{")


@pytest.mark.exhaustive
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


@pytest.mark.exhaustive
def test_a_curriculum(folder: Path) -> None:
    """What is called hard is drawn more often in the end."""
    weights = json.loads(run_block(folder, "ab.Curriculum").replace("'", '"'))["distance"]
    assert weights == sorted(weights)
    assert sum(weights) == pytest.approx(1)


@pytest.mark.exhaustive
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


@pytest.mark.exhaustive
def test_environments(folder: Path) -> None:
    """A step has its reward, and two environments begin at once."""
    pytest.importorskip("gymnasium", reason='pip install ".[gym]"')
    step, shape = run_block(folder, "BlenderVectorEnv").splitlines()
    assert step.endswith(" False")
    assert shape == "(2, 1)"


@pytest.mark.exhaustive
def test_random_access(folder: Path) -> None:
    """Sample 17 is the same twice, and a sampler gets two batches of four."""
    same, *batches = run_block(folder, "WeightedRandomSampler").splitlines()
    assert same == "tensor(True)"
    assert [len(re.findall(r"\d+", batch)) for batch in batches] == [4, 4]


@pytest.mark.exhaustive
def test_commands_for_a_scene(folder: Path, size: tuple[int, int]) -> None:
    """A scene runs under `python`, and the commands show how fast it is and what it gives."""
    alone, stream, inspect = SCENES
    assert f"image: uint8, shape ({size[1]}, {size[0]}, 3)" in run(sys.executable, *alone.split()[1:])
    assert (folder / "scene.png").is_file()
    assert "frames" in run(*stream.split())
    run(*inspect.split())
    assert (folder / "sheet.png").is_file()


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.exhaustive
def test_each_script_runs_by_itself(folder: Path, name: str) -> None:
    """Each renders a small picture with Cycles: an EEVEE without a GPU needs a minute for a large one."""
    shown = run(sys.executable, name)
    (shape,) = re.findall(r"image: uint8, shape \((?:\d+, )?(\d+), (\d+), 3\)", shown)
    assert int(shape[0]) <= 480
    assert int(shape[1]) <= 640
    assert '"CYCLES"' in block(SCRIPTS[name])
