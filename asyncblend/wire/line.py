"""Line: a socket between one Blender and its host, for the steps of an episode. Used by both sides.

Over ZeroMQ and the host's event loop, a step wakes six threads one after another: the consumer's, the loop's and two of
ZeroMQ's, and those once more on the way back. Over a line it wakes two, Blender's and the consumer's. Whoever plays an
environment waits for each step, so these wakings are most of what a small step costs.

A message is a head, the lengths of its parts, and the parts:

    pass, lease, step: 8 bytes each │ how many parts: 4 bytes │ 4 bytes for each length │ tree │ array │ ...

The parts are those of `payload.encode_values`: of the host, the params of a step; of Blender, the values of its frame. A
message without parts says that the other side goes on over ZeroMQ. Blender answers so to a step whose frame is too large
for the line, that raised, or that ended the episode.

One message at most is under way in each direction, as nobody sends a step before the frame of the one before has come.
A message of an episode that was given up may still lie in the socket; its name tells. So nobody waits to send: where a
message does not fit into the socket, the line is broken.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..errors import ProtocolError
from .payload import Hold
from .protocol import Name

LONGEST = 1 << 16
"""Bytes of the longest message."""

_MOST_PARTS = 64
_BUFFER = 4 * LONGEST  # bytes that a socket takes before they are read: messages of episodes that were given up, too
_TICK = 100_000  # microseconds that `receive` waits
_UNTOUCHED = b"\xff" * 8  # no message begins so
_HEAD = struct.Struct("<QQQI")
_HEADS = [struct.Struct(f"<QQQI{count}I") for count in range(_MOST_PARTS + 1)]
"""The same with the lengths, by how many parts there are."""


class LineMessage(NamedTuple):
    """What has come over a line."""

    name: Name
    """Of the lease."""
    step: int
    parts: list[bytes]
    """As from `payload.encode_values`; none: it goes on over ZeroMQ."""


class LineBroken(Exception):
    """Nothing more comes over this line. Never leaves the package."""


class Line:
    """One end of a line. At each end one thread at a time uses it; only `wait` and `end` may be called beside that.

    Args:
        end: The socket.
        hold: On the host's side: gives the memory that is shared with the Blender, if there is any.
    """

    def __init__(self, end: socket.socket, hold: Hold | None = None) -> None:
        self._socket = end
        self.hold = hold
        self.reading = False  # whether a thread receives, or is about to
        # As an option of the socket: a timeout of Python's is another call to the system at each receive.
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, _TICK))
        self._buffer = memoryview(bytearray(LONGEST))
        self._rest = b""  # has come and is no whole message yet, or was not asked for

    @classmethod
    def pair(cls, hold: Hold | None = None) -> tuple[Line, socket.socket] | None:
        """Return the host's end of a new line and the socket for the Blender to inherit. None where there can be none."""
        try:
            own, others = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except (AttributeError, OSError):  # not on this system, or no descriptor is left
            return None
        for end in (own, others):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        return cls(own, hold), others

    @classmethod
    def inherit(cls, descriptor: int | None) -> Line | None:
        """Return Blender's end. None if there is no line, or a wrapper script closed its descriptor."""
        try:
            if descriptor is None or not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                return None
            end = socket.socket(fileno=descriptor)
        except OSError:
            return None
        # The number may be another socket's now. Both ends of a pair have no name, unlike those of X11 or ZeroMQ.
        if end.family != socket.AF_UNIX or end.type != socket.SOCK_STREAM or end.getsockname() or _peer(end) != "":
            end.detach()
            return None
        end.set_inheritable(False)
        return cls(end)

    @property
    def pending(self) -> bool:
        """Whether something has come in beside what `receive` returned, so that `receive` comes before any waiting."""
        return bool(self._rest)

    def fileno(self) -> int:
        """Return the descriptor, which can be read when a message comes."""
        return self._socket.fileno()

    def send(self, message: bytes) -> None:
        """Send a message from `pack`. If the line is broken, or must be now, `receive` tells."""
        try:
            sent = self._socket.send(message, socket.MSG_DONTWAIT)
        except OSError:  # the other end is gone, or has read nothing for long
            sent = 0
        if sent != len(message):
            self.end()

    def receive(self, *, wait: bool = False) -> LineMessage | None:
        """Return the next message if it is here, else None.

        Args:
            wait: Whether to wait for it, for a tenth of a second. Ctrl-C ends that.

        Raises:
            LineBroken: There will be none.
            ProtocolError: What has come is no message. Nothing that follows can be read either.
        """
        if self._rest and (message := self._first()) is not None:
            return message
        self._buffer[: len(_UNTOUCHED)] = _UNTOUCHED
        try:
            size = self._socket.recv_into(self._buffer, LONGEST, 0 if wait else socket.MSG_DONTWAIT)
            self._rest += self._buffer[:size]
        except BlockingIOError:
            return None
        except OSError as error:
            raise LineBroken(str(error)) from None
        except KeyboardInterrupt:
            if self._buffer[: len(_UNTOUCHED)] != _UNTOUCHED:
                self.end()  # something was taken out of the socket, and is perhaps lost
            raise
        if not size:
            raise LineBroken("the other end is closed")
        return self._first()

    def wait(self, seconds: float) -> bool:
        """Wait at most so long for something to receive, or for the end, and return whether there is. From any thread."""
        poll = select.poll()  # several threads cannot wait with the same one
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(1000 * seconds))

    def end(self) -> None:
        """Break the line: whoever waits at either end wakes up. From any thread, also twice."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def __del__(self) -> None:
        # Not in `end`, as another thread may be waiting, and the descriptor's number would soon be another file's.
        self._socket.close()

    def _first(self) -> LineMessage | None:
        """Take the first message from what has come, if it is whole."""
        data = self._rest
        if len(data) < _HEAD.size:
            return None
        count = int.from_bytes(data[_HEAD.size - 4 : _HEAD.size], "little")  # the last field of the head
        if count > _MOST_PARTS:
            raise ProtocolError(f"a message of {count} parts over a line, at most {_MOST_PARTS} are allowed")
        head = _HEADS[count]
        at = head.size
        if len(data) < at:
            return None
        number, serial, step, _, *lengths = head.unpack_from(data)
        size = at + sum(lengths)
        if size > LONGEST:
            raise ProtocolError(f"a message of {size} bytes over a line, at most {LONGEST} are allowed")
        if len(data) < size:
            return None
        parts = []
        for length in lengths:
            parts.append(data[at : at + length])  # a copy, so that arrays are aligned
            at += length
        self._rest = data[size:]
        return LineMessage((number, serial), step, parts)


def pack(name: Name, step: int, parts: Sequence[Any]) -> bytes | None:
    """Return a message, or None if it does not fit."""
    lengths = [len(part) if type(part) is bytes else memoryview(part).nbytes for part in parts]
    count = len(lengths)
    if count > _MOST_PARTS or (head := _HEADS[count]).size + sum(lengths) > LONGEST:
        return None
    # One copy, because to send a list of buffers takes the system longer than to copy what is small.
    return b"".join((head.pack(*name, step, count, *lengths), *parts))


def gone_on(name: Name, step: int) -> bytes:
    """Return the message without parts, which says that this step goes on over ZeroMQ."""
    return _HEAD.pack(*name, step, 0)


def _peer(end: socket.socket) -> Any:
    try:
        return end.getpeername()
    except OSError:  # it is connected to nothing
        return None
