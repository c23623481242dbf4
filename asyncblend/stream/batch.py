"""Batch: samples stacked as PyTorch's default_collate would, but with each array copied once, straight to its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..errors import SampleError

__all__ = ["Batch", "Memory", "in_numpy"]

Array = np.ndarray[Any, Any]


class Memory(NamedTuple):
    """Where an array of a batch is built."""

    owner: Any
    """What the batch gives: an array, a tensor; slices of it are its samples."""
    view: Array
    """The same memory, to write into."""


Empty = Callable[[tuple[int, ...], np.dtype[Any]], Memory]


def in_numpy(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Memory:
    """A new array."""
    array = np.empty(shape, dtype)
    return Memory(array, array)


class Batch:
    """Up to `size` samples. Each array's memory is new: nothing that was given out is ever written to again.

    Arrays of one name must have one shape and dtype. Numbers and booleans become an array of int64, float64 or bool;
    dicts are stacked name by name, lists place by place; strings, None and what is mixed become a list.

    Args:
        size: samples.
        empty: makes the memory of an array of a shape and dtype.
    """

    def __init__(self, size: int, empty: Empty = in_numpy) -> None:
        self._size, self._empty = size, empty
        self._indices: list[int] = []
        self._columns: dict[str, _Column] = {}

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def full(self) -> bool:
        """It has `size` samples."""
        return len(self._indices) == self._size

    def add(self, values: Mapping[str, Any], index: int) -> None:
        """Copy in the next sample.

        Raises:
            SampleError: it is not of the form of the first one; the batch cannot be used any more.
        """
        try:
            if not self._indices:
                self._columns = {name: self._column(value) for name, value in values.items()}
            _same_names(values, self._columns)
            for name, column in self._columns.items():
                column.add(values[name], len(self._indices), repr(name))
        except _Unlike as error:
            first = self._indices[0] if self._indices else index
            raise SampleError(
                f"sample {index} cannot be in one batch with sample {first}: {error}; "
                f"return the same from each sample, or batch without asyncblend, with a collate_fn of your own",
                index=index,
            ) from None
        self._indices.append(index)

    def finish(self) -> dict[str, Any]:
        """The values by name, and "index"."""
        count = len(self._indices)
        batch = {name: column.finish(count) for name, column in self._columns.items()}
        memory = self._empty((count,), np.dtype(np.int64))
        memory.view[:] = self._indices
        return {**batch, "index": memory.owner}

    def _column(self, value: Any) -> _Column:
        if isinstance(value, np.ndarray):
            return _Arrays(self._empty((self._size, *value.shape), value.dtype))
        if isinstance(value, Mapping):
            return _Dicts({name: self._column(item) for name, item in value.items()})
        if isinstance(value, list):
            return _Lists([self._column(item) for item in value])
        return _Plain(self._empty)


class _Unlike(Exception):
    """Two samples have different forms."""


class _Column(Protocol):
    """One value of all samples."""

    def add(self, value: Any, row: int, name: str) -> None: ...

    def finish(self, count: int) -> Any: ...


class _Arrays:
    def __init__(self, memory: Memory) -> None:
        self._owner, self._view = memory

    def add(self, value: Any, row: int, name: str) -> None:
        shape, dtype = self._view.shape[1:], self._view.dtype
        if not isinstance(value, np.ndarray):
            raise _Unlike(f"{name} is no array there but {value!r:.40}")
        if value.shape != shape or value.dtype != dtype:
            raise _Unlike(f"{name} is {value.dtype}{list(value.shape)}, there it is {dtype}{list(shape)}")
        self._view[row] = value

    def finish(self, count: int) -> Any:
        return self._owner[:count]


class _Dicts:
    def __init__(self, columns: dict[str, _Column]) -> None:
        self._columns = columns

    def add(self, value: Any, row: int, name: str) -> None:
        if not isinstance(value, Mapping):
            raise _Unlike(f"{name} is no dict but {value!r:.40}")
        _same_names(value, self._columns, name)
        for key, column in self._columns.items():
            column.add(value[key], row, f"{name}[{key!r}]")

    def finish(self, count: int) -> dict[str, Any]:
        return {name: column.finish(count) for name, column in self._columns.items()}


class _Lists:
    def __init__(self, columns: list[_Column]) -> None:
        self._columns = columns

    def add(self, value: Any, row: int, name: str) -> None:
        if not isinstance(value, list) or len(value) != len(self._columns):
            raise _Unlike(f"{name} is no list of {len(self._columns)} but {value!r:.40}")
        for i, (column, item) in enumerate(zip(self._columns, value, strict=True)):
            column.add(item, row, f"{name}[{i}]")

    def finish(self, count: int) -> list[Any]:
        return [column.finish(count) for column in self._columns]


class _Plain:
    """Numbers, and what cannot be stacked."""

    def __init__(self, empty: Empty) -> None:
        self._empty = empty
        self._values: list[Any] = []

    def add(self, value: Any, row: int, name: str) -> None:
        if isinstance(value, np.ndarray | Mapping | list):
            raise _Unlike(f"{name} is a {type(value).__name__}, there it is none")
        self._values.append(value)

    def finish(self, count: int) -> Any:
        kinds = {type(value) for value in self._values}
        dtype = _dtype_of(kinds, self._values)
        if dtype is None:
            return self._values
        memory = self._empty((count,), np.dtype(dtype))
        memory.view[:] = self._values
        return memory.owner


def _dtype_of(kinds: set[type], values: Sequence[Any]) -> type[np.generic] | None:
    if kinds == {bool}:
        return np.bool_
    if kinds == {int}:
        return np.int64 if all(-(2**63) <= value < 2**63 for value in values) else None
    return np.float64 if kinds in ({float}, {int, float}) else None


def _same_names(values: Mapping[str, Any], columns: Mapping[str, Any], where: str = "the sample") -> None:
    if values.keys() != columns.keys():
        raise _Unlike(f"{where} has {sorted(values)}, there it has {sorted(columns)}")
