"""Dispatcher: several passes share the Blenders, in any order of events. Without processes, sockets or a clock."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest

from asyncblend.errors import InstanceError, SampleError, StreamClosed
from asyncblend.stream.bridge import Bridge, Channel
from asyncblend.stream.queue import EndOfStream
from asyncblend.wire import protocol
from tests.stream.world import MAX_DEATHS, RAISES, Blender, Consumer, Name, World, name_of

# -- one promise at a time ---------------------------------------------------------------------------------------


def begun(world: World, consumer: Consumer) -> None:
    """Let the only Blender begin what it was leased first."""
    (blender,) = world.blenders.values()
    world.receive(blender)
    world.render(blender)
    assert blender.rendering is not None
    assert blender.rendering.fields["pass"] == consumer.source.number


def rendered(world: World) -> list[Name]:
    """Let the only Blender render all that it holds, and return what it rendered, in that order."""
    (blender,) = world.blenders.values()
    while blender.rendering is not None or blender.inbox or blender.worker._pending:
        world.receive(blender)
        world.render(blender)
    return [name_of(message) for message in blender.outbox]


async def test_an_urgent_sample_overtakes_what_is_not_begun() -> None:
    """It is rendered after the sample that its Blender is at, though that Blender holds all that it may."""
    world = World(instances=1, prefetch=3)
    usual = world.begin(range(1, 9), queue_size=8)
    begun(world, usual)
    first = world.begin([20], queue_size=1, urgent=True)
    second = world.begin([21], queue_size=1, urgent=True)
    assert [number for number, _ in rendered(world)] == [
        usual.source.number,
        first.source.number,
        second.source.number,
        *[usual.source.number] * 2,
    ]
    world.work(usual, first, second)
    assert (usual.delivered, first.delivered) == (list(range(1, 9)), [20])


async def test_what_came_at_once_is_answered_at_once() -> None:
    """Of several frames in one turn, nothing is leased before the end, and then all by one message to each Blender."""
    world = World(instances=2, prefetch=4)
    usual = world.begin(range(1, 40), queue_size=24, on_bad_sample="skip")
    for blender in world.blenders.values():
        for _ in range(4):
            for act in (world.receive, world.render, world.render):
                act(blender)
    world.dispatcher.begin_turn()
    for blender in world.blenders.values():
        for _ in range(4):
            world.arrive(blender)
        assert not blender.leases_to_come
    world.dispatcher.end_turn()
    for blender in world.blenders.values():
        (message,) = blender.inbox
        assert (message.kind, len(message.fields["leases"])) == (protocol.LEASES, 4)
    world.work(usual)
    assert sorted(usual.delivered) == [index for index in range(1, 40) if index % RAISES]


async def test_what_a_thread_has_consumed_is_one_turn() -> None:
    """Of all frames that it took until the loop came to it, the slots are leased again by one message."""
    world = World(instances=1, prefetch=4)
    usual = world.begin(range(1, 40), queue_size=4, on_bad_sample="skip")
    (blender,) = world.blenders.values()
    for _ in range(4):
        for act in (world.receive, world.render, world.render, world.arrive):
            act(blender)
    assert not blender.inbox
    bridge = Bridge(SimpleNamespace(dispatcher=world.dispatcher), SimpleNamespace(post=lambda _: None))  # type: ignore[arg-type]
    channel = Channel(usual.source)
    while (arrival := usual.source.queue.get_nowait()) is not None:
        bridge.took(channel, arrival)
    assert not blender.inbox
    bridge._note_consumed()
    (message,) = blender.inbox
    assert (message.kind, len(message.fields["leases"])) == (protocol.LEASES, 4)


async def test_a_lease_that_reached_its_blender_after_all_can_be_blamed() -> None:
    """A connection that is lost in the middle of several leases counts all as not sent, until the Blender says more."""
    world = World(instances=1, prefetch=2)
    (blender,) = world.blenders.values()
    send = world.send_leases
    world.send_leases = lambda: [*send(), (blender.life, list(blender.held))]  # type: ignore[method-assign]
    usual = world.begin([1, 3], on_bad_sample="skip")
    world.send_leases = send  # type: ignore[method-assign]
    world.receive(blender)
    world.dispatcher.reconnected(blender.life, [name_of(one) for one in blender.worker._pending], [])
    assert not blender.inbox
    world.render(blender)
    world.die(blender)  # which checks the blame
    world.work(usual)
    assert sorted(usual.delivered) == [1, 3]


async def test_a_lease_that_was_not_sent_is_blamed_for_nothing() -> None:
    """The Blender is not connected, and dies before it is again."""
    world = World(instances=1, prefetch=2)
    (blender,) = world.blenders.values()
    blender.connection = "lost"
    world.rng.random = lambda: 1.0  # type: ignore[method-assign]  # the hub knows at once
    usual = world.begin([1, 3])
    assert blender.held.keys() == blender.unsent
    for _ in range(MAX_DEATHS + 1):
        world.die(blender)  # which checks that nobody is blamed
        (blender,) = world.blenders.values()
        blender.connection = "lost"
        world.serve(blender)
    world.reconnect(blender)
    world.work(usual)
    assert sorted(usual.delivered) == [1, 3]


async def test_an_urgent_sample_that_crashes_its_blender_is_blamed() -> None:
    """The dispatcher knows that it overtook others: neither they are blamed, nor is it flushed once it is begun."""
    for flush in (False, True):
        world = World(instances=1, prefetch=3)
        usual = world.begin(range(1, 9), queue_size=3)
        begun(world, usual)
        urgent = world.begin([20], queue_size=1, urgent=True)
        (blender,) = world.blenders.values()
        for act in (world.render, world.arrive, world.receive, world.render):
            act(blender)
        assert blender.rendering is not None
        assert name_of(blender.rendering)[0] == urgent.source.number
        if flush:
            assert world.flush(urgent) == 0
            assert world.flush(usual) == 2
        world.die(blender)
        assert (urgent.deaths, usual.deaths) == ({20: 1}, {})
        world.work(urgent, usual)


async def test_a_flush_takes_back_what_is_not_begun() -> None:
    """Its samples are leased again with new params; the one that is being rendered keeps its own, and so do others'."""
    world = World(instances=1, prefetch=4)
    mine, other = world.begin(range(1, 4), queue_size=3), world.begin([30], queue_size=1)
    begun(world, mine)
    before = {**mine.drawn}
    assert world.flush(mine) == 2
    assert other.drawn == {30: other.drawn[30]}
    world.work(mine, other)
    params = {frame.index: frame["draw"] for frame in mine.frames}
    assert params[1] == before[1]
    assert params[2] > before[3] < params[3]
    assert (world.flush(world.begin([])), world.stale) == (0, 0)


