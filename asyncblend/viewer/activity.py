"""Activity: what the stream does, as rerun shows it: lines over time, the states of the Blenders, and the log."""

from __future__ import annotations

import time
from typing import Any

import rerun as rr

from ..tap.moment import Moment
from .counts import Counts

RATE, SHARE, STATES, LOG = "activity/rate", "activity/share", "activity/blenders", "log"
"""Where rerun has frames a second, shares from 0 to 1, states, and the log."""

_WINDOW = 1.0  # seconds over which frames are counted, at least
_LEVELS = {"WARNING": "WARN"}  # rerun's names, where they are not Python's
_COLOURS = {
    "new": (150, 150, 150),
    "starting": (240, 200, 60),
    "ready": (80, 190, 120),
    "idle": (80, 150, 230),
    "backoff": (240, 140, 50),
    "stopping": (150, 150, 150),
    "stopped": (110, 110, 110),
    "failed": (225, 70, 70),
}
"""By state of an instance."""


class Activity(Counts):
    """Turns the counts of moments into entities."""

    def __init__(self) -> None:
        super().__init__()
        self.rate: float = 0.0
        """Frames a second that the consumer took lately."""
        self._since, self._then, self._drawn_then = time.monotonic(), 0, 0
        self._states: dict[int, str] = {}

    def entities(self, moment: Moment) -> dict[str, list[Any]]:
        """Return what has changed, by path."""
        self.count(moment)
        found: dict[str, list[Any]] = {}
        if (seconds := (now := time.monotonic()) - self._since) >= _WINDOW:
            self.rate = (self.came - self._then) / seconds
            drawn = (self.shown - self._drawn_then) / seconds
            found[f"{RATE}/taken"] = [rr.Scalars(self.rate)]
            found[f"{RATE}/shown"] = [rr.Scalars(drawn)]
            self._since, self._then, self._drawn_then = now, self.came, self.shown
        if self.came:
            found[f"{SHARE}/not_shown"] = [rr.Scalars(self.not_shown / self.came)]
        if (doing := moment.doing) is None:
            return found
        found[f"{SHARE}/queue"] = [rr.Scalars(min(1.0, doing.queued / max(1, doing.queue_size)))]
        for number, state in doing.state.items():
            if self._states.get(number) != state:
                self._states[number] = state
                found[f"{STATES}/{number}"] = [rr.StateChange(state=state)]
        return found


def lines(moment: Moment) -> list[Any]:
    """Return the lines of the log."""
    return [rr.TextLog(line.text, level=_LEVELS.get(line.level, line.level)) for line in moment.log]


def state_colours() -> Any:
    """Return how the states are drawn."""
    return rr.StateConfiguration(values=list(_COLOURS), labels=list(_COLOURS), colors=list(_COLOURS.values()))
