"""The versions of Blender that README.md and constraints.txt name are those that the tests run on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def named() -> list[str]:
    """Return the versions in the README's sentence. `.ci/run` compares them with the tests' own report."""
    (line,) = re.findall(r"^Tested with Blender .*", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    return re.findall(r"\d+\.\d+\.\d+", line)


def test_the_modules_are_those_that_make_installs() -> None:
    """Both are in the README, and beside them there is one executable."""
    pinned = re.findall(r"^bpy==([\d.]+);", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(pinned) == 2
    assert set(pinned) < set(named())
    assert len(named()) == 3


def test_what_is_tested_here_is_named(real: Any) -> None:
    """A developer's executable may be another one than that of continuous integration."""
    if real.name == "executable" and real.version not in named():
        pytest.skip(f"{real.blender} is Blender {real.version}, which `.ci/run` would not accept")
    assert real.version in named()