async def test_a_stalled_pass_holds_up_no_other() -> None:
    """Its slots are full, and all Blenders are for those who consume."""
    world = World(instances=1, prefetch=2)
    stalled, quick = world.begin(range(1, 12), queue_size=4), world.begin(range(1, 12), queue_size=4)
    world.work(quick)
    assert stalled.arrived + len(world.held_of(stalled)) == 4
    world.work(stalled)


async def test_passes_share_the_blenders() -> None:
    """Equal passes that are consumed alike get alike; one with fewer slots than the others gets its share too."""
    for slots, tolerance, instances in (((4, 4, 4), 4, 2), ((1, 1, 1), 1, 1), ((2, 16, 64), 200, 2)):
        world = World(instances=instances, prefetch=instances)
        consumers = [world.begin(range(1, 13_000, RAISES), queue_size=count) for count in slots]
        for _ in range(200):
            for blender in world.blenders.values():
                for act in (world.receive, world.render, world.render, world.arrive):
                    act(blender)
            for consumer in consumers:
                consumer.poll()
        counts = [len(consumer.frames) for consumer in consumers]
        assert max(counts) - min(counts) <= tolerance
        assert min(counts) > 0.1 * sum(counts)


async def test_a_blender_without_a_connection_gets_one_lease() -> None:
    """It is its own until it comes back or ends; all others go to Blenders that can be reached."""
    world = World(instances=2, prefetch=2)
    lost, good = world.blenders.values()
    lost.connection = "lost"
    consumer = world.begin(range(1, 9), queue_size=8)
    assert (len(lost.held), len(good.held)) == (1, 2)
    world.reconnect(lost)
    assert (len(lost.held), len(good.held)) == (2, 2)
    world.work(consumer)


