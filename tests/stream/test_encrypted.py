"""Blenders that reach the host as from another machine: over TCP, encrypted, each with keys of its own."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import socket as socketlib
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, MutableMapping
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.asyncio

import asyncblend as ab
from asyncblend.errors import ConfigError, InstanceExited
from asyncblend.fleet.place import Here, Meeting, Network
from asyncblend.fleet.spawn import Spawner
from asyncblend.fleet.workspace import Workspace
from asyncblend.stream.hub import Hub
from asyncblend.wire import protocol
from asyncblend.wire.gate import show_token
from asyncblend.wire.launch import Host, Keys, Life
from asyncblend.wire.line import Line
from asyncblend.wire.request import Request
from asyncblend.wire.ring import Ring
from tests.conftest import Kind
from tests.stream.conftest import Make
from tests.stream.hub_stage import LIMIT, ME, NO_PARAMS, SEED, Recorder

NOISE = "def sample(task): return {'image': task.rng.integers(0, 255, (240, 320, 3)).astype('uint8')}"
SOON = ab.RestartPolicy(backoff=0.0, max_restarts=20)
FOR_EVER = ab.Timeouts(start=1000.0, beat=1000.0, stop=0.1)  # no error here comes from a timeout

Change = Callable[[Host], Host]


@dataclasses.dataclass(frozen=True)
class Elsewhere:
    """This machine in the part of another one."""

    change: Change = lambda host: host  # what a life is told wrongly
    silence: float = 30.0

    def place(self, config: ab.StreamConfig, first: int) -> There:
        place = There(dataclasses.replace(config, cluster=None), first)
        place.change, place.network = self.change, Network("127.0.0.1", None, self.silence)
        return place


class There(Here):
    """See `Elsewhere`."""

    change: Change

    def spawner(
        self, hub: Meeting, workspace: Workspace, rings: MutableMapping[Life, Ring], lines: MutableMapping[Life, Line]
    ) -> Spawner:
        place = self

        class Changed:
            endpoint = hub.endpoint

            def host_of(self, life: Life) -> Host:
                return place.change(hub.host_of(life))

        return super().spawner(Changed(), workspace, rings, lines)


class Proxy:
    """Passes bytes on to a host and back, notes them, and can fall silent without closing a connection."""

    def __init__(self) -> None:
        self.seen = bytearray()
        self.silent = asyncio.Event()
        self.cut = False
        self._port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    def change(self, host: Host) -> Host:
        """Lead a life here. The cable is whole again for it."""
        assert self._server is not None
        self.cut = False
        self._port = int(host.endpoint.rpartition(":")[2])
        return host._replace(endpoint=f"tcp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        silent = self.silent
        if self.cut:
            silent = asyncio.Event()
            silent.set()
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        for one, other in ((reader, back), (there, writer)):
            task = asyncio.ensure_future(self._pass_on(silent, one, other))
            self._tasks.add(task)

    async def _pass_on(self, silent: asyncio.Event, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                self.seen += data
                if not silent.is_set():
                    writer.write(data)
        writer.close()

    def fall_silent(self, *, cut: bool) -> None:
        """Swallow what comes over the present connections, and, if the cable is cut, over new ones of this life."""
        self.cut = cut
        self.silent.set()
        self.silent = asyncio.Event()

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.fixture
def proxied(make: Make) -> Callable[..., contextlib.AbstractAsyncContextManager[tuple[ab.BlenderStream, Proxy]]]:
    """Enter a stream whose Blenders reach it through a proxy."""

    @contextlib.asynccontextmanager
    async def proxied(
        body: str = NOISE, *, silence: float = 30.0, **options: Any
    ) -> AsyncIterator[tuple[ab.BlenderStream, Proxy]]:
        proxy = Proxy()
        await proxy.start()
        try:
            async with make(body, cluster=Elsewhere(proxy.change, silence), **options) as stream:
                yield stream, proxy
        finally:
            await proxy.close()

    return proxied


async def images(stream: ab.BlenderStream) -> list[bytes]:
    """Consume a finite stream in order."""
    return [frame["image"].tobytes() async for frame in stream]


@pytest.mark.every_kind
def test_the_same_frames(kind: Kind, write_script: Callable[..., Path]) -> None:
    """They are those of unencrypted connections, in every kind of Blender."""

    async def main(**options: Any) -> list[bytes]:
        stream = ab.BlenderStream(
            script=write_script(NOISE), blender=kind.blender, instances=2, length=6, ordered=True, **options
        )
        async with stream:
            frames = await images(stream)
            assert stream.stats().refused == 0
        return frames

    assert asyncio.run(main(cluster=Elsewhere())) == asyncio.run(main())


def test_nothing_can_be_read_on_the_way(proxied: Any) -> None:
    """Neither the token nor a frame."""

    async def main() -> None:
        async with proxied(instances=1, length=3) as (stream, proxy):
            frames = await images(stream)
            seen, token = bytes(proxy.seen), stream._run._hub.token.encode()
        assert len(seen) > sum(map(len, frames))
        assert token not in seen
        assert not any(frame[100:132] in seen for frame in frames)

    asyncio.run(main())


OTHER = zmq.curve_keypair()[0].decode()
STRANGERS = Keys(OTHER, *(key.decode() for key in zmq.curve_keypair()))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda host: host._replace(keys=host.keys._replace(server=OTHER)), "it has another key, or none"),
        (lambda host: host._replace(keys=STRANGERS._replace(server=host.keys.server)), "refuses the key of this"),
        (lambda host: host._replace(keys=None), "it has another key, or none"),
    ],
    ids=["another-hosts-key", "a-key-that-nobody-knows", "no-encryption"],
)
def test_who_is_turned_away_says_why(make: Make, change: Change, text: str) -> None:
    """It does not wait for the start to time out."""

    async def main() -> ab.BlenderStream:
        stream = make(NOISE, instances=1, timeouts=FOR_EVER, cluster=Elsewhere(change, silence=1000.0))
        with pytest.raises(InstanceExited, match=text):
            async with stream:
                pass
        return stream

    assert asyncio.run(main()).stats().refused >= 1


def test_a_host_that_cannot_be_reached(make: Make) -> None:
    """The error asks for what stands between."""
    nowhere = Elsewhere(lambda host: host._replace(endpoint="tcp://127.0.0.1:9"), silence=1.0)

    async def main() -> None:
        with pytest.raises(
            InstanceExited, match=r"tcp://127\.0\.0\.1:9 cannot be reached; does a firewall stand between"
        ):
            async with make(NOISE, instances=1, timeouts=FOR_EVER, cluster=nowhere):
                pass

    asyncio.run(main())


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_connection_that_falls_silent(proxied: Any, *, cut: bool) -> None:
    """Nobody closes it. The Blender connects again; if it cannot, it ends, and another one goes on. Nothing is lost."""

    async def main() -> None:
        options = {"instances": 1, "length": 40, "ordered": True, "restart": SOON, "timeouts": FOR_EVER}
        async with proxied(silence=1.0 if cut else 5.0, queue_size=2, **options) as (stream, proxy):
            indices = []
            async for frame in stream:
                indices.append(frame.index)
                if frame.index == 10:
                    proxy.fall_silent(cut=cut)
            assert indices == list(range(40))
            assert stream.stats().restarts == cut

    asyncio.run(main())


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_host_that_is_busy_while_a_blender_starts(make: Make) -> None:
    """Its loop stands still for longer than a Blender bears silence. As long as it can be connected to, it is there."""
    body = NOISE + "\nimport time\ntime.sleep(1)"

    async def main() -> None:
        options = {"instances": 2, "length": 4, "restart": ab.RestartPolicy(max_restarts=0), "timeouts": FOR_EVER}
        async with make(body, cluster=Elsewhere(silence=2.0), **options) as stream:
            threading.Event().wait(12)  # ZeroMQ cuts handshakes off after ten
            assert len([frame async for frame in stream]) == 4
            assert stream.stats().restarts == 0

    asyncio.run(main())


@pytest.mark.parametrize("beat", [math.inf, 1e9])
def test_a_silence_without_end(make: Make, beat: float) -> None:
    """Longer than ZeroMQ can count."""

    async def main() -> None:
        async with make(NOISE, length=2, cluster=Elsewhere(silence=beat)) as stream:
            assert len(await images(stream)) == 2

    asyncio.run(main())


def test_an_address_of_another_machine(make: Make) -> None:
    """The host cannot be reached by it."""

    class Wrong(Elsewhere):
        def place(self, config: ab.StreamConfig, first: int) -> There:
            place = super().place(config, first)
            place.network = Network("192.0.2.250", None, 30.0)
            return place

    async def main() -> None:
        with pytest.raises(ConfigError, match=r"nobody can connect to 192\.0\.2\.250:"):
            async with make(NOISE, cluster=Wrong()):
                pass

    asyncio.run(main())


@pytest.mark.parametrize("options", [{"gpus": [0]}, {"show": True, "instances": 1}, {"cluster": "auto"}])
def test_options_that_do_not_go_with_a_cluster(make: Make, options: dict[str, Any]) -> None:
    """They are refused before anything starts."""
    with pytest.raises(ConfigError, match=r"cluster"):
        make(NOISE, **{"cluster": Elsewhere(), **options})


# -- a hub and raw sockets ------------------------------------------------------------------------------------------


class Room:
    """A hub for other machines, and sockets that connect to it."""

    def __init__(self, hub: Hub) -> None:
        self.hub, self.told = hub, Recorder()
        self.context = zmq.asyncio.Context()
        self.sockets: list[zmq.asyncio.Socket] = []
        self.serving = asyncio.ensure_future(hub.serve(self.told, self.told))

    def connect(self, host: Host, name: bytes = b"") -> zmq.asyncio.Socket:
        """Connect, with a routing id of the peer's own choice."""
        socket = self.context.socket(zmq.DEALER)
        if name:
            socket.routing_id = name
        self.sockets.append(socket)
        socket.linger = 0
        socket.rcvtimeo = 1000 * LIMIT
        show_token(socket, host.token, host.keys)
        socket.connect(host.endpoint)
        return socket

    async def say(self, socket: zmq.asyncio.Socket, kind: str, host: Host, life: Life, **fields: Any) -> None:
        about = {"token": host.token, "version": protocol.VERSION, "instance": life.instance, "epoch": life.epoch}
        await socket.send_multipart(protocol.encode(kind, {**about, **fields}))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(LIMIT):
            while not condition():
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def room(*, mixed: bool = False) -> AsyncIterator[Room]:
    """Serve a hub."""
    network = Network("127.0.0.1", None, 30.0, mixed)
    with tempfile.TemporaryDirectory(prefix="h") as folder, Hub(Path(folder), SEED, {}, network) as hub:
        room = Room(hub)
        try:
            yield room
        finally:
            for socket in room.sockets:
                socket.close()
            room.context.term()
            room.serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await room.serving


