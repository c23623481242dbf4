"""Run: three consumers with pass after pass on one warm fleet, under chaos, with everything measured."""

from __future__ import annotations

import asyncio
import functools
import random
import time
from pathlib import Path

import asyncblend as ab
from asyncblend.aio import the_one_error

from . import scene
from .chaos import Chaos
from .faults import Recoveries
from .fleet import Fleet
from .hosts import Hosts
from .ledger import Counts, Ledger
from .memory import Memory
from .processes import blenders, run_of

__all__ = ["Run"]


class Run:
    """One run of so many seconds, and what was measured in it."""

    def __init__(self, config: ab.StreamConfig, fleet: Fleet, seconds: float, *, chaos: bool) -> None:
        assert config.length is not None
        self.config, self.fleet, self.seconds, self.with_chaos = config, fleet, seconds, chaos
        self.stream = ab.BlenderStream(config)
        self.ledgers = {name: Ledger(config.seed, number) for number, name in enumerate(("quick", "slow", "cancelled"))}
        """By the consumer's name. All three consume at once."""
        self.recoveries = Recoveries()
        self.hosts = Hosts(config, Path(config.script).parent / "hosts", fleet.patience)
        self.chaos = Chaos(random.Random(config.seed + 1), fleet.between, self.stream, self.recoveries, self.hosts)
        self.memory = Memory()
        self.version: str | None = None
        """Blender's version; None for fakes."""
        self.names: set[str] = set()
        """Names of the run's folder, by which its processes are found too."""
        self.began: float | None = None
        """When the first Blender served, on the monotonic clock."""
        self.took = 0.0
        """Seconds from then to the end."""
        self.closing = 0.0
        """Seconds to close the stream."""
        self.failure: str | None = None
        """A sentence about what ended the run too early."""
        self._length = config.length
        self._rng = random.Random(config.seed)

    @property
    def total(self) -> Counts:
        """The counts of all consumers together."""
        return Counts.total(ledger.counts for ledger in self.ledgers.values())

    @property
    def passed(self) -> float:
        """Seconds since the start."""
        return 0.0 if self.began is None else time.monotonic() - self.began

    async def run(self) -> None:
        """Run for so many seconds, and close the stream. What goes wrong does not raise: it becomes `failure`."""
        try:
            await self._in_stream()
        except Exception as error:
            cause = the_one_error(error)
            self.failure = f"the stream failed: {type(cause).__name__}: {cause}"

    async def _in_stream(self) -> None:
        async with self.stream:
            self.began = time.monotonic()
            try:
                async with asyncio.TaskGroup() as group:
                    watching = group.create_task(self._watch(), name="soak memory")
                    if self.with_chaos:
                        group.create_task(self.chaos.run(self.seconds, self.fleet.patience), name="soak chaos")
                    async with asyncio.TaskGroup() as consumers:
                        consumers.create_task(self._consume_quickly(), name="soak quick")
                        consumers.create_task(self._consume_slowly(), name="soak slow")
                        consumers.create_task(self._consume_and_cancel(), name="soak cancelled")
                    watching.cancel()
            finally:
                self.took = self.passed
        self.closing = self.passed - self.took

    @property
    def _goes_on(self) -> bool:
        # Each kind of fault has its turn, and there is time to recover from the last ones.
        waits = self.with_chaos and (not self.chaos.over or self.recoveries.open > 0)
        return self.passed < self.seconds or (waits and self.passed < self.seconds + 3 * self.fleet.patience)

    async def _consume_quickly(self) -> None:
        while self._goes_on:
            start = self.ledgers["quick"].counts.passes // 2 * self._length  # every second pass repeats the last one
            await self._one_pass("quick", range(start, start + self._length))

    async def _consume_slowly(self) -> None:
        length = max(5, self._length // 20)
        while self._goes_on:
            start = self.ledgers["slow"].counts.passes // 2 * length
            await self._one_pass("slow", range(start, start + length), pause=20 / self.fleet.rate, queue_size=4)

    async def _consume_and_cancel(self) -> None:
        """Give up one pass after another at a random moment, whatever is being awaited then."""
        while self._goes_on:
            start = self._rng.randrange(self._length)
            limit = self._rng.uniform(0, 4 * self.fleet.between) if self.with_chaos else None
            try:
                async with asyncio.timeout(limit):
                    await self._one_pass("cancelled", range(start, start + self._length))
            except TimeoutError:
                self.ledgers["cancelled"].cancel()

    async def _one_pass(self, name: str, indices: range, *, pause: float = 0, queue_size: int | None = None) -> None:
        loop, patience, ledger = asyncio.get_running_loop(), self.fleet.patience, self.ledgers[name]
        params = functools.partial(scene.params, consumer=list(self.ledgers).index(name))
        ledger.begin(indices)
        async with self.stream.frames(indices, params=params, queue_size=queue_size) as frames:
            try:
                async with asyncio.timeout(patience) as limit:
                    async for frame in frames:
                        limit.reschedule(loop.time() + patience)
                        ledger.frame(frame)
                        self.recoveries.frame(frame.instance, frame["pid"])
                        self.version = frame.get("blender")
                        await self.chaos.hold_up()
                        await asyncio.sleep(pause)
            except TimeoutError:
                if not limit.expired():
                    raise
                about = f"no frame for {patience:g} s; {self.stream.stats()}; {frames.state_dict()}"
                raise RuntimeError(f"the {name} consumer: {about}") from None
        ledger.end()

    async def _watch(self) -> None:
        while True:
            fleet = [process for _, process in blenders()]
            self.names.update(name for process in fleet if (name := run_of(process)))
            self.memory.take(self.passed, fleet)
            await asyncio.sleep(min(1.0, self.seconds / 60))
