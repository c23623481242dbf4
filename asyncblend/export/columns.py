"""Columns of Arrow: each value of a sample with a type of its own.

    uint8 of H x W x 3 or 4                    an image, as it was recorded or as PNG
    integers, bools of the image's H x W       an image: masks as PNG of 16 bits, for 0 to 65,535, and of 8 bits
    float32 of the image's H x W               an image: TIFF of 32 bits, which loses nothing
    N x H x W bools of the image's size        a list of images
    all other arrays                           lists of lists, with the array's type of numbers
    dicts, lists, strings, numbers, None       structs, lists, and Arrow's own types

An image is a struct of its file's bytes and a path, and the schema says so in the words of Hugging Face's `datasets`.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ..errors import ConfigError
from ..recording.png import png
from .images import image_file, is_picture

Array = np.ndarray[Any, Any]

_IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
_FEATURES = {_IMAGE: {"_type": "Image"}, pa.list_(_IMAGE): {"feature": {"_type": "Image"}, "_type": "List"}}
"""By type what `datasets` calls it, where the type alone does not tell."""


@dataclass(frozen=True)
class Cell:
    """A value of a sample: as an Arrow array of length 1, or as plain values, whose type all rows together decide."""

    array: Any = None
    plain: Any = None
    size: int = 64  # about how many bytes of memory it takes


def cells_of(item: Mapping[str, Any]) -> dict[str, Cell]:
    """Return the values of a sample, by name. Raises ConfigError if there is no type for one of them."""
    shape = getattr(item.get("image"), "shape", ())
    size = shape[:2] if len(shape) > 1 and 0 not in shape else None
    cells = {"index": Cell(plain=int(item["index"]))}
    for name, value in item.items():
        if name != "index":
            try:
                cells[name] = _cell(item, name, value, size)
            except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
                raise ConfigError(f"sample {item['index']}: there is no column for {name!r}: {error}") from None
    return cells


class Schema:
    """The types of the columns."""

    def __init__(self, info: Mapping[str, Any]) -> None:
        self._info = info
        self._schema: Any = None

    def learn(self, rows: Sequence[Mapping[str, Cell]]) -> None:
        """Let these rows decide on the types. Raises ConfigError if they are not of one type."""
        names = dict.fromkeys(name for row in rows for name in row)
        schema = pa.schema([(name, _array(rows, name, None).type) for name in names])
        if hollow := [field.name for field in schema if _is_hollow(field.type)]:
            raise ConfigError(
                f"{_told(rows)}: {hollow[0]!r} is or has a dict without keys, which a column of Parquet cannot hold: "
                f"let the script's sample leave it out, or give it a key"
            )
        features = {field.name: _FEATURES[field.type] for field in schema if field.type in _FEATURES}
        described = {"info": {"features": features}, "description": dict(self._info)}
        self._schema = schema.with_metadata({"huggingface": json.dumps(described)})

    def table(self, rows: Sequence[Mapping[str, Cell]]) -> Any:
        """Return rows as a table. Raises ConfigError if they are not of the types that were learnt."""
        if new := {name for row in rows for name in row} - set(self._schema.names):
            raise ConfigError(f"{_told(rows)} have {min(new)!r}, which the first samples do not have")
        return pa.table([_array(rows, field.name, field.type) for field in self._schema], self._schema)

    def writer(self, path: Path) -> Any:
        """Return what writes tables into a file, as a context manager that ends the file."""
        return pq.ParquetWriter(path, self._schema, compression="zstd")


_MISSING = Cell()
_MAPS = (
    ". A map of whole numbers is an image where all are from 0 to 65,535, and else a list: return it as another type"
)


def _cell(item: Mapping[str, Any], name: str, value: Any, size: tuple[int, ...] | None) -> Cell:
    if not isinstance(value, np.ndarray):
        return Cell(plain=_plain(value))
    if name == "image" and is_picture(value):
        return _images([image_file(item).data], one=True)
    if value.ndim == 3 and is_picture(value):
        return _images([png(value)], one=True)
    if value.shape == size and (data := _map(value)) is not None:
        return _images([data], one=True)
    if value.ndim == 3 and value.shape[1:] == size and value.dtype == bool:
        return _images([png(mask) for mask in value], one=False)
    return Cell(array=_nested(value), size=value.nbytes)


def _images(files: Sequence[bytes], *, one: bool) -> Cell:
    images = [{"bytes": data, "path": None} for data in files]
    array = pa.array(images, _IMAGE) if one else pa.array([images], pa.list_(_IMAGE))
    return Cell(array=array, size=sum(map(len, files)))


def _map(value: Array) -> bytes | None:
    """Return the file of an image of one channel, or None if there is none for such numbers."""
    if value.dtype.kind in "iu":
        return png(value.astype(np.uint16)) if 0 <= value.min() <= value.max() < 2**16 else None
    if value.dtype == bool:
        return png(value)
    if value.dtype == np.float32:
        Image.fromarray(value).save(buffer := io.BytesIO(), "TIFF", compression="tiff_adobe_deflate")
        return buffer.getvalue()
    return None


def _nested(value: Array) -> Any:
    """Return an array as an Arrow array of length 1: lists of lists of numbers."""
    found = pa.array(np.ascontiguousarray(value).ravel())
    for axis in reversed(range(value.ndim)):
        ends = np.arange(math.prod(value.shape[:axis]) + 1) * value.shape[axis]
        found = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), found)
    return found


def _plain(value: Any) -> Any:
    """Return a value without numpy."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def _array(rows: Sequence[Mapping[str, Cell]], name: str, known: Any) -> Any:
    """Return a column as an Arrow array, of the `known` type if it is not None."""
    try:
        return _column([row.get(name, _MISSING) for row in rows], known)
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{_told(rows)}: {name!r} is not of one kind in all samples, as a column of Parquet must be: {error}"
        ) from None


