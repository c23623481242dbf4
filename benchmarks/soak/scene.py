"""What a Blender makes of an index, and the same computed in this process."""

from __future__ import annotations

import numpy as np

import asyncblend as ab

from .orders import OBEY

__all__ = ["FAKE", "IMAGE", "REAL", "is_right", "params"]

_NOISE = 100_000  # bytes in a frame, so many that a leak would show

IMAGE = (24, 32, 3)
"""Shape of the image that a real Blender renders."""

_CHECKED = f"""\
{OBEY}

import numpy as np

from asyncblend import blender as bl


def checked(task):
    return {{
        "pid": os.getpid(),
        "draw": task.rng.random(4),
        "noise": task.rng.integers(0, 256, {_NOISE}, np.uint8),
        "tag": task.params["tag"],
        "consumer": task.params["consumer"],
    }}
"""

FAKE = _CHECKED + "\n\nbl.serve(checked)\n"
"""The script for fakes, which have no bpy."""

REAL = f"""\
{_CHECKED}

import bpy

scene = bpy.context.scene
scene.render.engine = "CYCLES"
scene.render.resolution_y, scene.render.resolution_x = {IMAGE[:2]}
scene.cycles.samples, scene.cycles.use_denoising = 1, False
cube = bpy.data.objects["Cube"]


def sample(task):
    values = checked(task)
    cube.rotation_euler = task.rng.uniform(-3, 3, 3)
    return values | {{"image": bl.render()["image"], "blender": bpy.app.version_string}}


bl.serve(sample)
"""
"""The script for real Blenders: the same values, and an image."""


def params(index: int, consumer: int = 0) -> dict[str, int]:
    """Return the params of a sample. `consumer` tells those of passes apart that run at once."""
    return {"tag": 7 * index + 1, "consumer": consumer}


def is_right(frame: ab.Frame, seed: int, consumer: int = 0) -> bool:
    """Return whether all values but the image are what they must be for this seed, index and consumer."""
    rng = np.random.default_rng([seed, frame.index])
    draw, noise = rng.random(4), rng.integers(0, 256, _NOISE, np.uint8)  # drawn in the same order as in the script
    made_with = params(frame.index, consumer)
    return (
        np.array_equal(frame["draw"], draw)
        and np.array_equal(frame["noise"], noise)
        and {name: frame[name] for name in made_with} == frame.params == made_with
    )
