"""Plain sockets between one thread and several processes, which answer each message: what no step can be faster than."""

from __future__ import annotations

import contextlib
import socket
import tempfile
from collections.abc import Iterator

from ..measuring import Way, timed
from .producers import producers, task

__all__ = ["sockets"]

_PATIENCE = 60.0  # seconds to wait for a process


@contextlib.contextmanager
def sockets(count: int, size: int) -> Iterator[Way]:
    """Yield a way that makes round trips with `count` processes at once, which answer with so many bytes."""
    with contextlib.ExitStack() as stack:
        endpoint = f"{stack.enter_context(tempfile.TemporaryDirectory())}/turns"
        listening = stack.enter_context(socket.socket(socket.AF_UNIX))
        listening.settimeout(_PATIENCE)
        listening.bind(endpoint)
        listening.listen()
        stack.enter_context(producers(__name__, count, endpoint=endpoint, size=max(1, size)))
        ends = [stack.enter_context(listening.accept()[0]) for _ in range(count)]
        for end in ends:
            end.setblocking(True)

        def step() -> int:
            for end in ends:
                end.sendall(b"step")
            for end in ends:
                end.recv(max(1, size), socket.MSG_WAITALL)
            return count

        yield lambda seconds: timed(step, seconds)


def _answer() -> None:
    about = task()
    answer = bytes(about["size"])
    with socket.socket(socket.AF_UNIX) as end:
        end.connect(about["endpoint"])
        while end.recv(4, socket.MSG_WAITALL):
            end.sendall(answer)


if __name__ == "__main__":
    _answer()
