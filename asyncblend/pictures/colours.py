"""Colours of labels: ids, depths, directions and motion as pictures of H x W x 3 uint8, sRGB. numpy only.

Colours are chosen in OKLab, where equal distances look equal (Bjoern Ottosson, "A perceptual color space for image
processing", 2020).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

NOTHING: Colour = (236, 238, 241)
"""The colour where a label says nothing: no surface, or id 0."""

_GOLDEN_ANGLE = math.radians(137.508)  # each hue is far from all hues before it
_LIGHTNESS = (0.70, 0.62, 0.78)
# OKLab's matrices, from its description.
_LAB_TO_CONES = np.array(
    [[1, 1, 1], [0.3963377774, -0.1055613458, -0.0894841775], [0.2158037573, -0.0638541728, -1.2914855480]]
)
_CONES_TO_LINEAR = np.array(
    [
        [4.0767416621, -1.2684380046, -0.0041960863],
        [-3.3077115913, 2.6097574011, -0.7034186147],
        [0.2309699292, -0.3413193965, 1.7076147010],
    ]
)
_LOGARITHMIC_FROM = 8.0  # far / near


def colour_of(number: int) -> Colour:
    """Return the colour of an object id, which is the same in every picture. 0 has the colour `NOTHING`."""
    return NOTHING if number == 0 else _spread(number, 0.18, 4.4)


def class_colour_of(number: int) -> Colour:
    """Return the colour of a class id, quieter than those of objects. 0 has the colour `NOTHING`."""
    return NOTHING if number == 0 else _spread(number, 0.115, 1.7)


@functools.lru_cache(maxsize=4096)
def _spread(number: int, chroma: float, first: float) -> Colour:
    hue = first + number * _GOLDEN_ANGLE
    red, green, blue = _from_oklch(_LIGHTNESS[number % len(_LIGHTNESS)], chroma, hue).tolist()
    return red, green, blue


def hint_of(colour: Colour) -> str:
    """Return black or white, whichever is legible on the colour."""
    red, green, blue = colour
    return "#101216" if 0.299 * red + 0.587 * green + 0.114 * blue > 112 else "#ffffff"


def srgb(linear: Array) -> Array:
    """Return linear light, cut to 0..1, as uint8 encoded by IEC 61966-2-1, as Blender shows it. NaN becomes 0."""
    light = np.clip(np.nan_to_num(np.asarray(linear, np.float64)), 0, 1)
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(encoded * 255), np.uint8)


def id_picture(ids: Array, colour: Callable[[int], Colour] = colour_of) -> Array:
    """Return a picture of H x W integer ids, each in its colour."""
    unique, inverse = np.unique(ids, return_inverse=True)
    table = np.array([colour(int(number)) for number in unique], np.uint8).reshape(-1, 3)
    return np.asarray(table[inverse.reshape(ids.shape)])


class Scale(NamedTuple):
    """How lengths become positions on the ramp, from 0, near, to 1, far."""

    near: float
    far: float
    logarithmic: bool

    def position(self, lengths: Array) -> Array:
        """Return the position of each length, cut to 0..1."""
        if not self.far > self.near:
            return np.zeros(lengths.shape, np.float32)
        if self.logarithmic:
            near, far, along = math.log(self.near), math.log(self.far), np.log(np.maximum(lengths, self.near))
        else:
            size = max(abs(self.near), abs(self.far))  # by which all are divided, as a difference may be past float64
            near, far, along = self.near / size, self.far / size, lengths / size
        return np.asarray(np.clip((along - near) / (far - near), 0, 1))

    def at(self, position: float) -> float:
        """Return the length at a position."""
        if self.logarithmic:
            return math.exp((1 - position) * math.log(self.near) + position * math.log(self.far))
        return (1 - position) * self.near + position * self.far


def depth_scale(depth: Array) -> Scale | None:
    """Return the scale of all finite values, logarithmic if they are far apart, or None if no value is finite."""
    finite = depth[np.isfinite(depth)]
    if finite.size == 0:
        return None
    near, far = float(finite.min()), float(finite.max())
    return Scale(near, far, near > 0 and far > _LOGARITHMIC_FROM * near)


def depth_picture(depth: Array, scale: Scale | None = None) -> Array:
    """Return a picture of H x W lengths, by default on their `depth_scale`. Where one is not finite, it is `NOTHING`."""
    scale = scale or depth_scale(depth)
    finite = np.isfinite(depth)
    picture = np.full((*depth.shape, 3), NOTHING, np.uint8)
    if scale is not None:
        positions = scale.position(depth[finite].astype(np.float64))
        picture[finite] = ramp()[np.rint(positions * 255).astype(np.intp)]
    return picture


@functools.cache
def ramp() -> Array:
    """Return 256 colours from near to far: pale yellow, orange, red, purple, dark blue. They darken evenly."""
    along = np.linspace(0, 1, 256)
    lightness = 0.94 - 0.68 * along
    chroma = np.interp(along, [0, 0.3, 0.6, 1], [0.10, 0.155, 0.175, 0.10])
    hue = np.radians(np.interp(along, [0, 0.3, 0.55, 0.8, 1], [102, 65, 15, -45, -78]))
    return _from_oklch(lightness, chroma, hue)


def normal_picture(normals: Array) -> Array:
    """Return a picture of H x W x 3 unit vectors: x is red, y green, z blue. The vector 0, and NaN, is middle grey."""
    finite = np.nan_to_num(normals.astype(np.float32), posinf=1, neginf=-1)
    return np.asarray(np.clip(np.rint((finite + 1) * 127.5), 0, 255), np.uint8)


def flow_longest(flow: Array) -> float:
    """Return the length in pixels of the longest finite vector of an H x W x 2 flow, or 0 without any."""
    with np.errstate(over="ignore"):  # a length that float32 does not have is not finite
        lengths = np.hypot(flow[..., 0], flow[..., 1]).astype(np.float32)
    return float(lengths[np.isfinite(lengths)].max(initial=0.0))


def flow_picture(flow: Array, longest: float | None = None) -> Array:
    """Return a picture of H x W x 2 vectors: the hue is the direction, the saturation the length, and white no motion.

    The hues are those of S. Baker et al., "A Database and Evaluation Methodology for Optical Flow" (IJCV 2011): right
    is red, down yellow, left cyan to blue, up violet. A vector of `longest` pixels, by default the longest, is fully
    saturated.
    """
    longest = flow_longest(flow) if longest is None else longest
    with np.errstate(over="ignore"):
        x, y = (np.nan_to_num(flow[..., i].astype(np.float32), posinf=0, neginf=0) for i in (0, 1))
        lengths = np.minimum(np.hypot(x, y)[..., None] / (longest or 1.0), 2.0)
    wheel = _wheel()
    turn = np.arctan2(y, x) / (2 * math.pi) * len(wheel)
    low = np.floor(turn).astype(np.intp)
    part = (turn - low)[..., None]
    hue = (1 - part) * wheel[low % len(wheel)] + part * wheel[(low + 1) % len(wheel)]
    # Shorter vectors are whiter, and those beyond the scale are darker.
    colour = np.where(lengths <= 1, 1 - lengths * (1 - hue), 0.75 * hue)
    return np.asarray(np.rint(colour * 255), np.uint8)


def wheel_picture(size: int) -> Array:
    """Return the colour wheel: each pixel has the colour of the vector from the centre to it. Around it is white."""
    across = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    vectors = np.stack(np.broadcast_arrays(across[None, :], across[:, None]), axis=-1)
    picture = flow_picture(vectors, 1.0)
    picture[np.hypot(vectors[..., 0], vectors[..., 1]) > 1] = 255
    return picture


@functools.cache
def _wheel() -> Array:
    """Return 55 x 3 colours in 0..1: red, yellow, green, cyan, blue, magenta, and what is between them."""
    corners = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1], [1, 0, 0]])
    at = np.cumsum((0, 15, 6, 4, 11, 13, 6))  # between two colours, as many as the eye can tell apart
    channels = [np.interp(np.arange(at[-1]), at, channel) for channel in corners.T]
    return np.stack(channels, axis=-1).astype(np.float32)


def _from_oklch(lightness: Any, chroma: Any, hue: Any) -> Array:
    """Return colours in OKLab's polar form as sRGB uint8. A colour that sRGB does not have gets less chroma."""
    lightness, chroma, hue = np.broadcast_arrays(*map(np.asarray, (lightness, chroma, hue)))
    share = np.ones(chroma.shape)
    while True:
        lab = np.stack([lightness, chroma * share * np.cos(hue), chroma * share * np.sin(hue)], axis=-1)
        linear = (lab @ _LAB_TO_CONES) ** 3 @ _CONES_TO_LINEAR
        outside = ((linear < -1e-3) | (linear > 1 + 1e-3)).any(axis=-1)
        if not outside.any():
            return srgb(linear)
        share = np.where(outside, share * 0.96, share)
