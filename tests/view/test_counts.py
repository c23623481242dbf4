"""What is counted while one looks: from the first look on, and over the workers of one epoch after another."""

from __future__ import annotations

from asyncblend.stream.frame import Frame
from asyncblend.tap.moment import Moment
from asyncblend.viewer.counts import Counts

FRAME = Frame({}, index=0, instance=0)


def counts(*came: int) -> list[tuple[int, int]]:
    """Return what was counted, and what of it was not shown, after each moment. Each has a frame."""
    seen, found = Counts(), list[tuple[int, int]]()
    for count in came:
        seen.count(Moment(FRAME, count))
        found.append((seen.came, seen.not_shown))
    return found


def test_what_came_before_the_first_look_is_not_counted() -> None:
    """A training may have taken thousands by then, which nobody has missed."""
    assert counts(5000, 5001, 5005) == [(1, 0), (2, 0), (6, 3)]


def test_each_worker_counts_anew() -> None:
    """What the one before has counted stays."""
    assert counts(1, 10, 2, 5) == [(1, 0), (10, 8), (12, 9), (15, 11)]


def test_moments_without_a_frame_come_first() -> None:
    """A stream that has just been started has none yet."""
    seen = Counts()
    seen.count(Moment())
    seen.count(Moment(FRAME, 3))
    assert (seen.came, seen.not_shown) == (3, 2)
