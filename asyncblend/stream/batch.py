"""Batches: samples side by side. Each array is copied once, straight to its place.

One rule holds for `batches`, for `batch_size` and for `collate`, and what it gives depends on each value by itself:

    arrays             stacked, if their shapes agree in this batch; otherwise a list of them
    numbers            an array: bool, int64 or float64
    dicts              a dict, whose values are batched key by key; so are the items of a tuple
    lists              a list of them, because their lengths may vary
    strings, None      a list of them, and so are numbers among them
    `ragged` names     a list of them, whatever they are
    `params`           a dict, if the samples of this batch have params of one form; otherwise a list of dicts

So `batch[name][i]` is always what sample `i` of the batch has, whether `batch[name]` is stacked or a list.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..errors import ConfigError, SampleError

Array = np.ndarray[Any, Any]


def mapped(value: Any, arrays: type | tuple[type, ...], change: Callable[[Any], Any]) -> Any:
    """Return a value with each array in it changed; dicts, lists and tuples are copied."""
    if isinstance(value, arrays):
        return change(value)
    if isinstance(value, Mapping):
        return {name: mapped(item, arrays, change) for name, item in value.items()}
    if isinstance(value, list):
        return [mapped(item, arrays, change) for item in value]
    if isinstance(value, tuple):
        return _like(value, [mapped(item, arrays, change) for item in value])
    return value


class Memory(NamedTuple):
    """Memory for all arrays of one name in a batch."""

    owner: Any  # The array or tensor that the batch gives out. Its slices along the first axis are the samples
    view: Any  # The same memory, to write into: an array of the samples' own kind


Empty = Callable[[tuple[int, ...], Any], Memory]
"""Makes the memory of a shape for arrays of the dtype of this one."""


def in_numpy(shape: tuple[int, ...], like: Array) -> Memory:
    """Return the memory of a new numpy array."""
    array = np.empty(shape, like.dtype)
    return Memory(array, array)


def check_ragged(ragged: Collection[str]) -> frozenset[str]:
    """Check the option `ragged`, and return it.

    Raises:
        ConfigError: It is no collection of names.
    """
    if (
        isinstance(ragged, str)
        or not isinstance(ragged, Collection)
        or not all(isinstance(name, str) for name in ragged)
    ):
        raise ConfigError(f"ragged must be names, such as ('bbox', 'class_id'); got {ragged!r}")
    return frozenset(ragged)


class Batch:
    """Up to `size` samples. The memory of each array is new: nothing that was given out is ever written to again.

    Args:
        size: The number of samples.
        empty: Makes the memory for arrays.
        ragged: Names whose values are never stacked.
        arrays: The class of arrays in the samples.
    """

    def __init__(
        self, size: int, empty: Empty = in_numpy, *, ragged: Collection[str] = (), arrays: Any = np.ndarray
    ) -> None:
        self._size, self._empty, self._ragged, self._arrays = size, empty, frozenset(ragged), arrays
        self._indices: list[int] = []
        self._step: int | None = None  # of the first sample
        self._params: list[Mapping[str, Any] | None] = []  # "params" of each sample, if they are a dict
        self._columns: Any = None  # The first sample with each leaf replaced by the column of its values

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def full(self) -> bool:
        """Whether the batch has `size` samples."""
        return len(self._indices) == self._size

    def add(self, values: Any, index: int, step: int | None = None) -> None:
        """Copy the next sample into the batch.

        Args:
            values: Of the sample.
            index: The sample's.
            step: Which step of the sample these values are, if the batch is of steps.

        Raises:
            SampleError: The sample has another form than the first one. The batch cannot be used any more.
            ConfigError: A name in `ragged` is not among the values.
        """
        params = values.get("params") if isinstance(values, Mapping) else None
        if isinstance(params, Mapping):
            values = {name: value for name, value in values.items() if name != "params"}
        self._params.append(params if isinstance(params, Mapping) else None)
        try:
            if not self._indices:
                self._step = step
                self._columns = self._begun(values)
            self._columns = self._added(self._columns, values, "")
        except _Mismatch as error:
            first = _called(self._indices[0] if self._indices else index, self._step)
            advice = (
                "return the same kind of value from each sample, or name it in `ragged` to get a list of them"
                if step is None
                else "yield the same kind of value at each step"
            )
            raise SampleError(
                f"{_called(index, step)} cannot be in one batch with {first}: {error}; {advice}", index=index
            ) from None
        self._indices.append(index)

    def finish(self) -> dict[str, Any]:
        """Return the batched values by name, and "index"."""
        return {**self.values(), "index": self._batched(self._indices)}

    def values(self) -> Any:
        """Return the batched values, in the form of a sample."""
        values = self._batched(self._columns or {})
        return {**values, "params": self._batched_params()} if any(one is not None for one in self._params) else values

    def _batched_params(self) -> Any:
        """Return the params of the samples: batched as all else, or, if their forms differ, a list of them."""
        each = [one or {} for one in self._params]
        if "params" not in self._ragged:
            batch = Batch(self._size, self._empty, arrays=self._arrays)
            with contextlib.suppress(SampleError):
                for index, params in zip(self._indices, each, strict=True):
                    batch.add(params, index)
                return batch.values()
        return [mapped(one, self._arrays, self._copied) for one in each]

    def _begun(self, values: Any) -> Any:
        """Return the columns for samples like this one, still empty."""
        if not isinstance(values, Mapping):
            if self._ragged:
                raise ConfigError(f"ragged names values of dicts; the samples are {type(values).__name__}s")
            return self._column(values)
        if missing := sorted(self._ragged - values.keys() - {"params"}):
            raise ConfigError(f"ragged has {missing}, which the samples have not; they have {sorted(values)}")
        return {name: _Each() if name in self._ragged else self._column(value) for name, value in values.items()}

    def _column(self, value: Any) -> Any:
        if isinstance(value, self._arrays):
            return self._empty((self._size, *value.shape), value)
        if isinstance(value, Mapping):
            return {name: self._column(item) for name, item in value.items()}
        if isinstance(value, tuple):
            return _like(value, map(self._column, value))
        return _Each(kind=list) if isinstance(value, list) else []

    def _added(self, column: Any, value: Any, path: str) -> Any:
        """Return the column with the next sample's value. `path` leads to the value, for the message."""
        if isinstance(column, Memory):
            if self._fits(column.view, value, path):
                column.view[len(self)] = value
                return column
            column = _Each(column.owner[: len(self)], like=column.view)
        if isinstance(column, _Each):
            if column.like is not None:
                self._fits(column.like, value, path)
            elif not isinstance(value, column.kind):
                raise _Mismatch(f"{path} is no {column.kind.__name__} but {value!r:.40}")
            column.append(mapped(value, self._arrays, self._copied))
        elif isinstance(column, dict):
            if not isinstance(value, Mapping):
                raise _Mismatch(f"{path or 'the sample'} is no dict but {value!r:.40}")
            if value.keys() != column.keys():
                raise _Mismatch(f"{path or 'the sample'} has {list(value)}, there it has {list(column)}")
            for name, inner in column.items():
                column[name] = self._added(inner, value[name], f"{path}[{name!r}]" if path else repr(name))
        elif isinstance(column, tuple):
            if not isinstance(value, tuple) or len(value) != len(column):
                raise _Mismatch(f"{path or 'the sample'} is no tuple of {len(column)} but {value!r:.40}")
            parts = enumerate(zip(column, value, strict=True))
            return _like(column, (self._added(inner, item, f"{path}[{i}]") for i, (inner, item) in parts))
        elif isinstance(value, (self._arrays, Mapping, list, tuple)):
            raise _Mismatch(f"{path or 'the sample'} is a {type(value).__name__}, there it is none")
        else:
            column.append(value)
        return column

    def _fits(self, view: Any, value: Any, path: str) -> bool:
        """Return whether an array has the shape of those in a stack. Only its lengths may differ."""
        shape = view.shape[1:]
        if not isinstance(value, self._arrays):
            raise _Mismatch(f"{path or 'the sample'} is no array there but {value!r:.40}")
        if value.dtype != view.dtype or len(value.shape) != len(shape):
            raise _Mismatch(
                f"{path or 'the sample'} is {value.dtype}{list(value.shape)}, there it is {view.dtype}{list(shape)}"
            )
        return bool(value.shape == shape)

    def _copied(self, array: Any) -> Any:
        memory = self._empty(array.shape, array)
        memory.view[...] = array
        return memory.owner

    def _batched(self, column: Any) -> Any:
        if isinstance(column, Memory):
            return column.owner[: len(self)]
        if isinstance(column, dict):
            return {name: self._batched(inner) for name, inner in column.items()}
        if isinstance(column, tuple):
            return _like(column, map(self._batched, column))
        if isinstance(column, _Each):
            return list(column)
        dtype = _dtype_of(column)
        return column if dtype is None else self._copied(np.array(column, dtype))


class _Each(list[Any]):
    """A column of values that stay apart, one of each sample."""

    def __init__(self, values: Iterable[Any] = (), *, kind: type = object, like: Any = None) -> None:
        super().__init__(values)
        self.kind, self.like = kind, like  # What each value must be; a stack of the arrays that each must resemble


class _Mismatch(Exception):
    """Two samples have different forms."""


def _called(index: int, step: int | None) -> str:
    """Return what an error calls a sample, or a step of one."""
    return f"sample {index}" if step is None else f"step {step} of sample {index}"


def _like(first: tuple[Any, ...], items: Iterable[Any]) -> tuple[Any, ...]:
    return type(first)(*items) if hasattr(first, "_fields") else tuple(items)  # a named tuple stays one


def _dtype_of(values: list[Any]) -> type[np.generic] | None:
    """Return the dtype of an array of these values. None if they stay a list."""
    kinds = {type(value) for value in values}
    if kinds == {bool}:
        return np.bool_
    if any(type(value) is int and not -(2**63) <= value < 2**63 for value in values):
        return None
    if kinds == {int}:
        return np.int64
    return np.float64 if kinds in ({float}, {int, float}) else None
