"""Shown: what of an item can be drawn, found by the names of `bl.render` and `bl.annotate`.

A name whose value has another form than theirs is not drawn but listed, so any item can be shown. Nor is a mark drawn
whose place is not finite, such as that of a point behind the camera, or absurdly far from the image.

An item may also have "xy", N x 2 points; "skeleton", pairs of keypoints counted from 1, one list or one by class_name;
and its camera's "K" and "world_to_camera", with which "bbox3d" is drawn. That camera is a perspective one unless the
item says `"orthographic": True`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np

from ..errors import ConfigError
from .box3d import box_lines
from .colours import srgb
from .skeleton import skeleton_of

__all__ = ["LABELS", "Shown", "Thing"]

Array = np.ndarray[Any, Any]

LABELS: dict[str, tuple[int, ...]] = {
    "instance": (),
    "semantic": (),
    "depth": (),
    "distance": (),
    "normal": (3,),
    "normal_camera": (3,),
    "flow_forward": (2,),
    "flow_backward": (2,),
    "albedo": (3,),
}
"""Labels with a value at each pixel, in the order of their tiles, and their shape beyond H x W."""

_MOST_PIXELS = 1280  # along a side: a tile shows no more, and many samples fit into memory
_FARTHEST = 1e4  # sizes of the image; farther, Pillow draws for seconds, and then fails


class _Row(NamedTuple):
    """Of the table that `bl.render` gives."""

    id: int
    class_id: int
    class_name: str


class Thing(NamedTuple):
    """One object of a sample."""

    id: int
    name: str
    class_name: str
    box: Array | None
    """x, y, width, height; None: without one, or it has no visible pixel."""
    keypoints: Array
    """K x 3: x, y, visibility; 0 also where it cannot be drawn."""
    skeleton: list[tuple[int, int]]
    """Pairs of its keypoints, counted from 0."""
    lines: Array
    """Its 3D box: up to 12 x 2 x 2, ends of lines."""
    visible: float | None
    """Share of it that is seen."""
    truncated: bool
    """A part of it lies outside the image."""


class Shown:
    """An item, taken apart. All coordinates are pixels of its image.

    Args:
        item: values by name; "index" is its number, "params" what it was made with.
    """

    def __init__(self, item: Mapping[str, Any]) -> None:
        self._item = item
        self._drawn = {"index"}
        self.index: Any = item.get("index", "")
        self.image = _picture(item.get("image"))
        """H x W x 3 or 4 uint8; None: there is none."""
        self.labels = {name: array for name in LABELS if (array := self._label(name)) is not None}
        """Arrays by name, H x W and more, of fewer pixels than the image if that is large."""
        shapes = [array.shape for array in (self.image, *self.labels.values()) if array is not None]
        self.size = (shapes[0][1], shapes[0][0]) if shapes else (320, 240)
        """Width and height in pixels."""
        points = self._rows("xy", 2).astype(np.float64)
        self.points = [(i, *point) for i, point in enumerate(points.tolist()) if self._has_place(points[i])]
        """Number, x and y of those that can be drawn."""
        self.classes = self._classes()
        """Names of classes by id."""
        self.things = self._things()
        self.ids = self._marked()
        """Ids whose masks are drawn on the image."""
        if self.image is not None:
            self._drawn.add("image")

    def rest(self) -> str:
        """What is not drawn, as text: arrays by dtype and shape, other values as they are."""
        return ", ".join(
            f"{name} {_brief(value)}"
            for name, value in self._item.items()
            if name not in self._drawn and not (name == "params" and isinstance(value, Mapping) and not value)
        )

    def _label(self, name: str) -> Array | None:
        value = self._item.get(name)
        kinds = "iu" if name in ("instance", "semantic") else "f"
        if not isinstance(value, np.ndarray) or value.dtype.kind not in kinds or value.ndim < 2:
            return None
        if value.shape[2:] != LABELS[name] or not value.size:
            return None
        self._drawn.add(name)
        step = math.ceil(max(value.shape[:2]) / _MOST_PIXELS)
        return np.ascontiguousarray(value[::step, ::step]) if step > 1 else value

    def _rows(self, name: str, *shape: int, count: int | None = None, kinds: str = "fiub") -> Array:
        """An array of N rows of this shape (-1: any length); none if the item has it not, or in another form."""
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

    def _table(self) -> list[_Row]:
        """None, if it has another form. A class that is no whole number is none."""
        table = self._item.get("instances")
        if not isinstance(table, list) or not all(
            isinstance(row, Mapping) and isinstance(row.get("id"), Integral) for row in table
        ):
            return []
        self._drawn.add("instances")
        rows = []
        for row in table:
            number, name = row.get("class_id"), row.get("class_name")
            rows.append(
                _Row(
                    int(row["id"]),
                    int(number) if isinstance(number, Integral) else 0,
                    name if isinstance(name, str) else "",
                )
            )
        return rows

    def _classes(self) -> dict[int, str]:
        classes: dict[int, str] = {}
        rows = [(row.class_id, row.class_name) for row in self._table()]
        ids = self._rows("class_id", kinds="iu")
        rows += zip(ids.tolist(), self._words("class_name", len(ids)), strict=True)
        for number, name in rows:
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
        boxed = self._has_place(boxes) & (boxes[:, 2:] > 0).all(axis=1)
        keypoints = self._rows("keypoints", -1, 3, count=count).astype(np.float64)
        keypoints[~self._has_place(keypoints[..., :2]), 2] = 0
        visible = self._rows("visible_fraction", count=count)
        truncated = self._rows("truncated", count=count)
        lines = self._boxes3d(count)
        return [
            Thing(
                id=int(ids[i]),
                name=names[i],
                class_name=classes[i],
                box=boxes[i] if len(boxes) and boxed[i] else None,
                keypoints=keypoints[i] if len(keypoints) else np.zeros((0, 3)),
                skeleton=self._skeleton(classes[i]),
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

    def _boxes3d(self, count: int) -> list[Array]:
        """Where the camera is known: the item needs `bbox3d`, and the camera's `K` and `world_to_camera`."""
        shapes = {"bbox3d": (count, 8, 3), "K": (3, 3), "world_to_camera": (4, 4)}
        corners, K, world_to_camera = arrays = [_numbers(self._item.get(name)) for name in shapes]
        if any(array.shape != shape for array, shape in zip(arrays, shapes.values(), strict=True)):
            return [np.zeros((0, 2, 2))] * count
        self._drawn.update(shapes)
        kind = _numbers(self._item.get("orthographic", False))
        if kind.shape == ():
            self._drawn.add("orthographic")
        boxes = []
        for eight in corners:
            with np.errstate(all="ignore"):  # what is not finite then is left out
                lines = box_lines(eight, K, world_to_camera, orthographic=bool(kind.shape == () and kind == 1))
            boxes.append(lines[self._has_place(lines).all(axis=-1)])
        return boxes

    def _has_place(self, coordinates: Array) -> Array:
        """Whether a picture can have these: ... x M numbers give ... bools."""
        placed: Array = (np.abs(coordinates) <= _FARTHEST * max(self.size)).all(axis=-1)  # not if NaN
        return placed

    def _marked(self) -> list[int]:
        """Annotated objects; else those with a class; else all."""
        if "instance" not in self.labels:
            return []
        if "id" in self._drawn:
            return [thing.id for thing in self.things]
        table = self._table()
        ids = [row.id for row in table if row.class_id] or [row.id for row in table]
        return ids or [int(number) for number in np.unique(self.labels["instance"]) if number > 0]


