"""Blenders that die, hang, start slowly or cannot be started: nothing is lost by it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import asyncblend as ab
from asyncblend.fleet.discovery import find_blender
from asyncblend.fleet.process import ChildProcess
from asyncblend.wire.ring import Ring
from tests.faults.common import FAST, LIMIT, MIB, PATIENT, PLAIN, WORKER, Write, check_noise, throughout, until


@pytest.mark.parametrize("shared_memory", [False, True], ids=["socket", "shared memory"])
async def test_a_frame_cut_off_by_the_death_of_its_blender(
    shared_memory: bool, blender: str, write_script: Write, tmp_path: Path
) -> None:
    """Killed with 64 MB on their way: a part of a frame does not count, and the next life renders it again."""
    script = write_script(
        WORKER
        + f"""
flag = pathlib.Path({str(tmp_path / "flag")!r})
answer = worker.answer
def answer_and_die(sample, lease):
    dies = lease.fields["index"] == 2 and not flag.exists()
    if dies:
        flag.touch()
    answer(sample, lease)
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
worker.answer = answer_and_die
def sample(task):
    return {{"big": np.full({64 * MIB} if task.index == 2 else 10, task.index, np.uint8), "pid": os.getpid()}}
"""
    )
    config = ab.StreamConfig(
        script=script, blender=blender, instances=1, length=4, ordered=True, restart=FAST, shared_memory=shared_memory
    )
    async with asyncio.timeout(LIMIT), ab.BlenderStream(config) as stream:
        frames = [frame async for frame in stream]
        stats = stream.stats()
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    assert all((frame["big"] == frame.index).all() for frame in frames)
    assert frames[2]["big"].nbytes == 64 * MIB
    if not shared_memory:
        assert frames[0]["pid"] != frames[2]["pid"]  # it was cut off indeed
    assert (stats.restarts, stats.bad_messages, stats.stale) == (1, 0, 0)


@pytest.mark.blender
@pytest.mark.parametrize(
    ("which", "code", "deaths"),
    [
        # In background mode Blender only notes that it is to quit.
        pytest.param("executable", "bpy.ops.wm.quit_blender()", 0, id="quits"),
        pytest.param("bpy_kind", "sys.exit(0)", 1, id="exits"),
    ],
)
async def test_a_clean_exit_in_mid_stream(
    which: str, code: str, deaths: int, request: pytest.FixtureRequest, write_script: Write, tmp_path: Path
) -> None:
    """A Blender that quits with exit status 0 while it holds leases is replaced, and nothing is lost."""
    blender = request.getfixturevalue(which).blender
    script = write_script(f"""
import bpy, pathlib, sys
flag = pathlib.Path({str(tmp_path / "flag")!r})
def sample(task):
    if task.index == 3 and not flag.exists():
        flag.touch()
        {code}
    return {{"noise": task.rng.random(3)}}
""")
    config = ab.StreamConfig(script=script, blender=blender, instances=1, length=6, restart=FAST)
    async with asyncio.timeout(LIMIT), ab.BlenderStream(config) as stream:
        check_noise([frame async for frame in stream], range(6))
        assert stream.stats().restarts == deaths


async def test_an_exception_in_a_handler_is_not_lost(real: Any, write_script: Write) -> None:
    """Blender itself only prints it and goes on; the caller gets it all the same, with its traceback."""
    script = write_script("""
import bpy
def move(scene, *_):
    if scene.frame_current == 1:
        raise ArithmeticError("the cube cannot move")
bpy.app.handlers.frame_change_pre.append(move)
def sample(task):
    bpy.context.scene.frame_set(task.index)
    return {}
""")
    config = ab.StreamConfig(script=script, blender=real.blender, instances=1, length=3)
    with pytest.raises(ab.SampleError, match="the cube cannot move") as caught:
        async with asyncio.timeout(LIMIT), ab.BlenderStream(config) as stream:
            async for frame in stream:
                assert frame.index == 0
    assert caught.value.index == 1
    assert f'File "{script}", line 7, in move' in caught.value.traceback


@pytest.mark.exhaustive
@pytest.mark.slow
async def test_a_handler_that_never_returns(
    bpy_kind: Any, write_script: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Python code that is stuck while the heartbeat goes on is noticed by the frame that does not come."""
    script = write_script(f"""
import bpy, pathlib
flag = pathlib.Path({str(tmp_path / "flag")!r})
def spin(scene, *_):
    if scene.frame_current == 3 and not flag.exists():
        flag.touch()
        while True: pass
bpy.app.handlers.frame_change_pre.append(spin)
def sample(task):
    bpy.context.scene.frame_set(task.index)
    return {{"noise": task.rng.random(3)}}
""")
    config = ab.StreamConfig(
        script=script, blender=bpy_kind.blender, instances=1, length=6, restart=PATIENT, timeouts=ab.Timeouts(frame=1)
    )
    async with asyncio.timeout(LIMIT), ab.BlenderStream(config) as stream:
        check_noise([frame async for frame in stream], range(6))
        assert stream.stats().restarts >= 1
    assert [message for message in caplog.messages if "made no frame for 1 s" in message]


