"""Payload: the values that a message carries, as JSON and raw buffers. The same code on both sides.

A tree of values is JSON in which `{"$": i}` stands for the i-th array, described in the tree's list as
`[dtype, shape]`, or as `[dtype, shape, offset]` if it is no part of the message but lies in shared memory, in the
tree's "slot". Array bytes are little-endian and C-ordered. Nothing is ever unpickled, and everything is checked against
the bytes at hand before an array is made of them.
"""

from __future__ import annotations

import json
import math
import numbers
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ..errors import ProtocolError

__all__ = [
    "MAX_PART",
    "MAX_PARTS",
    "MAX_TREE",
    "Hold",
    "Shared",
    "Unsendable",
    "bytes_of",
    "decode_tree",
    "decode_values",
    "dumps",
    "encode_values",
    "parse_json",
]

MAX_TREE = 64 * 1024 * 1024
MAX_PARTS = 4096
MAX_PART = 1 << 30
MAX_RANK = 8
MAX_DEPTH = 32
_MAX_BITS = 14_000  # of an int: Python reads at most 4300 digits

_DTYPES = {
    name: np.dtype(name).newbyteorder("<")
    for name in (
        [
            "bool",
            "int8",
            "int16",
            "int32",
            "int64",
            "uint8",
            "uint16",
            "uint32",
            "uint64",
            "float16",
            "float32",
            "float64",
            "complex64",
            "complex128",
        ]
    )
}

_NAMES = {np.dtype(name): name for name in _DTYPES}  # dtype.name is Python that puts it together at each call

dumps = json.JSONEncoder(separators=(",", ":")).encode  # json.dumps would make an encoder at each call


class Unsendable(TypeError):
    """A value cannot travel. The message names its key."""


Array = np.ndarray[Any, Any]
Hold = Callable[[int], Array]
"""The shared memory, all of it as bytes, with that slot in use until the last view is gone. ValueError: no such slot."""


class Shared(Protocol):
    """Memory that the other side sees too."""

    def put(self, arrays: Sequence[Array]) -> tuple[int, Sequence[int | None]] | None:
        """Copy arrays there: the slot, and the offset of each array or None; or None for no array at all."""

    def free(self, slot: int) -> None:
        """It is not to be sent after all."""


def encode_values(values: Mapping[str, Any], shared: Shared | None = None) -> list[Any]:
    """`[tree, array, array, ...]`: JSON bytes, then C-contiguous little-endian numpy arrays.

    Arrays that are contiguous already are not copied: do not change them before they are sent. Those that `shared`
    takes are left out.

    Raises:
        Unsendable: a value is of a type that cannot travel, or there is too much of it; the key is named.
    """
    if not isinstance(values, Mapping):
        raise Unsendable(f"expected a dict of values, got {type(values).__name__}")
    arrays: list[np.ndarray[Any, Any]] = []
    tree = _plain(values, "", arrays, 0)
    if len(arrays) > MAX_PARTS - 2:
        raise Unsendable(f"{len(arrays)} arrays in one sample, at most {MAX_PARTS - 2} can travel; stack them")
    described: list[list[Any]] = [[_NAMES[a.dtype], a.shape] for a in arrays]
    whole: dict[str, Any] = {"arrays": described, "values": tree}
    if arrays and shared is not None and (taken := shared.put(arrays)) is not None:
        whole["slot"], offsets = taken
        for about, offset in zip(described, offsets, strict=True):
            if offset is not None:
                about.append(offset)
        arrays = [array for array, offset in zip(arrays, offsets, strict=True) if offset is None]
    data = dumps(whole).encode()
    if len(data) > MAX_TREE:
        if shared is not None and "slot" in whole:
            shared.free(whole["slot"])
        raise Unsendable(f"{len(data)} bytes of values that are not arrays, at most {MAX_TREE} can travel")
    return [data, *arrays]


