"""Copies of the same bytes to warm memory of the same process: the limit of every way that copies once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np

from ..measuring import Timed, Way, timed
from .arrays import Spec, prepared, stamp

__all__ = ["memcpy"]

_AT_ONCE = 64
"""Small frames that are copied between two looks at the clock."""


@contextlib.contextmanager
def memcpy(spec: Spec) -> Iterator[Way]:
    """Yield a way that copies one frame after another into the same memory."""
    arrays = prepared(spec)
    places = [(array, np.array(array)) for array in arrays.values()]
    some = _AT_ONCE if sum(array.nbytes for array in arrays.values()) < 1 << 16 else 1

    def copy() -> int:
        for index in range(some):
            stamp(arrays, index)
            for array, place in places:
                np.copyto(place, array)
        return some

    def way(seconds: float) -> Timed:
        copy()
        return timed(copy, seconds)

    yield way
