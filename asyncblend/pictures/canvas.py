"""Canvas: a picture to draw lines, marks and text on. Pillow only."""

from __future__ import annotations

import bisect
import functools
import unicodedata
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

INK, DIM, GRID = "#1f2328", "#656d76", "#e4e7eb"
Colour = str | tuple[int, int, int]

_SCALE = 2  # everything is drawn larger and then reduced, so that lines are smooth
_NOT_ASCII = "·…°±"  # what Pillow's own font has besides ASCII


class Canvas:
    """A picture that is drawn on. (0, 0) is the outer corner of the top-left pixel.

    Args:
        width, height: In pixels.
        colour: The background. None is transparent.
    """

    def __init__(self, width: int, height: int, colour: Colour | None = "white") -> None:
        self.width: int = width
        self.height: int = height
        size = (width * _SCALE, height * _SCALE)
        self._image = Image.new("RGBA", size, (0, 0, 0, 0)) if colour is None else Image.new("RGB", size, colour)
        self._draw = ImageDraw.Draw(self._image)

    def text(self, x: float, y: float, text: str, *, size: int = 15, colour: Colour = INK, anchor: str = "lm") -> None:
        """Write a line of text. `anchor` says which point of the text is at (x, y), in Pillow's notation."""
        self._draw.text((x * _SCALE, y * _SCALE), _writable(text), fill=colour, font=_font(size), anchor=anchor)

    def line(self, points: Sequence[tuple[float, float]], colour: Colour, width: float = 1) -> None:
        """Connect points."""
        scaled = [(x * _SCALE, y * _SCALE) for x, y in points]
        self._draw.line(scaled, fill=colour, width=round(width * _SCALE), joint="curve")

    def chip(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        """Fill a rectangle with rounded corners."""
        self._draw.rounded_rectangle(_within(left, top, right, bottom), radius=3 * _SCALE, fill=colour)

    def frame(self, left: float, top: float, right: float, bottom: float, colour: Colour, width: float = 1) -> None:
        """Draw the outline of a rectangle. The line lies inside it."""
        self._draw.rectangle(_within(left, top, right, bottom), outline=colour, width=round(width * _SCALE))

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """Fill a circle."""
        self._draw.ellipse(_around(x, y, radius), fill=colour)

    def ring(self, x: float, y: float, radius: float, colour: Colour, width: float) -> None:
        """Draw the outline of a circle. The line lies inside it."""
        self._draw.ellipse(_around(x, y, radius), outline=colour, width=round(width * _SCALE))

    def put(self, picture: Image.Image, left: float, top: float) -> None:
        """Paste a picture. Its pixels stay sharp."""
        large = picture.resize((picture.width * _SCALE, picture.height * _SCALE), Image.Resampling.NEAREST)
        self._image.paste(large, (round(left * _SCALE), round(top * _SCALE)))

    def picture(self) -> Image.Image:
        """Return what was drawn."""
        # On a transparent background LANCZOS would leave a faint rim around what was drawn.
        how = Image.Resampling.HAMMING if self._image.mode == "RGBA" else Image.Resampling.LANCZOS
        return self._image.resize((self.width, self.height), how)


def text_width(text: str, size: int) -> float:
    """Return the width of a line of text in pixels."""
    return float(_font(size).getlength(_writable(text))) / _SCALE


def fit_text(text: str, size: int, width: float) -> str:
    """Return the text, or as much of its beginning as fits into `width` pixels, with dots at its end."""
    if text_width(text, size) <= width:
        return text
    # With no letter at all, at least the dots are left.
    kept = bisect.bisect_right(range(1, len(text) + 1), width, key=lambda n: text_width(text[:n].rstrip() + "…", size))
    return text[:kept].rstrip() + "…"


def _within(left: float, top: float, right: float, bottom: float) -> tuple[float, float, float, float]:
    """Return the first and last pixels of a rectangle, at least one: Pillow draws both."""
    left, top = left * _SCALE, top * _SCALE
    return left, top, max(left, right * _SCALE - 1), max(top, bottom * _SCALE - 1)


def _around(x: float, y: float, radius: float) -> tuple[int, int, int, int]:
    """Return the first and last pixels of a circle: Pillow counts them in whole numbers and draws both."""
    left, top = round((x - radius) * _SCALE), round((y - radius) * _SCALE)
    across = round(2 * radius * _SCALE) - 1
    return left, top, left + across, top + across


@functools.cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size * _SCALE)


def _writable(text: str) -> str:
    """Return text that the font has: without accents, and with "?" for other letters and line breaks."""
    kept = []
    for letter in text:
        ascii_only = [part for part in unicodedata.normalize("NFKD", letter) if part.isascii() and part.isprintable()]
        kept.append(letter if letter in _NOT_ASCII else "".join(ascii_only) or "?")
    return "".join(kept)
