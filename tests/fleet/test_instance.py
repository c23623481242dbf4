"""The state machine of one instance, on hand-made timelines."""

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
    """Return instance 4, which was never started."""
    return Instance(4, StreamConfig(script="x.py", **{"restart": POLICY, "timeouts": TIMEOUTS, **options}))  # type: ignore[arg-type]


def serving(now: float = 0, **options: object) -> Instance:
    """Return an instance that serves since `now`."""
    one = instance(**options)
    one.start(now)
    one.beat(now, 0)
    one.ready(now)
    return one


def seen(one: Instance) -> tuple[str, bool, bool]:
    """Return its state, whether it has a process, and whether it may be given leases."""
    return one.state, one.alive, one.serves


def test_a_life_from_its_start_to_its_end() -> None:
    """Each event leads to its state, and each life has its own epoch."""
    one = instance()
    assert seen(one) == ("new", False, False)
    assert one.start(0) == Life(4, 0)
    assert seen(one) == ("starting", True, False)
    one.ready(1)
    assert seen(one) == ("idle", True, True)
    one.leased(2)
    one.leased(2)
    assert seen(one) == ("ready", True, True)
    one.answered(3, more=True)
    assert seen(one) == ("ready", True, True)
    one.answered(3, more=False)
    assert seen(one) == ("idle", True, True)
    assert one.ended(4) == 1
    assert seen(one) == ("backoff", False, False)
    assert one.restarts == 1
    assert one.start(5) == Life(4, 1)
    assert seen(one) == ("starting", True, False)
    assert not one.served
    one.close()
    assert seen(one) == ("stopped", False, False)


def test_a_crash_loop_ends_in_failed() -> None:
    """After the allowed restarts, with growing delays, the instance has failed and stays so."""
    one = instance()
    delays = []
    for second in range(4):
        one.start(second)
        delays.append(one.ended(second))
    assert delays == [1, 2, 4, None]
    assert (one.state, one.restarts) == ("failed", 3)
    one.close()
    assert one.state == "failed"  # the failure stays visible after the end


def test_a_fatal_end_is_not_tried_again() -> None:
    """An instance that ended for a fatal cause is not started again, not even once."""
    one = instance()
    one.start(0)
    assert one.ended(1, "fatal") is None
    assert (one.state, one.restarts) == ("failed", 0)


def test_installing_packages_uses_up_no_restart() -> None:
    """An instance that waits for packages starts again at once, however often, and no restart is counted."""
    one = instance()
    for second in range(10):
        one.start(second)
        assert one.ended(second, "needs_packages") == 0
    assert (one.state, one.restarts) == ("stopped", 0)


@pytest.mark.parametrize(
    ("state", "budget", "limit"), [("starting", "start", 100), ("idle", "beat", 10), ("ready", "frame", 50)]
)
def test_each_state_has_its_budget(state: str, budget: str, limit: float) -> None:
    """A state lasts exactly as long as its budget; then `overdue` says once that the instance must be killed."""
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
    """An instance that beats may wait for a lease for hours."""
    one = serving()
    for now in range(0, 36_000, 9):
        one.beat(now, 0)
        assert not one.overdue(now)


def test_a_stall_of_the_host_gives_a_fresh_deadline() -> None:
    """An hour in which the host stood still extends the budget of every state."""
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
    """Frames that were on their way, and READY, do not change the state of a condemned life."""
    one = serving()
    one.leased(0)
    assert one.condemn("sent garbage")
    assert not one.condemn("something else")
    one.answered(1, more=False)
    one.ready(1)
    assert (one.state, one.condemned) == ("stopping", "sent garbage")


@pytest.mark.parametrize("why", ["frames", "memory", "lost memory"])
def test_a_worn_life_answers_what_it_holds_and_goes(why: str) -> None:
    """A retired life gets no more leases, its end is no crash, and the next life begins at once."""
    one = serving(**{"frames": {"max_frames_per_instance": 3}, "memory": {"max_rss": 1000}}.get(why, {}))
    one.leased(0)
    for now in range(1, 4):
        assert not one.worn
        one.answered(now, more=True)
    if why == "memory":
        one.beat(3, 1000)
        assert not one.worn
        one.beat(3, 1001)
    if why == "lost memory":
        one.beat(3, 0, 1 << 28)
        assert not one.worn
        one.beat(3, 0, (1 << 28) + 1)
    assert one.worn
    one.retire(3)
    assert (one.state, one.serves, one.leaving, one.being_replaced, one.worn) == ("ready", False, False, True, False)
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
    """Return an instance that serves, holds nothing and has too much memory."""
    one = serving(now, max_rss=10)
    one.leased(now)
    one.answered(now, more=False)
    one.beat(now, 11)
    assert one.worn
    return one


def test_an_idle_worn_life_goes_at_once() -> None:
    """A worn life that holds no lease leaves as soon as it is retired."""
    one = worn_by_memory()
    one.retire(1)
    assert one.leaving


def test_a_life_that_made_nothing_yet_is_not_worn() -> None:
    """Memory above the limit does not wear out a life before its first frame, or it would be replaced for ever."""
    one = serving(max_rss=10)
    one.beat(1, 11)
    assert not one.worn


def test_a_worn_life_that_does_not_go_is_killed() -> None:
    """A retired life that ignores the request to end is killed, which is no crash either."""
    one = worn_by_memory()
    one.retire(0)
    one.beat(9, 11)
    assert not one.overdue(10)
    assert one.overdue(10.1)
    assert (one.condemned, one.leaving) == ("stop", False)
    assert one.ended(56) == 0
    assert one.recycled == 1


def test_a_worn_life_has_all_its_time_for_what_it_holds() -> None:
    """A retired life has the whole frame budget for each sample that it holds."""
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
    """A retired life that hangs at its last sample has crashed."""
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
    """The jitter of the delays comes from the function that the caller gives."""
    policy = RestartPolicy(backoff=1, jitter=0.5)
    draws = iter([0.0, 0.5, 1.0])
    one = Instance(0, StreamConfig(script="x.py", restart=policy), lambda: next(draws))
    delays = []
    for second in range(3):
        one.start(second)
        delays.append(one.ended(second))
    assert delays == [1, 2 * 1.25, 4 * 1.5]


EVENTS = ("beat", "ready", "leased", "more", "last", "retire", "condemn", "look", "stall", "end", "fatal", "start")
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
    """In any order of events that a host can see, the states change only as in the diagram."""
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
            elif event in ("end", "fatal"):
                one.ended(now, "crash" if event == "end" else "fatal")
        assert one.state == before or one.state in NEXT[before], (before, event, one.state)
        assert not one.serves or (one.alive and one.condemned is None)
        before = one.state
