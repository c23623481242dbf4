"""What the tests of the wire share: messages to send, and what the other side must get."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from asyncblend.errors import ProtocolError
from asyncblend.wire import payload, protocol

DTYPES = [
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
]
TOKEN = "5ca1ab1e"

# The fields of each kind of message.
ABOUT: dict[str, Any] = {"pass": 4, "lease": 7, "index": 3}
WHO: dict[str, Any] = {"token": TOKEN, "version": protocol.VERSION, "instance": 2, "epoch": 1}
HELLO: dict[str, Any] = {**WHO, "ready": True, "holding": [1, 2]}
LEASE: dict[str, Any] = {**ABOUT, "urgent": False}
LEASES: dict[str, Any] = {"leases": [[4, 7, 3, False], [5, 0, 9, True, {"arrays": [], "values": {"n": 1}}]]}
REVOKE: dict[str, Any] = {"pass": 4, "leases": [7, 8]}
FAILED: dict[str, Any] = {**ABOUT, "error": "e", "traceback": "t"}
WELCOME: dict[str, Any] = {"version": 1, "seed": 0}
STOP: dict[str, Any] = {"reason": ""}


def travelled(parts: Sequence[Any]) -> list[bytes]:
    """Return the parts as a socket gives them to the other side."""
    return [part if isinstance(part, bytes) else part.tobytes() for part in parts]


def round_trip(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return these values as they arrive in a FRAME."""
    message = protocol.decode(travelled(protocol.encode(protocol.FRAME, ABOUT, payload.encode_values(values))))
    assert (message.kind, message.fields) == (protocol.FRAME, ABOUT)
    assert message.values is not None
    return message.values


def arrived(value: Any) -> Any:
    """Return what the other side is promised for this value."""
    if isinstance(value, np.ndarray):
        return value.astype(value.dtype.newbyteorder("<"), order="C")
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return [arrived(item) for item in value]
    if isinstance(value, dict):
        return {name: arrived(item) for name, item in value.items()}
    if isinstance(value, str):  # JSON's escapes cannot tell a pair of surrogates from the character that it stands for
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    return value


def check_same(got: Any, expected: Any) -> None:
    """Fail unless the values have the same types and bits, and arrays are read-only and C-contiguous."""
    assert type(got) is type(expected)
    if isinstance(got, np.ndarray):
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        assert got.tobytes() == expected.tobytes()
        assert not got.flags.writeable
        assert got.flags.c_contiguous
    elif isinstance(got, list):
        assert len(got) == len(expected)
        for own, other in zip(got, expected, strict=True):
            check_same(own, other)
    elif isinstance(got, dict):
        assert list(got) == list(expected)
        for name in got:
            check_same(got[name], expected[name])
    else:
        assert repr(got) == repr(expected)  # tells NaN, -0.0 and 1 from True, as == does not


def refused(parts: Sequence[Any]) -> str:
    """Return the message of the ProtocolError that these parts must raise."""
    with pytest.raises(ProtocolError) as caught:
        protocol.decode(parts)
    return str(caught.value)


def header(**fields: Any) -> bytes:
    """Return a header with these fields, of which any may be wrong."""
    return json.dumps(fields).encode()


def frame_with(tree: Any, **fields: Any) -> bytes:
    """Return the header of a FRAME with this tree."""
    return header(kind="frame", **ABOUT, tree=tree, **fields)


def frame_of(dtype: Any, shape: Any) -> bytes:
    """Return the header of a FRAME with one array."""
    return frame_with({"arrays": [[dtype, shape]], "values": {"x": {"$": 0}}})
