"""Closing passes and streams while others use them, and what is left afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import asyncblend as ab
from asyncblend.testing import fake_blender

Write = Callable[..., Path]
LIMIT = 40  # seconds; the bound of failure of every wait

# A sample with params {"gate": PATH} waits until that file exists.
SCRIPT = """
import os, threading
def sample(task):
    while "gate" in task.params and not os.path.exists(task.params["gate"]):
        threading.Event().wait(0.01)
    return {"x": np.full(100_000, task.index)}
"""


@pytest.fixture
def make(write_script: Write, tmp_path: Path) -> Callable[..., ab.BlenderStream]:
    """Return a function that makes a stream of one fake Blender which runs SCRIPT."""
    script, blender = write_script(SCRIPT), fake_blender(tmp_path / "fake")

    def make(**options: Any) -> ab.BlenderStream:
        return ab.BlenderStream(script=script, blender=blender, **{"instances": 1, "queue_size": 4, **options})

    return make


Make = Callable[..., ab.BlenderStream]


async def until(condition: Callable[[], Any]) -> None:
    """Wait for a condition that has no event of its own."""
    async with asyncio.timeout(LIMIT):
        while not condition():
            await asyncio.sleep(0.005)


def children() -> list[psutil.Process]:
    """Return the processes that this one has started, which have not ended."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            line = " ".join(process.cmdline())
            if process.status() != psutil.STATUS_ZOMBIE and "tracker" not in line and "forkserver" not in line:
                found.append(process)
    return found


async def test_closing_a_pass_leaves_the_waits_of_others(make: Make, tmp_path: Path) -> None:
    """Closing a pass wakes its own consumers with StreamClosed; a consumer of another pass goes on waiting."""
    gate = tmp_path / "gate"
    async with make(prefetch=8) as stream:
        one = stream.frames(range(10), params={"gate": str(gate)})
        two = stream.frames(range(10, 20), params={"gate": str(gate)})
        waiting = [asyncio.ensure_future(anext(one)) for _ in range(2)]
        other = asyncio.ensure_future(anext(two))
        await until(lambda: one.stats().rendering and two.stats().rendering)
        await one.aclose()
        for task in waiting:
            with pytest.raises(ab.StreamClosed, match="this iteration was closed"):
                await task
        assert not other.done()
        gate.touch()
        async with asyncio.timeout(LIMIT):
            assert 10 <= (await other).index < 20
        with pytest.raises(ab.StreamClosed):
            await anext(one)


async def test_a_pass_may_be_closed_by_several_tasks(make: Make) -> None:
    """Closing a pass at once from several tasks, and again later, ends it once."""
    async with make() as stream:
        frames = stream.frames(range(10))
        await anext(frames)
        await asyncio.gather(*(frames.aclose() for _ in range(3)))
        await frames.aclose()
        assert stream.stats().delivered == frames.stats().delivered == 1
        assert [frame.index async for frame in stream.frames([3])] == [3]


async def test_each_aclose_of_a_stream_waits_for_the_end(make: Make) -> None:
    """Tasks that close a stream at once all return after the last process, also the one that was cancelled."""
    stream = make(instances=2)
    seen: list[tuple[str, int]] = []

    async def close(name: str) -> None:
        try:
            await stream.aclose()
        finally:
            seen.append((name, len(children())))

    async with stream:
        await anext(stream)
        assert children()
        tasks = {name: asyncio.ensure_future(close(name)) for name in ("first", "cancelled", "third")}
        await asyncio.sleep(0)
        for _ in range(2):
            tasks["cancelled"].cancel()
            await asyncio.sleep(0)
        async with asyncio.timeout(LIMIT):
            await asyncio.wait(tasks.values())
        assert sorted(seen) == [("cancelled", 0), ("first", 0), ("third", 0)]
        assert tasks["cancelled"].cancelled()
        assert tasks["first"].exception() is None
        assert tasks["third"].exception() is None
        assert set(stream.stats().state.values()) == {"stopped"}
        await stream.aclose()


async def test_closing_while_the_stream_starts(make: Make) -> None:
    """A stream that another task closes before an instance serves raises StreamClosed where it is entered."""
    stream = make()
    entering = asyncio.ensure_future(stream.__aenter__())
    await until(lambda: stream.stats().state != {0: "new"})
    await stream.aclose()
    with pytest.raises(ab.StreamClosed):
        await entering
    assert not children()


