"""The tap: what a look sees of frames that something else consumes, and that nobody waits for a look."""

from __future__ import annotations

import gc
import logging
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import asyncblend as ab
from asyncblend.errors import ConfigError, ProtocolError
from asyncblend.stream.clips import Clip
from asyncblend.stream.frame import Frame
from asyncblend.stream.stats import StreamStats
from asyncblend.tap import served as tap_served
from asyncblend.tap.attached import Attached
from asyncblend.tap.moment import Doing, Line, Moment, packed, unpacked
from asyncblend.tap.served import Served, check_port
from asyncblend.tap.tap import Tap
from asyncblend.testing import fake_blender
from asyncblend.wire.payload import encode_values

LIMIT = 60.0  # seconds; the bound of failure of every wait here
DOING = Doing(1, 16, {0: "ready", 1: "backoff"})
ONES: dict[str, Any] = dict.fromkeys(("delivered", "rendering", "queued", "skipped", "restarts", "recycled"), 1)
TWOS: dict[str, Any] = dict.fromkeys(("duplicates", "stale", "bad_messages", "refused"), 2)
STATS = StreamStats(**ONES, **TWOS, frames={0: 3, 1: 4}, state={0: "ready", 1: "backoff"})


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port: int = trial.getsockname()[1]
        return port


def frame(index: int, side: int = 4, **about: Any) -> Frame:
    """Return a frame whose image says its index."""
    return Frame(
        {"image": np.full((side, side, 3), index % 256, np.uint8), "none": np.zeros((0, 3)), "one": np.array(1.5)},
        index=index,
        instance=0,
        **about,
    )


@contextmanager
def attached(port: int) -> Iterator[Attached]:
    """Attach, in a `with` block."""
    with Attached(str(port)) as one:
        yield one


def looked(attached: Attached, *, with_frame: bool = True) -> Moment:
    """Return the next moment that has a frame, or the last one."""
    for _ in range(int(LIMIT)):
        moment = attached.look(1.0)
        if moment is not None and (moment.ended or not with_frame or moment.frame is not None):
            return moment
    raise AssertionError("no moment came")


# -- a moment ----------------------------------------------------------------------------------------------------


def test_a_moment_travels_whole() -> None:
    """Frame, counts, states and log arrive as they were."""
    sent = Moment(frame(7, params={"a": 1}, step=2, last=False), 9, DOING, [Line("INFO", "hello")], ended=True)
    came = unpacked([memoryview(part).tobytes() for part in packed(sent)])
    assert came[1:] == sent[1:]
    assert came.frame is not None
    assert sent.frame is not None
    assert (came.frame.index, came.frame.step, came.frame.last, came.frame.params) == (7, 2, False, {"a": 1})
    np.testing.assert_array_equal(came.frame["image"], sent.frame["image"])
    assert unpacked(packed(Moment())) == Moment(log=[])


def test_of_a_clip_the_last_frame_is_seen() -> None:
    """A clip has time as its first axis, which no picture has."""
    clip = Clip([frame(1, step=i, last=i == 2) for i in range(3)], 1)
    came = unpacked(packed(Moment(clip))).frame
    assert came is not None
    assert came["image"].shape == (4, 4, 3)
    assert came.step == 2
    assert came.last


@pytest.mark.parametrize("values", [{}, {"version": 99}, {"version": 1}, {"version": 1, "frame": 3}])
def test_what_is_no_moment_is_refused(values: dict[str, Any]) -> None:
    """The other side may be another version, or another program."""
    with pytest.raises(ProtocolError):
        unpacked(encode_values(values))


# -- looking -----------------------------------------------------------------------------------------------------


