"""Finds the best of several fleets: rounds of short turns, until the time is up or only one fleet is left."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ...config import StreamConfig
from ...errors import AsyncblendError
from .blenders import Blenders
from .judging import Trial, best, staying
from .settings import Kind, Setting
from .usage import available

_TURNS = 5
"""Into how many turns the time of a fleet is divided. A fleet that stays has the time of those that were dropped too."""
_SHARE = 0.8  # of the memory that is available, which the Blenders may take
_MOST = 64  # Blenders that are open at once, unless a single fleet has more: all of them must be started first


@dataclass
class Found:
    """What a search found."""

    best: Trial
    """The one to advise."""
    level: list[Trial]
    """Others that are as fast, but for what may be noise."""
    trials: list[Trial]
    """All, in the order in which they were asked for."""
    left_out: dict[Setting, str] = field(default_factory=dict)
    """Those that were not tried, and why not."""

    @property
    def others(self) -> float:
        """The share of the processor, from 0 to 1, that other programs took, in the median over all turns."""
        return statistics.median(turn.others for one in self.trials for turn in one.turns.values())


class Search:
    """One search. `run` it once.

    Args:
        config: What is rendered.
        tried: The fleets, at least one.
        seconds: Time to measure, for each of them. The last round is not cut short. The time that it takes to start
            Blenders does not count.
        gpus: The GPUs that fleets on the GPU use.
        turn_begins: Called before each turn with the number of the round, from 1 on, and the fleet.
    """

    def __init__(
        self,
        config: StreamConfig,
        tried: Sequence[Setting],
        seconds: float,
        *,
        gpus: Sequence[int | str] = (),
        turn_begins: Callable[[int, Setting], None] = lambda number, setting: None,
    ) -> None:
        self._seconds, self._turn_begins = seconds, turn_begins
        self.trials: list[Trial] = [Trial(setting) for setting in tried]
        self.left: list[Trial] = []
        """The fleets that take turns now."""
        self.round: int = 0
        """The number of the present round; 0 before the first one."""
        self.turn: Setting | None = None
        """Whose turn it is. None: Blenders are started."""
        self._left_out: dict[Setting, str] = {}
        self._blenders = Blenders(config, gpus)
        self._index = config.start  # of the next round's first sample

    async def run(self) -> Found:
        """Search, and return what was found.

        If not all Blenders can be open at once, the fleets are tried in several heats: first as many as can, then the
        best of them again, with the next ones.

        Raises:
            AsyncblendError: As starting a stream and iterating over it raise. If Blenders do not start on the GPU, but
                others do, those are tried alone.
        """
        chosen: list[Trial] = []
        level: list[Trial] = []
        async with self._blenders:
            waiting = deque(await self._startable())
            room = self._room(waiting[0].setting.kind)
            while waiting:
                self.left = [*chosen, *_as_many_as_fit(waiting, chosen, room)]
                if self.left == chosen:
                    self._left_out[waiting.popleft().setting] = "the memory does not suffice"
                    continue
                await self._heat()
                winner, as_fast = best(self.left)
                if chosen and winner is chosen[0]:  # those of earlier heats are still as fast
                    as_fast = [*level, *as_fast]
                chosen, level = [winner], as_fast
        return Found(chosen[0], level, [one for one in self.trials if one.turns], self._left_out)

    @property
    def starting(self) -> int:
        """How many Blenders are being started, and have not rendered yet."""
        return self._blenders.starting

    async def _startable(self) -> list[Trial]:
        """Start the first Blender, and one on the GPU. Return the trials without those of Blenders that do not start."""
        first, *rest = dict.fromkeys(one.setting.kind for one in self.trials)
        await self._blenders.hold({first: 1})
        on_gpu = next((kind for kind in rest if kind.gpu and not first.gpu), None)
        if on_gpu is None:
            return self.trials
        try:
            await self._blenders.hold({first: 1, on_gpu: 1})
        except AsyncblendError as error:
            why = str(error).strip().splitlines()[-1]
            self._left_out = {one.setting: why for one in self.trials if one.setting.gpu}
        return [one for one in self.trials if one.setting not in self._left_out]

    def _room(self, kind: Kind) -> float:
        """Return how many Blenders the memory suffices for, now that one of this kind is open."""
        free, each = available(), self._blenders.memory(kind)
        return math.inf if free is None or not each else 1 + _SHARE * free / each

    async def _heat(self) -> None:
        """Let the fleets that are left take turns, and drop those that are clearly slower."""
        self.turn = None
        await self._blenders.hold(_needed(self.left))
        for one in self.left:
            each = self._blenders.memory(one.setting.kind)
            one.memory = each and each * one.setting.instances
        several = len(self.left) > 1
        ends = time.perf_counter() + self._seconds * len(self.left)
        while True:
            await self._take_turns()
            if time.perf_counter() >= ends:
                return
            self.left = staying(self.left)
            if several and len(self.left) == 1:
                return

    async def _take_turns(self) -> None:
        self.round += 1
        after = self._index
        # Every other round goes backwards, so that no fleet always has its turn after the same one.
        for one in self.left if self.round % 2 else self.left[::-1]:
            self.turn = one.setting
            self._turn_begins(self.round, one.setting)
            one.turns[self.round], end = await self._blenders.turn(one.setting, self._index, self._seconds / _TURNS)
            after = max(after, end)
        self._index = after  # all fleets render the same samples in a round, and others in the next one


def _as_many_as_fit(waiting: deque[Trial], beside: Sequence[Trial], room: float) -> list[Trial]:
    """Take trials for which there is room beside others: at least one, if the memory suffices or nothing is beside."""
    taken: list[Trial] = []
    while waiting:
        open_now = sum(_needed([*beside, *taken]).values())
        together = sum(_needed([*beside, *taken, waiting[0]]).values())
        if open_now and together > max(open_now, min(room, _MOST) if taken else room):
            break
        taken.append(waiting.popleft())
    return taken


def _needed(trials: Iterable[Trial]) -> dict[Kind, int]:
    """Return how many Blenders of each kind must be open for these trials."""
    needed: dict[Kind, int] = {}
    for one in trials:
        needed[one.setting.kind] = max(needed.get(one.setting.kind, 0), one.setting.instances)
    return needed