async def test_params_that_raise_end_their_own_pass_only() -> None:
    """Its consumer gets what was leased before, also if that comes by another Blender, then the very error."""
    for crash in (False, True):
        world = World(instances=1, prefetch=4)
        other = world.begin(range(1, 4), queue_size=1)
        error = ArithmeticError("no params")

        def params(index: int, world: World = world, error: Exception = error) -> dict[str, int]:
            if index == 3:
                raise error
            return world.consumers[-1].params(index)

        mine = Consumer(world, range(1, 9), params=params, queue_size=4)
        world.start(mine)
        world.check()
        assert world.held_of(mine) == [1, 2]
        if crash:
            world.die(world.blenders[0])
            world.serve(world.blenders[0])
        world.work(other)
        for _ in range(2):
            assert mine.poll()
        assert mine.delivered == [1, 2]
        for _ in range(2):
            with pytest.raises(ArithmeticError) as caught:
                mine.poll()
            assert caught.value is error


@pytest.mark.parametrize("raises", [False, True])
async def test_params_may_flush_and_begin_passes(raises: bool) -> None:
    """What they begin is served too, also if they raise afterwards; nothing is leased twice."""
    for at in (1, 2, 3):
        world = World(instances=1, prefetch=4)
        began: list[Consumer] = []

        def params(index: int, world: World = world, began: list[Consumer] = began, at: int = at) -> dict[str, int]:
            (mine,) = (one for one in world.consumers if one not in began)
            if index == at and not began:
                mine.waiting.add(index)
                began.append(Consumer(world, [30], queue_size=1))
                world.start(began[0])
                assert world.dispatcher.flush(mine.source) == max(0, at - 2)
                if raises:
                    mine.waiting.clear()
                    raise ArithmeticError
            return mine.params(index)

        mine = Consumer(world, range(1, 6), params=params, queue_size=5)
        world.start(mine)
        world.check()
        world.work(*began, *([] if raises else [mine]))
        assert world.stale == 0


async def test_a_sample_that_raises_ends_its_own_pass_only() -> None:
    """Its consumer gets the frames that are there, then the error with the traceback."""
    world = World(instances=1, prefetch=2)
    bad, good = world.begin([12, 13, 14, 15], queue_size=4), world.begin(range(1, 9))
    world.work(good)
    while bad.poll():
        if bad.end is not None:
            break
    assert bad.delivered == [12]
    assert isinstance(bad.end, SampleError)
    assert (bad.end.index, bad.end.traceback) == (13, "line 1")
    assert str(bad.end) == "sample 13 failed in Blender 0: ValueError\n\nline 1"


async def test_a_sample_that_kills_its_blenders_ends_its_own_pass_only() -> None:
    """After `max_sample_deaths` crashes the error names the sample and its params."""
    world = World(instances=1, prefetch=2)
    bad, good = world.begin([1, 2]), world.begin([4, 5])
    for _ in range(MAX_DEATHS):
        assert bad.end is None
        begun(world, bad)
        world.die(world.blenders[0])
        world.serve(world.blenders[0])
    bad.poll()
    assert isinstance(bad.end, SampleError)
    assert bad.end.index == 1
    assert str(bad.end).startswith("sample 1 killed its Blender 2 times; ")
    assert str(bad.end).endswith(f"its params: {{'draw': {bad.drawn[1]}}}")
    world.work(good)
    assert good.delivered == [4, 5]


