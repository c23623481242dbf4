"""annotate: boxes, poses, visibility and keypoints of objects, as the camera of the current scene sees them."""

from __future__ import annotations

import difflib
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError
from ..capture.object_ids import table
from ..scene.camera import Camera
from ..scene.lens import frame_of
from ..scene.placing import evaluated
from .boxes import boxes_of
from .keypoints import occluded, world_points
from .meshes import WITH_MESH, Mesh, edges_for, mesh_of
from .rendered_ids import hidden_from_renders, rendered_ids
from .views import Appearance, View, appearance, rays, whole_pixels

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["annotate"]

_Floats = npt.NDArray[np.float64]

_CORNERS = np.array([*np.ndindex(2, 2, 2)])[[0, 1, 3, 2, 4, 5, 7, 6]]
"""The corners of a unit cube, 8 x 3, in the order of Blender's `bound_box`."""


def annotate(
    objects: Iterable[Any], keypoints: Mapping[Any, Any] | None = None, *, keypoint_margin: float = 0.0
) -> dict[str, Any]:
    """Labels of objects in the image that `render` gives now, by the names of which datasets are made.

    Which pixels show an object is known from the last `render` with the pass "instance" or "semantic", if scene, camera
    and objects have not moved since. Else the ids are rendered here, by Cycles with one sample in each pixel's centre,
    whatever the scene's engine; its settings are put back. So ask for "instance" where you render anyway.

    A mesh is what Blender's viewport has: where a modifier has other settings for renders, the two differ. An
    object's instances (of collections, particles, geometry nodes) are in the mask, but not in its mesh. An object
    that cannot be seen is no error: it is ordinary in a random scene. A border that the image is not cropped to plays
    no part: the image is the whole frame then.

    Args:
        objects: N different objects, or their names. All need a mesh: meshes, curves, texts, surfaces, metaballs.
        keypoints: for objects or their names, K points each: a K x 3 array in the object's own space, or a list whose
            entries are points in its space, indices of vertices (modifiers applied), empties or other objects or
            their names (for their origins), or names of bones of the armature that deforms it (for their heads, posed;
            a bone comes before an object of the same name). K may differ. None for no keypoints at all.
        keypoint_margin: so far below the surface of its own object, along the ray from the camera, a point still counts
            as visible, in Blender units: for joints, which lie within. Other objects hide it all the same.

    Returns:
        All arrays of N in the order of `objects`. Pixel coordinates have (0, 0) at the outer corner of the top-left
        pixel.

        - "id": N int32, that of the pass "instance".
        - "name": list of N str. "class_id": N int32, 0 for none. "class_name": list of N str, "" for none.
        - "bbox": N x 4 float32, x y width height of the visible pixels; 0 0 0 0 where there is none.
        - "bbox_loose": N x 4 float32, x y width height of the projected mesh, hidden parts too, cut at the border of
          the image; 0 0 0 0 where it lies outside.
        - "bbox3d": N x 8 x 3 float32, corners in world space of the box around the mesh along the object's own axes,
          in the order of Blender's `bound_box`: with - and + for the ends of the axes x y z, they are - - -, - - +,
          - + +, - + -, then + - -, + - +, + + +, + + -.
        - "pose": N x 4 x 4 float32, from the object's own space to the camera's in OpenCV's convention (x right, y
          down, z forward): `camera.world_to_camera @ obj.matrix_world`. The object's scale is in it, so that it maps
          vertices as they are in the mesh; it is a rotation and translation for a scale of 1. Else divide its
          first three columns by their lengths to have the rotation.
        - "visible_fraction": N float32, visible pixels / pixels of the whole silhouette, as BOP defines it: the
          silhouette is that of the object alone, in an image extended to three times its width and height around its
          middle. What lies further out is not counted, nor what is nearer than the camera's `clip_start`. At most 1:
          visible pixels are of one random place in each, the silhouette's of the centres.
        - "truncated": N bool, whether a part lies outside the image, or is nearer than the camera's `clip_start`.
        - "keypoints", unless keypoints is None: N x K x 3 float32, x y v, with COCO's visibility v: 2 visible; 1
          in the image but hidden, or further than `clip_end`; 0 outside the image, nearer than `clip_start`, or of an
          object that is hidden from renders, and then x and y are 0 too. K is the largest one, and rows past an
          object's own number are 0 0 0.

        A keypoint is hidden by any surface on its way to the camera, save within 1e-4 of its distance, where it is
        the surface it lies on. Glass hides, too. Rays meet what Blender's viewport has: an object that is hidden there
        but rendered hides nothing; one that is not rendered, or not to the camera, is looked through.

    Raises:
        ConfigError: an object or name is unknown, there twice, not in the view layer, or without a mesh; a keypoint
            is wrong; the message says which, and what there is.
        ValueError, TypeError, RuntimeError: as `Camera`, where there is no camera that can be projected, or an
            object is disabled in viewports; as `render`, where the ids could not be rendered.
    """
    import bpy

    bpy.context.view_layer.update()  # else what was linked or excluded just now does not count
    found = _objects(objects, bpy.context.view_layer)
    given = None if keypoints is None else _of_objects(keypoints, found)
    margin = _margin(keypoint_margin)
    view = _view(bpy.context.scene, bpy.context.evaluated_depsgraph_get())
    ids = rendered_ids()
    depsgraph = bpy.context.evaluated_depsgraph_get()  # anew: a render may have changed it
    # The first of a name counts, that of the view layer: linked ones behind it may share it.
    rows = {row["name"]: row for row in reversed(table(bpy.context.view_layer))}  # classes may have changed since
    each = [_seen(obj, rows[obj.name], view, depsgraph) for obj in found]

    boxes, pixels = boxes_of(ids.mask, len(ids.table))
    at = np.array([one.row["id"] for one in each], np.intp) - 1
    result = {
        "id": (at + 1).astype(np.int32),
        "name": [obj.name for obj in found],
        "class_id": np.array([one.row["class_id"] for one in each], np.int32),
        "class_name": [one.row["class_name"] for one in each],
        "bbox": boxes[at],
        "bbox_loose": _stack([one.appearance.box for one in each], 4),
        "bbox3d": _stack([_box3d(one) for one in each], 8, 3),
        "pose": _stack([view.world_to_camera @ one.matrix for one in each], 4, 4),
        "visible_fraction": _fractions(pixels[at], each, view),
        "truncated": np.array([one.appearance.truncated for one in each], bool),
    }
    if given is not None:
        result["keypoints"] = _keypoints(given, each, margin, view, depsgraph)
    return result


