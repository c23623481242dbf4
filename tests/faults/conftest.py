"""The Blenders that the faults happen to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asyncblend.testing import fake_blender


@pytest.fixture(params=["fake", *(pytest.param(name, marks=pytest.mark.blender) for name in ("bpy", "bpy5"))])
def blender(request: pytest.FixtureRequest, tmp_path: Path, real_kind: Callable[[str], Any]) -> str:
    """The option `blender` for the fake and for the bpy modules, which start quickly."""
    if request.param == "fake":
        return str(fake_blender(tmp_path / "fake"))
    return str(real_kind(request.param).blender)


@pytest.fixture
def fake(tmp_path: Path) -> str:
    """The option `blender` for a fake without faults."""
    return str(fake_blender(tmp_path / "fake"))
