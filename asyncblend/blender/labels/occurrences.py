"""What a render shows: each object itself, and each copy by a collection, geometry nodes, particles or vertices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .meshes import Mesh, arrays_of, in_edit_mode

if TYPE_CHECKING:
    from collections.abc import Mapping

_Floats = npt.NDArray[np.float64]

_UNUSED = 2**31 - 1  # what Blender fills a persistent id with
_ONE_LEVEL = (_UNUSED,) * 7


class Occurrence(NamedTuple):
    """An object, or a copy of one, as it is rendered."""

    source: Any  # the object whose mesh it has, or, for a mesh that only nodes have made, the object with the nodes
    instancer: Any  # the object of the scene that makes the copies; None for an object itself
    persistent_id: tuple[int, ...]  # 8 numbers that tell the copies of one instancer and source apart
    matrix: _Floats  # 4 x 4, from the mesh's space to the world's
    mesh: Mesh


def occurrences_in(depsgraph: Any, names: Mapping[Any, str]) -> list[Occurrence]:
    """Return all that has a mesh: objects first, then copies in order of instancer, source and id.

    The order is the same in each process. `names` are unique names of objects.
    """
    meshes: dict[int, Mesh | None] = {}
    found = []
    # An item of the iterator is valid only until the next one.
    for item in depsgraph.object_instances:
        current = item.object
        if current.type not in ("MESH", "META") or not item.show_self or (current.type == "META" and item.is_instance):
            continue  # Curves and texts are followed by an item with their mesh
        source, key = current.original, current.data.as_pointer()
        if key not in meshes:
            meshes[key] = _mesh_of(source, current)
        mesh = meshes[key]
        if mesh is None:
            continue
        instancer = item.parent.original if item.is_instance else None
        persistent_id = tuple(item.persistent_id)
        if instancer == source and persistent_id[1:] == _ONE_LEVEL:
            instancer = None  # the mesh of a curve or text itself
        if instancer is None:
            persistent_id = (_UNUSED, *_ONE_LEVEL)
        found.append(Occurrence(source, instancer, persistent_id, np.array(item.matrix_world, dtype=np.float64), mesh))
    return sorted(found, key=lambda one: (*_order(one.instancer, names), names[one.source], one.persistent_id[::-1]))


def _order(instancer: Any, names: Mapping[Any, str]) -> tuple[bool, str]:
    return (False, "") if instancer is None else (True, names[instancer])


def _mesh_of(source: Any, current: Any) -> Mesh | None:
    """Return the mesh of an item, or None if it has no faces, as where nodes have made only copies."""
    copied = current.type == "META" or in_edit_mode(source)
    mesh = current.to_mesh() if copied else current.data
    try:
        return arrays_of(source, mesh) if len(mesh.polygons) else None
    finally:
        if copied:
            current.to_mesh_clear()
