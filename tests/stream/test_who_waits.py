"""Who waits for whom, as real processes show it. Each test waits until time itself has made the difference."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

import asyncblend as ab
from asyncblend.stream import run as run_module
from asyncblend.stream.dispatcher import Dispatcher

from .conftest import LIMIT, Gates, Make

IMAGE = "def sample(task): return {'image': np.zeros((8, 8, 3), np.uint8), 'more': [np.zeros(2), {'x': np.zeros(1)}]}"
BYTES = 8 * 8 * 3 + 3 * 8
"""Of the arrays of a sample of `IMAGE`."""


async def until(condition: Callable[[], bool]) -> None:
    """Look again and again, in an event loop that goes on."""
    async with asyncio.timeout(LIMIT):
        while not condition():
            await asyncio.sleep(0.01)


def until_in_thread(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "it never came true"
        threading.Event().wait(0.01)


def who_waits(stats: ab.StreamStats) -> str:
    """Return what the shares of the time say, or "" while it is not yet clear."""
    if stats.occupancy > 0.9 and stats.idle > 0.9 and stats.waiting < 0.1:
        return "training is slow"
    if stats.occupancy < 0.1 and stats.idle < 0.1 and stats.waiting > 0.9:
        return "rendering is slow"
    return "both wait" if stats.occupancy < 0.1 and stats.idle > 0.3 and stats.waiting > 0.3 else ""


async def test_a_slow_consumer_lets_rendering_wait(make: Make) -> None:
    """It takes one frame and then no more: the queue is full, and the Blenders have nothing to do."""
    async with make(IMAGE, queue_size=4) as stream:
        await anext(stream)
        await until(lambda: who_waits(stream.stats()) == "training is slow")
        stats = stream.stats()
        assert ab.verdict(stats).startswith("training is the bottleneck: the Blenders waited ")
        assert (stats.bytes, stats.delivered) == (BYTES, 1)
        await anext(stream)  # frees a slot, so that a Blender gets a lease
        await until(lambda: stream.stats().seconds_idle.p90 > 0)


async def test_slow_rendering_lets_training_wait(make: Make, gates: Gates) -> None:
    """One frame came, and the next ones do not: the queue is empty, and nobody but the consumer waits."""
    async with make(gates.script, queue_size=4, prefetch=1) as stream:
        gates.let_go(0, 1)
        await anext(stream)
        await anext(stream)
        waiting = asyncio.create_task(anext(stream))  # awaited below
        await until(lambda: who_waits(stream.stats()) == "rendering is slow")
        assert ab.verdict(stream.stats()).startswith("rendering is the bottleneck: training waited ")
        gates.let_all_go()
        await waiting
        assert stream.stats().seconds_waited.p90 > 0.0
        stats = stream.stats()
        assert stats.rate * stats.window == pytest.approx(2)  # the window begins with the first of the three


async def test_a_consumer_that_gives_up_has_waited(make: Make, gates: Gates) -> None:
    """A wait that is cancelled is over, and counts until then."""
    async with make(gates.script, instances=1, prefetch=1) as stream:
        gates.let_go(0)
        await anext(stream)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await anext(stream)
        assert stream.stats().waiting > 0.0
        await until(lambda: stream.stats().waiting < 0.5)  # nobody waits any more
        gates.let_all_go()


async def test_frames_that_wait_for_their_turn_help_nobody(make: Make, gates: Gates) -> None:
    """With `ordered`, the consumer and the Blenders may wait for each other: the first sample is late."""
    async with make(gates.script, queue_size=4, prefetch=1, ordered=True) as stream:
        gates.let_go(0, 2, 3, 4, 5)
        await anext(stream)
        waiting = asyncio.create_task(anext(stream))  # awaited below
        await until(lambda: who_waits(stream.stats()) == "both wait")
        assert ab.verdict(stream.stats()).startswith("training and rendering wait for each other")
        gates.let_all_go()
        await waiting


def test_in_a_training_thread_its_own_waiting_counts(make: Make, gates: Gates) -> None:
    """The event loop's thread takes every frame at once, and that is no training."""
    with make(gates.script, queue_size=4, prefetch=1).sync() as stream:
        gates.let_go(*range(8))
        next(stream)
        until_in_thread(lambda: who_waits(stream.stats()) == "training is slow")
        for _ in range(7):
            next(stream)
        taking = threading.Thread(target=stream.__next__)
        taking.start()
        until_in_thread(lambda: stream.stats().waiting > 0.5)
        gates.let_all_go()
        taking.join()
        assert stream.stats().seconds_waited.p90 > 0.0


async def test_what_blender_took_comes_with_each_frame(make: Make) -> None:
    """Also with each step of an episode, though its generator is one step ahead of what is sent."""
    body = """
import time
def sample(task):
    for step in range(3):
        time.sleep(0.02 + 0.2 * (step == 1))
        yield {"step": step}
"""
    async with make(body, instances=1, length=2) as stream:
        frames = [frame async for frame in stream]
        for frame in frames:
            assert frame.spent is not None
            assert frame.spent.sample >= (0.22 if frame.step == 1 else 0.02)
            assert (frame.spent.render, frame.spent.capture) == (0.0, 0.0)
        assert len(frames) == 6
        assert stream.stats().seconds_sample.p90 >= 0.2


