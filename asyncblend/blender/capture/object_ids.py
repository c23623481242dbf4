"""instances: an id for each object in the object index pass, the table of what has which, and the last mask."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

__all__ = ["LastMask", "Numbers", "last", "numbered", "remember", "table"]

_Mask = npt.NDArray[np.int32]

_WITH_SURFACE = {"MESH", "CURVE", "SURFACE", "META", "FONT", "CURVES", "POINTCLOUD"}
_MOST = 32767  # the largest pass_index: a short, in 3.4 and in 4.5
_LARGEST_CLASS = 2**31 - 1


def table(view_layer: Any) -> list[dict[str, Any]]:
    """The objects of a view layer that have a surface to be seen, in order of name; the ids are 1, 2, 3, ...

    Objects that are hidden from the render are in it too: so an object keeps its id in a scene that hides some objects
    at random. The i-th entry has the id i + 1.

    Returns:
        One `{"id": 3, "name": "Cube", "class_id": 2, "class_name": "cube"}` for each object. The class comes from the
        object's custom properties: `class_id` a whole number from 1 on, and `class_name`, which falls back to
        `str(class_id)`. Without a class_id they are 0 and "".

    Raises:
        ConfigError: a class_id is no whole number from 1 on, or a class_name no string.
    """
    return [_entry(i + 1, obj) for i, obj in enumerate(_seen_objects(_objects_of(view_layer)))]


@contextlib.contextmanager
def numbered(view_layer: Any) -> Iterator[Numbers]:
    """Meanwhile, the object index pass holds ids; afterwards each object has its own `pass_index` again.

    What a collection instance, particles, geometry nodes or vertices show of another object has the id of that object,
    as Blender's pass has it. Such an object may be in no view layer, so those have a number as well.

    Raises:
        ConfigError: as for `table`, or there are more objects than the pass can count.
    """
    numbers = Numbers(view_layer)
    changed = {obj: own for i, (obj, own) in enumerate(numbers.own()) if own != i + 1}
    persistent = view_layer.id_data.render.use_persistent_data
    try:
        _write({obj: i + 1 for i, (obj, _) in enumerate(numbers.own())}, changed, tell=persistent)
        yield numbers
    finally:
        _write(changed, changed, tell=persistent)


def _write(values: Mapping[Any, int], changed: Collection[Any], *, tell: bool) -> None:
    """Set `pass_index` of objects, in silence.

    A render evaluates the scene anew, and sees it all the same; with persistent data it does not, and must be told.
    Blender's own assignment tells, too, and that is not harmless: rigid bodies then jump to where they were in the
    frame before, or to the origin.
    """
    import bpy

    if not changed:
        return
    objects = bpy.data.objects
    objects.foreach_set("pass_index", [values.get(obj, obj.pass_index) for obj in objects])
    if tell:
        for obj in objects:  # not `changed`, of which a handler of the render may have removed some
            if obj in changed:
                obj.update_tag()


class Numbers:
    """Which object has which number in the object index pass."""

    def __init__(self, view_layer: Any) -> None:
        import bpy

        there = _objects_of(view_layer)
        inside, known = _seen_objects(there), set(there)
        outside = _seen_objects(obj for obj in bpy.data.objects if obj not in known)
        if len(inside) + len(outside) > _MOST:
            raise ConfigError(
                f"instance ids: the object index pass counts up to {_MOST}, and view layer {view_layer.name!r} has "
                f"{len(inside)} objects with a surface, and the file {len(outside)} more. Join or remove some"
            )
        self._objects = [*inside, *outside]
        self._own = [obj.pass_index for obj in self._objects]
        self.table = [_entry(i + 1, obj) for i, obj in enumerate(inside)]
        """Of the view layer."""

    def own(self) -> Iterator[tuple[Any, int]]:
        """Each object and its own pass_index, in order of number; the numbers begin at 1."""
        return zip(self._objects, self._own, strict=True)

    def read(self, index_pass: npt.NDArray[Any]) -> tuple[_Mask, list[dict[str, Any]]]:
        """The ids that a render of the object index pass shows, and the table of them.

        Objects outside the view layer that are seen follow after the view layer's, in order of name: unlike the ids
        of the view layer's objects, theirs depend on what this image shows.

        Args:
            index_pass: H x W, of any dtype.

        Returns:
            H x W int32, new and contiguous, and a table as `table` gives it.
        """
        ids: _Mask = np.array(index_pass, np.int32, order="C")
        count = len(self.table)
        if not ids.size or ids.max() <= count:
            return ids, self.table
        seen = np.unique(ids[ids > count])
        place = np.arange(len(self._objects) + 1, dtype=np.int32)
        place[seen] = np.arange(count + 1, count + 1 + len(seen))
        more = [_entry(int(place[number]), self._objects[number - 1]) for number in seen]
        return place[ids], [*self.table, *more]

    def user_index(self, index_pass: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """The object index pass as it would have been: H x W float32 of each object's own pass_index."""
        own: npt.NDArray[np.float32] = np.array([0, *self._own], np.float32)
        return own[index_pass.astype(np.int32)]


