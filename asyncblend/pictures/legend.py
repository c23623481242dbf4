"""The legend under a contact sheet: what its colours and marks mean, as far as they occur."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from .canvas import DIM, INK, Canvas, fit_text, text_width
from .colours import (
    NOTHING,
    Colour,
    Scale,
    as_hex,
    class_colour_of,
    colour_of,
    normal_picture,
    ramp,
    wheel_picture,
)
from .drawing import POINT_COLOURS, keypoint_mark, point_mark
from .shown import Shown
from .tiles import metres

__all__ = ["legend"]

_HEIGHT, _ROW_GAP, _GAP, _TITLE, _TEXT = 84, 18, 44, 13, 12
_RAMP, _WHEEL = 220, 64
_ROWS = 3  # lines of swatches, one above the other
_NAME = 150  # pixels, at most, of a class's name


class _Entry(NamedTuple):
    title: str
    width: float
    draw: Callable[[Canvas, float, float], None]
    """Onto a canvas, with the entry's top left corner."""


def legend(samples: Sequence[Shown], scales: Mapping[str, Scale], width: int) -> Image.Image | None:
    """A picture of this width; None: there is nothing to explain."""
    rows: list[list[_Entry]] = [[]]
    for entry in _entries(samples, scales, width):
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


def _entries(samples: Sequence[Shown], scales: Mapping[str, Scale], width: int) -> list[_Entry]:
    labels = {name for sample in samples for name in sample.labels}
    things = [thing for sample in samples for thing in sample.things]
    entries = []
    if any(len(thing.keypoints) for thing in things):
        entries.append(_marks("keypoints", [("visible", 2), ("occluded", 1)]))
    if any(thing.visible is not None for thing in things) or any(thing.truncated for thing in things):
        entries.append(_after_names())
    if any(len(sample.points) for sample in samples):
        entries.append(_Entry("xy", _RAMP / 2, _draw_points))
    classes = {number: name for sample in samples for number, name in sample.classes.items()}
    if "semantic" in labels:
        swatches = [(name, class_colour_of(number)) for number, name in sorted(classes.items())]
        entries.append(_swatches("semantic", [*swatches, ("no class", NOTHING)], width))
    for name, scale in scales.items():
        entries.append(_Entry(name + (", logarithmic" if scale.logarithmic else ""), _RAMP + 30, _ramp(scale)))
    if labels & {"normal", "normal_camera"}:
        entries.append(_directions("normal: world axes" if "normal" in labels else "normal_camera"))
    if "normal_camera" in labels:
        entries.append(_Entry("normal_camera: x right, y down", 170, _draw_ball))
    if labels & {"flow_forward", "flow_backward"}:
        entries.append(_wheel())
    return entries


def _marks(title: str, marks: Sequence[tuple[str, int]]) -> _Entry:
    def draw(canvas: Canvas, left: float, top: float) -> None:
        for i, (text, visibility) in enumerate(marks):
            keypoint_mark(canvas, left + 7, top + 14 + 20 * i, visibility, as_hex(colour_of(1)), 5)
            canvas.text(left + 20, top + 14 + 20 * i, text, size=_TEXT, colour=DIM)

    return _Entry(title, 20 + max(text_width(text, _TEXT) for text, _ in marks), draw)


def _after_names() -> _Entry:
    lines = ("46%: so much of it is seen", "cut: it reaches out of the image")

    def draw(canvas: Canvas, left: float, top: float) -> None:
        for i, line in enumerate(lines):
            canvas.text(left, top + 14 + 20 * i, line, size=_TEXT, colour=DIM)

    return _Entry("after a name", max(text_width(line, _TEXT) for line in lines), draw)


def _draw_points(canvas: Canvas, left: float, top: float) -> None:
    for i, colour in enumerate(POINT_COLOURS):
        point_mark(canvas, left + 7 + 14 * i, top + 14, colour, 5)
    canvas.text(left, top + 34, "in their order", size=_TEXT, colour=DIM)


