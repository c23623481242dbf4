"""A dispatcher's world for its tests: consumers, and Blenders whose every step a test decides. It checks all it sees."""

from __future__ import annotations

import dataclasses
import random
from collections import deque
from collections.abc import Sequence
from typing import Any

import pytest

from asyncblend.blender.serving.worker import Worker
from asyncblend.config import RestartPolicy, StreamConfig
from asyncblend.errors import AsyncblendError, InstanceError, SampleError, StreamClosed
from asyncblend.stream.dispatcher import Dispatcher
from asyncblend.stream.frame import Frame
from asyncblend.stream.leases import Lease
from asyncblend.stream.params import Drawn
from asyncblend.stream.passes import Guilt, Pass
from asyncblend.stream.queue import EndOfStream
from asyncblend.wire import protocol
from asyncblend.wire.launch import Life
from asyncblend.wire.protocol import Message
from asyncblend.wire.request import Request, encode_leases

Name = tuple[int, int]  # of a lease: its pass, and its serial in that
RAISES = 13  # the sample function raises for the multiples of this number
MAX_DEATHS = 2


class Consumer:
    """Who consumes a pass, and what it must get."""

    def __init__(self, world: World, indices: Sequence[int], **options: Any) -> None:
        self.world, self.indices = world, indices
        self.skips = options.get("on_bad_sample") == "skip"
        self.ordered = options.get("ordered", False)
        self.source = Watched(world.config, indices, **{"params": self.params, **options})
        self.source.consumer = self
        self.drawn: dict[int, int] = {}  # the latest draw, by index
        self.redraw: set[int] = set()  # flushed: the next lease must have new params
        self.waiting: set[int] = set()  # taken back, not leased again yet
        self.deaths: dict[int, int] = {}
        self.suspects: set[int] = set()  # held by a Blender that crashed, not answered since
        self.skipped: set[int] = set()
        self.arrived = 0
        self.frames: list[Frame] = []
        self.end: BaseException | None = None

    def params(self, index: int) -> dict[str, int]:
        assert index not in self.drawn or index in self.redraw, "new params without a flush"
        self.redraw.discard(index)
        self.drawn[index] = self.world.next_number()
        return {"draw": self.drawn[index]}

    @property
    def delivered(self) -> list[int]:
        return [frame.index for frame in self.frames]

    @property
    def wants(self) -> bool:
        """Whether a sample of it must be leased as soon as a Blender is free, by the documentation."""
        fresh = len(self.drawn) < len(self.indices)
        occupied = len(self.world.held_of(self)) + len(self.waiting) + self.arrived - len(self.frames)
        return self.source.error is None and (bool(self.waiting) or (fresh and occupied < self.source.book.slots))

    def bad_sample(self, index: int) -> None:
        if self.skips:
            assert index not in self.skipped
            self.skipped.add(index)
            self.waiting.discard(index)

    def poll(self) -> bool:
        """Take the frame or the end that is there. Return whether there was one."""
        get = self.source.queue.get()
        try:
            get.send(None)
        except StopIteration as done:
            self.took(done.value.frame)
            self.world.dispatcher.consume(self.source, done.value)
        except (EndOfStream, AsyncblendError) as error:
            self.ended(error)
        else:
            get.close()
            return False
        return True

    def took(self, frame: Frame) -> None:
        assert frame.index not in self.delivered, "a sample came twice"
        assert frame.params["draw"] == frame["draw"] == self.drawn[frame.index]
        self.frames.append(frame)
        if self.ordered:
            own = [index for index in self.indices if index not in self.skipped]
            assert self.delivered == own[: len(self.frames)]

    def ended(self, error: BaseException) -> None:
        self.end = error
        if isinstance(error, EndOfStream):
            assert sorted([*self.delivered, *self.skipped]) == sorted(self.indices)
        elif isinstance(error, SampleError):
            assert not self.skips
            assert error.index is not None
            assert error.index % RAISES == 0 or self.deaths[error.index] == MAX_DEATHS
        if self in self.world.consumers:
            self.world.end(self)


