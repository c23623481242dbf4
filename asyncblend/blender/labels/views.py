"""What of a mesh lies in the image, whatever is in front of it: pure arithmetic, no bpy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..scene.lens import View
from .silhouette import clip_near

_Floats = npt.NDArray[np.float64]
_Triangles = npt.NDArray[np.integer[Any]]

_ROUNDING = 1e-3  # by how many pixels a mesh may reach over the border of the image without counting as truncated


class Appearance(NamedTuple):
    """A mesh as a camera sees it, if nothing were in front of it."""

    xy: _Floats  # pixels of its points, NaN for those behind the near plane, and then of new points on that plane
    triangles: _Triangles  # those in front of the near plane, or the parts of them that are
    clipped: bool  # whether a part is behind the near plane
    box: npt.NDArray[np.float32]  # x, y, width, height, cut at the border of the image; 0 0 0 0 outside
    truncated: bool  # whether a part lies outside the image or behind the near plane


def appearance(points: _Floats, triangles: _Triangles, view: View) -> Appearance:
    """Return how a mesh of N x 3 points in camera space, N > 0, and M x 3 triangles looks."""
    kept, remaining = clip_near(points, triangles, view.near)
    clipped = kept is not points
    xy = view.pixels(kept)
    seen = xy
    if clipped:
        behind = kept[:, 2] <= view.near
        behind[len(points) :] = False
        xy[behind] = np.nan
        seen = xy[~behind]
    if len(seen) == 0:
        return Appearance(xy, remaining, clipped, np.zeros(4, np.float32), True)
    low, high = seen.min(axis=0), seen.max(axis=0)
    size = np.array([view.frame.width, view.frame.height])
    truncated = clipped or bool((low < -_ROUNDING).any() or (high > size + _ROUNDING).any())
    low, high = np.clip(low, 0, size), np.clip(high, 0, size)
    inside = bool((low < high).all())
    box = np.concatenate([low, high - low]) if inside else np.zeros(4)
    return Appearance(xy, remaining, clipped, box.astype(np.float32), truncated)


def rays(points: _Floats, view: View) -> _Floats:
    """Return where the camera's rays to K x 3 points in camera space begin: on the near plane, K x 3."""
    if view.perspective:
        return points * (view.near / points[:, 2:])
    return np.column_stack([points[:, :2], np.full(len(points), view.near)])
