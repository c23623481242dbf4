"""Episodes between the real dispatcher and the real worker, with every message, death and lost connection at random.

Nothing runs by itself: the test decides who does the next step. Whatever happens, each consumer gets each frame once,
the frames of an episode in order, never more than its slots at once, and all of them in the end.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Generator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from asyncblend.blender.serving.worker import Worker
from asyncblend.config import RestartPolicy, StreamConfig
from asyncblend.errors import EpisodeLost, EpisodeOver, StreamClosed
from asyncblend.stream.dispatcher import Dispatcher
from asyncblend.stream.episode_pass import EpisodePass
from asyncblend.stream.holding import Held
from asyncblend.stream.passes import Pass
from asyncblend.stream.queue import EndOfStream
from asyncblend.wire import protocol
from asyncblend.wire.launch import Life
from asyncblend.wire.protocol import Message
from asyncblend.wire.request import Request, encode_leases


def length_of(index: int) -> int:
    return 1 + index % 5


def sample(task: Any) -> Any:
    """Make a plain frame for some indices, an episode for others; stepped ones add up what they are sent."""
    if task.index % 7 == 6:
        return {"step": 0, "noise": task.rng.random(), "sum": 0}
    return episode(task)


def episode(task: Any) -> Generator[dict[str, Any], Any, None]:
    total = 0
    for step in range(length_of(task.index)):
        params = yield {"step": step, "noise": task.rng.random(), "sum": total}
        total += params.get("add", 0)


def frames_of(index: int) -> int:
    return 1 if index % 7 == 6 else length_of(index)


def noise_of(index: int, step: int) -> float:
    return float(np.random.default_rng([0, index]).random(step + 1)[step])


def awaited(one: Held) -> bool:
    """Tell whether a Blender may make a step of this lease, as far as the host knows."""
    return one.source.ended or one.source.book.awaits(one.lease)


class Blender:
    """One life: the real worker without its sockets."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.connected = True
        self.working = False  # as the fleet knows it: whether it is killed if it does nothing for long
        self.added: list[Request] = []  # leases that are not on their way yet
        self.inbox: deque[list[bytes]] = deque()
        self.outbox: deque[Message] = deque()
        worker = self.worker = Worker.__new__(Worker)
        worker._pending, worker._steps, worker._episode = deque(), [], None
        worker._shared, worker._offers_line, worker._sent_over_line = None, False, False
        worker._seed, worker._ready, worker._identity = 0, True, {}
        worker._launch = SimpleNamespace(instance=life.instance)  # type: ignore[assignment]
        worker._send_parts = self._send  # type: ignore[method-assign]

    def _send(self, parts: Sequence[Any]) -> None:
        self.outbox.append(protocol.decode([bytes(part) for part in parts]))

    def get_leases(self) -> None:
        """Let what was leased go on its way, as the hub sends it."""
        for parts in encode_leases(self.added):
            self.inbox.append([bytes(part) for part in parts])
        self.added.clear()

    def turn(self) -> bool:
        """Do what the worker's loop does next. Return False if there is nothing to do."""
        worker = self.worker
        if self.inbox:
            worker._receive(protocol.decode(self.inbox.popleft()))
        elif worker._episode is not None and worker._episode.may_go_on:
            worker._go_on(worker._episode)
        elif worker._episode is None and worker._pending:
            worker.answer(sample, worker._pending.popleft())
        else:
            return False
        return True


class Consumer:
    """Who consumes a pass, and checks what comes."""

    def __init__(self, world: World, source: Pass, indices: Sequence[int], *, ordered: bool) -> None:
        self.world, self.source, self.indices, self.ordered = world, source, list(indices), ordered
        self.steps: dict[int, int] = {}
        self.current: int | None = None
        self.end: BaseException | None = None

    def take(self) -> bool:
        """Take a frame or the end, if there is one."""
        get = self.source.queue.get()
        try:
            get.send(None)
        except StopIteration as done:
            self.took(done.value)
        except (EndOfStream, StreamClosed, EpisodeOver) as error:
            self.end = error
            if isinstance(error, EndOfStream):
                assert self.steps == {index: frames_of(index) for index in self.indices}
            self.world.dispatcher.end(self.source)
        else:
            get.close()
            return False
        return True

    def took(self, arrival: Any) -> None:
        frame = arrival.frame
        assert frame.step == frame["step"] == self.steps.get(frame.index, 0), "a step that is not the next one"
        assert frame["noise"] == noise_of(frame.index, frame.step)
        assert frame.last == (frame.step == frames_of(frame.index) - 1)
        self.steps[frame.index] = frame.step + 1
        if self.ordered:
            done = [index for index in self.indices if self.steps.get(index, 0)]
            assert done == self.indices[: len(done)]
            assert all(self.steps[index] == frames_of(index) for index in done[:-1])
        self.world.dispatcher.consume(self.source, arrival)


