"""Drawing: annotations on the image that they belong to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from .canvas import Canvas, Colour, text_width
from .colours import Array, colour_of, hint_of, id_picture
from .points import Points
from .shown import Shown, Thing

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

POINT_COLOURS = ("#ff5d5d", "#ffb13d", "#f4ee4e", "#67e480", "#45d9e8", "#5b8cff", "#b678ff", "#ff7ad1")

_DARK, _SHADE, _LIGHT_SHADE = "#101216", "#10121690", "#10121648"
_FILL, _LINE = 72, 225  # alpha of a mask, and of its outline
_TEXT, _SMALL_TEXT = 12, 10
_FEW, _FEW_KEYPOINTS = 14, 60  # if there are more, they are drawn smaller


def annotated(sample: Shown, width: int, height: int, names: Sequence[str] | None = None) -> Image.Image:
    """Return the sample's image in this size, with masks, boxes, keypoints, points and names drawn on it.

    Args:
        names: As `draw_points` takes them. None: those of the sample.
    """
    base = _ground(sample, width, height)
    if sample.ids:
        base.paste(mask := _masks(sample, width, height), (0, 0), mask)
    marks = Canvas(width, height, None)
    scale = width / sample.size[0]
    for thing in sample.things:
        _boxes(marks, thing, scale)
    total = sum(len(thing.keypoints) for thing in sample.things)
    radius = (4.2 if total <= _FEW_KEYPOINTS else 2.6) * min(1.0, max(width, height) / 480)
    for thing in sample.things:
        _keypoints(marks, thing, scale, radius)
    names = [one.name for one in sample.points] if names is None else names
    draw_points(marks, sample.points_on(sample.name), scale, names)
    _names(marks, sample.things, scale)
    base.paste(layer := marks.picture(), (0, 0), layer)
    return base


def drawn_picture(sample: Shown, name: str, width: int, height: int, names: Sequence[str]) -> Image.Image:
    """Return another image of the sample, as large as it can be within this size, with the points that belong to it."""
    picture = sample.pictures[name]
    scale = min(width / picture.size[0], height / picture.size[1])
    size = [max(1, round(side * scale)) for side in picture.size]
    base = _opaque(fitted(picture.pixels, size[0], size[1]))
    if points := sample.points_on(name):
        marks = Canvas(base.width, base.height, None)
        draw_points(marks, points, scale, names)
        base.paste(layer := marks.picture(), (0, 0), layer)
    return base


def draw_points(canvas: Canvas, points: Sequence[Points], scale: float, names: Sequence[str]) -> None:
    """Draw points: all of one name in its colour, or if the sheet has only one name, in the colours of their order.

    Args:
        names: The names of all points of the sheet.
    """
    size = min(1.0, max(0.5, max(canvas.width, canvas.height) / 480))
    for one in sorted(points, key=lambda one: -len(one.rows)):  # few are drawn over many, and larger
        radius = size * (5.0 if len(one.rows) <= _FEW_KEYPOINTS else 3.0)
        for i, (x, y, visibility) in enumerate(one.rows.tolist()):
            number = i if len(names) == 1 else names.index(one.name)
            if visibility > 0:
                colour = POINT_COLOURS[number % len(POINT_COLOURS)]
                point_mark(canvas, x * scale, y * scale, colour, radius, hollow=visibility < 2)


def fitted(picture: Array, width: int, height: int) -> Image.Image:
    """Return a picture in another size. Enlarged pixels stay sharp squares; a smaller picture has their averages."""
    larger = width >= picture.shape[1]
    how = Image.Resampling.NEAREST if larger else Image.Resampling.LANCZOS
    return Image.fromarray(picture).resize((width, height), how)


def point_mark(canvas: Canvas, x: float, y: float, colour: Colour, radius: float, *, hollow: bool = False) -> None:
    """Draw a point that belongs to no object. It is hollow if it is occluded."""
    if hollow:
        canvas.ring(x, y, radius + 1, _DARK, 0.6 * (radius + 1))
        canvas.ring(x, y, radius, colour, 0.36 * radius)
    else:
        canvas.disc(x, y, radius + 1, _DARK)
        canvas.disc(x, y, radius - 0.5, colour)


def keypoint_mark(canvas: Canvas, x: float, y: float, visibility: float, colour: Colour, radius: float) -> None:
    """Draw a keypoint with a rim of its object's colour: filled with white if visible (2), hollow if occluded (1)."""
    if visibility >= 2:
        canvas.disc(x, y, radius + 1, _DARK)
        canvas.disc(x, y, radius, colour)
        canvas.disc(x, y, radius - 1.5, "#ffffff")
    else:
        canvas.ring(x, y, radius + 1, _DARK, 3)
        canvas.ring(x, y, radius, colour, 1.5)


def _ground(sample: Shown, width: int, height: int) -> Image.Image:
    """Return the image alone."""
    if sample.image is None:
        return Image.new("RGB", (width, height), "#d5d9de")
    return _opaque(fitted(sample.image, width, height))


