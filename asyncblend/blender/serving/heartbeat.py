"""Heartbeat: a thread that tells the host that this process is alive, also while it renders."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

import zmq

from ...wire import protocol
from ...wire.gate import show_token
from ...wire.launch import Launch
from .contact import Contact, keep_in_touch

_LOOK = 0.1  # seconds between two looks at the first connection


class Heartbeat:
    """Sends a BEAT every `launch.beat` seconds. It has a socket of its own, because ZeroMQ's sockets are not thread-safe.

    A Python thread goes on during a render (Cycles and Workbench both release the interpreter lock), so a missing
    beat means a stopped or dead process, not a slow frame.

    With a host on another machine it also ends this process when the host has been silent for `launch.silence` seconds.
    """

    def __init__(self, context: zmq.Context[Any], launch: Launch, identity: Mapping[str, Any]) -> None:
        self._context, self._launch, self._identity = context, launch, identity
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
            show_token(socket, self._launch.token, self._launch.keys)
            contact = None
            if self._launch.silence is not None:
                keep_in_touch(socket, self._launch.silence)
                contact = Contact(socket, self._launch.endpoint, self._launch.silence)
            socket.connect(self._launch.endpoint)
            while True:
                beat = protocol.encode(protocol.BEAT, {**self._identity, "rss": _resident_memory()})
                with contextlib.suppress(zmq.Again):  # the host is stalled, and the next beat says the same
                    socket.send_multipart(beat, zmq.DONTWAIT)
                if contact is None:
                    if self._stop.wait(self._launch.beat):
                        return
                elif not self._watch(contact):
                    return

    def _watch(self, contact: Contact) -> bool:
        """Watch the contact until the next beat. Return False if this thread was stopped."""
        end = time.monotonic() + self._launch.beat
        while (left := end - time.monotonic()) > 0:
            # A handshake that is cut off at once means something else than one that is cut off later.
            if self._stop.wait(left if contact.known else min(left, _LOOK)):
                return False
            contact.check()
        return True


def _resident_memory() -> int:
    """Return the resident memory of this process in bytes; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