def _picture(value: Any) -> Array | None:
    """A picture as H x W x 3 or 4 uint8, from 8 bits, or from linear floats; grey becomes colour."""
    if not isinstance(value, np.ndarray) or not value.size or value.ndim not in (2, 3):
        return None
    if value.ndim == 3 and value.shape[2] not in (1, 3, 4):
        return None
    if value.ndim == 2:
        value = value[..., None]
    if value.dtype.kind == "f":
        opaque = np.rint(np.clip(np.nan_to_num(value[..., 3:]), 0, 1) * 255).astype(np.uint8)
        value = np.concatenate([srgb(value[..., :3]), opaque], axis=-1)
    elif value.dtype == np.bool_:
        value = value.astype(np.uint8) * 255
    elif value.dtype != np.uint8:
        return None
    return np.repeat(value, 3, axis=2) if value.shape[2] == 1 else value


def _numbers(value: Any) -> Array:
    """As float64, of whatever shape; of the shape 1 x 0 what is none."""
    try:
        return np.asarray(value, np.float64)
    except (TypeError, ValueError, OverflowError):  # text, ragged lists, huge integers
        return np.zeros((1, 0))


def _brief(value: Any) -> str:
    if isinstance(value, np.ndarray | np.generic):
        return f"{value.dtype}{list(value.shape)}" if value.ndim else _brief(value.item())
    text = f"{value:.6g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
