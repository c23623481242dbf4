"""What is timed: by a clock that the tests feed, so that nothing depends on how fast this machine is."""

from __future__ import annotations

import random
import statistics
from typing import Any

import pytest

from asyncblend.stream.idleness import Idleness
from asyncblend.stream.timing import Durations, Level, Spread, Timing, share, spread, summary
from asyncblend.wire.launch import Life
from asyncblend.wire.protocol import Spent

START = 1007.3  # in the middle of a slice


def about(value: float) -> Any:
    """Return what is equal to a quantile of this value: bins are 4.4 % wide."""
    return pytest.approx(value, rel=0.023)


def test_quantiles_are_those_of_the_durations() -> None:
    """They are within the width of a bin, from microseconds to minutes, and the mean is exact."""
    rng = random.Random(3)
    seconds = [10 ** rng.uniform(-6, 2) for _ in range(5001)]
    durations = Durations()
    for one in seconds:
        durations.add(one, START)
    found = spread([durations.slices(START)])
    tenths = statistics.quantiles(seconds, n=10)
    assert found.mean == pytest.approx(statistics.mean(seconds))
    assert (found.median, found.p90) == (about(statistics.median(seconds)), about(tenths[8]))


def test_what_took_no_time_counts() -> None:
    """Most frames are there when they are wanted: the median of such waits is 0, and the mean is not."""
    durations = Durations()
    for number in range(10):
        durations.add(3.0 if number >= 8 else 0.0, START)
    found = spread([durations.slices(START)])
    assert found.mean == pytest.approx(0.6)
    assert (found.median, found.p90) == (0.0, about(3.0))


def test_nothing_is_a_spread_of_nothing() -> None:
    """There is a number before anything has happened."""
    assert spread([Durations().slices(START)]) == Spread(0.0, 0.0, 0.0)
    assert share([Level(0, 4).slices(START)]) == 0.0


def test_only_the_latest_minute_counts() -> None:
    """What is older is forgotten, whether anything comes after it or not, and memory does not grow."""
    durations, level = Durations(), Level(1, 1)
    level.start(START)
    level.set(0, START + 1)
    durations.add(100.0, START)
    assert spread([durations.slices(START + 54)]).median == about(100.0)
    assert spread([durations.slices(START + 61)]) == Spread()
    assert share([level.slices(START + 61)]) == 0.0
    for second in range(10_000):
        durations.add(0.5, START + second)
        level.set(second % 2, START + second)
    assert len(durations._slices) <= 12
    assert len(level._slices) <= 12
    assert sum(map(len, durations._slices.values())) <= 2 * 12


@pytest.mark.parametrize("steps", [1, 3, 1000])
def test_a_level_is_weighted_by_time(steps: int) -> None:
    """How often it is noted changes nothing, and what is the case now counts as far as it has lasted."""
    level = Level(0, 4)
    level.set(4, START - 100)  # nobody is slow before the start
    level.set(2, START - 50)
    level.start(START)
    for step in range(steps):
        level.set(2, START + 9 * (step + 1) / steps)
    level.set(4, START + 9)
    assert share([level.slices(START + 9)]) == pytest.approx(0.5)
    assert share([level.slices(START + 12)]) == pytest.approx((9 * 2 + 3 * 4) / (12 * 4))
    level.set(0, START + 12)
    assert share([level.slices(START + 24)]) == pytest.approx((9 * 2 + 3 * 4) / (24 * 4))


def test_a_level_that_lasts_for_hours_counts_as_a_minute() -> None:
    """A change after a long time is not weighed against all of that."""
    level = Level(4, 4)
    level.start(0.0)
    assert share([level.slices(7200.0)]) == 1.0
    level.set(0, 7200.0)
    assert share([level.slices(7230.0)]) == pytest.approx(0.5, abs=0.05)
    assert share([level.slices(7300.0)]) == 0.0


def test_the_whole_may_change() -> None:
    """One of one Blender idles for ten seconds, then one of two for ten more."""
    level = Level(1, 1)
    level.start(START)
    level.set_whole(2, START + 10)
    assert share([level.slices(START + 20)]) == pytest.approx(20 / 30)


def test_consumers_wait_as_long_as_one_of_them_does() -> None:
    """Two that wait at the same time wait once."""
    timing = Timing(4)
    timing.start(START)
    timing.wait(START)
    timing.wait(START + 1)
    timing.waited(START + 2, START)
    timing.took(START + 2)
    timing.waited(START + 4, START + 1)
    timing.took(START + 4)
    timing.took(START + 5)
    found = summary([timing], START, START + 8)
    assert found["waiting"] == pytest.approx(0.5)
    assert found["seconds_waited"] == (pytest.approx(5 / 3), about(2), about(3))
    assert found["rate"] == pytest.approx(3 / 8)
    assert found["window"] == pytest.approx(8)


def test_a_wait_in_vain_is_that_of_the_next_frame() -> None:
    """A consumer that asks with a timeout again and again has waited for what comes at last."""
    timing = Timing(4)
    timing.start(START)
    for began in (START, START + 2):
        timing.wait(began)
        timing.waited(began + 1, began)
    timing.took(START + 4)
    timing.took(START + 5)
    assert summary([timing], START, START + 6)["seconds_waited"].mean == pytest.approx(1)


