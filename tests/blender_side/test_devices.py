"""What Blender renders on, where no GPU is needed to see it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

REMEMBERED = """
import _cycles
from asyncblend.blender.serving.devices import render_on
from asyncblend.errors import ConfigError

preferences = bpy.context.preferences.addons["cycles"].preferences
there = {kind for kind in ("CUDA", "HIP") if any(found[1] == kind for found in _cycles.available_devices(kind))}
for kind in ("CUDA", "HIP"):
    gone = preferences.devices.add()
    gone.id, gone.name, gone.type = "gone", "A card that was sold", kind
try:
    render_on(None, gpu=True)
    error = ""
except ConfigError as raised:
    error = str(raised)
(OUT / "results.json").write_text(json.dumps({"there": sorted(there), "error": error}))
"""


@pytest.mark.blender
def test_a_gpu_that_the_preferences_remember_is_not_there(in_blender: Callable[[str], Path]) -> None:
    """With only such a device enabled, Cycles would render on the CPU and not say so."""
    results = json.loads((in_blender(REMEMBERED) / "results.json").read_text())
    if results["there"]:
        pytest.skip("there is a GPU here")
    assert "finds no GPU that it can use" in results["error"]
