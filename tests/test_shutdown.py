"""Shutdown: however a program ends, no Blender, grandchild or temporary folder outlives it."""

from __future__ import annotations

import asyncio
import os
import selectors
import shutil
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

import asyncblend as ab
from asyncblend.testing import fake_blender

Write = Callable[..., Path]

LIMIT = 40.0  # seconds; the bound of failure of every wait here
SOON = 5.0  # seconds; until nothing of a program that was killed is left

# Leaves notes: that it started, that it made a sample, and that it ended as it was asked to, not by a signal.
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

# How each program begins. A process that is started in the background may have been told to ignore SIGINT.
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

PROGRAMS = {
    "asyncio": ASYNCIO,
    "loader": LOADER.format(workers=0, loop="", body="pass"),
    "workers": LOADER.format(workers=2, loop="", body="pass"),
}


def until(condition: Callable[[], Any], seconds: float = LIMIT) -> None:
    """Wait for a condition that another process brings about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        threading.Event().wait(0.01)


class Program:
    """A Python program in a session of its own; what it writes is kept in files. `with` kills what is left of it."""

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
        """Wait for what this program brings about while it runs."""

        def met() -> bool:
            assert self._process.poll() is None, self.stderr
            return bool(condition())

        until(met)

    def interrupt(self) -> None:
        """What Ctrl-C does in a terminal: SIGINT to its process group, where its Blenders are not."""
        os.killpg(self._process.pid, signal.SIGINT)

    def kill(self, number: signal.Signals) -> None:
        os.kill(self._process.pid, number)

    def end(self) -> int:
        """Its exit status, once it has ended."""
        return self._process.wait(LIMIT)


class Scene:
    """A script that leaves notes, and a fake Blender to run it."""

    def __init__(self, folder: Path, write_script: Write) -> None:
        self._write, self._folder = write_script, folder
        self._notes = folder / "notes"
        self._notes.mkdir()

    def arguments(
        self, *, blender: str | None = None, stop: float = LIMIT, stubborn: bool = False, **faults: Any
    ) -> list[str]:
        """Of a program: script, Blender (None: a fake with these faults), timeouts.stop."""
        body = NOTES.format(notes=str(self._notes), stubborn=stubborn)
        blender = blender or str(fake_blender(self._folder / "fake", **faults))
        return [str(self._write(body, serve=False)), blender, str(stop)]

    def noted(self, what: str) -> list[int]:
        """The Blenders that left this note."""
        return sorted(int(path.name.split("-")[1]) for path in self._notes.glob(f"{what}-*"))


@pytest.fixture
def scene(tmp_path: Path, write_script: Write) -> Scene:
    return Scene(tmp_path, write_script)


def everything() -> list[int]:
    """What this test has started, found by the mark that no_leaks put into the environment."""
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
    """Nothing is left. multiprocessing ends torch's workers when its own process ends, in the midst of their cleanup:
    then their Blenders end by their own watch, and the run's folder may stay."""
    if kind_of_program == "workers":
        until(lambda: not everything(), SOON)
        for folder in folders():
            shutil.rmtree(folder, ignore_errors=True)
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
def test_a_program_ends_while_its_fleet_runs(body: str, workers: int, scene: Scene, tmp_path: Path) -> None:
    """With its own status, nothing on stderr but its own error, and with no Blender left."""
    loop, code, status, error = BODIES[body]
    source = LOADER.format(workers=workers, loop=f"({loop})" if loop else "", body=code)
    with Program(tmp_path, source, *scene.arguments()) as program:
        assert program.end() == status, program.stderr
        last = program.stderr.strip().rpartition("\n")[2]
        assert last == error
        assert program.stderr.count("Traceback") == (1 if error else 0)
        assert scene.noted("started")
        if workers == 0:
            # The others may not have been ready, and were killed.
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
    """A launcher or stream that nobody left ends with the interpreter, in silence."""
    with Program(tmp_path, HEAD + UNCLOSED[what], *scene.arguments()) as program:
        assert program.end() == 0, program.stderr
        assert program.stderr == ""
        assert set(scene.noted("made")) <= set(scene.noted("stopped"))
        assert scene.noted("stopped")
        assert not everything()
        assert not folders()


@pytest.mark.parametrize("what", ["stream", "iterator"])
def test_a_program_ends_without_closing_a_real_blender(what: str, bpy_kind: Any, scene: Scene, tmp_path: Path) -> None:
    """It is asked to end, and does, while the interpreter is on its way out."""
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
    """Each Blender ends by itself, as asked; the program dies of the KeyboardInterrupt."""
    with Program(tmp_path, PROGRAMS[kind_of_program], *scene.arguments()) as program:
        program.until(lambda: len(scene.noted("made")) == 2)
        program.interrupt()
        assert program.end() == -signal.SIGINT
        if kind_of_program != "workers":
            assert scene.noted("stopped") == scene.noted("made")
        ended(kind_of_program)
        assert program.stderr.strip().rpartition("\n")[2] == "KeyboardInterrupt"
        assert "Exception ignored" not in program.stderr