def test_the_frame_that_begins_the_window_is_not_of_its_rate() -> None:
    """Ten frames, a second apart, are one a second; and so they are when the first one is out of the window."""
    timing, past = Timing(4), Timing(0)
    timing.start(START)
    timing.leads = True
    assert summary([timing], START, START + 1)["rate"] == 0.0
    for second in range(10):
        timing.took(START + second)
    assert summary([timing], START, START + 9)["rate"] == pytest.approx(1)
    past.absorb(timing, START + 9)
    assert summary([past], START, START + 9)["rate"] == pytest.approx(1)
    for second in range(10, 120):
        timing.took(START + second)
    assert summary([timing], START, START + 119)["rate"] == pytest.approx(1, rel=0.02)


def test_the_wait_for_blenders_start_is_no_wait() -> None:
    """A consumer that waited before the first frame of the run has waited from then on."""
    timing = Timing(4)
    timing.wait(START - 100)
    timing.start(START)
    timing.waited(START + 1, START - 100)
    timing.took(START + 1)
    found = summary([timing], START, START + 2)
    assert found["waiting"] == pytest.approx(0.5)
    assert found["seconds_waited"].mean == pytest.approx(1)


def test_a_pass_that_has_ended_is_added_to_those_before() -> None:
    """What it had noted stays as it was at its end, and counts beside the passes that go on."""
    past, first, second = Timing(0), Timing(2), Timing(2)
    for timing in (first, second):
        timing.start(START)
        timing.arrived(Spent(0.5, 0.25, 0.125), START)
    first.queued(2, START)
    first.end(START + 6)
    past.absorb(first, START + 6)
    second.queued(1, START)
    assert summary([first], START, START + 40)["occupancy"] == 1.0
    found = summary([past, second], START, START + 6)
    assert found["occupancy"] == pytest.approx(0.75)
    assert found["seconds_sample"] == (0.5, about(0.5), about(0.5))
    assert found["seconds_render"].mean == 0.25
    assert found["seconds_capture"].mean == 0.125


def test_a_script_that_renders_by_itself_has_no_seconds_of_rendering() -> None:
    """What `bl.render` took is of the frames that called it."""
    timing = Timing(2)
    timing.start(START)
    timing.arrived(Spent(2.0), START)
    timing.arrived(Spent(4.0, 3.0, 0.5), START)
    found = summary([timing], START, START + 1)
    assert (found["seconds_sample"].mean, found["seconds_render"].mean) == (3.0, 3.0)


class Blenders:
    """Two Blenders that do as they are told."""

    states, restarts, recycled = {0: "idle", 1: "idle"}, {0: 0, 1: 3}, 4

    def __init__(self) -> None:
        self.ready: list[Life] = []
        self.told: list[tuple[object, ...]] = []

    def ready_lives(self) -> list[Life]:
        return self.ready

    def leased(self, life: Life) -> None:
        self.told.append(("leased", life))

    def working_since(self, life: Life, began: float | None) -> None:
        self.told.append(("working_since", life, began))

    def goes_on(self, life: Life) -> None:
        self.told.append(("goes_on", life))

    def answered(self, life: Life, *, more: bool, count: int = 1) -> None:
        self.told.append(("answered", life, more, count))


def test_who_quits_waits_for_no_lease() -> None:
    """The wait of a Blender that is gone has not ended with a lease, and the others idle as before."""
    now, blenders = START, Blenders()
    idleness = Idleness(blenders, lambda: now)
    idleness.level.start(now)
    blenders.ready = [Life(0, 0), Life(1, 5)]
    idleness.ready_lives()
    now += 4
    idleness.gone(Life(0, 0))
    now += 4
    assert spread([idleness.waits.slices(now)]) == Spread()
    assert share([idleness.level.slices(now)]) == pytest.approx(1)
    idleness.leased(Life(1, 5))
    assert spread([idleness.waits.slices(now)]).p90 == about(8)


def test_blenders_idle_without_a_lease() -> None:
    """From when they serve, or have answered the last thing that they held; each wait ends with a lease."""
    now, blenders = START, Blenders()
    idleness = Idleness(blenders, lambda: now)
    one, other = Life(0, 0), Life(1, 5)
    idleness.level.start(now)
    blenders.ready = [one, other]
    assert idleness.ready_lives() == [one, other]

    def idle() -> float:
        return share([idleness.level.slices(now)])

    idleness.leased(one)
    now += 4
    assert idle() == pytest.approx(0.5)
    idleness.answered(one, more=True)
    idleness.leased(other)
    idleness.leased(other)
    now += 4
    assert idle() == pytest.approx(0.25)
    idleness.answered(one, more=False, count=7)
    idleness.working_since(other, None)  # it waits for a slot, in the middle of an episode
    now += 8
    assert idle() == pytest.approx((4 + 16) / 32)
    idleness.goes_on(other)
    idleness.gone(one)
    idleness.gone(one)
    blenders.ready = [other]
    assert idleness.ready_lives() == [other]
    now += 16
    assert idle() == pytest.approx(20 / 48)
    assert spread([idleness.waits.slices(now)]).p90 == about(8)
    assert blenders.told == [
        ("leased", one),
        ("answered", one, True, 1),
        ("leased", other),
        ("leased", other),
        ("answered", one, False, 7),
        ("working_since", other, None),
        ("goes_on", other),
    ]
    assert (idleness.states, idleness.restarts, idleness.recycled) == (blenders.states, blenders.restarts, 4)
