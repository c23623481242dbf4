"""SyncStream: a fleet in a background thread, consumed by programs without asyncio."""

from __future__ import annotations

import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asyncblend as ab
from asyncblend.testing import fake_blender
from tests.waiting import until

Write = Callable[..., Path]
Make = Callable[..., ab.SyncStream]

LIMIT = 60.0  # seconds; the bound of failure of every wait here
PLAIN = "def sample(task): return {'twice': 2 * task.index, 'level': task.params.get('level')}"
FAILS = "def sample(task):\n    if task.index == 6: raise ValueError('no cube')\n    return {}"


def consume(frames: ab.SyncFrames, count: int) -> list[int]:
    return [frames.get(LIMIT).index for _ in range(count)]


def indices_of(frames: Any) -> list[int]:
    return [frame.index for frame in frames]


# -- the stream's own pass ---------------------------------------------------------------------------------------


def test_a_with_block_is_all_it_takes(tmp_path: Path, write_script: Write) -> None:
    """Each index comes once, then the loop ends, and nothing is left of the fleet after the block."""
    fake = fake_blender(tmp_path / "fake")
    stream = ab.BlenderStream(script=write_script(PLAIN), blender=fake, instances=2, length=25, queue_size=4).sync()
    with stream as frames:
        assert frames is stream
        got = list(frames)
        assert sorted(frame.index for frame in got) == list(range(25))
        assert all(frame["twice"] == 2 * frame.index for frame in got)
        for _ in range(2):
            assert list(frames) == []
            assert next(frames, None) is None
        assert stream.usable
    assert not stream.usable
    assert set(stream.stats().state.values()) == {"stopped"}


def test_sync_takes_the_streams_config_and_state(make_sync: Make) -> None:
    """A state that was loaded into the BlenderStream is where the SyncStream goes on; an entered stream refuses."""
    first = make_sync(length=20, queue_size=3)
    got = indices_of(itertools.islice(first, 6))
    state = json.loads(json.dumps(first.state_dict()))
    first.close()
    assert first.state_dict() == state
    stream = ab.BlenderStream(first.config)
    stream.load_state_dict(state)
    with stream.sync() as rest:
        assert rest.state_dict() == state
        got += indices_of(rest)
    assert sorted(got) == list(range(20))
    with pytest.raises(ab.ConfigError, match="seed"):
        ab.BlenderStream(first.config, seed=5).load_state_dict(state)


async def test_a_stream_that_was_entered_has_no_sync(make_sync: Make) -> None:
    """Its fleet belongs to the event loop; a closed one refuses too."""
    stream = ab.BlenderStream(make_sync(start=False, length=0).config)
    async with stream:
        with pytest.raises(ab.ConfigError, match="entered already"):
            stream.sync()
    with pytest.raises(ab.ConfigError, match="entered already"):
        stream.sync()


def test_sync_asks_the_params_for_nothing(make_sync: Make) -> None:
    """What was loaded is passed on; the state of params from which nothing was drawn is neither saved nor set."""

    class Weights:
        loaded: Any = None

        def __call__(self, index: int) -> dict[str, Any]:
            return {"level": index}

        def state_dict(self) -> dict[str, Any]:
            return {"weights": np.zeros(3)} if self.loaded is None else {"loaded": self.loaded}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.loaded = state["loaded"]

    params = Weights()
    config = make_sync(start=False, length=4, params=params).config
    with ab.BlenderStream(config).sync() as frames:
        assert sorted(frame["level"] for frame in frames) == [0, 1, 2, 3]
    assert params.loaded is None
    params.loaded = 5
    state = ab.BlenderStream(config).state_dict()
    params.loaded = None
    stream = ab.BlenderStream(config)
    stream.load_state_dict(state)
    assert stream.sync().state_dict() == state
    assert params.loaded == 5


def test_an_empty_stream_ends_at_once(make_sync: Make) -> None:
    """Nothing to render is no reason to wait."""
    stream = make_sync(length=0)
    assert list(stream) == list(stream.frames()) == list(stream.frames([])) == []


