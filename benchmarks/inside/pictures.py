"""Hands out pictures that look rendered, for a fake Blender. `sys.argv[1]` is the amount of noise in them."""

import sys
from typing import Any

import numpy as np

from asyncblend import blender as bl

HEIGHT, WIDTH = 480, 640
rng = np.random.default_rng(0)


def picture(number: int) -> Any:
    """Return a shaded ball on a plain ground, with noise as few samples per pixel leave it."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    radius = 90 + 10 * number
    dx, dy = (x - 200 - 20 * number) / radius, (y - 240) / radius
    height = np.sqrt(np.clip(1 - dx**2 - dy**2, 0, None))
    shade = np.where(height > 0, np.clip(0.2 + 0.8 * (0.5 * height - 0.6 * dx - 0.6 * dy), 0, 1), 0)
    image = np.where(height[..., None] > 0, shade[..., None] * (200, 90, 60), (128, 140, 153))
    noisy = image + float(sys.argv[1]) * rng.normal(size=image.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


pictures = [picture(number) for number in range(8)]


def sample(task: bl.Task) -> dict[str, Any]:
    return {"image": pictures[task.index % len(pictures)], "xy": np.full((8, 2), task.index, np.float32)}


bl.serve(sample)
