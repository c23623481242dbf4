"""The method of blendtorch's first version: each Blender renders a PNG file, reads it, pickles it and publishes it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zmq

from ..measuring import Timed, Way, timed
from .plain import PlainBlenders, Scene

__all__ = ["Origin", "origin", "receiver"]

_MOST = 20  # messages that may wait in the socket, as in blendtorch
_PATIENCE = 120_000  # milliseconds to wait for a message


class Origin:
    """The receiver of such Blenders."""

    def __init__(self, blenders: PlainBlenders, socket: zmq.Socket[bytes]) -> None:
        self._blenders, self._socket = blenders, socket
        endpoints = [answer["endpoint"] for answer in blenders.answers()]
        for endpoint in endpoints:
            socket.connect(endpoint.rstrip("\0"))
        blenders.answers()  # says that they are ready
        self._count = len(endpoints)

    def go(self, scene: Scene) -> None:
        """Begin to render, and drop the messages of earlier frames."""
        self._blenders.go(scene)
        for _ in range(2 * self._count):
            self.recv()

    def recv(self) -> dict[str, Any]:
        """Return the next message."""
        if not self._socket.poll(_PATIENCE):
            raise RuntimeError("no message came")
        message: dict[str, Any] = self._socket.recv_pyobj()
        return message

    def stop(self) -> None:
        """Stop rendering, and drop all that has come, because a publisher does not wait for its receivers."""
        self._blenders.stop()
        while self._socket.poll(50):
            self._socket.recv()


@contextlib.contextmanager
def receiver(blender: str | None, count: int, folder: Path) -> Iterator[Origin]:
    """Launch such Blenders, and yield a receiver that is subscribed to them."""
    with (
        zmq.Context() as context,
        context.socket(zmq.SUB) as socket,
        PlainBlenders("cube_origin.py", blender, count, folder) as blenders,
    ):
        socket.linger, socket.rcvhwm = 0, _MOST
        socket.subscribe(b"")
        yield Origin(blenders, socket)


@contextlib.contextmanager
def origin(blender: str | None, count: int, folder: Path, scene: Callable[[], Scene]) -> Iterator[Way]:
    """Yield a way that receives their frames. `scene` returns what to render."""
    with receiver(blender, count, folder) as own:

        def take() -> int:
            own.recv()
            return 1

        def way(seconds: float) -> Timed:
            own.go(scene())
            try:
                return timed(take, seconds)
            finally:
                own.stop()

        yield way