async def test_each_pass_has_its_own_and_the_stream_has_all(make: Make) -> None:
    """A pass that nobody consumes is full, another one is not; what they noted outlives them."""
    async with make(IMAGE, queue_size=4) as stream:
        stalled = stream.frames(range(100))
        async with stream.frames(range(3)) as frames:
            assert len([frame async for frame in frames]) == 3
            assert frames.stats().bytes == 3 * BYTES
            await until(lambda: stalled.stats().occupancy > 0.9)
            assert frames.stats().occupancy < 0.9
            before = frames.stats()
        assert frames.stats() == before
        await stalled.aclose()
        stats = stream.stats()
        assert stats.bytes == 3 * BYTES
        assert stats.seconds_sample.mean > 0
        assert 0.0 < stats.occupancy < 1.0
    end = stream.stats()
    assert end.window >= stats.window
    await asyncio.sleep(0)
    assert stream.stats().window == end.window, "after the end time stands still"


def test_steps_over_a_line_are_waited_for_too(make: Make) -> None:
    """They pass the event loop by. Their frames are never queued, and their consumer is who waits."""
    body = "def sample(task):\n    while True:\n        params = yield {'x': np.zeros(4)}\n"
    with make(body, instances=1).sync() as stream:
        with stream.episode(0) as episode:
            for _ in range(50):
                episode.step({})
            stats = stream.stats()
            assert stats.delivered == 51
            assert stats.bytes == 51 * 4 * 8
            assert stats.rate > 0
            assert stats.seconds_waited.median > 0
            until_in_thread(lambda: stream.stats().waiting < 0.5)
            assert stream.stats().occupancy < 0.5
        assert stream.stats().bytes == 51 * 4 * 8


@pytest.mark.parametrize("threaded", [False, True])
def test_the_log_says_it_now_and_then(
    threaded: bool, make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As long as frames are taken, whoever takes them."""
    monkeypatch.setattr(run_module, "_REPORT_EVERY", 0.02)

    def said() -> bool:
        return any("training is the bottleneck" in record.getMessage() for record in caplog.records)

    async def consume() -> None:
        async with make(IMAGE, queue_size=2) as stream:
            await anext(stream)
            await anext(stream)  # a rate is of at least two frames
            await until(said)

    with caplog.at_level(logging.INFO, logger="asyncblend"):
        if threaded:
            with make(IMAGE, queue_size=2).sync() as stream:
                next(stream)
                next(stream)
                until_in_thread(said)
        else:
            asyncio.run(consume())
    record = next(record for record in caplog.records if "bottleneck" in record.getMessage())
    assert (record.name, record.levelno) == ("asyncblend", logging.INFO)


def test_the_log_is_silent_of_stepped_episodes(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The agent and its Blender take turns, so that more instances or a longer queue would help neither."""
    reported: list[bool] = []
    renders_ahead = vars(Dispatcher)["renders_ahead"].fget

    def noted(dispatcher: Dispatcher) -> bool:
        reported.append(renders_ahead(dispatcher))
        return reported[-1]

    monkeypatch.setattr(Dispatcher, "renders_ahead", property(noted))
    monkeypatch.setattr(run_module, "_REPORT_EVERY", 0.02)
    body = "def sample(task):\n    while True:\n        yield {'x': task.index}\n"
    with caplog.at_level(logging.INFO, logger="asyncblend"), make(body, instances=1).sync() as stream:
        with stream.episode(0) as episode:
            until_in_thread(lambda: bool(episode.step({})) and len(reported) > 3)
        assert "waited" not in caplog.text
        assert not any(reported)
        for _ in range(3):
            next(stream)
        until_in_thread(lambda: any(reported))


async def test_the_log_is_silent_where_nothing_happens(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A stream that nobody has asked for frames has no bottleneck."""
    monkeypatch.setattr(run_module, "_REPORT_EVERY", 0.0)
    with caplog.at_level(logging.INFO, logger="asyncblend"):
        async with make(IMAGE):
            await asyncio.sleep(0.05)
    assert "bottleneck" not in caplog.text
    assert "balanced" not in caplog.text


def test_bytes_are_those_of_arrays_wherever_they_are() -> None:
    """In lists and dicts too; what is no array has none."""
    values = {"a": np.zeros(3), "b": [{"c": np.zeros((2, 2), np.uint8)}, 5], "d": "text"}
    assert ab.Frame(values, index=0, instance=0).nbytes == 24 + 4

    class Own(list[object]):
        """A list of the user's own class."""

    assert ab.Frame({"a": Own([np.zeros(3)])}, index=0, instance=0).nbytes == 24
