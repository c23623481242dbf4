"""Payload: nested values as JSON and raw arrays. Both sides of the wire run this code, and recordings use its tree.

A *tree* is strict JSON. Three kinds of objects in it have a meaning of their own:

    {"$": 3}               an array; messages refer to it by its number, recordings by the name of its file
    {"$float": "nan"}      a float that JSON does not have: nan, inf or -inf
    {"$$name": ...}        a dict of the user's with the key "$name": such keys get one more "$"

A message carries `{"arrays": [[dtype, shape], ...], "values": tree}`, and after it the bytes of each array, little-endian
and in C order. An array in shared memory has no bytes in the message: its description is `[dtype, shape, offset]`, and
"slot" says in which slot it lies. Nothing is unpickled, and each array is checked against the bytes at hand before
anything is allocated for it.
"""

from __future__ import annotations

import math
import numbers
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ..errors import ProtocolError
from .json_text import dumps, parse_json

MAX_PIECE = 16 * 1024 * 1024
"""Bytes of one part of a message. Small, because ZeroMQ reads a whole part before it asks who sends it."""

MAX_TREE = MAX_PIECE
MAX_PARTS = 8192
MAX_ARRAYS = 4096
MAX_ARRAY = 1 << 30
MAX_RANK = 8
MAX_DEPTH = 32
_MAX_BITS = 14_000  # Python's JSON parser reads integers of at most 4300 digits

