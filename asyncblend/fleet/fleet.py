"""Fleet: starts the instances, watches them, restarts those that crash, and stops them all."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Protocol

from ..aio import finish
from ..config import StreamConfig
from ..errors import BlenderNotFound, CrashLoop, InstanceError
from ..wire.launch import Life, Report
from .ending import Ending, cannot_start, still_missing, why_it_ended
from .instance import Instance

OnDeath = Callable[[Life, InstanceError | None], None]

_log = logging.getLogger("asyncblend")


class Output(Protocol):
    """What a Blender writes; `Log` says what each call means."""

    def tail(self) -> str: ...
    def trim(self) -> None: ...


class Child(Protocol):
    """A launched Blender; `ChildProcess` and `BlenderProcess` say what each call means."""

    @property
    def log(self) -> Output: ...
    @property
    def machine(self) -> str: ...

    async def wait(self) -> int: ...
    def report(self) -> Report: ...
    def kill(self) -> None: ...
    def see_dead(self) -> None: ...
    def disown(self) -> None: ...
    async def stop(self, ask: Callable[[], None], grace: float) -> None: ...
    async def install(self, report: Report) -> None: ...


class Fleet:
    """All the instances of one run. `run` supervises them; the other methods tell the fleet what came over the wire.

    An `Instance` decides what to do about one Blender; the fleet does it.

    Args:
        config: The options.
        spawn: Launches the Blender of a life.
        send_stop: Asks a Blender to end, if it is connected.
        first: Number of the first instance.
        clock, sleep, chance: Monotonic time in seconds; waiting; random numbers in [0, 1).
    """

    def __init__(
        self,
        config: StreamConfig,
        spawn: Callable[[Life], Awaitable[Child]],
        send_stop: Callable[[Life], None],
        *,
        first: int = 0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._config, self._spawn, self._send_stop = config, spawn, send_stop
        self._clock, self._sleep = clock, sleep
        self._on_ready: Callable[[], None] = lambda: None
        numbers = range(first, first + config.instances)
        self._instances = {number: Instance(number, config, chance) for number in numbers}
        self._children: dict[int, Child] = {}
        self._first_ready = asyncio.Event()
        self._installing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by machine
        self._installed: set[tuple[int, str]] = set()  # instances, each with the machine that it lacked packages on

    @property
    def states(self) -> dict[int, str]:
        """By instance: new, starting, ready (has a lease), idle (waits for one), backoff, stopping, stopped, failed."""
        return {number: instance.state for number, instance in self._instances.items()}

    @property
    def restarts(self) -> dict[int, int]:
        """By instance: how often its Blender was started again after a crash."""
        return {number: instance.restarts for number, instance in self._instances.items()}

    @property
    def recycled(self) -> int:
        """Blenders replaced on purpose, because they had served their time."""
        return sum(instance.recycled for instance in self._instances.values())

    def ready_lives(self) -> list[Life]:
        """Return the lives that may be given leases, by instance number."""
        return [instance.life for instance in self._instances.values() if instance.serves]

    async def first_ready(self) -> None:
        """Wait until any instance serves."""
        await self._first_ready.wait()

    def kill(self) -> None:
        """Kill every Blender, and wait until it is dead, where no event loop will stop it."""
        for child in self._children.values():
            child.kill()
            child.see_dead()

    def disown(self) -> None:
        """In a forked copy of this process: leave the Blenders to their host."""
        for child in self._children.values():
            child.disown()

    # -- what came over the wire; a life that is over is ignored --------------------------------------------------

    def _current(self, life: Life) -> Instance | None:
        instance = self._instances.get(life.instance)
        return instance if instance is not None and instance.alive and instance.life == life else None

    def is_current(self, life: Life) -> bool:
        """Return whether this is the present life of one of the instances."""
        return self._current(life) is not None

    def beat(self, life: Life, rss: int, lost: int = 0) -> None:
        """Note a HELLO or BEAT, with the Blender's resident memory and its lost shared memory in bytes."""
        if instance := self._current(life):
            instance.beat(self._clock(), rss, lost)
            self._replace_if_worn(instance)

    def ready(self, life: Life) -> None:
        """Note that the script of this life serves."""
        if instance := self._current(life):
            self._first_ready.set()
            instance.ready(self._clock())
            self._on_ready()

    def leased(self, life: Life) -> None:
        """Note that this life was given a lease."""
        if instance := self._current(life):
            instance.leased(self._clock())

    def working_since(self, life: Life, began: float | None) -> None:
        """Note when this life began the step that it is at, on the fleet's clock. None: it waits for the next one."""
        if instance := self._current(life):
            instance.working_since(began)

    def goes_on(self, life: Life) -> None:
        """Note that this life was granted the next step of its episode."""
        if instance := self._current(life):
            instance.goes_on(self._clock())

    def answered(self, life: Life, *, more: bool, count: int = 1) -> None:
        """Note that this life answered a lease, or made or replayed a step of its episode.

        Each counts towards `max_frames_per_instance`.

        Args:
            more: Whether it holds a lease now: another one, or still that of the episode.
            count: How many steps it has made since this was called last.
        """
        if instance := self._current(life):
            instance.answered(self._clock(), more=more, count=count)
            self._replace_if_worn(instance)

    def expel(self, life: Life, why: str) -> None:
        """Kill a Blender for what it did. Its supervisor starts the next life."""
        child = self._children.get(life.instance)  # none while it is launched, and when it has ended
        if child is not None and (instance := self._current(life)) and instance.condemn(why):
            child.kill()

    def _replace_if_worn(self, instance: Instance) -> None:
        # One at a time, so that the others keep the stream going.
        if instance.worn and not any(other.being_replaced for other in self._instances.values()):
            _log.info("Replacing Blender %d: it has served its time", instance.number)
            instance.retire(self._clock())
        if instance.leaving:
            self._send_stop(instance.life)

    # -- supervision ----------------------------------------------------------------------------------------------

    async def run(
        self, on_ready: Callable[[], None], on_death: OnDeath, on_watch: Callable[[], None] = lambda: None
    ) -> None:
        """Supervise until cancelled, then stop every Blender.

        Args:
            on_ready: Called when an instance serves.
            on_death: Called when nothing of a life is left, with how it ended. None: the run is over.
            on_watch: Called before each look at the budgets, to note what is not noted when it happens.

        Raises (in an ExceptionGroup):
            InstanceExited, StartTimeout: A Blender died and none was ever ready, or its script does not load.
            CrashLoop: An instance died more often than the policy allows.
            BlenderNotFound: Blender cannot be executed.
        """
        self._on_ready = on_ready
        async with asyncio.TaskGroup() as group:
            for number, instance in self._instances.items():
                group.create_task(self._supervise(instance, on_death), name=f"asyncblend instance {number}")
            group.create_task(self._watch(on_watch), name="asyncblend watch")

    async def _supervise(self, instance: Instance, on_death: OnDeath) -> None:
        """Run one life after another."""
        while True:
            life = instance.start(self._clock())
            try:
                ending, child = await self._live(instance)
                ending = self._judge(instance, ending, child)
            except BaseException:
                instance.close()
                on_death(life, None)
                raise
            delay = instance.ended(self._clock(), ending.cause)
            on_death(life, ending.error)
            if delay is None:
                self._give_up(instance, ending)
                return
            if ending.cause == "needs_packages" and child is not None:
                await self._install(instance, child, ending.report)
            elif instance.state == "backoff":
                about = str(ending.error).partition("\n")[0]
                _log.warning("Restarting Blender %d in %.2g s. %s", instance.number, delay, about)
                await self._sleep(delay)

    async def _live(self, instance: Instance) -> tuple[Ending, Child | None]:
        """Run one life, until nothing is left of it. Return how it ended, and what it was, if it could be launched."""
        try:
            child = await self._spawn(instance.life)
        except BlenderNotFound:
            raise
        except OSError as error:
            return cannot_start(instance.number, error), None
        instance.launched(self._clock())
        self._children[instance.number] = child
        try:
            status = await child.wait()
            return why_it_ended(instance, status, child.log.tail(), child.report(), self._config.timeouts), child
        finally:
            # Before it serves there is nothing to end gracefully, and nobody to hear the request.
            grace = self._config.timeouts.stop if instance.served else 0
            life = instance.life
            instance.stopping()
            del self._children[instance.number]
            await finish(child.stop(lambda: self._send_stop(life), grace))
            child.log.trim()

    def _judge(self, instance: Instance, ending: Ending, child: Child | None) -> Ending:
        """Return the same ending, or one with a graver cause, considering what came before it."""
        if child is not None and ending.cause == "needs_packages":
            again = (instance.number, child.machine) in self._installed
            return still_missing(instance.number, ending) if again else ending
        # A machine that was lost says nothing of the script.
        if ending.cause == "crash" and not ending.report.lost and not self._first_ready.is_set():
            return ending._replace(cause="fatal")
        return ending

    def _give_up(self, instance: Instance, ending: Ending) -> None:
        """Go on without an instance that has failed, or raise."""
        policy, number = self._config.restart, instance.number
        left = sum(other.state != "failed" for other in self._instances.values())
        if self._first_ready.is_set() and policy.min_instances is not None and left >= policy.min_instances:
            _log.error("Going on with %d Blenders, without %d. %s", left, number, str(ending.error))
            return
        if ending.cause == "fatal":
            raise ending.error
        raise CrashLoop(
            f"Blender {number} died more than {policy.max_restarts} times in {policy.window:g} s, "
            f"the last time: {ending.error}",
            instance=number,
            log_tail=ending.error.log_tail,
        ) from ending.error

    async def _install(self, instance: Instance, child: Child, report: Report) -> None:
        """Install what this Blender's Python lacks, once for all instances of a machine."""
        async with self._installing[child.machine]:
            try:
                await child.install(report)
            except InstanceError as error:
                error.instance = instance.number
                raise
        self._installed.add((instance.number, child.machine))

    async def _watch(self, on_watch: Callable[[], None]) -> None:
        """Kill what overran a budget. Its supervisor sees the exit."""
        timeouts = self._config.timeouts
        interval = min(1.0, timeouts.start / 4, timeouts.beat / 4, timeouts.frame / 4)
        last = self._clock()
        while True:
            await self._sleep(interval)
            now = self._clock()
            stalled, last = now - last - interval, now
            on_watch()
            for number, child in self._children.items():
                instance = self._instances[number]
                child.log.trim()
                if stalled > interval:
                    instance.stalled(stalled)
                if instance.overdue(now):
                    child.kill()
                if instance.leaving:
                    # It was asked when it became free. Another request does no harm, and replaces a lost one.
                    self._send_stop(instance.life)
