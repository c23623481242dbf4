"""How the hub waits for its socket, on both kinds of event loop."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
import zmq

from asyncblend.errors import ConfigError
from asyncblend.stream.hub import Hub
from asyncblend.wire import payload, protocol
from asyncblend.wire.gate import show_token
from asyncblend.wire.launch import Life
from asyncblend.wire.request import Request

from .hub_stage import LIMIT, NO_PARAMS, Recorder

ME = Life(0, 0)
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.new_event_loop,
}


class Answering(Recorder):
    """Sends a lease for every frame, as a dispatcher does, until so many came."""

    def __init__(self, hub: Hub, most: int) -> None:
        super().__init__()
        self.lives = {ME}
        self.hub, self.most, self.frames = hub, most, 0
        self.done = asyncio.Event()

    def frame(self, life: Life, number: int, serial: int, index: int, values: dict[str, Any], step: Any) -> None:
        self.frames += 1
        assert self.hub.add_lease(life, Request((number, serial), index, NO_PARAMS))
        assert not self.hub.send_leases()
        if self.frames == self.most:
            self.done.set()


class Peer:
    """A plain socket, which sends at once and needs no event loop."""

    def __init__(self, hub: Hub) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.rcvtimeo = 1000 * LIMIT
        self.socket.sndhwm = 0  # as Blender's: nothing is sent before the hub has let it in
        show_token(self.socket, hub.token)
        self.socket.connect(hub.endpoint)
        about = {"token": hub.token, "version": protocol.VERSION, "instance": 0, "epoch": 0}
        self.socket.send_multipart(protocol.encode(protocol.HELLO, {**about, "ready": True, "holding": []}))

    def send_frames(self, count: int) -> None:
        for index in range(count):
            values = payload.encode_values({"index_of_it": index})
            fields = {"pass": 0, "lease": index, "index": index}
            self.socket.send_multipart(protocol.encode(protocol.FRAME, fields, values))

    def close(self) -> None:
        self._context.destroy(linger=0)


def test_a_folder_that_takes_no_socket() -> None:
    """The error is asyncblend's own, and says what to do."""
    with pytest.raises(ConfigError, match="make room in the temporary folder, or set TMPDIR"):
        Hub(Path(tempfile.gettempdir()) / "none" / "such", 0, {})


@pytest.fixture
def hub() -> Iterator[Hub]:
    with tempfile.TemporaryDirectory(prefix="h") as folder, Hub(Path(folder), 0, {}) as hub:
        yield hub


@pytest.fixture
def peer(hub: Hub) -> Iterator[Peer]:
    peer = Peer(hub)
    try:
        yield peer
    finally:
        peer.close()


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("before", [False, True], ids=["after", "before"])
def test_all_that_comes_is_handled(loop: str, before: bool, hub: Hub, peer: Peer) -> None:
    """Messages of many turns are all handled while leases go out, be they there before `serve` begins or come later."""

    async def main() -> None:
        answering = Answering(hub, 1000)
        if before:
            peer.send_frames(1000)
            while not hub._socket.poll(10):
                hub._gate.answer()
        serving = asyncio.ensure_future(hub.serve(answering, answering))
        if not before:
            await asyncio.to_thread(peer.send_frames, 1000)
        async with asyncio.timeout(LIMIT):
            await answering.done.wait()
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving
        assert answering.frames == 1000

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(main())
    kinds = [protocol.decode(peer.socket.recv_multipart()).kind for _ in range(1001)]
    assert kinds == ["welcome", *["lease"] * 1000]


@pytest.mark.parametrize("loop", LOOPS)
def test_an_error_of_the_dispatcher_ends_the_serving(loop: str, hub: Hub, peer: Peer) -> None:
    """An exception of the dispatcher is raised by `serve`, and does not vanish in a callback of the loop."""

    async def main() -> None:
        answering = Answering(hub, 1)
        answering.frame = lambda *_: 1 // 0  # type: ignore[method-assign,assignment]
        peer.send_frames(3)
        with pytest.raises(ZeroDivisionError):
            async with asyncio.timeout(LIMIT):
                await hub.serve(answering, answering)

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(main())


def test_a_socket_that_breaks_ends_the_serving(hub: Hub) -> None:
    """An error of the socket itself is raised by `serve`."""

    async def main() -> None:
        serving = asyncio.ensure_future(hub.serve(Recorder(), Recorder()))
        await asyncio.sleep(0)
        hub._socket.close()
        wake = hub._wake
        assert wake is not None
        wake()
        with pytest.raises(zmq.ZMQError):
            async with asyncio.timeout(LIMIT):
                await serving

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(main())
