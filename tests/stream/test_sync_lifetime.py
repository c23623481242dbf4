"""SyncStream from its start to its end: failures, closing, interrupts, a dying event loop, and a program that exits."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import asyncblend as ab
from asyncblend import aio
from asyncblend.fleet import discovery
from asyncblend.stream import bridge, sync_frames
from asyncblend.testing import fake_blender
from tests.waiting import until

Write = Callable[..., Path]
Make = Callable[..., ab.SyncStream]

LIMIT = 60.0  # seconds; the bound of failure of every wait here
PLAIN = "def sample(task): return {}"


# -- the start ---------------------------------------------------------------------------------------------------


def test_before_the_start(make_sync: Make) -> None:
    """Everything that needs the fleet says so; the counters are zero."""
    stream = make_sync(start=False)
    for call in (lambda: next(stream), stream.frames, lambda: stream.render(1), stream.flush, stream.wait_ready):
        with pytest.raises(ab.ConfigError, match="not started; use it in a `with` block"):
            call()
    assert (stream.stats().delivered, dict(stream.stats().state)) == (0, {0: "new", 1: "new"})
    assert stream.state_dict()["watermark"] == 0
    assert not stream.usable
    stream.close()
    for call in (lambda: next(stream), stream.frames, lambda: stream.render(1), stream.flush):
        with pytest.raises(ab.StreamClosed):
            call()


def test_it_starts_once(make_sync: Make) -> None:
    """A second start is refused, while it runs and afterwards."""
    stream = make_sync()
    with pytest.raises(ab.ConfigError, match="started only once"):
        stream.start()
    stream.close()
    with pytest.raises(ab.ConfigError, match="started only once"), stream:
        pytest.fail("entered")


def test_a_fleet_that_cannot_start_raises_from_start(make_sync: Make) -> None:
    """The caller gets the one error as itself; the thread is gone, and later calls raise the error too."""
    for options, error in (
        ({"faults": {"exit_at_start": 9}}, ab.InstanceExited),
        ({"blender": "/nowhere/blender"}, ab.BlenderNotFound),
        ({"script": "nowhere.py"}, ab.ConfigError),
        ({"faults": {"never_ready": True}, "timeouts": ab.Timeouts(start=0.3)}, ab.StartTimeout),
    ):
        stream = make_sync(start=False, **options)
        with pytest.raises(error):
            stream.start()
        assert not stream.usable
        for call in (stream.frames, lambda: next(stream), lambda: stream.render(1), stream.wait_ready):  # noqa: B023
            with pytest.raises(error):
                call()


def test_passes_begun_while_the_fleet_starts(make_sync: Make, tmp_path: Path) -> None:
    """Nobody waits for the fleet; each pass has its indices and its state from the beginning."""
    gate = tmp_path / "gate"
    late = f"import os, threading\nwhile not os.path.exists({str(gate)!r}): threading.Event().wait(0.005)\n"
    stream = make_sync(late + PLAIN, length=12, start=False)
    stream.start(wait=False)
    first = stream.frames()
    second = stream.frames(range(50, 60))
    state = {**stream.frames(range(100, 112)).state_dict(), "watermark": 4, "above": [6]}
    third = stream.frames(range(100, 112), state=state)
    assert third.poll() is None
    assert third.state_dict() == state
    second.close()
    with pytest.raises(ab.StreamClosed):
        second.get(LIMIT)
    gate.touch()
    stream.wait_ready()
    assert sorted(frame.index for frame in third) == [104, 105, *range(107, 112)]
    assert sorted(frame.index for frame in first) == list(range(12))


def test_a_pass_begun_before_there_is_a_fleet(make_sync: Make, elsewhere: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits until Blender is found, in its own thread."""
    stream = make_sync(length=5, start=False)
    begun: list[Any] = []
    find = discovery.find_blender

    def find_later(blender: Any) -> Any:
        begun.append(elsewhere(lambda: [frame.index for frame in stream.frames(range(7, 12))]))
        return find(blender)

    monkeypatch.setattr("asyncblend.fleet.place.find_blender", find_later)
    stream.start(wait=False)
    until(lambda: bool(begun))
    assert sorted(begun[0].result()) == list(range(7, 12))


def test_a_start_that_fails_later_is_told_to_the_passes(make_sync: Make) -> None:
    """To one that was begun meanwhile, and to one begun afterwards."""
    stream = make_sync(faults={"never_ready": True}, timeouts=ab.Timeouts(start=0.5, stop=0.1), start=False)
    stream.start(wait=False)
    frames = stream.frames()
    for _ in range(2):
        with pytest.raises(ab.StartTimeout):
            frames.get(LIMIT)
    until(lambda: not stream.usable)
    with pytest.raises(ab.StartTimeout):
        stream.frames().get(LIMIT)


