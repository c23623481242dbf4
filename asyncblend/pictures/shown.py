"""Shown: what of an item can be drawn. Annotations are found by the names that `bl.render` and `bl.annotate` give.

Any item can be shown: a value of another form is not drawn but listed as text. A mark is not drawn if its position is
not finite, as that of a point behind the camera, or is far outside the image. Images may have any name (see `images`).

An item may also have "xy", N x 2 points, and "points", which declares the names of others (see `points`); "skeleton",
pairs of keypoints counted from 1, one list or one for each class_name; and its camera's "K" and "world_to_camera", with
which "bbox3d" is drawn. The camera is a perspective one unless the item has `"orthographic": True`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np

from ..errors import ConfigError
from .box3d import box_lines
from .colours import Array
from .images import Picture, image_of, pictures_in
from .points import Points, points_in
from .skeleton import skeleton_of

LABELS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("instance", "semantic", "depth", "distance"), ()),
    **dict.fromkeys(("normal", "normal_camera"), (3,)),
    **dict.fromkeys(("flow_forward", "flow_backward"), (2,)),
    "albedo": (3,),
}
"""Labels with a value for each pixel, in the order of their tiles, and their shape after H x W."""

_NO_IMAGES = {
    *("index", "params", "xy", "points", "skeleton", "K", "world_to_camera", "orthographic", "instances", "id", "name"),
    *("class_id", "class_name", "bbox", "bbox_loose", "bbox3d", "pose", "keypoints", "visible_fraction", "truncated"),
}
"""What is never an image."""
_MAX_SIDE = 1280  # pixels of a label that are kept; a tile shows no more, and so many samples fit into memory
_FARTHEST = 1e4  # sizes of the image; Pillow draws lines to farther points for seconds, and then fails


class View(NamedTuple):
    """The camera of a sample."""

    K: Array  # 3 x 3, in pixels
    world_to_camera: Array  # 4 x 4, to axes x right, y down, z forward
    orthographic: bool


class Thing(NamedTuple):
    """One object of a sample."""

    id: int
    name: str
    class_name: str
    box: Array | None  # x, y, width, height. None if it has no box, or no visible pixel
    keypoints: Array  # K x 3: x, y, visibility. The visibility is 0 also where the keypoint cannot be drawn
    skeleton: list[tuple[int, int]]  # The pairs of its keypoints that are joined, counted from 0
    corners: Array  # 8 x 3, of its 3D box in world space; 0 x 3 if it has none
    lines: Array  # The edges of its 3D box in the image: up to 12 x 2 x 2, the ends of lines
    visible: float | None  # The share of it that is visible
    truncated: bool  # Whether a part of it lies outside the image


class Shown:
    """The parts of an item that can be drawn: values by name, with its "index". All coordinates are pixels."""

    def __init__(self, item: Mapping[str, Any]) -> None:
        self._item = item
        self._drawn = {"index"}
        self.index: Any = item.get("index", "")
        self.labels: dict[str, Array] = {name: array for name in LABELS if (array := self._label(name)) is not None}
        """Arrays by name, of the shapes in `LABELS`, with fewer pixels than the image if that is large."""
        points, known = points_in(item)
        self.name: str = "image"  # That of the image which annotations are drawn on
        self.image = image_of(item.get("image"))  # H x W x 3 or 4 uint8. None if there is none
        if self.image is not None:
            self._drawn.add("image")
        taken = {*_NO_IMAGES, *self._drawn, *(one.name for one in points)}
        self.pictures: dict[str, Picture]
        self.pictures, self._left_out = pictures_in({name: item[name] for name in item if name not in taken})
        """The other images by name, and by name how many of them there are not."""
        self._drawn.update(self._left_out)
        if self.image is None and (lights := [name for name, one in self.pictures.items() if one.kind == "light"]):
            self.name = max(lights, key=lambda name: self.pictures[name].array.ndim)  # the first in colour, if any is
            self.image = image_of(self.pictures.pop(self.name).array)
        shapes = [array.shape for array in (self.image, *self.labels.values()) if array is not None]
        self.size: tuple[int, int] = (
            (shapes[0][1], shapes[0][0]) if shapes else (320, 240)
        )  # Width and height in pixels
        self.points: list[Points] = self._on_images(points)
        """The points that can be drawn. Those that are nowhere near their image have the visibility 0."""
        self._drawn.update(one.name for one in self.points)
        if known and len(self.points) == len(points):
            self._drawn.add("points")
        self.view: View | None = self._read_view()
        """The camera. None if the item does not have it, or one that projects nothing."""
        self._table = self._read_table()
        self.classes: dict[int, str] = self._classes()  # The names of classes by id
        self.things: list[Thing] = self._things()
        self.ids: list[int] = self._masked_ids()  # The ids of the objects whose masks are drawn on the image

    def points_on(self, image: str) -> list[Points]:
        """Return the points that belong to an image."""
        return [one for one in self.points if one.image == image]

    def rest(self) -> str:
        """Return what `rests` returns as one line."""
        return ", ".join(self.rests())

    def rests(self) -> list[str]:
        """Return each value that is not drawn as text: arrays by dtype and shape, others as they are."""
        rest = [
            f"{name} {_brief(value)}"
            for name, value in self._item.items()
            if name not in self._drawn and not (name == "params" and isinstance(value, Mapping) and not value)
        ]
        return [*rest, *(f"{count} more of {name}" for name, count in self._left_out.items() if count)]

    def _label(self, name: str) -> Array | None:
        value = self._item.get(name)
        kinds = "iu" if name in ("instance", "semantic") else "f"
        if not isinstance(value, np.ndarray) or value.dtype.kind not in kinds or value.ndim < 2 or not value.size:
            return None
        if value.shape[2:] != LABELS[name]:
            return None
        self._drawn.add(name)
        step = math.ceil(max(value.shape[:2]) / _MAX_SIDE)
        return np.ascontiguousarray(value[::step, ::step]) if step > 1 else value

    def _rows(self, name: str, *shape: int, count: int | None = None, kinds: str = "fiub") -> Array:
        """Return an array with rows of this shape, where -1 is any length. It is empty if the item has no such array."""
        value = self._item.get(name)
        fits = (
            isinstance(value, np.ndarray)
            and value.dtype.kind in kinds
            and value.ndim == 1 + len(shape)
            and all(want in (-1, have) for want, have in zip(shape, value.shape[1:], strict=True))
            and count in (None, len(value))
        )
        if not fits:
            return np.zeros((0, *(max(side, 0) for side in shape)), np.float32)
        self._drawn.add(name)
        return value  # type: ignore[return-value]

    def _words(self, name: str, count: int) -> list[str]:
        value = self._item.get(name)
        if not isinstance(value, list) or len(value) != count or not all(isinstance(w, str) for w in value):
            return [""] * count
        self._drawn.add(name)
        return value

    def _read_table(self) -> list[tuple[int, int, str]]:
        """Return id, class id (0 for none) and class name of the objects in the table that `bl.render` gives."""
        table = self._item.get("instances")
        if not isinstance(table, list) or not all(
            isinstance(row, Mapping) and isinstance(row.get("id"), Integral) for row in table
        ):
            return []
        self._drawn.add("instances")
        rows = ((int(row["id"]), row.get("class_id"), row.get("class_name")) for row in table)
        return [
            (id, int(number) if isinstance(number, Integral) else 0, name if isinstance(name, str) else "")
            for id, number, name in rows
        ]

    def _classes(self) -> dict[int, str]:
        classes: dict[int, str] = {}
        ids = self._rows("class_id", kinds="iu").tolist()
        rows = [(number, name) for _, number, name in self._table]
        for number, name in [*rows, *zip(ids, self._words("class_name", len(ids)), strict=True)]:
            if number:
                classes[number] = classes.get(number) or name or str(number)
        return classes

    def _things(self) -> list[Thing]:
        ids, boxes = self._rows("id", kinds="iu"), self._rows("bbox", 4)
        count = len(ids) or len(boxes)
        if not len(ids):
            ids = np.arange(1, count + 1)
        names, classes = self._words("name", count), self._words("class_name", count)
        boxes = self._rows("bbox", 4, count=count).astype(np.float64)
        boxed = self._drawable(boxes) & (boxes[:, 2:] > 0).all(axis=1)
        keypoints = self._rows("keypoints", -1, 3, count=count).astype(np.float64)
        keypoints[~self._drawable(keypoints[..., :2]), 2] = 0
        visible = self._rows("visible_fraction", count=count)
        truncated = self._rows("truncated", count=count)
        corners = self._corners(count)
        lines = self._lines(corners, count)
        return [
            Thing(
                id=int(ids[i]),
                name=names[i],
                class_name=classes[i],
                box=boxes[i] if len(boxes) and boxed[i] else None,
                keypoints=keypoints[i] if len(keypoints) else np.zeros((0, 3)),
                skeleton=self._skeleton(classes[i]),
                corners=corners[i] if len(corners) else np.zeros((0, 3)),
                lines=lines[i],
                visible=float(visible[i]) if len(visible) else None,
                truncated=bool(truncated[i]) if len(truncated) else False,
            )
            for i in range(count)
        ]

    def _skeleton(self, class_name: str) -> list[tuple[int, int]]:
        try:
            found = [(a - 1, b - 1) for a, b in skeleton_of(self._item, class_name)]
        except ConfigError:
            return []
        if found:
            self._drawn.add("skeleton")
        return found

    def _read_view(self) -> View | None:
        K, world_to_camera = (_numbers(self._item.get(name)) for name in ("K", "world_to_camera"))
        if (
            K.shape != (3, 3)
            or world_to_camera.shape != (4, 4)
            or not (_invertible(K) and _invertible(world_to_camera))
        ):
            return None
        kind = _numbers(self._item.get("orthographic", False))
        return View(K, world_to_camera, bool(kind.shape == () and kind == 1))

    def _corners(self, count: int) -> Array:
        """Return each object's 3D box, N x 8 x 3. It is empty if the item has none."""
        corners = _numbers(self._item.get("bbox3d"))
        return corners if corners.shape == (count, 8, 3) else np.zeros((0, 8, 3))

    def _lines(self, corners: Array, count: int) -> list[Array]:
        """Return the edges of each object's 3D box in the image. There are none if the item does not have its camera."""
        if self.view is None or len(corners) != count:
            return [np.zeros((0, 2, 2))] * count
        self._drawn.update(("bbox3d", "K", "world_to_camera"))
        if _numbers(self._item.get("orthographic", False)).shape == ():
            self._drawn.add("orthographic")
        K, world_to_camera, orthographic = self.view
        with np.errstate(all="ignore"):  # lines that are not finite are removed below
            boxes = [box_lines(eight, K, world_to_camera, orthographic=orthographic) for eight in corners]
        return [lines[self._drawable(lines).all(axis=-1)] for lines in boxes]

    def _drawable(self, coordinates: Array) -> Array:
        """Return whether points of the last axis are finite and near the image: ... x M numbers give ... bools."""
        return _near(coordinates, self.size)

    def _on_images(self, points: list[Points]) -> list[Points]:
        """Return the points whose image there is, with its name."""
        sizes = {self.name: self.size, **{name: one.size for name, one in self.pictures.items()}}
        found = [one._replace(image=one.image or self.name, rows=one.rows.copy()) for one in points]
        for one in found:
            if one.image in sizes:
                one.rows[~_near(one.rows[:, :2], sizes[one.image])] = 0
        return [one for one in found if one.image in sizes]

    def _masked_ids(self) -> list[int]:
        """Return the annotated objects if there are any, else those with a class, else all."""
        if "instance" not in self.labels:
            return []
        if "id" in self._drawn:
            return [thing.id for thing in self.things]
        ids = [number for number, class_id, _ in self._table if class_id] or [number for number, *_ in self._table]
        return ids or [int(number) for number in np.unique(self.labels["instance"]) if number > 0]


def _near(coordinates: Array, size: tuple[int, int]) -> Array:
    return np.asarray((np.abs(coordinates) <= _FARTHEST * max(size)).all(axis=-1))  # False for NaN


def _invertible(matrix: Array) -> bool:
    return bool(np.isfinite(matrix).all() and np.linalg.matrix_rank(matrix) == len(matrix))


def _numbers(value: Any) -> Array:
    """Return a value as float64. What is no array of numbers becomes an array of shape 1 x 0."""
    try:
        return np.asarray(value, np.float64)
    except (TypeError, ValueError, OverflowError):  # text, ragged lists, huge integers
        return np.zeros((1, 0))


def _brief(value: Any) -> str:
    if isinstance(value, np.ndarray | np.generic):
        return f"{value.dtype}{list(value.shape)}" if value.ndim else _brief(value.item())
    text = f"{value:.6g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
