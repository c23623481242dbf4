"""annotate: boxes, poses, visibility and keypoints of objects, as the camera of the current scene sees them."""

from __future__ import annotations

import difflib
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError
from ..scene.camera import Camera, view_of
from ..scene.lens import View, transformed
from ..scene.placing import evaluated
from .boxes import boxes_of
from .keypoints import flagged, world_points
from .meshes import WITH_MESH, Mesh, edges_for, mesh_of
from .rendered_ids import Entry, ids_from, render_ids
from .silhouette import edges_of, spans_of
from .views import Appearance, appearance

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_Floats = npt.NDArray[np.float64]

# The corners of a unit cube, 8 x 3, in the order of Blender's `bound_box`.
_CORNERS = np.array([*np.ndindex(2, 2, 2)])[[0, 1, 3, 2, 4, 5, 7, 6]]


def annotate(
    objects: Iterable[Any],
    keypoints: Mapping[Any, Any] | None = None,
    *,
    rendered: Mapping[str, Any] | None = None,
    keypoint_margin: float = 0.0,
) -> dict[str, Any]:
    """Return labels of objects in the image that `render` gives now, under the names that datasets use.

    Where you render anyway, ask for "instance" and pass the result on:

        labels = bl.render(("depth", "instance"))
        return {**labels, **bl.annotate(objects, rendered=labels)}

    Then no second render is needed, and boxes and visible fractions are exactly those of the mask in `labels`. The
    labels come partly from `rendered` and partly from the scene, so call `annotate` before you change the scene:
    nothing can tell whether an object, the camera or the frame has moved since. Without `rendered` the ids are rendered
    here: by Cycles with one sample in each pixel's centre, whatever the scene's engine. Its settings are put back.

    Meshes are those of Blender's viewport: they differ from rendered ones where a modifier has other settings for
    renders. An object's instances (of collections, particles, geometry nodes) are in the mask, but not in its mesh. An
    object that cannot be seen is no error, because that is ordinary in a random scene. A border to which the image is
    not cropped is ignored: the image is the whole frame then.

    Args:
        objects: N different objects, or their names. All need a mesh: meshes, curves, texts, surfaces and metaballs
            have one.
        keypoints: By object, or its name, its K points: a K x 3 array in the object's own space, or a list whose
            entries are points in its space, indices of vertices (modifiers applied), empties or other objects or
            their names (for their origins), or names of bones of the armature that deforms it (for their heads, posed;
            a bone comes before an object of the same name). K may differ. None for no keypoints at all.
        rendered: The result of the `render` with "instance" to which the labels belong. None renders the ids here.
        keypoint_margin: How far below the surface of its own object, along the ray from the camera, a point still
            counts as visible, in Blender units. It is meant for joints, which lie inside. Other objects hide a point
            all the same.

    Returns:
        All arrays of N are in the order of `objects`. Pixel coordinates have (0, 0) at the outer corner of the top-left
        pixel.

        - "id": N int32, the object's id in "instance".
        - "name": list of N str. "class_id": N int32, 0 for none. "class_name": list of N str, "" for none. With
          `rendered`, ids and classes are those of its table.
        - "bbox": N x 4 float32, x y width height of the visible pixels; 0 0 0 0 where there is none.
        - "bbox_loose": N x 4 float32, x y width height of the projected mesh, hidden parts too, cut at the border of
          the image; 0 0 0 0 where it lies outside.
        - "bbox3d": N x 8 x 3 float32, corners in world space of the box around the mesh along the object's own axes,
          in the order of Blender's `bound_box`: with - and + for the ends of the axes x y z, they are - - -, - - +,
          - + +, - + -, then + - -, + - +, + + +, + + -.
        - "pose": N x 4 x 4 float32, from the object's own space to the camera's in OpenCV's convention (x right, y
          down, z forward): `camera.world_to_camera @ obj.matrix_world`. It contains the object's scale, and so maps the
          vertices of the mesh as they are. With a scale of 1 it is a rotation and a translation; otherwise divide its
          first three columns by their lengths to get the rotation.
        - "visible_fraction": N float32, visible pixels / pixels of the whole silhouette, as BOP defines it: the
          silhouette is that of the object alone, in an image extended to three times its width and height around its
          middle. What lies further out, or nearer than the camera's `clip_start`, is not counted. It is at most 1,
          although visible pixels are counted at one random place in each, and the silhouette's at their centres.
        - "truncated": N bool, whether a part lies outside the image, or is nearer than the camera's `clip_start`.
        - "keypoints", unless keypoints is None: N x K x 3 float32, x y v, with COCO's visibility v: 2 visible; 1
          in the image but hidden, or further than `clip_end`; 0 outside the image, nearer than `clip_start`, or of an
          object that is hidden from renders, and then x and y are 0 too. K is the largest one; an object with fewer
          keypoints has rows of 0 0 0 after them.

        A keypoint is hidden by any surface on its way to the camera, also by glass, except within 1e-4 of its distance:
        that is the surface it lies on. The rays meet what Blender's viewport has: an object that is hidden in viewports
        but rendered hides nothing. They pass through objects that are not rendered, or not to the camera.

    Raises:
        ConfigError: An object or name is unknown, there twice, not in the view layer, or without a mesh; a keypoint is
            wrong; `rendered` has no "instance", another size than the image, or an object is not in its table. The
            message says which, and what to do.
        ValueError: The camera is panoramic.
        RuntimeError: There is no camera, or an object is disabled in viewports; or as for `render`, where the ids could
            not be rendered.
    """
    import bpy

    bpy.context.view_layer.update()  # otherwise what was linked or excluded just now would not count
    found = _objects(objects, bpy.context.view_layer)
    given = None if keypoints is None else _by_name(keypoints, found)
    margin = _margin(keypoint_margin)
    view = view_of(Camera().obj)
    ids = render_ids(view.frame) if rendered is None else ids_from(rendered, view.frame)
    for obj in found:
        if obj.name not in ids.entries:
            raise ConfigError(
                f"{obj.name!r} is not in rendered['instances']: it was linked, or got this name, after that render. "
                "Render again, and annotate with the new result"
            )
    depsgraph = bpy.context.evaluated_depsgraph_get()  # again, because a render may have changed it
    each = [_annotated(obj, ids.entries[obj.name], view, depsgraph) for obj in found]
    numbers = np.array([one.entry.id for one in each], np.int32)
    boxes, pixels = boxes_of(ids.mask, numbers.max(initial=0))
    result = {
        "id": numbers,
        "name": [obj.name for obj in found],
        "class_id": np.array([one.entry.class_id for one in each], np.int32),
        "class_name": [one.entry.class_name for one in each],
        "bbox": boxes[numbers - 1],
        "bbox_loose": _stack([one.appearance.box for one in each], 4),
        "bbox3d": _stack([_box3d(one) for one in each], 8, 3),
        "pose": _stack([view.world_to_camera @ one.matrix for one in each], 4, 4),
        "visible_fraction": _fractions(pixels[numbers - 1], each, view),
        "truncated": np.array([one.appearance.truncated for one in each], bool),
    }
    if given is not None:
        points = [world_points(one.obj, given.get(one.obj.name, ()), one.mesh.points, depsgraph) for one in each]
        result["keypoints"] = flagged(found, points, margin, view, depsgraph)
    return result


