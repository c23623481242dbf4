"""Colours of labels: ids, depth, directions and motion as pictures. numpy only.

Colours are chosen in OKLab, in which equal distances look equal (Bjoern Ottosson, "A perceptual color space for
image processing", 2020). Pictures are H x W x 3 uint8, sRGB.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

__all__ = [
    "NOTHING",
    "Colour",
    "Scale",
    "as_hex",
    "class_colour_of",
    "colour_of",
    "depth_picture",
    "depth_scale",
    "flow_longest",
    "flow_picture",
    "hint_of",
    "id_picture",
    "normal_picture",
    "ramp",
    "srgb",
    "wheel_picture",
]

Array = np.ndarray[Any, Any]
Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

NOTHING: Colour = (236, 238, 241)
"""Where a label has nothing to say: no surface, id 0."""

_GOLDEN_ANGLE = math.radians(137.508)  # each next hue is far from all before it
_LIGHTNESS = (0.70, 0.62, 0.78)
_LOGARITHMIC_FROM = 8.0  # far / near


def colour_of(number: int) -> Colour:
    """The colour of an instance's id from 1 on: the same in every picture, unlike those of other ids. 0: `NOTHING`."""
    return NOTHING if number == 0 else _spread(number, 0.18, 4.4)


def class_colour_of(number: int) -> Colour:
    """The same for ids of classes, in quieter colours."""
    return NOTHING if number == 0 else _spread(number, 0.115, 1.7)


@functools.lru_cache(maxsize=4096)
def _spread(number: int, chroma: float, first: float) -> Colour:
    hue = first + number * _GOLDEN_ANGLE
    red, green, blue = _from_oklch(_LIGHTNESS[number % len(_LIGHTNESS)], chroma, hue).tolist()
    return red, green, blue


