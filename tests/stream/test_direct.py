"""Steps that a consumer's thread and a Blender exchange over a line, past the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import asyncblend as ab
from asyncblend.stream.episode_pass import EpisodePass
from asyncblend.wire import payload
from asyncblend.wire.line import LONGEST, Line, pack

from .conftest import LIMIT, Elsewhere
from .test_stepped_episodes import PATIENT, pid_of

MakeSync = Callable[..., ab.SyncStream]

PLAY = """
import contextlib, gc, os
import numpy as np
from asyncblend.blender.serving.worker import Worker
from asyncblend.wire.line import pack
from asyncblend.wire.payload import encode_values

nothing = encode_values({})
worker = next(one for one in gc.get_objects() if isinstance(one, Worker))

def spoil():
    with contextlib.suppress(OSError, AttributeError):  # it is broken already
        worker._line._socket.send(b"x" * 99)

torn = set()
def tear(*step):
    if step not in torn:  # once, as a step that tears the connection whenever it is replayed would be replayed for ever
        torn.add(step)
        worker._socket.disconnect(worker._launch.endpoint)
        worker._socket.connect(worker._launch.endpoint)

def sample(task):
    total, params = 0, task.params
    while total >= 0:
        own = {"total": total, "noise": task.rng.random(), "got": len(params.get("blob", ()))}
        params = yield {**own, "array": np.arange(params.get("size", 0)), "said": params.get("say")}
        total += params.get("add", 0)
        exec(params.get("run", ""))
"""


def directly(stream: ab.SyncStream) -> int:
    """Return how many episodes are played over a line now."""
    return stream._bridge.call(lambda: len(stream._run.dispatcher._directs._open))


def frames_of(steps: list[dict[str, Any]], start: int = 0) -> Iterator[tuple[int, float, int, int]]:
    """Yield total, noise, got and the array's size of each frame that these steps make."""
    rng, total, params = np.random.default_rng([0, start]), 0, dict[str, Any]()
    for params in ({}, *steps):
        total += params.get("add", 0)
        yield total, rng.random(), len(params.get("blob", ())), params.get("size", 0)


def seen(frame: ab.Frame) -> tuple[int, float, int, int]:
    """Return the same of a frame, whose array must be whole."""
    np.testing.assert_array_equal(frame["array"], np.arange(len(frame["array"])))
    return frame["total"], frame["noise"], frame["got"], len(frame["array"])


def test_steps_go_past_the_loop(make_sync: MakeSync) -> None:
    """They are the frames that come otherwise, with their params; counters know them, during the episode and after."""
    stream = make_sync(PLAY, instances=1)
    steps = [{"add": n, "size": n} for n in range(20)]
    with stream.episode(3) as episode:
        assert directly(stream) == 1
        loop = stream._thread._loop
        assert loop is not None
        halted, go_on = threading.Event(), threading.Event()
        loop.call_soon_threadsafe(halted.set)
        loop.call_soon_threadsafe(go_on.wait, LIMIT)
        assert halted.wait(LIMIT)
        got = [episode.frame, *(episode.step(step) for step in steps)]  # while the loop does nothing
        go_on.set()
        assert [seen(frame) for frame in got] == list(frames_of(steps, 3))
        assert [frame.step for frame in got] == list(range(21))
        assert all(dict(frame.params) == step for frame, step in zip(got[1:], steps, strict=True))
        assert {(frame.index, frame.instance, frame.last, frame.params_age) for frame in got} == {(3, 0, False, 0)}
        stats = stream.stats()
        assert (stats.frames, stats.delivered, stats.queued, stats.state) == ({0: 21}, 21, 0, {0: "ready"})
        assert all(frame["array"].flags.aligned for frame in got)
    stats = stream.stats()
    assert (stats.frames[0], stats.delivered, stats.stale, stats.bad_messages) == (21, 21, 0, 0)
    assert directly(stream) == 0


@pytest.mark.parametrize("shared_memory", [True, False])
def test_large_steps_and_frames_come_as_messages(make_sync: MakeSync, *, shared_memory: bool) -> None:
    """And those after them go directly again."""
    stream = make_sync(PLAY, instances=1, shared_memory=shared_memory)
    blob = np.zeros(LONGEST, np.uint8)
    steps: list[dict[str, Any]] = [{"add": 1}, {"size": LONGEST}, {"add": 2}, {"blob": blob}, {"add": 3}]
    steps += [{"blob": blob, "size": LONGEST}, {"say": "x" * LONGEST}, {"add": 4}, {"size": 3000}, {}]
    with stream.episode(0) as episode:
        got = [episode.frame, *(episode.step(step) for step in steps)]
        assert [seen(frame) for frame in got] == list(frames_of(steps))
        assert got[7]["said"] == "x" * LONGEST
        assert directly(stream) == 1
    assert stream.stats().frames == {0: 11}


