"""What a frame was like, in a few numbers: by which an episode that is made again is known to be the same one."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...wire.json_text import dumps
from ...wire.payload import to_tree

_ARRAYS = 16  # that are looked at, so that a fingerprint is small
_PARTS = 8  # of each array

# Two processes may render a pixel that differs by 1/255, or a normal by its last bits. A script that draws its random
# numbers from elsewhere than its task differs by far more.
_RELATIVE, _ABSOLUTE = 1e-4, 1e-5


def fingerprint_of(values: Mapping[str, Any]) -> list[Any]:
    """Return the fingerprint of a frame's values: a checksum of what must be equal, and means of floats and arrays.

    A float may be computed from the pixels, as the mean of a picture is, and differs with them.
    """
    arrays: list[np.ndarray[Any, Any]] = []
    floats: list[float] = []

    def store(array: np.ndarray[Any, Any], _key: str) -> list[Any]:
        arrays.append(array)
        return [array.dtype.name, list(array.shape)]

    exact = _without_floats(to_tree(values, "", store), floats)
    return [zlib.crc32(dumps(exact).encode()), *map(_means, [np.array(floats), *arrays[:_ARRAYS]])]


def same(one: list[Any], other: list[Any]) -> bool:
    """Tell whether two fingerprints are those of the same frame."""
    if len(one) != len(other) or one[0] != other[0]:
        return False
    return all(
        len(own) == len(others) and np.allclose(own, others, _RELATIVE, _ABSOLUTE, equal_nan=True)
        for own, others in zip(_read(one), _read(other), strict=True)
    )


def _without_floats(tree: Any, floats: list[float]) -> Any:
    """Return a tree with 0.0 for each float, which is appended to `floats`."""
    if isinstance(tree, float):
        floats.append(tree)
        return 0.0
    if isinstance(tree, dict):
        return {name: _without_floats(item, floats) for name, item in tree.items()}
    return [_without_floats(item, floats) for item in tree] if isinstance(tree, list) else tree


def _means(array: np.ndarray[Any, Any]) -> list[str]:
    flat = np.abs(array).reshape(-1) if array.dtype.kind == "c" else array.reshape(-1)
    parts = [part for part in np.array_split(flat, _PARTS) if part.size]
    with np.errstate(all="ignore"):
        return [repr(float(part.mean(dtype=np.float64))) for part in parts]  # as text, as JSON has no infinity


def _read(fingerprint: list[Any]) -> list[list[float]]:
    return [[float(text) for text in means] for means in fingerprint[1:]]
