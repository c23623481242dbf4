"""The evaluated mesh of an object as arrays: modifiers, shape keys and armatures applied."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError
from .silhouette import Edges, edges_of

WITH_MESH = ("MESH", "CURVE", "SURFACE", "FONT", "META")  # the types of objects that have a mesh

_KEPT_TRIANGLES = 1_000_000  # the edges of at most so many triangles are kept, which takes about 80 MB

_kept: dict[str, tuple[npt.NDArray[np.int32], Edges]] = {}


class Mesh(NamedTuple):
    """A mesh in its object's own space."""

    points: npt.NDArray[np.float64]  # N x 3, N > 0, finite, each column contiguous in memory, for speed
    triangles: npt.NDArray[np.int32]  # M x 3 indices of points. M is 0 for a mesh without faces.
    surface: npt.NDArray[np.float64]  # the points, but where there are faces, those of none are moved to one of a face


def read_mesh(obj: Any, evaluated: Any) -> Mesh:
    """Return the mesh of an object of a type in WITH_MESH, as it is evaluated."""
    import bpy

    # With a user interface the GPU may subdivide meshes, and only to_mesh knows of that. `data` needs no copy.
    if obj.type == "MESH" and bpy.app.background and not in_edit_mode(obj):
        return arrays_of(obj, evaluated.data)
    mesh = evaluated.to_mesh()
    try:
        return arrays_of(obj, mesh)
    finally:
        evaluated.to_mesh_clear()


def in_edit_mode(obj: Any) -> bool:
    """Whether the mesh is being edited, also through another object. Then `data` is empty, and only to_mesh has it."""
    return obj.type == "MESH" and obj.data is not None and bool(obj.mode == "EDIT" or obj.data.is_editmode)


def edges_for(name: str, triangles: npt.NDArray[np.int32]) -> Edges:
    """Return `edges_of(triangles)`. They are kept by the object's name, for as long as its triangles stay the same."""
    known = _kept.pop(name, None)
    if known is None or not np.array_equal(known[0], triangles):
        known = triangles, edges_of(triangles)
    _kept[name] = known  # at the end of the dict, because it was used last
    while sum(len(triangles) for triangles, _ in _kept.values()) > _KEPT_TRIANGLES and len(_kept) > 1:
        del _kept[next(iter(_kept))]
    return known[1]


def arrays_of(obj: Any, mesh: Any) -> Mesh:
    """Return a mesh of Blender as arrays. The object is the one to name in an error."""
    points = np.empty(len(mesh.vertices) * 3, np.float32)
    if len(points) == 0:
        raise ConfigError(
            f"the mesh of {obj.name!r} has no vertices once its modifiers are applied, so there is nothing to "
            "annotate. Instances, of geometry nodes too, are no part of it: annotate(..., instances=True) has them"
        )
    if "position" in mesh.attributes:  # from Blender 3.5 on, where reading "co" is slow
        mesh.attributes["position"].data.foreach_get("vector", points)
    else:
        mesh.vertices.foreach_get("co", points)
    if not np.isfinite(points).all():
        raise ConfigError(f"the mesh of {obj.name!r} has coordinates that are not finite: repair the mesh")
    found, triangles = points.reshape(-1, 3).astype(np.float64, order="F"), _triangles(mesh)
    return Mesh(found, triangles, _surface(found, triangles))


def _surface(points: npt.NDArray[np.float64], triangles: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """Return the points, with those that are in no triangle moved to one that is: no render shows them."""
    used = np.zeros(len(points), bool)
    used[triangles] = True
    if used.all() or not used.any():
        return points
    return np.asfortranarray(np.where(used[:, None], points, points[triangles[0, 0]]))


def _triangles(mesh: Any) -> npt.NDArray[np.int32]:
    mesh.calc_loop_triangles()
    count = len(mesh.loop_triangles)
    if count == 0:
        return np.empty((0, 3), np.int32)
    corners, points = _memory(mesh.loop_triangles, (3, 4)), _corner_points(mesh)
    if corners is not None and points is not None and 0 <= corners[:, :3].min() <= corners[:, :3].max() < len(points):
        found: npt.NDArray[np.int32] = points[corners[:, :3]]
        if all(tuple(mesh.loop_triangles[i].vertices) == tuple(found[i]) for i in (0, count // 2, count - 1)):
            return found
    slow = np.empty(count * 3, np.int32)
    mesh.loop_triangles.foreach_get("vertices", slow)
    return slow.reshape(-1, 3)


def _corner_points(mesh: Any) -> npt.NDArray[np.int32] | None:
    """Return the index of the point of each corner of a face, or None where it cannot be read quickly."""
    if ".corner_vert" in mesh.attributes:  # from Blender 3.6 on
        points = np.empty(len(mesh.loops), np.int32)
        mesh.attributes[".corner_vert"].data.foreach_get("value", points)
        return points
    loops = _memory(mesh.loops, (2,))
    return None if loops is None else loops[:, 0]


def _memory(items: Any, sizes: tuple[int, ...]) -> npt.NDArray[np.int32] | None:
    """Return a copy of the items of a Blender collection as rows of 32 bit integers.

    With triangles this is a thousand times faster than `foreach_get`, which takes a tenth of a microsecond for each. A
    triangle is three corners in Blender 4, and three corners and a face before; an `MLoop` is a point and an edge.

    Returns:
        None if the items have none of the `sizes`, counted in integers: this Blender has another memory layout.
    """
    if len(items) < 2:
        return None
    first = items[0].as_pointer()
    size = (items[1].as_pointer() - first) // 4
    if size not in sizes or items[len(items) - 1].as_pointer() - first != (len(items) - 1) * size * 4:
        return None
    memory = (ctypes.c_int32 * (len(items) * size)).from_address(first)
    return np.frombuffer(memory, np.int32).reshape(-1, size).copy()
