"""The messages of the wire, and their form as lists of byte buffers. No sockets; the same code on both sides.

A message is a list of parts: a JSON header of at most 64 KiB, and, if it carries values, raw buffers:

    [header]                                   no values
    [header, array, array, ...]                values whose JSON (their "tree") fits into the header
    [header, tree, array, array, ...]          values whose tree does not fit

`payload` says what a tree is and how values become one.

The life of a connection:

    Blender                          host
    HELLO           ->
                    <-               WELCOME      or STOP, if the token, the version or the life is wrong
    READY           ->                            when the script calls serve
                    <-               LEASE        several may be held; "urgent" ones go before all that is not begun
                    <-               LEASES       the same of several that are leased at once
    FRAME | FAILED  ->                            the answer to one lease
                    <-               REVOKE       leases that are not to be begun any more, or not to be gone on with
                    <-               STOP
    BYE             ->

An episode is a lease with several frames: a sample function that is a generator.

                    <-               LEASE        allows the steps up to "first"; those before it are made and not sent
    REPLAYED        ->                            such a step was made
    FRAME           ->                            the answer to one step; "last" ends the episode
                    <-               STEP         allows another step
    OVER            ->                            instead of a FRAME that is the last one: after REVOKE, or when the
                                                  end cannot be known before, as each STEP brings its params

Where the host has asked for it in the LEASE, and its Blender has offered it with a FRAME, the further steps of an episode
go over a `line` and back, until one of the two goes on with messages.

A lease is named by its pass and its serial in that pass. BEAT comes every second or so on a socket of its own. The host
answers whatever comes on a connection that it does not know with HELLO, which asks for HELLO; so a dropped connection
that comes back under a new identity is known again, and "holding" tells the host which leases were not lost.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import ProtocolError
from . import payload
from .json_text import dumps, parse_json
from .launch import Life
from .payload import Hold, bytes_of, decode_tree

VERSION = 7

# The kinds of messages that Blender sends, and their fields.
HELLO = "hello"  # token, version, instance, epoch, ready (whether it serves), holding (pairs of pass and serial: leases
# that are not begun), open (the same of an episode that is begun; none or one), line (whether the latest frame of that
# went over the line; may be missing)
READY = "ready"  # blender (its version; may be missing), warnings (texts about the scene; may be missing)
FRAME = "frame"  # pass, lease (its serial), index; of an episode step, last, fingerprint (of the first frame); carries
# the values of the sample; line (whether the next step may come over the line); sample, render, capture (what the frame
# took in Blender, in microseconds; may be missing)
REPLAYED = "replayed"  # pass, lease, step
OVER = "over"  # pass, lease
FAILED = "failed"  # pass, lease, index, error, traceback
BEAT = "beat"  # token, version, instance, epoch, rss (resident memory in bytes; may be missing)
BYE = "bye"
# Those that the host sends, besides HELLO without fields.
WELCOME = "welcome"  # version, seed
LEASE = "lease"  # pass, lease (its serial), index, urgent; of an episode first (the first step to send), on_demand
# (whether each STEP brings params, and nothing is made before it comes), fingerprint (of the first frame, if that was
# sent before), line (whether the host may send steps over the line); carries the params
LEASES = "leases"  # leases, each a list of pass, lease, index, urgent, and the tree of its params, without which it has
# none. Those of which more is to be said, or whose params have arrays, come each in a LEASE
STEP = "step"  # pass, lease, step; carries its params, or none: then those of the lease hold
REVOKE = "revoke"  # pass, leases (their serials)
STOP = "stop"  # reason; "" at the usual end

MAX_HEADER = 64 * 1024
MAX_LEASES = 256  # in one message

Name = tuple[int, int]
"""Names a lease: the number of its pass, and its serial in that."""

_INT, _STR = int, str
_FIELDS: dict[str, dict[str, type]] = {
    HELLO: {},
    READY: {},
    FRAME: {"pass": _INT, "lease": _INT, "index": _INT},
    REPLAYED: {"pass": _INT, "lease": _INT, "step": _INT},
    OVER: {"pass": _INT, "lease": _INT},
    FAILED: {"pass": _INT, "lease": _INT, "index": _INT, "error": _STR, "traceback": _STR},
    BEAT: {"token": _STR, "version": _INT, "instance": _INT, "epoch": _INT},
    BYE: {},
    WELCOME: {"version": _INT, "seed": _INT},
    LEASE: {"pass": _INT, "lease": _INT, "index": _INT, "urgent": bool},
    LEASES: {"leases": list},
    STEP: {"pass": _INT, "lease": _INT, "step": _INT},
    REVOKE: {"pass": _INT, "leases": list},
    STOP: {"reason": _STR},
}
"""Fields that each kind must have. The fields of HELLO are checked later, after its version."""

_OPTIONAL: dict[str, tuple[tuple[str, type], ...]] = {
    FRAME: (
        ("sample", _INT),
        ("render", _INT),
        ("capture", _INT),
        ("step", _INT),
        ("last", bool),
        ("fingerprint", list),
        ("line", bool),
    ),
    LEASE: (("first", _INT), ("on_demand", bool), ("fingerprint", list), ("line", bool)),
}
"""Fields that may be missing. Only episodes have them, but for the times, which each FRAME may have: a FRAME without "step"
is a whole sample, and a LEASE without "first" begins one. The times "sample", "render" and "capture" are microseconds."""

_MICROSECONDS = 1_000_000
_TIMES = frozenset(("sample", "render", "capture"))
_LONGEST = 10**12  # microseconds, some days


class Spent(NamedTuple):
    """What a frame took in Blender, in seconds."""

    sample: float = 0.0
    """The script's sample function, with all that it called."""
    render: float = 0.0
    """Of that, Blender's rendering in `bl.render`; 0 if the script does not call it."""
    capture: float = 0.0
    """Of that, the rest of `bl.render`: reading, view transform, labels and files."""

    def fields(self) -> dict[str, int]:
        """Return the fields of a FRAME: whole microseconds, leaving out render and capture if bl.render was not called."""
        fields = {"sample": round(_MICROSECONDS * self.sample)}
        if self.render or self.capture:
            fields["render"] = round(_MICROSECONDS * self.render)
            fields["capture"] = round(_MICROSECONDS * self.capture)
        return fields

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Spent | None:
        """Read the fields of a FRAME. None: it has none."""
        if (sample := fields.get("sample")) is None:
            return None
        if "render" not in fields:
            return cls(sample / _MICROSECONDS)
        return cls(*(one / _MICROSECONDS for one in (sample, fields["render"], fields.get("capture", 0))))


