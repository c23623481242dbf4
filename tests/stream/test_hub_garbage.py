"""What the hub does with messages that nobody should send."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asyncblend.errors import ProtocolError
from asyncblend.wire import payload, protocol
from asyncblend.wire.launch import Life

from .hub_stage import LIMIT, ME, Stage, serving

OTHER = Life(2, 0)
HEADER = json.dumps({"kind": "frame", "pass": 0, "lease": 0, "index": 0}).encode()
GARBAGE: list[list[bytes]] = [
    [b""],
    [b"", b""],
    [b"\xff" * 100],
    [b"GET / HTTP/1.1\r\n\r\n"],
    [b"{}"],
    [b'{"kind":"nonsense"}'],
    [b'{"kind":"frame"}'],
    [b'{"kind":"frame","lease":0,"index":0,"tree":{"arrays":[],"values":{}}}'],
    [HEADER],
    [HEADER[:-1] + b',"tree":{"arrays":[["object",[1]]],"values":{}}}', bytes(8)],
    [HEADER[:-1] + b',"tree":{"arrays":[["uint8",[4611686018427387904]]],"values":{}}}', bytes(8)],
    [b'{"kind":"ready","x":"' + b"y" * protocol.MAX_HEADER + b'"}'],
    [b'{"kind":"ready"}', b"more"],
    [b'{"kind":"ready"}'] * (payload.MAX_PARTS + 1),
    [b"[" * 60_000],
    [pickle.dumps({"kind": "ready"})],
]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for an ipc socket."""
    with tempfile.TemporaryDirectory(prefix="h") as path:
        yield Path(path)


@pytest.fixture
async def stage(folder: Path) -> AsyncIterator[Stage]:
    async with serving(folder) as stage:
        yield stage


async def bad_messages(stage: Stage, count: int) -> None:
    """Wait until the hub has dropped so many messages."""
    async with asyncio.timeout(LIMIT):
        while stage.hub.bad_messages < count:
            await asyncio.sleep(0)


@pytest.mark.parametrize("known", [False, True], ids=["stranger", "known"])
async def test_garbage_is_counted_and_nothing_else(stage: Stage, known: bool) -> None:
    """Garbage of a stranger or of a life is counted, and both the hub and the life go on."""
    peer = stage.peer()
    if known:
        await peer.join()
    stage.told.events.clear()
    count = 0
    for parts in GARBAGE:
        try:
            protocol.decode(parts, values=known)
        except ProtocolError:
            count += 1
        await peer.raw(*parts)
        await stage.handled(peer)
        assert stage.hub.bad_messages == count
    assert count >= len(GARBAGE) - 4
    # The hub does not look at the values of a stranger's frame, because it drops the frame anyway.
    unreadable = ("unreadable", ME, 0, 0)
    assert set(stage.told.events) == ({unreadable} if known else {("dropped",)})
    if known:
        await peer.say(protocol.READY)
        await stage.told.until("ready", ME)


@pytest.mark.parametrize(
    ("kind", "fields", "values"),
    [
        (protocol.WELCOME, {"version": 1, "seed": 0}, None),
        (protocol.STOP, {"reason": ""}, None),
        (protocol.LEASE, {"pass": 0, "lease": 0, "index": 0, "urgent": False}, {}),
        (protocol.LEASES, {"leases": [[0, 0, 0, False]]}, None),
        (protocol.REVOKE, {"pass": 0, "leases": [0]}, None),
    ],
)
async def test_what_only_the_host_sends_is_garbage(
    stage: Stage, kind: str, fields: dict[str, Any], values: dict[str, Any] | None
) -> None:
    """A Blender cannot stop, lease or revoke anything."""
    peer = stage.peer()
    await peer.join()
    await peer.say(kind, values, **fields)
    await stage.handled(peer)
    assert stage.hub.bad_messages == 1
    assert stage.told.events == [("beat", ME, 0)]


async def test_a_pickle_bomb_does_nothing(stage: Stage, folder: Path) -> None:
    """A pickle is never loaded, be it a header, a tree, or the bytes of an array."""
    proof = folder / "exploded"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(proof),)

    bomb = pickle.dumps(Bomb())
    peer = stage.peer()
    await peer.join()
    await peer.raw(bomb)
    await peer.raw(HEADER[:-1] + b',"apart":true}', bomb)
    await peer.frame(1, 1, {"x": np.frombuffer(bomb, np.uint8)})
    await stage.handled(peer)
    assert stage.hub.bad_messages == 2
    (frame,) = (event for event in stage.told.events if event[0] == "frame")
    assert frame[-1]["x"].tobytes() == bomb
    assert not proof.exists()