def test_the_consumer_never_waits_and_nothing_is_kept() -> None:
    """Frames that nobody has asked for are counted and let go; a look gets one that is shown after it."""
    with closing(Ended(Tap())) as ended:
        tap = ended.tap
        one = frame(0)
        kept = weakref.ref(one["image"])
        tap.put(one)
        del one
        gc.collect()
        assert kept() is None
        looks: list[Moment] = []
        looker = threading.Thread(target=lambda: looks.append(tap.look(LIMIT)))
        looker.start()
        index = 1
        while looker.is_alive():
            tap.put(frame(index))
            index += 1
        looker.join()
        assert looks[0].frame is not None
        assert 0 < looks[0].frame.index < index
        assert looks[0].came <= tap.came == index


@pytest.mark.exhaustive
def test_who_has_looked_from_elsewhere_keeps_nothing() -> None:
    """The frame of an answer is let go with it, and not with the next question."""
    port, tap = free_port(), Tap()
    served = Served(tap, port)
    try:
        with attached(port) as one:
            kept: list[weakref.ref[Any]] = []
            looker = threading.Thread(target=lambda: looked(one))
            looker.start()
            while looker.is_alive():
                shown = frame(0)
                kept.append(weakref.ref(shown["image"]))
                tap.put(shown)
                del shown
            looker.join()
            for _ in range(int(100 * LIMIT)):
                gc.collect()
                if not any(ref() is not None for ref in kept):
                    break
                threading.Event().wait(0.01)
            else:
                raise AssertionError("a frame is kept")
    finally:
        served.close()


def test_a_frame_that_comes_too_late_is_not_kept() -> None:
    """A look that has ended gets none, and the next one gets a later one."""
    with closing(Ended(Tap())) as ended:
        assert ended.tap.look(0.01).frame is None
        late = frame(0)
        kept = weakref.ref(late["image"])
        ended.tap.put(late)
        del late
        gc.collect()
        assert kept() is None
        assert ended.tap.look(0.01).frame is None


LOGGING = """
import logging
from asyncblend.tap.tap import Tap
tap = Tap()
logging.warning("configured late") if {late} else None
log = logging.getLogger("asyncblend.x")
log.warning("one")
logging.getLogger("theirs").warning("two")
log.info("none")
logging.basicConfig(format="ours %(message)s", force={late})
log.warning("three")
assert [line.text for line in tap.look(0).log][-2:] == ["one", "three"]
tap.end()
log.warning("four")
"""


@pytest.mark.parametrize("late", [False, True])
def test_a_view_leaves_the_programs_own_log_as_it_is(late: bool) -> None:
    """Without a configuration warnings are printed as ever, and one that comes later holds."""
    ended = subprocess.run(
        [sys.executable, "-c", LOGGING.format(late=late)], capture_output=True, text=True, timeout=LIMIT, check=True
    )
    lines = ended.stderr.splitlines()
    if late:  # the root logger has got a handler after the tap
        assert lines[0] == "WARNING:root:configured late"
        assert [line.rpartition(" ")[2].rpartition(":")[2] for line in lines[1:]] == ["one", "two", "three", "four"]
    else:
        assert lines == ["one", "two", "ours three", "ours four"]


def test_a_look_without_a_frame_ends() -> None:
    """It says what else there is, and after the end it says so at once."""
    tap = Tap(lambda: STATS, 16)
    logging.getLogger("asyncblend").warning("a %s", "word")
    assert tap.look(0.01) == Moment(None, 0, DOING, [Line("WARNING", "a word")])
    tap.end()
    tap.end()
    assert tap.look(LIMIT).ended


def test_lines_of_the_log_that_are_too_many_are_counted() -> None:
    """A log that nobody reads takes no more memory."""
    with closing(Ended(Tap())) as ended:
        for number in range(1200):
            logging.getLogger("asyncblend.test").warning("line %d", number)
        log = ended.tap.look(0).log
        assert log[0].text == "700 earlier lines of the log were not shown"
        assert [line.text for line in log[1:]] == [f"line {n}" for n in range(700, 1200)]


class Ended:
    """A tap that is ended with the test."""

    def __init__(self, tap: Tap) -> None:
        self.tap = tap
        self.close = tap.end


# -- from another process ----------------------------------------------------------------------------------------