class Stepper:
    """Who steps an episode, and checks what comes."""

    def __init__(self, world: World, index: int) -> None:
        self.world, self.index = world, index
        self.max_replay = world.rng.choice((0, 1, 2, 10_000))
        self.source = EpisodePass(world.config, index, {}, max_replay=self.max_replay)
        self.total = self.step = self.added = 0
        self.waiting = True
        self.end: BaseException | None = None

    def take(self) -> bool:
        if not self.waiting:
            self.added = self.world.rng.randrange(5)
            self.world.dispatcher.ask(self.source, self.source.drawn({"add": self.added}))
            self.waiting = True
            return True
        get = self.source.queue.get()
        try:
            get.send(None)
        except StopIteration as done:
            frame = done.value.frame
            self.total += self.added
            assert (frame.step, frame["step"], frame["sum"]) == (self.step, self.step, self.total)
            assert frame["noise"] == noise_of(self.index, self.step)
            self.step += 1
            self.waiting = False
            self.world.dispatcher.consume(self.source, done.value)
        except EndOfStream as error:
            assert self.step == frames_of(self.index)
            self.end = error
            self.world.dispatcher.end(self.source)
        except EpisodeLost as error:
            if not error.step == self.step - 1 > self.max_replay:
                raise
            self.end = error
            self.world.dispatcher.end(self.source)
        else:
            get.close()
            return False
        return True


class World:
    """The hub and the fleet, as the dispatcher sees them."""

    bad_messages = refused = restarts = recycled = 0

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        instances = self.rng.randint(1, 3)
        restart = RestartPolicy(max_sample_deaths=10_000)
        self.config = StreamConfig(
            script="scene.py", instances=instances, prefetch=self.rng.randint(1, 3), restart=restart
        )
        self.states = dict.fromkeys(range(instances), "ready")
        self.blenders = {number: Blender(Life(number, 0)) for number in range(instances)}
        self.consumers: list[Consumer | Stepper] = []
        self.dispatcher = Dispatcher(self.config, self, self, {})  # type: ignore[arg-type]

    # -- what the dispatcher calls

    def ready_lives(self) -> list[Life]:
        return [blender.life for blender in self.blenders.values()]

    def leased(self, life: Life) -> None:
        self.blenders[life.instance].working = True

    def working_since(self, life: Life, began: float | None) -> None:
        self.blenders[life.instance].working = began is not None

    def goes_on(self, life: Life) -> None:
        self.blenders[life.instance].working = True

    def answered(self, life: Life, *, more: bool, count: int = 1) -> None:
        self.blenders[life.instance].working = more

    def _send(self, life: Life, parts: Sequence[Any]) -> bool:
        blender = self.blenders[life.instance]
        assert blender.life == life
        blender.get_leases()
        if blender.connected:
            blender.inbox.append([bytes(part) for part in parts])
        return blender.connected

    def add_lease(self, life: Life, request: Request) -> bool:
        blender = self.blenders[life.instance]
        assert blender.life == life
        if blender.connected:
            blender.added.append(request)
        return blender.connected

    def send_leases(self) -> Sequence[Any]:
        for blender in self.blenders.values():
            blender.get_leases()
        return ()

    def send_step(self, life: Life, number: int, serial: int, step: int, params: Sequence[Any]) -> bool:
        return self._send(life, protocol.encode(protocol.STEP, {"pass": number, "lease": serial, "step": step}, params))

    def send_revoke(self, life: Life, number: int, serials: Sequence[int]) -> None:
        self._send(life, protocol.encode(protocol.REVOKE, {"pass": number, "leases": list(serials)}))

    # -- what can happen

    def begin(self) -> None:
        if len(self.consumers) >= 3:
            return
        start = self.rng.randrange(20)
        if self.rng.random() < 0.3 and not any(isinstance(one, Stepper) for one in self.consumers):
            stepper = Stepper(self, start)
            self.consumers.append(stepper)
            self.dispatcher.begin(stepper.source)
            return
        indices = range(start, start + self.rng.randint(1, 8))
        ordered = self.rng.random() < 0.5
        source = Pass(self.config, indices, ordered=ordered, queue_size=self.rng.randint(1, 5))
        self.consumers.append(Consumer(self, source, indices, ordered=ordered))
        self.dispatcher.begin(source)

    def answer(self, blender: Blender) -> bool:
        """Let the host receive a message."""
        if not blender.connected or not blender.outbox:
            return False
        message = blender.outbox.popleft()
        fields, life, host = message.fields, blender.life, self.dispatcher
        name = (fields["pass"], fields["lease"])
        if message.kind == protocol.FRAME:
            host.frame(life, *name, fields["index"], dict(message.values or {}), protocol.Step.of(fields))
        elif message.kind == protocol.REPLAYED:
            host.replayed(life, *name)
        elif message.kind == protocol.OVER:
            host.over(life, *name)
        else:
            raise AssertionError(message)
        return True

    def answer_at_once(self) -> None:
        """Let the host receive some messages in one turn."""
        self.dispatcher.begin_turn()
        for _ in range(self.rng.randint(2, 6)):
            self.answer(self.rng.choice(list(self.blenders.values())))
        self.dispatcher.end_turn()

    def die(self, blender: Blender) -> None:
        number, epoch = blender.life
        self.states[number] = "backoff"
        self.blenders[number] = Blender(Life(number, epoch + 1))
        self.dispatcher.life_over(blender.life)
        self.states[number] = "ready"
        self.dispatcher.dispatch()

    def lose_connection(self, blender: Blender) -> None:
        blender.connected = False
        blender.inbox.clear()
        blender.outbox.clear()

    def reconnect(self, blender: Blender) -> None:
        if blender.connected:
            return
        blender.outbox.clear()
        blender.worker.hello()
        hello = blender.outbox.pop().fields
        blender.connected = True
        self.dispatcher.reconnected(blender.life, hello["holding"], hello["open"])
        self.dispatcher.dispatch()

    def cancel(self) -> None:
        if self.consumers:
            one = self.rng.choice(self.consumers)
            one.end = StreamClosed("cancelled")
            self.dispatcher.end(one.source, one.end)

    def flush(self) -> None:
        if self.consumers:
            self.dispatcher.flush(self.rng.choice(self.consumers).source)

    def act(self) -> None:
        """Let one thing happen."""
        blender = self.rng.choice(list(self.blenders.values()))
        number = self.rng.random()
        if number < 0.35:
            blender.turn()
        elif number < 0.55:
            self.answer(blender)
        elif number < 0.65:
            self.answer_at_once()
        elif number < 0.85 and self.consumers:
            self.rng.choice(self.consumers).take()
        elif number < 0.90:
            self.begin()
        elif number < 0.93:
            self.reconnect(blender)
        elif number < 0.95:
            self.die(blender)
        elif number < 0.97:
            self.lose_connection(blender)
        elif number < 0.985:
            self.flush()
        else:
            self.cancel()
        self.check()

    def check(self) -> None:
        self.consumers = [one for one in self.consumers if one.end is None]
        for one in self.consumers:
            stats = one.source.stats()
            assert stats.rendering + stats.queued <= one.source.book.slots
            assert stats.rendering >= 0
        for life, holding in self.dispatcher._holdings._by_life.items():
            assert not self.blenders[life.instance].added, "leases that nobody sends"
            first = holding.held[0] if holding.held else None
            has_work = first is not None and (first is not holding.episode or holding.closing or awaited(first))
            assert self.blenders[life.instance].working == has_work, "a Blender that hangs is missed, no other one"

    def finish(self) -> None:
        """Let all go well, until every consumer has met its end."""
        for _ in range(3000):
            if not self.consumers:
                break
            for blender in list(self.blenders.values()):
                self.reconnect(blender)
                blender.turn()
                self.answer(blender)
            for one in list(self.consumers):
                one.take()
            self.check()
        assert not self.consumers, "they wait for ever"
        for _ in range(100):
            for blender in self.blenders.values():
                self.reconnect(blender)
                while blender.turn() or self.answer(blender):
                    pass
        assert all(not holding.held for holding in self.dispatcher._holdings._by_life.values()), (
            "a lease that nobody answers"
        )
        assert not self.dispatcher._holdings._episodes
        assert all(blender.worker._episode is None for blender in self.blenders.values())


