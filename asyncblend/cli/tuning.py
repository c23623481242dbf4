"""Measures how fast a config is with different numbers of instances and threads."""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..aio import run
from ..config import StreamConfig
from ..errors import ConfigError
from .terminal import printable

if TYPE_CHECKING:
    from ..stream.stream import BlenderStream

_WINDOWS = 5
"""How many rates one trial measures, one after another, for a median and a spread."""


class Setting(NamedTuple):
    """A number of instances, and of threads for each of them."""

    instances: int
    threads: int | None
    """None leaves the number that the scene sets."""

    def __str__(self) -> str:
        if self.threads is None:
            return f"{self.instances} x the scene's threads"
        return f"{self.instances} x {self.threads} thread{'s' * (self.threads > 1)}"


class Trial(NamedTuple):
    """What was measured with one setting."""

    setting: Setting
    rates: Sequence[float]
    """Frames per second, measured several times."""
    first: float
    """Seconds from the start until the first frame."""

    @property
    def rate(self) -> float:
        """The median of the rates."""
        return statistics.median(self.rates)


def settings(instances: Sequence[int] = (), threads: Sequence[int] = (), cores: int | None = None) -> list[Setting]:
    """Return what to try: each number of instances with each number of threads.

    Args:
        instances: If it is empty, 1, 2, 4, ... up to twice the cores, but at most 16.
        threads: If it is empty, for each number of instances the cores divided among them, and all cores.
        cores: How many cores this machine has. None asks the operating system.

    Raises:
        ConfigError: A number is below 1.
    """
    if any(number < 1 for number in (*instances, *threads)):
        raise ConfigError("instances and threads must be at least 1")
    cores = cores or os.cpu_count() or 1
    counts = list(instances) or [1 << n for n in range(5) if 1 << n <= 2 * cores]
    return list(dict.fromkeys(Setting(n, own) for n in counts for own in threads or (max(1, cores // n), cores)))


def trial(
    config: StreamConfig, setting: Setting, seconds: float, begun: Callable[[BlenderStream], None] = lambda stream: None
) -> Trial:
    """Start a fleet with this setting, and measure its frames for some seconds, after a warm-up half as long.

    `begun` is called with the stream before it starts, so that it can be watched.
    """
    # The stream is made endless, because a short length would end before the clock does.
    options: dict[str, Any] = {"instances": setting.instances, "threads": setting.threads, "length": None}
    if config.script_args and not isinstance(config.script_args[0], str | os.PathLike):
        # Each instance has arguments of its own, for another number of instances: all take those of the first.
        options["script_args"] = config.script_args[0]
    queue_size = max(config.queue_size, 2 * setting.instances)  # no instance must wait for a free slot
    tried = dataclasses.replace(config, **options, queue_size=queue_size)
    return run(_trial(tried, setting, seconds, begun))


async def _trial(
    config: StreamConfig, setting: Setting, seconds: float, begun: Callable[[BlenderStream], None]
) -> Trial:
    from ..stream.stream import BlenderStream

    began = time.perf_counter()
    begun(watched := BlenderStream(config))
    watched.consumer = None  # frames are dropped
    async with watched as stream:
        frames = aiter(stream)
        await anext(frames)
        first = time.perf_counter() - began
        for _ in range(2 * setting.instances):  # so many frames show that all instances render
            await anext(frames)
        await _rate(frames, seconds / 2)
        return Trial(setting, [await _rate(frames, seconds / _WINDOWS) for _ in range(_WINDOWS)], first)


async def _rate(frames: AsyncIterator[object], seconds: float) -> float:
    """Take frames for some seconds, and return how many came per second."""
    count, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        await anext(frames)
        count += 1
    return count / passed


def best(trials: Sequence[Trial]) -> Trial:
    """Return the trial with the fewest instances and threads among those that are within 5 % of the fastest."""
    enough = 0.95 * max(one.rate for one in trials)
    good = [one for one in trials if one.rate >= enough]
    return min(good, key=lambda one: (one.setting.instances, one.setting.threads or 0, -one.rate))


def draw(path: Path, trials: Sequence[Trial], name: str) -> None:
    """Write a bar chart of all trials as a PNG file. `name` is the script's, for the title."""
    from matplotlib.figure import Figure  # without pyplot: no display and no global settings are touched

    ink, grey, best_colour = "#1f2328", "#b1b7be", "#0072b2"
    chosen, rates = best(trials), [one.rate for one in trials]
    figure = Figure(figsize=(9, 1.4 + 0.4 * len(trials)), dpi=130, facecolor="white")
    axes = figure.subplots()
    colours = [best_colour if one is chosen else grey for one in trials]
    spread = [[one.rate - min(one.rates) for one in trials], [max(one.rates) - one.rate for one in trials]]
    axes.barh(range(len(trials)), rates, 0.72, xerr=spread, color=colours, ecolor=ink, capsize=2.5)
    for place, one in enumerate(trials):
        text = f"{one.rate:,.1f}   {one.rate / rates[0]:.2f}x"
        axes.annotate(text, (max(one.rates), place), (7, 0), textcoords="offset points", va="center", color=ink)
    axes.set_yticks(range(len(trials)), [str(one.setting) for one in trials])
    axes.set_ylim(len(trials) - 0.5, -0.5)
    axes.set_xticks([])  # the rates stand beside the bars
    axes.set_xlim(0, 1.3 * max(max(one.rates) for one in trials))
    axes.set_xlabel(f"frames/s (more is better); 1x is as fast as {trials[0].setting}", color="#656d76", labelpad=10)
    title = f"{printable(name)}: best with {chosen.setting}"
    # A dollar sign in the name is no beginning of a formula.
    axes.set_title(title, loc="left", pad=14, fontsize=14, fontweight="bold", color=ink, parse_math=False)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    figure.savefig(path, format="png", bbox_inches="tight", pad_inches=0.25)