async def test_a_crash_is_not_blamed_on_the_sample_before() -> None:
    """A sample whose frame was lost on the way out of a dying Blender is rendered, and the one after it is the bad one."""
    for skips in (False, True):
        world = World(instances=2, prefetch=3)
        source = world.begin(range(1, 9), queue_size=8, on_bad_sample="skip" if skips else "raise")
        for _ in range(1000):
            if source.skipped or source.source.error is not None:
                break
            for blender in list(world.blenders.values()):
                for act in (world.serve, world.receive, world.render):
                    act(blender)
                if blender.rendering is not None and blender.rendering.fields["index"] == 3:
                    world.die(blender)  # with the frames that it has finished
                elif 3 not in blender.held.values():
                    world.arrive(blender)
            world.check()
        world.work(source)
        assert source.deaths.get(3, 0) >= MAX_DEATHS
        if skips:
            assert source.skipped == {3}
        else:
            assert isinstance(source.end, SampleError)
            assert source.end.index == 3


async def test_a_frame_that_cannot_be_read_costs_one_rendering() -> None:
    """Its lease goes out again at once, with the same params, and nobody is blamed."""
    world = World(instances=1, prefetch=1)
    source = world.begin(range(1, 4))
    (blender,) = world.blenders.values()
    begun(world, source)
    ((name, index),) = blender.held.items()
    blender.release(name)
    world.dispatcher.unreadable(blender.life, *name)
    assert list(blender.held.values()) == [index]
    blender.rendering = None
    world.work(source)
    assert source.deaths == {}
    assert world.stale == 0


async def test_a_pass_that_has_failed_gives_up_what_other_blenders_hold() -> None:
    """After the last crash that its sample may cause, no Blender begins another sample of it."""
    world = World(instances=2, prefetch=3)
    bad = world.begin(range(1, 10), queue_size=9)
    for _ in range(MAX_DEATHS):
        for act in (world.receive, world.render):
            act(world.blenders[0])
        world.die(world.blenders[0])
        world.serve(world.blenders[0])
    assert isinstance(bad.source.error, SampleError)
    assert len(world.blenders[1].held) == 1
    world.check()
    world.work(bad)


async def test_a_pass_that_ends_gives_up_its_leases() -> None:
    """No Blender begins another sample of it; the frame of the one that was begun is dropped and counted."""
    world = World(instances=1, prefetch=4)
    mine, other = world.begin(range(1, 9), queue_size=3), world.begin([30])
    begun(world, mine)
    world.end(mine)
    world.dispatcher.end(mine.source)  # again
    assert rendered(world) == [(mine.source.number, 0), (other.source.number, 0)]
    world.work(other)
    assert world.stale == 1
    assert mine.poll()
    assert isinstance(mine.end, StreamClosed)


async def test_a_run_that_cannot_go_on() -> None:
    """Each consumer gets the frames that are there, then the error; who has all of them already gets no error."""
    world = World(instances=1, prefetch=2)
    done, waits = world.begin([1], queue_size=1), world.begin([2, 3, 4], queue_size=1)
    world.work()
    for _ in range(4):
        for act in (world.receive, world.render, world.arrive):
            act(world.blenders[0])
    assert (done.arrived, waits.arrived) == (1, 1)
    error = InstanceError("first")
    world.dispatcher.fail(error)
    world.dispatcher.fail(InstanceError("second"))
    assert [done.poll(), done.poll(), waits.poll(), waits.poll()] == [True] * 4
    assert (done.delivered, waits.delivered) == ([1], [2])
    assert isinstance(done.end, EndOfStream)
    assert waits.end is error
    late = world.begin([5])
    assert late.poll()
    assert late.end is error
    assert world.dispatcher.end_error is error