def test_one_interrupt_stops_a_real_blender_cleanly(real: Any, scene: Scene, tmp_path: Path) -> None:
    """The script's own cleanup runs, though Blender itself would swallow a SIGINT and die of a SIGTERM."""
    with Program(tmp_path, ASYNCIO, *scene.arguments(blender=real.blender)) as program:
        program.until(lambda: len(scene.noted("made")) == 2)
        program.interrupt()
        assert program.end() == -signal.SIGINT
        assert scene.noted("stopped") == scene.noted("made")
        assert not everything()
        assert not folders()


# Without workers: torch's main process ends its workers in the midst of their cleanup then, folders may stay.
@pytest.mark.parametrize("kind_of_program", [name for name in PROGRAMS if name != "workers"])
def test_a_second_interrupt_ends_at_once(kind_of_program: str, scene: Scene, tmp_path: Path) -> None:
    """Blenders that were asked and do not end are killed, long before their time is up."""
    with Program(tmp_path, PROGRAMS[kind_of_program], *scene.arguments(stop=3600, stubborn=True)) as program:
        program.until(lambda: len(scene.noted("made")) == 2)
        program.interrupt()
        program.until(lambda: len(scene.noted("stopped")) == 2)
        assert len(folders()) in (1, 2)
        program.interrupt()
        assert program.end() == -signal.SIGINT
        until(lambda: not everything(), SOON)
        until(lambda: not folders(), SOON)


def test_a_second_interrupt_kills_a_real_blender(bpy_kind: Any, scene: Scene, tmp_path: Path) -> None:
    """One that is stuck in its cleanup does not hold the program up."""
    arguments = scene.arguments(blender=bpy_kind.blender, stop=3600, stubborn=True)
    with Program(tmp_path, ASYNCIO, *arguments) as program:
        program.until(lambda: len(scene.noted("made")) == 2)
        program.interrupt()
        program.until(lambda: len(scene.noted("stopped")) == 2)
        program.interrupt()
        assert program.end() == -signal.SIGINT
        until(lambda: not everything(), SOON)
        until(lambda: not folders(), SOON)


@pytest.mark.parametrize("kind_of_program", PROGRAMS)
def test_an_interrupt_while_blenders_start(kind_of_program: str, scene: Scene, tmp_path: Path) -> None:
    """Nobody waits for a Blender that is not ready yet."""
    with Program(tmp_path, PROGRAMS[kind_of_program], *scene.arguments(stop=3600, never_ready=True)) as program:
        program.until(lambda: len(scene.noted("started")) == 2)
        program.interrupt()
        assert program.end() == -signal.SIGINT
        assert program.stderr.strip().rpartition("\n")[2] == "KeyboardInterrupt"
        ended(kind_of_program)


# -- signals that leave no time -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind_of_program", ["asyncio", "loader"])
def test_a_terminated_program(kind_of_program: str, scene: Scene, tmp_path: Path) -> None:
    """SIGTERM has its default effect; the Blenders notice, and clean up."""
    with Program(tmp_path, PROGRAMS[kind_of_program], *scene.arguments()) as program:
        program.until(lambda: len(scene.noted("made")) == 2)
        program.kill(signal.SIGTERM)
        assert program.end() == -signal.SIGTERM
        until(lambda: not everything(), SOON)
        until(lambda: not folders(), SOON)


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
    """As under a service manager: it cancels its task, the Blenders end by themselves, the status is its own."""
    with Program(tmp_path, HEAD + TERMINATED, *scene.arguments()) as program:
        program.until(lambda: len(scene.noted("made")) == 2)
        program.kill(signal.SIGTERM)
        assert program.end() == 143, program.stderr
        assert program.stderr == ""
        assert scene.noted("stopped") == scene.noted("made")
        assert not everything()
        assert not folders()


def shared_memory_of(pids: list[int]) -> list[str]:
    """What lies in shared memory under the names that torch and multiprocessing give it."""
    folder = Path("/dev/shm")
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return [name for name in names if any(str(pid) in name.split("_") for pid in pids)]


def test_a_killed_program_with_workers(scene: Scene, tmp_path: Path) -> None:
    """torch's workers notice the death of their parent within five seconds; their Blenders end with them."""
    with Program(tmp_path, PROGRAMS["workers"], *scene.arguments()) as program:
        program.until(lambda: len(scene.noted("made")) == 2)
        pids = everything()
        program.kill(signal.SIGKILL)
        until(lambda: not everything(), 4 * SOON)
        until(lambda: not folders(), SOON)
        until(lambda: not shared_memory_of(pids), SOON)


WRAPPED = """
import subprocess, sys
import pathlib
child = subprocess.Popen(["sleep", "600"])
pathlib.Path({note!r}).write_text(str(child.pid))
def sample(task): return {{}}
"""