def _swatches(title: str, swatches: Sequence[tuple[str, Colour]], width: int) -> _Entry:
    """As many as fit into the width."""
    named = [(fit_text(name, _TEXT, _NAME), as_hex(colour)) for name, colour in swatches]
    column = 40 + max(text_width(name, _TEXT) for name, _ in named)
    room = _ROWS * max(1, int((width + 20) / column))
    if len(named) > room:
        named = [*named[: room - 1], (f"and {len(named) - room + 1} more", "white")]

    def draw(canvas: Canvas, left: float, top: float) -> None:
        for i, (name, colour) in enumerate(named):
            x, y = left + i // _ROWS * column, top + 14 + i % _ROWS * 20
            canvas.chip(x, y - 7, x + 14, y + 7, colour)
            canvas.text(x + 20, y, name, size=_TEXT, colour=DIM)

    return _Entry(title, column * -(-len(named) // _ROWS) - 20, draw)


def _ramp(scale: Scale) -> Callable[[Canvas, float, float], None]:
    def draw(canvas: Canvas, left: float, top: float) -> None:
        colours = ramp()[np.arange(_RAMP) * 256 // _RAMP]
        canvas.put(Image.fromarray(np.repeat(colours[None], 14, axis=0)), left, top + 7)
        for place in (0.0, 0.5, 1.0):
            text = f"{scale.at(place):.3g}" if place < 1 else metres(scale.far)
            canvas.line(
                [(left + place * (_RAMP - 1) + 0.5, top + 21), (left + place * (_RAMP - 1) + 0.5, top + 25)],
                DIM,
            )
            canvas.text(
                left + place * _RAMP,
                top + 34,
                text,
                size=_TEXT,
                colour=DIM,
                anchor=("lm", "mm", "rm")[int(2 * place)],
            )
        canvas.chip(left, top + 47, left + 14, top + 61, as_hex(NOTHING))
        canvas.text(left + 20, top + 54, "nothing there (inf)", size=_TEXT, colour=DIM)

    return draw


def _directions(title: str) -> _Entry:
    def draw(canvas: Canvas, left: float, top: float) -> None:
        for axis in range(3):
            for i, sign in enumerate((1, -1)):
                vector = np.zeros((1, 1, 3), np.float32)
                vector[..., axis] = sign
                red, green, blue = normal_picture(vector)[0, 0].tolist()
                x, y = left + 58 * i, top + 14 + 20 * axis
                canvas.chip(x, y - 7, x + 14, y + 7, as_hex((red, green, blue)))
                canvas.text(x + 20, y, f"{'+-'[i]}{'xyz'[axis]}", size=_TEXT, colour=DIM)

    return _Entry(title, max(text_width(title, _TITLE), 100), draw)


def _draw_ball(canvas: Canvas, left: float, top: float) -> None:
    """A ball as the camera sees it."""
    across = (np.arange(2 * _WHEEL, dtype=np.float32) + 0.5) / _WHEEL - 1
    x, y = np.broadcast_arrays(across[None, :], across[:, None])
    inside = x**2 + y**2 <= 1
    ball = normal_picture(np.stack([x, y, -np.sqrt(np.maximum(1 - x**2 - y**2, 0))], axis=-1))
    ball[~inside] = 255
    canvas.put(Image.fromarray(ball).resize((_WHEEL, _WHEEL), Image.Resampling.LANCZOS), left, top + 4)
    canvas.text(left + _WHEEL + 12, top + 20, "a ball before", size=_TEXT, colour=DIM)
    canvas.text(left + _WHEEL + 12, top + 36, "the camera", size=_TEXT, colour=DIM)


def _wheel() -> _Entry:
    lines = ("the way it goes;", "white: it rests, full colour:", "the longest of its picture")

    def draw(canvas: Canvas, left: float, top: float) -> None:
        wheel = Image.fromarray(wheel_picture(2 * _WHEEL)).resize((_WHEEL, _WHEEL), Image.Resampling.LANCZOS)
        canvas.put(wheel, left, top + 2)
        for i, text in enumerate(lines):
            canvas.text(left + _WHEEL + 12, top + 18 + 16 * i, text, size=_TEXT, colour=DIM)

    return _Entry("flow", _WHEEL + 12 + max(text_width(line, _TEXT) for line in lines), draw)
