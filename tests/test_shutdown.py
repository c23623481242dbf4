"""However a program ends, no Blender, no process that a Blender started, and no temporary folder outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from asyncblend.testing import fake_blender

Write = Callable[..., Path]

LIMIT = 40.0  # seconds; the bound of failure of every wait

# This script leaves notes: that it started, that it made a sample, and that it ended because it was asked to.
NOTES = """
import os, pathlib, threading
def note(what): pathlib.Path({notes!r}, f"{{what}}-{{os.getpid()}}").touch()
note("started")
def sample(task):
    note("made")
    return {{"x": np.zeros(8)}}
try:
    bl.serve(sample)
finally:
    note("stopped")
    if {stubborn!r}: threading.Event().wait()
"""

# Each program begins with this. A process that is started in the background may have been told to ignore SIGINT.
HEAD = """
import asyncio, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
import asyncblend as ab

script, blender, stop = sys.argv[1:4]
options = dict(script=script, blender=blender, instances=2, timeouts=ab.Timeouts(start=600, stop=float(stop)))
"""

ASYNCIO = (
    HEAD
    + """
async def main():
    async with ab.BlenderStream(**options) as stream:
        async for frame in stream:
            await asyncio.sleep(0.001)

asyncio.run(main())
"""
)

LOADER = (
    HEAD
    + """
from torch.utils.data import DataLoader

if __name__ == "__main__":
    dataset = ab.BlenderDataset(**options)
    for batch in {loop}(DataLoader(dataset, batch_size=2, num_workers={workers})):
        {body}
"""
)

SYNC = (
    HEAD
    + """
with ab.BlenderStream(**options).sync() as stream:
    for frame in stream.frames(range(10**6)):
        pass
"""
)

PROGRAMS = {
    "asyncio": ASYNCIO,
    "sync": SYNC,
    "loader": LOADER.format(workers=0, loop="", body="pass"),
    "workers": LOADER.format(workers=2, loop="", body="pass"),
}


def until(condition: Callable[[], Any], seconds: float = LIMIT) -> None:
    """Wait for a condition that another process fulfils."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        threading.Event().wait(0.01)


