"""The bridge: a stream in a background thread, taken synchronously by another one."""

from __future__ import annotations

import asyncio
import gc
import os
import queue
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from asyncblend.stream.bridge import Bridge, Pass

import asyncblend as ab
from asyncblend import aio
from asyncblend.fleet import discovery
from asyncblend.stream import stream
from asyncblend.stream.dispatcher import Dispatcher
from asyncblend.stream.queue import EndOfStream
from asyncblend.testing import fake_blender

Write = Callable[..., Path]
Open = Callable[..., Bridge]

LIMIT = 20.0  # seconds; the bound of failure of every wait here
PLAIN = "def sample(task): return {'twice': 2 * task.index}"
# Holds each sample back until a file of its index is there.
GATED = """
import os, threading
def sample(task):
    while not os.path.exists({gates!r} + f"/{{task.index}}"):
        threading.Event().wait(0.005)
    return {{}}
"""


@pytest.fixture
def make(tmp_path: Path, write_script: Write) -> Iterator[Open]:
    """Make a bridge to fakes, which is closed at the end: `make(body, faults={}, **options)`."""
    bridges: list[Bridge] = []

    def make(body: str = PLAIN, faults: dict[str, Any] | None = None, **options: Any) -> Bridge:
        fake = fake_blender(tmp_path / f"fake{len(bridges)}", **(faults or {}))
        script = write_script(body, name=f"script{len(bridges)}.py")
        stop = ab.Timeouts(stop=0.1)  # a script that waits at its gate hears of no STOP
        config = ab.StreamConfig(**{"script": script, "blender": fake, "instances": 2, "timeouts": stop, **options})
        bridges.append(Bridge(config))
        return bridges[-1]

    yield make
    for bridge in bridges:
        assert Elsewhere(bridge.close).result() is None


def take(frames: Pass, count: int) -> list[int]:
    return [frames.get(LIMIT).index for _ in range(count)]


def rest(frames: Pass) -> list[int]:
    """All frames up to the end of the stream."""
    indices = []
    while True:
        try:
            indices.append(frames.get(LIMIT).index)
        except EndOfStream:
            return indices


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that the fleet brings about."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end
        threading.Event().wait(0.002)


