"""Faults, one by one: what goes wrong in a Blender, on the wire or in the host, and that nothing is lost by it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from torch.utils.data import DataLoader

import asyncblend as ab
from asyncblend.fleet.process import ChildProcess
from asyncblend.testing import fake_blender
from asyncblend.wire import protocol

Write = Callable[..., Path]

LIMIT = 60.0  # seconds; the bound of failure of every wait here
FAST = ab.RestartPolicy(backoff=0.01)
MIB = 1 << 20
PLAIN = "def sample(task): return {'noise': task.rng.random(3)}"

# The worker that serves this script, to do to its socket what a network or a bug might do.
WORKER = """
import os, pathlib, signal, subprocess, sys, threading
from asyncblend.blender.serving import serve
worker = serve._run.__self__
"""


@pytest.fixture(params=["fake", pytest.param("bpy", marks=pytest.mark.blender)])
def blender(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The fake and the bpy module: both start quickly."""
    return "bpy" if request.param == "bpy" else str(fake_blender(tmp_path / "fake"))


@pytest.fixture
def fake(tmp_path: Path) -> str:
    """A fake Blender without faults."""
    return str(fake_blender(tmp_path / "fake"))


async def until(condition: Callable[[], Any]) -> None:
    """Wait for what a Blender brings about."""
    async with asyncio.timeout(LIMIT):
        while not condition():
            await asyncio.sleep(0.005)


async def throughout(seconds: float, condition: Callable[[], Any]) -> None:
    """For what must not happen: the condition holds all the time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert condition()
        await asyncio.sleep(0.01)


def check_noise(frames: list[ab.Frame], length: int, seed: int = 0) -> None:
    """Each index is there once, with its own content."""
    assert sorted(frame.index for frame in frames) == list(range(length))
    for frame in frames:
        expected = np.random.default_rng([seed, frame.index]).random(3)
        np.testing.assert_array_equal(frame["noise"], expected)


# -- Blenders that die --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared_memory", [False, True], ids=["socket", "shared memory"])
async def test_a_frame_cut_off_by_the_death_of_its_blender(
    shared_memory: bool, blender: str, write_script: Write, tmp_path: Path
) -> None:
    """Killed with 64 MB on their way: no part of a frame counts, and what has not come the next life makes anew."""
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
        script=script,
        blender=blender,
        instances=1,
        length=4,
        ordered=True,
        restart=FAST,
        shared_memory=shared_memory,
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
        # In background mode it only takes note that it is to quit.
        pytest.param("executable", "bpy.ops.wm.quit_blender()", 0, id="quits"),
        pytest.param("bpy_kind", "sys.exit(0)", 1, id="exits"),
    ],
)
async def test_a_clean_exit_in_mid_stream(
    which: str,
    code: str,
    deaths: int,
    request: pytest.FixtureRequest,
    write_script: Write,
    tmp_path: Path,
) -> None:
    """A script that quits while frames are owed, with exit status 0: replaced if it is gone, and nothing is lost."""
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
        check_noise([frame async for frame in stream], 6)
        assert stream.stats().restarts == deaths


async def test_an_exception_in_a_handler_is_not_lost(real: Any, write_script: Write) -> None:
    """Blender itself prints it and goes on; the caller hears of it all the same, with its traceback."""
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


async def test_a_handler_that_never_returns(
    bpy_kind: Any, write_script: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Python code that is stuck in a Blender whose heartbeat goes on is noticed by the frame that does not come."""
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
        script=script,
        blender=bpy_kind.blender,
        instances=1,
        length=6,
        restart=FAST,
        timeouts=ab.Timeouts(frame=1),
    )
    async with asyncio.timeout(LIMIT), ab.BlenderStream(config) as stream:
        check_noise([frame async for frame in stream], 6)
        assert stream.stats().restarts == 1
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