class _Annotated(NamedTuple):
    """An object with its mesh and how it looks."""

    obj: Any
    entry: Entry
    mesh: Mesh
    matrix: _Floats  # from the object's space to the world's
    appearance: Appearance


def _objects(objects: Iterable[Any], layer: Any) -> list[Any]:
    """Return the objects, each of them once and in the view layer."""
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
    known = sorted(obj.name for obj in layer.objects if obj.type in WITH_MESH)
    hint = f"there are {', '.join(known[:20])}{', ...' if len(known) > 20 else ''}"
    if close := difflib.get_close_matches(name, known, n=3):
        hint = f"is it {' or '.join(map(repr, close))}?"
    raise ConfigError(f"{where} is {name!r}, but there is no such object: {hint}")


def _by_name(keypoints: Mapping[Any, Any], objects: list[Any]) -> dict[str, Any]:
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


def _annotated(obj: Any, entry: Entry, view: View, depsgraph: Any) -> _Annotated:
    current = evaluated(obj, depsgraph)
    mesh = mesh_of(obj, current)
    matrix = np.array(current.matrix_world, dtype=np.float64)
    points = transformed(view.world_to_camera @ matrix, mesh.points)
    return _Annotated(obj, entry, mesh, matrix, appearance(points, mesh.triangles, view))


def _stack(arrays: list[npt.NDArray[Any]], *shape: int) -> npt.NDArray[np.float32]:
    # np.stack would not do for N = 0
    return np.array(arrays, np.float32).reshape(-1, *shape)


def _box3d(one: _Annotated) -> _Floats:
    low, high = one.mesh.points.min(axis=0), one.mesh.points.max(axis=0)
    return transformed(one.matrix, low + (high - low) * _CORNERS)


def _fractions(visible: npt.NDArray[np.int64], each: list[_Annotated], view: View) -> npt.NDArray[np.float32]:
    found = np.zeros(len(each), np.float32)
    width, height = view.frame.width, view.frame.height
    window = (-width, -height, 3 * width, 3 * height)  # the extended image, as in BOP
    for number in np.flatnonzero(visible):  # an object that cannot be seen needs no silhouette
        xy, triangles, clipped, *_ = each[number].appearance
        edges = edges_of(triangles) if clipped else edges_for(each[number].obj.name, triangles)
        whole = spans_of(xy, triangles, edges, window).pixels
        found[number] = visible[number] / max(whole, visible[number])
    return found
