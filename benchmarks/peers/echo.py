"""Small messages between a ROUTER in asyncio and a DEALER that sends each of them back: the limit of round trips."""

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

__all__ = ["echo"]


@contextlib.contextmanager
def echo(in_flight: int) -> Iterator[Way]:
    """Yield a way that makes round trips, with so many messages in flight."""
    with (
        tempfile.TemporaryDirectory() as folder,
        asyncio.Runner(loop_factory=loop_factory()) as runner,
        zmq.asyncio.Context() as context,
        context.socket(zmq.ROUTER) as socket,
        producers(__name__, 1, endpoint=f"ipc://{folder}/echo"),
    ):
        socket.linger = 0
        socket.bind(f"ipc://{folder}/echo")
        identity = b""

        async def begin() -> None:
            nonlocal identity
            identity, _ = await socket.recv_multipart()
            for _ in range(in_flight):
                await socket.send_multipart([identity, b"lease"])

        async def there_and_back() -> None:
            await socket.recv_multipart()
            await socket.send_multipart([identity, b"lease"])

        async def take(seconds: float) -> Timed:
            for _ in range(2 * in_flight):
                await there_and_back()
            return await timed_async(there_and_back, seconds)

        runner.run(begin())
        yield lambda seconds: runner.run(take(seconds))


def _answer() -> None:
    about = task()
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(about["endpoint"])
        socket.send(b"hello")
        while True:
            socket.send(socket.recv())


if __name__ == "__main__":
    _answer()
