"""Liveness: tells whether a Blender still makes progress. Pure: the caller has the clock."""

from __future__ import annotations

from ..config import Timeouts


class Liveness:
    """Three separate budgets of one life: start (until READY), beat (the process lives), frame (the script makes progress).

    Waiting for a lease is never a hang. All times are seconds of one monotonic clock.
    """

    def __init__(self, timeouts: Timeouts, now: float) -> None:
        self._timeouts = timeouts
        self._started = now
        self._beat: float | None = None
        self._progress: float | None = None  # when it got its lease, or gave its last frame with more to do
        self._ready = False

    @property
    def ready(self) -> bool:
        """Whether the script has called serve."""
        return self._ready

    @property
    def working(self) -> bool:
        """Whether it holds a lease."""
        return self._progress is not None

    def started_at(self, now: float) -> None:
        """Note that the process runs. The start budget begins."""
        self._started = now

    def beat_at(self, now: float) -> None:
        """Note a sign of life."""
        self._beat = now

    def ready_at(self, now: float) -> None:
        """Note that the script called serve."""
        self._ready = True
        self._beat = now

    def leased_at(self, now: float) -> None:
        """Note a lease. If it is the only one, the frame budget begins."""
        if self._progress is None:
            self._progress = now

    def answered_at(self, now: float, *, more: bool) -> None:
        """Note that it answered a lease. `more`: it holds another."""
        self._beat = now
        self._progress = now if more else None

    def working_since(self, began: float | None) -> None:
        """Note when it began what it is at. None: it has done all that it may do of what it holds."""
        self._progress = began

    def stalled(self, gap: float) -> None:
        """Leave out `gap` seconds in which the host itself stood still (suspended, debugged)."""
        self._started += gap
        if self._beat is not None:
            self._beat += gap
        if self._progress is not None:
            self._progress += gap

    def overdue(self, now: float) -> str | None:
        """Return the budget that is spent ("start", "beat" or "frame"), or None while all is well."""
        if not self._ready and now - self._started > self._timeouts.start:
            return "start"
        # Loading Blender and the scene may hold the interpreter lock, so that no thread can beat before it serves.
        if self._ready and self._beat is not None and now - self._beat > self._timeouts.beat:
            return "beat"
        if self._progress is not None and now - self._progress > self._timeouts.frame:
            return "frame"
        return None
