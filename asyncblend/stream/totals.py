"""Totals: what a run has counted and timed, over all of its passes, also those that have ended."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

from .direct import Played
from .ends import Sender
from .idleness import Idleness
from .passes import Pass
from .stats import StreamStats
from .timekeeper import Timekeeper
from .timing import WINDOW


class Totals:
    """Counts for a dispatcher, which tells it of its passes and of what arrives.

    Args:
        blenders: The dispatcher's.
        hub: Counts what it has turned away.
    """

    def __init__(self, blenders: Idleness, hub: Sender) -> None:
        self.frames: dict[int, int] = dict.fromkeys(blenders.states, 0)
        """By instance: frames that arrived from it."""
        self.stale: int = 0
        """Frames dropped because their sender did not hold that lease any more, or because their pass had ended."""
        self.duplicates: int = 0
        """Those of them that the same Blender had sent already."""
        self.time: Timekeeper = Timekeeper(blenders, time.monotonic)
        self._blenders, self._hub = blenders, hub
        self._delivered = self._skipped = self._bytes = 0  # of passes that have ended
        self._ahead_until = -math.inf  # when the latest pass has ended that was rendered ahead

    def end(self, source: Pass) -> None:
        """Note that a pass has ended."""
        self._delivered += source.book.delivered
        self._skipped += source.book.skipped
        self._bytes += source.bytes
        self.time.end(source.timing)
        if not source.on_demand:
            self._ahead_until = time.monotonic()

    def rendered_ahead(self, passes: Sequence[Pass]) -> bool:
        """Return whether anything was rendered ahead lately, these passes being served.

        A stepped episode and its Blender wait for each other by nature.
        """
        lately = time.monotonic() - self._ahead_until < WINDOW
        return lately or not all(source.on_demand for source in passes)

    def stats(self, passes: Sequence[Pass], direct: Mapping[int, Played]) -> StreamStats:
        """Return a snapshot.

        Args:
            passes: Those that are served.
            direct: By instance what was played over lines, and is counted nowhere else yet.
        """
        each, restarts = [source.counts() for source in passes], self._blenders.restarts
        first = sum(one.first_consumed for one in direct.values())
        made = {number: one.made for number, one in direct.items()}

        def total(name: str) -> int:
            return sum(one[name] for one in each)

        return StreamStats(
            delivered=self._delivered + total("delivered") + sum(made.values()) + first,
            rendering=total("rendering") + sum(one.asked for one in direct.values()),
            queued=total("queued") - first,
            skipped=self._skipped + total("skipped"),
            bytes=self._bytes + total("bytes") + sum(one.bytes for one in direct.values()),
            restarts=sum(restarts.values()),
            instance_restarts=restarts,
            recycled=self._blenders.recycled,
            duplicates=self.duplicates,
            stale=self.stale,
            bad_messages=self._hub.bad_messages,
            refused=self._hub.refused,
            frames={number: count + made.get(number, 0) for number, count in self.frames.items()},
            state=self._blenders.states,
            **self.time.summary(),
        )
