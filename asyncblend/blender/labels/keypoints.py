"""Keypoints: where they are in the world, and whether the camera sees them."""

from __future__ import annotations

import difflib
import math
import numbers
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError
from ..scene.placing import evaluated, world_matrix

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TOLERANCE", "occluded", "world_points"]

_Points = npt.NDArray[np.float64]

TOLERANCE = 1e-4
"""What is nearer to a point than this part of its distance from the camera does not hide it: it is the surface that the
point lies on. 1 mm at 10 m."""


def world_points(obj: Any, given: Any, vertices: _Points, depsgraph: Any) -> _Points:
    """Where the keypoints of an object are in the world: K x 3.

    Args:
        obj: the object that has them.
        given: K x 3 numbers in the object's space; or a list whose entries are three such numbers, the index of a
            vertex, the name of a bone, or an object or its name.
        vertices: of its evaluated mesh, in its own space.
        depsgraph: the evaluated one.

    Raises:
        ConfigError: an entry is none of that, or there is no such vertex, bone or object. The message says which.
    """
    import bpy

    if isinstance(given, str) or not hasattr(given, "__iter__"):
        raise ConfigError(
            f"the keypoints of {obj.name!r} must be K x 3 numbers in its own space, or a list of points, vertex "
            f"indices, bone names and objects; got {given!r}"
        )
    entries = list(given)
    points, local = np.empty((len(entries), 3)), np.ones(len(entries), bool)
    for number, entry in enumerate(entries):
        if isinstance(entry, (str, bpy.types.Object)):
            points[number], local[number] = _named(entry, number, obj, depsgraph), False
        elif isinstance(entry, numbers.Integral) and not isinstance(entry, bool):
            if not 0 <= int(entry) < len(vertices):
                raise ConfigError(
                    f"keypoint {number} of {obj.name!r} is vertex {entry}, but its mesh, modifiers applied, has the "
                    f"vertices 0 to {len(vertices) - 1}"
                )
            points[number] = vertices[int(entry)]
        else:
            points[number] = _numbers(entry, number, obj)
    if local.any():
        points[local] = _apply(world_matrix(obj, depsgraph), points[local])
    return points


def _numbers(entry: Any, number: int, obj: Any) -> tuple[float, ...]:
    try:
        point = tuple(float(each) for each in entry)
    except (TypeError, ValueError):
        point = ()
    if len(point) != 3 or not all(map(math.isfinite, point)):
        raise ConfigError(
            f"keypoint {number} of {obj.name!r} must be three finite numbers in the object's own space, the "
            f"index of a vertex, the name of a bone, or an object or its name; got {entry!r}"
        )
    return point


def _apply(matrix: _Points, points: _Points) -> _Points:
    moved: _Points = points @ matrix[:3, :3].T + matrix[:3, 3]
    return moved


def _named(given: Any, number: int, obj: Any, depsgraph: Any) -> _Points:
    """In the world: the origin of an object; or the head of the bone of this name, or else that of the object."""
    import bpy

    where = f"keypoint {number} of {obj.name!r}"
    objects = bpy.context.view_layer.objects
    name: str = given
    bones: Any = {}
    if not isinstance(given, str):
        name = given.name
        if objects.get(name) != given:
            raise ConfigError(f"{where} is the object {name!r}, which is not in the view layer")
    elif (armature := _armature(obj)) is not None:
        bones = armature.data.bones
        if name in bones:
            head = evaluated(armature, depsgraph).pose.bones[name].head
            return _apply(world_matrix(armature, depsgraph), np.array(head))
    if name in objects:
        return world_matrix(objects[name], depsgraph)[:3, 3]

    close = difflib.get_close_matches(name, sorted({*bones.keys(), *objects.keys()}), n=3)
    raise ConfigError(
        f"{where} is {name!r}, but there is no such object in the view layer, and "
        + ("no such bone" if bones else "no armature, in a modifier or as a parent, whose bone it could be")
        + (f". Is it {' or '.join(map(repr, close))}?" if close else "")
    )


def _armature(obj: Any) -> Any:
    """The armature that deforms the object, or that it hangs on."""
    for modifier in obj.modifiers:
        if modifier.type == "ARMATURE" and modifier.object is not None:
            return modifier.object
    parent = obj.parent
    while parent is not None and parent.type != "ARMATURE":
        parent = parent.parent
    return parent


def occluded(
    points: _Points,
    starts: _Points,
    own: list[Any],
    margin: float,
    passes_through: Callable[[Any], bool],
    scene: Any,
    depsgraph: Any,
) -> npt.NDArray[np.bool_]:
    """Which points have a surface between them and where their ray starts.

    Args:
        points: K x 3, in the world.
        starts: K x 3: where the rays from the camera begin.
        own: for each point the object that it belongs to.
        margin: so far below the surface of its own object a point still counts as on it, in Blender units along the ray.
        passes_through: whether rays go through an object: it is not rendered.
        scene: the scene.
        depsgraph: the evaluated one.
    """
    lengths = np.linalg.norm(points - starts, axis=1)
    directions = (points - starts) / np.maximum(lengths, 1e-30)[:, None]
    found = np.zeros(len(points), bool)
    for number, (start, direction, length, obj) in enumerate(zip(starts, directions, lengths, own, strict=True)):

        def stops(hit: Any, below: float, own: Any = obj) -> bool:
            return not (hit == own and below <= margin) and not passes_through(hit)

        found[number] = _is_occluded(start, direction, float(length), stops, scene, depsgraph)
    return found


def _is_occluded(
    start: _Points,
    direction: _Points,
    length: float,
    stops: Callable[[Any, float], bool],
    scene: Any,
    depsgraph: Any,
) -> bool:
    """Whether something that stops it is on a ray's way, but not within the tolerance of its end."""
    from mathutils import Vector

    begin, along = Vector(start), Vector(direction)
    tolerance = TOLERANCE * length
    travelled, far = 0.0, length - tolerance
    while travelled < far:
        at = begin + along * travelled
        hit, place, _, _, obj, _ = scene.ray_cast(depsgraph, at, along, distance=far - travelled)
        if not hit:
            return False
        travelled += (place - at).length
        if stops(obj, length - travelled - tolerance):
            return True
        travelled += tolerance  # and on behind what was hit
    return False
