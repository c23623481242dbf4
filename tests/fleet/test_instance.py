"""Instance, on hand-made timelines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncblend.config import RestartPolicy, StreamConfig, Timeouts
from asyncblend.fleet.instance import Instance
from asyncblend.wire.launch import Life

POLICY = RestartPolicy(max_restarts=3, window=60, backoff=1, max_backoff=4, jitter=0)
TIMEOUTS = Timeouts(start=100, beat=10, frame=50, stop=5)


def instance(**options: object) -> Instance:
    """Number 4, never started."""
    return Instance(4, StreamConfig(script="x.py", **{"restart": POLICY, "timeouts": TIMEOUTS, **options}))  # type: ignore[arg-type]


def serving(now: float = 0, **options: object) -> Instance:
    one = instance(**options)
    one.start(now)
    one.beat(now, 0)
    one.ready(now)
    return one


def told(one: Instance) -> tuple[str, bool, bool]:
    """What others ask of it: its state, whether it has a process, whether it takes leases."""
    return one.state, one.alive, one.serves


def test_a_life_from_its_start_to_its_end() -> None:
    """Each event has its state, and each life its epoch."""
    one = instance()
    assert told(one) == ("new", False, False)
    assert one.start(0) == Life(4, 0)
    assert told(one) == ("starting", True, False)
    one.ready(1)
    assert told(one) == ("idle", True, True)
    one.leased(2)
    one.leased(2)
    assert told(one) == ("ready", True, True)
    one.answered(3, more=True)
    assert told(one) == ("ready", True, True)
    one.answered(3, more=False)
    assert told(one) == ("idle", True, True)
    assert one.ended(4) == 1
    assert told(one) == ("backoff", False, False)
    assert one.restarts == 1
    assert one.start(5) == Life(4, 1)
    assert told(one) == ("starting", True, False)
    assert not one.served
    one.close()
    assert told(one) == ("stopped", False, False)


def test_a_crash_loop_ends_in_failed() -> None:
    """So many restarts, with growing delays, and no more."""
    one = instance()
    delays = []
    for second in range(4):
        one.start(second)
        delays.append(one.ended(second))
    assert delays == [1, 2, 4, None]
    assert (one.state, one.restarts) == ("failed", 3)
    one.close()
    assert one.state == "failed"  # that stays visible after the end


def test_what_cannot_heal_is_not_tried_again() -> None:
    """Not even once."""
    one = instance()
    one.start(0)
    assert one.ended(1, "hopeless") is None
    assert (one.state, one.restarts) == ("failed", 0)


def test_what_is_mended_counts_for_nothing() -> None:
    """At once, and without a restart used up, however often."""
    one = instance()
    for second in range(10):
        one.start(second)
        assert one.ended(second, "blameless") == 0
    assert (one.state, one.restarts) == ("stopped", 0)


@pytest.mark.parametrize(
    ("state", "budget", "limit"), [("starting", "start", 100), ("idle", "beat", 10), ("ready", "frame", 50)]
)
def test_each_state_has_its_budget(state: str, budget: str, limit: float) -> None:
    """To the second; then it is told once that it must be killed, and what for."""
    one = instance() if state == "starting" else serving()
    if state == "starting":
        one.start(0)
    if state == "ready":
        one.leased(0)
    for now in range(int(limit) + 1):
        if state == "ready" or (state == "starting" and now > 1):
            one.beat(now, 0)
        assert not one.overdue(now)
    assert one.state == state
    assert one.overdue(limit + 0.1)
    assert (one.state, one.condemned, one.serves) == ("stopping", budget, False)
    assert not one.overdue(limit + 1)
    assert one.ended(limit + 2) == 1


def test_waiting_for_a_lease_is_no_hang() -> None:
    """For hours, as long as it beats."""
    one = serving()
    for now in range(0, 36_000, 9):
        one.beat(now, 0)
        assert not one.overdue(now)


def test_a_stall_of_the_host_gives_a_fresh_deadline() -> None:
    """An hour in which nobody looked does not count, whatever it was at."""
    for start in ("starting", "idle", "ready"):
        one = instance() if start == "starting" else serving()
        if start == "starting":
            one.start(0)
        if start == "ready":
            one.leased(0)
        one.stalled(3600)
        assert not one.overdue(3605)
        assert one.overdue(3600 + 101)


def test_an_event_of_a_life_that_was_killed_changes_nothing() -> None:
    """Frames on their way, and READY."""
    one = serving()
    one.leased(0)
    assert one.condemn("sent garbage")
    assert not one.condemn("something else")
    one.answered(1, more=False)
    one.ready(1)
    assert (one.state, one.condemned) == ("stopping", "sent garbage")


@pytest.mark.parametrize("why", ["frames", "memory"])
def test_a_worn_life_answers_what_it_holds_and_goes(why: str) -> None:
    """No more leases; the end is no death, and the next life begins at once."""
    one = serving(max_frames_per_instance=3) if why == "frames" else serving(max_rss=1000)
    one.leased(0)
    for now in range(1, 4):
        assert not one.worn
        one.answered(now, more=True)
    if why == "memory":
        one.beat(3, 1000)
        assert not one.worn
        one.beat(3, 1001)
    assert one.worn
    one.retire(3)
    assert (one.state, one.serves, one.leaving, one.being_replaced, one.worn) == (
        "ready",
        False,
        False,
        True,
        False,
    )
    one.answered(4, more=False)
    assert (one.state, one.leaving) == ("stopping", True)
    assert not one.overdue(5)
    assert one.ended(6) == 0
    assert (one.state, one.restarts, one.recycled) == ("stopped", 0, 1)
    one.start(6)
    assert one.being_replaced
    one.ready(7)
    assert not one.being_replaced
    assert not one.worn


def worn_by_memory(now: float = 0) -> Instance:
    one = serving(now, max_rss=10)
    one.leased(now)
    one.answered(now, more=False)
    one.beat(now, 11)
    assert one.worn
    return one


def test_an_idle_worn_life_goes_at_once() -> None:
    """It has nothing to answer."""
    one = worn_by_memory()
    one.retire(1)
    assert one.leaving


def test_a_life_that_made_nothing_yet_is_not_worn() -> None:
    """With a limit below its own size it would be replaced for ever."""
    one = serving(max_rss=10)
    one.beat(1, 11)
    assert not one.worn


def test_a_worn_life_that_does_not_go_is_killed() -> None:
    """And that is no death either: it was to end."""
    one = worn_by_memory()
    one.retire(0)
    one.beat(9, 11)
    assert not one.overdue(10)
    assert one.overdue(10.1)
    assert (one.condemned, one.leaving) == ("stop", False)
    assert one.ended(56) == 0
    assert one.recycled == 1


def test_a_worn_life_has_all_its_time_for_what_it_holds() -> None:
    """Each sample has the budget of any other."""
    one = serving(max_frames_per_instance=1)
    for _ in range(4):
        one.leased(0)
    one.answered(1, more=True)
    one.retire(1)
    for now in range(1, 145):
        one.beat(now, 0)
        assert not one.overdue(now)
        if now in (49, 97):
            one.answered(now, more=True)
    one.answered(145, more=False)
    assert one.leaving
    assert not one.overdue(154)
    assert one.overdue(155.1)


def test_a_worn_life_that_hangs_has_died() -> None:
    """At its last sample: that is a hang like any other."""
    one = serving(max_frames_per_instance=1)
    one.leased(0)
    one.answered(1, more=True)
    one.retire(1)
    for now in range(1, 52, 5):
        one.beat(now, 0)
    assert one.overdue(51.1)
    assert one.condemned == "frame"
    assert one.ended(52) == 1
    assert (one.restarts, one.recycled) == (1, 0)


def test_the_jitter_is_the_callers() -> None:
    """So that a timeline can be exact."""
    policy = RestartPolicy(backoff=1, jitter=0.5)
    draws = iter([0.0, 0.5, 1.0])
    one = Instance(0, StreamConfig(script="x.py", restart=policy), lambda: next(draws))
    delays = []
    for second in range(3):
        one.start(second)
        delays.append(one.ended(second))
    assert delays == [1, 2 * 1.25, 4 * 1.5]


EVENTS = (
    "beat",
    "ready",
    "leased",
    "more",
    "last",
    "retire",
    "condemn",
    "look",
    "stall",
    "end",
    "hopeless",
    "start",
)
NEXT = {
    "new": {"starting"},
    "starting": {"idle", "stopping", "backoff", "failed"},
    "idle": {"ready", "stopping", "backoff", "failed", "stopped"},
    "ready": {"idle", "stopping", "backoff", "failed", "stopped"},
    "stopping": {"backoff", "failed", "stopped"},
    "backoff": {"starting"},
    "stopped": {"starting"},
    "failed": set[str](),
}


@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.floats(0, 30)), max_size=60))
def test_whatever_happens_the_states_follow_the_diagram(events: list[tuple[str, float]]) -> None:
    """Any order of events that a host can see; no lease to what does not serve, no restart beyond the policy."""
    one = instance(max_frames_per_instance=5)
    now, before = 0.0, one.state
    for event, passed in events:
        now += passed
        if event == "start":
            if one.state in ("new", "backoff", "stopped"):
                one.start(now)
        elif one.alive:
            if event == "beat":
                one.beat(now, 1)
            elif event == "ready":
                one.ready(now)
            elif event == "leased" and one.serves:
                one.leased(now)
            elif event in ("more", "last") and one.served:
                one.answered(now, more=event == "more")
            elif event == "retire" and one.worn:
                one.retire(now)
            elif event == "condemn":
                one.condemn("x")
            elif event == "look":
                one.overdue(now)
            elif event == "stall":
                one.stalled(passed)
            elif event in ("end", "hopeless"):
                one.ended(now, "death" if event == "end" else "hopeless")
        assert one.state == before or one.state in NEXT[before], (before, event, one.state)
        assert not one.serves or (one.alive and one.condemned is None)
        before = one.state
