"""Counts: how many frames came while one looks, and how many of them were drawn."""

from __future__ import annotations

from ..tap.moment import Moment


class Counts:
    """Adds up the counts of moments, from the first one on."""

    def __init__(self) -> None:
        self.shown: int = 0
        """Frames that were drawn."""
        self.came: int = 0
        """Frames that the consumer took."""
        self._base: int | None = None  # what is added to a moment's count for ours
        self._last = 0  # the count of the moment before

    @property
    def not_shown(self) -> int:
        """How many frames came that were not drawn."""
        return self.came - self.shown

    def count(self, moment: Moment) -> None:
        """Add what has come since the moment before."""
        new = int(moment.frame is not None)
        if self._base is None:
            self._base = new - moment.came  # a training may have taken many before it was looked at
        elif moment.came < self._last:
            self._base += self._last  # the next worker of a DataLoader counts anew
        self._last = moment.came
        self.came = self._base + moment.came
        self.shown += new