def test_the_keys_of_a_life_that_is_over() -> None:
    """They open no connection any more, and what comes over one that is open is not read; its sender is asked to end."""

    async def main() -> None:
        async with room() as hall:
            host = hall.hub.host_of(ME)
            socket = hall.connect(host)
            await hall.say(socket, protocol.HELLO, host, ME, ready=True, holding=[])
            assert protocol.decode(await socket.recv_multipart()).kind == protocol.WELCOME
            await hall.told.until("ready", ME)
            hall.hub.forget(ME)
            hall.told.events.clear()
            await hall.say(socket, protocol.BEAT, host, ME)
            assert protocol.decode(await socket.recv_multipart()).kind == protocol.STOP
            assert hall.hub.refused == 1
            hall.connect(host)
            await hall.until(lambda: hall.hub.refused > 1)
            assert hall.told.events == []

    asyncio.run(main())


def test_one_life_cannot_speak_for_another() -> None:
    """Its keys tell who it is, whatever it says."""

    async def main() -> None:
        async with room() as hall:
            host, other = hall.hub.host_of(ME), Life(2, 0)
            hall.hub.host_of(other)
            socket = hall.connect(host)
            await hall.say(socket, protocol.HELLO, host, other, ready=True, holding=[])
            await hall.say(socket, protocol.BEAT, host, other)
            await hall.until(lambda: hall.hub.bad_messages == 2)
            assert hall.told.events == []
            assert not hall.hub.add_lease(other, Request((0, 0), 0, NO_PARAMS))

    asyncio.run(main())


