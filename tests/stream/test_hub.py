"""Hub: the host's socket, against raw sockets that do whatever a Blender, or anybody else, might do."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import pickle
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
import zmq.asyncio

from asyncblend.errors import ProtocolError
from asyncblend.stream.hub import Hub
from asyncblend.wire import payload, protocol
from asyncblend.wire.launch import Life
from asyncblend.wire.protocol import Message

LIMIT = 10  # seconds for anything at all
SEED = 2**40 + 5
ME = Life(1, 0)
PROBE = 1000  # instance number of beats that only ask whether the hub has come so far


class Recorder:
    """A Receiver that writes down what it is told."""

    def __init__(self) -> None:
        self.lives = {ME, Life(2, 0)}
        self.events: list[tuple[Any, ...]] = []
        self.probes: set[Life] = set()
        self._told = asyncio.Event()

    async def until(self, *event: Any) -> None:
        """Wait until it was told this."""
        async with asyncio.timeout(LIMIT):
            while event not in self.events:
                self._told.clear()
                await self._told.wait()

    async def probed(self, life: Life) -> None:
        """Wait until this probe came."""
        async with asyncio.timeout(LIMIT):
            while life not in self.probes:
                self._told.clear()
                await self._told.wait()

    def _tell(self, *event: Any) -> None:
        self.events.append(event)
        self._told.set()

    def knows(self, life: Life) -> bool:
        return life in self.lives

    def beat(self, life: Life, rss: int = 0) -> None:
        if life.instance == PROBE:
            self.probes.add(life)
            self._told.set()
        else:
            self._tell("beat", life)

    def ready(self, life: Life) -> None:
        self._tell("ready", life)

    def reconnected(self, life: Life, holding: Sequence[int]) -> None:
        self._tell("reconnected", life, list(holding))

    def frame(self, life: Life, serial: int, index: int, values: dict[str, Any]) -> None:
        self._tell("frame", life, serial, index, values)

    def sample_failed(self, life: Life, serial: int, index: int, error: str, traceback: str) -> None:
        self._tell("failed", life, serial, index, error, traceback)

    def misbehaved(self, life: Life, how: str) -> None:
        self._tell("misbehaved", life)

    def dropped_frame(self) -> None:
        self._tell("dropped")

    def fail(self, error: BaseException) -> None:
        self._tell("fail", error)


class Peer:
    """A socket that is connected to the hub."""

    def __init__(self, context: zmq.asyncio.Context, hub: Hub) -> None:
        self._socket = context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.connect(hub.endpoint)
        self._token = hub.token

    async def raw(self, *parts: bytes) -> None:
        await self._socket.send_multipart(parts)

    async def say(self, kind: str, values: dict[str, Any] | None = None, **fields: Any) -> None:
        carried = () if values is None else payload.encode_values(values)
        await self._socket.send_multipart(protocol.encode(kind, fields, carried))

    def who(self, life: Life = ME, **changes: Any) -> dict[str, Any]:
        """What HELLO and BEAT say of the sender."""
        own = {
            "token": self._token,
            "version": protocol.VERSION,
            "instance": life.instance,
            "epoch": life.epoch,
        }
        return {**own, **changes}

    async def hello(self, life: Life = ME, *, ready: bool = False, holding: Sequence[int] = (), **changes: Any) -> None:
        await self.say(protocol.HELLO, **{"ready": ready, "holding": list(holding), **self.who(life, **changes)})

    async def beat(self, life: Life = ME, **changes: Any) -> None:
        await self.say(protocol.BEAT, **self.who(life, **changes))

    async def hears(self) -> Message:
        async with asyncio.timeout(LIMIT):
            return protocol.decode(await self._socket.recv_multipart())

    async def welcomed(self, life: Life = ME, **hello: Any) -> None:
        """Say HELLO, and be known from then on."""
        await self.hello(life, **hello)
        assert (await self.hears()).kind == protocol.WELCOME

    def close(self) -> None:
        self._socket.close()


class Stage:
    """A hub that serves, and who connects to it."""

    def __init__(self, hub: Hub, context: zmq.asyncio.Context) -> None:
        self.hub, self.told, self._context = hub, Recorder(), context
        self._peers: list[Peer] = []
        self._probes = itertools.count()
        self.serving = asyncio.ensure_future(hub.serve(self.told))

    def peer(self) -> Peer:
        self._peers.append(Peer(self._context, self.hub))
        return self._peers[-1]

    async def handled(self, peer: Peer) -> None:
        """Wait until all that this peer sent before has been handled."""
        probe = Life(PROBE, next(self._probes))
        await peer.beat(probe)
        await self.told.probed(probe)

    async def goes_on(self) -> None:
        """The hub serves still."""
        assert not self.serving.done()
        await self.handled(self.peer())

    def close(self) -> None:
        for peer in self._peers:
            peer.close()
        self._context.term()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A path that is short enough for an ipc socket."""
    with tempfile.TemporaryDirectory(prefix="h") as path:
        yield Path(path)