async def test_a_slow_start_is_no_hang(blender: str, write_script: Write, tmp_path: Path) -> None:
    """However long a script loads or renders before it serves: the other budgets do not run, heartbeats go on."""
    if blender == "bpy":
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
        timeouts=ab.Timeouts(beat=1, frame=0.4),
    )
    stream = ab.BlenderStream(config)
    entering = asyncio.ensure_future(stream.__aenter__())
    try:
        await throughout(1.2, lambda: not entering.done() and stream.stats().state[0] in ("new", "starting"))
        opened.touch()
        async with asyncio.timeout(LIMIT):
            await entering
            check_noise([frame async for frame in stream], 4)
        assert stream.stats().restarts == 0
    finally:
        await stream.aclose()


async def test_a_start_without_heartbeats_is_no_hang(fake: str, write_script: Write) -> None:
    """While Blender itself or a large scene is loaded, the interpreter lock may be held, and no thread can beat."""
    script = write_script(f"import ctypes\nctypes.PyDLL(None).usleep(1_200_000)\n{PLAIN}")
    config = ab.StreamConfig(script=script, blender=fake, instances=1, length=4, timeouts=ab.Timeouts(beat=0.5))
    async with asyncio.timeout(LIMIT), ab.BlenderStream(config) as stream:
        check_noise([frame async for frame in stream], 4)


@pytest.mark.parametrize("how", ["ignores SIGTERM", "is suspended"])
async def test_leaving_is_bounded_whatever_a_blender_does(
    how: str, blender: str, write_script: Write, tmp_path: Path
) -> None:
    """One that neither hears of the request to stop nor minds a signal is killed when its time is up."""
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
    async with ab.BlenderStream(config):
        await until(stuck.exists)
        start = time.monotonic()
    assert 0.2 <= time.monotonic() - start < 5


BREAKS: dict[str, Callable[[Path], Any]] = {
    "gone": lambda file: file.unlink(),
    "not executable": lambda file: file.chmod(0o644),
    "no program": lambda file: file.write_text("no program"),
    "no interpreter": lambda file: file.write_text("#!/nowhere/sh"),
}


@pytest.mark.parametrize("how", BREAKS)
@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_a_blender_that_cannot_be_executed(when: str, how: str, fake: str, write_script: Write) -> None:
    """An error at once: it will not get better. Also when it happens to a Blender that ran before."""
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
    """A group is killed once, and never again when it is gone: its number may be another's."""
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


# -- the wire -----------------------------------------------------------------------------------------------------

RECONNECTS = """
left = {2, 3, 5, 8}
def reconnect(index):
    if index in left:
        left.remove(index)
        worker._socket.disconnect(worker._launch.endpoint)
        worker._socket.connect(worker._launch.endpoint)
answer = worker.answer
def answer_and_reconnect(sample, lease):
    answer(sample, lease)
    if AFTER: reconnect(lease.fields["index"])
worker.answer = answer_and_reconnect
def sample(task):
    if not AFTER: reconnect(task.index)
    return {"noise": task.rng.random(3), "pid": os.getpid()}
"""


@pytest.mark.parametrize("after", [False, True], ids=["before a frame is sent", "after a frame was sent"])
async def test_a_connection_that_comes_back_is_another_one(after: bool, blender: str, write_script: Write) -> None:
    """Under a new identity, in the midst of leases: what went down with the old one is made good, and nobody waits."""
    script = write_script(f"{WORKER}\nAFTER = {after}\n{RECONNECTS}")
    config = ab.StreamConfig(script=script, blender=blender, instances=1, length=12, timeouts=ab.Timeouts(beat=2))
    async with asyncio.timeout(LIMIT), ab.BlenderStream(config) as stream:
        frames = [frame async for frame in stream]
        stats = stream.stats()
    check_noise(frames, 12)
    assert len({frame["pid"] for frame in frames}) == 1
    assert (stats.restarts, stats.bad_messages) == (0, 0)