# Renders for a second and a half, whatever the machine, and then serves.
SLOW_LOAD = """
import bpy
scene = bpy.context.scene
scene.render.engine, scene.cycles.use_denoising = "CYCLES", False
scene.render.threads_mode, scene.render.threads = "FIXED", 1
scene.render.resolution_x, scene.render.resolution_y = 320, 240
scene.cycles.samples, scene.cycles.time_limit = 1_000_000, 1.5
image = bl.render()["image"]
assert image.any()
"""


@pytest.mark.exhaustive
@pytest.mark.slow
async def test_a_slow_start_is_no_hang(blender: str, write_script: Write, tmp_path: Path) -> None:
    """A script may load or render for long before it serves: the budgets for heartbeats and frames do not run then."""
    if find_blender(blender).kind == "module":
        load, opened = SLOW_LOAD, tmp_path
    else:
        opened = tmp_path / "opened"
        load = (
            f"import pathlib, threading\nwhile not pathlib.Path({str(opened)!r}).exists(): threading.Event().wait(0.01)"
        )
    config = ab.StreamConfig(
        script=write_script(f"{load}\n{PLAIN}"),
        blender=blender,
        instances=1,
        length=4,
        restart=PATIENT,  # once it serves, a busy machine may overrun the small budgets
        timeouts=ab.Timeouts(beat=1, frame=0.4),
    )
    stream = ab.BlenderStream(config)
    entering = asyncio.ensure_future(stream.__aenter__())
    try:
        await throughout(1.2, lambda: not entering.done() and stream.stats().state[0] in ("new", "starting"))
        opened.touch()
        async with asyncio.timeout(LIMIT):
            await entering
            check_noise([frame async for frame in stream], range(4))
    finally:
        await stream.aclose()


async def test_a_start_without_heartbeats_is_no_hang(fake: str, write_script: Write) -> None:
    """Loading Blender or a large scene may hold the interpreter lock, so that no thread can send heartbeats."""
    script = write_script(f"import ctypes\nctypes.PyDLL(None).usleep(1_200_000)\n{PLAIN}")
    config = ab.StreamConfig(
        script=script, blender=fake, instances=1, length=4, restart=PATIENT, timeouts=ab.Timeouts(beat=0.5)
    )
    async with asyncio.timeout(LIMIT), ab.BlenderStream(config) as stream:
        check_noise([frame async for frame in stream], range(4))


@pytest.mark.parametrize("how", ["ignores SIGTERM", "is suspended"])
async def test_leaving_is_bounded_whatever_a_blender_does(
    how: str, blender: str, write_script: Write, tmp_path: Path
) -> None:
    """A Blender that neither reads the request to stop nor minds a signal is killed when its time is up."""
    stuck = tmp_path / "stuck"
    script = write_script(f"""
import os, pathlib, signal, threading
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(number, signal.SIG_IGN)
def sample(task):
    pathlib.Path({str(stuck)!r}).touch()
    if {how == "is suspended"}: os.kill(os.getpid(), signal.SIGSTOP)
    threading.Event().wait()
""")
    config = ab.StreamConfig(script=script, blender=blender, instances=1, timeouts=ab.Timeouts(stop=0.2))
    async with asyncio.timeout(LIMIT), ab.BlenderStream(config) as stream:
        stream.frames()
        await until(stuck.exists)


BREAKS: dict[str, Callable[[Path], Any]] = {
    "gone": lambda file: file.unlink(),
    "not executable": lambda file: file.chmod(0o644),
    "no program": lambda file: file.write_text("no program"),
    "no interpreter": lambda file: file.write_text("#!/nowhere/sh"),
}


