"""Keypoints that are spread over the surface of a mesh."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError
from .meshes import WITH_MESH, Mesh
from .triangles import rendered_mesh

_Points = npt.NDArray[np.float64]

_SCATTERED = 2000  # points within faces, for a mesh with fewer vertices than keypoints
_MOST = 1000
_ROUND = 1e-5  # of the mesh's extent: what differs by less is the same, whatever file format the mesh came from


def surface_keypoints(obj: Any, count: int = 8) -> _Points:
    """Return points on an object's surface that are as far from each other as possible.

    They are found by farthest-point sampling: the first one is the vertex that is furthest from the middle of the
    bounding box, and each next one that which is furthest from all before. 8 keypoints of a box are its corners. Once
    all vertices are taken, points within faces follow. Keypoints depend on the mesh alone: copies have the same ones,
    and those at vertices do not depend on the order in which a file stores these.

        labels = bl.annotate([mug], {mug: bl.surface_keypoints(mug, 8)}, rendered=labels)

    Args:
        obj: An object with a mesh that has faces. Modifiers are applied, as in a render.
        count: How many, from 1 to 1000.

    Returns:
        count x 3 float64, in the object's own space. The first n points are those of a smaller count n.

    Raises:
        ConfigError: The object has no mesh, or one without faces, or the count is no whole number from 1 to 1000.
        RuntimeError: Blender does not update the object, because it is disabled in viewports and in renders,
            or not in the view layer.
    """
    import bpy

    if not isinstance(obj, bpy.types.Object) or obj.type not in WITH_MESH:
        raise ConfigError(f"keypoints on a surface need an object with a mesh; got {getattr(obj, 'name', obj)!r}")
    if not isinstance(count, numbers.Integral) or isinstance(count, bool) or not 1 <= count <= _MOST:
        raise ConfigError(f"count must be a whole number from 1 to {_MOST}, got {count!r}")
    mesh = rendered_mesh(obj)
    if not len(mesh.triangles):
        raise ConfigError(f"the mesh of {obj.name!r} has no faces, so there is no surface to choose keypoints on")
    return farthest_points(mesh, int(count))


def farthest_points(mesh: Mesh, count: int) -> _Points:
    """Return `surface_keypoints` of a mesh with triangles."""
    low, high = mesh.surface.min(axis=0), mesh.surface.max(axis=0)
    fine = _ROUND * float((high - low).max()) or 1.0
    corners = mesh.points[np.unique(mesh.triangles)]
    # Each place once, and in order: of equally distant points the first one is taken, whatever the order in the file.
    corners = corners[np.unique(np.round(corners / fine), axis=0, return_index=True)[1]]
    found: list[_Points] = []
    distance = np.linalg.norm(corners - (low + high) / 2, axis=1)
    for points in (corners, _scattered(mesh)):
        if found:  # there are not enough vertices
            distance = np.min([np.linalg.norm(points - one, axis=1) for one in found], axis=0)
        for _ in range(min(count - len(found), len(points))):
            found.append(points[np.argmax(np.round(distance / fine))])
            away = np.linalg.norm(points - found[-1], axis=1)
            distance = np.minimum(distance, away) if len(found) > 1 else away
    return np.array(found)


def _scattered(mesh: Mesh) -> _Points:
    """Return points on the triangles, evenly over the area, always the same ones."""
    corners = mesh.points[mesh.triangles]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    total = np.cumsum(area) if area.any() else np.arange(1.0, len(area) + 1)
    chosen = np.searchsorted(total / total[-1], (np.arange(_SCATTERED) + 0.5) / _SCATTERED)
    weights = np.random.default_rng(0).dirichlet((1, 1, 1), _SCATTERED)  # uniform over a triangle
    points: _Points = np.einsum("nk,nkj->nj", weights, corners[np.minimum(chosen, len(corners) - 1)])
    return points