class Step(NamedTuple):
    """Which frame of its sample a FRAME is."""

    number: int = 0
    last: bool = True
    fingerprint: Sequence[Any] = ()  # Of an episode's first frame
    line: bool = False  # Whether its Blender also takes the next step over the line
    spent: Spent | None = None  # What it took, if that is known

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Step:
        """Read the fields of a FRAME."""
        spent = Spent.of(fields)
        if "step" not in fields and "last" not in fields:
            return cls(0, True, (), False, spent)
        last, fingerprint = fields.get("last", True), fields.get("fingerprint", ())
        return cls(fields.get("step", 0), last, fingerprint, fields.get("line", False), spent)


WHOLE = Step()
"""The only frame of a sample."""


class UnreadableValues(ProtocolError):
    """The header of a message is good, but the values that it carries are not."""

    def __init__(self, text: str, kind: str, fields: Mapping[str, Any]) -> None:
        super().__init__(text)
        self.kind: str = kind
        self.fields: Mapping[str, Any] = fields

    def __reduce__(self) -> tuple[type[UnreadableValues], tuple[Any, ...]]:
        return type(self), (str(self), self.kind, self.fields)


class WrongToken(ProtocolError):
    """The other side is not of this run."""


class WrongVersion(ProtocolError):
    """The other side speaks another version of the protocol."""


class Message(NamedTuple):
    """A decoded message."""

    kind: str
    fields: Mapping[str, Any]
    """The fields of the header, of the right types. The "leases" of a LEASES are LEASE messages."""
    values: dict[str, Any] | None
    """What a FRAME or LEASE carries. Arrays are read-only views of the received buffers."""


def encode(kind: str, fields: Mapping[str, Any], values: Sequence[Any] = ()) -> list[Any]:
    """Return the parts of a message. `values` are the parts from `encode_values`."""
    header = {"kind": kind, **fields}
    parts: list[Any] = []
    if values:
        tree, *arrays = values
        parts = [piece for array in arrays for piece in payload.pieces(array)]
        head = dumps(header).encode()
        # The tree is JSON already and is put in as text, so that it is serialised only once.
        inline = head[:-1] + b',"tree":' + tree + b"}"
        if len(inline) <= MAX_HEADER:
            return [inline, *parts]
        header["apart"] = True
        parts.insert(0, tree)
    head = dumps(header).encode()
    assert len(head) <= MAX_HEADER, f"a header of {len(head)} bytes"  # the other side would drop it
    return [head, *parts]


