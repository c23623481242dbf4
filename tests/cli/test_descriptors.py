"""The standard descriptors of a command: closed ones, and a reader that has gone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from asyncblend.recording import Recording
from asyncblend.testing import fake_blender

VALUES = {"image": ("uint8", (4, 4, 3))}


def command(folder: Path, *args: str, **faults: object) -> list[str]:
    """Return a command line for a fake Blender that makes small images."""
    (folder / "scene.py").touch()
    fake = str(fake_blender(folder / "fake", values=VALUES, **faults))
    name, *rest = args
    return [sys.executable, "-m", "asyncblend", name, "scene.py", "--instances", "1", "--blender", fake, *rest]


@pytest.mark.parametrize("descriptor", [0, 1, 2])
def test_a_closed_descriptor(descriptor: int, tmp_path: Path) -> None:
    """A command runs without its input, its output or its errors, as some services start programs."""
    line = [*command(tmp_path, "record", "--length", "3", "--out", "three")]
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {descriptor}>&-', "sh", *line],
        cwd=tmp_path, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(Recording(tmp_path / "three")) == 3


def test_nobody_reads_the_log(tmp_path: Path) -> None:
    """A Blender that crashes is told of in the log. That nobody reads it ends no recording."""
    line = command(tmp_path, "record", "--length", "6", "--out", "six", crash_after=2, lives=1)
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=writing, text=True, timeout=90, check=False
        )
    finally:
        os.close(writing)
    assert done.returncode == 0
    assert "6 samples are in six" in done.stdout
    assert len(Recording(tmp_path / "six")) == 6
