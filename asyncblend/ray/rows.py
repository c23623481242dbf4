"""Rows: samples as columns of Arrow, each with a type of its own, and as the files of WebDataset samples.

    arrays             tensors: of a fixed shape if their shapes agree in this block, otherwise of a variable one
    dicts, `params`    structs, whose fields are columns in turn
    lists, tuples      lists, whose items are a column in turn, so they are of one kind
    numbers, strings   Arrow's own types
    None               null, but not among arrays

Where one block has a fixed shape and another one a variable shape, Ray gives the whole column a variable one, in memory
and when it reads Parquet files. Nothing is pickled.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from ray.data.extensions import ArrowTensorArray, ArrowVariableShapedTensorArray

from ..errors import ConfigError, RecordingError, SampleError
from ..recording import codec
from ..recording.checksums import Damaged
from ..stream.frame import Frame, with_params

_FILES = codec.Images()  # PNG, which loses nothing


def table_of(samples: Sequence[Frame]) -> pa.Table:
    """Return a table with a row for each sample: `index`, its values by their names, and `params` where it has any.

    Raises:
        SampleError: A value is of another kind than in another sample, or Arrow has no type for it.
    """
    return _table([{**with_params(sample), "index": sample.index} for sample in samples])


def encode(row: Mapping[str, Any], *, episodes: bool = False) -> dict[str, Any]:
    """Return a row as the files of a WebDataset sample: images as PNG, other arrays as gzipped npy, all else as JSON.

        rows.write_webdataset("shards", encoder=asyncblend.ray.encode)

    The files are those of asyncblend's own recordings, are named after the values, and lose nothing of the row. They are
    those of `record` byte for byte, as far as a table keeps what the script returned: there an array without dimensions
    is a number, what one sample lacks and another one has is None, and all rows have their names in the same order.

    Args:
        row: A row of `dataset`.
        episodes: Whether it is an episode, such as of a script that yields its frames. Then the files say how many steps it
            has, which nothing in a row tells apart from an array's own first axis.

    Raises:
        ConfigError: It is no episode: its values differ in length, or have none.
    """
    values = {name: value for name, value in row.items() if name not in ("index", "params")}
    index, params = int(row["index"]), row.get("params") or {}
    steps = _steps(index, values) if episodes else 1
    files = codec.encode(values, index=index, instance=0, params=params, images=_FILES, steps=steps)
    return {"__key__": codec.key_of(index), **files}


def _steps(index: int, values: Mapping[str, Any]) -> int:
    lengths = {}
    for name, value in values.items():
        try:
            lengths[name] = codec.lengths(value)
        except TypeError:
            lengths[name] = set()
    found = set().union(*lengths.values())
    if len(found) != 1 or set() in lengths.values():
        told = ", ".join(f"{name!r} {'/'.join(map(str, sorted(own))) or 'none'}" for name, own in lengths.items())
        raise ConfigError(f"row {index} is no episode: its values need one length in common, and have {told or 'none'}")
    return found.pop()


def decode(batch: pa.Table) -> pa.Table:
    """Return the rows whose files these are, as they were before `encode`:

        files = ray.data.read_webdataset("shards", decoder=None)
        rows = files.map_batches(asyncblend.ray.decode, batch_format="pyarrow")

    Raises:
        RecordingError: They are the files of something else.
    """
    rows = []
    for row in batch.to_pylist():
        files = {name: data for name, data in row.items() if isinstance(data, bytes)}
        try:
            sample = codec.decode(files)
        except Damaged as error:
            raise RecordingError(f"sample {row.get('__key__')} of {row.get('__url__')}: {error}") from None
        params = {"params": sample.params} if sample.params else {}
        rows.append({**params, **sample.returned, "index": sample.index})
    return _table(rows)


def _table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    first, last = rows[0]["index"], rows[-1]["index"]
    try:
        columns = _columns(rows)
    except _NoColumn as error:
        raise SampleError(f"samples {first} to {last} cannot be rows of one table: {error}", index=first) from None
    return pa.table({"index": columns.pop("index"), **columns})


class _NoColumn(Exception):
    """These values have no type in common."""


def _columns(rows: Sequence[Mapping[str, Any]], path: str = "") -> dict[str, pa.Array]:
    names = dict.fromkeys(itertools.chain.from_iterable(rows))  # in the order in which they come
    return {
        name: _column([row.get(name) for row in rows], f"{path}[{name!r}]" if path else repr(name)) for name in names
    }


def _column(values: Sequence[Any], path: str) -> pa.Array:
    for kind, column in ((np.ndarray, _tensors), (Mapping, _structs), ((list, tuple), _lists)):
        others = [value for value in values if not isinstance(value, kind)]
        if len(others) == len(values):
            continue
        for other in others:
            if other is not None or column is _tensors:
                raise _NoColumn(f"{path} must be of one kind in all of them, but it is {other!r:.40} in one")
        return column(values, path)
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError) as error:
        raise _NoColumn(
            f"{path} must be of one kind in all of them, so that a column can have a type ({error})"
        ) from None


def _tensors(arrays: Sequence[np.ndarray[Any, Any]], path: str) -> pa.Array:
    first = arrays[0]
    for array in arrays:
        if array.dtype != first.dtype or array.ndim != first.ndim:
            raise _NoColumn(
                f"{path} is {first.dtype}{list(first.shape)} in one of them, {array.dtype}{list(array.shape)} in another"
            )
    if first.dtype.kind == "c":
        raise _NoColumn(f"{path} has complex numbers, which Arrow has not; return their real and imaginary parts")
    if any(array.shape != first.shape for array in arrays):
        ragged = np.empty(len(arrays), object)
        ragged[:] = arrays
        return ArrowVariableShapedTensorArray.from_numpy(ragged)
    stacked = np.stack(arrays)
    return ArrowTensorArray.from_numpy(stacked) if first.ndim else pa.array(stacked)


def _structs(values: Sequence[Mapping[str, Any] | None], path: str) -> pa.Array:
    columns = _columns([value or {} for value in values], path)
    if not columns:
        return pa.array(values)
    missing = pa.array([value is None for value in values])
    return pa.StructArray.from_arrays(list(columns.values()), list(columns), mask=missing)


def _lists(values: Sequence[Sequence[Any] | None], path: str) -> pa.Array:
    items: list[Any] = []
    starts: list[int | None] = []
    for value in values:
        starts.append(None if value is None else len(items))
        items += value or ()
    return pa.ListArray.from_arrays(pa.array([*starts, len(items)], pa.int32()), _column(items, f"each item of {path}"))
