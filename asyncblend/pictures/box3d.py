"""The edges of a 3D box in an image. Pure arithmetic."""

from __future__ import annotations

import numpy as np

from .colours import Array

_EDGES = np.array(
    [
        *((0, 1), (1, 2), (2, 3), (3, 0)),  # smallest x
        *((4, 5), (5, 6), (6, 7), (7, 4)),  # largest x
        *((0, 4), (1, 5), (2, 6), (3, 7)),
    ]
)
_NEAR = 1e-2  # metres from the camera; a projection of nearer points means nothing


def box_lines(corners: Array, intrinsics: Array, world_to_camera: Array, *, orthographic: bool = False) -> Array:
    """Return where a camera sees the edges of a box.

    Args:
        corners: 8 x 3, in world space, in the order of `bl.annotate`.
        intrinsics: 3 x 3, the K of `bl.Camera`, in pixels; of an orthographic camera, in pixels per unit.
        world_to_camera: 4 x 4, to camera axes x right, y down, z forward.
        orthographic: Whether a point (X, Y, Z) is at K (X, Y, 1) and not at K (X/Z, Y/Z, 1).

    Returns:
        M x 2 x 2 float64, the two ends of each edge in pixels; M is at most 12. An edge is cut where it would go behind
        the camera, and missing if all of it is behind.
    """
    seen = corners.astype(np.float64) @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]
    ends = seen[_EDGES]
    ends = ends[(ends[..., 2] > _NEAR).any(axis=1)]
    for line, (first, last) in zip(ends, ends[..., 2].copy(), strict=True):
        if min(first, last) < _NEAR:
            cut = line[0] + (_NEAR - first) / (last - first) * (line[1] - line[0])
            line[0 if first < _NEAR else 1] = cut
    if orthographic:
        ends[..., 2] = 1
    flat = ends @ intrinsics.T
    return np.asarray(flat[..., :2] / flat[..., 2:])
