"""A hub that serves, raw sockets that connect to it, and a recorder of all that it says."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio

from asyncblend.stream.hub import Hub
from asyncblend.wire import payload, protocol
from asyncblend.wire.gate import show_token
from asyncblend.wire.launch import Life
from asyncblend.wire.protocol import WHOLE, Message, Step
from asyncblend.wire.request import Request

LIMIT = 30  # seconds; the bound of failure of every wait
SEED = 2**40 + 5
ME = Life(1, 0)
NO_PARAMS = payload.encode_values({})
_PROBE = 1000  # instance number of beats that only ask whether the hub has come so far


class Recorder:
    """Plays both the fleet and the dispatcher, and writes down what the hub tells them."""

    def __init__(self) -> None:
        self.lives = {ME, Life(2, 0)}
        self.events: list[tuple[Any, ...]] = []
        self._probes: set[Life] = set()
        self._changed = asyncio.Event()

    async def until(self, *event: Any) -> None:
        """Wait for this event."""
        await self._wait(lambda: event in self.events)

    async def probed(self, life: Life) -> None:
        """Wait for this probe."""
        await self._wait(lambda: life in self._probes)

    async def _wait(self, condition: Any) -> None:
        async with asyncio.timeout(LIMIT):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def _note(self, *event: Any) -> None:
        self.events.append(event)
        self._changed.set()

    # -- as the fleet

    def is_current(self, life: Life) -> bool:
        return life in self.lives

    def beat(self, life: Life, rss: int, lost: int = 0) -> None:
        if life.instance == _PROBE:
            self._probes.add(life)
            self._changed.set()
        else:
            self._note("beat", life, rss)

    def ready(self, life: Life) -> None:
        self._note("ready", life)

    def expel(self, life: Life, why: str) -> None:
        self._note("expel", life)
        self.why = why

    # -- as the dispatcher

    def begin_turn(self) -> None: ...
    def end_turn(self) -> None: ...

    def reconnected(
        self, life: Life, holding: Sequence[Sequence[int]], opened: Sequence[Sequence[int]], *, by_line: bool = False
    ) -> None:
        self._note("reconnected", life, list(holding), *map(tuple, opened))

    def frame(self, life: Life, number: int, serial: int, index: int, values: dict[str, Any], step: Step) -> None:
        self._note("frame", life, number, serial, index, values, *(() if step == WHOLE else (step,)))

    def replayed(self, life: Life, number: int, serial: int) -> None:
        self._note("replayed", life, number, serial)

    def over(self, life: Life, number: int, serial: int) -> None:
        self._note("over", life, number, serial)

    def sample_failed(self, life: Life, number: int, serial: int, index: int, error: str, traceback: str) -> None:
        self._note("failed", life, number, serial, index, error, traceback)

    def unreadable(self, life: Life, number: int, serial: int, *, last: bool = True) -> None:
        self._note("unreadable", life, number, serial)

    def dropped_frame(self) -> None:
        self._note("dropped")

    def fail(self, error: BaseException) -> None:
        self._note("fail", error)


class Peer:
    """A socket that is connected to the hub."""

    def __init__(self, context: zmq.asyncio.Context, hub: Hub) -> None:
        self._socket = context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.sndhwm = 0  # as Blender's: nothing is sent before the hub has let it in
        show_token(self._socket, hub.token)
        self._socket.connect(hub.endpoint)
        self._token = hub.token
        self._leases: deque[Message] = deque()

    async def raw(self, *parts: bytes) -> None:
        """Send these bytes, whatever they are."""
        await self._socket.send_multipart(parts)

    async def say(self, kind: str, values: Any = None, **fields: Any) -> None:
        """Send a message."""
        carried = () if values is None else payload.encode_values(values)
        await self._socket.send_multipart(protocol.encode(kind, fields, carried))

    async def frame(self, serial: int, index: int, values: dict[str, Any] | None = None, *, of: int = 0) -> None:
        """Send the frame of a lease of pass `of`."""
        await self.say(protocol.FRAME, values or {}, **{"pass": of, "lease": serial, "index": index})

    def about(self, life: Life = ME, **changes: Any) -> dict[str, Any]:
        """Return what HELLO and BEAT say of their sender."""
        own = {"token": self._token, "version": protocol.VERSION, "instance": life.instance, "epoch": life.epoch}
        return {**own, **changes}

    async def hello(
        self, life: Life = ME, *, ready: bool = False, holding: Sequence[Sequence[int]] = (), **changes: Any
    ) -> None:
        """Say HELLO for a life."""
        await self.say(protocol.HELLO, **{"ready": ready, "holding": list(holding), **self.about(life, **changes)})

    async def beat(self, life: Life = ME, **changes: Any) -> None:
        """Send a heartbeat of a life."""
        await self.say(protocol.BEAT, **self.about(life, **changes))

    async def receive(self) -> Message:
        """Wait for the hub's next message. Leases that come together are as many messages."""
        if not self._leases:
            message = await self.whole()
            if message.kind != protocol.LEASES:
                return message
            self._leases.extend(message.fields["leases"])
        return self._leases.popleft()

    async def whole(self) -> Message:
        """Wait for the hub's next message, as it is."""
        async with asyncio.timeout(LIMIT):
            return protocol.decode(await self._socket.recv_multipart())

    async def join(self, life: Life = ME, **hello: Any) -> None:
        """Say HELLO, and wait until the hub knows this connection."""
        await self.hello(life, **hello)
        assert (await self.receive()).kind == protocol.WELCOME

    def close(self) -> None:
        self._socket.close()


class Stage:
    """A hub that serves, and the sockets that connect to it."""

    def __init__(self, hub: Hub, context: zmq.asyncio.Context) -> None:
        self.hub, self.told, self._context = hub, Recorder(), context
        self._peers: list[Peer] = []
        self._probes = itertools.count()
        self.serve()

    def serve(self) -> None:
        """Begin to serve."""
        self.serving = asyncio.ensure_future(self.hub.serve(self.told, self.told))

    def peer(self) -> Peer:
        """Connect another socket."""
        self._peers.append(Peer(self._context, self.hub))
        return self._peers[-1]

    def lease(self, life: Life = ME) -> bool:
        """Send a life a lease that does not matter. Return whether the life is connected."""
        return self.send(life, Request((0, 0), 0, NO_PARAMS))

    def send(self, life: Life, *leases: Request) -> bool:
        """Send a life these leases at once. Return whether it is connected."""
        return all(self.hub.add_lease(life, lease) for lease in leases) and not self.hub.send_leases()

    async def handled(self, peer: Peer) -> None:
        """Wait until the hub has handled all that this peer sent before."""
        probe = Life(_PROBE, next(self._probes))
        await peer.beat(probe)
        await self.told.probed(probe)

    async def check_serving(self) -> None:
        """Check that the hub still serves."""
        assert not self.serving.done()
        await self.handled(self.peer())

    def close(self) -> None:
        for peer in self._peers:
            peer.close()
        self._context.term()


@contextlib.asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Stage]:
    """Serve a hub in this folder."""
    with Hub(folder, SEED, {}) as hub:
        stage = Stage(hub, zmq.asyncio.Context())
        try:
            yield stage
        finally:
            stage.close()
            stage.serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await stage.serving