def test_one_life_cannot_take_the_connection_of_another() -> None:
    """A peer may choose its routing id, also one that another has had."""

    async def main() -> None:
        async with room() as hall:
            host, other = hall.hub.host_of(ME), Life(2, 0)
            first = hall.connect(host, b"chosen")
            await hall.say(first, protocol.HELLO, host, ME, ready=True, holding=[])
            await hall.told.until("ready", ME)
            first.close()
            hall.told.events.clear()
            while not hall.hub.bad_messages:
                # Anew each time, because the hub refuses this id until it has noticed that the first one is gone.
                second = hall.connect(hall.hub.host_of(other), b"chosen")
                await second.send_multipart(protocol.encode(protocol.REPLAYED, {"pass": 0, "lease": 0, "step": 0}))
                await asyncio.sleep(0.05)
            assert hall.told.events == []

    asyncio.run(main())


def test_the_keys_of_an_earlier_launch_of_a_life() -> None:
    """A life that is launched anew, as its node does not answer, has other keys; the old ones are worth nothing."""

    async def main() -> None:
        async with room() as hall:
            old = hall.hub.host_of(ME)
            hall.hub.host_of(ME)
            hall.connect(old)
            await hall.until(lambda: hall.hub.refused > 0)

    asyncio.run(main())