@pytest.mark.parametrize("how", BREAKS)
@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_a_blender_that_cannot_be_executed(when: str, how: str, fake: str, write_script: Write) -> None:
    """It is an error at once, because it will not get better; also when that Blender ran before."""
    file = Path(fake)
    script = write_script("import os\ndef sample(task): return {'pid': os.getpid()}")
    patient = ab.RestartPolicy(backoff=0.01, max_restarts=10_000)
    stream = ab.BlenderStream(script=script, blender=fake, instances=1, queue_size=1, restart=patient)
    if when == "before":
        BREAKS[how](file)
    with pytest.raises(ab.BlenderNotFound, match=str(file.parent)):
        async with asyncio.timeout(LIMIT), stream:
            pid = (await anext(stream))["pid"]
            BREAKS[how](file)
            os.kill(pid, signal.SIGKILL)
            async for _ in stream:
                pass
    assert stream.stats().restarts <= 1


async def test_only_what_is_ours_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process group is killed once, and not again when it is gone: its number may belong to another group."""
    folder = tmp_path / "life"
    folder.mkdir()
    process = await ChildProcess.start(["/bin/sh", "-c", "exit 3"], os.environ, folder)
    killed = []
    killpg = os.killpg

    def kill(group: int, number: int) -> None:
        killed.append(group)
        killpg(group, number)

    monkeypatch.setattr(os, "killpg", kill)
    try:
        async with asyncio.timeout(LIMIT):
            assert await process.wait() == 3
            await process.stop(lambda: None, 0)
    finally:
        monkeypatch.setattr(os, "killpg", killpg)
    assert killed == [process.pid]
    monkeypatch.setattr(os, "killpg", lambda *_: pytest.fail("killed again"))
    process.kill()
    await process.stop(lambda: None, 0)


@pytest.mark.parametrize("skips", [True, False])
@pytest.mark.exhaustive
@pytest.mark.slow
async def test_a_lost_frame_is_not_blamed_for_the_next_samples_crash(
    skips: bool, fake: str, write_script: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without shared memory a large frame is still on its way out when the next sample kills its Blender."""
    monkeypatch.setattr(Ring, "create", lambda: None)
    script = write_script(
        """
import os, numpy as np
def sample(task):
    if task.index in (3, 9): os.abort()
    return {"image": np.full((1080, 1920, 4), task.index, np.uint8)}
"""
    )
    config = ab.StreamConfig(
        script=script, blender=fake, instances=1, length=12, restart=ab.RestartPolicy(backoff=0.01, max_restarts=100),
        on_bad_sample="skip" if skips else "raise", prefetch=4, ordered=True,
    )  # fmt: skip
    got = []
    async with asyncio.timeout(LIMIT), ab.BlenderStream(config) as stream:
        with contextlib.nullcontext() if skips else pytest.raises(ab.SampleError) as caught:
            async for frame in stream:
                assert (frame["image"] == frame.index).all()
                got.append(frame.index)
    if skips:
        assert got == [index for index in range(12) if index not in (3, 9)]
        assert stream.stats().skipped == 2
    else:
        assert caught is not None
        assert (got, caught.value.index) == ([0, 1, 2], 3)


FORKS = """
import asyncio, os, sys
import asyncblend as ab

async def main(script, blender):
    config = ab.StreamConfig(script=script, blender=blender, instances=2, queue_size=16, length=2000)
    lost = 0
    async with asyncio.timeout(100), ab.BlenderStream(config) as stream:
        kept = []
        async for frame in stream:
            kept.append(frame)
            if len(kept) == 8:
                child = os.fork()
                if child == 0: os._exit(0)
                os.waitpid(child, 0)
                kept.clear()
            if stream.stats().recycled >= 2:
                break
        print(stream.stats().recycled, stream.stats().restarts)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.skipif(Ring.create() is None, reason="this system has no memory to share without a name")
@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_program_that_forks_again_and_again_gets_its_memory_back(fake: str, write_script: Write) -> None:
    """Slots in use at a fork stay in use. A Blender that has lost many of them is replaced, and that is counted."""
    script = write_script("import numpy as np\ndef sample(task): return {'image': np.zeros((1080, 1920, 4), np.uint8)}")
    command = [sys.executable, "-c", FORKS, str(script), fake]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=2 * LIMIT)
    assert (done.stdout, done.returncode) == ("2 0\n", 0), done.stderr[-2000:]