def test_a_stalled_consumer_bounds_its_pass(make_sync: Make) -> None:
    """No sample beyond queue_size is leased, although all frames have crossed into this thread's queue already."""
    drawn: list[int] = []

    def note(index: int) -> dict[str, Any]:
        drawn.append(index)
        return {}

    stream = make_sync(queue_size=3, params=note)
    frames = stream.frames()
    until(lambda: frames.stats().queued == 3)
    assert frames.stats().rendering == 0
    assert sorted(drawn) == [0, 1, 2]
    until(lambda: frames._channel.queued == 3)  # all have crossed, and none is consumed
    assert frames.stats() == ab.PassStats(delivered=0, rendering=0, queued=3, skipped=0)
    assert frames.state_dict()["watermark"] == 0
    frames.get(LIMIT)
    until(lambda: frames.stats().queued == 3)
    assert frames.stats() == ab.PassStats(delivered=1, rendering=0, queued=3, skipped=0)
    assert sorted(drawn) == [0, 1, 2, 3]


def test_the_state_counts_only_what_this_thread_has_consumed(make_sync: Make) -> None:
    """Frames on their way across the threads are not in state_dict, and come again after a resume, on any sequence."""
    indices: list[Any] = [None, range(100, 130), list(range(30, 0, -1))]
    stream = make_sync(length=30, queue_size=8)
    for sequence in indices:
        frames = stream.frames(sequence)
        got: list[int] = []
        for count in range(1, 6):
            got.append(frames.get(LIMIT).index)
            state = frames.state_dict()
            assert state["watermark"] + len(state["above"]) == count
        frames.close()
        assert frames.state_dict() == state
        resumed = stream.frames(sequence, state=json.loads(json.dumps(state)))
        assert sorted(got + indices_of(resumed)) == sorted(range(30) if sequence is None else sequence)
    wrongs: list[Any] = [{}, {"watermark": 0}, 5, state]
    for wrong in wrongs:
        with pytest.raises(ab.ConfigError, match="state"):
            stream.frames(state=wrong)


# -- waiting -----------------------------------------------------------------------------------------------------


def test_get_waits_no_longer_than_it_was_told(make_sync: Make, gates: Any) -> None:
    """TimeoutError when nothing comes; the frame is not lost and is returned later."""
    stream = make_sync(gates.script, instances=1, length=2)
    frames = stream.frames()
    with pytest.raises(TimeoutError, match=r"no frame came within 0\.05 s"):
        frames.get(0.05)
    with pytest.raises(TimeoutError):
        frames.get(0)
    gates.let_go(0, 1)
    assert consume(frames, 2) == [0, 1]
    with pytest.raises(ab.StreamClosed, match="all frames have been delivered"):
        frames.get(LIMIT)


def test_poll_does_not_wait(make_sync: Make, gates: Any) -> None:
    """It returns a frame or None; `finished` tells the end from a frame that is not here yet."""
    stream = make_sync(gates.script, instances=1, length=2)
    frames = stream.frames()
    assert frames.poll() is None
    assert not frames.finished
    gates.let_all_go()
    got: list[int] = []
    while not frames.finished:
        if (frame := frames.poll()) is not None:
            got.append(frame.index)
    assert got == [0, 1]
    assert frames.poll() is None
    closed = stream.frames()
    closed.close()
    with pytest.raises(ab.StreamClosed):
        closed.poll()
    assert not closed.finished


# -- passes ------------------------------------------------------------------------------------------------------


