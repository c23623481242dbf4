"""JSON as text and back, strictly. For small messages it is faster than `json.dumps` and `json.loads`, as it calls their
encoder and scanner directly."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import ProtocolError

_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


def _encode_in_c() -> Callable[[Any, int], Sequence[str]] | None:
    """Return the encoder that JSONEncoder makes of itself anew at each call, which takes longer than a small message."""
    make = getattr(json.encoder, "c_make_encoder", None)  # another Python may have none
    if make is None:
        return None
    quoted = json.encoder.encode_basestring_ascii
    encode: Callable[[Any, int], Sequence[str]] = make(
        None, _ENCODER.default, quoted, None, ":", ",", False, False, False
    )
    return encode


_in_c = _encode_in_c()


def dumps(value: Any) -> str:
    """Return a value as JSON.

    Raises:
        ValueError: It has a float that JSON has not.
        TypeError: It has something else that JSON has not.
    """
    return _ENCODER.encode(value) if _in_c is None else "".join(_in_c(value, 0))


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
_scan: Callable[[str, int], tuple[Any, int]] = vars(_DECODER)["scan_once"]


def _loads(text: str) -> Any:
    try:
        value, end = _scan(text, 0)  # what `decode` calls in the end, past two regular expressions
    except StopIteration:
        end = -1
    return value if end == len(text) else _DECODER.decode(text)


def parse_json(buffer: memoryview, what: str) -> dict[str, Any]:
    """Return the JSON object in a buffer. Raises ProtocolError if it is none."""
    try:
        value = _loads(str(buffer, "utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise ProtocolError(f"a {what} that is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise ProtocolError(f"a {what} that is no JSON object but {type(value).__name__}")
    return value