@contextlib.asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Stage]:
    with Hub(folder, SEED) as hub:
        context = zmq.asyncio.Context()
        stage = Stage(hub, context)
        try:
            yield stage
        finally:
            stage.close()
            stage.serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await stage.serving


@pytest.fixture
async def stage(folder: Path) -> AsyncIterator[Stage]:
    async with serving(folder) as stage:
        yield stage


# -- saying hello ------------------------------------------------------------------------------------------------


async def test_hello_is_welcomed(stage: Stage) -> None:
    """With the version and the seed; it is a sign of life, and nothing else yet."""
    peer = stage.peer()
    await peer.hello()
    assert await peer.hears() == ("welcome", {"version": protocol.VERSION, "seed": SEED}, None)
    assert stage.told.events == [("beat", ME)]
    assert stage.hub.bad_messages == 0


async def test_what_blender_says_is_passed_on(stage: Stage) -> None:
    """READY, FRAME and FAILED, with the life that said HELLO on this connection; BYE needs no answer."""
    peer = stage.peer()
    await peer.welcomed()
    await peer.say(protocol.READY)
    await peer.say(protocol.FRAME, {"n": 1}, lease=4, index=9)
    await peer.say(protocol.FAILED, lease=5, index=10, error="KeyError: 'x'", traceback="...")
    await peer.say(protocol.BYE)
    await stage.handled(peer)
    assert stage.told.events == [
        ("beat", ME),
        ("ready", ME),
        ("frame", ME, 4, 9, {"n": 1}),
        ("failed", ME, 5, 10, "KeyError: 'x'", "..."),
    ]
    assert stage.hub.bad_messages == 0


async def test_arrays_stay_whole_after_later_messages(stage: Stage) -> None:
    """They are views of the received buffers, which nothing else uses again."""
    peer = stage.peer()
    await peer.welcomed()
    for i in range(50):
        await peer.say(protocol.FRAME, {"image": np.full((50, 50), i), "one": np.array(i)}, lease=i, index=i)
    await stage.handled(peer)
    frames = [event for event in stage.told.events if event[0] == "frame"]
    assert [event[2:4] for event in frames] == [(i, i) for i in range(50)]
    for i, (*_, values) in enumerate(frames):
        assert values["image"].shape == (50, 50)
        assert (values["image"] == i).all()
        assert values["one"] == i


async def test_lives_are_told_apart_by_their_connection(stage: Stage) -> None:
    """Each frame is of the life that its own connection said HELLO for."""
    one, two = stage.peer(), stage.peer()
    await one.welcomed(ME)
    await two.welcomed(Life(2, 0))
    await two.say(protocol.READY)
    await one.say(protocol.READY)
    await stage.told.until("ready", ME)
    await stage.told.until("ready", Life(2, 0))


async def test_a_hello_again_is_only_a_beat(stage: Stage) -> None:
    """An idle Blender says it now and then; it is known already."""
    peer = stage.peer()
    await peer.welcomed(ready=True)
    assert stage.told.events == [("beat", ME), ("reconnected", ME, []), ("ready", ME)]
    stage.told.events.clear()
    await peer.hello(ready=True)
    await peer.say(protocol.READY)
    await stage.told.until("ready", ME)
    assert stage.told.events == [("beat", ME), ("ready", ME)]
    assert stage.hub.send_lease(ME, 1, 2, 0, payload.encode_values({}))
    assert (await peer.hears()).kind == protocol.LEASE  # and no second WELCOME before it


async def test_a_wrong_token_is_refused(stage: Stage) -> None:
    """The stranger is sent away and counted; the run goes on, and the life is not taken over."""
    stranger = stage.peer()
    await stranger.hello(token="guessed")
    kind, fields, _ = await stranger.hears()
    assert kind == protocol.STOP
    assert "wrong token" in fields["reason"]
    assert stage.hub.token not in fields["reason"]
    assert (stage.hub.bad_messages, stage.told.events) == (1, [])
    assert not stage.hub.send_lease(ME, 0, 0, 0, payload.encode_values({}))
    await stage.goes_on()