def test_a_killed_program_takes_all_with_it(kind: Any, write_script: Write, tmp_path: Path) -> None:
    """Blender behind a shell script, and what the scene script started, are gone, and the temporary folder too."""
    note = tmp_path / "grandchild"
    blender = kind.blender
    if blender != "bpy":
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
        program.until(lambda: len(everything()) >= (4 if blender != "bpy" else 3))
        assert grandchild.pid in everything()
        assert len(folders()) == 1
        program.kill(signal.SIGKILL)
        until(lambda: not everything(), SOON)
        until(lambda: not folders(), SOON)


# -- cancellation -------------------------------------------------------------------------------------------------


class Steps(selectors.DefaultSelector):
    """Calls `then` at the n-th step of the event loop that has it, counted from `start`."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = 0
        self._at: dict[int, Callable[[], Any]] = {}

    def start(self, at: dict[int, Callable[[], Any]]) -> None:
        self.taken, self._at = 0, at

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if (then := self._at.pop(self.taken, None)) is not None:
            then()
            timeout = 0
        self.taken += 1
        return super().select(timeout)


def cancelled_at(step: int, scenario: Callable[[], Any], all_after: int | None = None) -> tuple[bool, list[Any]]:
    """Run a scenario and cancel it at a step; so many steps later cancel every task, as a second Ctrl-C does.

    Whether it came to its end before, and what the event loop complained of.
    """
    selector = Steps()
    complaints: list[Any] = []

    async def main() -> bool:
        loop, me = asyncio.get_running_loop(), asyncio.current_task()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        task = asyncio.create_task(scenario())

        def cancel_all() -> None:
            for other in asyncio.all_tasks(loop) - {me}:
                other.cancel()

        selector.start({step: task.cancel} if all_after is None else {step: task.cancel, step + all_after: cancel_all})
        async with asyncio.timeout(LIMIT):
            await asyncio.wait([task])
            if all_after is not None and (others := asyncio.all_tasks() - {me}):
                await asyncio.wait(others)  # as asyncio.run does, which cancelled them
        selector.start({})
        assert asyncio.all_tasks() == {me}
        assert task.cancelled() or task.exception() is None
        return not task.cancelled()

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        return runner.run(main()), complaints


def three_frames(script: Path, blender: str | Path, **options: Any) -> Callable[[], Any]:
    """The scenario: enter a stream, take three frames, leave."""
    config = ab.StreamConfig(script=script, blender=blender, instances=1, queue_size=4, **options)

    async def scenario() -> None:
        async with ab.BlenderStream(config) as stream:
            for _ in range(3):
                await anext(stream)

    return scenario


class Before:
    """The children that this process had: multiprocessing's helpers."""

    def __init__(self) -> None:
        self._children = set(psutil.Process().children())

    def holds(self) -> bool:
        return set(psutil.Process().children()) <= self._children

    def check(self, complaints: list[Any], when: int) -> None:
        """Nothing has been added, no zombie either."""
        assert not complaints, when
        assert set(psutil.Process().children()) <= self._children, when
        assert not folders(), when


def test_cancelled_at_each_step_nothing_is_left(write_script: Write, tmp_path: Path) -> None:
    """Whichever await it is, from before the start until after the end."""
    scenario = three_frames(write_script("def sample(task): return {}"), fake_blender(tmp_path / "fake"))
    before, step, ended = Before(), 0, False
    while not ended:
        ended, complaints = cancelled_at(step, scenario)
        before.check(complaints, step)
        step += 1
    assert step > 10


def test_cancelled_while_a_blender_is_restarted_nothing_is_left(write_script: Write, tmp_path: Path) -> None:
    """One dies after its first frame, and its next life starts meanwhile; at every fifth step."""
    fake = fake_blender(tmp_path / "fake", crash_after=1, lives=1)
    script = write_script("def sample(task): return {}")
    scenario = three_frames(script, fake, restart=ab.RestartPolicy(backoff=0.001))
    before, step, ended = Before(), 0, False
    while not ended:
        ended, complaints = cancelled_at(step, scenario)
        before.check(complaints, step)
        step += 5
    assert step > 15


def test_cancelled_and_then_all_at_once_nothing_is_left(write_script: Write, tmp_path: Path) -> None:
    """Wherever it is, as by a second Ctrl-C right after the first, which cancels the tasks that clean up too."""
    scenario = three_frames(write_script("def sample(task): return {}"), fake_blender(tmp_path / "fake"))
    before, step, ended = Before(), 0, False
    while not ended:
        ended, complaints = cancelled_at(step, scenario, all_after=1)
        until(before.holds, SOON)  # it may have been killed a moment ago, by us or by its own watch on us
        before.check(complaints, step)
        step += 1 if step < 10 else 5  # the launch is in the first ones
    assert step > 10


@pytest.mark.parametrize("step", [5, 12, 20, 30])
def test_cancelled_with_a_real_blender_nothing_is_left(step: int, bpy_kind: Any, write_script: Write) -> None:
    """At some steps of the start, of the frames and of the stop."""
    scenario = three_frames(write_script("def sample(task): return {}"), bpy_kind.blender)
    before = Before()
    _, complaints = cancelled_at(step, scenario)
    before.check(complaints, step)