@pytest.mark.parametrize("moment", ["idle", "under way", "made"])
def test_a_blender_that_dies_is_replaced(make_sync: MakeSync, moment: str) -> None:
    """The steps are made again, whether the consumer waits or not, and go directly again."""
    stream = make_sync(PLAY, instances=1, restart=PATIENT)
    steps: list[dict[str, Any]] = [{"add": n} for n in range(1, 9)]
    with stream.episode(4) as episode:
        got = [episode.frame]
        for number, step in enumerate(steps):
            if number in (0, 3, 6):
                assert directly(stream) == 1
                if moment == "idle":
                    os.kill(pid_of(stream, 0), signal.SIGKILL)
                episode.send(step)
                if moment == "made":  # the frame lies in the line
                    assert episode._source.direct is not None
                    episode._source.direct._line.wait(LIMIT)
                if moment != "idle":
                    os.kill(pid_of(stream, 0), signal.SIGKILL)
                got.append(episode.receive(LIMIT))
            else:
                got.append(episode.step(step))
        assert [seen(frame) for frame in got] == list(frames_of(steps, 4))
    assert stream.stats().restarts >= 2


@pytest.mark.parametrize("seed", range(4))
def test_any_order_of_events(make_sync: MakeSync, seed: int) -> None:
    """Blenders are killed, connections and lines torn, steps and frames large, at random: the frames are the same."""
    rng = random.Random(seed)
    stream = make_sync(PLAY, instances=2, restart=PATIENT)
    kinds: list[dict[str, Any]] = [
        *({"add": 1}, {"size": 20_000}, {"blob": np.zeros(LONGEST, np.uint8)}, {"size": 5}, {"add": 2}),
        {"run": "tear(task.index, params['n'])"},
        {"run": "worker._line and worker._line.end()"},
        {"run": "spoil()"},
    ]
    for index in range(6):
        steps: list[dict[str, Any]] = []
        with stream.episode(index) as episode:
            got = [episode.frame]
            for _ in range(rng.randrange(12)):
                steps.append({**rng.choice(kinds), "n": len(steps)})
                episode.send(steps[-1])
                if rng.random() < 0.15 and (numbers := list(stream._run._fleet._children)):
                    with contextlib.suppress(ProcessLookupError, KeyError):  # it has just ended
                        os.kill(pid_of(stream, rng.choice(numbers)), signal.SIGKILL)
                got.append(episode.receive(LIMIT))
            assert [seen(frame) for frame in got] == list(frames_of(steps, index))
            assert [frame.step for frame in got] == list(range(len(got)))


def test_a_death_ends_the_direct_way_at_once(make_sync: MakeSync) -> None:
    """What was played is counted before the lease goes to another Blender, also while the consumer does something else."""
    stream = make_sync(PLAY, instances=1, restart=PATIENT)
    with stream.episode(1) as episode:
        for _ in range(3):
            episode.step({"add": 1})
        assert directly(stream) == 1
        os.kill(pid_of(stream, 0), signal.SIGKILL)
        deadline = time.monotonic() + LIMIT
        while stream.stats().restarts == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert directly(stream) == 0
        assert episode._source.book.delivered == 4
        assert episode.step({"add": 1})["total"] == 4


def test_replaying_has_a_limit(make_sync: MakeSync) -> None:
    """Steps that went over the line count, and what they were is not kept for longer."""
    stream = make_sync(PLAY, instances=1, restart=PATIENT)
    with stream.episode(1, max_replay=3) as episode:
        for _ in range(3):
            episode.step()
        os.kill(pid_of(stream, 0), signal.SIGKILL)
        assert episode.step().step == 4
        assert not episode._source._asked
        os.kill(pid_of(stream, 0), signal.SIGKILL)
        with pytest.raises(ab.EpisodeLost, match="died after 4 steps") as caught:
            episode.step()
        assert caught.value.step == 4