@pytest.mark.parametrize("token", ["\ud800", "grüß", ""], ids=ascii)
async def test_no_token_takes_the_host_down(stage: Stage, token: str) -> None:
    """Whatever is in it, in a HELLO or a BEAT."""
    stranger = stage.peer()
    await stranger.beat(token=token)
    await stranger.hello(token=token)
    assert (await stranger.hears()).kind == protocol.STOP
    assert stage.hub.bad_messages == 2
    await stage.goes_on()


async def test_another_runs_token_is_refused(stage: Stage) -> None:
    """Each run has its own."""
    with tempfile.TemporaryDirectory(prefix="h") as other, Hub(Path(other), SEED) as hub:
        assert hub.token != stage.hub.token
        stranger = stage.peer()
        await stranger.hello(token=hub.token)
        assert (await stranger.hears()).kind == protocol.STOP


@pytest.mark.parametrize("version", [protocol.VERSION + 1, 0, None, "1"], ids=repr)
async def test_another_version_of_ours_ends_the_run(stage: Stage, version: Any) -> None:
    """Both sides are told both versions: no wait for a start that can never come."""
    peer = stage.peer()
    await peer.hello(version=version)
    kind, fields, _ = await peer.hears()
    assert kind == protocol.STOP
    both = f"version {version!r}, this asyncblend speaks {protocol.VERSION}"
    assert both in fields["reason"]
    ((event, error),) = stage.told.events
    assert event == "fail"
    assert isinstance(error, ProtocolError)
    assert both in str(error)
    assert stage.hub.bad_messages == 1
    await stage.goes_on()


async def test_another_version_of_a_stranger_does_not(stage: Stage) -> None:
    """Without the token it is anybody."""
    peer = stage.peer()
    await peer.hello(token="guessed", version=99)
    assert "wrong token" in (await peer.hears()).fields["reason"]
    assert stage.told.events == []


async def test_a_life_that_is_over_is_sent_away(stage: Stage) -> None:
    """A Blender that was given up for dead and comes back late has no place any more."""
    late = stage.peer()
    await late.hello(Life(1, 7), ready=True)
    kind, fields, _ = await late.hears()
    assert (kind, fields["reason"]) == (protocol.STOP, "another life has begun")
    assert stage.told.events == []
    assert not stage.hub.send_lease(Life(1, 7), 0, 0, 0, payload.encode_values({}))


@pytest.mark.parametrize("changes", [{"holding": None}, {"holding": {}}, {"ready": None}, {"ready": 1}], ids=repr)
async def test_an_incomplete_hello_is_no_hello(stage: Stage, changes: dict[str, Any]) -> None:
    """It is counted, and the connection belongs to nobody."""
    peer = stage.peer()
    await peer.say(protocol.HELLO, **{**peer.who(), "ready": False, "holding": [], **changes})
    await stage.handled(peer)
    assert stage.hub.bad_messages == 1
    assert not stage.hub.send_lease(ME, 0, 0, 0, payload.encode_values({}))
    await peer.welcomed()


# -- connections that come and go --------------------------------------------------------------------------------


async def test_an_unknown_connection_is_asked_for_hello(stage: Stage) -> None:
    """A dropped connection comes back under a new identity: its frame is lost and counted, and it is known again."""
    peer = stage.peer()
    await peer.say(protocol.FRAME, {"n": 1}, lease=4, index=9)
    assert await peer.hears() == ("hello", {}, None)
    assert stage.told.events == [("dropped",)]
    await peer.welcomed(ready=True, holding=[5])
    await peer.say(protocol.FRAME, {"n": 2}, lease=5, index=10)
    await stage.told.until("frame", ME, 5, 10, {"n": 2})
    assert stage.told.events[1:-1] == [("beat", ME), ("reconnected", ME, [5]), ("ready", ME)]
    assert stage.hub.bad_messages == 0


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (protocol.READY, {}),
        (protocol.BYE, {}),
        (protocol.FAILED, {"lease": 0, "index": 0, "error": "", "traceback": ""}),
    ],
)
async def test_whatever_it_says_it_is_asked_for_hello(stage: Stage, kind: str, fields: dict[str, Any]) -> None:
    """Never are both sides waiting; only frames are counted as dropped."""
    peer = stage.peer()
    await peer.say(kind, **fields)
    assert (await peer.hears()).kind == protocol.HELLO
    assert stage.told.events == []


