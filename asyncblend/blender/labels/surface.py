"""Keypoints that are spread over the surface of a mesh."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError
from ..scene.placing import evaluated
from .meshes import WITH_MESH, Mesh, mesh_of

_Points = npt.NDArray[np.float64]

_SCATTERED = 2000  # points within faces, so that large faces get keypoints too
_ROUND = 1e-5  # of the mesh's extent: what differs by less is the same, whatever file format the mesh came from


def surface_keypoints(obj: Any, count: int = 8) -> _Points:
    """Return points on an object's surface that are as far from each other as possible.

    They are found by farthest-point sampling: the first one is the point that is furthest from the middle of the
    bounding box, and each next one that which is furthest from all before. Corners come first: 8 points of a box are
    its corners. They depend on the mesh alone, so that copies of a mesh have the same keypoints, and so have meshes
    whose vertices are stored in another order.

        labels = bl.annotate([mug], {mug: bl.surface_keypoints(mug, 8)}, rendered=labels)

    Args:
        obj: An object with a mesh that has faces. Modifiers are applied.
        count: How many, at least 1.

    Returns:
        count x 3 float64, in the object's own space. The first n points are those of a smaller count n.

    Raises:
        ConfigError: The object has no mesh, or one without faces, or the count is no whole number of at least 1.
        RuntimeError: Blender does not update the object, because it is disabled in viewports or not in the view layer.
    """
    import bpy

    if not isinstance(obj, bpy.types.Object) or obj.type not in WITH_MESH:
        raise ConfigError(f"keypoints on a surface need an object with a mesh; got {getattr(obj, 'name', obj)!r}")
    if not isinstance(count, numbers.Integral) or isinstance(count, bool) or count < 1:
        raise ConfigError(f"count must be a whole number of at least 1, got {count!r}")
    mesh = mesh_of(obj, evaluated(obj, bpy.context.evaluated_depsgraph_get()))
    if not len(mesh.triangles):
        raise ConfigError(f"the mesh of {obj.name!r} has no faces, so there is no surface to choose keypoints on")
    return farthest_points(mesh, int(count))


def farthest_points(mesh: Mesh, count: int) -> _Points:
    """Return `surface_keypoints` of a mesh with triangles."""
    points = _candidates(mesh)
    low, high = mesh.points.min(axis=0), mesh.points.max(axis=0)
    fine = _ROUND * float((high - low).max()) or 1.0
    # Of equally distant points the first one is taken, so their order must not be that of the file.
    points = points[np.lexsort(np.round(points.T[::-1] / fine))]
    distance = np.linalg.norm(points - (low + high) / 2, axis=1)
    found = []
    for _ in range(count):
        found.append(points[np.argmax(np.round(distance / fine))])
        distance = np.minimum(distance if len(found) > 1 else np.inf, np.linalg.norm(points - found[-1], axis=1))
    return np.array(found)


def _candidates(mesh: Mesh) -> _Points:
    """Return the corners of all triangles, and points within them, evenly over the area. Always the same ones."""
    corners = mesh.points[mesh.triangles]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    used = mesh.points[np.unique(mesh.triangles)]
    if not area.sum() > 0:
        return used
    rng = np.random.default_rng(0)
    chosen = np.searchsorted(np.cumsum(area) / area.sum(), (np.arange(_SCATTERED) + 0.5) / _SCATTERED)
    weights = rng.dirichlet((1, 1, 1), _SCATTERED)  # uniform over a triangle
    scattered = np.einsum("nk,nkj->nj", weights, corners[np.minimum(chosen, len(corners) - 1)])
    return np.concatenate([used, scattered])