def test_who_attaches_sees_newest_frames_and_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look gets a later frame, with the counts; closing tells the end."""
    monkeypatch.setattr(tap_served, "_WATCHED", 30)  # between the looks of a machine that is slow
    port, tap, stop = free_port(), Tap(lambda: STATS, 16), threading.Event()
    served = Served(tap, port)

    def consume() -> None:
        for index, _ in enumerate(iter(stop.is_set, True)):
            tap.put(frame(index))
            stop.wait(0.001)

    consumer = threading.Thread(target=consume)
    consumer.start()
    try:
        with attached(port) as one:
            seen = [looked(one) for _ in range(20)]
            indices = [moment.frame.index for moment in seen if moment.frame is not None]
            assert indices == sorted({*indices})
            assert all(moment.doing == DOING for moment in seen)
            assert seen[-1].came >= indices[-1] + 1
            stop.set()
            consumer.join()
            ended: list[bool] = []

            def look_until_it_ends() -> None:
                while not looked(one, with_frame=False).ended:
                    pass
                ended.append(True)

            looker = threading.Thread(target=look_until_it_ends)
            looker.start()  # who looks is told of the end; who has ceased to look is not waited for
            served.close()
            looker.join()
            assert ended
    finally:
        stop.set()
        consumer.join()
        served.close()
    check_port(port)  # nothing listens there any more


@pytest.mark.exhaustive
@pytest.mark.slow
def test_several_may_look_and_strangers_do_no_harm() -> None:
    """Bytes that are no question, and questions of nobody who reads the answer, change nothing for the others."""
    port = free_port()
    served = Served(Tap(), port)
    try:
        with attached(port) as one, attached(port) as other:
            looked(one, with_frame=False)
            with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as stranger:
                stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
                looked(one, with_frame=False)
            looked(other, with_frame=False)
    finally:
        served.close()


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_taken_port_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    """A worker of an epoch begins while that of the epoch before still listens. The training goes on."""
    port = free_port()
    first, second = Served(Tap(), port), None
    try:
        with attached(port) as one:
            looked(one, with_frame=False)
            second = Served(tap := Tap(), port)
            tap.put(frame(1))
            first.close()
            for _ in range(int(LIMIT)):
                if (moment := one.look(1.0)) is not None and moment.came == 1:
                    break
            else:
                raise AssertionError("the second one was never heard")
    finally:
        first.close()
        if second is not None:
            second.close()
    assert f"Port {port} is taken" in caplog.text


@pytest.mark.parametrize("port", [0, 65536, -1, True, 1.5, "9870"])
def test_what_is_no_port_is_refused(port: Any) -> None:
    """The message says what a port is."""
    with pytest.raises(ConfigError, match="no port"):
        check_port(port)


@pytest.mark.parametrize(
    "address",
    *(["", "x", ":", "host:", "host:x", "70000", "127.0.0.1:0", "http://localhost:9870", "my host:9870", "a/b:9870"],),
)
def test_what_is_no_address_is_refused(address: str) -> None:
    """The message says what an address is."""
    with pytest.raises(ConfigError, match="HOST:PORT"):
        Attached(address)


@pytest.mark.exhaustive  # the ten seconds that a training has to answer
@pytest.mark.slow
def test_without_a_training_attaching_fails() -> None:
    """The message says what to call in the training."""
    with attached(port := free_port()) as one, pytest.raises(ConfigError, match=rf"dataset\.view\(port={port}\)"):
        for _ in range(int(LIMIT)):
            one.look(1.0)


@pytest.mark.exhaustive
def test_many_large_frames_take_no_memory() -> None:
    """Of 4,000 frames of a megabyte each, which are looked at all the time, a few are in memory."""
    port, tap, stop = free_port(), Tap(), threading.Event()
    served = Served(tap, port)
    process = psutil.Process()

    def look() -> None:
        with attached(port) as one:
            while not stop.is_set():
                one.look(0.1)

    looker = threading.Thread(target=look)
    looker.start()
    try:
        for index in range(200):
            tap.put(frame(index, side=600))
        before = process.memory_info().rss
        for index in range(4000):
            tap.put(frame(index, side=600))
        assert process.memory_info().rss - before < 100 << 20
    finally:
        stop.set()
        looker.join()
        served.close()


# -- datasets ----------------------------------------------------------------------------------------------------

BODY = """
def sample(task):
    return {"image": np.full((8, 8, 3), task.index % 256, np.uint8), "n": task.index}
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_shows_its_frames(workers: int, tmp_path: Path, write_script: Any) -> None:
    """Also from the first worker of a DataLoader; a transform does not change what is seen, and items are as without."""
    from torch.utils.data import DataLoader

    port = free_port()
    dataset = ab.BlenderDataset(
        script=write_script(BODY), blender=fake_blender(tmp_path / "fake"), instances=2, length=10**6,
        transform=lambda item: {"n": item["n"]},
    )  # fmt: skip
    dataset.view(port=port)
    seen: list[Moment] = []

    def look() -> None:
        with attached(port) as one:
            seen.extend(looked(one) for _ in range(3))

    looker = threading.Thread(target=look)
    try:
        items = iter(DataLoader(dataset, batch_size=None, num_workers=workers, timeout=LIMIT if workers else 0))
        first = next(items)
        looker.start()
        numbers = {int(first["n"])}
        for item in items:
            numbers.add(int(item["n"]))
            if not looker.is_alive():
                break
        looker.join()
        del items
    finally:
        dataset.close()
    assert len(seen) == 3
    for moment in seen:
        assert moment.frame is not None
        assert moment.frame["image"][0, 0, 0] == moment.frame.index % 256
        assert moment.doing is not None
        assert set(moment.doing.state) <= {0, 1}