class Elsewhere:
    """A call in another thread; `result` gives what it returned or raised."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._result: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._function = function
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result.put(self._function())
        except BaseException as error:
            self._result.put(error)

    def result(self) -> Any:
        result = self._result.get(timeout=LIMIT)
        self._thread.join(LIMIT)
        return result


# -- places -------------------------------------------------------------------------------------------------------


def test_a_consumer_that_takes_nothing_bounds_the_fleet(make: Open) -> None:
    """No sample beyond queue_size is leased, however many of the frames have crossed into this thread already."""
    leased: list[int] = []

    def note(index: int) -> dict[str, Any]:
        leased.append(index)
        return {}

    bridge = make(queue_size=3, params=note)
    frames = bridge.open()
    until(lambda: bridge.stats().queued == 3)
    assert bridge.stats().rendering == 0
    assert sorted(leased) == [0, 1, 2]
    until(lambda: frames._items.qsize() == 3)  # all have crossed, and none is taken
    assert (bridge.stats().delivered, bridge.stats().queued) == (0, 3)
    assert bridge.state_dict()["watermark"] == 0

    frames.get(LIMIT)
    until(lambda: bridge.stats().queued == 3)
    stats = bridge.stats()
    assert (stats.delivered, stats.rendering) == (1, 0)
    assert sorted(leased) == [0, 1, 2, 3]


def test_the_state_counts_only_what_this_thread_has_taken(make: Open) -> None:
    """Frames on their way across the threads are not in state_dict, and come again after a resume."""
    bridge = make(length=30, queue_size=8)
    frames = bridge.open()
    for count in range(1, 6):
        taken = frames.get(LIMIT).index
        state = bridge.state_dict()
        assert state["watermark"] + len(state["above"]) == count
        assert taken < state["watermark"] or taken in state["above"]
    bridge.close()
    assert bridge.state_dict() == state

    resumed = make(length=30).open(state=state)
    have = {*range(state["watermark"]), *state["above"]}
    assert sorted(rest(resumed)) == sorted(set(range(30)) - have)


def test_frames_arrive_once_and_then_the_stream_ends(make: Open) -> None:
    """A finite pass has each index once, and its end stays its end."""
    frames = make(length=25, queue_size=4).open()
    got = list(frames)
    assert sorted(frame.index for frame in got) == list(range(25))
    assert all(frame["twice"] == 2 * frame.index for frame in got)
    assert list(frames) == []
    for _ in range(3):
        with pytest.raises(EndOfStream):
            frames.get(LIMIT)


def test_an_empty_stream_ends_at_once(make: Open) -> None:
    """Nothing to render is no reason to wait."""
    assert list(make(length=0).open()) == []


# -- waiting ------------------------------------------------------------------------------------------------------


def test_get_waits_no_longer_than_it_was_told(make: Open, tmp_path: Path) -> None:
    """TimeoutError when nothing comes; the frame is not lost and is given later."""
    bridge = make(GATED.format(gates=str(tmp_path)), instances=1, length=2)
    frames = bridge.open()
    with pytest.raises(TimeoutError, match=r"within 0\.05 s"):
        frames.get(0.05)
    with pytest.raises(TimeoutError):
        frames.get(0)
    (tmp_path / "0").touch()
    (tmp_path / "1").touch()
    assert take(frames, 2) == [0, 1]
    with pytest.raises(EndOfStream):
        frames.get(0.05 + LIMIT)


# -- errors -------------------------------------------------------------------------------------------------------


def test_an_error_comes_after_the_good_frames_and_stays(make: Open) -> None:
    """What was rendered before is given first, then the error itself, each time."""
    body = "def sample(task):\n    if task.index == 6: raise ValueError('no cube')\n    return {}"
    bridge = make(body, instances=1, ordered=True)
    frames = bridge.open()
    assert take(frames, 6) == list(range(6))
    for _ in range(3):
        with pytest.raises(ab.SampleError, match="no cube") as caught:
            frames.get(LIMIT)
        assert caught.value.index == 6
    assert bridge.usable  # the Blender is well


def test_the_error_stays_the_first_one_after_close(make: Open) -> None:
    """Closing adds no second end."""
    bridge = make("def sample(task): raise ValueError('no cube')", instances=1)
    frames = bridge.open()
    with pytest.raises(ab.SampleError):
        frames.get(LIMIT)
    bridge.close()
    for _ in range(3):
        with pytest.raises(ab.SampleError):
            frames.get(LIMIT)


def test_a_fleet_that_cannot_start_raises_from_open(make: Open) -> None:
    """The one error, as itself; the thread is gone."""
    bridge = make(faults={"exit_at_start": 9})
    with pytest.raises(ab.InstanceExited) as caught:
        bridge.open()
    assert caught.value.returncode == 9
    assert not bridge.usable


def test_a_crash_loop_leaves_the_bridge_unusable(make: Open) -> None:
    """The consumer has the frames that were made, then CrashLoop; another pass raises it too."""
    bridge = make(faults={"crash_after": 2}, instances=1, restart=ab.RestartPolicy(max_restarts=0))
    frames = bridge.open()
    got = 0
    with pytest.raises(ab.CrashLoop):
        while True:
            frames.get(LIMIT)
            got += 1
    assert got == 2
    assert not bridge.usable
    with pytest.raises(ab.CrashLoop):
        bridge.begin().get(LIMIT)


def test_params_that_raise_reach_the_consumer(make: Open) -> None:
    """The user's own exception comes out of the loop thread unchanged."""

    def params(index: int) -> dict[str, Any]:
        if index == 2:
            raise LookupError("no curriculum")
        return {}

    frames = make(params=params, instances=1).open()
    with pytest.raises(LookupError, match="no curriculum"):
        take(frames, 3)


# -- passes -------------------------------------------------------------------------------------------------------


def test_a_second_pass_ends_the_first_with_stream_closed(make: Open) -> None:
    """The old pass gives what had crossed already, then StreamClosed for ever; the new one starts at the beginning."""
    bridge = make(length=12, queue_size=4)
    first = bridge.open()
    take(first, 2)
    second = bridge.begin()
    with pytest.raises(ab.StreamClosed, match="another iteration"):
        take(first, 20)
    for _ in range(3):
        with pytest.raises(ab.StreamClosed, match="another iteration"):
            first.get(LIMIT)
    assert sorted(rest(second)) == list(range(12))


