"""What a Blender makes of an index, and the same computed on this side."""

from __future__ import annotations

import numpy as np

import asyncblend as ab

__all__ = ["FAKE", "IMAGE", "REAL", "is_right", "params"]

_NOISE = 100_000  # bytes in a frame, so that memory means something

IMAGE = (24, 32, 3)
"""Shape of the image that a real Blender renders."""

_CHECKED = f"""\
import os

import numpy as np

from asyncblend import blender as bl


def checked(task):
    return {{
        "pid": os.getpid(),
        "draw": task.rng.random(4),
        "noise": task.rng.integers(0, 256, {_NOISE}, np.uint8),
        "tag": task.params["tag"],
    }}
"""

FAKE = _CHECKED + "\n\nbl.serve(checked)\n"
"""The script that runs where there is no bpy."""

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
"""The same, and an image beside."""


def params(index: int) -> dict[str, int]:
    """What the sample is made with."""
    return {"tag": 7 * index + 1}


def is_right(frame: ab.Frame, seed: int) -> bool:
    """Whether all but the image is what seed and index make of it."""
    rng = np.random.default_rng([seed, frame.index])
    draw, noise = rng.random(4), rng.integers(0, 256, _NOISE, np.uint8)  # in the script's order
    made_with = params(frame.index)
    return (
        np.array_equal(frame["draw"], draw)
        and np.array_equal(frame["noise"], noise)
        and frame["tag"] == made_with["tag"]
        and frame.params == made_with
    )