class _Seen(NamedTuple):
    """An object, its mesh, and how it looks."""

    obj: Any
    row: Any
    """Its entry in the table of ids."""
    mesh: Mesh
    matrix: _Floats
    """From its space to the world's."""
    appearance: Appearance


def _objects(objects: Iterable[Any], layer: Any) -> list[Any]:
    """The objects that are meant, each once and in the view layer."""
    import bpy

    if isinstance(objects, (str, bpy.types.Object)) or not hasattr(objects, "__iter__"):
        raise ConfigError(f"objects must be a list of objects or their names, got {objects!r}")
    found: dict[str, Any] = {}
    for number, given in enumerate(objects):
        obj = _object(given, f"objects[{number}]", layer)
        if obj.type not in WITH_MESH:
            raise ConfigError(
                f"objects[{number}], {obj.name!r}, is of type {obj.type} and has no mesh, so it has no boxes, mask and "
                f"pose: annotate can do {', '.join(WITH_MESH)}. Empties and bones can be keypoints of these"
            )
        if obj.name in found:
            raise ConfigError(f"objects[{number}] is {obj.name!r}, which is in the list already")
        found[obj.name] = obj
    return list(found.values())


def _object(given: Any, where: str, layer: Any) -> Any:
    import bpy

    if not isinstance(given, (str, bpy.types.Object)):
        raise ConfigError(f"{where} must be an object or its name, got {given!r}")
    name = given if isinstance(given, str) else given.name
    obj = layer.objects.get(name)
    if obj is not None and (isinstance(given, str) or obj == given):
        return obj
    if name in bpy.data.objects:
        raise ConfigError(
            f"{where} is {name!r}, which is not in the view layer {layer.name!r}: link it to a collection of the "
            "scene that is not excluded from the view layer"
        )
    there = sorted(obj.name for obj in layer.objects if obj.type in WITH_MESH)
    close = difflib.get_close_matches(name, there, n=3)
    if close:
        hint = f"is it {' or '.join(map(repr, close))}?"
    else:
        hint = f"there are {', '.join(there[:20])}{', ...' if len(there) > 20 else ''}"
    raise ConfigError(f"{where} is {name!r}, but there is no such object: {hint}")