def test_passes_have_their_own_indices_params_and_order(make_sync: Make) -> None:
    """As a BlenderStream's do; the fleet stays warm."""
    stream = make_sync(length=7, params={"level": "config"})
    for indices, options, levels in (
        (range(20, 0, -3), {}, {"config"}),
        ([3, 1, 3, 3], {"params": {"level": "own"}}, {"own"}),
        (np.array([9, 4]), {"params": lambda index: {"level": index}, "queue_size": 1}, {9, 4}),
        (None, {}, {"config"}),
    ):
        got = list(stream.frames(indices, ordered=True, **options))
        assert indices_of(got) == [int(index) for index in (range(7) if indices is None else indices)]
        assert {frame["level"] for frame in got} == levels
    assert sorted(indices_of(stream)) == list(range(7))
    assert stream.stats().restarts == 0
    for wrong, message in (
        ({"indices": "12"}, "got '12'"), ({"queue_size": 0}, "got 0"), ({"ordered": 1}, "got 1"), ({"params": 3}, "got 3"),
    ):  # fmt: skip
        with pytest.raises(ab.ConfigError, match=message):
            stream.frames(**wrong)


def test_several_threads_have_a_pass_each(make_sync: Make, elsewhere: Any) -> None:
    """Six consumers at once, one of them stalled, and renders between them: nobody misses or repeats a frame."""
    stream = make_sync(length=60, queue_size=4)
    stalled = stream.frames(range(1000), queue_size=2)
    until(lambda: stalled.stats().queued == 2)
    passes = [
        stream,
        *(stream.frames(range(n, n + 60), ordered=n == 200, queue_size=n // 100) for n in (100, 200, 300)),
    ]
    threads = [elsewhere(lambda source=source: indices_of(source)) for source in passes]
    renders = [
        elsewhere(lambda n=n: [stream.render(n + i, {"level": i})["level"] for i in range(10)]) for n in (5000, 6000)
    ]
    got = [thread.result() for thread in threads]
    assert [sorted(one) for one in got] == [list(range(n, n + 60)) for n in (0, 100, 200, 300)]
    assert got[2] == list(range(200, 260))
    assert [thread.result() for thread in renders] == [list(range(10))] * 2
    assert stalled.stats() == ab.PassStats(delivered=0, rendering=0, queued=2, skipped=0)
    assert consume(stalled, 1)[0] in (0, 1)
    assert stream.stats().delivered == 4 * 60 + 20 + 1


def test_many_short_passes_on_one_fleet_lose_nothing(make_sync: Make) -> None:
    """Passes that are closed or dropped at all moments never spoil a later one."""
    stream = make_sync(length=12, queue_size=4, prefetch=2)
    for n in range(300):
        frames = stream.frames()
        consume(frames, n % 6)
        if n % 2:
            frames.close()
        if n % 20 == 0:
            assert sorted(indices_of(stream.frames())) == list(range(12))
    assert stream.stats().restarts == 0


@pytest.mark.parametrize("way", ["close", "with", "dropped", "dropped in another thread"])
def test_an_ended_pass_frees_its_slots(way: str, make_sync: Make, elsewhere: Any) -> None:
    """What has crossed is dropped, and its Blenders are there for others."""
    stream = make_sync(queue_size=4)
    frames: Any = stream.frames()
    consume(frames, 1)
    until(lambda: frames.stats().queued == 4)
    if way == "close":
        frames.close()
        frames.close()
    elif way == "with":
        with frames:
            pass
    elif way == "dropped in another thread":
        holder = [frames]
        del frames
        elsewhere(holder.clear).result()
    else:
        del frames
    until(lambda: stream.stats().queued + stream.stats().rendering == 0)
    assert sorted(indices_of(stream.frames(range(30)))) == list(range(30))
    if way in ("close", "with"):
        for _ in range(2):
            with pytest.raises(ab.StreamClosed, match="this iteration was closed"):
                frames.get(LIMIT)
        assert frames.stats() == ab.PassStats(delivered=1, rendering=0, queued=0, skipped=0)
        assert frames.flush() == 0


def test_closing_a_pass_wakes_its_consumer(make_sync: Make, gates: Any, elsewhere: Any) -> None:
    """It gets StreamClosed with the reason; the other passes go on."""
    stream = make_sync(gates.script, instances=1)
    frames, other = stream.frames(), stream.frames([0])
    waiting = elsewhere(lambda: frames.get(LIMIT))
    elsewhere(lambda: frames.close("enough")).result()
    error = waiting.result()
    assert isinstance(error, ab.StreamClosed)
    assert str(error) == "enough"
    gates.let_all_go()
    assert consume(other, 1) == [0]


def test_flush_lets_changed_params_take_hold(make_sync: Make, gates: Any, elsewhere: Any) -> None:
    """Of one pass, or of the stream's own; each index still comes exactly once."""
    level = 0
    stream = make_sync(gates.script, instances=1, prefetch=4, length=6, params=lambda index: {"level": level})
    assert stream.flush() == 0
    own = elsewhere(lambda: list(stream))
    until(lambda: stream.stats().rendering == 4 and gates.begun(0))
    frames = stream.frames(range(10, 14))
    assert frames.flush() == 0  # nothing of it is leased: the Blender holds as much as it may
    level = 1
    assert stream.flush() == 3
    gates.let_all_go()
    assert {frame.index: frame["level"] for frame in own.result()} == {0: 0, **dict.fromkeys(range(1, 6), 1)}
    assert {frame.index: frame["level"] for frame in frames} == dict.fromkeys(range(10, 14), 1)
    assert stream.flush() == frames.flush() == 0


def test_params_may_call_flush(make_sync: Make) -> None:
    """They run in the event loop's own thread; what would wait for that thread is a ConfigError instead of a hang."""
    drawn: list[int] = []

    def params(index: int) -> dict[str, Any]:
        drawn.append(index)
        if drawn == [0, 1, 2]:
            assert stream.flush() == 1
            calls: list[Callable[[], Any]] = [stream.frames, lambda: stream.render(1), lambda: next(stream)]
            for call in calls:
                with pytest.raises(ab.ConfigError, match="would wait for itself"):
                    call()
        return {"level": len(drawn)}

    stream = make_sync(instances=1, prefetch=4, queue_size=4, length=4, params=params, ordered=True)
    assert [frame["level"] for frame in stream] == [1, 4, 3, 5]


def test_render(make_sync: Make) -> None:
    """One sample, while the own pass is stalled; the same as in a pass; what it raises ends nothing else."""
    stream = make_sync(FAILS, queue_size=2, length=6, on_bad_sample="skip")
    got = [next(stream).index]
    until(lambda: stream.stats().queued == 2)
    assert stream.render(1000, {"level": 3}).params == {"level": 3}
    with pytest.raises(ab.SampleError, match="no cube") as caught:
        stream.render(6)
    assert caught.value.index == 6
    with pytest.raises(ab.ConfigError, match="got -1"):
        stream.render(-1)
    with pytest.raises(ab.ConfigError, match="params of index 1"):
        stream.render(1, {"a": object()})
    assert sorted(got + indices_of(stream)) == list(range(6))


# -- errors ------------------------------------------------------------------------------------------------------


def test_an_error_comes_after_the_good_frames_and_stays(make_sync: Make) -> None:
    """What was rendered before comes first, then the error itself, each time; closing adds no other end.

    Above Blender's traceback, ours has the caller's frames and two of ours.
    """
    stream = make_sync(FAILS, instances=1, ordered=True)
    frames = stream.frames()
    assert consume(frames, 6) == list(range(6))
    for _ in range(2):
        for call in (lambda: frames.get(LIMIT), lambda: next(frames), frames.poll):
            with pytest.raises(ab.SampleError, match="no cube") as caught:
                call()
            assert caught.value.index == 6
            printed = "".join(traceback.format_exception(caught.value))
            assert printed.count("in sample") == 1
            assert printed.partition("in sample")[0].count("asyncblend/stream/") == 2
    assert stream.usable  # the Blender is well
    assert consume(stream.frames(range(10, 13)), 3) == [10, 11, 12]
    stream.close()
    for _ in range(2):
        with pytest.raises(ab.SampleError):
            frames.get(LIMIT)


def test_what_params_raise_reaches_the_consumer(make_sync: Make) -> None:
    """The user's own exception comes out of the event loop's thread unchanged."""

    def params(index: int) -> dict[str, Any]:
        if index == 2:
            raise LookupError("no curriculum")
        return {}

    stream = make_sync(params=params, instances=1)
    with pytest.raises(LookupError, match="no curriculum"):
        list(stream)
    with pytest.raises(LookupError, match="no curriculum"):
        stream.render(2)
    assert stream.render(3).index == 3


@pytest.mark.parametrize("error", [StopIteration, StopAsyncIteration, queue.Empty])
def test_what_params_raise_is_no_end_and_no_timeout(error: type[Exception], make_sync: Make) -> None:
    """Neither a loop nor `get` nor `poll` takes it for something of its own."""

    def params(index: int) -> dict[str, Any]:
        raise error

    told = error if error is queue.Empty else RuntimeError
    stream = make_sync(params=params, instances=1)
    frames = stream.frames([1])
    for call in (lambda: list(stream), lambda: next(frames), lambda: frames.get(LIMIT), frames.poll):
        with pytest.raises(told):
            call()
    assert not frames.finished


def test_a_crash_loop_leaves_the_stream_unusable(make_sync: Make) -> None:
    """The consumer has the frames that were made, then CrashLoop; other passes raise it too."""
    policy = ab.RestartPolicy(max_restarts=0)
    # A Blender that dies takes what has not left it along: it gets each sample when the one before has arrived.
    stream = make_sync(faults={"crash_after": 2}, instances=1, prefetch=1, restart=policy)
    got = []
    with pytest.raises(ab.CrashLoop):
        for frame in stream:
            got.append(frame.index)
    assert got == [0, 1]
    until(lambda: not stream.usable)
    calls: list[Callable[[], Any]] = [
        lambda: stream.frames().get(LIMIT),
        lambda: stream.render(5),
        lambda: next(stream),
    ]
    for call in calls:
        with pytest.raises(ab.CrashLoop):
            call()


# -- importing ---------------------------------------------------------------------------------------------------

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # importing it raises
import asyncblend
with asyncblend.BlenderStream(script=sys.argv[1], blender=sys.argv[2], instances=1, length=5).sync() as stream:
    assert sorted(frame.index for frame in stream) == [0, 1, 2, 3, 4]
    assert stream.render(9)["twice"] == 18
    assert [frame.index for frame in stream.frames([7, 8], ordered=True)] == [7, 8]
assert sys.modules["torch"] is None
assert not any(name.startswith("asyncblend.data") for name in sys.modules)
print("done")
"""


def test_it_needs_no_torch(tmp_path: Path, write_script: Write) -> None:
    """A program without torch streams synchronously."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(write_script(PLAIN)), str(fake_blender(tmp_path / "fake"))],
        capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_copy_is_told(make_sync: Make) -> None:
    """It neither hangs nor disturbs the fleet of its parent: everything raises ForkedProcessError there."""
    stream = make_sync(length=20, queue_size=4)
    frames = stream.frames(range(100, 120), queue_size=3)
    got = [*consume(frames, 1), next(stream).index]
    assert stream.stats().delivered == 2  # what was consumed before is noted
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        # Whatever goes wrong, this copy of the test must not go on with the other tests.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(30)
        try:
            said = []
            calls: list[Callable[[], Any]] = [
                frames.get, frames.poll, frames.flush, stream.frames, stream.flush, lambda: next(frames),
                lambda: next(stream), lambda: stream.render(1),
            ]  # fmt: skip
            for number, call in enumerate(calls):
                try:
                    call()
                    said.append(f"{number} went on")
                except BaseException as error:
                    if type(error) is not ab.ForkedProcessError or "make a new one here" not in str(error):
                        said.append(f"{number} raised {error!r}")
            frames.close()
            stream.close()
            said.append(f"{stream.usable} {stream.stats().delivered} {frames.stats().delivered}")
            os.write(write, "; ".join(said).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as told:
        assert told.read() == "False 2 1"
    assert os.waitpid(pid, 0)[1] == 0
    got += indices_of(frames) + indices_of(stream)
    assert sorted(got) == [*range(20), *range(100, 120)]
