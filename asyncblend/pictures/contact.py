"""The contact sheet: for each sample a block of its annotated image and a tile for each label, and a legend."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

from ..errors import ConfigError
from .canvas import DIM, GRID, INK, Canvas, fit_text, text_width
from .colours import Scale
from .drawing import annotated, drawn_picture, fitted
from .legend import legend
from .shown import LABELS, Shown
from .tiles import scales_of, tile

_MARGIN, _GAP, _BLOCK_GAP = 28, 10, 22
_HEADING, _CAPTION, _NOTE = 78, 22, 18
_TEXT = 13
_IMAGE = 640  # the longer side of an image, or nearly so, in pixels as all that follow
_MAX_BLOCK = 1600  # the width of a block, so that its captions are legible when a page shows the sheet
_MAX_ROW = 1400  # the width of a row of blocks without tiles
_MIN_SHEET = 250  # the width of a sheet's content, for its headings
_MOST_ROWS = 6  # of tiles beside an image
_MAX_NOTES = 3  # lines of text under a block


class _Place(NamedTuple):
    left: int
    top: int
    width: int
    height: int


class _Layout(NamedTuple):
    """Where the pictures of a block lie. Above each there is room for a caption."""

    image: _Place
    tiles: list[_Place]
    width: int
    height: int


def contact_sheet(
    items: Iterable[Mapping[str, Any]], title: str, below: str = "", *, steps: Sequence[int | None] | None = None
) -> Image.Image:
    """Draw items into one picture.

    Args:
        items: Values by name, such as the frames of a stream or the samples of a recording, each with its "index".
        title, below: The headings.
        steps: For each item, which step of an episode it is; None if it is no step of one. None: none of them is.

    Raises:
        ConfigError: There are no items.
    """
    samples = [Shown(item) for item in items]
    if not samples:
        raise ConfigError("there is no sample to draw")
    captions = [_heading(sample, step) for sample, step in zip(samples, steps or [None] * len(samples), strict=True)]
    labels = [name for name in LABELS if any(name in sample.labels for sample in samples)]
    names = [*labels, *dict.fromkeys(name for sample in samples for name in sample.pictures)]
    points = list(dict.fromkeys(one.name for sample in samples for one in sample.points))
    scales = scales_of(samples)
    layouts = [_layout(sample.size, len(names)) for sample in samples]
    column = max(layout.width for layout in layouts)
    # Without tiles there are several blocks in a row, so that the sheet is about square.
    across = 1 if names else max(1, min(math.ceil(math.sqrt(len(layouts))), _MAX_ROW // (column + _BLOCK_GAP)))
    width = max(across * (column + _BLOCK_GAP) - _BLOCK_GAP, _MIN_SHEET)
    headings = Canvas(width, _HEADING)
    headings.text(0, 18, fit_text(title, 24, width), size=24)
    headings.text(0, 48, fit_text(below, 15, width), size=15, colour=DIM)
    strips = [headings.picture()]
    for first in range(0, len(samples), across):
        blocks = [
            _block(samples[i], captions[i], names, points, scales, layouts[i], column if across > 1 else width)
            for i in range(first, min(first + across, len(samples)))
        ]
        row = Image.new("RGB", (width, max(block.height for block in blocks)), "white")
        for i, block in enumerate(blocks):
            row.paste(block, (i * (block.width + _BLOCK_GAP), 0))
        strips.append(row)
    if (explained := legend(samples, scales, points, width)) is not None:
        strips += [Image.new("RGB", (width, 1), GRID), explained]
    return _stacked(strips, width)


def _layout(size: tuple[int, int], count: int) -> _Layout:
    """Lay out an image and `count` tiles: a few as large as the image and beside it, more in two or more rows.

    The tiles of an image that is much wider than high are below it.
    """
    width, height = _shown(size)
    if width > 2.2 * height:
        across = max(1, min(count + 1, _MAX_BLOCK // (width + _GAP), math.ceil(math.sqrt(count + 1))))
        places = _grid(count + 1, across, 0, width, height)
        high = math.ceil((count + 1) / across) * (height + _CAPTION + _GAP) - _GAP
        return _Layout(places[0], places[1:], across * (width + _GAP) - _GAP, high)
    for rows in range(1, _MOST_ROWS + 1):
        high = (height + _CAPTION - (rows - 1) * _GAP) // rows - _CAPTION
        wide = round(width * high / height)
        across = math.ceil(count / rows)
        total = width + across * (wide + _GAP)
        if total <= _MAX_BLOCK:
            break
    places = _grid(count, max(across, 1), width + _GAP, wide, high)
    return _Layout(_Place(0, _CAPTION, width, height), places, total, height + _CAPTION)


def _shown(size: tuple[int, int]) -> tuple[int, int]:
    """Return the size in which an image is shown: small ones are enlarged by whole numbers, large ones reduced."""
    scale = _IMAGE / max(size)
    scale = math.floor(scale) if scale >= 1 else scale
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _grid(count: int, across: int, left: int, width: int, height: int) -> list[_Place]:
    right, down = width + _GAP, height + _CAPTION + _GAP
    return [_Place(left + i % across * right, _CAPTION + i // across * down, width, height) for i in range(count)]


def _heading(sample: Shown, step: int | None) -> str:
    return f"sample {sample.index}" if step is None else f"sample {sample.index}, step {step}"


def _block(
    sample: Shown,
    heading: str,
    names: Sequence[str],
    points: Sequence[str],
    scales: Mapping[str, Scale],
    layout: _Layout,
    width: int,
) -> Image.Image:
    notes = _wrapped(sample.rest(), width)
    canvas = Canvas(max(width, layout.width), layout.height + len(notes) * _NOTE + 4 * bool(notes))
    own = "" if sample.name == "image" else f"{sample.name}, "
    size = "no image" if sample.image is None else own + "{1} x {0}".format(*sample.image.shape)
    pictures = [(layout.image, annotated(sample, layout.image.width, layout.image.height, points))]
    _caption(canvas, layout.image, heading, size)
    for name, place in zip(names, layout.tiles, strict=True):
        if name in sample.labels:
            picture, note = tile(sample, name, scales)
            drawn = fitted(picture, place.width, place.height)
        elif name in sample.pictures:
            drawn, note = drawn_picture(sample, name, place.width, place.height, points), sample.pictures[name].note
        else:
            _caption(canvas, place, name, "not in this sample")
            continue
        _caption(canvas, place, name, note)
        ImageDraw.Draw(drawn).rectangle((0, 0, drawn.width - 1, drawn.height - 1), outline=GRID)
        pictures.append((place, drawn))
    for i, line in enumerate(notes):
        canvas.text(0, layout.height + 4 + (i + 0.5) * _NOTE, line, size=_TEXT - 1, colour=DIM)
    block = canvas.picture()
    for place, drawn in pictures:
        block.paste(drawn, (place.left, place.top))
    return block


def _caption(canvas: Canvas, place: _Place, name: str, note: str) -> None:
    """Write the name, and the note on the right if there is room for both. A long name keeps its number, as "[3]"."""
    y = place.top - _CAPTION / 2
    stem, bracket, number = name.rpartition("[")
    if text_width(name, _TEXT) > place.width and bracket:
        name = fit_text(stem, _TEXT, place.width - text_width(bracket + number, _TEXT)) + bracket + number
    canvas.text(place.left, y, fit_text(name, _TEXT, place.width), size=_TEXT, colour=INK)
    if text_width(name, _TEXT) + 8 + text_width(note, _TEXT - 1) <= place.width:
        canvas.text(place.left + place.width, y, note, size=_TEXT - 1, colour=DIM, anchor="rm")


def _wrapped(text: str, width: int) -> list[str]:
    """Return lines of text, broken between words. Text that does not fit into the last one is cut."""
    if not text:
        return []
    lines = ["not drawn:"]
    for word in text.split(" "):
        if text_width(f"{lines[-1]} {word}", _TEXT - 1) <= width:
            lines[-1] += " " + word
        elif len(lines) == _MAX_NOTES:
            lines[-1] = fit_text(f"{lines[-1]} {word} and more", _TEXT - 1, width)
            break
        else:
            lines.append(fit_text(word, _TEXT - 1, width))
    return lines


def _stacked(strips: Sequence[Image.Image], width: int) -> Image.Image:
    height = sum(strip.height for strip in strips) + (len(strips) - 2) * _BLOCK_GAP
    sheet = Image.new("RGB", (width + 2 * _MARGIN, height + 2 * _MARGIN), "white")
    top = _MARGIN
    for i, strip in enumerate(strips):
        sheet.paste(strip, (_MARGIN, top))
        top += strip.height + (_BLOCK_GAP if i else 0)
    return sheet
