"""Object ids: what the object index pass holds for the passes "instance" and "semantic", and the table of ids."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError
from ..scene.animation import is_animated

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_WITH_SURFACE = {"MESH", "CURVE", "SURFACE", "META", "FONT", "CURVES", "POINTCLOUD"}
_PROPERTY = "pass_index"
_LARGEST_INDEX = 32767  # of `pass_index`, a 16 bit integer in 3.4 and in 4.5
_LARGEST_CLASS = 2**31 - 1


@contextlib.contextmanager
def assigned_ids(view_layer: Any) -> Iterator[ObjectIds]:
    """Have the object index pass hold ids within the `with` block; then each object has its own `pass_index` again."""
    ids = ObjectIds(view_layer)
    _check_nothing_sets(ids.objects)
    own_indices = dict(zip(ids.objects, ids.own_indices, strict=True))
    persistent = view_layer.id_data.render.use_persistent_data
    try:
        _assign({obj: number for number, obj in enumerate(ids.objects, 1)}, persistent)
        yield ids
    finally:
        _assign(own_indices, persistent)


def _check_nothing_sets(objects: Iterable[Any]) -> None:
    """Raise ConfigError if animation or a driver would put an index of its own in an id's place during the render."""
    for obj in objects:
        if is_animated(obj, _PROPERTY):
            raise ConfigError(
                f"object {obj.name!r} has an animated or driven {_PROPERTY}, which would replace its id in instance and "
                f'semantic: remove or mute these keyframes, with obj.keyframe_delete("{_PROPERTY}"), or the driver, with '
                f'obj.driver_remove("{_PROPERTY}")'
            )


def _assign(indices: Mapping[Any, int], tell_blender: bool) -> None:
    """Set the `pass_index` of objects without telling Blender's dependency graph, unless `tell_blender` is true.

    A render evaluates the scene again and sees the values anyway. With persistent data it does not, and must be told.
    Ordinary assignment always tells, and that does harm: rigid bodies jump back to where they were in the frame before,
    or to the origin. There is no other way for objects that are linked from a library, or override linked ones.
    """
    import bpy

    objects = bpy.data.objects  # not the keys of `indices`: a handler of the render may have removed some of those
    changed = [obj for obj in objects if indices.get(obj, obj.pass_index) != obj.pass_index]
    if not changed:
        return
    # `foreach_set` skips what Blender does not let a user edit (linked objects, and most library overrides) without
    # taking a value for it, so that these objects get no value here, and the list is filled up to its length.
    values = [indices.get(obj, obj.pass_index) for obj in objects if not obj.is_property_readonly(_PROPERTY)]
    objects.foreach_set(_PROPERTY, [*values, *[0] * (len(objects) - len(values))])
    for obj in changed:
        if obj.pass_index != indices[obj]:
            obj.pass_index = indices[obj]  # an assignment is allowed for linked objects and overrides
        if tell_blender:
            obj.update_tag()