def test_a_connection_that_is_lost_takes_nothing_along(make_sync: MakeSync) -> None:
    """What goes over the line goes on, also where nothing could be replayed."""
    stream = make_sync(PLAY, instances=1)
    with stream.episode(1, max_replay=0) as episode:
        for number in range(1, 4):
            assert episode.step({"run": f"tear({number})"}).step == number
        before = stream._run._hub._identity_of.copy()
        deadline = time.monotonic() + LIMIT
        while stream._run._hub._identity_of == before and time.monotonic() < deadline:  # until it says HELLO again
            time.sleep(0.01)
        assert stream._run._hub._identity_of != before
        assert directly(stream) == 1
        assert episode.step({"add": 3})["total"] == 3
    assert stream.episode(2).step({"add": 1})["total"] == 1
    assert stream.stats().restarts == 0


@pytest.mark.parametrize("way", ["closed", "ended", "full of nonsense", "another step", "another lease"])
def test_a_line_that_a_script_breaks(make_sync: MakeSync, way: str, caplog: pytest.LogCaptureFixture) -> None:
    """The episode goes on by messages; what is no message is counted, and what belongs to no step is dropped."""
    run = {
        "closed": "worker._line._socket.close()",
        "ended": "worker._line and worker._line.end()",
        "full of nonsense": "spoil()",
        "another step": "worker._line.send(pack(worker._episode.name, 99, nothing))",
        "another lease": "worker._line.send(pack((99, 99), 3, nothing))",
    }[way]
    if way == "closed":  # as a script does that closes descriptors; the object must not fail later
        run = "worker._line and os.dup2(os.open(os.devnull, os.O_RDWR), worker._line.fileno())"
    stream = make_sync(PLAY, instances=1)
    steps: list[dict[str, Any]] = [{"add": 1}, {"add": 2}, {"run": run}, {"add": 3}, {"add": 4}]
    with caplog.at_level(logging.WARNING, "asyncblend"), stream.episode(0) as episode:
        got = [episode.frame, *(episode.step(step) for step in steps)]
        assert [seen(frame) for frame in got] == list(frames_of(steps))
        assert directly(stream) == way.startswith("another")
    with stream.episode(1) as other:
        assert seen(other.step({"add": 1})) == list(frames_of([{"add": 1}], 1))[1]
    bad = way == "full of nonsense"
    assert stream.stats().bad_messages == bad
    assert ("over a line" in caplog.text) == bad
    assert stream.stats().restarts == 0


def test_values_that_cannot_be_read(make_sync: MakeSync) -> None:
    """A message whose parts are no values breaks the line; the step is made again."""
    stream = make_sync(PLAY, instances=1)
    forge = "worker._line and worker._line.send(pack(worker._episode.name, 1, [b'no json']))"
    with stream.episode(0) as episode:
        assert episode.step({"run": forge, "add": 5})["total"] == 5
    assert stream.stats().bad_messages == 1


@pytest.mark.exhaustive
def test_a_step_that_hangs(make_sync: MakeSync) -> None:
    """Its Blender is killed after the frame budget, though the loop was not told when the step began."""
    hang = "import threading; 'hung' in os.listdir(task.params['folder']) or (open(task.params['folder'] + '/hung', 'w'), threading.Event().wait())"
    stream = make_sync(PLAY, instances=1, restart=PATIENT, timeouts=ab.Timeouts(frame=1.0, stop=0.1))
    folder = stream._run._workspace.folder / "x"
    folder.mkdir()
    with stream.episode(0, {"folder": str(folder)}) as episode:
        for _ in range(3):
            episode.step({"add": 1})
        threading.Event().wait(1.5)  # a consumer that thinks for longer than the budget is no hang
        assert episode.step({"add": 1})["total"] == 4
        assert stream.stats().restarts == 0
        assert episode.step({"add": 1, "run": hang})["total"] == 5
        assert stream.stats().restarts == 1
        assert episode.step({"add": 1})["total"] == 6


def test_an_error_and_an_end(make_sync: MakeSync) -> None:
    """They come as messages, and end the episode at once; its Blender plays another one."""
    stream = make_sync(PLAY, instances=1)
    episode = stream.episode(0)
    episode.step({"add": 1})
    with pytest.raises(ab.SampleError, match="division by zero"):
        episode.step({"run": "1 / 0"})
    episode = stream.episode(1)
    episode.step()
    with pytest.raises(ab.EpisodeOver, match="its generator has returned"):
        episode.step({"add": -5})
    with stream.episode(2) as other:
        assert other.step({"add": 1})["total"] == 1
        with pytest.raises(ab.ConfigError, match="cannot travel"):
            other.step({"add": object()})
        assert other.step({"add": 1})["total"] == 2


