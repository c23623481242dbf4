"""Batches: samples stacked as PyTorch's default_collate would, but each array is copied once, straight to its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..errors import SampleError

Array = np.ndarray[Any, Any]


class Memory(NamedTuple):
    """Memory for all arrays of one name in a batch."""

    owner: Any  # The array or tensor that the batch gives out. Its slices along the first axis are the samples
    view: Array  # The same memory as a numpy array, to write into


Empty = Callable[[tuple[int, ...], np.dtype[Any]], Memory]


def in_numpy(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Memory:
    """Return the memory of a new numpy array."""
    array = np.empty(shape, dtype)
    return Memory(array, array)


class Batch:
    """Up to `size` samples. The memory of each array is new: nothing that was given out is ever written to again.

    Arrays of one name must have one shape and dtype. Numbers and booleans become an array of int64, float64 or bool.
    Dicts are stacked key by key, and lists position by position. Strings, None and mixed values become a list.

    Args:
        size: The number of samples.
        empty: Makes the memory for an array of a shape and dtype.
    """

    def __init__(self, size: int, empty: Empty = in_numpy) -> None:
        self._size, self._empty = size, empty
        self._indices: list[int] = []
        # The first sample with each leaf replaced: an array by its Memory, anything else by the list of its values.
        self._columns: Any = None

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def full(self) -> bool:
        """Whether the batch has `size` samples."""
        return len(self._indices) == self._size

    def add(self, values: Mapping[str, Any], index: int) -> None:
        """Copy the next sample into the batch.

        Raises:
            SampleError: The sample has another form than the first one. The batch cannot be used any more.
        """
        try:
            if not self._indices:
                self._columns = self._begin(values)
            _add(self._columns, values, len(self._indices), "")
        except _Mismatch as error:
            first = self._indices[0] if self._indices else index
            raise SampleError(
                f"sample {index} cannot be in one batch with sample {first}: {error}; "
                f"return the same from each sample, or batch without asyncblend, with a collate_fn of your own",
                index=index,
            ) from None
        self._indices.append(index)

    def finish(self) -> dict[str, Any]:
        """Return the stacked values by name, and "index"."""
        return {**self._stacked(self._columns or {}), "index": self._stacked(self._indices)}

    def _begin(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return self._empty((self._size, *value.shape), value.dtype)
        if isinstance(value, Mapping):
            return {name: self._begin(item) for name, item in value.items()}
        return tuple(self._begin(item) for item in value) if isinstance(value, list) else []

    def _stacked(self, column: Any) -> Any:
        if isinstance(column, Memory):
            return column.owner[: len(self)]
        if isinstance(column, dict):
            return {name: self._stacked(inner) for name, inner in column.items()}
        if isinstance(column, tuple):
            return [self._stacked(inner) for inner in column]
        dtype = _dtype_of(column)
        if dtype is None:
            return column
        memory = self._empty((len(column),), np.dtype(dtype))
        memory.view[:] = column
        return memory.owner


class _Mismatch(Exception):
    """Two samples have different forms."""


def _add(column: Any, value: Any, row: int, name: str) -> None:
    """Put the value of sample `row` into its column. `name` is the path to the value, for the message."""
    if isinstance(column, Memory):
        shape, dtype = column.view.shape[1:], column.view.dtype
        if not isinstance(value, np.ndarray):
            raise _Mismatch(f"{name} is no array there but {value!r:.40}")
        if value.shape != shape or value.dtype != dtype:
            raise _Mismatch(f"{name} is {value.dtype}{list(value.shape)}, there it is {dtype}{list(shape)}")
        column.view[row] = value
    elif isinstance(column, dict):
        if not isinstance(value, Mapping):
            raise _Mismatch(f"{name} is no dict but {value!r:.40}")
        if value.keys() != column.keys():
            raise _Mismatch(f"{name or 'the sample'} has {sorted(value)}, there it has {sorted(column)}")
        for key, inner in column.items():
            _add(inner, value[key], row, f"{name}[{key!r}]" if name else repr(key))
    elif isinstance(column, tuple):
        if not isinstance(value, list) or len(value) != len(column):
            raise _Mismatch(f"{name} is no list of {len(column)} but {value!r:.40}")
        for i, (inner, item) in enumerate(zip(column, value, strict=True)):
            _add(inner, item, row, f"{name}[{i}]")
    else:
        if isinstance(value, np.ndarray | Mapping | list):
            raise _Mismatch(f"{name} is a {type(value).__name__}, there it is none")
        column.append(value)


def _dtype_of(values: list[Any]) -> type[np.generic] | None:
    """Return the dtype of an array of these values. None if they stay a list."""
    kinds = {type(value) for value in values}
    if kinds == {bool}:
        return np.bool_
    if kinds == {int}:
        return np.int64 if all(-(2**63) <= value < 2**63 for value in values) else None
    return np.float64 if kinds in ({float}, {int, float}) else None
