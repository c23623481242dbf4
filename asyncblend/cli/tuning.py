"""Tuning: how fast a config is, with so many instances of so many threads."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..aio import loop_factory
from ..config import StreamConfig
from ..errors import ConfigError
from ..pictures.canvas import DIM
from .chart import OURS, Bar, Panel, bar_chart

__all__ = ["Setting", "Trial", "best", "draw", "settings", "trial"]

_WINDOWS = 5
"""Rates that one trial takes, one after another, for a median and a spread."""


class Setting(NamedTuple):
    """What is tried."""

    instances: int
    threads: int | None
    """Of each instance; None: as the scene has it."""

    def __str__(self) -> str:
        if self.threads is None:
            return f"{self.instances} x the scene's threads"
        return f"{self.instances} x {self.threads} thread{'s' * (self.threads > 1)}"


class Trial(NamedTuple):
    """What came of it."""

    setting: Setting
    rates: Sequence[float]
    """Frames a second, several times."""
    first: float
    """Seconds until the first frame."""

    @property
    def rate(self) -> float:
        """The median."""
        return statistics.median(self.rates)


def settings(instances: Sequence[int] = (), threads: Sequence[int] = (), cores: int | None = None) -> list[Setting]:
    """What to try: each number of instances with each number of threads.

    Args:
        instances: empty: 1, 2, 4, ... up to twice the cores, but no more than 16.
        threads: empty: for each number of instances the cores shared out among them, and all cores.
        cores: None: those of this machine.

    Raises:
        ConfigError: a number is below 1.
    """
    if any(number < 1 for number in (*instances, *threads)):
        raise ConfigError("instances and threads must be at least 1")
    cores = cores or os.cpu_count() or 1
    counts = list(instances) or [1 << n for n in range(5) if 1 << n <= 2 * cores]
    found = [Setting(count, own) for count in counts for own in (threads or (max(1, cores // count), cores))]
    return list(dict.fromkeys(found))


def trial(config: StreamConfig, setting: Setting, seconds: float) -> Trial:
    """Start that many Blenders, and take their frames for so long, after a warm-up of half of it.

    Raises:
        AsyncblendError: as a stream does.
    """
    # Endless, and from the start again: a short length would end before the clock does.
    options: dict[str, Any] = {"instances": setting.instances, "threads": setting.threads, "length": None}
    if config.script_args and not isinstance(config.script_args[0], str | os.PathLike):
        options["script_args"] = config.script_args[0]  # of each instance: there may be more now
    places = max(config.queue_size, 2 * setting.instances)  # none must wait for a place
    tried = dataclasses.replace(config, **options, queue_size=places)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_trial(tried, setting, seconds))


async def _trial(config: StreamConfig, setting: Setting, seconds: float) -> Trial:
    from ..stream.stream import BlenderStream  # not above: `doctor` must run where pyzmq is missing

    began = time.perf_counter()
    async with BlenderStream(config) as stream:
        frames: AsyncIterator[object] = stream
        await anext(frames)
        first = time.perf_counter() - began
        warm = time.perf_counter() + seconds / 2
        for _ in range(2 * setting.instances):  # all of them have begun
            await anext(frames)
        while time.perf_counter() < warm:
            await anext(frames)
        rates = []
        for _ in range(_WINDOWS):
            count, start = 0, time.perf_counter()
            while True:
                await anext(frames)
                count += 1
                if (passed := time.perf_counter() - start) >= seconds / _WINDOWS:
                    break
            rates.append(count / passed)
    return Trial(setting, rates, first)


def best(trials: Sequence[Trial]) -> Trial:
    """The fastest; of those that are as fast within a twentieth, the one with fewest instances and threads."""
    enough = 0.95 * max(one.rate for one in trials)
    good = [one for one in trials if one.rate >= enough]
    return min(good, key=lambda one: (one.setting.instances, one.setting.threads or 0, -one.rate))


def draw(path: Path, trials: Sequence[Trial], name: str) -> None:
    """Write a picture of all trials."""
    chosen = best(trials)
    bars = [
        Bar(
            str(one.setting),
            one.rate,
            min(one.rates),
            max(one.rates),
            f"{one.rate:,.1f}   {one.rate / trials[0].rate:.2f}x",
            OURS if one is chosen else DIM,
        )
        for one in trials
    ]
    below = f"frames/s, more is better; 1x: as fast as {trials[0].setting}"
    bar_chart(path, f"{name}: instances and threads", below, [Panel(f"best: {chosen.setting}", bars)])
