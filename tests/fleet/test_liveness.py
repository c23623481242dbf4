"""The three budgets of a life, on hand-made timelines."""

from __future__ import annotations

import math

import pytest

from asyncblend.config import Timeouts
from asyncblend.fleet.liveness import Liveness

TIMEOUTS = Timeouts(start=100, beat=10, frame=50)


def life(now: float = 0) -> Liveness:
    """Return a life that was launched at `now`."""
    return Liveness(TIMEOUTS, now)


def serving(now: float = 0) -> Liveness:
    """Return a life that was launched and serves at `now`."""
    liveness = life(now)
    liveness.ready_at(now)
    return liveness


def test_start_runs_until_ready() -> None:
    """The start budget runs from the launch to READY, and includes its last moment."""
    liveness = life(1000)
    assert not liveness.ready
    assert liveness.overdue(1100) is None
    assert liveness.overdue(1100.1) == "start"
    liveness.ready_at(1100)
    assert liveness.ready
    assert liveness.overdue(1100.1) is None


def test_beats_do_not_lengthen_the_start() -> None:
    """A script that beats but never serves is overdue at the end of the start budget."""
    liveness = life()
    for now in range(0, 110, 5):
        liveness.beat_at(now)
    assert liveness.overdue(100) is None
    assert liveness.overdue(101) == "start"


def test_no_beat_is_missed_before_it_serves() -> None:
    """The beat budget begins at READY, because loading a scene may block every Python thread."""
    liveness = life()
    liveness.beat_at(10)
    assert liveness.overdue(99) is None
    liveness.ready_at(99)
    assert liveness.overdue(109) is None
    assert liveness.overdue(109.1) == "beat"


def test_ready_is_a_sign_of_life() -> None:
    """The beat budget runs from READY on even if no beat came."""
    liveness = serving(5)
    assert liveness.overdue(15) is None
    assert liveness.overdue(15.1) == "beat"


def test_each_beat_starts_the_budget_anew() -> None:
    """A process that beats is not overdue while it waits for a lease, however long."""
    liveness = serving()
    for now in range(0, 10_000, 10):
        liveness.beat_at(now)
        assert liveness.overdue(now + 10) is None
    assert not liveness.working
    assert liveness.overdue(9990 + 10.1) == "beat"


def test_a_frame_has_its_budget_from_the_lease() -> None:
    """The frame budget runs from the lease, and beats do not extend it."""
    liveness = serving()
    liveness.leased_at(20)
    assert liveness.working
    liveness.beat_at(70)
    assert liveness.overdue(70) is None
    assert liveness.overdue(70.1) == "frame"


def test_a_second_lease_gives_no_more_time() -> None:
    """A further lease does not extend the frame budget of the sample that is being rendered."""
    liveness = serving()
    liveness.leased_at(20)
    liveness.leased_at(60)
    liveness.beat_at(70)
    assert liveness.overdue(70.1) == "frame"


def test_each_frame_starts_the_budget_anew() -> None:
    """An answer starts the frame budget anew while another lease is held, and counts as a beat."""
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
    """The frame budget ends with the last answer and begins again with the next lease."""
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
    """A process without beats is overdue for its beat, even while its frame budget is spent too."""
    liveness = serving()
    liveness.leased_at(0)
    assert liveness.overdue(60) == "beat"


@pytest.mark.parametrize(
    ("budget", "limit"), [("start", 100.0), ("beat", 10.0), ("frame", 50.0)], ids=["start", "beat", "frame"]
)
def test_a_stall_of_the_host_does_not_count(budget: str, limit: float) -> None:
    """Each running budget is extended by the time in which the host itself stood still."""
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
    """A stall starts no budget that did not run before."""
    liveness = life()
    liveness.stalled(1000)
    assert not liveness.working
    assert liveness.overdue(1090) is None


def test_for_ever_is_for_ever() -> None:
    """An infinite budget is never spent."""
    for_ever = Timeouts(start=math.inf, beat=math.inf, frame=math.inf)
    liveness = Liveness(for_ever, 0)
    assert liveness.overdue(1e12) is None
    liveness.ready_at(0)
    liveness.leased_at(0)
    assert liveness.overdue(1e12) is None