def _plain(value: Any, key: str, arrays: list[np.ndarray[Any, Any]], depth: int) -> Any:
    """`value` as what JSON has; its arrays go to `arrays`."""
    if isinstance(value, np.ndarray):
        return {"$": _array(value, key, arrays)}
    if value is None or isinstance(value, (bool, str)):
        return str.__str__(value) if isinstance(value, str) else value  # an Enum's own str is its name
    if isinstance(value, np.generic):
        if value.dtype.kind == "c" and value.dtype.name in _DTYPES:
            return {"$": _array(value, key, arrays)}  # JSON has no complex numbers
        if value.dtype.name in _DTYPES:
            return value.item()
        raise Unsendable(f"{_at(key)} is a numpy {value.dtype.name}, which cannot travel")
    if isinstance(value, numbers.Integral):
        if int(value).bit_length() > _MAX_BITS:
            raise Unsendable(f"{_at(key)} is a number that is too long to travel, of {int(value).bit_length()} bits")
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, complex):
        return {"$": _array(value, key, arrays)}
    if _of_mathutils(value):
        return {"$": _array(np.array(value, np.float32), key, arrays)}  # their own precision
    if depth == MAX_DEPTH:
        raise Unsendable(f"{_at(key)} is nested more than {MAX_DEPTH} deep")
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{key}[{i}]", arrays, depth + 1) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        tree = {}
        for name, item in value.items():
            if not isinstance(name, str):
                raise Unsendable(f"{_at(key)} has the key {name!r}; keys must be strings")
            # A user's own "$..." keys are escaped by one more "$".
            tree["$" + name if name.startswith("$") else name] = _plain(
                item, f"{key}.{name}" if key else name, arrays, depth + 1
            )
        return tree
    raise Unsendable(
        f"{_at(key)} is a {type(value).__module__}.{type(value).__qualname__}, which cannot travel; what can: numpy "
        f"arrays and scalars, numbers, bool, str, None, mathutils vectors and matrices, and lists, tuples and dicts of those"
    )


def _of_mathutils(value: Any) -> bool:
    # Never imported here: where it is not loaded nobody has its values. They say that they are of "builtins".
    mathutils = sys.modules.get("mathutils")
    names = ("Vector", "Matrix", "Quaternion", "Euler", "Color")
    return mathutils is not None and isinstance(value, tuple(getattr(mathutils, name) for name in names))


def _array(value: Any, key: str, arrays: list[np.ndarray[Any, Any]]) -> int:
    array = np.asarray(value)
    name = _NAMES.get(array.dtype) or array.dtype.name  # the latter for the other byte order
    if name not in _DTYPES or array.ndim > MAX_RANK:
        raise Unsendable(
            f"{_at(key)} is an array of dtype {array.dtype} and rank {array.ndim}, which cannot travel; "
            f"dtypes: {', '.join(_DTYPES)}; rank at most {MAX_RANK}"
        )
    if array.nbytes > MAX_PART:
        raise Unsendable(f"{_at(key)} has {array.nbytes} bytes, at most {MAX_PART} can travel in one array")
    shape = array.shape  # ascontiguousarray makes a 0-d array 1-d
    array = np.ascontiguousarray(array, dtype=_DTYPES[name]).reshape(shape)
    arrays.append(array)
    return len(arrays) - 1


def _at(key: str) -> str:
    return f"value {key!r}" if key else "the returned value"


def bytes_of(part: Any) -> memoryview:
    """Whatever has a buffer, as bytes."""
    view = memoryview(part)
    return view.cast("B") if view.nbytes else memoryview(b"")  # an empty shape cannot be cast


