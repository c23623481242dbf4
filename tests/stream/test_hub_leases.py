"""Leases on their way: the real dispatcher and the real hub, against raw sockets that play Blenders."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import zmq.asyncio

import asyncblend as ab
from asyncblend.errors import StreamClosed
from asyncblend.fleet.fleet import Fleet
from asyncblend.fleet.log import Log
from asyncblend.stream.dispatcher import Dispatcher
from asyncblend.stream.hub import Hub
from asyncblend.stream.passes import Pass
from asyncblend.wire import protocol
from asyncblend.wire.launch import Life, Report

from .hub_stage import LIMIT, Peer

ME = Life(0, 0)
Name = tuple[int, int]


class Idle:
    """A process that lives until it is stopped, and does nothing."""

    machine = ""

    def __init__(self, folder: Path) -> None:
        self.log = Log(folder / "log.txt")

    async def wait(self) -> int:
        never: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        return await never

    async def stop(self, ask: Callable[[], None], grace: float) -> None:
        ask()

    def report(self) -> Report:
        return Report()

    async def install(self, report: Report) -> None: ...
    def see_dead(self) -> None: ...
    def disown(self) -> None: ...
    def kill(self) -> None:
        raise AssertionError("it did nothing wrong")


class Stage:
    """A hub, a dispatcher and a fleet whose only process is a raw socket."""

    def __init__(self, folder: Path, context: zmq.asyncio.Context, stack: contextlib.ExitStack, **options: Any) -> None:
        defaults = {"instances": 1, "queue_size": 4, "prefetch": 4, "timeouts": ab.Timeouts(beat=3600)}
        self.config = ab.StreamConfig(script="x.py", **{**defaults, **options})
        self.hub = stack.enter_context(Hub(folder, 0, {}))
        self.fleet = Fleet(self.config, self._spawn, self.hub.send_stop)
        self.dispatcher = Dispatcher(self.config, self.hub, self.fleet, {})
        self._context, self._peers, self._folder = context, list[Peer](), folder
        self.tasks = [
            asyncio.ensure_future(self.hub.serve(self.fleet, self.dispatcher)),
            asyncio.ensure_future(self.fleet.run(self.dispatcher.dispatch, self.dispatcher.life_over)),
        ]

    async def _spawn(self, life: Life) -> Idle:
        return Idle(self._folder)

    def begin(self, *indices: int, **options: Any) -> Pass:
        """Begin a pass over these indices."""
        source = Pass(self.config, indices, **options)
        self.dispatcher.begin(source)
        return source

    async def join(self, *, ready: bool = True, holding: list[Name] | None = None) -> Peer:
        """Connect another socket as the only Blender."""
        while self.fleet.states[0] == "new":
            await asyncio.sleep(0)
        peer = Peer(self._context, self.hub)
        self._peers.append(peer)
        await peer.join(ME, ready=ready, holding=holding or [])
        return peer

    def close(self) -> None:
        for peer in self._peers:
            peer.close()


async def leases(peer: Peer, count: int) -> list[Name]:
    """Return pass and serial of the next messages, which must be leases."""
    names = []
    for _ in range(count):
        kind, fields, _ = await peer.receive()
        assert kind == protocol.LEASE
        names.append((fields["pass"], fields["lease"]))
    return names


async def received(source: Pass) -> int:
    """Wait for a frame of a pass, and return its index."""
    async with asyncio.timeout(LIMIT):
        arrival = await source.queue.get()
    return arrival.frame.index


Make = Callable[..., Stage]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="h")))
        context = zmq.asyncio.Context()
        stack.callback(context.term)
        stages: list[Stage] = []

        def make(**options: Any) -> Stage:
            stages.append(Stage(folder, context, stack, **options))
            stack.callback(stages[-1].close)
            return stages[-1]

        yield make
        for stage in stages:
            assert not any(task.done() for task in stage.tasks)
            for task in stage.tasks:
                task.cancel()
            await asyncio.wait(stage.tasks)


async def test_only_missing_leases_are_sent_again(make: Make) -> None:
    """A Blender that reconnects is sent the leases that it does not hold, told apart by pass and lease."""
    stage = make(prefetch=8)
    one, two = stage.begin(10, 11, 12, 13), stage.begin(20, 21, 22, 23)
    old = await stage.join()
    sent = await leases(old, 8)
    assert sorted(sent) == [(number, serial) for number in (0, 1) for serial in range(4)]
    has = [(0, 1), (1, 0), (1, 3)]
    new = await stage.join(holding=has)
    missing = [name for name in sent if name not in has]
    assert await leases(new, 5) == missing
    for number, serial in has + missing:
        await new.frame(serial, 0, of=number)
    assert {await received(one) for _ in range(4)} == {10, 11, 12, 13}
    assert {await received(two) for _ in range(4)} == {20, 21, 22, 23}
    assert (stage.dispatcher.stats().stale, stage.hub.bad_messages) == (0, 0)


async def test_what_was_answered_is_not_sent_again(make: Make) -> None:
    """A reconnected Blender gets no lease whose frame has arrived, and none of a pass that has ended."""
    stage = make(prefetch=8)
    one, two = stage.begin(10, 11), stage.begin(20, 21)
    old = await stage.join()
    await leases(old, 4)
    await old.frame(0, 10, of=0)
    await old.frame(0, 20, of=1)
    assert (await received(one), await received(two)) == (10, 20)
    stage.dispatcher.end(two)
    new = await stage.join()
    assert await leases(new, 1) == [(0, 1)]
    await new.frame(1, 11, of=0)
    assert await received(one) == 11


async def test_an_ended_pass_is_revoked(make: Make) -> None:
    """Ending a pass revokes its leases behind the first one, and lets the next pass begin."""
    stage = make()
    one = stage.begin(10, 11, 12, 13)
    peer = await stage.join()
    assert await leases(peer, 4) == [(0, 0), (0, 1), (0, 2), (0, 3)]
    two = stage.begin(20)
    stage.dispatcher.end(one, StreamClosed("closed"))
    assert await peer.receive() == ("revoke", {"pass": 0, "leases": [1, 2, 3]}, None)
    assert await leases(peer, 1) == [(1, 0)]
    await peer.frame(0, 10, of=0)
    await peer.frame(0, 20, of=1)
    assert await received(two) == 20
    assert stage.dispatcher.stats().stale == 1
    with pytest.raises(StreamClosed):
        await received(one)


async def test_flushed_leases_come_back_with_new_params(make: Make) -> None:
    """A flush revokes what is not begun, and leases the same indices anew with the params of now."""
    level = 1
    stage = make(params=lambda index: {"level": level})
    source = stage.begin(10, 11, 12)
    peer = await stage.join()
    await leases(peer, 3)
    level = 2
    assert stage.dispatcher.flush(source) == 2
    assert await peer.receive() == ("revoke", {"pass": 0, "leases": [1, 2]}, None)
    again = [await peer.receive() for _ in range(2)]
    assert [(m.fields["lease"], m.fields["index"], m.values) for m in again] == [
        (3, 11, {"level": 2}),
        (4, 12, {"level": 2}),
    ]
    await peer.frame(1, 11, of=0)  # as of a Blender that had begun it when it was revoked
    await peer.frame(3, 11, of=0)
    assert await received(source) == 11
    assert stage.dispatcher.stats().stale == 1


async def test_an_urgent_pass_needs_no_room(make: Make) -> None:
    """An urgent lease is sent to a Blender that holds as much as it may."""
    stage = make(prefetch=2)
    stage.begin(10, 11, 12, 13)
    peer = await stage.join()
    assert await leases(peer, 2) == [(0, 0), (0, 1)]
    urgent = stage.begin(50, queue_size=1, urgent=True)
    kind, fields, _ = await peer.receive()
    assert (kind, fields) == (protocol.LEASE, {"pass": 1, "lease": 0, "index": 50, "urgent": True})
    await peer.frame(0, 50, of=1)
    assert await received(urgent) == 50


async def test_a_frame_that_comes_twice_counts_once(make: Make) -> None:
    """The second frame of a lease is dropped and counted, as is one of a lease that was never sent."""
    stage = make()
    source = stage.begin(10, 11)
    peer = await stage.join()
    await leases(peer, 2)
    await peer.frame(0, 10)
    await peer.frame(0, 10)
    await peer.frame(7, 10)
    await peer.frame(0, 10, of=4)
    await peer.frame(1, 11)
    assert [await received(source) for _ in range(2)] == [10, 11]
    stats = stage.dispatcher.stats()
    assert (stats.stale, stats.duplicates, stats.frames) == (3, 1, {0: 2})