def as_hex(colour: Colour) -> str:
    """As Pillow and the canvas take it, `#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def hint_of(colour: Colour) -> str:
    """Black or white, whichever is legible on the colour."""
    red, green, blue = colour
    return "#101216" if 0.299 * red + 0.587 * green + 0.114 * blue > 112 else "#ffffff"


def srgb(linear: Array) -> Array:
    """uint8 of linear light, cut to 0..1, as IEC 61966-2-1 encodes it and Blender shows it; NaN: 0."""
    light = np.clip(np.nan_to_num(np.asarray(linear, np.float64)), 0, 1)
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    colours: Array = np.rint(encoded * 255).astype(np.uint8)
    return colours


def id_picture(ids: Array, colour: Callable[[int], Colour] = colour_of) -> Array:
    """An H x W picture of integer ids, each in its colour."""
    different, places = np.unique(ids, return_inverse=True)
    table = np.array([colour(int(number)) for number in different], np.uint8).reshape(-1, 3)
    picture: Array = table[places.reshape(ids.shape)]
    return picture


class Scale(NamedTuple):
    """From lengths to colours."""

    near: float
    far: float
    logarithmic: bool

    def place(self, lengths: Array) -> Array:
        """Where on the ramp: 0 near, 1 far, and cut off beyond."""
        if not self.far > self.near:
            return np.zeros(lengths.shape, np.float32)
        if self.logarithmic:
            ratio = np.log(np.maximum(lengths, self.near) / self.near) / math.log(self.far / self.near)
        else:
            ratio = (lengths - self.near) / (self.far - self.near)
        places: Array = np.clip(ratio, 0, 1)
        return places

    def at(self, ratio: float) -> float:
        """The length at a place of the ramp."""
        if self.logarithmic:
            return float(self.near * (self.far / self.near) ** ratio)
        return self.near + ratio * (self.far - self.near)


def depth_scale(depth: Array) -> Scale | None:
    """From the least to the greatest finite value; logarithmic if these are far apart. None: nothing is finite."""
    finite = depth[np.isfinite(depth)]
    if finite.size == 0:
        return None
    near, far = float(finite.min()), float(finite.max())
    return Scale(near, far, near > 0 and far > _LOGARITHMIC_FROM * near)


def depth_picture(depth: Array, scale: Scale | None = None) -> Array:
    """H x W lengths on a ramp whose lightness falls evenly from near to far. What is not finite: `NOTHING`.

    Args:
        scale: default: the picture's own `depth_scale`.
    """
    scale = scale or depth_scale(depth)
    finite = np.isfinite(depth)
    picture = np.empty((*depth.shape, 3), np.uint8)
    picture[...] = NOTHING
    if scale is not None:
        places = scale.place(depth[finite].astype(np.float64))
        picture[finite] = ramp()[np.rint(places * 255).astype(np.intp)]
    return picture


@functools.cache
def ramp() -> Array:
    """The 256 colours from near to far: pale yellow, orange, red, purple, dark blue; each darker than the last."""
    along = np.linspace(0, 1, 256)
    lightness = 0.94 - 0.68 * along
    chroma = np.interp(along, [0, 0.3, 0.6, 1], [0.10, 0.155, 0.175, 0.10])
    hue = np.radians(np.interp(along, [0, 0.3, 0.55, 0.8, 1], [102, 65, 15, -45, -78]))
    return _from_oklch(lightness, chroma, hue)


def normal_picture(normals: Array) -> Array:
    """H x W x 3 unit vectors as (n + 1) / 2: x red, y green, z blue; no surface (0 0 0): middle grey."""
    picture: Array = np.clip(np.rint((normals.astype(np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)
    return picture


def flow_longest(flow: Array) -> float:
    """The length in pixels of the longest finite vector of an H x W x 2 flow; 0 for none."""
    lengths = np.hypot(flow[..., 0], flow[..., 1])
    lengths = lengths[np.isfinite(lengths)]
    return float(lengths.max()) if lengths.size else 0.0


def flow_picture(flow: Array, longest: float | None = None) -> Array:
    """H x W x 2 vectors by the colour wheel: the hue is the direction, the saturation the length; no motion: white.

    The wheel is the one of S. Baker et al., "A Database and Evaluation Methodology for Optical Flow" (IJCV 2011): six
    transitions between the primary and secondary colours, each as long as the eye can tell its hues apart. Right is
    red, down yellow, left cyan to blue, up violet.

    Args:
        longest: the length in pixels that is fully saturated; default: that of the longest vector.
    """
    longest = flow_longest(flow) if longest is None else longest
    x, y = (np.nan_to_num(flow[..., i].astype(np.float32), posinf=0, neginf=0) for i in (0, 1))
    lengths = np.hypot(x, y)[..., None] / (longest or 1.0)
    wheel = _wheel()
    turn = np.arctan2(y, x) / (2 * math.pi) * len(wheel)
    low = np.floor(turn).astype(np.intp)
    part = (turn - low)[..., None]
    hue = (1 - part) * wheel[low % len(wheel)] + part * wheel[(low + 1) % len(wheel)]
    # Within the scale towards white, beyond it darker.
    colour = np.where(lengths <= 1, 1 - lengths * (1 - hue), 0.75 * hue)
    picture: Array = np.rint(colour * 255).astype(np.uint8)
    return picture


def wheel_picture(size: int) -> Array:
    """The wheel itself as a legend: each pixel has the colour of the vector from the centre to it; white around."""
    across = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    vectors = np.stack(np.broadcast_arrays(across[None, :], across[:, None]), axis=-1)
    picture = flow_picture(vectors, 1.0)
    picture[np.hypot(vectors[..., 0], vectors[..., 1]) > 1] = 255
    return picture


@functools.cache
def _wheel() -> Array:
    """N x 3 colours in 0..1: from red by yellow, green, cyan, blue and magenta back to red."""
    corners = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1]], np.float32)
    steps = (15, 6, 4, 11, 13, 6)
    return np.concatenate(
        [
            start + (end - start) * (np.arange(count, dtype=np.float32) / count)[:, None]
            for start, end, count in zip(corners, np.roll(corners, -1, axis=0), steps, strict=True)
        ]
    )


def _from_oklch(lightness: Any, chroma: Any, hue: Any) -> Array:
    """sRGB uint8 of colours in OKLab's polar form; a colour that sRGB has not gets less chroma, hue and lightness stay."""
    lightness, chroma, hue = np.broadcast_arrays(*map(np.asarray, (lightness, chroma, hue)))
    share = np.ones(chroma.shape)
    while (outside := ~_in_gamut(_linear(lightness, chroma * share, hue))).any():
        share = np.where(outside, share * 0.96, share)
    return srgb(_linear(lightness, chroma * share, hue))


def _in_gamut(linear: Array) -> Array:
    inside: Array = ((linear >= -1e-3) & (linear <= 1 + 1e-3)).all(axis=-1)
    return inside


def _linear(lightness: Array, chroma: Array, hue: Array) -> Array:
    """Linear sRGB of OKLab; the matrices are from its description."""
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=-1)
    cones = lab @ np.array(
        [
            [1.0, 1.0, 1.0],
            [0.3963377774, -0.1055613458, -0.0894841775],
            [0.2158037573, -0.0638541728, -1.2914855480],
        ]
    )
    linear: Array = cones**3 @ np.array(
        [
            [4.0767416621, -1.2684380046, -0.0041960863],
            [-3.3077115913, 2.6097574011, -0.7034186147],
            [0.2309699292, -0.3413193965, 1.7076147010],
        ]
    )
    return linear
