"""The Blenders that the faults happen to."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncblend.testing import fake_blender


@pytest.fixture(params=["fake", pytest.param("bpy", marks=pytest.mark.blender)])
def blender(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The option `blender` for the fake and for the bpy module, which both start quickly."""
    return "bpy" if request.param == "bpy" else str(fake_blender(tmp_path / "fake"))


@pytest.fixture
def fake(tmp_path: Path) -> str:
    """The option `blender` for a fake without faults."""
    return str(fake_blender(tmp_path / "fake"))