async def test_who_comes_back_while_it_is_stopped_hears_of_it(fake: str, write_script: Write, tmp_path: Path) -> None:
    """A connection lost just before the stream is left: Blender is asked to end all the same, not killed."""
    go, gone, ended = (tmp_path / name for name in ("go", "gone", "ended"))
    script = write_script(
        f"""{WORKER}
go, gone, ended = (pathlib.Path(name) for name in {[str(path) for path in (go, gone, ended)]})
hello = worker._hello
def lose_the_connection():
    if go.exists() and not gone.exists():
        worker._socket.disconnect(worker._launch.endpoint)
        worker._socket.connect(worker._launch.endpoint)
        gone.touch()
    else:
        hello()
worker._hello = lose_the_connection
def sample(task): return {{}}
try:
    bl.serve(sample)
finally:
    ended.touch()
""",
        serve=False,
    )
    config = ab.StreamConfig(script=script, blender=fake, instances=1, length=2, timeouts=ab.Timeouts(beat=1, stop=3))
    async with asyncio.timeout(LIMIT), ab.BlenderStream(config) as stream:
        async for _ in stream:
            pass
        go.touch()
        await until(gone.exists)
    assert ended.exists()


FLOODS = {
    # Beyond what the host takes in one part: it drops the connection, with all that is on it.
    "a part of more than a gigabyte": ("send(np.zeros((1 << 30) + 1, np.uint8), copy=False)", 0),
    "ten thousand parts": ("send_multipart([b''] * 10_000)", 1),
}


@pytest.mark.parametrize("what", FLOODS)
async def test_a_message_that_is_too_large(what: str, fake: str, write_script: Write, tmp_path: Path) -> None:
    """In mid-stream, from one of ours: it is never held in memory, and each index arrives once."""
    code, bad = FLOODS[what]
    script = write_script(
        WORKER
        + f"""
flag = pathlib.Path({str(tmp_path / "flag")!r})
def sample(task):
    if task.index == 4 and not flag.exists():
        flag.touch()
        worker._socket.{code}
    return {{"noise": task.rng.random(3)}}
"""
    )
    before = psutil.Process().memory_info().rss
    config = ab.StreamConfig(
        script=script, blender=fake, instances=1, length=12, restart=FAST, timeouts=ab.Timeouts(beat=1)
    )
    async with asyncio.timeout(LIMIT), ab.BlenderStream(config) as stream:
        check_noise([frame async for frame in stream], 12)
        assert stream.stats().bad_messages == bad
    assert psutil.Process().memory_info().rss - before < 100 * MIB


# A process that a Blender left behind when it died: it has the secret, and goes on as if it were that Blender.
GHOST = """
import sys, zmq
from asyncblend.wire import payload, protocol
from asyncblend.fleet.process import ChildProcess

endpoint, token, heard = sys.argv[1:]
socket = zmq.Context().socket(zmq.DEALER)
socket.connect(endpoint)
me = dict(token=token, version=protocol.VERSION, instance=0, epoch=0)

def frames():
    for serial in range(10):
        fields = dict(lease=serial, index=2)
        socket.send_multipart(protocol.encode(protocol.FRAME, fields, payload.encode_values({"by": "ghost"})))

frames()
socket.send_multipart(protocol.encode(protocol.HELLO, dict(ready=True, holding=[], **me)))
frames()
socket.send_multipart(protocol.encode(protocol.BEAT, me))
while True:
    assert socket.poll(30_000)
    message = protocol.decode(socket.recv_multipart())
    if message.kind == protocol.STOP:
        with open(heard, "w") as file:
            file.write(message.fields["reason"])
        sys.exit()
"""