def test_strangers_do_not_hold_up_a_host_that_is_busy() -> None:
    """Thousands of them, each turned away while the host's loop stands still; a Blender's connection lives on."""

    async def main() -> None:
        async with room() as hall:
            host = hall.hub.host_of(ME)
            socket = hall.connect(host)
            await hall.say(socket, protocol.HELLO, host, ME, ready=True, holding=[])
            await hall.told.until("ready", ME)
            hall.told.events.clear()
            port = int(host.endpoint.rpartition(":")[2])
            null = b"\xff" + 8 * b"\0" + b"\x7f\x03\x00NULL" + 48 * b"\0"
            for _ in range(2500):  # no await: the loop stands still
                with socketlib.create_connection(("127.0.0.1", port), LIMIT) as stranger:
                    stranger.sendall(null)
                    stranger.recv(64)
            await hall.say(socket, protocol.BEAT, host, ME, rss=1)
            await hall.told.until("beat", ME, 1)
            await hall.until(lambda: hall.hub.refused >= 2500)

    asyncio.run(main())


@pytest.mark.parametrize("mixed", [False, True])
def test_versions_of_blender(*, mixed: bool) -> None:
    """Two versions are refused, unless that is wanted."""

    async def main() -> None:
        async with room(mixed=mixed) as hall:
            for life, version in ((ME, "4.5.15"), (Life(2, 0), "3.4.1")):
                host = hall.hub.host_of(life)
                socket = hall.connect(host)
                await hall.say(socket, protocol.HELLO, host, life, ready=False, holding=[])
                await socket.recv_multipart()
                await socket.send_multipart(protocol.encode(protocol.READY, {"blender": version, "warnings": []}))
                await hall.told.until("ready", life)
            failed = [event[1] for event in hall.told.events if event[0] == "fail"]
            assert len(failed) == (not mixed)
            for error in failed:
                assert isinstance(error, ConfigError)
                assert "Blender 2 is 3.4.1, on a node of the cluster, but others are 4.5.15" in str(error)

    asyncio.run(main())