def _objects_of(view_layer: Any) -> Any:
    view_layer.update()  # else objects that were linked just now are not in it yet
    return view_layer.objects


def _seen_objects(objects: Any) -> list[Any]:
    found = [obj for obj in objects if obj.type in _WITH_SURFACE]
    return sorted(found, key=lambda obj: (obj.name, obj.name_full))  # linked ones may share a name


def _entry(number: int, obj: Any) -> dict[str, Any]:
    class_id, class_name = _class(obj)
    return {"id": number, "name": obj.name, "class_id": class_id, "class_name": class_name}


def _class(obj: Any) -> tuple[int, str]:
    value = obj.get("class_id")
    if value is None:
        return 0, ""
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or not 1 <= value <= _LARGEST_CLASS:
        shown = value if isinstance(value, (int, float, str)) else type(value).__name__
        raise ConfigError(
            f"object {obj.name!r}: class_id must be a whole number from 1 on, got {shown!r}. An object of no class "
            f"has no class_id: del obj['class_id']"
        )
    name = obj.get("class_name")
    if name is not None and not isinstance(name, str):
        raise ConfigError(f"object {obj.name!r}: class_name must be a string, got {type(name).__name__}")
    return int(value), name or str(int(value))


class LastMask:
    """The mask of the last render that gave ids."""

    def __init__(self, mask: _Mask, table: list[dict[str, Any]], camera: Any) -> None:
        self.mask = mask
        """H x W int32, top row first, read-only. 0 is the background."""
        self.table = table
        """As `bl.render` gave it."""
        self._state = _state(camera)

    def still_true(self) -> bool:
        """Whether another render would show the same ids, as far as that can be told at little cost.

        The scene, its frame, resolution and crop, Cycles' seed, the camera with its lens, and the transforms and
        `hide_render` of the view layer's objects must be as they were. Changed meshes, modifiers, materials or
        collections, and objects outside the view layer, are not noticed.
        """
        import bpy

        camera = bpy.context.scene.camera
        return camera is not None and self._state == _state(camera)


_last: LastMask | None = None


def remember(mask: npt.NDArray[Any], table: list[dict[str, Any]], camera: Any) -> None:
    """Keep the mask of a render for `last`.

    Args:
        mask: H x W ids, top row first; it is copied.
        table: what has which id.
        camera: the camera object of the render, an object of the scene.
    """
    global _last
    kept: _Mask = np.array(mask, np.int32, order="C")
    kept.flags.writeable = False
    _last = LastMask(kept, table, camera)


def last() -> LastMask | None:
    """The mask of the last render that gave ids; None before the first one."""
    return _last


class _State(NamedTuple):
    """What decides where an object is seen."""

    scene: str
    layer: str
    frame: tuple[int, float]
    size: tuple[float, ...]
    seed: int  # which point within each pixel is looked at
    camera: str
    lens: tuple[float, ...]
    names: list[str]
    places: bytes
    collections: list[tuple[bool, ...]]


def _state(camera: Any) -> _State:
    import bpy

    context = bpy.context
    depsgraph = context.evaluated_depsgraph_get()  # updates the view layer
    scene, layer, render = context.scene, context.view_layer, context.scene.render
    size = [render.resolution_x, render.resolution_y, render.resolution_percentage]
    if render.use_border:
        size += [render.use_crop_to_border, render.border_min_x, render.border_max_x]
        size += [render.border_min_y, render.border_max_y]
    projection = camera.calc_matrix_camera(
        depsgraph,
        x=render.resolution_x,
        y=render.resolution_y,
        scale_x=render.pixel_aspect_x,
        scale_y=render.pixel_aspect_y,
    )
    cycles = getattr(scene, "cycles", None)
    return _State(
        scene.name_full,
        layer.name,
        (scene.frame_current, scene.frame_subframe),
        tuple(size),
        getattr(cycles, "seed", 0),
        camera.name_full,
        tuple(value for row in projection for value in row),
        [obj.name_full for obj in layer.objects],
        _places(layer.objects),
        list(_collections(layer.layer_collection)),
    )


def _collections(layer_collection: Any) -> Iterator[tuple[bool, ...]]:
    """How each collection of the view layer is seen."""
    yield (
        layer_collection.exclude,
        layer_collection.holdout,
        layer_collection.indirect_only,
        layer_collection.collection.hide_render,
    )
    for child in layer_collection.children:
        yield from _collections(child)


def _places(objects: Any) -> bytes:
    """Where the objects are, and which of them are hidden, from renders or from the camera.

    Of an object that is disabled in viewports Blender does not update `matrix_world`: so its own transform counts too.
    """
    count = len(objects)
    matrices, hidden = np.empty((2, count * 16), np.float32), np.empty((2, count), bool)
    objects.foreach_get("matrix_world", matrices[0])
    objects.foreach_get("matrix_basis", matrices[1])
    objects.foreach_get("hide_render", hidden[0])
    objects.foreach_get("visible_camera", hidden[1])
    return matrices.tobytes() + hidden.tobytes()