async def test_closing_ends_all_passes() -> None:
    """Also what has arrived is dropped, no pass can be begun any more, and the totals stay."""
    world = World(instances=1)
    one, two = world.begin([1, 2]), world.begin(range(3, 6))
    world.work(one)
    error = StreamClosed("closed")
    world.consumers.remove(two)
    world.over.append(two)
    world.dispatcher.close(error)
    world.check()
    assert (world.dispatcher.stats().delivered, world.dispatcher.stats().queued) == (2, 0)
    for consumer in (two, world.begin([7])):
        assert consumer.poll()
        assert consumer.end is error


# -- any order of events -----------------------------------------------------------------------------------------


class Schedule:
    """Three passes at once, of which one is consumed slowly and one is cancelled again and again."""

    def __init__(self, seed: int) -> None:
        rng = self.rng = random.Random(-seed)
        self.world = World(seed, instances=rng.randint(1, 3), prefetch=rng.randint(1, 4), serve=False)
        self.roles: dict[str, Consumer] = {}
        self.acts: list[tuple[float, Callable[[], object]]] = [
            (20, lambda: self.world.receive(self.blender, rng.randint(1, 3))),
            (40, lambda: self.world.render(self.blender)),
            (25, lambda: self.world.arrive(self.blender)),
            (8, lambda: self.world.arrive_at_once(rng.randint(1, 6))),
            (4, lambda: self.world.serve(self.blender)),
            (2, lambda: self.world.die(self.blender)),
            (1, lambda: self.world.die(self.blender, crash=False)),
            (1, lambda: self.world.lose_connection(self.blender)),
            (3, lambda: self.world.reconnect(self.blender)),
            (2, lambda: self.world.answer_again(self.blender)),
            (25, lambda: self.poll("quick")),
            (2, lambda: self.poll("slow")),
            (15, lambda: self.poll("cancelled")),
            (6, lambda: self.poll("urgent")),
            (6, lambda: self.poll("urgent too")),
            (1, lambda: self.cancel("cancelled")),
            (1, lambda: self.world.flush(rng.choice(self.world.consumers)) if self.world.consumers else None),
        ]

    @property
    def blender(self) -> Blender:
        return self.rng.choice(list(self.world.blenders.values()))

    def begin(self, role: str) -> Consumer:
        rng = self.rng
        options = {"on_bad_sample": rng.choice(("raise", "skip")), "queue_size": rng.randint(1, 6)}
        if role.startswith("urgent"):
            indices: Sequence[int] = [rng.randint(0, 40)]
            options |= {"queue_size": 1, "urgent": True}
        else:
            start = rng.randint(0, 20)
            indices = rng.choice((range(start, start + rng.randint(0, 40), 2), rng.sample(range(40), 20)))
            options["ordered"] = rng.choice((True, False))
        return self.world.begin(indices, **options)

    def poll(self, role: str) -> None:
        consumer = self.roles.get(role)
        if consumer is None or consumer.end is not None:
            self.roles[role] = self.begin(role)
        else:
            consumer.poll()

    def cancel(self, role: str) -> None:
        consumer = self.roles.get(role)
        if consumer is not None and consumer.end is None:
            self.world.end(consumer)
            consumer.end = StreamClosed()

    def run(self, steps: int) -> None:
        weights = [weight for weight, _ in self.acts]
        for _, act in self.rng.choices(self.acts, weights, k=steps):
            act()
            self.world.check()
        rest = list(self.world.consumers)
        slow = [one for one in rest if one is self.roles.get("slow")]
        self.world.work(*(one for one in rest if one not in slow))  # a stalled pass holds up no other
        self.world.work(*slow)


@pytest.mark.parametrize("block", [0, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in (1, 2, 3))])
@pytest.mark.slow
async def test_any_schedule_keeps_the_promises(block: int) -> None:
    """Each live pass has each sample once, in order, within its slots; no Blender is idle while a pass wants one."""
    for seed in range(40 * block, 40 * block + 40):
        try:
            Schedule(seed).run(600)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