@pytest.mark.parametrize("lost", ["nothing", "step", "frame", "end"])
@pytest.mark.parametrize("max_replay", [1, 10])
async def test_a_connection_is_lost(max_replay: int, lost: str) -> None:
    """An episode that cannot be replayed goes on if it has lost nothing, and is lost in any other case."""
    world = World(0)
    (blender, *others) = world.blenders.values()
    for other in others:
        other.connected = False
    stepper = Stepper(world, 4)
    stepper.source = EpisodePass(world.config, stepper.index, {}, max_replay=max_replay)
    world.consumers.append(stepper)
    world.dispatcher.begin(stepper.source)

    def until(step: int) -> None:
        while stepper.step < step or stepper.waiting:
            assert blender.turn() or world.answer(blender) or stepper.take()

    until(frames_of(stepper.index) if lost == "end" else 3)
    if lost != "nothing":
        stepper.take()
        while lost != "step" and blender.turn():
            pass
    world.lose_connection(blender)
    world.reconnect(blender)
    world.finish()
    assert isinstance(stepper.end, EndOfStream if lost == "nothing" or max_replay > 1 else EpisodeLost)


@pytest.mark.parametrize("block", [0, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in (1, 2, 3))])
async def test_each_frame_comes_once(block: int) -> None:
    """600 worlds of 150 events each."""
    for seed in range(150 * block, 150 * (block + 1)):
        world = World(seed)
        try:
            for _ in range(150):
                world.act()
            world.finish()
        except BaseException as error:
            error.add_note(f"in world {seed}")
            raise
