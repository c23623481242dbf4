"""Checks what `annotate` was given."""

from __future__ import annotations

import difflib
import math
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from .meshes import WITH_MESH

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def checked_objects(objects: Iterable[Any], layer: Any, names: Mapping[Any, str], instances: bool) -> list[Any]:
    """Return the objects, each of them once and in the view layer, or with `instances` anywhere in the file."""
    import bpy

    if isinstance(objects, (str, bpy.types.Object)) or not hasattr(objects, "__iter__"):
        raise ConfigError(f"objects must be a list of objects or their names, got {objects!r}")
    inside = dict.fromkeys(layer.objects)
    found: dict[Any, None] = {}
    for number, given in enumerate(objects):
        where = f"objects[{number}]"
        if not isinstance(given, (str, bpy.types.Object)):
            raise ConfigError(f"{where} must be an object or its name, got {given!r}")
        obj = named(given, inside, names)
        if obj is None and instances:
            obj = named(given, names, names)
        if obj is None:
            raise _unknown(given if isinstance(given, str) else given.name, where, layer)
        if obj.type not in WITH_MESH and not (instances and obj.instance_type == "COLLECTION"):
            raise ConfigError(
                f"{where}, {obj.name!r}, is of type {obj.type} and has no mesh, so it has no boxes, mask and "
                f"pose: annotate can do {', '.join(WITH_MESH)}. Empties and bones can be keypoints of these, and an "
                "empty that shows a collection can be annotated with instances=True"
            )
        if obj in found:
            raise ConfigError(f"{where} is {obj.name!r}, which is in the list already")
        found[obj] = None
    return list(found)


def named(given: Any, objects: Iterable[Any], names: Mapping[Any, str]) -> Any:
    """Return the one of the objects that is given, or has this name; None if there is none.

    A name is a unique one, or else the own name of a linked object.
    """
    if not isinstance(given, str):
        return given if given in objects else None
    same = [obj for obj in objects if obj.name == given or names[obj] == given]
    return min(same, key=lambda obj: (names[obj] != given, names[obj]), default=None)


def _unknown(name: str, where: str, layer: Any) -> ConfigError:
    import bpy

    if name in bpy.data.objects:
        return ConfigError(
            f"{where} is {name!r}, which is not in the view layer {layer.name!r}: link it to a collection of the "
            "scene that is not excluded from the view layer"
        )
    known = sorted(obj.name for obj in layer.objects if obj.type in WITH_MESH)
    hint = f"there are {', '.join(known[:20])}{', ...' if len(known) > 20 else ''}"
    if close := difflib.get_close_matches(name, known, n=3):
        hint = f"is it {' or '.join(map(repr, close))}?"
    return ConfigError(f"{where} is {name!r}, but there is no such object: {hint}")


def checked_keypoints(keypoints: Mapping[Any, Any], objects: list[Any], names: Mapping[Any, str]) -> dict[Any, Any]:
    """Return the keypoints by object."""
    if not hasattr(keypoints, "items"):
        raise ConfigError(
            f"keypoints must map objects or their names to keypoints, as in {{'Cube': [(0, 0, 0)]}}, got {keypoints!r}"
        )
    found = {}
    for key, value in keypoints.items():
        obj = named(key, objects, names)
        if obj is None:
            raise ConfigError(
                f"there are keypoints for {getattr(key, 'name', key)!r}, but it is not one of the objects: "
                f"{', '.join(sorted(names[obj] for obj in objects))}"
            )
        found[obj] = value
    return found


def checked_margin(value: Any) -> float:
    try:
        margin = float(value)
    except (TypeError, ValueError):
        margin = math.nan
    if not 0 <= margin < math.inf:
        raise ConfigError(f"keypoint_margin must be a length, 0 or more, got {value!r}")
    return margin