@pytest.mark.exhaustive
def test_who_attaches_sees_one_epoch_after_another(tmp_path: Path, write_script: Any) -> None:
    """Each epoch has a worker of its own. That the first one ends is not the end."""
    from torch.utils.data import DataLoader

    port, seen = free_port(), [0, 0]
    dataset = ab.BlenderDataset(script=write_script(BODY), blender=fake_blender(tmp_path / "fake"), instances=1)
    dataset.view(port=port)
    epoch, stop = 0, threading.Event()
    ends: list[bool] = []

    def look() -> None:
        with attached(port) as one:
            while not stop.is_set():
                moment = one.look(0.1)
                if moment is not None and moment.frame is not None:
                    seen[epoch] += 1
                if moment is not None:
                    ends.append(moment.ended)

    looker = threading.Thread(target=look)
    looker.start()
    try:
        for epoch in range(2):
            items = iter(DataLoader(dataset, batch_size=None, num_workers=1, timeout=LIMIT))
            for _ in items:
                if seen[epoch] > 2:
                    break
            del items
    finally:
        stop.set()
        looker.join()
        dataset.close()
    assert min(seen) > 2
    assert not any(ends)


@pytest.mark.exhaustive
def test_a_view_keeps_no_dataset_alive(tmp_path: Path, write_script: Any) -> None:
    """Garbage collection stops the fleet and the view, as without one."""
    port = free_port()
    dataset = ab.BlenderDataset(script=write_script(BODY), blender=fake_blender(tmp_path / "fake"), instances=1)
    dataset.view(port=port)
    items = iter(dataset)
    next(items)
    with attached(port) as one:
        assert looked(one, with_frame=False).came == 1
        gone = weakref.ref(dataset)
        del items, dataset
        gc.collect()
        assert gone() is None
    check_port(port)


def test_a_dataset_refuses_a_taken_port(tmp_path: Path, write_script: Any) -> None:
    """At once, where it is called, and not hours later."""
    dataset = ab.BlenderDataset(script=write_script(BODY), blender=fake_blender(tmp_path / "fake"))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 cannot be used"):
            dataset.view(port=port)
