"""Timing: how long consumers, Blenders and frames took over the latest minute. Pure: the caller has the clock.

A minute is kept in slices of five seconds, and the oldest slice is dropped as a whole. So memory is bounded, each note
takes the same few operations however many frames come, and what several passes have noted can be added up slice by
slice. All times are seconds of one monotonic clock.

Each object has one writer: what a consumer notes, its own thread notes, and all else the thread of the event loop. Any
thread may read at any time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import floor, inf, log2
from typing import Any, NamedTuple

from ..wire.protocol import Spent

WINDOW = 60.0
"""Seconds that are looked at."""

_SLICES = 12
_SLICE = WINDOW / _SLICES  # seconds
_BINS = 16  # of durations in an octave, so that a quantile is within 2.2 % of the truth
_LEAST = 1e-7  # seconds; what is shorter counts as no time
_SUM = "seconds"  # the key of a slice's sum of durations, beside the numbers of bins

Slices = dict[int, dict[Any, float]]
"""What was noted, by the number of its slice."""


class Spread(NamedTuple):
    """How long something took, in seconds. All are 0 as long as it has not happened."""

    mean: float = 0.0
    median: float = 0.0
    p90: float = 0.0
    """The 90th percentile: nine of ten took no longer."""


class _Noted:
    """Sums, by slice."""

    __slots__ = ("_ends", "_slices", "_sums")

    def __init__(self) -> None:
        self._slices: Slices = {}
        self._sums: dict[Any, float] = {}  # those of the latest slice
        self._ends = -inf  # when that slice ends

    def _begin(self, number: int) -> dict[Any, float]:
        """Return the sums of a slice, which is the latest one now, and drop those that are too old."""
        for old in [one for one in self._slices if one <= number - _SLICES]:
            del self._slices[old]
        self._sums, self._ends = self._slices.setdefault(number, {}), (number + 1) * _SLICE
        return self._sums

    def slices(self, now: float) -> Slices:
        """Return a copy of what was noted in the minute before `now`."""
        oldest = _slice_of(now) - _SLICES
        return {number: sums.copy() for number, sums in self._slices.copy().items() if number > oldest}

    def add_slices(self, slices: Slices, now: float) -> None:
        """Add what another one has noted in the minute before `now`."""
        for number, sums in slices.items():
            _add(self._slices.setdefault(number, {}), sums)
        self._begin(_slice_of(now))


class Durations(_Noted):
    """Durations, of which mean and quantiles are asked for: a histogram with bins that grow with the duration."""

    __slots__ = ()

    def add(self, seconds: float, now: float) -> None:
        """Note a duration that has ended now."""
        sums = self._sums if now < self._ends else self._begin(_slice_of(now))
        if seconds < _LEAST:
            sums[None] = sums.get(None, 0) + 1
        else:
            number = floor(_BINS * log2(seconds))
            sums[number] = sums.get(number, 0) + 1
            sums[_SUM] = sums.get(_SUM, 0.0) + seconds


class Level(_Noted):
    """How much of a whole something is, weighted by time: how full a queue, how many of the Blenders idle."""

    __slots__ = ("_area", "_part", "_since", "_summed", "_whole")

    def __init__(self, part: float, whole: float) -> None:
        super().__init__()
        self._part, self._whole = part, whole
        self._since: float | None = None  # when the part has changed
        self._summed = 0.0  # when the sums were brought up to date
        self._area = 0.0  # of the part over time, from then until it has changed

    def start(self, now: float) -> None:
        """Begin to count. What `set` was told before counts from now on."""
        if self._since is None:
            self._begin(_slice_of(now))
            self._since = self._summed = now

    def set(self, part: float, now: float) -> None:
        """Note how much it is from now on."""
        if self._since is not None:
            if now >= self._ends:
                self._sum_up(now)
            self._area += self._part * (now - self._since)
            self._since = now
        self._part = part

    def set_whole(self, whole: float, now: float) -> None:
        """Note how much the whole is from now on."""
        if self._since is not None:
            self._sum_up(now)
        self._whole = whole

    def slices(self, now: float) -> Slices:
        """Return a copy of what was noted in the minute before `now`, and of the time since the last change."""
        found = super().slices(now)
        if self._since is not None:
            for number, sums in self._latest(self._since, now):
                _add(found.setdefault(number, {}), sums)
        return found

    def _sum_up(self, now: float) -> None:
        """Bring the sums up to date. It was as it is for longer than the latest slice, perhaps."""
        assert self._since is not None, "it counts"
        for number, sums in self._latest(self._since, now):
            _add(self._begin(number), sums)
        self._begin(_slice_of(now))
        self._since = self._summed = now
        self._area = 0.0

    def _latest(self, since: float, now: float) -> Iterator[tuple[int, Mapping[Any, float]]]:
        """Yield what is not in the sums yet, for each slice of the minute before `now`."""
        first, oldest = _slice_of(self._summed), _slice_of(now) - _SLICES + 1
        if self._area and first >= oldest:
            yield first, {"part": self._area}
        number = max(first, oldest)
        while (begins := number * _SLICE) < now:
            ends = min(now, begins + _SLICE)
            part = self._part * max(0.0, ends - max(since, begins))
            yield number, {"part": part, "whole": self._whole * max(0.0, ends - max(self._summed, begins))}
            number += 1


class Timing:
    """What is timed of one pass.

    Args:
        slots: How many frames may be rendering, in flight and queued at once.
    """

    def __init__(self, slots: int) -> None:
        self._queued = self._consumers = 0
        self._until = inf
        self._waited = 0.0  # seconds since the frame before
        self.started: float | None = None
        """When it began to count: with the pass, or with the run's first frame, as nobody is slow before that."""
        self.leads: bool = False
        """Whether the frame with which the run began to count is its own, so that no time has passed for it."""
        self.queue: Level = Level(0, slots)
        self.waiting: Level = Level(0, 1)
        self.waits: Durations = Durations()
        self.sample: Durations = Durations()
        self.render: Durations = Durations()
        self.capture: Durations = Durations()

    def start(self, now: float) -> None:
        """Begin to count."""
        if self.started is None:
            self.started = now
            self.queue.start(now)
            self.waiting.start(now)

    def end(self, now: float) -> None:
        """Stop counting. Later snapshots show the state of this moment."""
        self._until = min(self._until, now)

    def at(self, now: float) -> float:
        """Return `now`, or when it ended."""
        return min(now, self._until)

    def absorb(self, other: Timing, now: float) -> None:
        """Add what a pass that has ended has noted."""
        self.leads = self.leads or other.leads
        for name in ("queue", "waiting", "waits", "sample", "render", "capture"):
            getattr(self, name).add_slices(getattr(other, name).slices(other.at(now)), now)

    # -- in the thread of the event loop --------------------------------------------------------------------------

    def arrived(self, spent: Spent, now: float) -> None:
        """Note a frame, and what it took in Blender."""
        self.sample.add(spent.sample, now)
        if spent.render or spent.capture:
            self.render.add(spent.render, now)
            self.capture.add(spent.capture, now)

    def queued(self, by: int, now: float) -> None:
        """Note that so many more frames wait for the consumer, or fewer."""
        self._queued += by
        self.queue.set(self._queued, now)

    # -- in the consumer's thread ---------------------------------------------------------------------------------

    def wait(self, now: float) -> None:
        """Note that a consumer has begun to wait."""
        self._consumers += 1
        self.waiting.set(1, now)

    def waited(self, now: float, began: float) -> None:
        """Note that a consumer has ceased to wait, with a frame or without.

        Args:
            now: When.
            began: What `wait` was told.
        """
        if self.started is not None:
            self._waited += max(0.0, now - max(began, self.started))
        self._consumers -= 1
        self.waiting.set(int(self._consumers > 0), now)

    def took(self, now: float) -> None:
        """Note that a consumer has got a frame. It has waited for it also where it gave up meanwhile."""
        if self.started is not None:
            self.waits.add(self._waited, now)
            self._waited = 0.0


