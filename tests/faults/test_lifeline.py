"""The host is killed: no Blender outlives it, whatever that Blender is doing, nor does what its script started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import asyncblend as ab
from asyncblend.fleet.sweeper import _SWEEP
from tests import test_shutdown
from tests.faults.common import LIMIT, PLAIN, Write, check_noise, throughout, until
from tests.test_shutdown import HEAD, Program, everything, folders

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the kernel's part is Linux's")

# The host consumes until it is killed.
HOST = (
    HEAD.replace("instances=2", "instances=1")
    + """
async def main():
    async with ab.BlenderStream(**options) as stream:
        async for frame in stream:
            pass

asyncio.run(main())
"""
)

# A sample does this when its note has been written.
BUSY = {"stopped": "os.kill(os.getpid(), signal.SIGSTOP)", "holds the interpreter": "ctypes.PyDLL(None).sleep(3600)"}
SCRIPT = """
import ctypes, os, pathlib, signal
def sample(task):
    new = pathlib.Path({note!r} + ".new")
    new.write_text(str(os.getpid()))
    new.rename({note!r})
    {busy}
    return {{}}
"""


def running(command: list[str]) -> list[int]:
    """Return the processes of this test whose command lines begin so."""
    found = []
    for pid in everything():
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            if psutil.Process(pid).cmdline()[: len(command)] == command:
                found.append(pid)
    return found


def nothing_is_left() -> None:
    """Wait until no process and no folder is left."""
    test_shutdown.until(lambda: not everything())
    test_shutdown.until(lambda: not folders())


@pytest.fixture
def hosted(kind: Any, write_script: Write, tmp_path: Path) -> Iterator[Callable[[str], tuple[Program, psutil.Process]]]:
    """Start a host, and return it with its Blender, whose sample has begun to do something."""
    note, programs = tmp_path / "note", []

    def start(busy: str) -> tuple[Program, psutil.Process]:
        script = write_script(SCRIPT.format(note=str(note), busy=busy))
        programs.append(program := Program(tmp_path, HOST, str(script), kind.blender, "5"))
        program.until(note.exists)
        return program, psutil.Process(int(note.read_text()))

    yield start
    for program in programs:
        program.__exit__()


@pytest.mark.parametrize("busy", BUSY)
@pytest.mark.exhaustive
def test_it_dies_with_its_host_though_its_python_cannot_run(
    busy: str, hosted: Callable[[str], tuple[Program, psutil.Process]]
) -> None:
    """It is stopped, or C code keeps the interpreter. Nothing is left, not even the folder."""
    program, blender = hosted(BUSY[busy])
    assert len(folders()) == 1
    program.kill(signal.SIGKILL)
    assert not psutil.wait_procs([blender], timeout=LIMIT)[1]
    nothing_is_left()


@pytest.mark.parametrize("busy", BUSY)
@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_kernel_alone_kills_it(busy: str, hosted: Callable[[str], tuple[Program, psutil.Process]]) -> None:
    """Also when the process that would remove the folder was killed before."""
    program, blender = hosted(BUSY[busy])
    (sweeper,) = running(["/bin/sh", "-c", _SWEEP])
    os.kill(sweeper, signal.SIGKILL)
    program.kill(signal.SIGKILL)
    assert not psutil.wait_procs([blender], timeout=LIMIT)[1]
    for folder in folders():
        shutil.rmtree(folder)


@pytest.mark.exhaustive
def test_it_dies_with_its_host_though_its_script_closes_all_descriptors(
    hosted: Callable[[str], tuple[Program, psutil.Process]],
) -> None:
    """Then neither the kernel nor the thread can know."""
    program, blender = hosted("os.closerange(3, 1000); os.kill(os.getpid(), signal.SIGSTOP)")
    program.kill(signal.SIGKILL)
    assert not psutil.wait_procs([blender], timeout=LIMIT)[1]
    nothing_is_left()


CLOSES = f"""
import os
for name in os.listdir("/proc/self/fd"):
    try:
        pipe = int(name) > 2 and os.readlink(f"/proc/self/fd/{{name}}").startswith("pipe:")
    except OSError:
        continue  # it was that of listdir
    if pipe:
        other = os.open("/dev/null", os.O_RDONLY)  # always reads as ended
        os.dup2(other, int(name))
        os.close(other)
{PLAIN}
"""


@pytest.mark.exhaustive
@pytest.mark.slow
async def test_a_script_that_closes_the_lifeline_ends_nothing(blender: str, write_script: Write) -> None:
    """Another file has its number then. The end of that file is not the host's: the Blender and the run go on."""
    config = ab.StreamConfig(
        script=write_script(CLOSES), blender=blender, instances=1, length=4, ordered=True, queue_size=1, prefetch=1
    )
    async with asyncio.timeout(LIMIT), ab.BlenderStream(config) as stream:
        frames = [await anext(stream)]
        # Longer than the thread waits between two looks.
        await throughout(2.5, lambda: stream.stats().restarts == 0 and len(folders()) == 1)
        frames += [frame async for frame in stream]
        assert stream.stats().restarts == 0
    check_noise(frames, range(4))