@pytest.mark.parametrize("who", ["episode", "stream"])
def test_closing_while_another_thread_waits(make_sync: MakeSync, who: str) -> None:
    """It is woken, also while its Blender goes on with the step."""
    stream = make_sync(PLAY, instances=1)
    episode = stream.episode(0)
    episode.send({"run": "import threading; threading.Event().wait()"})
    waiting = Elsewhere(episode.receive)
    (episode if who == "episode" else stream).close()
    assert isinstance(waiting.result(), ab.EpisodeOver if who == "episode" else ab.StreamClosed)


def test_an_episode_that_was_given_up_leaves_nothing_for_the_next(make_sync: MakeSync) -> None:
    """The frame of a step that nobody received, and a step that nobody made, are no frame and no step of the next one."""
    stream = make_sync(PLAY, instances=1)
    for index in range(20):
        with stream.episode(index) as episode:
            episode.step({"add": 1})
            episode.send({"add": 1, "size": 3000})
    steps = [{"add": 1}, {"add": 1}]
    with stream.episode(50) as episode:
        assert episode._source.direct is not None
        late = pack((99, 0), 1, payload.encode_values({"add": 100}))  # as of an episode closed before Blender read it
        assert late is not None
        episode._source.direct._line.send(late)
        assert [seen(episode.step(step)) for step in steps] == list(frames_of(steps, 50))[1:]
    assert stream.stats().restarts == 0


def test_a_frame_that_is_late_can_be_received_later(make_sync: MakeSync, gates: Any) -> None:
    """The step is not sent twice."""
    wait = f"while not os.path.exists({str(gates._folder / 'go-all')!r}): pass"
    stream = make_sync(PLAY, instances=1)
    with stream.episode(0) as episode:
        episode.step({"add": 1})
        episode.send({"add": 1, "run": wait})
        for timeout in (0, 0.01):
            with pytest.raises(TimeoutError, match="no frame came within"):
                episode.receive(timeout)
        gates.let_all_go()
        assert episode.receive(LIMIT)["total"] == 2
        assert episode.step({"add": 1}).step == 3


def test_each_step_counts_towards_the_limit_of_a_life(make_sync: MakeSync) -> None:
    """A Blender is replaced after the episode in which it has served its time."""
    stream = make_sync(PLAY, instances=1, max_frames_per_instance=5)
    with stream.episode(0) as episode:
        first = pid_of(stream, 0)
        for _ in range(9):
            episode.step()
    with stream.episode(1) as episode:
        assert pid_of(stream, 0) != first
    assert stream.stats().recycled == 1


def test_a_forked_copy_does_not_meddle(make_sync: MakeSync) -> None:
    """It gets an error, and the parent's episode goes on."""
    stream = make_sync(PLAY, instances=1)
    with stream.episode(0) as episode:
        episode.step({"add": 1})
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                episode.step({"add": 1})
            except ab.ForkedProcessError:
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        assert episode.step({"add": 1})["total"] == 2


def test_ctrl_c_while_a_frame_is_awaited(make_sync: MakeSync) -> None:
    """The step goes on, and its frame can be received later."""
    stream = make_sync(PLAY, instances=1)
    with stream.episode(0) as episode:
        episode.step({"add": 1})
        parent = os.getpid()
        run = f"import time; os.kill({parent}, {int(signal.SIGINT)}); time.sleep(0.2)"
        with pytest.raises(KeyboardInterrupt):
            episode.step({"add": 1, "run": run})
        assert episode.receive(LIMIT)["total"] == 2
        assert episode.step({"add": 1})["total"] == 3
        assert directly(stream) == 1
    assert stream.stats().restarts == 0