async def test_leases_go_to_the_newest_connection(stage: Stage) -> None:
    """What the life holds is told before it may get more, and the old connection is a stranger from then on."""
    old, new = stage.peer(), stage.peer()
    await old.welcomed(ready=True, holding=[1])
    stage.told.events.clear()
    await new.welcomed(ready=True, holding=[1, 4])
    assert stage.told.events == [("beat", ME), ("reconnected", ME, [1, 4]), ("ready", ME)]
    assert stage.hub.send_lease(ME, 7, 3, 0, payload.encode_values({}))
    assert (await new.hears()).fields["lease"] == 7
    await old.say(protocol.FRAME, {}, lease=1, index=0)
    assert (await old.hears()).kind == protocol.HELLO  # and no lease before it
    assert stage.told.events[-1] == ("dropped",)


async def test_before_it_serves_a_reconnection_is_only_a_connection(stage: Stage) -> None:
    """It holds no leases yet; READY comes when the script calls serve."""
    old, new = stage.peer(), stage.peer()
    await old.welcomed()
    await new.welcomed()
    await new.say(protocol.READY)
    await stage.told.until("ready", ME)
    assert stage.told.events == [("beat", ME), ("beat", ME), ("ready", ME)]


async def test_a_forgotten_life_is_a_stranger(stage: Stage) -> None:
    """Its connection is asked for HELLO, and then sent away; its successor is welcomed."""
    peer = stage.peer()
    await peer.welcomed()
    stage.hub.forget(ME)
    stage.hub.forget(ME)
    stage.told.lives = {Life(1, 1)}
    assert not stage.hub.send_lease(ME, 0, 0, 0, payload.encode_values({}))
    await peer.say(protocol.READY)
    assert (await peer.hears()).kind == protocol.HELLO
    await peer.hello(ready=True)
    assert (await peer.hears()).kind == protocol.STOP
    await stage.peer().welcomed(Life(1, 1))


async def test_one_connection_that_claims_two_lives_is_the_last(stage: Stage) -> None:
    """It has the token, so it is a bug of ours; but it takes neither the host down nor the other life with it."""
    other = Life(2, 0)
    peer = stage.peer()
    await peer.welcomed(ME)
    await peer.welcomed(other)
    assert not stage.hub.send_lease(ME, 0, 0, 0, payload.encode_values({}))
    stage.hub.forget(ME)
    await peer.say(protocol.READY)
    await stage.told.until("ready", other)
    stage.hub.forget(other)
    await stage.goes_on()


async def test_a_connection_that_is_gone_takes_no_lease(stage: Stage) -> None:
    """send_lease says so, instead of losing it in silence."""
    peer = stage.peer()
    await peer.welcomed()
    peer.close()
    async with asyncio.timeout(LIMIT):
        while stage.hub.send_lease(ME, 0, 0, 0, payload.encode_values({})):
            await asyncio.sleep(0)  # ZeroMQ has no event for it
    stage.hub.send_stop(ME)
    await stage.goes_on()


async def test_a_life_without_a_connection_takes_no_lease(stage: Stage) -> None:
    """Nor a STOP, and that is no error."""
    assert not stage.hub.send_lease(ME, 0, 0, 0, payload.encode_values({}))
    stage.hub.send_stop(ME)


# -- to Blender --------------------------------------------------------------------------------------------------


async def test_a_lease_arrives_with_its_params(stage: Stage) -> None:
    """Number, index, the first number that is still wanted, and the params; also when it is sent again."""
    peer = stage.peer()
    await peer.welcomed()
    params = payload.encode_values({"light": 0.5, "pose": np.eye(3)})
    for serial in (11, 12):
        assert stage.hub.send_lease(ME, serial, 3, 8, params)
        kind, fields, values = await peer.hears()
        assert (kind, fields) == (protocol.LEASE, {"lease": serial, "index": 3, "since": 8})
        assert values is not None
        assert values["light"] == 0.5
        np.testing.assert_array_equal(values["pose"], np.eye(3))


async def test_stop_arrives(stage: Stage) -> None:
    """Without a reason: it is the usual end."""
    peer = stage.peer()
    await peer.welcomed()
    stage.hub.send_stop(ME)
    assert await peer.hears() == ("stop", {"reason": ""}, None)


# -- beats -------------------------------------------------------------------------------------------------------