async def test_what_an_earlier_life_left_behind_is_not_heard(blender: str, write_script: Write, tmp_path: Path) -> None:
    """A leftover child of a dead Blender sends frames for its leases, while the next life renders them: dropped."""
    ghost, heard = tmp_path / "ghost.py", tmp_path / "heard"
    ghost.write_text(GHOST)
    script = write_script(
        WORKER
        + f"""
heard = pathlib.Path({str(heard)!r})
def sample(task):
    if task.index == 2:
        if worker._launch.epoch == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        ghost = [sys.argv[1], {str(ghost)!r}, worker._launch.endpoint, worker._launch.token, str(heard)]
        subprocess.Popen(ghost, start_new_session=True)
        while not heard.exists(): threading.Event().wait(0.01)
    return {{"by": "Blender", "epoch": worker._launch.epoch}}
"""
    )
    config = ab.StreamConfig(
        script=script, script_args=[sys.executable], blender=blender, instances=1, length=4, restart=FAST
    )
    async with asyncio.timeout(LIMIT), ab.BlenderStream(config) as stream:
        frames = {frame.index: frame async for frame in stream}
        stats = stream.stats()
    assert [frames[index]["by"] for index in range(4)] == ["Blender"] * 4
    assert frames[2]["epoch"] == 1
    assert stats.restarts == 1
    assert stats.stale == 20
    assert "another life" in heard.read_text()


async def test_another_version_inside_blender(blender: str, write_script: Write, tmp_path: Path) -> None:
    """A Blender that loads a copy of the package with another protocol: an error that names both, and no retry."""
    package = Path(ab.__file__).parent
    other = tmp_path / "other" / "asyncblend"
    shutil.copytree(package, other, ignore=shutil.ignore_patterns("__pycache__"))
    wire = other / "wire" / "protocol.py"
    mine, theirs = f"VERSION = {protocol.VERSION}", f"VERSION = {protocol.VERSION + 7}"
    assert wire.read_text().count(f"\n{mine}\n") == 1
    wire.write_text(wire.read_text().replace(mine, theirs))
    bootstrap, starts = other / "blender" / "serving" / "bootstrap.py", tmp_path / "starts"
    command = [sys.executable, str(bootstrap)]
    if blender != "bpy":
        main = Path(blender).parent / "main.py"
        main.write_text(main.read_text().replace(str(package / "blender" / "serving" / "bootstrap.py"), str(bootstrap)))
        command = [blender]
    wrapper = tmp_path / "wrapper"
    wrapper.write_text(f'#!/bin/sh\necho start >> {starts}\nexec {" ".join(command)} "$@"\n')
    wrapper.chmod(0o755)
    config = ab.StreamConfig(script=write_script(PLAIN), blender=wrapper, instances=1, restart=FAST)
    with pytest.raises(ab.ProtocolError, match=rf"\b{protocol.VERSION + 7}\b.*\b{protocol.VERSION}\b") as caught:
        async with asyncio.timeout(LIMIT), ab.BlenderStream(config):
            pytest.fail("entered")
    assert type(caught.value) is ab.ProtocolError
    assert starts.read_text() == "start\n"


# -- the host -----------------------------------------------------------------------------------------------------

LARGE = 4 * MIB


def resident(pid: int | None = None) -> int:
    return int(psutil.Process(pid).memory_info().rss)


async def test_a_consumer_that_pauses_stops_the_fleet_and_is_no_hang(blender: str, write_script: Write) -> None:
    """For longer than any budget: memory is flat on both sides, what waits for a place is idle, and nothing is lost."""
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
        timeouts=ab.Timeouts(beat=2, frame=0.4),
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
        made = resident(first["pid"])

        def holds_still() -> bool:
            stats = stream.stats()
            assert resident() - before < 100 * MIB
            assert resident(first["pid"]) - made < 2 * LARGE
            return (stats.delivered, stats.queued, stats.rendering, stats.state[0]) == (1, 4, 0, "idle")

        await throughout(1.2, holds_still)
        async for frame in stream:
            check(frame)
            await asyncio.sleep(0)
        assert frames == 60
        assert stream.stats().restarts == 0
        assert stream.stats().stale == 0
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


