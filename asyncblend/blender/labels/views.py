"""What of a mesh lies in the image, whatever stands before it: pure arithmetic, no bpy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..scene.lens import to_pixels
from .silhouette import Edges, clip_near, edges_of, spans_of

__all__ = ["Appearance", "View", "appearance", "rays", "whole_pixels"]

_Floats = npt.NDArray[np.float64]
_Triangles = npt.NDArray[np.integer[Any]]

_ROUNDING = 1e-3
"""What reaches less than this over the border of the image, in pixels, is not truncated."""


class View(NamedTuple):
    """A camera and the image that it gives."""

    K: _Floats
    """As `Camera.K`."""
    world_to_camera: _Floats
    """As `Camera.world_to_camera`."""
    perspective: bool
    """Else it is orthographic."""
    near: float
    """What is not further than this along the axis is not rendered."""
    far: float
    """Nor what is further than this."""
    width: int
    height: int

    def pixels(self, points: _Floats) -> _Floats:
        """N x 2 pixel coordinates of N x 3 points in camera space; NaN where a perspective camera has none."""
        return to_pixels(self.K, points, self.perspective)


class Appearance(NamedTuple):
    """A mesh as a camera sees it, but for what stands before it."""

    xy: _Floats
    """Pixel coordinates of its points, NaN for those behind the near plane; then of new ones on that plane."""
    triangles: _Triangles
    """Those before the near plane, or the parts of them."""
    clipped: bool
    """Whether a part is behind the near plane."""
    box: npt.NDArray[np.float32]
    """x, y, width, height, cut at the border of the image; 0 0 0 0 outside."""
    truncated: bool
    """Whether a part lies outside the image or behind the near plane."""


def appearance(points: _Floats, triangles: _Triangles, view: View) -> Appearance:
    """How a mesh looks: N x 3 points, in camera space, N > 0, and M x 3 triangles."""
    kept, left = clip_near(points, triangles, view.near)
    clipped = kept is not points
    xy = view.pixels(kept)
    seen = xy
    if clipped:
        behind = kept[:, 2] <= view.near
        behind[len(points) :] = False
        xy[behind] = np.nan
        seen = xy[~behind]
    if len(seen) == 0:
        return Appearance(xy, left, clipped, np.zeros(4, np.float32), True)
    low, high = seen.min(axis=0), seen.max(axis=0)
    size = np.array([view.width, view.height])
    truncated = clipped or bool((low < -_ROUNDING).any() or (high > size + _ROUNDING).any())
    low, high = np.clip(low, 0, size), np.clip(high, 0, size)
    inside = bool((low < high).all())
    box = np.concatenate([low, high - low]) if inside else np.zeros(4)
    return Appearance(xy, left, clipped, box.astype(np.float32), truncated)


def whole_pixels(seen: Appearance, edges: Edges | None, view: View) -> int:
    """How many pixels the whole silhouette has, in an image extended to three times its size, as BOP counts them.

    Args:
        seen: the mesh.
        edges: those of the mesh's triangles, where known; they are of no use for a clipped one.
        view: the camera.
    """
    if edges is None or seen.clipped:
        edges = edges_of(seen.triangles)
    window = (-view.width, -view.height, 3 * view.width, 3 * view.height)
    return spans_of(seen.xy, seen.triangles, edges, window).pixels


def rays(points: _Floats, view: View) -> _Floats:
    """Where the rays from the camera to points begin: on the near plane. K x 3 in camera space, as the points."""
    if view.perspective:
        return points * (view.near / points[:, 2:])
    starts = points.copy()
    starts[:, 2] = view.near
    return starts