async def test_a_beat_comes_on_a_socket_of_its_own(stage: Stage) -> None:
    """It says who it is of each time, needs no HELLO, gets no answer, and is no connection for leases."""
    beating = stage.peer()
    await beating.beat()
    await stage.told.until("beat", ME)
    assert not stage.hub.send_lease(ME, 0, 0, 0, payload.encode_values({}))
    peer = stage.peer()
    await peer.welcomed()
    await beating.beat()
    await stage.handled(beating)
    assert stage.hub.send_lease(ME, 0, 0, 0, payload.encode_values({}))
    assert (await peer.hears()).kind == protocol.LEASE
    assert stage.hub.bad_messages == 0


async def test_a_beat_is_checked_like_a_hello(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """Its token and its version; another version is logged with both."""
    peer = stage.peer()
    await peer.beat(token="guessed")
    await peer.beat(version=protocol.VERSION + 1)
    await peer.beat(instance=-1)
    await stage.handled(peer)
    assert stage.hub.bad_messages == 3
    assert stage.told.events == []
    assert f"version {protocol.VERSION + 1}, this asyncblend speaks {protocol.VERSION}" in caplog.text
    assert stage.hub.token not in caplog.text


# -- garbage -----------------------------------------------------------------------------------------------------

HEADER = json.dumps({"kind": "frame", "lease": 0, "index": 0}).encode()
GARBAGE: list[list[bytes]] = [
    [b""],
    [b"", b""],
    [b"\xff" * 100],
    [b"GET / HTTP/1.1\r\n\r\n"],
    [b"{}"],
    [b'{"kind":"nonsense"}'],
    [b'{"kind":"frame"}'],
    [HEADER],
    [HEADER[:-1] + b',"tree":{"arrays":[["object",[1]]],"values":{}}}', bytes(8)],
    [HEADER[:-1] + b',"tree":{"arrays":[["uint8",[4611686018427387904]]],"values":{}}}', bytes(8)],
    [b'{"kind":"ready","x":"' + b"y" * protocol.MAX_HEADER + b'"}'],
    [b'{"kind":"ready"}', b"more"],
    [b'{"kind":"ready"}'] * (payload.MAX_PARTS + 1),
    [b"[" * 60_000],
    [pickle.dumps({"kind": "ready"})],
]


@pytest.mark.parametrize("known", [False, True], ids=["stranger", "known"])
async def test_garbage_is_counted_and_nothing_else(stage: Stage, known: bool) -> None:
    """Of strangers, and of a life of ours: the hub goes on, and so does the life. What a stranger's frame carries is
    not looked at: it is a frame of nobody."""
    peer = stage.peer()
    if known:
        await peer.welcomed()
    stage.told.events.clear()
    number = 0
    for parts in GARBAGE:
        try:
            protocol.decode(parts, values=known)
        except ProtocolError:
            number += 1
        await peer.raw(*parts)
        await stage.handled(peer)
        assert stage.hub.bad_messages == number
    assert set(stage.told.events) <= {("dropped",)}
    if known:
        await peer.say(protocol.READY)
        await stage.told.until("ready", ME)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (protocol.WELCOME, {"version": 1, "seed": 0}),
        (protocol.STOP, {"reason": ""}),
        (protocol.LEASE, {"lease": 0, "index": 0, "since": 0, "values": {}}),
    ],
)
async def test_what_only_the_host_sends_is_garbage(stage: Stage, kind: str, fields: dict[str, Any]) -> None:
    """A Blender cannot stop or lease anything."""
    peer = stage.peer()
    await peer.welcomed()
    await peer.say(kind, **fields)
    await stage.handled(peer)
    assert stage.hub.bad_messages == 1
    assert stage.told.events == [("beat", ME)]


async def test_a_pickle_bomb_does_nothing(stage: Stage, folder: Path) -> None:
    """As a header, as a tree, and as an array's bytes."""
    proof = folder / "exploded"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(proof),)

    bomb = pickle.dumps(Bomb())
    peer = stage.peer()
    await peer.welcomed()
    await peer.raw(bomb)
    await peer.raw(HEADER[:-1] + b',"apart":true}', bomb)
    await peer.say(protocol.FRAME, {"x": np.frombuffer(bomb, np.uint8)}, lease=1, index=1)
    await stage.handled(peer)
    assert stage.hub.bad_messages == 2
    (frame,) = (event for event in stage.told.events if event[0] == "frame")
    assert frame[4]["x"].tobytes() == bomb
    assert not proof.exists()