def decode(parts: Sequence[Any], hold: Hold | None = None, *, values: bool = True) -> Message:
    """Return the message that these parts make (bytes, or anything with a buffer). Arrays share their memory.

    Args:
        parts: All parts of one message.
        hold: Returns the memory that is shared with the sender. None: there is none.
        values: Whether to decode the values that it carries. Otherwise they are not even checked.

    Raises:
        ProtocolError: Anything is wrong with the message.
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
        value: Any = header.get(name)
        found = type(value)
        if found is not of or (of is int and value < 0):
            raise _bad_field(name, of, value)
    for name, of in _OPTIONAL.get(kind, ()):
        if name in header:
            value = header[name]
            found = type(value)
            if found is not of or (of is int and value < 0):
                raise _bad_field(name, of, value)
            if name in _TIMES and value > _LONGEST:
                raise ProtocolError(f"a frame that took {value!r:.80} microseconds")
    try:
        if kind == LEASES and values:
            header["leases"] = _leases(header, buffers[1:])
        return Message(kind, header, _values(kind, header, buffers[1:], hold) if values else None)
    except ProtocolError as error:
        raise UnreadableValues(str(error), kind, header) from None


def _values(kind: str, header: dict[str, Any], body: list[memoryview], hold: Hold | None) -> dict[str, Any] | None:
    """Return the values that a message carries, or None if it carries none; take their tree out of the header."""
    tree = header.pop("tree", None)
    if header.pop("apart", False) is True:
        if not body or body[0].nbytes > payload.MAX_TREE:
            raise ProtocolError(f"a {kind} whose tree is missing or too large")
        tree = parse_json(body.pop(0), "tree")
    if tree is not None:
        return decode_tree(tree, body, hold)
    if body:
        raise ProtocolError(f"a {kind} with {len(body)} parts that nothing describes")
    if kind in (FRAME, LEASE):
        raise ProtocolError(f"a {kind} without values")
    return None


def _leases(header: dict[str, Any], body: Sequence[memoryview]) -> list[Message]:
    """Return the leases of a LEASES, each as its own LEASE would be decoded."""
    entries = header["leases"]
    if not 1 <= len(entries) <= MAX_LEASES:
        raise ProtocolError(f"{len(entries)} leases in one message, 1 to {MAX_LEASES} are allowed")
    if body or "tree" in header or "apart" in header:
        raise ProtocolError(f"a {LEASES} with values besides those of its leases")
    found = []
    for entry in entries:
        if type(entry) is not list or len(entry) not in (4, 5):
            raise ProtocolError(f"a lease described as {entry!r:.80}")
        number, serial, index, urgent = entry[:4]
        if not (
            type(number) is type(serial) is type(index) is int
            and type(urgent) is bool
            and min(number, serial, index) >= 0
        ):
            raise ProtocolError(f"a lease described as {entry!r:.80}")
        params = decode_tree(entry[4], []) if len(entry) == 5 else {}
        about = {"pass": number, "lease": serial, "index": index, "urgent": urgent}
        found.append(Message(LEASE, about, params))
    return found


def field(fields: Mapping[str, Any], name: str, of: type) -> Any:
    """Return the field of that name and type.

    Raises:
        ProtocolError: It is missing, of another type, or negative.
    """
    value: Any = fields.get(name)
    found = type(value)  # not isinstance, because True must not pass for an int
    if found is not of or (of is int and value < 0):
        raise _bad_field(name, of, value)
    return value


def _bad_field(name: str, of: type, value: object) -> ProtocolError:
    return ProtocolError(f"field {name!r} must be a {of.__name__}, got {value!r:.80}")


def pairs(fields: Mapping[str, Any], name: str) -> list[tuple[int, int]]:
    """Return the field of that name, a list of pairs of whole numbers.

    Raises:
        ProtocolError: It is something else.
    """
    value = field(fields, name, list)
    if not all(isinstance(one, list) and [type(part) for part in one] == [int, int] for one in value):
        raise ProtocolError(f"field {name!r} must be a list of pairs of whole numbers, got {value!r:.80}")
    return [(one[0], one[1]) for one in value]


def texts(fields: Mapping[str, Any], name: str) -> list[str]:
    """Return the field of that name, a list of strings.

    Raises:
        ProtocolError: It is something else.
    """
    value = field(fields, name, list)
    if not all(isinstance(one, str) for one in value):
        raise ProtocolError(f"field {name!r} must be a list of strings, got {value!r:.80}")
    return list(value)


def life_of(fields: Mapping[str, Any], token: str) -> Life:
    """Return which life sent this HELLO or BEAT.

    Raises:
        ProtocolError: A field is bad.
        WrongToken: The token is wrong.
        WrongVersion: The token is right, the protocol version another one.
    """
    if not hmac.compare_digest(field(fields, "token", str).encode(errors="replace"), token.encode()):
        raise WrongToken("a wrong token: the sender is not of this run")
    field(fields, "version", int)
    check_version(fields, "Blender's side")
    return Life(field(fields, "instance", int), field(fields, "epoch", int))


def check_version(fields: Mapping[str, Any], sender: str) -> None:
    """Check the protocol version of a HELLO, BEAT or WELCOME.

    Raises:
        WrongVersion: It is another one. The message names both.
    """
    if fields.get("version") != VERSION:
        raise WrongVersion(
            f"{sender} speaks protocol version {fields.get('version')!r:.40}, this asyncblend speaks {VERSION}: "
            f"two copies of asyncblend are mixed, install the same on both sides"
        )
