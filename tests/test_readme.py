"""The README is never ahead of the code: each of its commands and code blocks is run, and its table compared."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import asyncblend as ab

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
PYTHON: list[str] = [text for language, text in BLOCKS if language == "python"]
COMMANDS = [line for language, text in BLOCKS if language == "sh" for line in text.splitlines()]

pytestmark = [pytest.mark.blender, pytest.mark.slow]


def block(word: str) -> str:
    """The one Python block with that word in it."""
    (found,) = [text for text in PYTHON if word in text]
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, as the working directory, with the README's two scenes; the commands are on the PATH."""
    monkeypatch.setenv("ASYNCBLEND_BLENDER", "bpy")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "scene.py").write_text(block("camera.project"))
    (tmp_path / "labelled.py").write_text(block("bl.annotate"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, cwd=cwd, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_block(folder: Path, word: str) -> str:
    (folder / "block.py").write_text(block(word))
    return run(sys.executable, "block.py")


def test_every_python_block_is_run_below() -> None:
    """Six blocks: two scenes, and four that use them."""
    words = ("camera.project", "bl.annotate", "set_epoch", "async for", "MixedDataset", "bt.Receiver")
    used = {block(word) for word in words}
    assert used == set(PYTHON)


def test_the_training_loop(folder: Path) -> None:
    """Two epochs of 32 samples in batches of 8, the second with other indices."""
    lines = run_block(folder, "set_epoch").splitlines()
    assert len(lines) == 8
    indices = [[int(i) for i in re.findall(r"\d+", line.partition("[")[2].partition("]")[0])] for line in lines]
    assert sorted(i for batch in indices[:4] for i in batch) == list(range(32))
    assert sorted(i for batch in indices[4:] for i in batch) == list(range(32, 64))
    assert all("torch.Size([8, 8, 2])" in line for line in lines)


def test_the_asynchronous_loop(folder: Path) -> None:
    """Eight frames in order, with their params, and the statistics."""
    *lines, stats = run_block(folder, "async for").splitlines()
    assert [line.split()[0] for line in lines] == [str(i) for i in range(8)]
    assert [line.split()[2] for line in lines] == [str(i / 8) for i in range(8)]
    assert stats.startswith("StreamStats(delivered=8")


def test_a_recording_in_place_of_the_stream(folder: Path) -> None:
    """Sixteen recorded samples, by two workers; then eight live ones among recorded ones."""
    run("asyncblend", "record", "labelled.py", "--out", "recording", "--length", "16")
    *lines, counts = run_block(folder, "MixedDataset").splitlines()
    numbers = [[int(i) for i in re.findall(r"\d+", line.partition("]")[0])] for line in lines]
    assert sorted(i for batch in numbers[:4] for i in batch) == list(range(16))
    assert all("torch.Size([4, 480, 640, 3]) torch.Size([4, 2, 4])" in line for line in lines[:4])
    assert len(numbers) > 5
    assert "'live': 8" in counts


def test_the_origins_outline(folder: Path) -> None:
    """Ten batches of four through the origin's names."""
    lines = run_block(folder, "bt.Receiver").splitlines()
    assert len(lines) == 10
    assert all(line.startswith("torch.Size([4, 480, 640, 3]) torch.Size([4, 8, 2]) tensor([") for line in lines)


def test_every_command_works(folder: Path) -> None:
    """All lines of all shell blocks; what would run these tests again is only looked up."""
    before = set(folder.iterdir())
    for line in dict.fromkeys(COMMANDS):
        words = shlex.split(line)
        if line == "make demo":
            run(*words, f"ARGS=--batches 1 --out {folder / 'made'}", cwd=ROOT)
            assert [path.name for path in (folder / "made").iterdir()] == ["output_00.png"]
        elif words[0] == "make":
            assert "pytest" in run("make", "-n", *words[1:], cwd=ROOT) or words[1] == "lint"
        elif words[:2] == ["pip", "install"]:
            # The package itself, built and installed; what it needs is in this environment already.
            run(
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--target",
                "installed",
                f"{ROOT}{words[2][1:]}",
            )
            assert (folder / "installed/asyncblend/blender_scripts/cube.py").is_file()
        elif words == ["asyncblend", "demo"]:
            code = "import asyncblend, sys; assert 'installed' in asyncblend.__file__; sys.argv[0] = 'asyncblend'; from asyncblend.cli import main; main()"
            environment = {**os.environ, "PYTHONPATH": str(folder / "installed")}
            done = subprocess.run(
                [sys.executable, "-c", code, "demo"],
                env=environment,
                capture_output=True,
                text=True,
                timeout=100,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            pictures = sorted(path.name for path in (folder / "tmp").glob("*.png"))
            assert pictures == [f"output_{i:02d}.png" for i in range(10)]
        elif words[0] == "python":
            assert "image: uint8, shape (480, 640, 3)" in run(sys.executable, *words[1:])
            assert (folder / "scene.png").is_file()
        elif words[:2] == ["asyncblend", "stream"]:
            assert "frames" in run(*words)
        elif words[0] == "asyncblend":
            run(*words)
            (out,) = (words[i + 1] for i, word in enumerate(words) if word == "--out")
            assert (folder / out).exists()
        else:
            pytest.fail(f"no test for {line!r}")
    assert set(folder.iterdir()) > before


def test_the_table_of_options_is_complete() -> None:
    """Each field of StreamConfig with its default, and no other."""
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


def test_every_picture_is_there() -> None:
    """And is a PNG."""
    for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).read_bytes().startswith(b"\x89PNG")


def test_every_command_that_is_named_exists() -> None:
    """Also those within sentences."""
    named = set(re.findall(r"`asyncblend (\w+)", README))
    assert named >= {"doctor", "demo", "stream", "link"}
    for name in named:
        run(sys.executable, "-m", "asyncblend", name, "--help")
    for name in set(re.findall(r"`python -m benchmarks (\w+)", README)):
        run(sys.executable, "-m", "benchmarks", name, "--help", cwd=ROOT)


def test_every_figure_is_a_benchmarks() -> None:
    """Each number of the table of speeds stands in RESULTS.md too."""
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    section = README.partition("## How fast")[2].partition("\n## ")[0]
    figures = re.findall(r"\*\*([\d.,]+)x?\*\*|\b([\d.,]+) (?:images|frames|round trips|ms|µs)", section)
    numbers = [one or other for one, other in figures]
    assert len(numbers) > 10
    assert [number for number in numbers if not re.search(rf"(?<![\d.,]){re.escape(number)}(?![\d])", results)] == []
