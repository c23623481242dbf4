"""An event loop that ends without its stream: it is closed, or a forked copy of its process leaves through it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

Write = Callable[..., Path]

LIMIT = 100.0  # seconds; the bound of failure of every wait
SAMPLE = "def sample(task): return {'x': np.full(100_000, task.index)}"
HEAD = """
import asyncio, os, sys, warnings
import asyncblend as ab

warnings.filterwarnings("ignore", ".*multi-threaded.*", DeprecationWarning)
script, blender, loop, how = sys.argv[1:]
options = dict(script=script, blender=blender, instances=2, length=300, queue_size=4)
if loop == "uvloop":
    import uvloop
    new_loop = uvloop.new_event_loop
else:
    new_loop = asyncio.new_event_loop
"""


@pytest.fixture
def run(kind: Any, write_script: Write, tmp_path: Path) -> Callable[..., str]:
    """Run a program, check that it ends well and leaves nothing, and return what it printed."""

    def run(code: str, *arguments: str) -> str:
        (tmp_path / "program.py").write_text(HEAD + code)
        script = write_script(SAMPLE)
        command = [sys.executable, str(tmp_path / "program.py"), str(script), kind.blender, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
        assert done.returncode == 0, done.stderr
        mark = os.environ["ASYNCBLEND_TEST"]
        others = [process for process in psutil.process_iter() if process.pid != os.getpid()]
        assert not psutil.wait_procs([process for process in others if marked(process, mark)], timeout=LIMIT)[1]
        assert not list(Path(tempfile.gettempdir()).glob("asyncblend*"))
        return done.stdout

    return run


def marked(process: psutil.Process, mark: str) -> bool:
    """Tell whether this test has started the process."""
    try:
        return bool(process.environ().get("ASYNCBLEND_TEST") == mark)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


CLOSED = """
import gc
gc.disable()
loop = new_loop()
stream = ab.BlenderStream(**options)
if "starting" in how:
    entering = loop.create_task(stream.__aenter__())
    loop.run_until_complete(asyncio.sleep(0))
else:
    loop.run_until_complete(stream.__aenter__())
loop.close()
if "collected" in how:
    stream = entering = None
    gc.collect()
print("closed")
"""


@pytest.mark.parametrize(
    "how",
    [
        "starting",
        *(pytest.param(how, marks=pytest.mark.exhaustive) for how in ("ready", "starting, then collected")),
        "ready, then collected",
    ],
)
@pytest.mark.parametrize("loop", [pytest.param("asyncio", marks=pytest.mark.exhaustive), "uvloop"])
def test_a_closed_loop_with_an_open_stream(loop: str, how: str, run: Any) -> None:
    """It may be collected, and the program ends, with all Blenders."""
    assert run(CLOSED, loop, how) == "closed\n"


FORKED = """
def fork():
    sys.stdout.flush()
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if how == "exit":
        sys.exit(7)
    return None

async def main():
    async with ab.BlenderStream(**options) as stream:
        await asyncio.to_thread(int)  # an executor, which is joined at the end
        seen = [(await anext(stream)).index]
        status = fork()
        if status is None:
            return
        seen += [frame.index async for frame in stream]
        # A thread wakes the loop: the copy has not taken its descriptors along.
        print(status, sorted(seen) == list(range(300)), stream.stats().restarts, await asyncio.to_thread(int, "9"))

with asyncio.Runner(loop_factory=new_loop) as runner:
    runner.run(main())
"""


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("how", ["exit", "return"])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.exhaustive
def test_a_forked_copy_that_leaves_through_the_loop(loop: str, how: str, run: Any) -> None:
    """It ends by itself, and takes neither a Blender nor a frame nor a descriptor of its parent's along."""
    assert run(FORKED, loop, how) == f"{7 if how == 'exit' else 0} True 0 9\n"
