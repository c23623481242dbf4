"""annotate: boxes, poses, visibility and keypoints of objects, as the camera of the current scene sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError
from ..capture.object_ids import unique_names
from ..scene.camera import Camera, view_of
from ..scene.lens import View, transformed
from .amodal import fractions_of, silhouettes_of
from .arguments import checked_keypoints, checked_margin, checked_objects
from .as_rendered import Evaluation, render_differs, with_render_depsgraph
from .boxes import boxes_of
from .copies import copies_in
from .keypoints import Annotated, flagged, world_points
from .meshes import Mesh, read_mesh
from .rendered_ids import Entry, ids_from, render_ids
from .unseen import Unseen, unseen_in
from .views import Appearance, appearance

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .copies import Row

_Ids = npt.NDArray[np.integer[Any]]
_Floats = npt.NDArray[np.float64]

# The corners of a unit cube, 8 x 3, in the order of Blender's `bound_box`.
_CORNERS = np.array([*np.ndindex(2, 2, 2)])[[0, 1, 3, 2, 4, 5, 7, 6]]


def annotate(
    objects: Iterable[Any],
    keypoints: Mapping[Any, Any] | None = None,
    *,
    rendered: Mapping[str, Any] | None = None,
    keypoint_margin: float = 0.0,
    instances: bool = False,
    silhouettes: bool = False,
) -> dict[str, Any]:
    """Return labels of objects in the image that `render` gives now, under the names that datasets use.

    Where you render anyway, ask for "instance" and pass the result on:

        labels = bl.render(("depth", "instance"))
        return {**labels, **bl.annotate(objects, rendered=labels)}

    Then no second render is needed, and boxes and visible fractions are exactly those of the mask in `labels`. The
    labels come partly from `rendered` and partly from the scene, so call `annotate` before you change the scene:
    nothing can tell whether an object, the camera or the frame has moved since. Without `rendered` the ids are rendered
    here: by Cycles with one sample in each pixel's centre, whatever the scene's engine. Its settings are put back.

    Meshes, poses and keypoints are those of a render, also where modifiers, simplification, curves, metaballs, particles
    or hiding differ between renders and the viewport. Then the scene is evaluated once more, as for a render, which takes
    as long as Blender's evaluation of it does, and discards persistent data. Cycles' adaptive subdivision and
    displacement, and motion blur, are in the mask, but not in the mesh. An object that cannot be seen is no error,
    because that is ordinary in a random scene. A border to which the image is not cropped is ignored: the image is the
    whole frame then.

    An object's copies, by collections, geometry nodes, particles or vertices, have its id in `render`, and are no part of
    its mesh. With `instances` each of them is labelled like an object of its own, and the result also has new masks.
    Blender has no pass that tells copies apart, so their pixels are found from the depth, and those that several copies
    could have shown by the nearest surface. Three copies at 640 x 480 take some 10 ms, and 1,681 in each other's way at
    320 x 240 more than a second.

    Args:
        objects: N different objects, or their names. All need a mesh: meshes, curves, texts, surfaces and metaballs
            have one. With `instances` also empties that show a collection, and objects in no view layer.
        keypoints: By object, or its name, its K points: a K x 3 array in the object's own space, or a list whose
            entries are points in its space, indices of vertices (modifiers applied), empties or other objects or
            their names (for their origins), or names of bones of the armature that deforms it (for their heads, posed;
            a bone comes before an object of the same name). K may differ. None for no keypoints at all. A copy has
            those of its source, moved along with it.
        rendered: The result of the `render` with "instance" to which the labels belong, and with `instances` with
            "depth", too. None renders the ids here.
        keypoint_margin: How far below the surface of its own object, along the ray from the camera, a point still
            counts as visible, in Blender units. It is meant for joints, which lie inside. Other objects hide a point
            all the same.
        instances: Whether to label each copy. Then N is the number of what is rendered of the objects: for each of them
            first itself, and then what is copied from it, or is shown by it, in order of the names of instancer and
            source, and of persistent id. What is not rendered has no entry. The order is the same in each process.
        silhouettes: Whether to return the whole silhouettes, too, which amodal segmentation and BOP datasets need. They
            are N masks of the image's size: twelve take 3.7 MB at 640 x 480.

    Returns:
        All arrays of N are in the order of `objects`. Pixel coordinates have (0, 0) at the outer corner of the top-left
        pixel.

        - "id": N int32, the object's id in "instance".
        - "name": list of N str, where a linked object that shares its name with another is "name [library.blend]".
          "class_id": N int32, 0 for none. "class_name": list of N str, "" for none. With
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
          first three columns by their lengths to get the rotation, which for a mirrored object, whose determinant is
          negative, is none, because it mirrors, too.
        - "visible_fraction": N float32, visible pixels / pixels of the whole silhouette, as BOP defines it: the
          silhouette is that of the object alone, in an image extended to three times its width and height around its
          middle. What lies further out, or nearer than the camera's `clip_start`, is not counted. It is at most 1,
          although visible pixels are counted at one random place in each, and the silhouette's at their centres.
        - "truncated": N bool, whether a part lies outside the image, or is nearer than the camera's `clip_start`.
        - "keypoints", unless keypoints is None: N x K x 3 float32, x y v, with COCO's visibility v: 2 visible; 1
          in the image but hidden, or further than `clip_end`; 0 outside the image, nearer than `clip_start`, or of an
          object that the camera does not see anywhere, and then x and y are 0 too. K is the largest one; an object with
          fewer keypoints has rows of 0 0 0 after them.
        - With `silhouettes`: "silhouette": N x H x W bool, the pixels that the object would cover if nothing were in
          front of it, with all of those that are visible. "silhouette_bbox": N x 4 float32, x y width height of the
          whole silhouette, not cut at the border of the image, and "silhouette_pixels": N int32, how many pixels it
          has: both in the extended image of "visible_fraction", and also for objects that are hidden by others. An
          object that the camera does not see anywhere has none.
        - With `instances`: "instancer": list of N str, the name of what shows the copy, "" for an object itself.
          "persistent_id": N x 8 int32, Blender's own, which stays with a copy while others come and go. "instance" and
          "semantic": H x W int32, and "instances": the masks and the table of `render`, but with an id for each copy,
          so that `{**labels, **bl.annotate(...)}` has them. The view layer's objects keep their ids, and all copies
          follow, in the order above, also those that cannot be seen: their ids are the same from sample to sample for
          as long as their number is. Their rows also have "instancer" and "persistent_id". A copy has the class of its
          source, unless an empty that shows it as part of a collection has a `class_id` of its own.

        A keypoint is hidden by any surface on its way to the camera, also by glass, except within 1e-4 of its distance:
        that is the surface it lies on. The rays pass through objects that are not rendered, or not to the camera. They
        meet what is hidden in viewports only if it is a mesh of the view layer.

        What the camera does not see anywhere is hidden from renders, invisible to cameras (`visible_camera`), an instancer
        or emitter of particles that is not shown itself, or copied to its parent's vertices or faces and shown only
        there. A holdout has no pixels in the mask, but hides what is behind it, and has keypoints and a silhouette of
        its own. Vertices and edges without a face count nowhere in a mesh that has faces, because no render shows them.

    Raises:
        ConfigError: An object or name is unknown, there twice, not in the view layer, or without a mesh; a keypoint is
            wrong; `rendered` has no "instance" or lacks the "depth", has another size than the image, or an object is not in its table. The
            message says which, and what to do.
        ValueError: The camera is panoramic.
        RuntimeError: There is no camera, or an object is disabled in viewports and in renders; or as for `render`, where the ids could
            not be rendered.
    """
    import bpy

    layer = bpy.context.view_layer
    layer.update()  # otherwise what was linked or excluded just now would not count
    names = unique_names()
    found = checked_objects(objects, layer, names, instances)
    given = None if keypoints is None else checked_keypoints(keypoints, found, names)
    margin = checked_margin(keypoint_margin)
    view = view_of(Camera().obj)
    wanted = ("instance", "depth") if instances else ("instance",)
    if rendered is not None:
        ids = ids_from(rendered, view.frame, wanted)
    else:
        ids = render_ids(view.frame, wanted)
        names = unique_names()  # again, because a handler may have made an object, or named one, for that render
    for obj in found:
        if not instances and names[obj] not in ids.entries:
            raise ConfigError(
                f"{names[obj]!r} is not in rendered['instances']: it was linked, or got this name, after that render. "
                "Render again, and annotate with the new result"
            )
    viewport = bpy.context.evaluated_depsgraph_get()  # again, because a render may have changed it

    def labels(depsgraph: Any) -> dict[str, Any]:
        scene = Evaluation(depsgraph, viewport)
        unseen = unseen_in(layer, scene)
        if not instances:
            each = [_annotated(obj, ids.entries[names[obj]], names[obj], view, scene) for obj in found]
            return _labels(each, ids.mask, given, margin, view, scene, silhouettes, unseen)
        copies = copies_in(depsgraph, ids, layer, names, view)
        each = [_of_copy(row, names, view) for row in copies.of(found)]
        known = _labels(each, copies.mask, given, margin, view, scene, silhouettes, unseen)
        return {**known, **copies.labels(found, names)}

    if instances or render_differs(bpy.context.scene):
        return with_render_depsgraph(labels)
    return labels(viewport)


def _labels(
    each: list[Annotated],
    mask: _Ids,
    given: dict[Any, Any] | None,
    margin: float,
    view: View,
    scene: Evaluation,
    silhouettes: bool,
    unseen: Unseen,
) -> dict[str, Any]:
    numbers = np.array([one.entry.id for one in each], np.int32)
    boxes, pixels = boxes_of(mask, numbers.max(initial=0))
    result = {
        "id": numbers,
        "name": [one.name for one in each],
        "class_id": np.array([one.entry.class_id for one in each], np.int32),
        "class_name": [one.entry.class_name for one in each],
        "bbox": boxes[numbers - 1],
        "bbox_loose": _stack([one.appearance.box for one in each], 4),
        "bbox3d": _stack([_box3d(one) for one in each], 8, 3),
        "pose": _stack([view.world_to_camera @ one.matrix for one in each], 4, 4),
        "visible_fraction": fractions_of(pixels[numbers - 1], each, view),
        "truncated": np.array([one.appearance.truncated for one in each], bool),
    }
    if silhouettes:
        result |= silhouettes_of(each, mask, pixels[numbers - 1], view, unseen)
    if given is not None:
        points = [world_points(one, given.get(one.obj, ()), scene) for one in each]
        result["keypoints"] = flagged(each, points, margin, view, scene, unseen)
    return result


def _annotated(obj: Any, entry: Entry, name: str, view: View, scene: Evaluation) -> Annotated:
    current = scene.evaluated(obj)
    mesh = read_mesh(obj, current)
    matrix = np.array(current.matrix_world, dtype=np.float64)
    return Annotated(obj, name, entry, mesh, matrix, _look(mesh, matrix, view))


def _of_copy(row: Row, names: Mapping[Any, str], view: View) -> Annotated:
    source, instancer, _, matrix, mesh = row.shown
    look = _look(mesh, matrix, view)
    return Annotated(source, names[source], row.entry, mesh, matrix, look, instancer)


def _look(mesh: Mesh, matrix: _Floats, view: View) -> Appearance:
    return appearance(transformed(view.world_to_camera @ matrix, mesh.surface), mesh.triangles, view)


def _stack(arrays: list[npt.NDArray[Any]], *shape: int) -> npt.NDArray[np.float32]:
    # np.stack would not do for N = 0
    return np.array(arrays, np.float32).reshape(-1, *shape)


def _box3d(one: Annotated) -> _Floats:
    low, high = one.mesh.surface.min(axis=0), one.mesh.surface.max(axis=0)
    return transformed(one.matrix, low + (high - low) * _CORNERS)
