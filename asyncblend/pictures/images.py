"""Images: which values of an item are pictures, whatever their names are, and how each of them is shown.

A picture is an array of H x W, or H x W x C with 1 to 4 channels, whose sides have 16 pixels at least: shorter ones are
tables of numbers, such as matrices and boxes. Stacks of pictures are N x H x W and N x H x W x C. Its values say what
it is:

    light    bytes, bools, and floats without negative values, which are linear light, in grey or colour
    ids      whole numbers, each in its colour; bytes too, if they are all so small that a grey picture would be black
    values   other numbers, such as depths: from the least, pale, to the greatest, dark
    vectors  three or four floats of which some are negative, such as normals
    flow     two floats
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from . import colours
from .colours import Array, Scale, flow_longest, srgb

_LEAST = 16  # pixels of a side
_MOST = 24  # pictures of a sample; more would be too small to be seen
_MAX_SIDE = 640  # pixels that are kept of what is not shown as it is; a tile shows no more, and many samples fit
_MAX_DEPTH = 4  # of lists and dicts in each other
_DARK = 32  # in grey, nobody can tell bytes below this from each other
_MOST_IDS = 256  # in one picture; of more, nobody could tell the colours


class Picture(NamedTuple):
    """An array as it is shown."""

    array: Array
    """As the item has it."""
    pixels: Array
    """H x W x 3 or 4 uint8, with fewer pixels than the array if that is large."""
    kind: str
    """One of the words above."""
    note: str
    """What the colours do not say, such as the range of values."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the array."""
        return self.array.shape[1], self.array.shape[0]


def image_of(value: Any) -> Array | None:
    """Return H x W x 3 or 4 uint8 of an image of bytes, bools or linear floats, in grey or colour; None of others."""
    if not isinstance(value, np.ndarray) or not value.size or value.ndim not in (2, 3):
        return None
    value = value[..., None] if value.ndim == 2 else value
    if value.shape[2] not in (1, 3, 4):
        return None
    if value.dtype.kind == "f":
        opaque = np.rint(np.clip(np.nan_to_num(value[..., 3:]), 0, 1) * 255).astype(np.uint8)
        value = np.concatenate([srgb(value[..., :3]), opaque], axis=-1)
    elif value.dtype == np.bool_:
        value = value.astype(np.uint8) * 255
    elif value.dtype == np.uint16:
        value = (value >> 8).astype(np.uint8)
    elif value.dtype != np.uint8:
        return None
    return np.repeat(value, 3, axis=2) if value.shape[2] == 1 else value


def pictures_in(values: Mapping[str, Any]) -> tuple[dict[str, Picture], dict[str, int]]:
    """Return all pictures in an item's values, and in lists, dicts and stacks of them.

    Returns:
        The pictures by name, such as "left", "views[0]" or "views.left"; and for each value that consists of pictures
        how many of them there are not, because a sample shows 24 at most.
    """
    groups = {name: parts for name, value in values.items() if (parts := _all_pictures(name, value))}
    # The first of each value, then the second of each, and so on: a long stack leaves room for the others.
    in_turns = sorted((i, name) for name, parts in groups.items() for i in range(len(parts)))
    kept = Counter(name for _, name in in_turns[:_MOST])
    pictures = {own: _picture(part) for name, parts in groups.items() for own, part in parts[: kept[name]]}
    return pictures, {name: len(parts) - kept[name] for name, parts in groups.items()}


def _all_pictures(name: str, value: Any) -> list[tuple[str, Array]]:
    """Return the pictures that a value consists of. There are none if a part of it is something else."""
    parts = []
    for own, part in _parts(name, value):
        if not _is_picture(part):
            return []
        parts.append((own, part))
    return parts


def _parts(name: str, value: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield a value, or what a list, a dict or a stack consists of, with the name of each."""
    inner: Iterable[tuple[str, Any]]
    if isinstance(value, Mapping) and depth < _MAX_DEPTH:
        inner = ((f"{name}.{key}", part) for key, part in value.items())
    elif (isinstance(value, list | tuple) and depth < _MAX_DEPTH) or (
        isinstance(value, np.ndarray) and _is_stack(value)
    ):
        inner = ((f"{name}[{i}]", part) for i, part in enumerate(value))
    else:
        yield name, value
        return
    for own, part in inner:
        yield from _parts(own, part, depth + 1)


def _is_stack(value: Array) -> bool:
    # One number a pixel: there are fewer pictures than rows or columns, or else it is one array of features.
    return value.ndim == 4 or (value.ndim == 3 and value.shape[2] > 4 and value.shape[0] < min(value.shape[1:]))


def _is_picture(value: Any) -> bool:
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub" or value.ndim not in (2, 3):
        return False
    if min(value.shape[:2]) < _LEAST:
        return False
    channels = value.shape[2] if value.ndim == 3 else 1
    if value.dtype.kind == "f":
        return 1 <= channels <= 4
    return channels == 1 or (channels in (3, 4) and value.dtype in (np.bool_, np.uint8, np.uint16))


def _picture(value: Array) -> Picture:
    """Show a picture, as its values say what it is."""
    step = math.ceil(max(value.shape[:2]) / _MAX_SIDE)
    few = value[::step, ::step]
    if value.ndim == 3 and value.shape[2] == 1:
        few = few[..., 0]
    pixels, kind, note = _flat(few) if few.ndim == 2 else _coloured(few)
    if kind == "light":
        note = "{1} x {0}".format(*value.shape)
        pixels = value if value.shape[2:] > (1,) and value.dtype == np.uint8 else pixels  # it costs no memory
    assert pixels is not None
    return Picture(value, pixels, kind, note)


def _flat(value: Array) -> tuple[Array | None, str, str]:
    """Show one number a pixel."""
    if value.dtype == np.bool_:
        return image_of(value), "light", ""
    if value.dtype.kind in "iu":
        numbers = np.unique(value)
        if value.dtype == np.uint8 and not 0 < numbers[-1] < _DARK:
            return image_of(value), "light", ""
        if len(numbers) <= _MOST_IDS:
            count = int((numbers != 0).sum())
            return colours.id_picture(value), "ids", f"{count} id{'' if count == 1 else 's'}"
    finite = value[np.isfinite(value)].astype(np.float64)
    if not finite.size:
        return colours.depth_picture(value), "values", "no finite value"
    low, high = float(finite.min()), float(finite.max())
    if value.dtype.kind == "f" and finite.size == value.size and low >= 0 and high <= 1:
        return image_of(value), "light", ""
    note = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
    return colours.depth_picture(value, Scale(low, high, logarithmic=False)), "values", note


def _coloured(value: Array) -> tuple[Array | None, str, str]:
    """Show two to four numbers a pixel."""
    if value.shape[2] == 2:
        return colours.flow_picture(value), "flow", f"up to {flow_longest(value):.3g}"
    negative = value.dtype.kind == "f" and bool((value[..., :3] < 0).any())
    if not negative:
        return image_of(value), "light", ""
    vectors = np.nan_to_num(value[..., :3].astype(np.float64), posinf=0, neginf=0)
    longest = max(float(np.abs(vectors).max()), 1e-30)
    note = f"{float(vectors.min()):.3g} to {float(vectors.max()):.3g}"
    return colours.normal_picture(vectors / max(longest, 1.0)), "vectors", note
