"""Measuring: ways to do the same, in turn, several times. A round is every way once."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Effort", "Timed", "Way", "in_turn", "timed", "timed_async"]


class Timed(NamedTuple):
    """What one way did in one round."""

    done: float
    """Frames, batches, round trips."""
    seconds: float
    cpu: float = 0.0
    """Seconds of processor time that this process took, with all its threads."""

    @property
    def rate(self) -> float:
        """Per second."""
        return self.done / self.seconds

    @property
    def cpu_each(self) -> float:
        """Microseconds of this process for each."""
        return 1e6 * self.cpu / max(self.done, 1)


Way = Callable[[float], Timed]
"""Does its work for so many seconds, after a warm-up of its own that is not timed."""


@dataclass(frozen=True)
class Effort:
    """How thorough a measurement is."""

    rounds: int
    seconds: float
    """Of each way in each round."""
    quick: bool = False
    """Only to see that it works: fewer cases, and figures that mean nothing."""
    say: Callable[[str], None] = lambda _: None
    """Is told what is being measured."""


def in_turn(ways: Mapping[str, Way], effort: Effort) -> dict[str, list[Timed]]:
    """Every way, `effort.rounds` times in turn, so that whatever else the machine does meets all of them.

    One more round before is not counted.
    """
    found: dict[str, list[Timed]] = {name: [] for name in ways}
    for way in ways.values():
        way(min(0.1, effort.seconds))
    for _ in range(effort.rounds):
        for name, way in ways.items():
            found[name].append(way(effort.seconds))
    return found


def timed(work: Callable[[], int], seconds: float) -> Timed:
    """Call `work`, which does some and says how many, again and again for so long."""
    count, began, cpu = 0, time.perf_counter(), time.process_time()
    while True:
        count += work()
        if (passed := time.perf_counter() - began) >= seconds:
            return Timed(count, passed, time.process_time() - cpu)


async def timed_async(work: Callable[[], Awaitable[object]], seconds: float) -> Timed:
    """The same for one that is awaited, and does one."""
    count, began, cpu = 0, time.perf_counter(), time.process_time()
    while True:
        await work()
        count += 1
        if (passed := time.perf_counter() - began) >= seconds:
            return Timed(count, passed, time.process_time() - cpu)
