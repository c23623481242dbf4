"""Contact: ends this Blender when its host, on another machine, is gone or cannot be reached.

A host that dies on the same machine leaves a pipe that reads as ended (`lifeline`). Over a network a cut cable looks like
a host with nothing to say. So ZeroMQ's own threads exchange pings, also while the host's Python is busy, and a monitor
tells whether there is a connection.
"""

from __future__ import annotations

import os
import struct
import sys
import time
from typing import Any, NoReturn

import zmq

_PINGS = 3  # in the time after which silence means that the connection is lost
_SOON = 3.0  # seconds in which a lost connection is noticed, where `silence` is longer
_LONGEST = 2e6  # seconds; ZeroMQ counts milliseconds in 31 bits
_TRIES = 3  # handshakes that are cut off at once, before the host's key is called wrong
_AT_ONCE = 5.0  # seconds; where the host's Python is busy, it is the host's ZeroMQ that cuts it off, after ten
_FAILURES = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
_EVENTS = (
    zmq.EVENT_CONNECTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | _FAILURES[0] | _FAILURES[1]
)  # fmt: skip


def keep_in_touch(socket: zmq.Socket[Any], silence: float) -> None:
    """Have a socket connect again when nothing comes from the host for so many seconds. Call it before `connect`."""
    _ping(socket, silence)
    # The host forgets the connection, too, when it hears no ping. The option counts in tenths of a second, in 16 bits.
    socket.heartbeat_ttl = int(1000 * min(2 * silence, 6553))


def _ping(socket: zmq.Socket[Any], silence: float) -> None:
    silence = min(silence, _LONGEST)
    socket.heartbeat_timeout = int(1000 * silence)
    socket.heartbeat_ivl = max(1, int(1000 * silence / _PINGS))


class Contact:
    """Watches a socket. `check` ends the process if there is no host for it.

    Args:
        socket: One that is not connected yet.
        endpoint: The host's, for messages.
        silence: Seconds without a connection, after which there is no host any more.
    """

    def __init__(self, socket: zmq.Socket[Any], endpoint: str, silence: float) -> None:
        self._endpoint, self._silence = endpoint, silence
        _ping(socket, min(silence, _SOON))
        self._monitor = socket.get_monitor_socket(_EVENTS)
        self._lost_at: float | None = time.monotonic()  # None: there is a connection
        self._connected_at = self._lost_at
        self._tries = 0
        self.known: bool = False
        """Whether the host has accepted this Blender, now or before."""

    def check(self) -> None:
        """Look at what has happened to the connection. Do not return if there is no host for this Blender."""
        while self._monitor.poll(0):
            event, _ = self._monitor.recv_multipart()  # and at which end
            self._note(struct.unpack_from("=H", event)[0])  # not zmq.utils.monitor, which loads asyncio
        if self._lost_at is not None and time.monotonic() - self._lost_at > self._silence:
            what = "is silent" if self.known else "cannot be reached; does a firewall stand between"
            _end(f"the host at {self._endpoint} {what}: no connection for {self._silence:g} s")

    def _note(self, event: int) -> None:
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._lost_at, self.known = None, True
        elif event == zmq.EVENT_CONNECTED:  # the host is there, though its Python may be too busy to answer
            self._connected_at = time.monotonic()
            self._lost_at = self._lost_at and self._connected_at
        elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            _end(
                f"the host at {self._endpoint} refuses the key of this Blender, whose life is over or is another run's"
            )
        elif event == zmq.EVENT_DISCONNECTED:
            self._lost_at = self._lost_at or time.monotonic()
        elif not self.known and time.monotonic() - self._connected_at < _AT_ONCE:  # the wrong key, or no ZeroMQ
            self._tries += 1
            if self._tries == _TRIES or event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:  # which ZeroMQ does not try again
                _end(f"what answers at {self._endpoint} is not this Blender's host: it has another key, or none")


def _end(why: str) -> NoReturn:
    print(f"asyncblend: {why}", file=sys.stderr, flush=True)
    os._exit(1)