async def test_a_flood_of_output_blocks_nothing(blender: str, write_script: Write, tmp_path: Path) -> None:
    """50 MB, one line of 1 MB, bytes that are no text: rendering goes on, the kept log and our memory stay small."""
    config = ab.StreamConfig(
        script=write_script(FLOOD),
        blender=blender,
        instances=1,
        length=10,
        logs=tmp_path / "logs",
        timeouts=ab.Timeouts(beat=2),
    )
    log = tmp_path / "logs" / "instance-0.log"
    before = resident()
    async with asyncio.timeout(LIMIT), ab.BlenderStream(config) as stream:
        check_noise([frame async for frame in stream], 10)
        await until(lambda: log.stat().st_size < 2 * MIB)
        assert stream.stats().restarts == 0
    assert resident() - before < 50 * MIB
    assert "\ufffd no text" in log.read_text(errors="replace")


async def test_the_log_of_a_blender_that_floods_and_dies(fake: str, write_script: Write, tmp_path: Path) -> None:
    """The error has its last lines and no more, and the kept log is small though it ended a moment later."""
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


async def test_two_streams_at_once(blender: str, write_script: Write) -> None:
    """In one program and loop, on one script: neither hears of the other, nor of its dead Blenders and its end."""
    script = write_script("import os\ndef sample(task): return {'noise': task.rng.random(3), 'pid': os.getpid()}")
    common = ab.StreamConfig(script=script, blender=blender, instances=1, queue_size=2, restart=FAST)
    async with asyncio.timeout(LIMIT), ab.BlenderStream(common, length=40, seed=1) as one:
        async with ab.BlenderStream(common, length=10, seed=2) as other:
            frames = [await anext(one)]
            others = [await anext(other)]
            os.kill(others[0]["pid"], signal.SIGKILL)
            others += [frame async for frame in other]
        check_noise(others, 10, seed=2)
        assert other.stats().restarts == 1
        frames += [frame async for frame in one]
    check_noise(frames, 40, seed=1)
    stats = one.stats()
    assert (stats.restarts, stats.stale, stats.bad_messages) == (0, 0, 0)
    assert {frame["pid"] for frame in frames}.isdisjoint(frame["pid"] for frame in others)