# -- the end -----------------------------------------------------------------------------------------------------


def test_close_from_another_thread_wakes_every_consumer(make_sync: Make, gates: Any, elsewhere: Any) -> None:
    """Each gets StreamClosed, not an end that looks like the stream's own, and so does every later call."""
    stream = make_sync(gates.script, instances=1)
    frames = stream.frames()
    waiting = [
        elsewhere(call)
        for call in (lambda: frames.get(LIMIT), lambda: next(stream), lambda: stream.render(9), lambda: list(stream.frames()))
    ]  # fmt: skip
    until(lambda: stream.stats().rendering >= 3)
    elsewhere(stream.close).result()
    for one in waiting:
        assert isinstance(one.result(), ab.StreamClosed)
    for call in (
        lambda: frames.get(LIMIT), lambda: next(frames), frames.poll, lambda: next(stream), stream.frames, stream.flush,
        lambda: stream.render(1),
    ):  # fmt: skip
        with pytest.raises(ab.StreamClosed, match="was closed"):
            call()
    assert frames.flush() == 0


def test_a_loop_that_loses_its_fleet_raises(make_sync: Make) -> None:
    """A `for` over a closed stream does not end as if all samples had come, and what it got is what the state says."""
    stream = make_sync(queue_size=4)
    got = []
    with pytest.raises(ab.StreamClosed):
        for frame in stream:
            got.append(frame.index)
            if len(got) == 3:
                until(lambda: stream.stats().queued == 4)
                stream.close()
    assert len(got) == 3
    state = stream.state_dict()
    assert state["watermark"] + len(state["above"]) == 3
    assert stream.stats().queued == 0  # frames and their memory are gone


def test_close_twice_and_from_several_threads(make_sync: Make, elsewhere: Any) -> None:
    """Each call returns when nothing is left."""
    stream = make_sync()
    next(stream)
    closing = [elsewhere(stream.close) for _ in range(3)]
    stream.close()
    assert not stream.usable
    assert set(stream.stats().state.values()) == {"stopped"}
    assert [one.result() for one in closing] == [None] * 3
    stream.close()


def test_close_during_the_start(make_sync: Make, elsewhere: Any) -> None:
    """A fleet that is not ready stops at once, not at its start timeout."""
    stream = make_sync(faults={"never_ready": True}, instances=1, start=False)
    starting = elsewhere(stream.start)
    until(lambda: "starting" in stream.stats().state.values())
    closing = elsewhere(stream.close)
    assert isinstance(starting.result(), ab.StreamClosed)
    assert closing.result() is None


def test_stats_after_close(make_sync: Make, elsewhere: Any) -> None:
    """They are those of the end, and any thread may ask."""
    stream = make_sync(length=9)
    assert len(list(stream)) == 9
    stream.close()
    stats = stream.stats()
    assert (stats.delivered, stats.rendering, stats.queued, sum(stats.frames.values())) == (9, 0, 0, 9)
    assert set(stats.state.values()) == {"stopped"}
    assert elsewhere(stream.stats).result() == stats
    assert stream.state_dict()["watermark"] == 9


def test_a_closed_stream_is_not_kept_alive(write_script: Write, tmp_path: Path) -> None:
    """What closes open streams when the program exits holds no closed one."""
    options: dict[str, Any] = {
        "script": write_script(PLAIN),
        "blender": fake_blender(tmp_path / "fake"),
        "instances": 1,
    }
    stream = ab.BlenderStream(**options).sync()
    with stream:
        assert next(stream).index == 0
    gone = weakref.ref(stream)
    del stream
    gc.collect()
    assert gone() is None


# -- interrupts --------------------------------------------------------------------------------------------------


def interrupt(when: Callable[[], bool]) -> threading.Thread:
    """Send this process Ctrl-C as soon as a condition holds."""

    def send() -> None:
        until(when)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def test_an_interrupted_wait_loses_nothing(make_sync: Make, gates: Any) -> None:
    """KeyboardInterrupt comes out of the loop; the stream can be consumed further."""
    stream = make_sync(gates.script, instances=1, length=3)
    sending = interrupt(lambda: gates.begun(0))
    with pytest.raises(KeyboardInterrupt):
        for _ in stream:
            pytest.fail("nothing was let go")
    sending.join(LIMIT)
    gates.let_all_go()
    assert sorted(frame.index for frame in stream) == [0, 1, 2]


