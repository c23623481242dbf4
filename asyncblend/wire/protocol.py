"""The wire format: between messages and lists of byte buffers. No sockets; the same code on both sides.

A message is a list of parts: a JSON header of at most 64 KiB, then, for what carries values, raw buffers:

    [header]                                   control
    [header, array, array, ...]                values whose tree fits into the header
    [header, tree, array, array, ...]          values whose tree does not

What a tree is, and how values become one, is in `payload`.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import ProtocolError
from . import payload
from .launch import Life
from .payload import Hold, bytes_of, decode_tree, dumps, parse_json

__all__ = [
    "BEAT",
    "BYE",
    "FAILED",
    "FRAME",
    "HELLO",
    "LEASE",
    "MAX_HEADER",
    "READY",
    "REVOKE",
    "STOP",
    "VERSION",
    "WELCOME",
    "Message",
    "check_version",
    "decode",
    "encode",
    "field",
    "life_of",
    "pairs",
]

VERSION = 3

# From Blender.
HELLO = "hello"  # token, version, instance, epoch; first on the socket, and again whenever the host asks
READY = "ready"  # blender (its version; may be missing); the script called serve
FRAME = "frame"  # pass, lease (its serial in the pass), index, values
FAILED = "failed"  # pass, lease, index, error, traceback
BEAT = "beat"  # token, version, instance, epoch, rss (bytes; may be missing); on a socket of its own
BYE = "bye"
# From the host. HELLO from the host means: I do not know you, say HELLO again.
WELCOME = "welcome"  # version, seed
LEASE = "lease"  # pass, lease, index, urgent (before what is not begun), values (the params)
REVOKE = "revoke"  # pass, leases (serials, which are not to be begun)
STOP = "stop"  # reason

MAX_HEADER = 64 * 1024

_INT, _STR = int, str
_FIELDS: dict[str, dict[str, type]] = {
    HELLO: {},
    READY: {},
    FRAME: {"pass": _INT, "lease": _INT, "index": _INT},
    FAILED: {"pass": _INT, "lease": _INT, "index": _INT, "error": _STR, "traceback": _STR},
    BEAT: {"token": _STR, "version": _INT, "instance": _INT, "epoch": _INT},
    BYE: {},
    WELCOME: {"version": _INT, "seed": _INT},
    LEASE: {"pass": _INT, "lease": _INT, "index": _INT, "urgent": bool},
    REVOKE: {"pass": _INT, "leases": list},
    STOP: {"reason": _STR},
}
"""Fields that each kind must have. HELLO's are checked by `life_of`, after its version."""


class Message(NamedTuple):
    """A decoded message."""

    kind: str
    fields: Mapping[str, Any]
    """The header's fields, of the right types."""
    values: dict[str, Any] | None
    """What a FRAME or LEASE carries; arrays are read-only views of the received buffers."""


def encode(kind: str, fields: Mapping[str, Any], values: Sequence[Any] = ()) -> list[Any]:
    """The parts of a message; `values` are the parts from `encode_values`."""
    header = {"kind": kind, **fields}
    parts: list[Any] = []
    if values:
        tree, *arrays = values
        parts = list(arrays)
        head = dumps(header).encode()
        # Spliced as text, so that a LEASE sent again, and every big tree, is serialised once.
        inline = head[:-1] + b',"tree":' + tree + b"}"
        if len(inline) <= MAX_HEADER:
            return [inline, *parts]
        header["apart"] = True
        parts.insert(0, tree)
    head = dumps(header).encode()
    assert len(head) <= MAX_HEADER, f"a header of {len(head)} bytes"  # the other side would drop it
    return [head, *parts]


def decode(parts: Sequence[Any], hold: Hold | None = None, *, values: bool = True) -> Message:
    """The message of these parts (bytes, or anything with a buffer). Array memory is shared, not copied.

    Args:
        hold: gives the memory that is shared with the sender, if any is.
        values: whether what it carries is wanted. Otherwise it is not looked at.

    Raises:
        ProtocolError: anything at all is wrong with them.
    """
    if not 1 <= len(parts) <= payload.MAX_PARTS:
        raise ProtocolError(f"a message of {len(parts)} parts")
    buffers = [bytes_of(part) for part in parts]
    if buffers[0].nbytes > MAX_HEADER:
        raise ProtocolError(f"a header of {buffers[0].nbytes} bytes, at most {MAX_HEADER} are allowed")
    header = parse_json(buffers[0], "header")
    kind = header.pop("kind", None)
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise ProtocolError(f"a message of unknown kind {kind!r:.80}")
    for name, of in _FIELDS[kind].items():
        field(header, name, of)
    body = buffers[1:]
    if header.pop("apart", False) is True:
        if not body or body[0].nbytes > payload.MAX_TREE:
            raise ProtocolError(f"a {kind} whose tree is missing or too large")
        tree: Any = parse_json(body.pop(0), "tree")
    else:
        tree = header.pop("tree", None)
    if tree is not None:
        return Message(kind, header, decode_tree(tree, body, hold) if values else None)
    if body:
        raise ProtocolError(f"a {kind} with {len(body)} parts that nothing describes")
    if kind in (FRAME, LEASE):
        raise ProtocolError(f"a {kind} without values")
    return Message(kind, header, None)


def field(fields: Mapping[str, Any], name: str, of: type) -> Any:
    """The field of that name and type.

    Raises:
        ProtocolError: it is missing, of another type, or negative.
    """
    value = fields.get(name)
    # Not isinstance: True is no int here.
    if type(value) is not of or (isinstance(value, int) and value < 0):
        raise ProtocolError(f"field {name!r} must be a {of.__name__}, got {value!r:.80}")
    return value


def pairs(fields: Mapping[str, Any], name: str) -> list[tuple[int, int]]:
    """Return the field of that name, a list of pairs of whole numbers.

    Raises:
        ProtocolError: It is something else.
    """
    value = field(fields, name, list)
    if not all(isinstance(one, list) and [type(part) for part in one] == [int, int] for one in value):
        raise ProtocolError(f"field {name!r} must be a list of pairs of whole numbers, got {value!r:.80}")
    return [(one[0], one[1]) for one in value]


def life_of(fields: Mapping[str, Any], token: str) -> Life:
    """Who sent this HELLO or BEAT.

    Raises:
        ProtocolError: a wrong token, another protocol version, or bad fields.
    """
    if not hmac.compare_digest(field(fields, "token", str).encode(errors="replace"), token.encode()):
        raise ProtocolError("a wrong token: the sender is not of this run")
    check_version(fields, "Blender's side")
    return Life(field(fields, "instance", int), field(fields, "epoch", int))


def check_version(fields: Mapping[str, Any], sender: str) -> None:
    """Refuse another protocol version.

    Raises:
        ProtocolError: names both versions.
    """
    if fields.get("version") != VERSION:
        raise ProtocolError(
            f"{sender} speaks protocol version {fields.get('version')!r:.40}, this asyncblend speaks {VERSION}: "
            f"two copies of asyncblend are mixed, install the same on both sides"
        )