async def test_an_unknown_frame_in_shared_memory_is_asked_for_hello(stage: Stage) -> None:
    """Where its arrays are is not looked at: it is a frame of nobody, not a bad message."""
    peer = stage.peer()
    tree = {"arrays": [["uint8", [10], 4096]], "slot": 0, "values": {"a": {"$": 0}}}
    await peer.say(protocol.FRAME, lease=1, index=1, tree=tree)
    assert (await peer.hears()).kind == protocol.HELLO
    assert stage.told.events == [("dropped",)]
    assert stage.hub.bad_messages == 0


async def test_who_keeps_sending_garbage_is_told_of_and_not_heard(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """Sixteen cost a message each; one more, and even what could be read is dropped. Others are heard as before."""
    bad, good = stage.peer(), stage.peer()
    await bad.welcomed()
    await good.welcomed(Life(2, 0))
    for _ in range(16):
        await bad.raw(b"garbage")
    await bad.say(protocol.READY)
    await stage.told.until("ready", ME)
    assert ("misbehaved", ME) not in stage.told.events
    await bad.raw(b"garbage")
    await stage.told.until("misbehaved", ME)
    await bad.say(protocol.FRAME, {}, lease=1, index=1)
    await bad.raw(b"garbage")
    await good.say(protocol.READY)
    await stage.told.until("ready", Life(2, 0))
    while stage.hub.bad_messages < 19:
        await asyncio.sleep(0)
    assert stage.told.events.count(("misbehaved", ME)) == 1
    assert not [event for event in stage.told.events if event[0] == "frame"]
    assert [m for m in caplog.messages if m.startswith("Not listening any more to Blender 1: 17 messages")]


async def test_a_stranger_who_keeps_sending_garbage_is_nobodys_fault(stage: Stage) -> None:
    """It is not heard any more, not even its HELLO; nobody is killed for it."""
    stranger = stage.peer()
    for _ in range(17):
        await stranger.raw(b"garbage")
    await stranger.hello()
    while stage.hub.bad_messages < 18:
        await asyncio.sleep(0)
    assert stage.told.events == []
    await stage.peer().welcomed()


async def test_the_next_life_is_heard_again(stage: Stage) -> None:
    """What was held against a life ends with it, and the list of offenders stays short."""
    bad = stage.peer()
    await bad.welcomed()
    for _ in range(17):
        await bad.raw(b"garbage")
    await stage.told.until("misbehaved", ME)
    stage.hub.forget(ME)
    await bad.welcomed()


async def test_a_flood_leaves_a_turn_to_others(stage: Stage) -> None:
    """However fast messages come, the event loop's other tasks get on after 64 of them."""
    others: list[int] = []

    class Counter(Recorder):
        def ready(self, life: Life) -> None:
            if not others and len(self.events) == 1:
                asyncio.get_running_loop().call_soon(lambda: others.append(len(self.events)))
            super().ready(life)

    stage.serving.cancel()
    stage.told = Counter()
    peer = stage.peer()
    # The first message is there before anything is received, and so, most likely, are many more.
    await peer.hello()
    for _ in range(1000):
        await peer.say(protocol.READY)
    stage.serving = asyncio.ensure_future(stage.hub.serve(stage.told))
    await stage.handled(peer)
    assert stage.told.events == [("beat", ME)] + [("ready", ME)] * 1000
    assert others[0] <= 64


# -- the endpoint ------------------------------------------------------------------------------------------------


async def test_it_binds_in_its_private_folder(stage: Stage, folder: Path) -> None:
    """An ipc socket, which nobody else can reach."""
    assert stage.hub.endpoint == f"ipc://{folder}/hub"
    assert (folder / "hub").is_socket()


@pytest.mark.parametrize("longest", [False, True])
async def test_a_long_path_means_loopback_tcp(folder: Path, longest: bool) -> None:
    """On a free port of this machine only; a path that just fits is ipc still. Either works."""
    room = 100 - len(bytes(folder / "hub")) - 1
    deep = folder / ("d" * (room if longest else room + 1))
    deep.mkdir()
    async with serving(deep) as stage:
        if longest:
            assert stage.hub.endpoint == f"ipc://{deep}/hub"
        else:
            address, _, port = stage.hub.endpoint.rpartition(":")
            assert address == "tcp://127.0.0.1"
            assert int(port) > 0
        peer = stage.peer()
        await peer.welcomed()
        assert stage.hub.send_lease(ME, 1, 2, 0, payload.encode_values({}))
        assert (await peer.hears()).kind == protocol.LEASE


async def test_cancelling_serve_ends_it(stage: Stage) -> None:
    """Nothing else does; and the hub can be closed after."""
    await stage.goes_on()
    stage.serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stage.serving