def test_ctrl_c_between_any_two_lines_loses_no_slot(make_sync: Make) -> None:
    """All frames come, none twice, but for those that Ctrl-C takes away while they are being returned."""
    stream = make_sync(PLAIN, length=200, queue_size=3)
    got, interrupted = [next(stream).index], 0
    files = {sync_frames.__file__, bridge.__file__}
    for line in range(1, 100):
        until(lambda: stream.stats().queued == 3)
        left = line

        def trace(frame: Any, event: str, _: Any) -> Any:
            nonlocal left
            if frame.f_code.co_filename not in files:
                return None
            left -= event == "line"
            if left == 0 and event == "line":
                raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            got.append(next(stream).index)
        except KeyboardInterrupt:
            interrupted += 1
        finally:
            sys.settrace(before)
        if left > 0:
            break
    assert interrupted > 20
    got += [frame.index for frame in stream]
    assert len(got) == len({*got})
    assert 200 - len(got) <= 5  # lines after the one that removes it from the channel
    assert stream.stats().delivered == 200


@pytest.fixture
def interrupt_calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[ab.SyncStream], None]:
    """Make Ctrl-C hit the consumer's thread just when the event-loop thread has done what it was called for."""

    def arrange(stream: ab.SyncStream) -> None:
        call = stream._thread.call

        def interrupted(function: Callable[[], object]) -> object:
            call(function)
            monkeypatch.undo()
            raise KeyboardInterrupt

        monkeypatch.setattr(stream._thread, "call", interrupted)

    return arrange


def test_an_interrupted_beginning_loses_nothing(
    make_sync: Make, interrupt_calls: Callable[[ab.SyncStream], None]
) -> None:
    """The pass has begun, its caller does not know: the next call goes on with it."""
    stream = make_sync(PLAIN, length=3)
    interrupt_calls(stream)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert sorted(frame.index for frame in stream) == [0, 1, 2]


def test_an_interrupted_beginning_of_another_pass_ends_it(
    make_sync: Make, interrupt_calls: Callable[[ab.SyncStream], None]
) -> None:
    """Nobody has its frames, so nothing is rendered for it."""
    stream = make_sync(PLAIN, length=3)
    for begin in (lambda: stream.frames(range(1000)), lambda: stream.render(7)):
        interrupt_calls(stream)
        with pytest.raises(KeyboardInterrupt):
            begin()
    gc.collect()
    stream.stats()
    assert not stream._bridge.channels
    assert sorted(frame.index for frame in stream) == [0, 1, 2]


def test_an_interrupted_start_leaves_nothing(make_sync: Make) -> None:
    """The Blenders that were starting are gone."""
    stream = make_sync(faults={"never_ready": True}, timeouts=ab.Timeouts(start=1000.0), start=False)
    sending = interrupt(lambda: "starting" in stream.stats().state.values())
    with pytest.raises(KeyboardInterrupt):
        stream.start()
    sending.join(LIMIT)
    assert not stream.usable


def test_an_interrupted_close_kills_at_once(make_sync: Make) -> None:
    """Blenders that do not stop by themselves are not waited for."""
    stream = make_sync(faults={"ignore_stop": True}, timeouts=ab.Timeouts(stop=1000.0), instances=1)
    next(stream)
    sending = interrupt(lambda: "stopping" in stream.stats().state.values())
    with pytest.raises(KeyboardInterrupt):
        stream.close()
    sending.join(LIMIT)
    assert not stream.usable


EXIT = """
import os, sys, threading
import asyncblend as ab
how, script, fake = sys.argv[1:]
stream = ab.BlenderStream(script=script, blender=fake, instances=2).sync()
stream.start()
frames = stream.frames(range(1000))
print(next(stream).index + next(frames).index >= 0, flush=True)
if how == "exception":
    raise ArithmeticError
if how == "exit":
    sys.exit(3)
if how == "thread":  # it still waits for frames when the main thread ends
    threading.Thread(target=lambda: list(stream), daemon=True).start()
"""


