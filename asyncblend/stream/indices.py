"""Indices: which samples a pass is over, as a range or a list."""

from __future__ import annotations

import operator
import sys
import zlib
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..config import StreamConfig
from ..errors import ConfigError

Indices = Sequence[int] | np.ndarray[Any, np.dtype[np.integer[Any]]]


def own_indices(config: StreamConfig, start: int | None = None) -> range:
    """Return the indices that a config stands for, from `start` instead of the config's own start if it is given.

    Raises:
        ConfigError: They do not end below 2**63.
    """
    start = config.start if start is None else start
    if start + (config.length or 0) >= sys.maxsize:
        raise ConfigError(f"the stream would begin at index {start}; indices must be below 2**63")
    k, n = config.shard or (0, 1)
    return range(start + k, sys.maxsize if config.length is None else start + config.length, n)


def checked_indices(indices: Indices) -> Sequence[int]:
    """Return a sequence of indices as a range or a list of ints.

    Raises:
        ConfigError: It is no sequence of whole numbers from 0 to 2**63 - 2.
    """
    if isinstance(indices, range):
        checked: Sequence[int] = indices
        ends: Sequence[int] = (indices[0], indices[-1]) if indices else ()
    else:
        try:
            if isinstance(indices, str | bytes | Mapping) or not hasattr(indices, "__getitem__"):
                raise TypeError
            # Of an array and of a tensor as plain values: the elements of a tensor would pass for numbers, whatever they are.
            values: Any = indices.tolist() if hasattr(indices, "tolist") else indices
            if any(isinstance(index, bool | np.bool_) for index in values):
                raise TypeError  # a mask, probably
            ends = checked = [operator.index(index) for index in values]
        except TypeError:
            raise ConfigError(f"indices must be a sequence of whole numbers; got {indices!r:.100}") from None
    if bad := [index for index in ends if not 0 <= index < sys.maxsize]:
        raise ConfigError(f"indices must be from 0 to 2**63 - 2; got {bad[0]}")
    return checked


def described(indices: Sequence[int]) -> dict[str, Any]:
    """Return what tells one sequence of indices from another, as plain data."""
    if isinstance(indices, range):
        stop = None if indices.stop == sys.maxsize else indices.stop
        return {"start": indices.start, "stop": stop, "step": indices.step}
    return {"count": len(indices), "crc32": zlib.crc32(array("q", indices).tobytes())}