def _of_objects(keypoints: Mapping[Any, Any], objects: list[Any]) -> dict[str, Any]:
    """The keypoints by the names of their objects."""
    names = {obj.name for obj in objects}
    if not hasattr(keypoints, "items"):
        raise ConfigError(
            f"keypoints must map objects or their names to keypoints, as in {{'Cube': [(0, 0, 0)]}}, got {keypoints!r}"
        )
    found = {}
    for key, value in keypoints.items():
        name = getattr(key, "name", key)
        if name not in names:
            raise ConfigError(
                f"there are keypoints for {name!r}, but it is not one of the objects: {', '.join(sorted(names))}"
            )
        found[name] = value
    return found


def _margin(value: Any) -> float:
    try:
        margin = float(value)
    except (TypeError, ValueError):
        margin = math.nan
    if not 0 <= margin < math.inf:
        raise ConfigError(f"keypoint_margin must be a length, 0 or more, got {value!r}")
    return margin


def _view(scene: Any, depsgraph: Any) -> View:
    camera = Camera()
    data = evaluated(camera.obj, depsgraph).data
    frame = frame_of(scene.render)
    return View(
        camera.K,
        camera.world_to_camera,
        data.type == "PERSP",
        data.clip_start,
        data.clip_end,
        frame.width,
        frame.height,
    )


def _seen(obj: Any, row: Any, view: View, depsgraph: Any) -> _Seen:
    current = evaluated(obj, depsgraph)
    mesh = mesh_of(obj, current)
    matrix = np.array(current.matrix_world, dtype=np.float64)
    points = _moved(view.world_to_camera @ matrix, mesh.points)
    looks = appearance(points, mesh.triangles, view)
    return _Seen(obj, row, mesh, matrix, looks)


def _moved(matrix: _Floats, points: _Floats) -> _Floats:
    moved: _Floats = (matrix[:3, :3] @ points.T + matrix[:3, 3:]).T  # one column after the other in memory
    return moved


def _stack(arrays: list[npt.NDArray[Any]], *shape: int) -> npt.NDArray[np.float32]:
    """N x shape, also for N = 0."""
    return np.array(arrays, np.float32).reshape(-1, *shape)


def _box3d(one: _Seen) -> _Floats:
    low, high = one.mesh.points.min(axis=0), one.mesh.points.max(axis=0)
    return _moved(one.matrix, low + (high - low) * _CORNERS)


def _fractions(visible: npt.NDArray[np.int64], each: list[_Seen], view: View) -> npt.NDArray[np.float32]:
    found = np.zeros(len(each), np.float32)
    for number in np.flatnonzero(visible):  # what cannot be seen needs no silhouette
        one = each[number]
        edges = None if one.appearance.clipped else edges_for(one.obj.name, one.mesh.triangles)
        whole = whole_pixels(one.appearance, edges, view)
        found[number] = visible[number] / max(whole, visible[number])
    return found


def _keypoints(
    given: Mapping[str, Any],
    each: list[_Seen],
    margin: float,
    view: View,
    depsgraph: Any,
) -> npt.NDArray[np.float32]:
    """N x K x 3: x, y, v."""
    import bpy

    points = [world_points(one.obj, given.get(one.obj.name, ()), one.mesh.points, depsgraph) for one in each]
    counts = [len(some) for some in points]
    found = np.zeros((len(each), max(counts, default=0), 3), np.float32)
    if not any(counts):
        return found
    # All keypoints of all objects as one array; `of` is the object of each.
    of, number = (
        np.repeat(np.arange(len(each)), counts),
        np.concatenate([np.arange(count) for count in counts]),
    )
    world = np.concatenate(points)
    local = _moved(view.world_to_camera, world)
    xy = view.pixels(local)
    with np.errstate(invalid="ignore"):  # NaN is behind the camera
        inside = ((xy >= 0) & (xy < (view.width, view.height))).all(axis=1) & (local[:, 2] > view.near)
    hidden = hidden_from_renders(bpy.context.view_layer)
    inside &= np.array([one.obj.name not in hidden for one in each])[of]
    some = np.flatnonzero(inside)
    turn, shift = view.world_to_camera[:3, :3], view.world_to_camera[:3, 3]
    starts = (rays(local[some], view) - shift) @ turn  # a rotation's inverse is its transpose

    def looked_through(obj: Any) -> bool:
        return obj.name in hidden or not obj.visible_camera

    owners = [each[one].obj for one in of[some]]
    behind = occluded(world[some], starts, owners, margin, looked_through, bpy.context.scene, depsgraph)
    behind |= local[some, 2] > view.far
    found[of[some], number[some], :2] = xy[some]
    found[of[some], number[some], 2] = np.where(behind, 1, 2)
    return found