class Watched(Pass):
    """A pass that tells the world what is taken back from a life that is over, and whom a crash is blamed on."""

    consumer: Consumer

    def give_back(self, lease: Lease[Drawn], guilt: Guilt = "none", why: InstanceError | None = None) -> None:
        self.consumer.world.given_back(self.consumer, lease, guilt)
        super().give_back(lease, guilt, why)


class Blender:
    """One life: the real worker's queue, and what is on its way to the worker and from it."""

    def __init__(self, life: Life) -> None:
        self.life, self.serves = life, False
        self.worker = Worker.__new__(Worker)  # only its queue, no sockets
        self.worker._pending, self.worker._steps, self.worker._episode = deque(), [], None
        self.worker._offers_line = self.worker._sent_over_line = False
        self.rendering: Message | None = None
        self.connection = "good"  # or "lost", or "stale": what the host sends vanishes, and the host does not notice
        self.added: list[Request] = []  # leases that are not on their way yet
        self.inbox: deque[Message] = deque()
        self.outbox: deque[Message] = deque()
        self.said: list[Message] = []  # answers that have arrived and counted
        self.held: dict[Name, int] = {}  # what the host must believe that it holds: the index by name
        self.urgent: set[Name] = set()  # those of them that are urgent
        self.alone = False  # whether it holds a suspect
        self.unsent: set[Name] = set()  # leases that the host knows not to have reached it
        self.revoked = False  # whether a lease of it was taken back
        self.reordered = False  # whether it may be at another sample than the host can know

    def get_leases(self) -> list[Name]:
        """Let what was leased go on its way, as the hub sends it. Return the names of what cannot."""
        added, self.added = self.added, []
        if self.connection != "good":
            return [request.name for request in added]
        for parts in encode_leases(added):
            self.inbox.append(protocol.decode([bytes(part) for part in parts]))
        return []

    @property
    def leases_to_come(self) -> list[Message]:
        """Those that are on their way."""
        return [lease for one in self.inbox for lease in leases_of(one)]

    def release(self, name: Name) -> int | None:
        index = self.held.pop(name, None)
        self.urgent.discard(name)
        self.unsent.discard(name)
        self.reordered &= bool(self.held)
        self.alone &= bool(self.held)
        return index


def leases_of(message: Message) -> list[Message]:
    """Return the leases in a message."""
    if message.kind == protocol.LEASES:
        return list(message.fields["leases"])
    return [message] if message.kind == protocol.LEASE else []


def name_of(message: Message) -> Name:
    return message.fields["pass"], message.fields["lease"]