@pytest.mark.parametrize(("how", "status"), [("end", 0), ("exception", 1), ("exit", 3), ("thread", 0)])
@pytest.mark.exhaustive
def test_a_program_may_exit_with_an_open_stream(how: str, status: int, write_script: Write, tmp_path: Path) -> None:
    """It ends with its own status, and no Blender is left; the fixture `no_leaks` looks for them."""
    (tmp_path / "program.py").write_text(EXIT)
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py", how, write_script(PLAIN), fake_blender(tmp_path / "fake")],
        capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (status, "True\n"), done.stderr
    errors = [line for line in done.stderr.splitlines() if "Error" in line and "raise" not in line]
    assert errors == (["ArithmeticError"] if how == "exception" else [])


# -- an event loop that dies -------------------------------------------------------------------------------------


class Outrage(BaseException):
    """What no one expects."""


def raise_in_loop(error: BaseException) -> Callable[[asyncio.AbstractEventLoop], object]:
    def callback() -> None:
        raise error

    return lambda loop: loop.call_soon_threadsafe(callback)


def cancel_everything(loop: asyncio.AbstractEventLoop) -> None:
    def cancel() -> None:
        for task in asyncio.all_tasks():
            task.cancel()

    loop.call_soon_threadsafe(cancel)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize(
    "kill",
    [
        pytest.param(lambda loop: loop.call_soon_threadsafe(loop.stop), id="stopped"),
        pytest.param(raise_in_loop(SystemExit(3)), id="SystemExit"),
        pytest.param(raise_in_loop(KeyboardInterrupt()), id="KeyboardInterrupt"),
        pytest.param(cancel_everything, id="cancelled"),
    ],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.exhaustive
def test_a_loop_that_dies_wakes_the_consumers(
    kill: Callable[[Any], object],
    loop: str,
    make_sync: Make,
    gates: Any,
    elsewhere: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever waits gets an error, later calls do too, and nothing is left running."""
    if loop == "asyncio":
        monkeypatch.setattr("asyncblend.aio.loop_factory", lambda: asyncio.new_event_loop)
    stream = make_sync(gates.script, instances=1)
    frames = stream.frames()
    waiting = [elsewhere(lambda: frames.get(LIMIT)), elsewhere(lambda: stream.render(50))]
    until(lambda: stream.stats().rendering == 3)
    kill(stream._thread._loop)
    for one in waiting:
        error = one.result()
        assert isinstance(error, Exception)
        assert not isinstance(error, TimeoutError)
    stream._thread._thread.join(LIMIT)
    assert not stream.usable
    with pytest.raises(Exception) as later:  # noqa: PT011
        frames.get(LIMIT)
    assert not isinstance(later.value, TimeoutError)
    with pytest.raises(ab.StreamClosed):
        stream.frames()
    assert stream.stats().delivered == 0
    stream.close()


@pytest.mark.parametrize("error", [Outrage, SystemExit, KeyboardInterrupt])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_base_exception_in_a_task_wakes_the_consumer(error: type[BaseException], make_sync: Make) -> None:
    """Whatever a task of the fleet dies of, the consumer gets it after the good frames."""

    def params(index: int) -> dict[str, Any]:
        if index == 3:
            raise error("in the loop thread")
        return {}

    frames = make_sync(params=params, instances=1, prefetch=1).frames()
    seen = []
    with pytest.raises((error, ab.StreamClosed)) as caught:
        while True:
            seen.append(frames.get(LIMIT).index)
    assert seen == [0, 1, 2]
    assert isinstance(caught.value, error) or isinstance(caught.value.__cause__, error)


def test_which_event_loop_it_is(make_sync: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """uvloop's where it is installed, but asyncio's own where somebody handles SIGCHLD, as torch's DataLoader does."""
    uvloop = pytest.importorskip("uvloop")
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        assert isinstance(make_sync(instances=1)._thread._loop, uvloop.Loop)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        stream = make_sync(instances=1)
        assert type(stream._thread._loop).__module__.startswith("asyncio.")
        stream.close()  # with the handler in place
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        monkeypatch.setitem(sys.modules, "uvloop", None)
        assert aio.loop_factory() is asyncio.new_event_loop
        assert len(list(make_sync(instances=1, length=5))) == 5
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_the_number_of_a_thread_that_has_ended_is_another_ones(make_sync: Any) -> None:
    """A stream that could not start says why in every thread, also in one that got the number of its own."""
    stream = make_sync("raise RuntimeError('no scene')", start=False)
    with pytest.raises(ab.InstanceExited, match="no scene"):
        stream.start()
    seen: list[type[BaseException]] = []

    def take() -> None:
        try:
            next(stream.frames([0]))
        except ab.AsyncblendError as error:
            seen.append(type(error))

    for _ in range(20):
        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
    assert set(seen) == {ab.InstanceExited}
