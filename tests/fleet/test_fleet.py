"""The fleet on hand-made timelines: the tests provide its clock, its sleep and its processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from asyncblend.aio import the_one_error
from asyncblend.config import RestartPolicy, StreamConfig, Timeouts
from asyncblend.errors import AsyncblendError, BlenderNotFound, CrashLoop, FrameTimeout, InstanceExited, StartTimeout
from asyncblend.fleet.fleet import Fleet
from asyncblend.fleet.install import packages
from asyncblend.fleet.log import Log
from asyncblend.wire.launch import Life, Report

POLICY = RestartPolicy(max_restarts=2, window=60, backoff=1, max_backoff=4, jitter=0)


class Time:
    """A clock that moves only when a test moves it, and the tasks that sleep by it."""

    def __init__(self) -> None:
        self.now = 0.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.now + seconds, woken))
        await woken

    async def go(self, seconds: float) -> None:
        """Let this time pass. Wake all that is due in it, in order."""
        end = self.now + seconds
        while True:
            await settled()
            self._sleepers = [entry for entry in self._sleepers if not entry[1].done()]
            due = min((entry for entry in self._sleepers if entry[0] <= end), key=lambda e: e[0], default=None)
            if due is None:
                break
            self.now = max(self.now, due[0])
            due[1].set_result(None)
        self.now = end

    def jump(self, seconds: float) -> None:
        """Let this time pass without waking anybody, as when the host is suspended."""
        self.now += seconds


async def settled() -> None:
    """Let all tasks do what they can do before any time passes."""
    for _ in range(30):
        await asyncio.sleep(0)


class Process:
    """A Blender that lives until it is killed, asked to stop, or told to `exit`."""

    machine = ""

    def __init__(self, folder: Path, life: Life) -> None:
        self.life = life
        self.log = Log(folder / f"{life.instance}.{life.epoch}.txt")
        self.killed = False
        self.left = Report()
        self._exit: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def exit(self, status: int, output: str = "", report: Report | None = None) -> None:
        self.log.path.write_text(output)
        self.left = report or self.left
        if not self._exit.done():
            self._exit.set_result(status)

    async def wait(self) -> int:
        return await asyncio.shield(self._exit)

    def report(self) -> Report:
        return self.left

    def see_dead(self) -> None:
        """Say nothing of the end: only a loop that is closed asks."""

    def disown(self) -> None:
        """Say nothing: nobody forks here."""

    def kill(self) -> None:
        self.killed = True
        self.exit(-9)

    async def stop(self, ask: Callable[[], None], grace: float) -> None:
        ask()
        self.kill()

    async def install(self, report: Report) -> None:
        await packages.install(list(report.packages or ()), report.python, Path(report.folder))


class Stage:
    """A fleet, and the hand-made processes that it starts."""

    def __init__(self, folder: Path, *, first: int = 0, **options: Any) -> None:
        self.time = Time()
        self.spawned: list[tuple[float, Life]] = []
        self.over: list[Life] = []
        self.ready: list[list[Life]] = []
        """At each call of `on_ready`: the lives that could be given leases."""
        self.asked: list[Life] = []
        self.refuse: OSError | None = None
        self._folder = folder
        self._processes: dict[int, Process] = {}
        config = StreamConfig(script="x.py", **{"restart": POLICY, "instances": 1, **options})
        self.fleet = Fleet(
            config, self._spawn, self.asked.append, first=first, clock=lambda: self.time.now, sleep=self.time.sleep
        )
        self.running = asyncio.ensure_future(self.fleet.run(self._on_ready, lambda life, why: self.over.append(life)))

    def _on_ready(self) -> None:
        self.ready.append(self.fleet.ready_lives())

    async def _spawn(self, life: Life) -> Process:
        self.spawned.append((self.time.now, life))
        if self.refuse is not None:
            raise self.refuse
        process = self._processes[life.instance] = Process(self._folder, life)
        return process

    def process(self, number: int = 0) -> Process:
        """Return the latest process of an instance."""
        return self._processes[number]

    async def serve(self, *numbers: int) -> None:
        """Let these instances beat and call serve."""
        await settled()
        for number in numbers:
            self.fleet.beat(self.process(number).life, 0)
            self.fleet.ready(self.process(number).life)

    async def live(self, seconds: int, *numbers: int) -> None:
        """Let so many seconds pass, in which these instances beat once a second."""
        for _ in range(seconds):
            for number in numbers:
                self.fleet.beat(self.process(number).life, 0)
            await self.time.go(1)

    async def error(self) -> AsyncblendError:
        """Return the error that the fleet ended with."""
        await settled()
        assert self.running.done()
        error = self.running.exception()
        assert error is not None
        cause = the_one_error(error)
        assert isinstance(cause, AsyncblendError)
        return cause


Make = Callable[..., Stage]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    stages: list[Stage] = []

    def make(**options: Any) -> Stage:
        stages.append(Stage(tmp_path, **options))
        return stages[-1]

    yield make
    for stage in stages:
        stage.running.cancel()
        await asyncio.wait([stage.running])


async def test_a_crash_loop_has_exact_start_times(make: Make) -> None:
    """Each restart waits for its exact delay; one death too many raises CrashLoop with the tail of the output."""
    stage = make()
    await stage.serve(0)
    for delay in (1, 2):
        stage.process().exit(139, "a crash")
        await stage.time.go(delay - 0.01)
        assert stage.fleet.states == {0: "backoff"}
        await stage.time.go(0.01)
        assert stage.fleet.states == {0: "starting"}
        await stage.serve(0)
    stage.process().exit(139, "the last crash")
    error = await stage.error()
    assert isinstance(error, CrashLoop)
    assert "died more than 2 times in 60 s" in str(error)
    assert (error.instance, error.log_tail) == (0, "the last crash")
    assert isinstance(error.__cause__, InstanceExited)
    assert [when for when, _ in stage.spawned] == [0, 1, 3]
    assert stage.over == [Life(0, 0), Life(0, 1), Life(0, 2)]
    assert stage.fleet.states == {0: "failed"}


async def test_an_occasional_crash_goes_on_for_ever(make: Make) -> None:
    """Crashes older than the window are forgotten, so each restart has the first delay."""
    stage = make()
    for second in range(0, 20 * 100, 100):
        await stage.serve(0)
        stage.fleet.leased(stage.process().life)
        stage.fleet.answered(stage.process().life, more=False)
        await stage.live(99, 0)
        stage.process().exit(1)
        await stage.time.go(1)
        assert stage.spawned[-1][0] == second + 100
    assert sum(stage.fleet.restarts.values()) == 20


async def test_a_death_before_any_was_ready_is_the_end(make: Make) -> None:
    """A death before any instance served ends the fleet at once, because the script is the likely cause."""
    stage = make(instances=2)
    await settled()
    stage.process(1).exit(3, "no such module")
    error = await stage.error()
    assert isinstance(error, InstanceExited)
    assert (error.instance, error.returncode, error.log_tail) == (1, 3, "no such module")
    assert len(stage.spawned) == 2
    assert stage.process(0).killed


async def test_a_script_that_does_not_load_is_not_tried_again(make: Make) -> None:
    """A script that fails to load ends the fleet, even if other instances serve and an earlier life could load it."""
    stage = make(instances=2)
    await stage.serve(0, 1)
    stage.process(1).exit(139)
    await stage.time.go(1)
    stage.process(1).exit(1, "SyntaxError", Report(script_failed=True))
    error = await stage.error()
    assert isinstance(error, InstanceExited)
    assert error.log_tail == "SyntaxError"
    assert [life for _, life in stage.spawned] == [Life(0, 0), Life(1, 0), Life(1, 1)]


async def test_the_others_go_on_where_that_is_allowed(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """The fleet goes on with at least `min_instances` instances, and raises CrashLoop below that."""
    stage = make(instances=3, restart=RestartPolicy(max_restarts=0, min_instances=2))
    await stage.serve(0, 1, 2)
    stage.process(2).exit(1, "out of memory")
    await stage.live(200, 0, 1)
    assert stage.fleet.states == {0: "idle", 1: "idle", 2: "failed"}
    assert [m for m in caplog.messages if m.startswith("Going on with 2 Blenders, without 2.") and "out of memory" in m]
    stage.process(0).exit(1)
    assert isinstance(await stage.error(), CrashLoop)


async def test_a_blender_that_cannot_be_executed_is_not_tried_again(make: Make) -> None:
    """A Blender that cannot be executed ends the fleet without a second try."""
    stage = make()
    stage.refuse = BlenderNotFound("cannot execute x")
    assert isinstance(await stage.error(), BlenderNotFound)
    assert len(stage.spawned) == 1


async def test_a_shortage_of_the_system_may_pass(make: Make) -> None:
    """A start that the operating system refuses is tried again after the backoff."""
    stage = make(instances=2)
    await stage.serve(0, 1)
    stage.refuse = OSError(24, "Too many open files")
    stage.process(0).exit(1)
    await stage.time.go(1)
    assert stage.fleet.states[0] == "backoff"
    stage.refuse = None
    await stage.time.go(2)
    await stage.serve(0)
    assert stage.fleet.states[0] == "idle"


async def test_a_slow_start_is_no_hang_and_an_endless_one_is(make: Make) -> None:
    """An instance that does not serve is killed after `timeouts.start`, and not before, though it never beats."""
    stage = make(timeouts=Timeouts(start=90, beat=10, frame=50))
    await stage.time.go(89)
    assert stage.fleet.states == {0: "starting"}
    await stage.time.go(3)
    assert stage.process().killed
    assert isinstance(await stage.error(), StartTimeout)


@pytest.mark.parametrize("budget", ["beat", "frame"])
async def test_a_hang_is_killed_and_its_instance_started_again(budget: str, make: Make) -> None:
    """An instance without heartbeat, or with heartbeats but no frame, is killed; the other one goes on."""
    stage = make(
        instances=2, timeouts=Timeouts(beat=10, frame=50), restart=RestartPolicy(max_restarts=0, min_instances=1)
    )
    await stage.serve(0, 1)
    if budget == "frame":
        stage.fleet.leased(stage.process(0).life)
    limit = 10 if budget == "beat" else 50
    beating = (1,) if budget == "beat" else (0, 1)
    await stage.live(limit, *beating)
    assert not stage.process(0).killed
    await stage.live(2, *beating)
    assert stage.process(0).killed
    assert stage.fleet.states == {0: "failed", 1: "idle"}


async def test_the_error_of_a_hang_names_its_budget(make: Make) -> None:
    """The cause of the CrashLoop is a FrameTimeout that names the budget."""
    stage = make(timeouts=Timeouts(beat=10), restart=RestartPolicy(max_restarts=0))
    await stage.serve(0)
    await stage.time.go(12)
    error = await stage.error()
    assert isinstance(error.__cause__, FrameTimeout)
    assert "sent no heartbeat for 10 s (timeouts.beat)" in str(error)


async def test_a_host_that_stood_still_kills_nobody(make: Make) -> None:
    """An hour in which the host is suspended extends every budget, and afterwards the budgets hold again."""
    stage = make(instances=3, timeouts=Timeouts(start=90, beat=10, frame=50))
    await stage.serve(0, 1)
    stage.fleet.leased(stage.process(1).life)
    await stage.live(2, 0, 1)
    stage.time.jump(3600)
    await stage.live(2, 0, 1)
    assert stage.fleet.states == {0: "idle", 1: "ready", 2: "starting"}
    await stage.live(95, 0, 1)
    assert [life for _, life in stage.spawned[3:]] == [Life(1, 1), Life(2, 1)]


async def test_worn_instances_are_replaced_one_at_a_time(make: Make) -> None:
    """An instance that has served its time is replaced when no other is, after it has answered all its leases."""
    stage = make(instances=3, max_frames_per_instance=1)
    await stage.serve(0, 1, 2)
    for number in range(3):
        life = stage.process(number).life
        stage.fleet.leased(life)
        stage.fleet.leased(life)
        stage.fleet.answered(life, more=True)
    assert [life.instance for life in stage.fleet.ready_lives()] == [1, 2]
    assert stage.asked == []
    stage.fleet.answered(stage.process(0).life, more=False)
    assert stage.asked == [Life(0, 0)]
    stage.process(0).exit(0)
    await settled()
    assert stage.spawned[-1] == (0, Life(0, 1))
    stage.fleet.answered(stage.process(1).life, more=True)
    assert [life.instance for life in stage.fleet.ready_lives()] == [1, 2]
    await stage.serve(0)
    stage.fleet.answered(stage.process(1).life, more=True)
    assert [life.instance for life in stage.fleet.ready_lives()] == [0, 2]
    assert (stage.fleet.recycled, sum(stage.fleet.restarts.values())) == (1, 0)


async def test_a_lost_request_to_end_is_made_good(make: Make) -> None:
    """A retired instance is asked to end again and again, in case a request was lost."""
    stage = make(instances=2, max_rss=100)
    await stage.serve(0, 1)
    stage.fleet.leased(stage.process(0).life)
    stage.fleet.answered(stage.process(0).life, more=False)
    stage.fleet.beat(stage.process(0).life, 101)
    await stage.live(3, 0, 1)
    assert stage.asked.count(Life(0, 0)) >= 3


async def test_an_expelled_blender_is_killed_and_started_again(make: Make) -> None:
    """An expelled life is killed and restarted; the last error names the reason of the first expulsion."""
    stage = make()
    for _ in range(3):
        await stage.serve(0)
        stage.fleet.expel(stage.process().life, "sent garbage")
        stage.fleet.expel(stage.process().life, "sent more")
        assert stage.process().killed
        await stage.time.go(2)
    error = await stage.error()
    assert "Blender 0 sent garbage and was killed." in str(error)


async def test_expelling_a_blender_that_ends_does_nothing(make: Make) -> None:
    """Expelling a Blender whose process has ended changes nothing, and its next life follows."""
    stage = make(instances=2)
    await stage.serve(0, 1)
    ending = asyncio.Event()

    async def stop(ask: Callable[[], None], grace: float) -> None:
        await ending.wait()

    stage.process().stop = stop  # type: ignore[method-assign]
    life = stage.process().life
    stage.process().exit(1)
    await settled()
    assert stage.fleet.states[0] == "stopping"
    stage.fleet.expel(life, "sent garbage")
    ending.set()
    await settled()
    assert stage.fleet.states[0] == "backoff"


async def test_messages_of_an_ended_life_change_nothing(make: Make) -> None:
    """Late messages of an earlier life, or of an unknown instance, do not change the present life."""
    stage = make()
    await stage.serve(0)
    late = stage.process().life
    stage.process().exit(1)
    await stage.time.go(1)
    fleet = stage.fleet
    fleet.ready(late)
    fleet.beat(late, 1)
    fleet.leased(late)
    fleet.answered(late, more=False)
    fleet.expel(late, "sent garbage")
    fleet.beat(Life(9, 0), 1)
    assert fleet.states == {0: "starting"}
    assert not stage.process().killed


async def test_a_cancelled_fleet_stops_all_instances(make: Make) -> None:
    """Cancelling asks the instances that serve to end, stops all of them, and starts none again."""
    stage = make(instances=2)
    await stage.serve(0)
    stage.running.cancel()
    await asyncio.wait([stage.running])
    assert all(stage.process(number).killed for number in range(2))
    assert Life(0, 0) in stage.asked
    assert stage.fleet.states == {0: "stopped", 1: "stopped"}
    assert sorted(stage.over) == [Life(0, 0), Life(1, 0)]


async def test_each_ready_is_reported_once(make: Make) -> None:
    """`on_ready` is called when an instance serves and may be leased to, and not for a life that is over."""
    stage = make(instances=2)
    await stage.serve(1)
    assert stage.ready == [[Life(1, 0)]]
    await stage.serve(0)
    assert stage.ready == [[Life(1, 0)], [Life(0, 0), Life(1, 0)]]
    stage.process(1).exit(1)
    await settled()
    stage.fleet.ready(Life(1, 0))
    assert len(stage.ready) == 2
    await stage.time.go(1)
    await stage.serve(1)
    assert stage.ready[2] == [Life(0, 0), Life(1, 1)]


async def test_instances_may_be_numbered_from_another_number(make: Make) -> None:
    """A fleet with `first` numbers its instances from there: lives, states and errors say so."""
    stage = make(instances=2, first=6, restart=RestartPolicy(max_restarts=0))
    assert stage.fleet.states == {6: "new", 7: "new"}
    await stage.serve(6, 7)
    assert stage.fleet.ready_lives() == [Life(6, 0), Life(7, 0)]
    stage.process(7).exit(1)
    error = await stage.error()
    assert isinstance(error, CrashLoop)
    assert error.instance == 7


async def test_a_blender_that_lacks_packages_starts_again_after_their_installation(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Missing packages are installed once and use up no restart; if they are still missing, the fleet gives up."""
    installed: list[list[str]] = []

    async def install(names: list[str], python: str, folder: Path) -> None:
        installed.append(names)

    monkeypatch.setattr(packages, "install", install)
    lacking = Report(packages=["pyzmq"], python="3.10", folder=str(tmp_path))
    stage = make(restart=RestartPolicy(max_restarts=0))
    await settled()
    stage.process().exit(1, report=lacking)
    await settled()
    assert installed == [["pyzmq"]]
    assert stage.spawned == [(0, Life(0, 0)), (0, Life(0, 1))]
    assert not any(stage.fleet.restarts.values())
    stage.process().exit(1, report=lacking)
    error = await stage.error()
    assert "pyzmq for Blender's Python 3.10 are in" in str(error)
    assert len(installed) == 1