def test_without_lines(make_sync: MakeSync, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there can be none, all goes by messages."""
    monkeypatch.setattr(Line, "pair", lambda hold=None: None)
    stream = make_sync(PLAY, instances=1)
    steps = [{"add": 1}, {"add": 2}]
    with stream.episode(0) as episode:
        assert [seen(episode.step(step)) for step in steps] == list(frames_of(steps))[1:]
        assert directly(stream) == 0


async def test_in_an_event_loop_steps_are_messages(make: Any) -> None:
    """There is no thread to spare there."""
    async with asyncio.timeout(LIMIT), make(PLAY, instances=1) as stream, await stream.episode(0) as episode:
        assert (await episode.step({"add": 1}))["total"] == 1
        assert not stream._run.dispatcher._directs._open


@pytest.mark.exhaustive
def test_a_consumer_that_receives_late_is_no_hang(make_sync: MakeSync) -> None:
    """The frame is there for longer than the budget of a frame, and nobody kills its Blender for that."""
    stream = make_sync(PLAY, instances=1, timeouts=ab.Timeouts(frame=0.5, stop=0.1))
    with stream.episode(0) as episode:
        episode.step({"add": 1})
        episode.send({"add": 1})
        threading.Event().wait(2)
        assert episode.receive(LIMIT)["total"] == 2
    assert stream.stats().restarts == 0


def test_an_answer_that_is_lost_with_its_connection(make_sync: MakeSync) -> None:
    """A frame that was too large for the line is made again when the Blender is connected again."""
    stream = make_sync(PLAY, instances=1, shared_memory=False)
    with stream.episode(0) as episode:
        episode.step({"add": 1})
        frame = episode.step({"add": 1, "size": LONGEST, "run": "tear(1)"})
        assert (frame["total"], len(frame["array"])) == (2, LONGEST)
        assert episode.step({"add": 1})["total"] == 3
    assert stream.stats().restarts == 0


def test_a_lease_that_comes_again_does_not_end_the_direct_way(make_sync: MakeSync, tmp_path: Any) -> None:
    """The steps that are made again because of a lost connection answer nothing that was asked for."""
    stream = make_sync(PLAY, instances=1)
    wait = f"open('{tmp_path}/begun', 'w').close()\nwhile not os.path.exists('{tmp_path}/go'): pass"
    dispatcher = stream._run.dispatcher

    def say_hello_again() -> None:
        ((life, holding),) = dispatcher._holdings._by_life.items()
        dispatcher.reconnected(life, [], [holding.held[0].name])

    with stream.episode(0) as episode:
        episode.step({"add": 1})
        episode.send({"add": 1, "blob": np.zeros(LONGEST, np.uint8), "run": wait})
        deadline = time.monotonic() + LIMIT
        while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        stream._bridge.call(say_hello_again)
        (tmp_path / "go").touch()
        assert [episode.receive(LIMIT)["total"], *(episode.step({"add": 1})["total"] for _ in range(5))] == [
            2,
            *range(3, 8),
        ]
        assert directly(stream) == 1
    assert stream.stats().restarts == 0


def test_shared_memory_of_frames_that_nobody_took_is_free_again(make_sync: MakeSync) -> None:
    """Those of steps that were sent before their episode was closed, too."""
    stream = make_sync(PLAY, instances=1)
    for index in range(5):
        with stream.episode(index) as episode:
            episode.step()
            episode.send({"size": LONGEST})
    with stream.episode(9) as episode:
        for _ in range(2):
            episode.step()
        (ring,) = stream._run._rings.values()
        assert stream._bridge.call(lambda: sum(map(bool, ring._map[:4096]))) == 0


def test_a_signal_that_closes_the_stream_in_the_middle_of_a_step(
    make_sync: MakeSync, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its handler waits for the loop, which waits for the thread that was interrupted, but not for ever."""
    stream = make_sync(PLAY, instances=1)
    episode = stream.episode(0)
    episode.step({"add": 1})
    before = signal.signal(signal.SIGUSR1, lambda *_: stream.close())
    remember = EpisodePass.remember

    def interrupted(source: EpisodePass, drawn: Any) -> int:
        signal.raise_signal(signal.SIGUSR1)
        return remember(source, drawn)

    monkeypatch.setattr(EpisodePass, "remember", interrupted)
    try:
        with pytest.raises(ab.StreamClosed):
            episode.step({"add": 1})
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_ctrl_c_while_a_frame_is_read(make_sync: MakeSync, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step is made again, as shared memory cannot be read twice; what it gave stays as it is."""
    stream = make_sync(PLAY, instances=1)
    with stream.episode(0) as episode:
        episode.step({"add": 1})
        decode = payload.decode_values

        def interrupted(*args: Any) -> None:
            decode(*args)
            monkeypatch.undo()
            raise KeyboardInterrupt

        monkeypatch.setattr(payload, "decode_values", interrupted)
        with pytest.raises(KeyboardInterrupt):
            episode.step({"add": 1, "size": LONGEST})
        frame = episode.receive(LIMIT)
        assert frame["total"] == 2
        episode.step({"add": 1, "size": LONGEST - 1})
        np.testing.assert_array_equal(frame["array"], np.arange(LONGEST))
    assert stream.stats().bad_messages == 0
