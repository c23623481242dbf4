"""The fuzzer: it begins with real inputs, says what it needs, and finds what raises the wrong error."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.fuzz.targets import SEPARATOR, TARGETS

_ROOT = Path(__file__).parents[1]
needs_atheris = pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason='pip install -e ".[fuzz]"')


def fuzzed(*arguments: str, before: str = "", folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `python -m benchmarks fuzz`, in Pythons that execute `before` when they start, from a file in `folder`."""
    path = [str(_ROOT)]
    if folder is not None:
        (folder / "sitecustomize.py").write_text(before)
        path.insert(0, str(folder))
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", "fuzz", *arguments],
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


@pytest.mark.parametrize("name", TARGETS)
def test_it_begins_with_what_can_be_read(name: str, tmp_path: Path) -> None:
    """Each seed is read without an error. An input of nothing, or of what is in no seed, is refused."""
    target = TARGETS[name]
    seeds = list(target.seeds())
    assert len(seeds) == len(set(seeds)) >= 3
    assert all(target.run(seed, tmp_path) for seed in seeds)
    for wrong in (b"", b"\xff", SEPARATOR, seeds[0][: len(seeds[0]) // 2]):
        assert not target.run(wrong, tmp_path)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("config", b'script = "~no-such-user/scene.py"'),  # RuntimeError
        ("config", b"seed = " + b"9" * 5000),  # a ValueError of int
        ("config", b"params = " + b"[" * 5000),  # RecursionError
    ],
)
def test_what_was_found_stays_mended(name: str, found: bytes, tmp_path: Path) -> None:
    """Inputs that once raised another error than the promised one are refused."""
    assert not TARGETS[name].run(found, tmp_path)


def test_it_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without atheris the command ends with the line that installs it."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "atheris" else real(name))
    done = CliRunner().invoke(app, ["fuzz"])
    assert done.exit_code == 2
    assert 'Fuzzing needs atheris: pip install -e ".[fuzz]"' in done.output


@needs_atheris
@pytest.mark.exhaustive
def test_it_shows_what_was_run(tmp_path: Path) -> None:
    """Without a finding the status is 0, and the table has a row for each target."""
    done = fuzzed("--minutes", "0.02", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    for name in TARGETS:
        assert len(list((tmp_path / name / "corpus").iterdir())) >= 3
        (row,) = [line for line in done.stdout.splitlines() if line.startswith(f"│ {name} ")]
        runs, _, edges, _, findings = [int(cell.replace(",", "")) for cell in row.strip("│ ").split("│")[2:]]
        assert min(runs, edges) > 0
        assert findings == 0


@needs_atheris
@pytest.mark.slow
def test_a_finding_is_told(tmp_path: Path) -> None:
    """An error that is not the promised one ends the run. The status is 1, and the input and the error are shown."""
    (folder := tmp_path / "broken").mkdir()
    broken = "import tomllib\ndef loads(text): raise KeyError('found')\ntomllib.loads = loads\n"
    done = fuzzed("--minutes", "1", "--target", "config", "--out", str(tmp_path), before=broken, folder=folder)
    assert done.returncode == 1, done.stdout + done.stderr
    (found,) = (tmp_path / "config" / "findings").iterdir()
    assert str(found) in done.stdout
    assert "KeyError: 'found'" in done.stdout
    again = fuzzed("--target", "config", "--input", str(found), before=broken, folder=folder)
    assert again.returncode == 1
    assert "KeyError" in again.stdout + again.stderr
    mended = fuzzed("--target", "config", "--input", str(found))
    assert mended.returncode == 0, mended.stdout + mended.stderr
