"""The lines of a 3D box in an image. Pure arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["box_lines"]

Array = np.ndarray[Any, Any]

_EDGES = np.array(
    [
        *((0, 1), (1, 2), (2, 3), (3, 0)),  # least x
        *((4, 5), (5, 6), (6, 7), (7, 4)),  # greatest x
        *((0, 4), (1, 5), (2, 6), (3, 7)),
    ]
)
_NEAR = 1e-2  # metres before the camera; nearer, a projection means nothing


def box_lines(corners: Array, intrinsics: Array, world_to_camera: Array, *, orthographic: bool = False) -> Array:
    """Where a box's edges are seen by a camera.

    Args:
        corners: 8 x 3, world space, in the order of `bl.annotate`.
        intrinsics: 3 x 3: K of `bl.Camera`, in pixels, or pixels per unit of an orthographic camera.
        world_to_camera: 4 x 4, to x right, y down, z forward.
        orthographic: the camera's kind: a pixel is K (X, Y, 1), not K (X/Z, Y/Z, 1).

    Returns:
        M x 2 x 2 float64, the two ends of each edge in pixels, cut where it would go behind the camera; at most 12.
    """
    seen = corners.astype(np.float64) @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]
    ends = seen[_EDGES]
    depths = ends[..., 2]
    before = (depths > _NEAR).any(axis=1)
    ends, depths = ends[before], depths[before]
    for line, (first, last) in zip(ends, depths, strict=True):
        if min(first, last) < _NEAR:
            cut = line[0] + (_NEAR - first) / (last - first) * (line[1] - line[0])
            line[0 if first < _NEAR else 1] = cut
    if orthographic:
        ends[..., 2] = 1
    flat = ends @ intrinsics.T
    lines: Array = flat[..., :2] / flat[..., 2:]
    return lines
