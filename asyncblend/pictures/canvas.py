"""Canvas: a white picture to write and draw on, for charts and for contact sheets. Pillow only."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

__all__ = ["DIM", "GRID", "INK", "Canvas", "fit_text", "text_width"]

INK, DIM, GRID = "#1f2328", "#656d76", "#e4e7eb"

_SCALE = 2  # drawn larger, then made smaller, so that lines are smooth
_MARGIN = 40
_NOT_ASCII_BUT_THERE = "·…°±"
"""What Pillow's own font has beside ASCII."""


class Canvas:
    """A picture, drawn on in its final coordinates: (0, 0) is the outer corner of the top-left pixel.

    Args:
        width, height: in pixels.
        colour: of the ground; None: transparent.
    """

    def __init__(self, width: int, height: int, colour: str | None = "white") -> None:
        self.width, self.height = width, height
        size = (width * _SCALE, height * _SCALE)
        if colour is None:
            self._image = Image.new("RGBA", size, (0, 0, 0, 0))
        else:
            self._image = Image.new("RGB", size, colour)
        self._draw = ImageDraw.Draw(self._image)

    def text(self, x: float, y: float, text: str, *, size: int = 15, colour: str = INK, anchor: str = "lm") -> None:
        """Write a line of text at a point, which is where in the text `anchor` says (as Pillow has it)."""
        at = (x * _SCALE, y * _SCALE)
        self._draw.text(at, _writable(text), fill=colour, font=_font(size), anchor=anchor)

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float = 1) -> None:
        """Connect points."""
        scaled = [(x * _SCALE, y * _SCALE) for x, y in points]
        self._draw.line(scaled, fill=colour, width=round(width * _SCALE), joint="curve")

    def box(self, left: float, top: float, right: float, bottom: float, colour: str) -> None:
        """Fill a rectangle, at least a pixel wide."""
        corners = (left * _SCALE, top * _SCALE, max(left + 1, right) * _SCALE, bottom * _SCALE)
        self._draw.rectangle(corners, fill=colour)

    def chip(self, left: float, top: float, right: float, bottom: float, colour: str) -> None:
        """Fill a rectangle with rounded corners."""
        corners = (left * _SCALE, top * _SCALE, right * _SCALE - 1, bottom * _SCALE - 1)
        self._draw.rounded_rectangle(corners, radius=3 * _SCALE, fill=colour)

    def frame(self, left: float, top: float, right: float, bottom: float, colour: str, width: float = 1) -> None:
        """The outline of a rectangle; the line lies within it."""
        corners = (left * _SCALE, top * _SCALE, right * _SCALE - 1, bottom * _SCALE - 1)
        self._draw.rectangle(corners, outline=colour, width=round(width * _SCALE))

    def disc(self, x: float, y: float, radius: float, colour: str) -> None:
        """Fill a circle."""
        self._draw.ellipse(_around(x, y, radius), fill=colour)

    def ring(self, x: float, y: float, radius: float, colour: str, width: float) -> None:
        """A circle's line, which lies within the radius."""
        self._draw.ellipse(_around(x, y, radius), outline=colour, width=round(width * _SCALE))

    def put(self, picture: Image.Image, left: float, top: float) -> None:
        """Lay a picture on, enlarged without smoothing to what the canvas draws in."""
        large = picture.resize((picture.width * _SCALE, picture.height * _SCALE), Image.Resampling.NEAREST)
        self._image.paste(large, (round(left * _SCALE), round(top * _SCALE)))

    def title(self, title: str, below: str) -> None:
        """At the top: 80 pixels."""
        self.text(_MARGIN, 34, title, size=24)
        self.text(_MARGIN, 66, below, size=16, colour=DIM)

    def picture(self) -> Image.Image:
        """What was drawn, in its final size."""
        # On a transparent ground LANCZOS would leave a faint rim around what was drawn.
        how = Image.Resampling.HAMMING if self._image.mode == "RGBA" else Image.Resampling.LANCZOS
        return self._image.resize((self.width, self.height), how)

    def save(self, path: Path) -> None:
        """Write the picture."""
        self.picture().save(path, optimize=True)


def text_width(text: str, size: int) -> float:
    """Width in pixels of a line of text."""
    return float(_font(size).getlength(_writable(text))) / _SCALE


def fit_text(text: str, size: int, width: float) -> str:
    """The text, or as much of it as is not wider than `width`, with dots at its end."""
    if text_width(text, size) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if text_width(text[:middle].rstrip() + "…", size) <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + "…"


def _around(x: float, y: float, radius: float) -> tuple[int, int, int, int]:
    """The pixels from the first to the last of a circle: Pillow counts them in whole numbers, both included."""
    left, top = round((x - radius) * _SCALE), round((y - radius) * _SCALE)
    across = round(2 * radius * _SCALE) - 1
    return left, top, left + across, top + across


@functools.cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size * _SCALE)


def _writable(text: str) -> str:
    """What the font can write in a line: accents dropped, anything else that it has not as "?"."""
    if text.isascii() and text.isprintable():
        return text
    kept = []
    for letter in text:
        if letter in _NOT_ASCII_BUT_THERE or (letter.isascii() and letter.isprintable()):
            kept.append(letter)
        else:
            parts = unicodedata.normalize("NFKD", letter)
            kept.append("".join(part for part in parts if part.isascii() and part.isprintable()) or "?")
    return "".join(kept)