_INTEGERS = [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
DTYPES = {
    name: np.dtype(name).newbyteorder("<")
    for name in ("bool", *_INTEGERS, "float16", "float32", "float64", "complex64", "complex128")
}
_PLAIN = frozenset((type(None), bool, str, float, int))
"""Types of parsed JSON that hold nothing else."""
_IN_JSON = frozenset((type(None), bool, str))
"""Types of values that are in JSON what they are. Not int: one that is too long cannot be read."""
_SHORT = 1 << 63
_SCALARS = frozenset(dtype.type for dtype in DTYPES.values() if dtype.kind != "c")
"""Types of numpy's numbers that travel as Python's."""
_NAMES = {np.dtype(name): name for name in DTYPES}  # faster than dtype.name, which numpy computes at each call

_AS_IT_LIES = _NAMES if sys.byteorder == "little" else {}


class Unsendable(TypeError):
    """A value cannot travel. The message names its key."""


Array = np.ndarray[Any, Any]
Hold = Callable[[int], Array]
"""Returns the whole shared memory as bytes, and keeps the slot in use until the last view is gone.

Raises ValueError if there is no such slot."""


class Shared(Protocol):
    """Memory that the other side sees too."""

    def put(self, arrays: Sequence[Array]) -> tuple[int, Sequence[int | None]] | None:
        """Copy arrays into a free slot.

        Returns:
            The slot, and for each array its offset, or None if it was not copied. None if no array was copied.
        """

    def free(self, slot: int) -> None:
        """Give back a slot whose message is not sent."""


def encode_values(values: Mapping[str, Any], shared: Shared | None = None) -> list[Any]:
    """Return the parts of a message: the JSON as bytes, then C-contiguous little-endian arrays.

    Arrays that are contiguous already are not copied: do not change them before they are sent. Arrays that `shared`
    takes are copied there and are not among the parts.

    Raises:
        Unsendable: A value has a type that cannot travel, or is too large. The message names its key.
    """
    # To ask an abstract class is slow, and nearly all values are plain dicts.
    if type(values) is not dict and not isinstance(values, Mapping):
        raise Unsendable(f"expected a dict of values, got {type(values).__name__}")
    arrays: list[Array] = []

    def store(array: Array, key: str) -> int:
        arrays.append(array)
        return len(arrays) - 1

    tree = _dict_to_tree(values, "", store, 0)
    if len(arrays) > MAX_ARRAYS:
        raise Unsendable(f"{len(arrays)} arrays in one sample, at most {MAX_ARRAYS} can travel; stack them")
    described: list[list[Any]] = [[_NAMES[a.dtype], a.shape] for a in arrays]
    message: dict[str, Any] = {"arrays": described, "values": tree}
    if arrays and shared is not None and (placed := shared.put(arrays)) is not None:
        message["slot"], offsets = placed
        for description, offset in zip(described, offsets, strict=True):
            if offset is not None:
                description.append(offset)
        arrays = [array for array, offset in zip(arrays, offsets, strict=True) if offset is None]
    data = dumps(message).encode()
    if len(data) > MAX_TREE:
        if shared is not None and "slot" in message:
            shared.free(message["slot"])
        raise Unsendable(f"{len(data)} bytes of values that are not arrays, at most {MAX_TREE} can travel; make arrays")
    return [data, *arrays]


def pieces(array: Any) -> list[Any]:
    """Return the parts of a message that carry this array: itself, or pieces of 16 MiB if it is larger."""
    if memoryview(array).nbytes <= MAX_PIECE:
        return [array]
    data = np.frombuffer(array, np.uint8)
    return [data[start : start + MAX_PIECE] for start in range(0, len(data), MAX_PIECE)]


def to_tree(value: Any, key: str, store: Callable[[Array, str], Any], depth: int = 0) -> Any:
    """Return `value` as a tree.

    Args:
        key: The path to the value, such as "labels[0].name". "" is the path of all values.
        store: Called with each array, C-contiguous and little-endian, and its path. Returns the array's reference.
        depth: How many lists and dicts the value is in.

    Raises:
        Unsendable: A value has a type that cannot travel, or is too large. The message names its key.
    """
    if type(value) in _SCALARS:
        value = value.item()
    kind = type(value)
    # First what most values are: a small frame is encoded in half the time.
    if kind in _IN_JSON or (kind is float and math.isfinite(value)) or (kind is int and abs(value) < _SHORT):
        return value
    if kind is dict and depth < MAX_DEPTH:
        return _dict_to_tree(value, key, store, depth)
    if isinstance(value, (np.ndarray, complex, np.complexfloating)):  # JSON has no complex numbers
        return {"$": store(_contiguous(value, key), key)}
    if isinstance(value, str):
        return str.__str__(value)  # str() of an Enum would be its name
    if isinstance(value, np.generic):
        raise Unsendable(f"{_at(key)} is a numpy {value.dtype.name}, which cannot travel")
    if isinstance(value, numbers.Integral):
        if int(value).bit_length() > _MAX_BITS:
            raise Unsendable(f"{_at(key)} is a number that is too long to travel, of {int(value).bit_length()} bits")
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": str(float(value))}
    if _is_mathutils(value):
        return {"$": store(_contiguous(np.array(value, np.float32), key), key)}  # Blender's own precision
    if _is_tensor(value):
        return {"$": store(_contiguous(_from_tensor(value, key), key), key)}
    if depth == MAX_DEPTH:
        raise Unsendable(f"{_at(key)} is nested more than {MAX_DEPTH} deep")
    if isinstance(value, (list, tuple)):
        return [to_tree(item, f"{key}[{i}]", store, depth + 1) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        return _dict_to_tree(value, key, store, depth)
    raise Unsendable(
        f"{_at(key)} is a {type(value).__module__}.{type(value).__qualname__}, which cannot travel; what can: numpy "
        f"arrays and scalars, torch's tensors, numbers, bool, str, None, mathutils vectors and matrices, and lists, tuples "
        f"and dicts of those"
    )


def _dict_to_tree(value: Mapping[Any, Any], key: str, store: Callable[[Array, str], Any], depth: int) -> dict[str, Any]:
    tree = {}
    for name, item in value.items():
        if not isinstance(name, str):
            raise Unsendable(f"{_at(key)} has the key {name!r}; keys must be strings")
        kind = type(item)
        if kind is np.ndarray:  # as in `to_tree`, without the call
            path = f"{key}.{name}" if key else name
            item = {"$": store(_contiguous(item, path), path)}
        elif kind not in _IN_JSON and not (kind is float and math.isfinite(item)):
            item = to_tree(item, f"{key}.{name}" if key else name, store, depth + 1)
        tree["$" + name if name[:1] == "$" else name] = item
    return tree


def from_tree(tree: Any, fetch: Callable[[Any], Array], depth: int = 0) -> Any:
    """Return the value of a tree, parsed from JSON that nobody has checked yet.

    Args:
        fetch: Returns the array of a reference, which may be any JSON value, or raises.
        depth: How many lists and dicts the tree is in.

    Raises:
        ProtocolError: The tree is none that `to_tree` gives.
    """
    kind = type(tree)
    if kind is not dict and kind is not list:
        return tree
    if depth > MAX_DEPTH:
        raise ProtocolError(f"values nested more than {MAX_DEPTH} deep")
    if kind is list:
        return [from_tree(item, fetch, depth + 1) for item in tree]
    if len(tree) == 1 and "$" in tree:
        return fetch(tree["$"])
    if "$" in tree or "$float" in tree:
        if len(tree) == 1 and tree["$float"] in ("nan", "inf", "-inf"):
            return float(tree["$float"])
        # Not the tree itself: its text may be as large as the message, and nested too deeply to be made.
        raise ProtocolError(f"no array and no number: an object of {', '.join(tree):.80}")
    return {
        _plain(name) if name[:1] == "$" else name: item if type(item) in _PLAIN else from_tree(item, fetch, depth + 1)
        for name, item in tree.items()
    }


def _plain(name: str) -> str:
    """Return the key of the user's that is written as `name`, which begins with "$", in a tree."""
    if not name.startswith("$$"):
        raise ProtocolError(f"a key {name!r:.80}, which no dict is written with")
    return name[1:]


def _is_mathutils(value: Any) -> bool:
    # Not imported: where nobody has loaded mathutils, nobody has its values. Their __module__ is "builtins".
    mathutils = sys.modules.get("mathutils")
    names = ("Vector", "Matrix", "Quaternion", "Euler", "Color")
    return mathutils is not None and isinstance(value, tuple(getattr(mathutils, name) for name in names))


def _is_tensor(value: Any) -> bool:
    # Not imported, as mathutils is not.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _from_tensor(tensor: Any, key: str) -> Array:
    try:
        return np.asarray(tensor.detach().cpu())
    except (TypeError, RuntimeError, ValueError) as error:  # a dtype or a layout that numpy has not
        raise Unsendable(
            f"{_at(key)} is a {tensor.dtype} tensor that numpy cannot hold; convert it first ({error})"
        ) from None


def _contiguous(value: Any, key: str) -> Array:
    """Return the value as an array that can travel as it lies in memory."""
    if type(value) is not np.ndarray:
        if isinstance(value, np.ma.MaskedArray):
            raise Unsendable(
                f"{_at(key)} is a masked array, whose mask would be lost; fill it with its `filled(value)`, or let `data` "
                f"and `mask` travel as two arrays"
            )
        value = np.asarray(value)
    array: Array = value
    if array.dtype in _AS_IT_LIES and array.flags.c_contiguous and array.ndim <= MAX_RANK and array.nbytes <= MAX_ARRAY:
        return array
    name = _NAMES.get(array.dtype) or array.dtype.name  # the latter finds dtypes of the other byte order
    if name not in DTYPES or array.ndim > MAX_RANK:
        raise Unsendable(
            f"{_at(key)} is an array of dtype {array.dtype} and rank {array.ndim}, which cannot travel; "
            f"dtypes: {', '.join(DTYPES)}; rank at most {MAX_RANK}"
        )
    if array.nbytes > MAX_ARRAY:
        raise Unsendable(f"{_at(key)} has {array.nbytes} bytes, at most {MAX_ARRAY} can travel in one array")
    # reshape, because ascontiguousarray makes a 0-d array 1-d.
    return np.ascontiguousarray(array, dtype=DTYPES[name]).reshape(array.shape)


def _at(key: str) -> str:
    return f"value {key!r}" if key else "the returned value"


def bytes_of(part: Any) -> memoryview:
    """Return a view of anything that has a buffer, as bytes."""
    view = memoryview(part)
    if type(part) is bytes:
        return view
    return view.cast("B") if view.nbytes else memoryview(b"")  # a view of an empty array cannot be cast


def decode_values(parts: Sequence[Any], hold: Hold | None = None) -> dict[str, Any]:
    """Return the values of parts from `encode_values`, as the other side sees them. The arrays share the parts' memory.

    Args:
        hold: Gives the memory that is shared with the sender. None if there is none.

    Raises:
        ProtocolError: Anything is wrong with the parts.
    """
    tree, *buffers = [bytes_of(part) for part in parts]
    return decode_tree(parse_json(tree, "tree"), buffers, hold)


def decode_tree(message: Any, buffers: list[memoryview], hold: Hold | None = None) -> dict[str, Any]:
    """Return the values of a parsed `{"arrays": ..., "values": ...}`. The arrays are read-only views.

    Args:
        buffers: The bytes of the arrays that are in the message.
        hold: Gives the memory that is shared with the sender. None if there is none.

    Raises:
        ProtocolError: Anything is wrong with them.
    """
    if not isinstance(message, dict) or not isinstance(message.get("arrays"), list):
        raise ProtocolError("a tree without arrays or values")
    described = message["arrays"]
    if len(described) > MAX_ARRAYS:
        raise ProtocolError(f"{len(described)} arrays in one message")
    memory = _shared_memory(message["slot"], hold) if "slot" in message else None
    unused = deque(buffers)
    arrays = [_view(spec, unused, memory) for spec in described]
    if unused:
        raise ProtocolError(f"{len(unused)} parts that nothing describes")

    def fetch(number: Any) -> Array:
        if type(number) is not int or not 0 <= number < len(arrays):
            raise ProtocolError(f"no array {number!r:.80}")
        return arrays[number]

    values = from_tree(message.get("values"), fetch)
    if not isinstance(values, dict):
        raise ProtocolError("a tree without arrays or values")
    return values


def _shared_memory(slot: Any, hold: Hold | None) -> Array:
    if hold is None:
        raise ProtocolError("arrays in shared memory, of which there is none")
    try:
        return hold(slot if type(slot) is int else -1)
    except ValueError as error:
        raise ProtocolError(f"arrays in shared memory: {error}") from None


def _sent(unused: deque[memoryview], size: int) -> memoryview:
    """Take the bytes of an array, which are not one whole part, from the parts: pieces, which are joined.

    Raises:
        ProtocolError: There are fewer or more bytes.
    """
    taken = [unused.popleft()] if unused else []
    found = sum(part.nbytes for part in taken)
    while size > MAX_PIECE and unused and found < size:
        taken.append(unused.popleft())
        found += taken[-1].nbytes
    if not taken or found != size:
        raise ProtocolError(f"an array of {size} bytes in {found} bytes")
    return memoryview(b"".join(taken))


def _view(spec: Any, unused: deque[memoryview], memory: Array | None) -> Array:
    """Return the described array, from the next unused buffer or from its offset in the shared memory."""
    if not (type(spec) is list and len(spec) in (2, 3) and type(spec[0]) is str and type(spec[1]) is list):
        raise ProtocolError(f"an array described as {spec!r:.80}")
    name, shape = spec[:2]
    dtype = DTYPES.get(name)
    if dtype is None:
        raise ProtocolError(f"an array of dtype {name!r:.80}, which is not allowed")
    size = dtype.itemsize  # Python's integers cannot overflow
    for side in shape if len(shape) <= MAX_RANK else [None]:
        # numpy refuses a side over maxsize only where the array is not empty: 0 * 2**70 is 0.
        if type(side) is not int or not 0 <= side <= sys.maxsize:
            raise ProtocolError(f"an array of shape {shape!r:.80}")
        size *= side
    offset = 0
    buffer: Any
    if len(spec) == 2:
        buffer = unused.popleft() if unused and unused[0].nbytes == size else _sent(unused, size)
    else:
        buffer, offset = memory, spec[2]
        if memory is None or type(offset) is not int or not 0 <= offset <= memory.nbytes - size:
            raise ProtocolError(f"an array {name} {shape!r:.80} at {offset!r:.80} of shared memory")
    try:
        array = np.ndarray(shape, dtype, buffer, offset) if size else np.empty(shape, dtype)
    except (ValueError, TypeError) as error:
        raise ProtocolError(f"an array {name} {shape!r:.80}: {error}") from None
    array.flags.writeable = False
    return array
