"""What goes wrong in the host: stalls, floods, missing descriptors, closing at any moment, forks and dead workers."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from torch.utils.data import DataLoader

import asyncblend as ab
from asyncblend.fleet.fleet import Fleet
from benchmarks.soak.processes import blenders
from tests.faults.common import FAST, LIMIT, MIB, PATIENT, PLAIN, Write, check_noise, throughout, until

LARGE = 4 * MIB


def resident(pid: int | None = None) -> int:
    """Return the resident memory of a process, or of this one, in bytes."""
    return int(psutil.Process(pid).memory_info().rss)


@pytest.mark.exhaustive
async def test_a_consumer_that_pauses_stops_the_fleet_and_is_no_hang(blender: str, write_script: Write) -> None:
    """It pauses for longer than a frame may take: memory is flat on both sides, Blender waits idle, nothing is lost."""
    script = write_script(f"""
import os
def sample(task): return {{"large": np.full({LARGE}, task.index % 251, np.uint8), "pid": os.getpid()}}
""")
    config = ab.StreamConfig(
        script=script,
        blender=blender,
        instances=1,
        length=60,
        queue_size=4,
        restart=PATIENT,  # while it renders, a busy machine may overrun the small budget
        timeouts=ab.Timeouts(frame=0.4),
    )
    before = resident()
    async with asyncio.timeout(LIMIT), ab.BlenderStream(config) as stream:
        frames = 0

        def check(frame: ab.Frame) -> None:
            nonlocal frames
            frames += 1
            assert (frame["large"] == frame.index % 251).all()

        first = await anext(stream)
        check(first)
        await until(lambda: stream.stats().queued == 4)
        restarts, ((_, process),) = stream.stats().restarts, blenders()
        made = resident(process.pid)

        def holds_still() -> bool:
            stats = stream.stats()
            assert resident() - before < 100 * MIB
            assert resident(process.pid) - made < 2 * LARGE
            assert stats.restarts == restarts
            return (stats.delivered, stats.queued, stats.rendering, stats.state[0]) == (1, 4, 0, "idle")

        await throughout(1.2, holds_still)
        async for frame in stream:
            check(frame)
            await asyncio.sleep(0)
        assert frames == 60
    assert resident() - before < 100 * MIB


FLOOD = f"""
import sys
out = sys.stdout.buffer
def sample(task):
    for _ in range(5): out.write(b"x" * 999_999 + b"\\n")
    out.write(b"y" * {MIB} if task.index == 0 else b"\\xff\\xfe no text\\n")
    out.flush()
    return {{"noise": task.rng.random(3)}}
"""


@pytest.mark.exhaustive
async def test_a_flood_of_output_blocks_nothing(blender: str, write_script: Write, tmp_path: Path) -> None:
    """After 50 MB of output, a line of 1 MB and bytes that are no text, the kept log and our memory are small."""
    config = ab.StreamConfig(
        script=write_script(FLOOD), blender=blender, instances=1, length=10, logs=tmp_path / "logs"
    )
    log = tmp_path / "logs" / "instance-0.log"
    before = resident()
    async with asyncio.timeout(LIMIT), ab.BlenderStream(config) as stream:
        check_noise([frame async for frame in stream], range(10))
        await until(lambda: log.stat().st_size < 2 * MIB)
        assert stream.stats().restarts == 0
    assert resident() - before < 50 * MIB
    assert "\ufffd no text" in log.read_text(errors="replace")


async def test_the_log_of_a_blender_that_floods_and_dies(fake: str, write_script: Write, tmp_path: Path) -> None:
    """The error has its last lines only, and the kept log is small though the Blender died a moment later."""
    flood = FLOOD.replace("return", "sys.exit('the last words'); return")
    config = ab.StreamConfig(
        script=write_script(flood),
        blender=fake,
        instances=1,
        logs=tmp_path / "logs",
        restart=ab.RestartPolicy(max_restarts=0),
    )
    with pytest.raises(ab.CrashLoop, match="the last words") as caught:
        async with asyncio.timeout(LIMIT), ab.BlenderStream(config) as stream:
            await anext(stream)
    assert len(str(caught.value)) < 100_000
    assert (tmp_path / "logs" / "instance-0.log").stat().st_size < 2 * MIB


@pytest.mark.exhaustive
async def test_two_streams_at_once(blender: str, write_script: Write) -> None:
    """In one event loop and on one script, neither is touched by the other's dead Blenders or its end."""
    script = write_script("import os\ndef sample(task): return {'noise': task.rng.random(3), 'pid': os.getpid()}")
    common = ab.StreamConfig(script=script, blender=blender, instances=1, queue_size=2, restart=FAST)
    async with asyncio.timeout(LIMIT), ab.BlenderStream(common, length=40, seed=1) as one:
        async with ab.BlenderStream(common, length=10, seed=2) as other:
            frames = [await anext(one)]
            others = [await anext(other)]
            os.kill(others[0]["pid"], signal.SIGKILL)
            others += [frame async for frame in other]
        check_noise(others, range(10), seed=2)
        assert other.stats().restarts == 1
        frames += [frame async for frame in one]
    check_noise(frames, range(40), seed=1)
    stats = one.stats()
    assert (stats.restarts, stats.stale, stats.bad_messages) == (0, 0, 0)
    assert {frame["pid"] for frame in frames}.isdisjoint(frame["pid"] for frame in others)


