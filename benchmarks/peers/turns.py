"""A ROUTER in asyncio that asks several DEALERs at once, and waits for all: the limit of environments in step."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Iterator

import zmq
import zmq.asyncio

from asyncblend.aio import loop_factory

from ..measuring import Timed, Way, timed_async
from .producers import producers, task

__all__ = ["turns"]


@contextlib.contextmanager
def turns(count: int, size: int) -> Iterator[Way]:
    """Yield a way that makes round trips with `count` processes at once, which answer with so many bytes."""
    with (
        tempfile.TemporaryDirectory() as folder,
        asyncio.Runner(loop_factory=loop_factory()) as runner,
        zmq.asyncio.Context() as context,
        context.socket(zmq.ROUTER) as socket,
        producers(__name__, count, endpoint=f"ipc://{folder}/turns", size=size),
    ):
        socket.linger = 0
        socket.bind(f"ipc://{folder}/turns")

        async def begin() -> list[bytes]:
            return [(await socket.recv_multipart())[0] for _ in range(count)]

        identities = runner.run(begin())

        async def turn() -> None:
            for identity in identities:
                await socket.send_multipart([identity, b"step"])
            for _ in identities:
                await socket.recv_multipart()

        def way(seconds: float) -> Timed:
            found = runner.run(timed_async(turn, seconds))
            return found._replace(done=found.done * count)

        yield way


def _answer() -> None:
    about = task()
    answer = bytes(max(1, about["size"]))
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(about["endpoint"])
        socket.send(b"hello")
        while True:
            socket.recv()
            socket.send(answer)


if __name__ == "__main__":
    _answer()