class ObjectIds:
    """Which object has which id.

    The view layer's objects that have a surface get 1, 2, 3, ... in order of name. Those that are hidden from renders
    get one too, so that an object keeps its id in a scene that hides some objects at random. What a collection
    instance, particles, geometry nodes or vertices show of another object has the id of that object. It may be in no
    view layer; therefore the objects outside get the numbers after those. So do those of another type, such as volumes,
    whose geometry nodes may make a surface of them.

    Raises:
        ConfigError: A `class_id` is not a whole number from 1 on, a `class_name` is not a string, or there are more
            objects than the pass can count.
    """

    def __init__(self, view_layer: Any) -> None:
        import bpy

        view_layer.update()  # otherwise objects that were linked just now are not in it yet
        members = view_layer.objects
        known = set(members)
        inside = _with_surface(members)
        others = [obj for obj in bpy.data.objects if obj.type not in _WITH_SURFACE and _has_nodes(obj)]
        outside = _with_surface(obj for obj in bpy.data.objects if obj not in known) + _sorted(others)
        if len(inside) + len(outside) > _LARGEST_INDEX:
            raise ConfigError(
                f"instance ids: the object index pass counts up to {_LARGEST_INDEX}, and view layer "
                f"{view_layer.name!r} has {len(inside)} objects with a surface, and the file {len(outside)} more. Join "
                "or remove some"
            )
        self.objects: list[Any] = [*inside, *outside]  # in order of their numbers, which begin at 1
        self.own_indices: list[Any] = [obj.pass_index for obj in self.objects]  # which the user gave to each of them
        # The "instances" of `render`, for the view layer's objects alone.
        self._names = unique_names()
        self.table: list[dict[str, Any]] = [self._row(number, obj) for number, obj in enumerate(inside, 1)]

    def read(self, index_pass: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int32], list[dict[str, Any]]]:
        """Return the ids in a rendered object index pass, H x W int32, new and contiguous, and their table.

        Objects outside the view layer that are seen follow after the view layer's objects, in order of name. So their
        ids, and only theirs, depend on what this image shows.
        """
        ids: npt.NDArray[np.int32] = np.array(index_pass, np.int32, order="C")
        count = len(self.table)
        if not ids.size or ids.max() <= count:
            return ids, self.table
        seen = np.unique(ids[ids > count])
        id_of = np.arange(len(self.objects) + 1, dtype=np.int32)
        id_of[seen] = np.arange(count + 1, count + 1 + len(seen))
        more = [self._row(int(id_of[number]), self.objects[number - 1]) for number in seen]
        return id_of[ids], [*self.table, *more]

    def _row(self, number: int, obj: Any) -> dict[str, Any]:
        class_id, class_name = class_of(obj)
        return {"id": number, "name": self._names[obj], "class_id": class_id, "class_name": class_name}

    def user_index(self, index_pass: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return the object index pass with the user's own `pass_index` of each object: H x W float32."""
        return np.array([0, *self.own_indices], np.float32)[index_pass.astype(np.int32)]


def _with_surface(objects: Iterable[Any]) -> list[Any]:
    return _sorted(obj for obj in objects if obj.type in _WITH_SURFACE)


def _has_nodes(obj: Any) -> bool:
    return any(modifier.type == "NODES" for modifier in obj.modifiers)


def _sorted(objects: Iterable[Any]) -> list[Any]:
    return sorted(objects, key=lambda obj: (obj.name, obj.name_full))  # linked objects may share a name


def unique_names() -> dict[Any, str]:
    """Return for each object of the file the name that is its own: of a linked one "name [library.blend]" if need be.

    It need be where another object has the same name. Of these, the local object keeps the plain name.
    """
    import bpy

    shared = Counter(obj.name for obj in bpy.data.objects)
    return {
        obj: obj.name if shared[obj.name] == 1 or obj.library is None else obj.name_full for obj in bpy.data.objects
    }


def class_of(obj: Any) -> tuple[int, str]:
    """Return the object's `class_id` and `class_name`: 0 and "" for none. Raise ConfigError if they are wrong."""
    class_id, class_name = obj.get("class_id"), obj.get("class_name")
    if class_id is None:
        return 0, ""
    whole = isinstance(class_id, int) or (isinstance(class_id, float) and class_id.is_integer())
    if isinstance(class_id, bool) or not whole or not 1 <= class_id <= _LARGEST_CLASS:
        shown = class_id if isinstance(class_id, (int, float, str)) else type(class_id).__name__
        raise ConfigError(
            f"object {obj.name!r}: class_id must be a whole number from 1 on, got {shown!r}. An object of no class "
            f"has no class_id: del obj['class_id']"
        )
    if class_name is not None and not isinstance(class_name, str):
        raise ConfigError(f"object {obj.name!r}: class_name must be a string, got {type(class_name).__name__}")
    return int(class_id), class_name or str(int(class_id))
