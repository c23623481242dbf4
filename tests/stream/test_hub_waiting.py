"""How the hub waits for its socket: by the loop, or by polling where the loop cannot watch a descriptor."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import uvloop
import zmq

from asyncblend.stream.hub import Hub
from asyncblend.wire import payload, protocol
from asyncblend.wire.launch import Life

LIMIT = 20.0
ME = Life(0, 0)


class Answering:
    """Sends a lease for every frame, as a dispatcher does, until so many came."""

    def __init__(self, hub: Hub, most: int) -> None:
        self.hub, self.most, self.frames, self.ticks = hub, most, 0, 0
        self.done = asyncio.Event()

    def knows(self, life: Life) -> bool:
        return life == ME

    def beat(self, life: Life, rss: int = 0) -> None: ...

    def reconnected(self, life: Life, holding: Sequence[int]) -> None: ...

    def ready(self, life: Life) -> None: ...

    def sample_failed(self, life: Life, serial: int, index: int, error: str, traceback: str) -> None: ...

    def misbehaved(self, life: Life, how: str) -> None: ...

    def dropped_frame(self) -> None: ...

    def fail(self, error: BaseException) -> None: ...

    def frame(self, life: Life, serial: int, index: int, values: dict[str, Any]) -> None:
        self.frames += 1
        assert self.hub.send_lease(life, serial, index, 0, payload.encode_values({}))
        if self.frames == self.most:
            self.done.set()


class Peer:
    """A plain socket: whatever it sends is there at once, nobody's loop takes part."""

    def __init__(self, hub: Hub) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(hub.endpoint)
        who = {"token": hub.token, "version": protocol.VERSION, "instance": 0, "epoch": 0}
        self.socket.send_multipart(protocol.encode(protocol.HELLO, {**who, "ready": True, "holding": []}))

    def send_frames(self, count: int) -> None:
        for index in range(count):
            values = payload.encode_values({"index_of_it": index})
            self.socket.send_multipart(protocol.encode(protocol.FRAME, {"lease": index, "index": index}, values))

    def close(self) -> None:
        self.context.destroy(linger=0)


class CannotWatch(asyncio.SelectorEventLoop):
    """Refuses the hub's descriptor, as Windows' loop does, but not pyzmq's own way of waiting."""

    refused = 0

    def add_reader(self, fd: Any, callback: Callable[..., Any], *args: Any) -> None:  # type: ignore[override]
        if not self.refused:
            self.refused += 1
            raise NotImplementedError
        super().add_reader(fd, callback, *args)


LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.new_event_loop,
    "polling": CannotWatch,
}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A path that is short enough for an ipc socket."""
    with tempfile.TemporaryDirectory(prefix="h") as path:
        yield Path(path)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("before", [False, True], ids=["after", "before"])
def test_all_that_comes_is_handled(loop: str, before: bool, folder: Path) -> None:
    """Many turns' worth at once, while leases go out; whether it came before the hub began to serve, or later."""

    async def main(hub: Hub, peer: Peer) -> None:
        answering = Answering(hub, 1000)
        if before:
            peer.send_frames(1000)
            await asyncio.to_thread(hub._socket.poll, 1000)
        serving = asyncio.ensure_future(hub.serve(answering))
        if not before:
            await asyncio.to_thread(peer.send_frames, 1000)
        async with asyncio.timeout(LIMIT):
            await answering.done.wait()
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving
        assert answering.frames == 1000

    with Hub(folder, 0) as hub, asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        peer = Peer(hub)
        try:
            runner.run(main(hub, peer))
            kinds = [protocol.decode(peer.socket.recv_multipart()).kind for _ in range(1001)]
            assert kinds == ["welcome", *["lease"] * 1000]
        finally:
            peer.close()


@pytest.mark.parametrize("loop", LOOPS)
def test_an_error_of_the_receiver_ends_the_serving(loop: str, folder: Path) -> None:
    """It is ours, and must not vanish in a callback."""

    async def main(hub: Hub, peer: Peer) -> None:
        answering = Answering(hub, 1)
        answering.frame = lambda *_: 1 // 0  # type: ignore[method-assign,assignment]
        peer.send_frames(3)
        with pytest.raises(ZeroDivisionError):
            async with asyncio.timeout(LIMIT):
                await hub.serve(answering)

    with Hub(folder, 0) as hub, asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        peer = Peer(hub)
        try:
            runner.run(main(hub, peer))
        finally:
            peer.close()