class Program:
    """A Python program in a session of its own, whose output goes to files. Leaving `with` kills it."""

    def __init__(self, folder: Path, code: str, *arguments: str) -> None:
        self._folder = folder
        (folder / "program.py").write_text(code)
        with open(folder / "stdout.txt", "wb") as out, open(folder / "stderr.txt", "wb") as err:
            self._process = subprocess.Popen(
                [sys.executable, str(folder / "program.py"), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=folder,
                start_new_session=True,
            )

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def stdout(self) -> str:
        return (self._folder / "stdout.txt").read_text()

    @property
    def stderr(self) -> str:
        return (self._folder / "stderr.txt").read_text()

    def until(self, condition: Callable[[], Any]) -> None:
        """Wait for a condition that this program fulfils while it runs."""

        def met() -> bool:
            assert self._process.poll() is None, self.stderr
            return bool(condition())

        until(met)

    def interrupt(self) -> None:
        """Send SIGINT to its process group, as Ctrl-C in a terminal does. Its Blenders are in other groups."""
        os.killpg(self._process.pid, signal.SIGINT)

    def kill(self, number: signal.Signals) -> None:
        os.kill(self._process.pid, number)

    def end(self) -> int:
        """Wait for its end, and return its exit status."""
        return self._process.wait(LIMIT)


class Scene:
    """A script that leaves notes, and a Blender to run it."""

    def __init__(self, folder: Path, write_script: Write) -> None:
        self._write, self._folder = write_script, folder
        self._notes = folder / "notes"
        self._notes.mkdir()

    def arguments(
        self, *, blender: str | None = None, stop: float = LIMIT, stubborn: bool = False, **faults: Any
    ) -> list[str]:
        """Return a program's arguments: script, Blender (None: a fake with these faults), and timeouts.stop."""
        body = NOTES.format(notes=str(self._notes), stubborn=stubborn)
        blender = blender or str(fake_blender(self._folder / "fake", **faults))
        return [str(self._write(body, serve=False)), blender, str(stop)]

    def noted(self, what: str) -> list[int]:
        """Return the process ids of the Blenders that left this note."""
        return sorted(int(path.name.split("-")[1]) for path in self._notes.glob(f"{what}-*"))


@pytest.fixture
def scene(tmp_path: Path, write_script: Write) -> Scene:
    return Scene(tmp_path, write_script)


def everything() -> list[int]:
    """Return all processes that this test has started. The no_leaks fixture marks them by their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if (
                process.pid != os.getpid()
                and process.status() != psutil.STATUS_ZOMBIE
                and process.environ().get("ASYNCBLEND_TEST") == os.environ["ASYNCBLEND_TEST"]
            ):
                found.append(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def folders() -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob("asyncblend*"))


def ended(kind_of_program: str) -> None:
    """Check that nothing is left.

    multiprocessing kills torch's workers while they clean up, when the main process ends. Then their Blenders, and what
    removes their folders, end in a moment.
    """
    if kind_of_program == "workers":
        until(lambda: not everything())
    assert not everything()
    assert not folders()


# -- a program that ends by itself --------------------------------------------------------------------------------

BODIES = {
    "live iterator": ("keep := iter", "break", 0, ""),
    "exit": ("", "sys.exit(3)", 3, ""),
    "exception": ("", "raise ArithmeticError('a bad batch')", 1, "ArithmeticError: a bad batch"),
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("body", BODIES)
@pytest.mark.exhaustive
def test_a_program_ends_while_its_fleet_runs(body: str, workers: int, scene: Scene, tmp_path: Path) -> None:
    """A program that leaves its fleet running ends with its own status, its own error only, and no Blender left."""
    loop, code, status, error = BODIES[body]
    source = LOADER.format(workers=workers, loop=f"({loop})" if loop else "", body=code)
    with Program(tmp_path, source, *scene.arguments()) as program:
        assert program.end() == status, program.stderr
        last = program.stderr.strip().rpartition("\n")[2]
        assert last == error
        assert program.stderr.count("Traceback") == (1 if error else 0)
        assert scene.noted("started")
        if workers == 0:
            # A Blender that was not ready yet was killed, and left no such note.
            assert scene.noted("stopped")
            assert set(scene.noted("made")) <= set(scene.noted("stopped"))
        ended("workers" if workers else "loader")


UNCLOSED = {
    "launcher": """
from asyncblend import blendtorch as bt
launcher = bt.BlenderLauncher(num_instances=2, script=script, blend_path=blender).__enter__()
bt.Receiver(launcher)(timeoutms=40000)
""",
    "stream": """
async def main():
    stream = await ab.BlenderStream(**options).__aenter__()
    await anext(stream)
asyncio.run(main())
""",
    "sync": """
stream = ab.BlenderStream(**options).sync()
stream.start()
passes = [stream.frames(range(100)), stream.frames(range(50), ordered=True)]
for frames in passes:
    next(frames)
""",
    "loop": """
loop = asyncio.new_event_loop()
stream = loop.run_until_complete(ab.BlenderStream(**options).__aenter__())
loop.run_until_complete(anext(stream))
""",
    "pass": """
async def main():
    async with ab.BlenderStream(**options) as stream:
        frames = stream.frames(range(100))
        await anext(frames)
        async for frame in stream.frames(range(50)):
            raise SystemExit
asyncio.run(main())
""",
    "iterator": """
async def main():
    async with ab.BlenderStream(**options) as stream:
        async for frame in stream:
            sys.exit()
asyncio.run(main())
""",
}


@pytest.mark.parametrize("what", UNCLOSED)
def test_a_program_ends_without_closing(what: str, scene: Scene, tmp_path: Path) -> None:
    """A launcher or stream that nobody closed ends with the interpreter, without any output."""
    with Program(tmp_path, HEAD + UNCLOSED[what], *scene.arguments()) as program:
        assert program.end() == 0, program.stderr
        assert program.stderr == ""
        assert set(scene.noted("made")) <= set(scene.noted("stopped"))
        assert scene.noted("stopped")
        assert not everything()
        assert not folders()


@pytest.mark.parametrize("what", ["stream", "iterator"])
@pytest.mark.exhaustive
def test_a_program_ends_without_closing_a_real_blender(what: str, bpy_kind: Any, scene: Scene, tmp_path: Path) -> None:
    """A real Blender is asked to end, and does, while the interpreter shuts down."""
    with Program(tmp_path, HEAD + UNCLOSED[what], *scene.arguments(blender=bpy_kind.blender)) as program:
        assert program.end() == 0, program.stderr
        assert program.stderr == ""
        assert set(scene.noted("made")) <= set(scene.noted("stopped"))
        assert scene.noted("stopped")
        assert not everything()
        assert not folders()


# -- Ctrl-C -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind_of_program", PROGRAMS)
def test_one_interrupt_stops_cleanly(kind_of_program: str, scene: Scene, tmp_path: Path) -> None:
    """After one Ctrl-C each Blender ends as it was asked to, and the program dies of KeyboardInterrupt."""
    with Program(tmp_path, PROGRAMS[kind_of_program], *scene.arguments()) as program:
        program.until(lambda: len(scene.noted("made")) == 2)
        program.interrupt()
        assert program.end() == -signal.SIGINT
        if kind_of_program != "workers":
            assert scene.noted("stopped") == scene.noted("made")
        ended(kind_of_program)
        assert program.stderr.strip().rpartition("\n")[2] == "KeyboardInterrupt"
        assert "Exception ignored" not in program.stderr


@pytest.mark.exhaustive
def test_one_interrupt_stops_a_real_blender_cleanly(real: Any, scene: Scene, tmp_path: Path) -> None:
    """The cleanup of a script in a real Blender runs, though Blender itself ignores SIGINT and dies of SIGTERM."""
    with Program(tmp_path, ASYNCIO, *scene.arguments(blender=real.blender)) as program:
        program.until(lambda: len(scene.noted("made")) == 2)
        program.interrupt()
        assert program.end() == -signal.SIGINT
        assert scene.noted("stopped") == scene.noted("made")
        assert not everything()
        assert not folders()


# Not with workers: torch's main process ends them after the first one, without waiting for their cleanup.
@pytest.mark.parametrize("kind_of_program", [name for name in PROGRAMS if name != "workers"])
@pytest.mark.exhaustive
def test_a_second_interrupt_ends_at_once(kind_of_program: str, scene: Scene, tmp_path: Path) -> None:
    """A second Ctrl-C kills Blenders that were asked to end and did not, long before `timeouts.stop`."""
    with Program(tmp_path, PROGRAMS[kind_of_program], *scene.arguments(stop=3600, stubborn=True)) as program:
        program.until(lambda: len(scene.noted("made")) == 2)
        program.interrupt()
        program.until(lambda: len(scene.noted("stopped")) == 2)
        assert len(folders()) in (1, 2)
        program.interrupt()
        assert program.end() == -signal.SIGINT
        until(lambda: not everything())
        until(lambda: not folders())


@pytest.mark.exhaustive
def test_a_second_interrupt_kills_a_real_blender(bpy_kind: Any, scene: Scene, tmp_path: Path) -> None:
    """A second Ctrl-C kills a real Blender whose cleanup hangs."""
    arguments = scene.arguments(blender=bpy_kind.blender, stop=3600, stubborn=True)
    with Program(tmp_path, ASYNCIO, *arguments) as program:
        program.until(lambda: len(scene.noted("made")) == 2)
        program.interrupt()
        program.until(lambda: len(scene.noted("stopped")) == 2)
        program.interrupt()
        assert program.end() == -signal.SIGINT
        until(lambda: not everything())
        until(lambda: not folders())


@pytest.mark.parametrize("kind_of_program", PROGRAMS)
@pytest.mark.exhaustive
def test_an_interrupt_while_blenders_start(kind_of_program: str, scene: Scene, tmp_path: Path) -> None:
    """Ctrl-C ends a program at once while its Blenders start."""
    with Program(tmp_path, PROGRAMS[kind_of_program], *scene.arguments(stop=3600, never_ready=True)) as program:
        program.until(lambda: len(scene.noted("started")) == 2)
        program.interrupt()
        assert program.end() == -signal.SIGINT
        assert program.stderr.strip().rpartition("\n")[2] == "KeyboardInterrupt"
        ended(kind_of_program)


# -- signals that leave no time -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind_of_program", ["asyncio", "sync", "loader"])
def test_a_terminated_program(kind_of_program: str, scene: Scene, tmp_path: Path) -> None:
    """A program dies of SIGTERM at once, and its Blenders notice and clean up."""
    with Program(tmp_path, PROGRAMS[kind_of_program], *scene.arguments()) as program:
        program.until(lambda: len(scene.noted("made")) == 2)
        program.kill(signal.SIGTERM)
        assert program.end() == -signal.SIGTERM
        until(lambda: not everything())
        until(lambda: not folders())


TERMINATED = """
async def main():
    task = asyncio.current_task()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with ab.BlenderStream(**options) as stream:
        async for frame in stream:
            await asyncio.sleep(0.001)

try:
    asyncio.run(main())
except asyncio.CancelledError:
    sys.exit(128 + signal.SIGTERM)
"""


def test_a_program_that_handles_its_termination(scene: Scene, tmp_path: Path) -> None:
    """A program that cancels its task on SIGTERM, as under a service manager, stops its Blenders and sets its status."""
    with Program(tmp_path, HEAD + TERMINATED, *scene.arguments()) as program:
        program.until(lambda: len(scene.noted("made")) == 2)
        program.kill(signal.SIGTERM)
        assert program.end() == 143, program.stderr
        assert program.stderr == ""
        assert scene.noted("stopped") == scene.noted("made")
        assert not everything()
        assert not folders()


def shared_memory_of(pids: list[int]) -> list[str]:
    """Return the shared memory of these processes, by the names that torch and multiprocessing give it."""
    folder = Path("/dev/shm")
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return [name for name in names if any(str(pid) in name.split("_") for pid in pids)]


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_killed_program_with_workers(scene: Scene, tmp_path: Path) -> None:
    """torch's workers notice that their parent was killed, and their Blenders end with them."""
    with Program(tmp_path, PROGRAMS["workers"], *scene.arguments()) as program:
        program.until(lambda: len(scene.noted("made")) == 2)
        pids = everything()
        program.kill(signal.SIGKILL)
        until(lambda: not everything())
        until(lambda: not folders())
        until(lambda: not shared_memory_of(pids))


WRAPPED = """
import subprocess, sys
import pathlib
child = subprocess.Popen(["sleep", "600"])
pathlib.Path({note!r}).write_text(str(child.pid))
def sample(task): return {{}}
"""


@pytest.mark.exhaustive
def test_a_killed_program_takes_all_with_it(kind: Any, write_script: Write, tmp_path: Path) -> None:
    """When a program is killed, a Blender behind a shell script ends, and so does what the scene script started."""
    note = tmp_path / "grandchild"
    blender, is_module = kind.blender, kind.name in ("bpy", "bpy5")
    if not is_module:
        wrapper = tmp_path / "wrapper"
        wrapper.write_text(f'#!/bin/sh\n"{blender}" "$@"\nexit $?\n')
        wrapper.chmod(0o755)
        blender = str(wrapper)
    script = write_script(WRAPPED.format(note=str(note)))
    source = HEAD.replace("instances=2", "instances=1") + ASYNCIO.removeprefix(HEAD)
    with Program(tmp_path, source, str(script), blender, "5") as program:
        program.until(lambda: note.exists() and note.read_text())
        grandchild = psutil.Process(int(note.read_text()))
        # the program, the shell, Blender, the grandchild
        program.until(lambda: len(everything()) >= (3 if is_module else 4))
        assert grandchild.pid in everything()
        assert len(folders()) == 1
        program.kill(signal.SIGKILL)
        until(lambda: not everything())
        until(lambda: not folders())