def _opaque(base: Image.Image) -> Image.Image:
    """Return a picture in which a grey chessboard is visible wherever it is transparent."""
    if base.mode != "RGBA":
        return base
    y, x = np.mgrid[: base.height, : base.width] // 8
    board = Image.fromarray(np.where((x + y) % 2, 225, 245).astype(np.uint8)).convert("RGBA")
    return Image.alpha_composite(board, base).convert("RGB")


def _masks(sample: Shown, width: int, height: int) -> Image.Image:
    """Return a transparent layer with each mask in its object's colour, and an outline inside it."""
    large = (2 * height, 2 * width)
    ids = sample.labels["instance"]
    ids = ids[np.ix_(*(np.arange(n) * size // n for n, size in zip(large, ids.shape, strict=True)))]
    ids = np.where(np.isin(ids, sample.ids), ids, 0)
    edge = np.zeros(ids.shape, bool)
    for turned, edge_turned in ((ids, edge), (ids.T, edge.T)):
        for i in (1, 2, 3):
            differs = turned[i:] != turned[:-i]
            edge_turned[i:] |= differs
            edge_turned[:-i] |= differs
    alpha = np.where(ids == 0, 0, np.where(edge, _LINE, _FILL)).astype(np.uint8)
    return Image.fromarray(np.dstack([id_picture(ids), alpha])).resize((width, height), Image.Resampling.BOX)


def _boxes(canvas: Canvas, thing: Thing, scale: float) -> None:
    colour = colour_of(thing.id)
    for line in (thing.lines * scale).tolist():
        canvas.line(line, _LIGHT_SHADE, 2.5)
        canvas.line(line, colour, 1)
    if thing.box is not None:
        left, top, right, bottom = _edges(thing.box, scale)
        canvas.frame(left - 1, top - 1, right + 1, bottom + 1, _SHADE, 3.5)
        canvas.frame(left, top, right, bottom, colour, 1.5)


def _keypoints(canvas: Canvas, thing: Thing, scale: float, radius: float) -> None:
    colour, points = colour_of(thing.id), thing.keypoints
    for a, b in thing.skeleton:
        if max(a, b) < len(points) and points[a, 2] > 0 and points[b, 2] > 0:
            line = (points[[a, b], :2] * scale).tolist()
            canvas.line(line, _SHADE, 3.5)
            canvas.line(line, colour, 2)
    for x, y, visibility in points.tolist():
        if visibility > 0:
            keypoint_mark(canvas, x * scale, y * scale, visibility, colour, radius)


def _names(canvas: Canvas, things: Sequence[Thing], scale: float) -> None:
    """Write the name of each box on a chip if there is room for one. Larger boxes come first, and no chips overlap."""
    chips: list[Box] = []
    boxed = [(thing, thing.box) for thing in things if thing.box is not None]
    few = len(boxed) <= _FEW
    size = _TEXT if few else _SMALL_TEXT
    for thing, box in sorted(boxed, key=lambda pair: -pair[1][2] * pair[1][3]):
        colour = colour_of(thing.id)
        for text in _texts(thing, few):
            wide, high = text_width(text, size) + 8, size + 4
            around = _positions(_edges(box, scale), wide, high, canvas.width, canvas.height)
            if chip := next((one for one in around if not any(_overlap(one, other) for other in chips)), None):
                canvas.chip(*chip, colour)
                canvas.text(chip[0] + 4, (chip[1] + chip[3]) / 2, text, size=size, colour=hint_of(colour))
                chips.append(chip)
                break


def _texts(thing: Thing, few: bool) -> list[str]:
    """Return the texts for a chip, the longest first. If there are many chips, they say less."""
    seen = f"{thing.visible:.0%} visible" if thing.visible is not None and thing.visible < 0.995 else ""
    parts = [thing.name, thing.class_name, ", ".join(filter(None, (seen, "cut" if thing.truncated else "")))]
    full = " · ".join(part for part in parts if part)
    short = next((part for part in parts if part), "")
    return list(dict.fromkeys(text for text in (full if few else "", short, str(thing.id)) if text))


def _positions(box: Box, wide: float, high: float, width: int, height: int) -> list[Box]:
    """Return where a chip may lie in the image, the best first: above the box, below it, inside it, beside it."""
    left, top, right, bottom = box
    outside = [(left, top - high), (left, bottom), (right - wide, top - high), (right - wide, bottom)]
    corners = [*outside, (left, top), (left, bottom - high), (right, top), (left - wide, top)]
    inside = [(min(max(x, 0), width - wide), y) for x, y in corners if 0 <= y <= height - high and wide <= width]
    return [(x, y, x + wide, y + high) for x, y in inside]


def _edges(box: Array, scale: float) -> Box:
    x, y, wide, high = (box * scale).tolist()
    return x, y, x + wide, y + high


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