async def test_closing_a_stream_while_it_is_recorded(make: Make, tmp_path: Path) -> None:
    """The recording raises StreamClosed, what it got is on the disk, and another run records the rest."""
    folder = tmp_path / "recording"
    async with make(length=500) as stream:
        recorder = stream.record(folder, shard_size=7)
        recording = asyncio.ensure_future(_recorded(recorder))
        await until(lambda: stream.stats().delivered >= 10)
        await stream.aclose()
        got = stream.stats().delivered
        with pytest.raises(ab.StreamClosed):
            await recording
    assert recorder.recorded == got < 500
    there = [item["index"] for item in ab.RecordedDataset(folder)]
    assert len(there) == len(set(there)) == got
    assert await make(length=20 + got).record(folder, shard_size=7) == 20 + got
    assert sorted(item["index"] for item in ab.RecordedDataset(folder)) == list(range(20 + got))


async def _recorded(recorder: Any) -> None:
    async with contextlib.aclosing(recorder):
        async for _ in recorder:
            pass


def test_a_dropped_stream_warns_and_ends_with_its_loop(make: Make) -> None:
    """A stream that nobody closed warns when it is collected, and its fleet ends with the event loop."""

    async def main() -> None:
        stream = await make().__aenter__()
        await anext(stream)
        holder = [stream]
        del stream
        with pytest.warns(ResourceWarning, match=r"BlenderStream.* was not closed; use it as `async with`"):
            holder.clear()
        assert children()

    asyncio.run(main())
    assert not children()


async def test_a_stream_that_was_closed_or_never_entered_does_not_warn(
    make: Make, recwarn: pytest.WarningsRecorder
) -> None:
    """Collecting a stream whose fleet has ended, or never began, is silent."""
    streams = [make(), make()]
    async with streams[0]:
        pass
    streams.clear()
    with contextlib.suppress(ab.ConfigError):
        make(queue_size=0)
    gc.collect()
    assert not [warning for warning in recwarn if warning.category is ResourceWarning]


@pytest.mark.parametrize("shared_memory", [True, False])
@pytest.mark.parametrize("way", ["closed", "dropped", "stream closed"])
async def test_an_ended_pass_leaves_nothing(way: str, shared_memory: bool, make: Make) -> None:
    """Frames that nobody took are freed with their pass, and their shared memory; a frame that was taken stays."""
    async with make(queue_size=8, shared_memory=shared_memory) as stream:
        frames = stream.frames(range(8))
        taken = await anext(frames)
        await until(lambda: stream.stats().queued == 7)
        gone: list[weakref.ref[Any]] = [weakref.ref(one.frame["x"]) for one in frames._source.queue._items]
        gone.append(weakref.ref(frames._source))
        assert len(gone) == 8
        assert all(ref() is not None for ref in gone)
        (ring,) = stream._run._rings.values() if shared_memory else (None,)
        assert ring is None or slots_in_use(ring) == 8
        if way == "closed":
            await frames.aclose()
        elif way == "stream closed":
            await stream.aclose()
        del frames
        await until(lambda: all_gone(gone))  # the end of a dropped pass takes a turn of the loop
        assert stream.stats().queued == 0
        assert ring is None or slots_in_use(ring) == 1
        assert (taken["x"] == taken.index).all()
        del taken
        gc.collect()
        assert ring is None or slots_in_use(ring) == 0


def all_gone(refs: list[weakref.ref[Any]]) -> bool:
    gc.collect()
    return not any(ref() is not None for ref in refs)


def slots_in_use(ring: Any) -> int:
    """Return how many slots of the shared memory hold arrays."""
    return sum(flag != 0 for flag in ring._map[:4096])


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
async def test_collecting_a_forked_copy_changes_nothing(make: Make) -> None:
    """In a forked copy, dropping passes and frames neither warns nor ends a pass nor frees its shared memory."""
    async with make(queue_size=3) as stream:
        holder: list[Any] = [stream.frames(range(20))]
        held = [await anext(holder[0]) for _ in range(2)]
        if (pid := os.fork()) == 0:
            status = 1
            with contextlib.suppress(BaseException):
                holder.clear()
                held.clear()
                gc.collect()
                status = 0
            os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0  # noqa: ASYNC222
        indices = [frame.index for frame in held]
        async with asyncio.timeout(LIMIT):
            async for frame in holder[0]:
                assert (frame["x"] == frame.index).all()
                indices.append(frame.index)
        assert sorted(indices) == list(range(20))
        assert all((frame["x"] == frame.index).all() for frame in held)