async def test_an_unknown_frame_in_shared_memory_is_asked_for_hello(stage: Stage) -> None:
    """A stranger's frame whose arrays lie in shared memory is a dropped frame, not a bad message."""
    peer = stage.peer()
    tree = {"arrays": [["uint8", [10], 4096]], "slot": 0, "values": {"a": {"$": 0}}}
    await peer.say(protocol.FRAME, **{"pass": 0, "lease": 1, "index": 1, "tree": tree})
    assert (await peer.receive()).kind == protocol.HELLO
    assert stage.told.events == [("dropped",)]
    assert stage.hub.bad_messages == 0


async def test_a_life_that_keeps_sending_garbage_is_expelled(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """After 17 bad messages a life is expelled, once, and none of its messages counts; other lives go on."""
    bad, good = stage.peer(), stage.peer()
    await bad.join()
    await good.join(OTHER)
    for _ in range(16):
        await bad.raw(b"garbage")
    await bad.say(protocol.READY)
    await stage.told.until("ready", ME)
    assert ("expel", ME) not in stage.told.events
    await bad.raw(b"garbage")
    await stage.told.until("expel", ME)
    await bad.frame(1, 1)
    await bad.raw(b"garbage")
    await good.say(protocol.READY)
    await stage.told.until("ready", OTHER)
    await bad_messages(stage, 19)
    assert stage.told.events.count(("expel", ME)) == 1
    assert stage.told.why.startswith("sent 17 messages that cannot be read, the last one because:")
    assert not [event for event in stage.told.events if event[0] == "frame"]
    assert [m for m in caplog.messages if m.startswith("Not listening any more to Blender 1: 17 messages")]


async def test_a_stranger_that_keeps_sending_garbage_is_ignored(stage: Stage) -> None:
    """After 17 bad messages the hub ignores even a stranger's HELLO, and expels nobody."""
    stranger = stage.peer()
    for _ in range(17):
        await stranger.raw(b"garbage")
    await stranger.hello()
    await bad_messages(stage, 18)
    assert stage.told.events == []
    await stage.peer().join()


async def test_a_forgotten_life_has_a_clean_record(stage: Stage) -> None:
    """The bad messages of a life are forgotten with it."""
    bad = stage.peer()
    await bad.join()
    for _ in range(17):
        await bad.raw(b"garbage")
    await stage.told.until("expel", ME)
    stage.hub.forget(ME)
    await bad.join()


async def test_only_the_latest_offenders_are_remembered(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub remembers a bounded number of offenders, so strangers cannot fill its memory."""
    monkeypatch.setattr("asyncblend.stream.rejects._OFFENDERS", 2)
    peers = [stage.peer() for _ in range(3)]
    for i, peer in enumerate(peers, 1):
        for _ in range(17):
            await peer.raw(b"garbage")
        await bad_messages(stage, 17 * i)
    await peers[2].hello()
    await bad_messages(stage, 52)
    await peers[0].join()


async def test_a_frame_that_took_too_long_to_be_true_is_a_bad_message(stage: Stage) -> None:
    """Whether its values can be read or not: the hub goes on, and knows what the next good frame took."""
    peer = stage.peer()
    await peer.join()
    for rest in (
        [b',"sample":1000000000001,"tree":{"arrays":[],"values":{}}}'],
        [b',"sample":1,"capture":-5,"tree":{"arrays":[],"values":{}}}'],
        [b',"sample":1e999,"tree":{"arrays":[],"values":{}}}'],
        [b',"render":1000000000001,"tree":{"arrays":[["object",[1]]],"values":{}}}', bytes(8)],
    ):
        await peer.raw(HEADER[:-1] + rest[0], *rest[1:])
    await bad_messages(stage, 4)
    await peer.raw(
        HEADER[:-1] + b',"sample":1500000,"render":1000000,"capture":250000,"tree":{"arrays":[],"values":{}}}'
    )
    step = protocol.Step(spent=protocol.Spent(1.5, 1.0, 0.25))
    await stage.told.until("frame", ME, 0, 0, 0, {}, step)
