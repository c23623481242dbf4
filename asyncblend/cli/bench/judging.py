"""Compares fleets by what they did in the same rounds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .settings import Setting

ENOUGH = 3
"""Rounds from which on a fleet may be dropped: in fewer of them, one slow turn could decide."""
_SLOWER = 0.85  # of the fastest one's rate: what is below is clearly slower
_LEVEL = 0.95  # what is above is as fast
_NEAR = 0.9  # what is above is as fast too, if it was the faster one in a third of the rounds


class Turn(NamedTuple):
    """What a fleet did in one round."""

    rate: float
    """Frames per second."""
    processor: float | None = None
    """The share of the cores, from 0 to 1, that all Blenders and this program took. None: unknown."""
    others: float = 0.0
    """The share of the machine's cores that other programs took, as far as it is known."""


@dataclass
class Trial:
    """What was measured of one fleet."""

    setting: Setting
    turns: dict[int, Turn] = field(default_factory=dict)
    """By the number of the round."""
    memory: float | None = None
    """Bytes of all its Blenders. None: unknown."""

    @property
    def rates(self) -> list[float]:
        """Frames per second, of each turn."""
        return [turn.rate for turn in [*self.turns.values()]]  # a copy: another thread shows them while turns come

    @property
    def rate(self) -> float:
        """The median of the rates."""
        return statistics.median(self.rates)

    @property
    def processor(self) -> float | None:
        """The median of the shares of the processor."""
        known = [turn.processor for turn in self.turns.values() if turn.processor is not None]
        return statistics.median(known) if known else None

    def ratio(self, other: Trial) -> float:
        """Return how many times as fast as the other one this is: the median over the rounds that both were in."""
        return statistics.median(self._ratios(other)) if self.turns.keys() & other.turns else self.rate / other.rate

    def as_fast_as(self, other: Trial) -> bool:
        """Whether what there is between this and a faster one is too little to matter, or may be noise."""
        if not self.turns.keys() & other.turns:
            return self.ratio(other) >= _LEVEL
        ratios = self._ratios(other)
        ahead = sum(ratio >= 1 for ratio in ratios) / len(ratios)
        return self.ratio(other) >= (_NEAR if len(ratios) >= ENOUGH and ahead >= 1 / 3 else _LEVEL)

    def _ratios(self, other: Trial) -> list[float]:
        return [turn.rate / other.turns[number].rate for number, turn in self.turns.items() if number in other.turns]


def fastest(trials: Sequence[Trial]) -> Trial:
    """Return the trial that was fastest, in the median over the rounds that all of them were in, at least one.

    In each round it counts how a rate compares with those of the others, so that rounds on a busier machine count as
    much as the rest.
    """
    level = {n: statistics.fmean(math.log(one.turns[n].rate) for one in trials) for n in _common(trials)}
    return max(trials, key=lambda one: statistics.median(math.log(one.turns[n].rate) - level[n] for n in level))


def staying(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials without those that are clearly slower than the fastest."""
    if len(_common(trials)) < ENOUGH:
        return list(trials)
    leader = fastest(trials)
    return [one for one in trials if one.ratio(leader) >= _SLOWER]


def best(trials: Sequence[Trial]) -> tuple[Trial, list[Trial]]:
    """Return the trial to advise, and those that were as fast as the fastest one too.

    Of all that are as fast, it is the one with the fewest instances, because they take memory; then one that leaves the
    GPU to the training, then one with fewer threads.
    """
    leader = fastest(trials)
    level = [one for one in trials if one is leader or one.as_fast_as(leader)]
    chosen = min(level, key=lambda one: (one.setting.instances, one.setting.gpu, one.setting.threads))
    return chosen, [one for one in level if one is not chosen]


def _common(trials: Sequence[Trial]) -> set[int]:
    return set.intersection(*(set(one.turns) for one in trials))
