"""Entities: a frame as what rerun draws. The labels are recognised as the contact sheet recognises them.

    world                       right-handed, z up, in metres
    world/points                the depth as points in space, each with its pixel's colour
    world/boxes                 3D boxes
    world/camera                the camera; what is below it is in its image
    world/camera/image          the image that the annotations belong to
    world/camera/masks          the masks of the annotated objects
    world/camera/boxes, keypoints, skeletons, points/NAME
    world/camera/LABEL          labels of pixels: instance, semantic, depth, normal and so on
    pictures/NAME               the frame's other images
    values                      all other values, as text

Pixels are those of the frame; a point at (0.5, 0.5) is in the middle of the top-left one, for rerun too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import rerun as rr

from ..pictures import colours
from ..pictures.colours import Array
from ..pictures.images import image_of
from ..pictures.shown import Shown, View
from ..stream.frame import Frame

CAMERA = "world/camera"
IMAGE = f"{CAMERA}/image"
MASKS = f"{CAMERA}/masks"

Entities = dict[str, list[Any]]
"""By path what rerun logs there."""

_QUALITY = 90  # of JPEG: a twelfth of the bytes, in which a browser keeps many frames
_MOST_POINTS = 80_000  # of the depth; a browser without a GPU turns more of them slowly
_MOST_IDS = 1 << 16  # what rerun's ids have room for
_FAR = 8.0  # times the median depth; what is behind, such as a sky's sphere, would make the scene a dot
_AROUND = [0, 1, 2, 3, 0, 4, 5, 1, 5, 6, 2, 6, 7, 3, 7, 4]
"""Corners of a box in an order that goes along each of its edges."""
_VISIBILITY = {1: ("occluded", (255, 150, 40)), 2: ("visible", (70, 225, 120))}
"""Of keypoints: the name and the colour of each kind that is drawn."""
_RADIUS = -4  # of keypoints and points: negative ones are rerun's, in the window's points
_PLANE = 0.15  # of the distance to what the camera looks at: where the image stands before it


def fixed_entities() -> Entities:
    """Return what is the same for every frame."""
    visibility = [rr.AnnotationInfo(number, name, colour) for number, (name, colour) in _VISIBILITY.items()]
    return {"world": [rr.ViewCoordinates.RIGHT_HAND_Z_UP], f"{CAMERA}/keypoints": [rr.AnnotationContext(visibility)]}


def entities_of(frame: Frame) -> Entities:
    """Return what there is to see of a frame, by path."""
    shown = Shown({**frame, "index": frame.index})
    return {
        **dict(_image(shown)),
        **dict(_annotations(shown)),
        **dict(_labels(frame, shown)),
        **dict(_space(frame, shown)),
        **dict(_pictures(shown)),
        "values": [_text(frame, shown)],
    }


def _image(shown: Shown) -> Iterator[tuple[str, list[Any]]]:
    if shown.image is not None:
        yield IMAGE, [_jpeg(shown.image)]


def _annotations(shown: Shown) -> Iterator[tuple[str, list[Any]]]:
    """Yield boxes, keypoints with their skeletons, and points, in pixels."""
    things = shown.things
    if boxed := [thing for thing in things if thing.box is not None]:
        boxes = np.array([thing.box for thing in boxed])
        labels = [_label(thing.class_name or thing.name, thing.visible) for thing in boxed]
        ids = [colours.colour_of(thing.id) for thing in boxed]
        yield f"{CAMERA}/boxes", [rr.Boxes2D(mins=boxes[:, :2], sizes=boxes[:, 2:], labels=labels, colors=ids)]
    if any(len(thing.keypoints) for thing in things):
        points = np.concatenate([thing.keypoints for thing in things if len(thing.keypoints)])
        points = points[points[:, 2] > 0]
        yield (
            f"{CAMERA}/keypoints",
            [rr.Points2D(points[:, :2], class_ids=points[:, 2].astype(np.uint16), radii=_RADIUS)],
        )
        joined = [
            (thing.keypoints[[a, b], :2], colours.colour_of(thing.id))
            for thing in things
            for a, b in thing.skeleton
            if max(a, b) < len(thing.keypoints) and min(thing.keypoints[a, 2], thing.keypoints[b, 2]) > 0
        ]
        if joined:
            yield (
                f"{CAMERA}/skeletons",
                [rr.LineStrips2D([two for two, _ in joined], colors=[one for _, one in joined])],
            )
    for one in shown.points_on(shown.name):
        rows = one.rows[one.rows[:, 2] > 0]
        picked = [_VISIBILITY[int(seen)][1] for seen in rows[:, 2]]
        yield f"{CAMERA}/points/{_part(one.name)}", [rr.Points2D(rows[:, :2], colors=picked, radii=_RADIUS)]


def _labels(frame: Frame, shown: Shown) -> Iterator[tuple[str, list[Any]]]:
    """Yield the labels of pixels, whole, where the contact sheet may have left out pixels."""
    for name in shown.labels:
        path, array = f"{CAMERA}/{name}", np.asarray(frame[name])
        if name == "instance":
            named = {thing.id: thing.name or thing.class_name for thing in shown.things}
            known = {number: (named.get(number, ""), colours.colour_of(number)) for number in _present(array)}
            yield path, _ids(array, known)
            annotated = {number: known[number] for number in shown.ids if number in known}
            yield MASKS, _ids(np.where(np.isin(array, list(annotated)), array, 0), annotated)
        elif name == "semantic":
            yield path, _ids(array, {n: (label, colours.class_colour_of(n)) for n, label in shown.classes.items()})
        elif name in ("depth", "distance"):
            finite = np.where(np.isfinite(array), array, 0)
            yield path, [rr.DepthImage(finite.astype(np.float32, copy=False), meter=1.0)]
        elif name in ("normal", "normal_camera"):
            yield path, [_jpeg(colours.normal_picture(array))]
        elif name in ("flow_forward", "flow_backward"):
            yield path, [_jpeg(colours.flow_picture(array))]
        elif (picture := image_of(array)) is not None:
            yield path, [_jpeg(picture)]


def _space(frame: Frame, shown: Shown) -> Iterator[tuple[str, list[Any]]]:
    """Yield the camera, and what is in space: the depth as points, and 3D boxes."""
    if any(len(thing.corners) for thing in shown.things):
        boxed = [thing for thing in shown.things if len(thing.corners) and np.isfinite(thing.corners).all()]
        strips = [thing.corners[_AROUND] for thing in boxed]
        labels = [thing.class_name or thing.name for thing in boxed]
        ids = [colours.colour_of(thing.id) for thing in boxed]
        yield "world/boxes", [rr.LineStrips3D(strips, labels=labels, colors=ids)]
    if (view := shown.view) is None:
        return
    camera_to_world = np.linalg.inv(view.world_to_camera)
    pose = rr.Transform3D(translation=camera_to_world[:3, 3], mat3x3=camera_to_world[:3, :3])
    depth = np.asarray(frame["depth"]) if "depth" in shown.labels else None
    away = _typical(depth)
    if view.orthographic:  # rerun has no such camera
        yield CAMERA, [pose]
    else:
        pinhole = rr.Pinhole(
            image_from_camera=view.K,
            resolution=shown.size,
            camera_xyz=rr.ViewCoordinates.RDF,
            image_plane_distance=_PLANE * away,
        )
        yield CAMERA, [pose, pinhole]
    if depth is not None:
        points, picked = _points(depth, view, shown.image, _FAR * away)
        points = points @ camera_to_world[:3, :3].T + camera_to_world[:3, 3]
        yield "world/points", [rr.Points3D(points.astype(np.float32), colors=picked)]


def _points(depth: Array, view: View, image: Array | None, far: float) -> tuple[Array, Array | None]:
    """Return N x 3 points before the camera, and N x 3 colours of their pixels if the image is as large."""
    step = max(1, int(np.ceil(np.sqrt(depth.size / _MOST_POINTS))))
    rows, columns = np.mgrid[0 : depth.shape[0] : step, 0 : depth.shape[1] : step]
    z = depth[::step, ::step].astype(np.float64)
    there = np.isfinite(z) & (z > 0) & (z < far)
    rows, columns, z = rows[there], columns[there], z[there]
    at = np.stack([columns + 0.5, rows + 0.5, np.ones(len(z))], axis=-1) @ np.linalg.inv(view.K).T
    points = np.column_stack([at[:, :2], z]) if view.orthographic else at * z[:, None]
    same = image is not None and image.shape[:2] == depth.shape
    return points, image[rows, columns, :3] if same and image is not None else None


def _typical(depth: Array | None) -> float:
    """Return the median of a depth, in metres, or what stands for it without one."""
    near = depth[np.isfinite(depth) & (depth > 0)] if depth is not None else np.zeros(0)
    return float(np.median(near)) if len(near) else 5.0


def _pictures(shown: Shown) -> Iterator[tuple[str, list[Any]]]:
    for name, picture in shown.pictures.items():
        yield f"pictures/{_part(name)}", [_jpeg(picture.pixels)]


def _text(frame: Frame, shown: Shown) -> Any:
    lines = [f"sample {frame.index}, by Blender {frame.instance}"]
    if frame.params:
        lines.append(f"params: {json.dumps(frame.params, default=str)}")
    lines += shown.rests()
    return rr.TextDocument("\n".join(lines))


def _present(array: Array) -> list[int]:
    """Return which ids a mask has, without 0; none if they are too large to be counted."""
    if not array.size or int(array.max()) >= _MOST_IDS or int(array.min()) < 0:
        return []
    return [int(number) for number in np.flatnonzero(np.bincount(array.ravel())) if number]


def _ids(array: Array, known: Mapping[int, tuple[str, colours.Colour]]) -> list[Any]:
    """Return a mask of ids with their names. Ids that rerun has no room for are drawn as a picture."""
    if array.size and (int(array.max()) >= _MOST_IDS or int(array.min()) < 0):
        return [_jpeg(colours.id_picture(array))]
    few = np.uint8 if not array.size or int(array.max()) < 256 else np.uint16
    infos = [rr.AnnotationInfo(n, name or str(n), colour) for n, (name, colour) in known.items() if 0 < n < _MOST_IDS]
    nothing = rr.AnnotationInfo(0, "nothing", (0, 0, 0, 0))
    return [rr.AnnotationContext([nothing, *infos]), rr.SegmentationImage(array.astype(few))]


def _jpeg(pixels: Array) -> Any:
    return rr.Image(np.ascontiguousarray(pixels[..., :3])).compress(jpeg_quality=_QUALITY)


def _label(name: str, visible: float | None) -> str:
    return name if visible is None or visible > 0.995 else f"{name} {visible:.0%}"


def _part(name: str) -> str:
    return str(rr.escape_entity_path_part(name))
