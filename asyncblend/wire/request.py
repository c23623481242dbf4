"""Requests: what the host asks of a Blender with a lease, and the messages that carry several of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from . import payload
from .protocol import LEASE, LEASES, MAX_HEADER, MAX_LEASES, Name, encode

_ROOM = MAX_HEADER - 256  # bytes of a header for all of its leases
_SHORT = 1024  # bytes of params that do not fill a message on their own


@dataclasses.dataclass(slots=True)  # not frozen, which takes thrice as long to make
class Request:
    """What a LEASE asks of a Blender."""

    name: Name
    index: int
    params: Sequence[Any]
    """The parts from `encode_values`."""
    urgent: bool = False
    """Whether it goes before what the Blender has not begun."""
    first: int = 0
    """Number of the first step that is wanted, if it is an episode."""
    on_demand: bool = False
    """Whether each further step waits for its own params."""
    fingerprint: Sequence[Any] = ()
    """What the first frame must be like, as the consumer has it already."""
    line: bool = False
    """Whether further steps may be sent over the line."""

    def encode(self) -> list[Any]:
        """Return the parts of the LEASE."""
        number, serial = self.name
        fields: dict[str, Any] = {"pass": number, "lease": serial, "index": self.index, "urgent": self.urgent}
        if self.first or self.on_demand:
            fields |= {"first": self.first, "on_demand": self.on_demand}
            fields |= {"fingerprint": self.fingerprint, "line": self.line}
        return encode(LEASE, fields, self.params)

    @property
    def entry(self) -> bytes | None:
        """What stands for it in a LEASES, as JSON. None: it does not fit there, or more is to be said of it."""
        params = self.params
        if self.first or self.on_demand or len(params) != 1 or len(params[0]) > _SHORT:
            return None
        about = b"%d,%d,%d,%s" % (*self.name, self.index, b"true" if self.urgent else b"false")
        return b"[%s]" % about if params[0] == _NOTHING else b"[%s,%s]" % (about, params[0])


_NOTHING = payload.encode_values({})[0]  # params of which there are none


def encode_leases(requests: Sequence[Request]) -> Iterator[list[Any]]:
    """Yield the messages that lease all of these, in their order: as few as it takes."""
    if len(requests) == 1:
        yield requests[0].encode()
        return
    entries: list[bytes] = []
    size = 0
    for request in requests:
        entry = request.entry
        if entries and (entry is None or len(entries) == MAX_LEASES or size + len(entry) >= _ROOM):
            yield _leases_of(entries)
            entries, size = [], 0
        if entry is None:
            yield request.encode()
        else:
            entries.append(entry)
            size += len(entry) + 1
    if entries:
        yield _leases_of(entries)


def _leases_of(entries: Sequence[bytes]) -> list[Any]:
    return [b'{"kind":"%s","leases":[%s]}' % (LEASES.encode(), b",".join(entries))]
