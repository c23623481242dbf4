"""Runs several ways of doing the same in turns, and times them. A round runs every way once."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Effort", "Timed", "Way", "in_turn", "timed", "timed_async"]


class Timed(NamedTuple):
    """What one way did in one round."""

    done: float
    """How many frames, batches or round trips."""
    seconds: float
    cpu: float = 0.0
    """Seconds of processor time that this process took, in all its threads."""
    busiest: float = 0.0
    """Seconds of processor time of the thread that took most of it. 0: not measured."""
    size: float = 0.0
    """Bytes that one frame takes. 0: not measured."""

    @property
    def rate(self) -> float:
        """How many were done per second."""
        return self.done / self.seconds

    @property
    def cpu_each(self) -> float:
        """Microseconds of this process's processor time for each."""
        return 1e6 * self.cpu / max(self.done, 1)

    @property
    def busiest_each(self) -> float:
        """Microseconds of the busiest thread's processor time for each."""
        return 1e6 * self.busiest / max(self.done, 1)


Way = Callable[[float], Timed]
"""A function that does its work for a number of seconds. It may warm up first, which it does not time."""


@dataclass(frozen=True)
class Effort:
    """How thoroughly to measure."""

    rounds: int
    seconds: float
    """Seconds of each way in each round."""
    quick: bool = False
    """Whether to see only that it works, with fewer cases and figures that mean nothing."""
    say: Callable[[str], None] = lambda _: None
    """Called with what is being measured now, for people who wait."""


def in_turn(ways: Mapping[str, Way], effort: Effort) -> dict[str, list[Timed]]:
    """Run every way `effort.rounds` times, in turns, so that what else the machine does meets all of them.

    A short round before them warms up, and does not count.
    """
    found: dict[str, list[Timed]] = {name: [] for name in ways}
    for way in ways.values():
        way(min(0.1, effort.seconds))
    for _ in range(effort.rounds):
        for name, way in ways.items():
            found[name].append(way(effort.seconds))
    return found


def timed(work: Callable[[], int], seconds: float) -> Timed:
    """Call `work` for a number of seconds. Each call does some work and returns how much."""
    count, began, cpu = 0, time.perf_counter(), time.process_time()
    while True:
        count += work()
        if (passed := time.perf_counter() - began) >= seconds:
            return Timed(count, passed, time.process_time() - cpu)


async def timed_async(work: Callable[[], Awaitable[object]], seconds: float) -> Timed:
    """Await `work` for a number of seconds. Each call does one piece of work."""
    count, began, cpu = 0, time.perf_counter(), time.process_time()
    while True:
        await work()
        count += 1
        if (passed := time.perf_counter() - began) >= seconds:
            return Timed(count, passed, time.process_time() - cpu)