SLEEP = ["sleep", "776"]
GROUPS = """
import os, subprocess
subprocess.Popen(["timeout", "777", "sleep", "776"])
subprocess.Popen(["/bin/sh", "-c", "trap '' TERM HUP; sleep 776"], preexec_fn=os.setpgrp)
def sample(task): return {"group": os.getpgrp()}
"""


@pytest.mark.skipif(not shutil.which("timeout"), reason="needs the command timeout")
async def test_other_process_groups_of_a_script_end_with_it(kind: Any, write_script: Write) -> None:
    """`timeout` and interactive shells make groups of their own. What they run ends with the Blender all the same."""
    config = ab.StreamConfig(script=write_script(GROUPS), blender=kind.blender, instances=1)
    async with asyncio.timeout(LIMIT), ab.BlenderStream(config) as stream:
        group = (await anext(stream))["group"]
        await until(lambda: len(running(SLEEP)) == 2)
        assert group not in map(os.getpgid, running(SLEEP))
    await until(lambda: not running(SLEEP))  # they are killed by then, and die in a moment


@pytest.mark.skipif(not shutil.which("timeout"), reason="needs the command timeout")
@pytest.mark.exhaustive
def test_other_process_groups_of_a_script_end_with_a_killed_host(
    kind: Any, write_script: Write, tmp_path: Path
) -> None:
    """The kernel reaches only the Blender's own group. The process that removes the folder kills the others."""
    with Program(tmp_path, HOST, str(write_script(GROUPS)), kind.blender, "5") as program:
        program.until(lambda: len(running(SLEEP)) == 2)
        program.kill(signal.SIGKILL)
        nothing_is_left()


HOLDS = """
import os, sys, threading
from asyncblend.blender.serving import lifeline
from asyncblend.wire.launch import Lifeline

read, write = os.pipe()
pipe = Lifeline.of(read)

def refuse(*_): raise PermissionError
"""


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("os.close(write); lifeline.hold(pipe)", -signal.SIGKILL),
        ("os.open = refuse; lifeline.hold(pipe); os.close(write)", -signal.SIGKILL),
        ("lifeline.hold(pipe._replace(inode=pipe.inode + 1)); os.write(write, b'x'); os.close(write); sys.exit(3)", 3),
        ("os.close(read); lifeline.hold(pipe); sys.exit(3)", 3),
        ("lifeline.hold(None); sys.exit(3)", 3),
    ],
    ids=["the host is gone already", "only the thread can watch", "another pipe", "closed by a wrapper", "none"],
)
def test_what_a_blender_holds(code: str, status: int) -> None:
    """It ends with its host, and takes no other file for the host's pipe."""
    done = subprocess.run(
        [sys.executable, "-c", f"{HOLDS}{code}; threading.Event().wait()"],
        start_new_session=True,
        check=False,
        timeout=LIMIT,
    )
    assert done.returncode == status
