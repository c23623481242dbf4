"""When a crashed instance is started again, on hand-made timelines."""

from __future__ import annotations

import math

import pytest

from asyncblend.config import RestartPolicy
from asyncblend.fleet.restart import RestartHistory


def delays(policy: RestartPolicy, *deaths: float, working: bool = True) -> list[float | None]:
    """Return the delay after each death. `working`: the instance answered a lease before each of them."""
    history = RestartHistory(policy)
    answers = []
    for now in deaths:
        if working:
            history.answered()
        answers.append(history.died(now))
    return answers


def test_the_delay_doubles_up_to_its_limit() -> None:
    """The first restart waits `backoff`, each further one twice as long, and none longer than `max_backoff`."""
    policy = RestartPolicy(max_restarts=6, window=60, backoff=0.25, max_backoff=3)
    assert delays(policy, 0, 1, 2, 3, 4, 5) == [0.25, 0.5, 1, 2, 3, 3]


def test_one_death_more_than_allowed_is_too_many() -> None:
    """After `max_restarts` restarts within the window there is no further one."""
    policy = RestartPolicy(max_restarts=2, window=60, backoff=1)
    assert delays(policy, 0, 1, 2) == [1, 2, None]


def test_the_defaults_allow_five() -> None:
    """The default policy allows five restarts in a minute."""
    assert delays(RestartPolicy(), *range(6)) == [0.25, 0.5, 1, 2, 4, None]


def test_zero_means_never() -> None:
    """With `max_restarts=0` the first death is one too many."""
    assert delays(RestartPolicy(max_restarts=0), 5) == [None]


def test_deaths_outside_the_window_are_forgotten() -> None:
    """Deaths outside the window count neither for the delay nor for the limit."""
    policy = RestartPolicy(max_restarts=2, window=10, backoff=1, max_backoff=100)
    assert delays(policy, 0, 1, 100, 101, 102) == [1, 2, 1, 2, None]


def test_deaths_without_work_between_them_are_never_forgotten() -> None:
    """A sample that hangs for longer than the window, again and again, reaches the limit."""
    policy = RestartPolicy(max_restarts=2, window=10, backoff=1, max_backoff=100)
    assert delays(policy, 0, 300, 600, working=False) == [1, 2, None]


def test_the_window_slides() -> None:
    """The window slides: only deaths that are too old are forgotten."""
    policy = RestartPolicy(max_restarts=3, window=10, backoff=1, max_backoff=100)
    assert delays(policy, 0, 5, 11, 16, 22, 27) == [1, 2, 2, 2, 2, 2]
    assert delays(policy, 0, 6, 8, 12, 13) == [1, 2, 4, 4, None]


def test_the_window_includes_its_edge() -> None:
    """A death exactly `window` seconds ago still counts."""
    policy = RestartPolicy(max_restarts=1, window=10, backoff=1)
    assert delays(policy, 0, 10) == [1, None]
    assert delays(policy, 0, 10.5) == [1, 1]


def test_a_backoff_of_zero_restarts_at_once() -> None:
    """With `backoff=0` every restart is immediate."""
    assert delays(RestartPolicy(max_restarts=3, backoff=0), 0, 0, 0) == [0, 0, 0]


def test_the_first_delay_is_limited_too() -> None:
    """A `backoff` above `max_backoff` is limited to it."""
    assert delays(RestartPolicy(backoff=5, max_backoff=2), 0, 0) == [2, 2]


@pytest.mark.parametrize("backoff", [0.0, 0.25, 1, math.inf])
def test_restarting_for_ever_never_overflows(backoff: float) -> None:
    """Thousands of deaths within an endless window overflow no number."""
    policy = RestartPolicy(max_restarts=10**6, window=math.inf, backoff=backoff, max_backoff=10)
    assert delays(policy, *range(3000))[-1] == (10 if backoff else 0)


def test_histories_are_apart() -> None:
    """Deaths of one instance do not count for another."""
    policy = RestartPolicy(max_restarts=1)
    one, other = RestartHistory(policy), RestartHistory(policy)
    assert one.died(0) is not None
    assert other.died(0) is not None
    assert one.died(1) is None
