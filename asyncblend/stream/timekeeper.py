"""Timekeeper: what is timed of a whole run, from the timings of its passes and the idleness of its Blenders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..wire.protocol import Spent
from .idleness import Idleness
from .timing import Timing, share, spread, summary


class Timekeeper:
    """Begins to count with the run's first frame: until then Blender starts, and nobody is too slow.

    Args:
        blenders: The run's.
        clock: Monotonic time in seconds.
    """

    def __init__(self, blenders: Idleness, clock: Callable[[], float]) -> None:
        self._blenders, self._clock = blenders, clock
        self._past = Timing(0)  # of the passes that have ended
        self._living: list[Timing] = []

    def begin(self, timing: Timing) -> None:
        """Time another pass, until `end`."""
        self._living.append(timing)
        if self._past.started is not None:
            timing.start(self._clock())

    def frame(self, timing: Timing, spent: Spent | None) -> None:
        """Note a frame of a pass, and what it took in Blender. None: that is not known."""
        now = self._clock()
        if self._past.started is None:
            self._past.started = now
            timing.leads = True
            self._blenders.level.start(now)
            for one in self._living:
                one.start(now)
        if spent is not None:
            timing.arrived(spent, now)

    def end(self, timing: Timing) -> None:
        """Note that a pass has ended."""
        now = self._clock()
        self._living.remove(timing)
        timing.end(now)
        self._past.absorb(timing, now)

    def close(self) -> None:
        """Count no more."""
        self._past.end(self._clock())

    def summary(self) -> dict[str, Any]:
        """Return what was timed over the latest minute, by the fields of `StreamStats`."""
        now, idleness = self._past.at(self._clock()), self._blenders
        return {
            **summary([self._past, *self._living], self._past.started, now),
            "idle": share([idleness.level.slices(now)]),
            "seconds_idle": spread([idleness.waits.slices(now)]),
        }
