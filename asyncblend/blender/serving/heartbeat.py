"""Heartbeat: a thread that tells the host that this process is alive, also while it renders."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Mapping
from typing import Any

import zmq

from ...wire import protocol
from ...wire.gate import show_token


class Heartbeat:
    """Sends a BEAT every `interval` seconds. It has a socket of its own, because ZeroMQ's sockets are not thread-safe.

    A Python thread goes on during a render (Cycles and Workbench both release the interpreter lock), so a missing
    beat means a stopped or dead process, not a slow frame.
    """

    def __init__(self, context: zmq.Context[Any], endpoint: str, identity: Mapping[str, Any], interval: float) -> None:
        self._context, self._endpoint, self._identity, self._interval = context, endpoint, identity, interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="asyncblend heartbeat", daemon=True)

    def start(self) -> None:
        """Start the thread, which sends the first beat at once."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and close its socket. Safe to call twice."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with self._context.socket(zmq.DEALER) as socket:
            socket.linger = 0
            socket.sndhwm = 2  # a host that was stalled finds a beat or two, not a backlog
            show_token(socket, self._identity["token"])
            socket.connect(self._endpoint)
            while True:
                beat = protocol.encode(protocol.BEAT, {**self._identity, "rss": _resident_memory()})
                with contextlib.suppress(zmq.Again):  # the host is stalled, and the next beat says the same
                    socket.send_multipart(beat, zmq.DONTWAIT)
                if self._stop.wait(self._interval):
                    return


def _resident_memory() -> int:
    """Return the resident memory of this process in bytes; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
