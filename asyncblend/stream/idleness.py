"""Idleness: a dispatcher's Blenders, of which it is noted how long they wait for a lease. The caller has the clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..wire.launch import Life
from .ends import Blenders
from .timing import Durations, Level


class Idleness(Blenders):
    """Passes on what a dispatcher tells its Blenders, and notes from it when each of them has nothing to do.

    Args:
        blenders: Those of the dispatcher.
        clock: Monotonic time in seconds.
    """

    def __init__(self, blenders: Blenders, clock: Callable[[], float]) -> None:
        self._blenders, self._clock = blenders, clock
        self._since: dict[Life, float | None] = {}  # of those that serve: since when each waits. None: it has work
        self._idle = 0
        self.level: Level = Level(0, 0)
        self.waits: Durations = Durations()

    def gone(self, life: Life) -> None:
        """Note that a life is over."""
        now = self._clock()
        if self._since.pop(life, None) is not None:  # its wait has not ended with a lease, and is no wait for one
            self._idle -= 1
            self.level.set(self._idle, now)
        self.level.set_whole(len(self._since), now)

    @property
    def states(self) -> dict[int, str]:
        return self._blenders.states

    @property
    def restarts(self) -> Mapping[int, int]:
        return self._blenders.restarts

    @property
    def recycled(self) -> int:
        return self._blenders.recycled

    def ready_lives(self) -> list[Life]:
        lives = self._blenders.ready_lives()
        if len(lives) != len(self._since):
            for life in lives:
                if life not in self._since:
                    self._since[life] = None
                    self._rests(life)
            self.level.set_whole(len(self._since), self._clock())
        return lives

    def leased(self, life: Life) -> None:
        if self._idle:
            self._works(life)
        self._blenders.leased(life)

    def goes_on(self, life: Life) -> None:
        if self._idle:
            self._works(life)
        self._blenders.goes_on(life)

    def working_since(self, life: Life, began: float | None) -> None:
        if began is None:
            self._rests(life)
        else:
            self._works(life)
        self._blenders.working_since(life, began)

    def answered(self, life: Life, *, more: bool, count: int = 1) -> None:
        if not more:
            self._rests(life)
        self._blenders.answered(life, more=more, count=count)

    def _works(self, life: Life) -> None:
        if (since := self._since.get(life)) is not None:
            now = self._clock()
            self._since[life] = None
            self._idle -= 1
            self.level.set(self._idle, now)
            self.waits.add(now - since, now)

    def _rests(self, life: Life) -> None:
        if self._since.get(life, 0.0) is None:
            now = self._since[life] = self._clock()
            self._idle += 1
            self.level.set(self._idle, now)