def parse_json(buffer: memoryview, what: str) -> dict[str, Any]:
    """
    Raises:
        ProtocolError: it is no JSON object.
    """
    try:
        value = json.loads(str(buffer, "utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise ProtocolError(f"a {what} that is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise ProtocolError(f"a {what} that is no JSON object but {type(value).__name__}")
    return value


def decode_values(parts: Sequence[Any]) -> dict[str, Any]:
    """The values of parts from `encode_values`: as the other side sees them. Array memory is shared.

    Raises:
        ProtocolError: anything is wrong with them.
    """
    tree, *buffers = [bytes_of(part) for part in parts]
    return decode_tree(parse_json(tree, "tree"), buffers)


def decode_tree(tree: Any, buffers: list[memoryview], hold: Hold | None = None) -> dict[str, Any]:
    """The values of a parsed tree.

    Args:
        buffers: the arrays that were sent.
        hold: gives the memory that is shared with the sender, if any is.

    Raises:
        ProtocolError: anything is wrong with them.
    """
    if (
        not isinstance(tree, dict)
        or not isinstance(tree.get("arrays"), list)
        or not isinstance(tree.get("values"), dict)
    ):
        raise ProtocolError("a tree without arrays or values")
    described = tree["arrays"]
    memory = _held(tree["slot"], hold) if "slot" in tree else None
    sent = sum(isinstance(spec, list) and len(spec) == 2 for spec in described)
    if sent != len(buffers):
        raise ProtocolError(f"{sent} arrays described as sent, {len(buffers)} sent")
    following = iter(buffers)
    arrays = [_view(spec, following, memory) for spec in described]
    return {_key(k): _rich(v, arrays, 0) for k, v in tree["values"].items()}


def _held(slot: Any, hold: Hold | None) -> Array:
    if hold is None:
        raise ProtocolError("arrays in shared memory, of which there is none")
    try:
        return hold(slot if type(slot) is int else -1)
    except ValueError as error:
        raise ProtocolError(f"arrays in shared memory: {error}") from None


def _view(spec: Any, following: Iterator[memoryview], memory: Array | None) -> Array:
    """The array of this description: of the next of the buffers, or at its offset in the memory."""
    if not (isinstance(spec, list) and len(spec) in (2, 3) and isinstance(spec[0], str) and isinstance(spec[1], list)):
        raise ProtocolError(f"an array described as {spec!r:.80}")
    name, shape = spec[:2]
    dtype = _DTYPES.get(name)
    if dtype is None:
        raise ProtocolError(f"an array of dtype {name!r:.80}, which is not allowed")
    if len(shape) > MAX_RANK or not all(type(n) is int and n >= 0 for n in shape):
        raise ProtocolError(f"an array of shape {shape!r:.80}")
    size = math.prod(shape) * dtype.itemsize  # Python's ints cannot overflow
    offset = 0
    buffer: Any
    if len(spec) == 2:
        buffer = next(following)
        if size != buffer.nbytes:
            raise ProtocolError(f"an array {name} {shape!r:.80} in {buffer.nbytes} bytes")
    else:
        buffer, offset = memory, spec[2]
        if memory is None or type(offset) is not int or not 0 <= offset <= memory.nbytes - size:
            raise ProtocolError(f"an array {name} {shape!r:.80} at {offset!r:.80} of shared memory")
    if any(n > sys.maxsize for n in shape):  # 0 * 2**70 is 0
        raise ProtocolError(f"an array of shape {shape!r:.80}")
    try:
        array = np.ndarray(shape, dtype, buffer, offset) if size else np.empty(shape, dtype)
    except (ValueError, TypeError) as error:
        raise ProtocolError(f"an array {name} {shape!r:.80}: {error}") from None
    array.flags.writeable = False
    return array


def _key(name: str) -> str:
    return name.removeprefix("$")


def _rich(value: Any, arrays: list[np.ndarray[Any, Any]], depth: int) -> Any:
    if isinstance(value, (list, dict)) and depth == MAX_DEPTH + 1:
        raise ProtocolError(f"values nested more than {MAX_DEPTH} deep")
    if isinstance(value, list):
        return [_rich(item, arrays, depth + 1) for item in value]
    if isinstance(value, dict):
        if "$" in value:
            i = value["$"]
            if len(value) != 1 or type(i) is not int or not 0 <= i < len(arrays):
                raise ProtocolError(f"no array {value!r:.80}")
            return arrays[i]
        return {_key(k): _rich(v, arrays, depth + 1) for k, v in value.items()}
    return value
