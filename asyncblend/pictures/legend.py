"""The legend under a contact sheet: what its colours and marks mean, as far as they occur."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image

from . import colours
from .canvas import DIM, INK, Canvas, Colour, fit_text, text_width
from .colours import NOTHING, Scale
from .drawing import POINT_COLOURS, keypoint_mark, point_mark
from .shown import Shown

_HEIGHT, _ROW_GAP, _GAP, _TITLE, _TEXT = 84, 18, 44, 13, 12
_RAMP, _WHEEL = 220, 64
_ROWS = 3  # lines of swatches, one above the other
_MAX_NAME = 150  # pixels of a class's name
_AFTER_NAMES = ("46% visible: the rest is covered or outside", "cut: a part is outside the image")
_GREY = "#d5d9de"
_FLOW = ("hue: the direction", "white: no motion", "full colour: the longest vector")


_Mark = Callable[[Canvas, float, float], None]
"""Draws a mark, 14 pixels wide, on a canvas, given its left and its middle."""


class _Entry(NamedTuple):
    title: str
    width: float
    draw: Callable[[Canvas, float, float], None]
    """Draws the entry on a canvas, given its left and top."""


def legend(
    samples: Sequence[Shown], scales: Mapping[str, Scale], points: Sequence[str], width: int
) -> Image.Image | None:
    """Return a picture of this width, or None if there is nothing to explain. `points` are the names of all points."""
    rows: list[list[_Entry]] = [[]]
    for entry in _entries(samples, scales, points, width):
        if rows[-1] and sum(e.width + _GAP for e in rows[-1]) + entry.width > width:
            rows.append([])
        rows[-1].append(entry)
    if not rows[0]:
        return None
    canvas = Canvas(width, len(rows) * (_HEIGHT + _ROW_GAP) - _ROW_GAP)
    for i, row in enumerate(rows):
        left, top = 0.0, i * (_HEIGHT + _ROW_GAP)
        for entry in row:
            canvas.text(left, top + 8, entry.title, size=_TITLE, colour=INK)
            entry.draw(canvas, left, top + 16)
            left += entry.width + _GAP
    return canvas.picture()


def _entries(samples: Sequence[Shown], scales: Mapping[str, Scale], points: Sequence[str], width: int) -> list[_Entry]:
    labels = {name for sample in samples for name in sample.labels}
    kinds = {picture.kind for sample in samples for picture in sample.pictures.values()}
    things = [thing for sample in samples for thing in sample.things]
    entries = []
    if any(len(thing.keypoints) for thing in things):
        entries.append(_Entry("keypoints", 20 + text_width("occluded", _TEXT), _draw_keypoints))
    if any(thing.visible is not None or thing.truncated for thing in things):
        entries.append(_Entry("after a name", _widest(_AFTER_NAMES), partial(_lines, texts=_AFTER_NAMES)))
    if points:
        flagged = any(one.flagged for sample in samples for one in sample.points)
        entries.append(_points(points, width, flagged=flagged))
    if "semantic" in labels:
        classes = {number: name for sample in samples for number, name in sample.classes.items()}
        given = [(name, colours.class_colour_of(number)) for number, name in sorted(classes.items())]
        swatches = [(name, partial(_swatch, colour=colour)) for name, colour in (*given, ("no class", NOTHING))]
        entries.append(_columns("semantic", swatches, width))
    for name, scale in scales.items():
        entries.append(_Entry(name + (", logarithmic" if scale.logarithmic else ""), _RAMP + 30, _ramp(scale)))
    if "values" in kinds:
        entries.append(_Entry("other values", _RAMP + 30, _ramp(None)))
    if labels & {"normal", "normal_camera"} or "vectors" in kinds:
        title = "normal: world axes" if "normal" in labels else "normal_camera"
        title = title if labels & {"normal", "normal_camera"} else "x, y, z"
        entries.append(_Entry(title, max(text_width(title, _TITLE), 100), _draw_directions))
    if "normal_camera" in labels:
        entries.append(_Entry("normal_camera: x right, y down", 170, _draw_ball))
    if labels & {"flow_forward", "flow_backward"} or "flow" in kinds:
        entries.append(_Entry("flow", _WHEEL + 12 + _widest(_FLOW), _draw_wheel))
    return entries


def _lines(canvas: Canvas, left: float, top: float, texts: Sequence[str], step: float = 20) -> None:
    for i, text in enumerate(texts):
        canvas.text(left, top + 14 + step * i, text, size=_TEXT, colour=DIM)


def _widest(texts: Iterable[str]) -> float:
    return max(text_width(text, _TEXT) for text in texts)


def _draw_keypoints(canvas: Canvas, left: float, top: float) -> None:
    canvas.chip(left, top + 4, left + 14, top + 44, _GREY)  # as on an image: on white, hollow marks would look full
    for y, visibility in ((14, 2), (34, 1)):
        keypoint_mark(canvas, left + 7, top + y, visibility, colours.colour_of(1), 5)
    _lines(canvas, left + 20, top, ("visible", "occluded"))


def _points(names: Sequence[str], width: int, *, flagged: bool) -> _Entry:
    """Return an entry that tells the names of points, or the order of those of a single name, and what is hollow."""
    occluded = [("occluded", partial(_point, colour=_GREY, hollow=True))] * flagged
    if len(names) > 1:
        given = [(name, partial(_point, colour=POINT_COLOURS[i % len(POINT_COLOURS)])) for i, name in enumerate(names)]
        return _columns("points", [*given, *occluded], width)

    def draw(canvas: Canvas, left: float, top: float) -> None:
        for i, colour in enumerate(POINT_COLOURS):
            _point(canvas, left + 14 * i, top + 14, colour)
        _lines(canvas, left, top + 20, ["in this order"])
        for text, mark in occluded:
            _labelled(canvas, left, top + 54, text, mark)

    return _Entry(fit_text(names[0], _TITLE, _RAMP / 2), _RAMP / 2, draw)


def _point(canvas: Canvas, left: float, middle: float, colour: Colour, hollow: bool = False) -> None:
    point_mark(canvas, left + 7, middle, colour, 5, hollow=hollow)


def _swatch(canvas: Canvas, left: float, middle: float, colour: Colour) -> None:
    canvas.chip(left, middle - 7, left + 14, middle + 7, colour)


def _labelled(canvas: Canvas, left: float, middle: float, text: str, mark: _Mark) -> None:
    mark(canvas, left, middle)
    canvas.text(left + 20, middle, text, size=_TEXT, colour=DIM)


def _columns(title: str, marks: Sequence[tuple[str, _Mark]], width: int) -> _Entry:
    """Return an entry with as many marks and names as fit into the width. The last says how many more there are."""
    named = [(fit_text(name, _TEXT, _MAX_NAME), mark) for name, mark in marks]
    column = 40 + _widest(name for name, _ in named)
    room = _ROWS * max(1, int((width + 20) / column))
    if len(named) > room:
        named = [*named[: room - 1], (f"and {len(named) - room + 1} more", partial(_swatch, colour="white"))]

    def draw(canvas: Canvas, left: float, top: float) -> None:
        for i, (name, mark) in enumerate(named):
            _labelled(canvas, left + i // _ROWS * column, top + 14 + i % _ROWS * 20, name, mark)

    return _Entry(title, column * -(-len(named) // _ROWS) - 20, draw)


def _ramp(scale: Scale | None) -> Callable[[Canvas, float, float], None]:
    """Return what draws the ramp with the lengths of a scale. None: each picture has a scale of its own."""

    def draw(canvas: Canvas, left: float, top: float) -> None:
        ramp = colours.ramp()[np.arange(_RAMP) * 256 // _RAMP]
        canvas.put(Image.fromarray(np.repeat(ramp[None], 14, axis=0)), left, top + 7)
        ends = ("least", "", "greatest")
        for i, (position, anchor) in enumerate(((0.0, "lm"), (0.5, "mm"), (1.0, "rm"))):
            x = left + position * (_RAMP - 1) + 0.5
            canvas.line([(x, top + 21), (x, top + 25)], DIM)
            text = ends[i]
            if scale is not None:
                text = f"{scale.at(position):.3g}" if position < 1 else f"{scale.far:.3g} m"
            canvas.text(left + position * _RAMP, top + 34, text, size=_TEXT, colour=DIM, anchor=anchor)
        nothing = "not finite" if scale is None else "nothing there (inf)"
        _labelled(canvas, left, top + 54, nothing, partial(_swatch, colour=NOTHING))

    return draw


def _draw_directions(canvas: Canvas, left: float, top: float) -> None:
    for axis in range(3):
        for i, sign in enumerate((1, -1)):
            red, green, blue = colours.normal_picture(sign * np.eye(3)[axis]).tolist()
            mark = partial(_swatch, colour=(red, green, blue))
            _labelled(canvas, left + 58 * i, top + 14 + 20 * axis, f"{'+-'[i]}{'xyz'[axis]}", mark)


def _draw_ball(canvas: Canvas, left: float, top: float) -> None:
    across = (np.arange(2 * _WHEEL, dtype=np.float32) + 0.5) / _WHEEL - 1
    x, y = np.broadcast_arrays(across[None, :], across[:, None])
    ball = colours.normal_picture(np.stack([x, y, -np.sqrt(np.maximum(1 - x**2 - y**2, 0))], axis=-1))
    ball[x**2 + y**2 > 1] = 255
    _put_round(canvas, left, top + 4, ball, ("a ball in front", "of the camera"))


def _draw_wheel(canvas: Canvas, left: float, top: float) -> None:
    _put_round(canvas, left, top + 2, colours.wheel_picture(2 * _WHEEL), _FLOW)


def _put_round(canvas: Canvas, left: float, top: float, large: colours.Array, texts: Sequence[str]) -> None:
    canvas.put(Image.fromarray(large).resize((_WHEEL, _WHEEL), Image.Resampling.LANCZOS), left, top)
    _lines(canvas, left + _WHEEL + 12, top + 2, texts, 16)