def _column(cells: Sequence[Cell], known: Any) -> Any:
    arrays = [cell.array for cell in cells]
    if any(array is not None for array in arrays):
        kinds = {array.type for array in arrays if array is not None} | ({known} if known is not None else set())
        others = {type(cell.plain).__name__ for cell in cells if cell.plain is not None}
        if len(kinds) > 1 or others:
            advice = _MAPS if _IMAGE in kinds and any(pa.types.is_list(kind) for kind in kinds) else ""
            raise TypeError(f"it is {' and '.join(sorted({*map(str, kinds), *others}))}{advice}")
        (kind,) = kinds
        return pa.concat_arrays([pa.nulls(1, kind) if array is None else array for array in arrays])
    values = [cell.plain for cell in cells]
    found = pa.array(values)
    if known is None or found.type == known:
        return found
    if lost := _names(found.type) - _names(known):  # Arrow would drop them
        raise TypeError(f"the first samples have no {min(lost)!r} in it")
    try:
        return pa.array(values, known)
    except (pa.ArrowException, TypeError, ValueError):
        if not _is_open(known):
            raise
        raise TypeError(
            "it was empty, or had nothing but None in it, in the first samples, which decide on its type; let the "
            "script's sample return an array, which has a type also where it is empty"
        ) from None


def _is_open(kind: Any) -> bool:
    """Return whether a type has a part of which nothing was ever seen."""
    if pa.types.is_list(kind):
        return _is_open(kind.value_type)
    return pa.types.is_null(kind) or (pa.types.is_struct(kind) and any(_is_open(field.type) for field in kind))


def _is_hollow(kind: Any) -> bool:
    """Return whether a type has a struct without fields in it."""
    if pa.types.is_list(kind):
        return _is_hollow(kind.value_type)
    return pa.types.is_struct(kind) and (not len(kind) or any(_is_hollow(field.type) for field in kind))


def _names(kind: Any) -> set[str]:
    """Return the names of the fields in a type, with those around them."""
    if pa.types.is_list(kind):
        return _names(kind.value_type)
    if not pa.types.is_struct(kind):
        return set()
    inner = {f"{field.name}.{name}" for field in kind for name in _names(field.type)}
    return {field.name for field in kind} | inner


def _told(rows: Sequence[Mapping[str, Cell]]) -> str:
    return f"samples {rows[0]['index'].plain} to {rows[-1]['index'].plain}"