class World:
    """The hub and the fleet as the dispatcher sees them, and the Blenders at the other end of the wire."""

    bad_messages = refused = recycled = 0
    restarts: dict[int, int] = {}  # noqa: RUF012

    def __init__(self, seed: int = 0, *, instances: int = 2, serve: bool = True, **options: Any) -> None:
        self.rng = random.Random(seed)
        restart = RestartPolicy(max_sample_deaths=MAX_DEATHS)
        self.config = StreamConfig(script="scene.py", instances=instances, restart=restart, **options)
        self.blenders = {number: Blender(Life(number, 0)) for number in range(instances)}
        self.states = dict.fromkeys(range(instances), "new")
        self.consumers: list[Consumer] = []  # whose passes go on
        self.over: list[Consumer] = []
        self.stale = self.duplicates = self.revoked = self.numbers = 0
        self.frames = dict.fromkeys(range(instances), 0)
        self.unsent: list[tuple[Life, list[Name]]] = []  # that the dispatcher has not been told of
        self.returned: list[tuple[Name, Guilt]] = []  # from the life that ended last
        self.dispatcher = Dispatcher(self.config, self, self, {})  # type: ignore[arg-type]
        for blender in self.blenders.values() if serve else ():
            self.serve(blender)

    def next_number(self) -> int:
        self.numbers += 1
        return self.numbers

    def held_of(self, consumer: Consumer) -> list[int]:
        held = [one for blender in self.blenders.values() for one in blender.held.items()]
        return [index for (number, _), index in held if number == consumer.source.number]

    def consumer_of(self, name: Name) -> Consumer | None:
        return next((one for one in self.consumers if one.source.number == name[0]), None)

    # -- what the dispatcher calls --------------------------------------------------------------------------------

    def ready_lives(self) -> list[Life]:
        return [blender.life for blender in self.blenders.values() if blender.serves]

    def leased(self, life: Life) -> None: ...
    def goes_on(self, life: Life) -> None: ...

    def answered(self, life: Life, *, more: bool, count: int = 1) -> None:
        assert more == bool(self.blenders[life.instance].held)

    def add_lease(self, life: Life, request: Request) -> bool:
        no_episode = dataclasses.replace(request, first=0, on_demand=False, fingerprint=(), line=False)
        assert request == no_episode, "no episodes here"
        blender = self.blenders[life.instance]
        assert blender.life == life
        assert blender.serves
        message = protocol.decode([bytes(part) for part in request.encode()])
        if name_of(message) not in blender.held:
            self.check_new_lease(blender, message)
            blender.held[name_of(message)] = request.index
            if request.urgent:
                blender.urgent.add(name_of(message))
        if blender.connection == "good":
            blender.unsent.discard(name_of(message))
            blender.added.append(request)
        elif blender.connection == "lost":
            blender.unsent.add(name_of(message))
            if self.rng.random() < 0.5:  # the hub finds it out only when it sends
                blender.added.append(request)
                return True
        return blender.connection != "lost"

    def send_leases(self) -> Sequence[tuple[Life, Sequence[Name]]]:
        unsent = [*self.unsent, *((one.life, one.get_leases()) for one in self.blenders.values())]
        self.unsent.clear()
        return unsent

    def check_new_lease(self, blender: Blender, message: Message) -> None:
        index, urgent = message.fields["index"], message.fields["urgent"]
        consumer = self.consumer_of(name_of(message))
        assert consumer is not None
        assert index not in consumer.skipped
        assert index not in consumer.redraw, "the params from before the flush"
        assert message.values == {"draw": consumer.drawn[index]}
        assert not consumer.waiting or index in consumer.waiting, "a fresh index before one that was taken back"
        consumer.waiting.discard(index)
        assert urgent == consumer.source.urgent
        assert not blender.alone, "a Blender with a suspect"
        suspects_wait = any(one.source.next_is_suspect for one in self.consumers)
        others = [one for one in self.blenders.values() if one.serves and one.connection != "lost"]
        if index in consumer.suspects:
            assert not blender.held, "a suspect among others"
            blender.alone = True
        elif not suspects_wait and not any(one.alone for one in others):
            assert urgent or not any(one.wants for one in self.consumers if one.source.urgent), "an urgent one waits"
        else:
            others = []  # some must answer first what they hold
        loads = [len(one.urgent if urgent else one.held) for one in (blender, *others)]
        assert loads[0] == min(loads), "another Blender holds less"
        assert loads[0] < self.config.prefetch
        rendering = blender.rendering
        if urgent and (blender.outbox or rendering is None or name_of(rendering) not in blender.held):
            blender.reordered |= bool(blender.held)

    def send_revoke(self, life: Life, number: int, serials: Sequence[int]) -> None:
        blender, consumer = self.blenders[life.instance], self.consumer_of((number, 0))
        blender.revoked = True
        for serial in serials:
            index = blender.release((number, serial))
            assert index is not None, "a lease that the life does not hold"
            if consumer is not None:
                consumer.waiting.add(index)
                consumer.redraw.add(index)
        self.revoked += len(serials)
        fields = {"pass": number, "leases": list(serials)}
        self.unsent.append((life, blender.get_leases()))
        if blender.connection == "good":
            blender.inbox.append(protocol.decode(protocol.encode(protocol.REVOKE, fields)))

    def given_back(self, consumer: Consumer, lease: Lease[Drawn], guilt: Guilt) -> None:
        self.returned.append(((consumer.source.number, lease.serial), guilt))
        if consumer in self.consumers:
            consumer.waiting.add(lease.index)
            if guilt != "none":
                consumer.suspects.add(lease.index)
            if guilt in ("likely", "certain"):
                if guilt == "certain" or lease.index not in consumer.deaths:
                    consumer.deaths[lease.index] = consumer.deaths.get(lease.index, 0) + 1
                if consumer.deaths[lease.index] >= MAX_DEATHS and guilt == "certain":
                    consumer.bad_sample(lease.index)

    # -- consumers ------------------------------------------------------------------------------------------------

    def begin(self, indices: Sequence[int], **options: Any) -> Consumer:
        consumer = Consumer(self, indices, **options)
        self.start(consumer)
        return consumer

    def start(self, consumer: Consumer) -> None:
        self.consumers.append(consumer)
        self.dispatcher.begin(consumer.source)

    def end(self, consumer: Consumer) -> None:
        self.consumers.remove(consumer)
        self.over.append(consumer)
        self.dispatcher.end(consumer.source, StreamClosed("cancelled"))

    def flush(self, consumer: Consumer) -> int:
        held = [{name for name in one.held if name[0] == consumer.source.number} for one in self.blenders.values()]
        waiting, revoked = set(consumer.waiting), self.revoked
        consumer.redraw |= waiting
        count = self.dispatcher.flush(consumer.source)
        assert count == len(waiting) + self.revoked - revoked
        for before, blender in zip(held, self.blenders.values(), strict=True):
            assert len(before & blender.held.keys()) <= 1, "a Blender may begin one with the old params"
        return count

    # -- Blenders -------------------------------------------------------------------------------------------------

    def serve(self, blender: Blender) -> None:
        if not blender.serves:
            blender.serves = True
            self.states[blender.life.instance] = "ready"
            self.dispatcher.dispatch()

    def receive(self, blender: Blender, most: int = 100) -> None:
        """Let the worker read what has come. It does so between two samples only."""
        while blender.rendering is None and blender.inbox and most > 0:
            assert blender.worker._receive(blender.inbox.popleft())
            most -= 1

    def render(self, blender: Blender) -> None:
        """Finish a sample, or begin the next one."""
        lease, blender.rendering = blender.rendering, None
        if lease is None:
            if blender.worker._pending:
                blender.rendering = blender.worker._pending.popleft()
                blender.reordered |= any(one.fields.get("urgent") for one in blender.leases_to_come)
            return
        about = {name: lease.fields[name] for name in ("pass", "lease", "index")}
        answer = Message(protocol.FRAME, about, dict(lease.values or {}))
        if about["index"] % RAISES == 0:
            answer = Message(protocol.FAILED, {**about, "error": "ValueError", "traceback": "line 1"}, None)
        blender.outbox.append(answer)

    def arrive(self, blender: Blender) -> None:
        """Let the host receive the next answer."""
        if blender.connection == "good" and blender.outbox:
            message = blender.outbox.popleft()
            if self.answer(blender, message):
                blender.said.append(message)

    def arrive_at_once(self, count: int) -> None:
        """Let the host receive the next answers of some Blenders in one turn."""
        self.dispatcher.begin_turn()
        for _ in range(count):
            self.arrive(self.rng.choice(list(self.blenders.values())))
        self.dispatcher.end_turn()

    def answer(self, blender: Blender, message: Message) -> bool:
        """Let the host receive this. Return whether it counts: it answers a lease that this life holds."""
        fields, name = message.fields, name_of(message)
        consumer, is_frame = self.consumer_of(name), message.kind == protocol.FRAME
        counts = blender.release(name) is not None
        if not counts:
            self.stale += 1
            self.duplicates += name in {name_of(one) for one in blender.said}
        elif is_frame:
            self.frames[blender.life.instance] += 1
            self.stale += consumer is None
            if consumer is not None:
                consumer.arrived += 1
                consumer.suspects.discard(fields["index"])
        elif consumer is not None:
            consumer.bad_sample(fields["index"])
        if is_frame:
            self.dispatcher.frame(blender.life, *name, fields["index"], dict(message.values or {}))
        else:
            about = (*name, fields["index"], fields["error"], fields["traceback"])
            self.dispatcher.sample_failed(blender.life, *about)
        return counts

    def answer_again(self, blender: Blender) -> None:
        """Let the host receive an answer that it has had already, perhaps from another Blender."""
        said = [one for other in self.blenders.values() for one in other.said[-8:]]
        if said and blender.connection == "good":
            self.answer(blender, self.rng.choice(said))

    def lose_connection(self, blender: Blender) -> None:
        if blender.serves:
            blender.reordered |= bool(blender.outbox)
            blender.inbox.clear()
            blender.outbox.clear()
            blender.connection = self.rng.choice(("lost", "stale"))

    def reconnect(self, blender: Blender) -> None:
        """Come back on another connection, as the hub tells it: the worker says HELLO between two samples."""
        if blender.connection == "good" or blender.rendering is not None:
            return
        for message in blender.outbox:  # sent on the new connection before the HELLO
            if message.kind == protocol.FRAME:
                self.dispatcher.dropped_frame()
                self.stale += 1
        blender.outbox.clear()
        blender.connection, blender.reordered = "good", bool(blender.held)
        self.dispatcher.reconnected(blender.life, [name_of(one) for one in blender.worker._pending], [])
        has = [name_of(one) for one in (*blender.worker._pending, *blender.leases_to_come)]
        assert set(has) >= blender.held.keys(), "a lease was lost with the connection"
        assert len(has) == len(set(has)), "a lease was sent twice"
        self.dispatcher.dispatch()

    def die(self, blender: Blender, *, crash: bool = True) -> None:
        """End a life, by a crash or because its Blender is replaced. The next life begins."""
        number, epoch = blender.life
        self.states[number] = "backoff" if crash else "starting"
        self.blenders[number] = Blender(Life(number, epoch + 1))
        self.returned = []
        self.dispatcher.life_over(blender.life)
        assert {name for name, _ in self.returned} == blender.held.keys()
        certain, likely = ([name for name, guilt in self.returned if guilt == which] for which in ("certain", "likely"))
        sent = blender.held.keys() - blender.unsent
        assert len(certain + likely) == (crash and bool(sent))
        assert not certain or (sent == set(certain) and not blender.revoked), "others may have done it"
        guilty = blender.rendering and name_of(blender.rendering)
        if guilty in blender.held and not blender.outbox and not blender.reordered and crash:
            assert certain + likely == [guilty], "an innocent sample is blamed"

    # -- all of it ------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Check what must hold at any moment."""
        stats, everyone = self.dispatcher.stats(), [*self.consumers, *self.over]
        assert stats.delivered == sum(len(one.frames) for one in everyone)
        assert stats.skipped == sum(len(one.skipped) for one in everyone)
        assert (stats.stale, stats.duplicates, stats.frames) == (self.stale, self.duplicates, self.frames)
        own = [one.source.stats() for one in self.consumers]
        assert (stats.rendering, stats.queued) == (sum(one.rendering for one in own), sum(one.queued for one in own))
        for consumer, its in zip(self.consumers, own, strict=True):
            assert its.rendering == len(self.held_of(consumer)) + len(consumer.waiting)
            assert its.queued == consumer.arrived - len(consumer.frames)
            assert its.rendering + its.queued <= consumer.source.book.slots
            assert (its.delivered, its.skipped) == (len(consumer.frames), len(consumer.skipped))
            if isinstance(consumer.source.error, SampleError):
                for blender in self.blenders.values():
                    own_held = [name for name in blender.held if name[0] == consumer.source.number]
                    assert len(own_held) <= 1, "a sample of a pass that has failed may be begun"
        if any(one.wants for one in self.consumers):
            free = [blender for blender in self.blenders.values() if blender.serves and not blender.held]
            assert not free, "a free Blender waits"

    def work(self, *consumers: Consumer) -> None:
        """Let all go well until these consumers have met their ends."""
        for _ in range(10_000):
            for blender in list(self.blenders.values()):
                for act in (self.serve, self.reconnect, self.receive, self.render, self.arrive):
                    act(blender)
            for consumer in consumers:
                while consumer.end is None and consumer.poll():
                    pass
            self.check()
            if all(consumer.end is not None for consumer in consumers):
                return
        pytest.fail("a deadlock")
