"""Run: pass after pass on one warm fleet, under chaos, with everything measured."""

from __future__ import annotations

import asyncio
import random
import time

import asyncblend as ab
from asyncblend.aio import the_one_error
from asyncblend.stream.frames import Frames

from .chaos import Chaos
from .faults import Recoveries
from .fleet import Fleet
from .ledger import Ledger
from .memory import Memory
from .processes import blenders, run_of

__all__ = ["Run"]


class Run:
    """One run of so many seconds, and what was measured in it."""

    def __init__(self, config: ab.StreamConfig, fleet: Fleet, seconds: float, *, chaos: bool) -> None:
        assert config.length is not None
        self.config, self.fleet, self.seconds, self.with_chaos = config, fleet, seconds, chaos
        self.length = config.length
        """Samples in a pass."""
        self.stream = ab.BlenderStream(config)
        self.ledger = Ledger(config.seed)
        self.recoveries = Recoveries()
        self.chaos = Chaos(random.Random(config.seed + 1), fleet.between, self.stream, self.recoveries)
        self.memory = Memory()
        self.version: str | None = None
        """Of Blender, as it says itself; None for fakes."""
        self.names: set[str] = set()
        """Of the run's folder, which marks its processes too."""
        self.broken_off = 0
        """Passes."""
        self.began: float | None = None
        """On the monotonic clock; None until the first Blender serves."""
        self.took = 0.0
        self.closing = 0.0
        """Seconds to close the stream."""
        self.failure: str | None = None
        """What ended it too early."""
        self._rng = random.Random(config.seed)

    @property
    def passed(self) -> float:
        """Seconds since the start."""
        return 0.0 if self.began is None else time.monotonic() - self.began

    async def run(self) -> None:
        """Everything but the look at what is left afterwards. What goes wrong is `failure`, no exception."""
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
                        group.create_task(self.chaos.run(self.seconds), name="soak chaos")
                    await self._consume()
                    watching.cancel()
            finally:
                self.took = self.passed
        self.closing = self.passed - self.took

    async def _consume(self) -> None:
        # The last faults have time to recover.
        while self.passed < self.seconds or (self.recoveries.open and self.passed < self.seconds + self.fleet.patience):
            start = self.ledger.passes // 2 * self.length
            break_off = self.with_chaos and self.ledger.passes % 3 == 2
            indices = range(start, start + self.length)
            self.ledger.begin(indices)
            async with self.stream.frames(indices) as frames:
                await self._one_pass(frames, self._rng.randrange(self.length) if break_off else None)

    async def _one_pass(self, frames: Frames, most: int | None) -> None:
        loop, patience = asyncio.get_running_loop(), self.fleet.patience
        taken = 0
        try:
            async with asyncio.timeout(patience) as limit:
                async for frame in frames:
                    limit.reschedule(loop.time() + patience)
                    self.ledger.frame(frame)
                    self.recoveries.frame(frame.instance, frame["pid"])
                    self.version = frame.get("blender")
                    taken += 1
                    if taken == most:
                        self.broken_off += 1
                        return
                    await self.chaos.hold_up()
        except TimeoutError:
            if not limit.expired():
                raise
            raise RuntimeError(f"no frame for {patience:g} s; {self.stream.stats()}; {frames.state_dict()}") from None
        self.ledger.end()

    async def _watch(self) -> None:
        while True:
            fleet = [process for _, process in blenders()]
            self.names.update(name for process in fleet if (name := run_of(process)))
            self.memory.take(self.passed, fleet)
            await asyncio.sleep(min(1.0, self.seconds / 60))