def summary(timings: Sequence[Timing], started: float | None, now: float) -> dict[str, Any]:
    """Return what several passes have timed, by the fields of `PassStats`.

    Args:
        timings: Those of the passes.
        started: When they began to count. None: they have not.
        now: The present time, or that of their end.
    """

    def of(name: str) -> list[Slices]:
        return [getattr(timing, name).slices(timing.at(now)) for timing in timings]

    waits = of("waits")
    oldest = (_slice_of(now) - _SLICES + 1) * _SLICE
    window = 0.0 if started is None else now - max(started, oldest)
    count = _count(_total(waits))
    if count and started is not None and started >= oldest and any(timing.leads for timing in timings):
        count -= 1  # the window begins with this frame
    return {
        "window": window,
        "rate": count / window if window > 0 else 0.0,
        "occupancy": share(of("queue")),
        "waiting": share(of("waiting")),
        "seconds_waited": spread(waits),
        "seconds_sample": spread(of("sample")),
        "seconds_render": spread(of("render")),
        "seconds_capture": spread(of("capture")),
    }


def share(levels: Iterable[Slices]) -> float:
    """Return the share of the whole, from 0 to 1, that the levels had in the mean over time."""
    total = _total(levels)
    return total["part"] / total["whole"] if total.get("whole") else 0.0


def spread(durations: Iterable[Slices]) -> Spread:
    """Return how long things took."""
    total = _total(durations)
    seconds, shortest = total.pop(_SUM, 0.0), total.pop(None, 0)
    count = shortest + sum(total.values())
    if not count:
        return Spread()

    def quantile(fraction: float) -> float:
        rank = fraction * count - shortest
        if rank <= 0:
            return 0.0
        for number in sorted(total):
            rank -= total[number]
            if rank <= 0:
                break
        return float(2 ** ((number + 0.5) / _BINS))

    return Spread(seconds / count, quantile(0.5), quantile(0.9))


def _slice_of(now: float) -> int:
    return int(now // _SLICE)


def _count(durations: Mapping[Any, float]) -> float:
    return sum(number for key, number in durations.items() if key != _SUM)


def _total(noted: Iterable[Slices]) -> dict[Any, float]:
    total: dict[Any, float] = {}
    for slices in noted:
        for sums in slices.values():
            _add(total, sums)
    return total


def _add(total: dict[Any, float], more: Mapping[Any, float]) -> None:
    for key, value in more.items():
        total[key] = total.get(key, 0) + value