def test_a_waiting_pass_is_ended_by_the_next(make: Open, tmp_path: Path) -> None:
    """A consumer that waits in the old pass wakes up."""
    bridge = make(GATED.format(gates=str(tmp_path)), instances=1)
    first = bridge.open()
    waiting = Elsewhere(lambda: first.get(LIMIT))
    bridge.begin(start=7)
    assert isinstance(waiting.result(), ab.StreamClosed)


def test_the_old_pass_takes_no_frame_of_the_new_one(make: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the new pass begins between a frame's arrival and the moment the old pass hears of it."""
    bridge = make(instances=1, length=5)
    begun: queue.SimpleQueue[Pass] = queue.SimpleQueue()
    arrived: list[int] = []
    arrive = Dispatcher.frame

    def frame(self: Dispatcher, *about: Any) -> None:
        if not arrived:
            asyncio.get_running_loop().call_soon(lambda: begun.put(bridge._begin(None, None)))
        arrived.append(1)
        arrive(self, *about)

    monkeypatch.setattr(Dispatcher, "frame", frame)
    bridge.open()
    assert sorted(rest(begun.get(timeout=LIMIT))) == list(range(5))


LATE = """
import os, threading
while not os.path.exists({gate!r}):
    threading.Event().wait(0.005)
def sample(task): return {{}}
"""


def test_passes_begun_while_the_fleet_starts(make: Open, tmp_path: Path) -> None:
    """Nobody waits for it. The last one counts, and its state is its own from the beginning."""
    gate = tmp_path / "gate"
    bridge = make(LATE.format(gate=str(gate)), length=12)
    first = bridge.open(wait=False)
    state = {**bridge.state_dict(), "start": 100, "watermark": 104, "above": [106]}
    second = Elsewhere(lambda: bridge.begin(50, wait=False)).result()
    third = Elsewhere(lambda: bridge.begin(100, state, wait=False)).result()
    assert third.poll() is None
    assert bridge.state_dict() == state
    with pytest.raises(ab.ConfigError, match="not a saved state"):
        bridge.begin(state={}, wait=False)
    for ended in (first, second):
        with pytest.raises(ab.StreamClosed, match="another iteration"):
            ended.get(LIMIT)
    gate.touch()
    assert sorted(rest(third)) == [104, 105, *range(107, 112)]


def test_a_pass_begun_just_before_there_is_a_fleet(make: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream is entered then, but has nothing to begin a pass with."""
    bridge = make(length=5)
    begun: queue.SimpleQueue[Pass] = queue.SimpleQueue()

    def find(blender: Any) -> Any:
        asyncio.get_running_loop().call_soon(lambda: begun.put(bridge._begin(7, None)))
        return discovery.find_blender(blender)

    monkeypatch.setattr(stream, "find_blender", find)
    bridge.open(wait=False)
    assert sorted(rest(begun.get(timeout=LIMIT))) == list(range(7, 12))


def test_a_start_that_fails_is_told_to_the_pass_begun_meanwhile(make: Open) -> None:
    """And to one begun afterwards."""
    bridge = make(faults={"never_ready": True}, timeouts=ab.Timeouts(start=0.5, stop=0.1))
    bridge.open(wait=False)
    with pytest.raises(ab.StartTimeout):
        bridge.begin(wait=False).get(LIMIT)
    until(lambda: not bridge.usable)
    with pytest.raises(ab.StartTimeout):
        bridge.begin(wait=False).get(LIMIT)


def test_many_passes_on_one_fleet_lose_nothing(make: Open) -> None:
    """Passes broken off at all moments never spoil the next one."""
    bridge = make(length=12, queue_size=4, prefetch=2)
    frames = bridge.open()
    for n in range(400):
        take(frames, n % 6)
        frames = bridge.begin()
        if n % 20 == 0:
            assert sorted(rest(frames)) == list(range(12))
            frames = bridge.begin()
    assert bridge.stats().restarts == 0


def test_what_was_taken_of_an_old_pass_does_not_count_for_the_new_one(make: Open) -> None:
    """What was left of the old pass is dropped: it frees no place, enters no state, and is rendered again."""
    bridge = make(queue_size=4)
    first = bridge.open()
    until(lambda: first._items.qsize() == 4)
    second = bridge.begin()
    with pytest.raises(ab.StreamClosed):
        first.get(LIMIT)
    assert bridge.state_dict()["watermark"] == 0
    assert bridge.state_dict()["above"] == []
    until(lambda: bridge.stats().queued == 4)
    assert bridge.stats().rendering == 0
    second.get(LIMIT)
    state = bridge.state_dict()
    assert state["watermark"] + len(state["above"]) == 1


# -- the end ------------------------------------------------------------------------------------------------------


def test_close_from_another_thread_wakes_the_consumer(make: Open, tmp_path: Path) -> None:
    """It gets StreamClosed, not an end that looks like the stream's own."""
    bridge = make(GATED.format(gates=str(tmp_path)), instances=1)
    frames = bridge.open()
    waiting = Elsewhere(lambda: frames.get(LIMIT))
    Elsewhere(bridge.close).result()
    assert isinstance(waiting.result(), ab.StreamClosed)
    for _ in range(3):
        with pytest.raises(ab.StreamClosed, match="was closed"):
            frames.get(LIMIT)


def test_a_loop_over_a_closed_pass_raises(make: Open) -> None:
    """A `for` that loses its fleet does not end as if the epoch were complete."""
    bridge = make()
    frames = bridge.open()
    with pytest.raises(ab.StreamClosed):
        for frame in frames:
            if frame.index == 3:
                bridge.close()


def test_close_twice_and_from_several_threads(make: Open) -> None:
    """Each call returns when nothing is left."""
    bridge = make()
    take(bridge.open(), 1)
    closing = [Elsewhere(bridge.close) for _ in range(3)]
    bridge.close()
    assert not bridge._thread.is_alive()
    assert [one.result() for one in closing] == [None] * 3
    bridge.close()
    with pytest.raises(ab.StreamClosed):
        bridge.begin()


def test_close_before_open_and_during_the_start(make: Open) -> None:
    """A bridge that was never opened closes; one whose Blender is not ready stops at once, not at its start timeout."""
    make().close()
    bridge = make(faults={"never_ready": True}, instances=1)
    opening = Elsewhere(bridge.open)
    until(lambda: "starting" in bridge.stats().state.values())
    closing = Elsewhere(bridge.close)
    assert isinstance(opening.result(), ab.StreamClosed)
    assert closing.result() is None


def test_stats_after_close(make: Open) -> None:
    """They are those of the end, and any thread may ask."""
    bridge = make(length=9)
    assert rest(bridge.open())
    bridge.close()
    stats = bridge.stats()
    assert (stats.delivered, stats.rendering, stats.queued, sum(stats.frames.values())) == (9, 0, 0, 9)
    assert set(stats.state.values()) == {"stopped"}
    assert Elsewhere(bridge.stats).result() == stats
    assert bridge.state_dict()["watermark"] == 9


def test_stats_before_open(make: Open) -> None:
    """A bridge that was not opened has nothing to tell."""
    stats = make().stats()
    assert stats.delivered == 0
    assert dict(stats.state) == {0: "new", 1: "new"}


def test_a_dropped_bridge_is_not_kept_alive(make: Open, write_script: Write, tmp_path: Path) -> None:
    """The registry of open bridges holds no closed one."""
    fake = fake_blender(tmp_path / "fake")
    bridge = Bridge(ab.StreamConfig(script=write_script(PLAIN), blender=fake, instances=1))
    bridge.open()
    bridge.close()
    gone = weakref.ref(bridge)
    del bridge
    gc.collect()
    assert gone() is None


# -- a loop thread that dies --------------------------------------------------------------------------------------


class Outrage(BaseException):
    """What no one expects."""


def raise_in_loop(error: BaseException) -> Callable[[Bridge], None]:
    def blow(bridge: Bridge) -> None:
        def callback() -> None:
            raise error

        assert bridge._loop is not None
        bridge._loop.call_soon_threadsafe(callback)

    return blow


def stop_loop(bridge: Bridge) -> None:
    assert bridge._loop is not None
    bridge._loop.call_soon_threadsafe(bridge._loop.stop)


def cancel_everything(bridge: Bridge) -> None:
    def cancel() -> None:
        for task in asyncio.all_tasks():
            task.cancel()

    assert bridge._loop is not None
    bridge._loop.call_soon_threadsafe(cancel)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize(
    "kill",
    [
        pytest.param(stop_loop, id="stopped"),
        pytest.param(raise_in_loop(SystemExit(3)), id="SystemExit"),
        pytest.param(raise_in_loop(KeyboardInterrupt()), id="KeyboardInterrupt"),
        pytest.param(cancel_everything, id="cancelled"),
    ],
)
def test_a_loop_that_dies_wakes_the_consumer(
    kill: Callable[[Bridge], None],
    loop: str,
    make: Open,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A consumer that waits gets an error, later calls too, and nothing is left running."""
    if loop == "asyncio":
        monkeypatch.setattr("asyncblend.aio.loop_factory", lambda: asyncio.new_event_loop)
    bridge = make(GATED.format(gates=str(tmp_path)), instances=1)
    frames = bridge.open()
    waiting = Elsewhere(lambda: frames.get(LIMIT))
    kill(bridge)
    heard = waiting.result()
    assert isinstance(heard, Exception)
    assert not isinstance(heard, EndOfStream | TimeoutError)
    bridge._thread.join(LIMIT)
    assert not bridge.usable
    with pytest.raises(Exception) as later:  # noqa: PT011
        frames.get(LIMIT)
    assert not isinstance(later.value, EndOfStream | TimeoutError)
    with pytest.raises(ab.StreamClosed):
        bridge.begin()
    assert bridge.stats().delivered == 0
    bridge.close()


@pytest.mark.parametrize("error", [Outrage, SystemExit, KeyboardInterrupt])
def test_a_base_exception_in_a_task_wakes_the_consumer(error: type[BaseException], make: Open) -> None:
    """Whatever a task of the fleet dies of, the consumer hears of it after the good frames."""

    def params(index: int) -> dict[str, Any]:
        if index == 3:
            raise error("in the loop thread")
        return {}

    bridge = make(params=params, instances=1, prefetch=1)
    frames = bridge.open()
    seen = []
    with pytest.raises((error, ab.StreamClosed)) as caught:
        while True:
            seen.append(frames.get(LIMIT).index)
    assert seen == [0, 1, 2]
    assert isinstance(caught.value, error) or isinstance(caught.value.__cause__, error)


# -- the process and its loop -------------------------------------------------------------------------------------


def test_a_forked_copy_raises_stream_closed(make: Open) -> None:
    """It neither hangs nor disturbs the fleet of its parent."""
    bridge = make(length=20, queue_size=4)
    frames = bridge.open()
    took = take(frames, 1)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = []
        for call in (frames.get, bridge.begin):
            try:
                call()
                said.append("nothing")
            except BaseException as error:
                said.append(type(error).__name__)
        bridge.close()
        said.append(str(bridge.usable))
        os.write(write, " ".join(said).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as told:
        assert told.read() == "StreamClosed StreamClosed False"
    assert os.waitpid(pid, 0)[1] == 0
    assert sorted(took + rest(frames)) == list(range(20))


def test_uvloop_is_used_where_it_is_installed(make: Open) -> None:
    """The loop of the background thread is uvloop's."""
    uvloop = pytest.importorskip("uvloop")
    bridge = make(instances=1)
    bridge.open()
    assert isinstance(bridge._loop, uvloop.Loop)


def test_a_death_is_noticed_where_somebody_handles_sigchld(make: Open) -> None:
    """As torch's DataLoader does once it has had workers: a Blender is restarted, and the bridge closes."""
    before = signal.signal(signal.SIGCHLD, lambda *_: None)
    try:
        bridge = make("import os\ndef sample(task): return {'pid': os.getpid()}", instances=1)
        frames = bridge.open()
        first = frames.get(LIMIT)["pid"]
        os.kill(first, signal.SIGKILL)
        until(lambda: frames.get(LIMIT)["pid"] != first)
        bridge.close()
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_without_uvloop_it_is_asyncios_own(make: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing uvloop is no error."""
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert aio.loop_factory() is asyncio.new_event_loop
    bridge = make(instances=1, length=5)
    assert sorted(rest(bridge.open())) == list(range(5))


def test_a_closed_pass_gives_no_more_frames(make: Open) -> None:
    """What nobody would count as taken is not given out: `state_dict` has all that the consumer has."""
    bridge = make(queue_size=4)
    frames = bridge.open()
    frames.get(LIMIT)
    until(lambda: bridge.stats().queued == 4)
    bridge.close()
    with pytest.raises(ab.StreamClosed):
        frames.get(LIMIT)
    assert bridge.state_dict()["watermark"] + len(bridge.state_dict()["above"]) == 1
    assert frames._items.qsize() == 1  # the end; frames and their memory are gone