async def test_a_host_that_stalls_kills_nobody(fake: str, write_script: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop is blocked for longer than every budget, and the wall clock jumps by days: that is not Blender's fault."""
    script = write_script(
        "import threading\ndef sample(task):\n    threading.Event().wait(0.01)\n    return {'noise': task.rng.random(3)}"
    )
    config = ab.StreamConfig(
        script=script,
        blender=fake,
        instances=1,
        length=40,
        queue_size=2,
        timeouts=ab.Timeouts(beat=0.6, frame=0.6),
    )
    clock, days = time.time, 0
    async with asyncio.timeout(LIMIT), ab.BlenderStream(config) as stream:
        frames = [await anext(stream)]
        monkeypatch.setattr(time, "time", lambda: clock() + days * 86400)
        for days in (100, -100):
            frames += [await anext(stream) for _ in range(10)]
            if days > 0:
                threading.Event().wait(1.2)
        frames += [frame async for frame in stream]
        assert stream.stats().restarts == 0
    check_noise(frames, 40)


# Descriptors run out: then one more is there at each attempt, so that each step of a start fails for want of one;
# or, after some attempts in vain, as many as ever.
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
            # It failed again; or it runs, and there is no descriptor for its connection.
            if stream.stats().restarts > attempts or now > changed + 0.5:
                attempts, changed = stream.stats().restarts, now
                try:
                    while True: taken.append(os.open("/dev/null", os.O_RDONLY))
                except OSError:
                    pass
                for _ in range(spare): os.close(taken.pop())
                spare = len(taken) if again == "all" and spare == 3 else spare + 1
        assert attempts > 2, attempts
        for descriptor in taken: os.close(descriptor)
        frames += [frame async for frame in stream]
        assert sorted(frame.index for frame in frames) == list(range(12))
        assert len({frame["pid"] for frame in frames}) == 2
        if again == "one by one": assert descriptors() == before, (descriptors(), before)

with asyncio.Runner(loop_factory=uvloop.new_event_loop if loop == "uvloop" else None) as runner:
    runner.run(asyncio.wait_for(main(), 10))
print("done")
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors are counted as Linux lists them")
@pytest.mark.parametrize("again", ["one by one", "all"])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_without_descriptors_a_restart_waits_for_some(
    loop: str, again: str, fake: str, write_script: Write, tmp_path: Path
) -> None:
    """At whichever step of a start they run out: tried again until there are enough, and none is lost."""
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
    await asyncio.wait([entering], timeout=5)
    assert entering.done()
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
        await asyncio.sleep(0)  # until they wait: no Blender is asked for more than three
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
async def test_whatever_way_it_is_closed(
    close: Callable[[ab.BlenderStream], Awaitable[None]], fake: str, write_script: Write
) -> None:
    """Each close returns when nothing is left; then it is closed for good, says so, and still has its figures."""
    stream = ab.BlenderStream(script=write_script(PLAIN), blender=fake, instances=2, length=3)
    children = set(psutil.Process().children())
    async with asyncio.timeout(LIMIT):
        await close(stream)
        assert set(psutil.Process().children()) <= children
        with pytest.raises(ab.StreamClosed):
            await anext(stream)
        with pytest.raises(ab.StreamClosed):
            await stream.__aenter__()
        with pytest.raises(ab.StreamClosed):
            stream.rewind()
        await stream.aclose()
    assert stream.stats().delivered == len(set(range(3)) - missing_of(stream.state_dict()))


def missing_of(state: dict[str, Any]) -> set[int]:
    """The indices of a stream of three that were not taken."""
    return {index for index in range(state["watermark"], 3) if index not in state["above"]}


async def test_entering_twice_is_refused_and_harmless(fake: str, write_script: Write) -> None:
    """The stream that is open goes on."""
    stream = ab.BlenderStream(script=write_script(PLAIN), blender=fake, instances=1, length=5)
    async with asyncio.timeout(LIMIT), stream:
        frames = [await anext(stream)]
        with pytest.raises(ab.StreamClosed, match="only once"):
            await stream.__aenter__()
        check_noise(frames + [frame async for frame in stream], 5)


def in_a_fork(*calls: Callable[[], Awaitable[Any]]) -> str:
    """What each coroutine does at its first step in a forked copy of this process, where no loop runs it."""
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
async def test_a_forked_copy_of_a_stream_is_closed(fake: str, write_script: Write) -> None:
    """It says that it belongs to its parent, at once, and does not disturb that one's fleet."""
    stream = ab.BlenderStream(script=write_script(PLAIN), blender=fake, instances=1, length=20, queue_size=4)
    async with asyncio.timeout(LIMIT), stream:
        frames = [await anext(stream)]
        told = in_a_fork(stream.__anext__, stream.__aenter__, stream.aclose)
        assert told == "StreamClosed StreamClosed StopIteration"
        check_noise(frames + [frame async for frame in stream], 20)
        assert stream.stats().restarts == 0


# -- PyTorch's workers --------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_killed_worker_leaves_no_blender(bpy_kind: Any, write_script: Write) -> None:
    """torch raises, the dead worker's Blender ends by itself, and a fleet of the main process goes on."""
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
        assert not psutil.wait_procs(orphans, timeout=10)[1]
        mine += list(here)
        assert sorted(item["index_"] for item in mine) == list(range(30))
        assert {item["pid"] for item in mine} == {mine[0]["pid"]}
    finally:
        own.close()
        if iterator is not None:
            iterator._shutdown_workers()