@pytest.mark.exhaustive
@pytest.mark.slow
async def test_a_host_that_stalls_kills_nobody(
    fake: str, write_script: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop is blocked for longer than every budget, and the wall clock jumps by days: that is not Blender's fault."""
    go = tmp_path / "go"
    script = write_script(f"""
import pathlib, threading
def sample(task):
    while task.index == 10 and not pathlib.Path({str(go)!r}).exists(): threading.Event().wait(0.01)
    return {{"noise": task.rng.random(3)}}
""")
    config = ab.StreamConfig(script=script, blender=fake, instances=1, length=20, queue_size=2)
    clock, monotonic, stalled, days = time.time, time.monotonic, 0.0, 0
    fleet = functools.partial(Fleet, clock=lambda: monotonic() + stalled)
    monkeypatch.setattr("asyncblend.stream.run.Fleet", fleet)
    async with asyncio.timeout(LIMIT), ab.BlenderStream(config) as stream:
        frames = [await anext(stream) for _ in range(10)]
        monkeypatch.setattr(time, "time", lambda: clock() + days * 86400)
        for jump in (100, -100):
            days = jump
            threading.Event().wait(1.1)  # the fleet looks at its Blenders once a second
            stalled += 1000
            await throughout(1.2, lambda: stream.stats().restarts == 0)
        go.touch()
        frames += [frame async for frame in stream]
        assert stream.stats().restarts == 0
    check_noise(frames, range(20))


# All descriptors are taken. Then each attempt to start has one more than the last, so that each step of a start fails
# once for want of a descriptor; or, after some attempts in vain, all are free again.
SHORT = """
import asyncio, logging, os, resource, signal, sys
import uvloop
import asyncblend as ab

script, blender, loop, again = sys.argv[1:]
patient = ab.RestartPolicy(backoff=0.001, max_backoff=0.001, max_restarts=100_000)
options = dict(script=script, blender=blender, instances=1, length=12, queue_size=2, restart=patient)
logging.getLogger("asyncblend").setLevel(logging.ERROR)

def descriptors():
    return len(os.listdir("/proc/self/fd"))

async def main():
    async with ab.BlenderStream(**options) as stream:
        frames = [await anext(stream)]
        before = descriptors()
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (before + 30, hard))
        taken, spare, attempts, changed = [], 0, 0, 0.0
        os.kill(frames[0]["pid"], signal.SIGKILL)
        while len(frames) < 6:
            await asyncio.sleep(0.001)
            while stream.stats().queued:
                frames.append(await anext(stream))
            now = asyncio.get_running_loop().time()
            # The start failed again; or it has succeeded, and there is no descriptor for the connection.
            if stream.stats().restarts > attempts or now > changed + 0.5:
                attempts, changed = stream.stats().restarts, now
                try:
                    while True: taken.append(os.open("/dev/null", os.O_RDONLY))
                except OSError:
                    pass
                for _ in range(min(spare, len(taken))): os.close(taken.pop())
                spare = len(taken) if again == "all" and spare == 3 else spare + 1
        assert attempts > 2, attempts
        for descriptor in taken: os.close(descriptor)
        frames += [frame async for frame in stream]
        assert sorted(frame.index for frame in frames) == list(range(12))
        assert len({frame["pid"] for frame in frames}) == 2
        if again == "one by one": assert descriptors() == before, (descriptors(), before)

with asyncio.Runner(loop_factory=uvloop.new_event_loop if loop == "uvloop" else None) as runner:
    runner.run(asyncio.wait_for(main(), 50))
print("done")
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors are counted as Linux lists them")
@pytest.mark.parametrize("again", ["one by one", "all"])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.exhaustive
def test_without_descriptors_a_restart_waits_for_some(
    loop: str, again: str, fake: str, write_script: Write, tmp_path: Path
) -> None:
    """At whichever step of a start they run out, it is tried again until there are enough, and none is lost."""
    program = tmp_path / "short.py"
    program.write_text(SHORT)
    script = write_script("import os\ndef sample(task): return {'pid': os.getpid()}")
    done = subprocess.run(
        [sys.executable, str(program), str(script), fake, loop, again],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


# -- closing and forking ------------------------------------------------------------------------------------------


async def close_twice(stream: ab.BlenderStream) -> None:
    await stream.__aenter__()
    await stream.aclose()
    await stream.aclose()


async def close_before_it_is_entered(stream: ab.BlenderStream) -> None:
    await stream.aclose()
    await stream.aclose()


async def close_at_once_by_several(stream: ab.BlenderStream) -> None:
    await stream.__aenter__()
    await asyncio.gather(*(stream.aclose() for _ in range(5)))


async def close_while_it_is_entered(stream: ab.BlenderStream) -> None:
    entering = asyncio.ensure_future(stream.__aenter__())
    await until(lambda: "starting" in stream.stats().state.values())
    await stream.aclose()
    await asyncio.wait([entering])
    assert isinstance(entering.exception(), ab.StreamClosed)


async def close_inside_and_leave(stream: ab.BlenderStream) -> None:
    async with stream:
        await anext(stream)
        await stream.aclose()


async def close_while_a_frame_is_awaited(stream: ab.BlenderStream) -> None:
    async with stream:
        for _ in range(3):
            await anext(stream)
        waiting = [asyncio.ensure_future(anext(stream)) for _ in range(3)]
        await asyncio.sleep(0)  # until they wait: the stream has three samples only
        await stream.aclose()
        for one in waiting:
            with pytest.raises((ab.StreamClosed, StopAsyncIteration)):
                await one


async def close_again_though_the_first_is_cancelled(stream: ab.BlenderStream) -> None:
    await stream.__aenter__()
    closing = asyncio.ensure_future(stream.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    await stream.aclose()
    with pytest.raises(asyncio.CancelledError):
        await closing


async def leave_by_an_exception(stream: ab.BlenderStream) -> None:
    with pytest.raises(ArithmeticError):
        async with stream:
            await anext(stream)
            raise ArithmeticError


@pytest.mark.parametrize(
    "close",
    [
        close_twice,
        close_before_it_is_entered,
        close_at_once_by_several,
        close_while_it_is_entered,
        close_inside_and_leave,
        close_while_a_frame_is_awaited,
        close_again_though_the_first_is_cancelled,
        leave_by_an_exception,
    ],
)
async def test_each_way_to_close(
    close: Callable[[ab.BlenderStream], Awaitable[None]], fake: str, write_script: Write
) -> None:
    """It returns when nothing is left; then the stream says that it is closed, and still has its figures."""
    stream = ab.BlenderStream(script=write_script(PLAIN), blender=fake, instances=2, length=3)
    children = set(psutil.Process().children())
    async with asyncio.timeout(LIMIT):
        await close(stream)
        assert set(psutil.Process().children()) <= children
        with pytest.raises(ab.StreamClosed):
            await anext(stream)
        for call in (stream.frames, stream.flush, lambda: stream.batches(2)):
            with pytest.raises(ab.StreamClosed):
                call()
        with pytest.raises(ab.StreamClosed):
            await stream.render(1)
        with pytest.raises(ab.ConfigError, match="only once"):
            await stream.__aenter__()
        await stream.aclose()
    assert stream.stats().delivered == len(set(range(3)) - missing_of(stream.state_dict()))


def missing_of(state: dict[str, Any]) -> set[int]:
    """Return the indices of a stream of three that were not delivered."""
    return {index for index in range(state["watermark"], 3) if index not in state["above"]}


async def test_entering_twice_is_refused_and_harmless(fake: str, write_script: Write) -> None:
    """The stream that is open is not touched."""
    stream = ab.BlenderStream(script=write_script(PLAIN), blender=fake, instances=1, length=5)
    async with asyncio.timeout(LIMIT), stream:
        frames = [await anext(stream)]
        with pytest.raises(ab.ConfigError, match="only once"):
            await stream.__aenter__()
        check_noise([*frames, *[frame async for frame in stream]], range(5))


def in_a_fork(*calls: Callable[[], Awaitable[Any]]) -> str:
    """Return what each coroutine does at its first step in a forked copy of this process, where no loop runs."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        told = []
        for call in calls:
            try:
                call().__await__().__next__()
                told.append("waits")
            except BaseException as error:
                told.append(type(error).__name__)
        os.write(write, " ".join(told).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answers:
        said = answers.read()
    assert os.waitpid(pid, 0)[1] == 0
    return said


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
async def test_a_forked_copy_of_a_stream_is_refused(fake: str, write_script: Write) -> None:
    """It says at once that it belongs to its parent, and does not disturb the parent's fleet."""
    stream = ab.BlenderStream(script=write_script(PLAIN), blender=fake, instances=1, length=20, queue_size=4)
    async with asyncio.timeout(LIMIT), stream:
        other = stream.frames([100])
        frames = [await anext(stream)]
        calls = (stream.__anext__, stream.__aenter__, other.__anext__, lambda: stream.render(3))
        assert in_a_fork(*calls) == " ".join(["ForkedProcessError"] * len(calls))
        assert in_a_fork(stream.aclose, other.aclose) == "StopIteration StopIteration"
        check_noise([*frames, *[frame async for frame in stream]], range(20))
        check_noise([frame async for frame in other], [100])
        assert stream.stats().restarts == 0


# -- PyTorch's workers --------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_killed_worker_leaves_no_blender(bpy_kind: Any, write_script: Write) -> None:
    """torch raises, the dead worker's Blenders end by themselves, and a fleet of the main process goes on."""
    script = write_script(
        "import os\ndef sample(task): return {'pid': os.getpid(), 'host': os.getppid(), 'index_': task.index}"
    )
    own = ab.BlenderDataset(script=script, blender=bpy_kind.blender, instances=1, length=30, queue_size=4)
    dataset = ab.BlenderDataset(script=script, blender=bpy_kind.blender, instances=2)
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=LIMIT)
    iterator: Any = None
    try:
        here = iter(own)
        mine = [next(here)]
        iterator = iter(loader)
        items = [next(iterator) for _ in range(4)]
        assert len({item["host"] for item in items}) == 2
        dead = items[0]["host"]
        orphans = [psutil.Process(pid) for pid in {i["pid"] for i in items if i["host"] == dead}]
        os.kill(dead, signal.SIGKILL)
        with pytest.raises(RuntimeError, match=r"killed by signal|exited unexpectedly"):
            while True:
                next(iterator)
        assert not psutil.wait_procs(orphans, timeout=LIMIT)[1]
        mine += list(here)
        assert sorted(item["index_"] for item in mine) == list(range(30))
        assert {item["pid"] for item in mine} == {mine[0]["pid"]}
    finally:
        own.close()
        if iterator is not None:
            iterator._shutdown_workers()
