"""Liveness, on hand-made timelines."""

from __future__ import annotations

import math

import pytest

from asyncblend.config import Timeouts
from asyncblend.fleet.liveness import Liveness

TIMEOUTS = Timeouts(start=100, beat=10, frame=50)


def life(now: float = 0) -> Liveness:
    return Liveness(TIMEOUTS, now)


def serving(now: float = 0, timeouts: Timeouts = TIMEOUTS) -> Liveness:
    liveness = Liveness(timeouts, now)
    liveness.ready_at(now)
    return liveness


def test_start_runs_until_ready() -> None:
    """From the launch to READY; its last moment is in time."""
    liveness = life(1000)
    assert not liveness.ready
    assert liveness.overdue(1100) is None
    assert liveness.overdue(1100.1) == "start"
    liveness.ready_at(1100)
    assert liveness.ready
    assert liveness.overdue(1100.1) is None


def test_beats_do_not_lengthen_the_start() -> None:
    """A script that lives but never serves is overdue all the same."""
    liveness = life()
    for now in range(0, 110, 5):
        liveness.beat_at(now)
    assert liveness.overdue(100) is None
    assert liveness.overdue(101) == "start"


def test_no_beat_is_missed_before_it_serves() -> None:
    """Blender may take all of its start to come up, and to load a scene, in which no thread of Python gets a turn."""
    liveness = life()
    liveness.beat_at(10)
    assert liveness.overdue(99) is None
    liveness.ready_at(99)
    assert liveness.overdue(109) is None
    assert liveness.overdue(109.1) == "beat"


def test_ready_is_a_sign_of_life() -> None:
    """The beat's budget runs from READY on, if nothing came before."""
    liveness = serving(5)
    assert liveness.overdue(15) is None
    assert liveness.overdue(15.1) == "beat"


def test_each_beat_starts_the_budget_anew() -> None:
    """A process that beats is never overdue while it waits for a lease, however long."""
    liveness = serving()
    for now in range(0, 10_000, 10):
        liveness.beat_at(now)
        assert liveness.overdue(now + 10) is None
    assert not liveness.working
    assert liveness.overdue(9990 + 10.1) == "beat"


def test_a_frame_has_its_budget_from_the_lease() -> None:
    """Beats do not help a script that makes no progress."""
    liveness = serving()
    liveness.leased_at(20)
    assert liveness.working
    liveness.beat_at(70)
    assert liveness.overdue(70) is None
    assert liveness.overdue(70.1) == "frame"


def test_a_second_lease_gives_no_more_time() -> None:
    """The budget is for one sample: it runs from the first lease, or from the last frame."""
    liveness = serving()
    liveness.leased_at(20)
    liveness.leased_at(60)
    liveness.beat_at(70)
    assert liveness.overdue(70.1) == "frame"


def test_each_frame_starts_the_budget_anew() -> None:
    """While it holds another lease; and an answer is a sign of life too."""
    liveness = serving()
    liveness.leased_at(0)
    liveness.leased_at(0)
    liveness.answered_at(45, more=True)
    assert liveness.working
    assert liveness.overdue(55) is None
    assert liveness.overdue(55.1) == "beat"
    liveness.beat_at(95)
    assert liveness.overdue(95) is None
    assert liveness.overdue(95.1) == "frame"


def test_waiting_for_a_lease_is_no_hang() -> None:
    """With the last frame the budget ends, and it starts again with the next lease."""
    liveness = serving()
    liveness.leased_at(0)
    liveness.answered_at(40, more=False)
    assert not liveness.working
    liveness.beat_at(1000)
    assert liveness.overdue(1000) is None
    liveness.leased_at(1000)
    liveness.beat_at(1050)
    assert liveness.overdue(1050) is None
    assert liveness.overdue(1050.1) == "frame"


def test_the_dead_is_told_from_the_slow() -> None:
    """Without beats the process is stopped or dead, whatever the frame's budget says."""
    liveness = serving()
    liveness.leased_at(0)
    assert liveness.overdue(60) == "beat"


@pytest.mark.parametrize(
    ("budget", "limit"), [("start", 100.0), ("beat", 10.0), ("frame", 50.0)], ids=["start", "beat", "frame"]
)
def test_a_stall_of_the_host_does_not_count(budget: str, limit: float) -> None:
    """Each budget that runs is longer by the time that the host itself stood still."""
    liveness = life() if budget == "start" else serving()
    if budget == "beat":
        liveness.beat_at(0)
    if budget == "frame":
        liveness.leased_at(0)
    liveness.stalled(1000)
    if budget == "frame":
        liveness.beat_at(1000 + limit)
    assert liveness.overdue(1000 + limit) is None
    assert liveness.overdue(1000 + limit + 0.1) == budget


def test_a_stall_starts_no_budget() -> None:
    """What did not run before does not run after."""
    liveness = life()
    liveness.stalled(1000)
    assert not liveness.working
    assert liveness.overdue(1090) is None


def test_for_ever_is_for_ever() -> None:
    """Infinite budgets are never spent."""
    for_ever = Timeouts(start=math.inf, beat=math.inf, frame=math.inf)
    liveness = Liveness(for_ever, 0)
    assert liveness.overdue(1e12) is None
    liveness.ready_at(0)
    liveness.leased_at(0)
    assert liveness.overdue(1e12) is None
