"""Directs: which episodes of a run are played over lines, in the event loop's thread."""

from __future__ import annotations

import time
from collections.abc import Mapping, MutableMapping

from ..wire.launch import Life
from ..wire.line import Line
from ..wire.protocol import Name
from .direct import Direct, Played
from .ends import Blenders
from .episode_pass import EpisodePass
from .holding import Held
from .passes import Pass


class Directs:
    """Begins and ends the direct ways of leases, and notes in book and fleet what was played.

    Args:
        fleet: Is told what messages would have told it.
        lines: The host's ends of the Blenders' lines.
        frames: Counts the frames of each instance.
    """

    def __init__(self, fleet: Blenders, lines: MutableMapping[Life, Line], frames: MutableMapping[int, int]) -> None:
        self._fleet, self._lines, self._frames = fleet, lines, frames
        self._open: dict[int, tuple[Direct, Held]] = {}  # by pass, which has one lease
        self._told: dict[int, float | None] = {}  # likewise: when the step began that the fleet was told of

    def may_begin(self, life: Life, source: Pass) -> bool:
        """Whether this Blender may be asked to play an episode of this pass directly."""
        return isinstance(source, EpisodePass) and source.wants_line and life in self._lines

    def begin(self, life: Life, one: Held, step: int) -> None:
        """Begin the direct way of a lease, with the frame of this step, if the pass wants it."""
        source, lease = one.source, one.lease
        if not self.may_begin(life, source) or self._lines[life].reading:  # an episode was closed while one waited
            return
        assert isinstance(source, EpisodePass), "may_begin has looked"
        line, age = self._lines[life], source.age(lease)
        source.direct = Direct(line, life, one.name, index=lease.index, age=age, first=step, asked=source)
        source.timing.queued(-1, time.monotonic())  # the consumer takes its frame without a word to the loop
        self._open[source.number] = source.direct, one
        self._told[source.number] = None

    def find(self, name: Name) -> Direct | None:
        """Return the direct way of a lease, if there is one."""
        if not self._open:
            return None
        direct, _ = self._open.get(name[0], (None, None))
        return direct if direct is not None and direct.name == name else None

    def played_by(self, direct: Direct) -> Held | None:
        """Return the lease that goes this way, or None if the way has ended."""
        found, one = self._open.get(direct.name[0], (None, None))
        return one if found is direct else None

    def end(self, source: Pass) -> None:
        """End the direct way of a pass, if there is one, and note what was played."""
        if source.number not in self._open:
            return
        direct, one = self._open.pop(source.number)
        assert isinstance(source, EpisodePass), "only such a pass goes directly"
        source.direct = None
        played = direct.end()
        source.book.advance(one.lease, played.made, first_consumed=played.first_consumed, asked=played.asked)
        source.bytes += played.bytes
        if not played.first_consumed:
            source.timing.queued(1, time.monotonic())
        self._frames[direct.life.instance] += played.made
        told = self._told.pop(source.number)
        if played.made:
            self._fleet.answered(direct.life, more=True, count=played.made)
        if not played.asked:
            self._fleet.working_since(direct.life, None)
        elif told is None:
            self._fleet.goes_on(direct.life)

    def end_all(self) -> None:
        """End all direct ways."""
        for _, one in list(self._open.values()):
            self.end(one.source)

    def give_up(self, life: Life) -> None:
        """Ask this Blender no more, because its line is broken."""
        if line := self._lines.pop(life, None):
            line.end()

    def watch(self) -> None:
        """Tell the fleet at which steps its Blenders are, as nobody told it when they began."""
        for number, (direct, _) in self._open.items():
            # Only what has changed, because the fleet leaves out times in which the host itself stood still.
            if (began := direct.at_work_since) != self._told[number]:
                self._told[number] = began
                self._fleet.working_since(direct.life, began)

    @property
    def played(self) -> Mapping[int, Played]:
        """By instance: what was played and is counted nowhere else yet."""
        return {direct.life.instance: direct.played for direct, _ in list(self._open.values())}
