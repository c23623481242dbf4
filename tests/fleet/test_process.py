"""ChildProcess and Workspace, with small real processes, on both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import psutil
import pytest
import uvloop

from asyncblend.errors import ConfigError
from asyncblend.fleet.process import ChildProcess, output_of
from asyncblend.fleet.workspace import Workspace
from tests.waiting import gone

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
LIMIT = 30  # seconds; no test may take longer


class Run(Protocol):
    """Runs a coroutine function to its end and returns its result."""

    def __call__(self, main: Callable[[], Awaitable[T]]) -> T: ...


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Return a function that runs a coroutine function, on each of the two event loops."""
    factory: Callable[[], asyncio.AbstractEventLoop] = (
        asyncio.new_event_loop if request.param == "asyncio" else uvloop.new_event_loop
    )

    def run_on(main: Callable[[], Awaitable[T]]) -> T:
        async def limited() -> T:
            async with asyncio.timeout(LIMIT):
                return await main()

        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(limited())

    return run_on


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "0.0"
    path.mkdir()
    return path


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """Make a named pipe, which reads as ended once no process has it open for writing."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


async def start(folder: Path, *command: str, inherit: Sequence[int] = (), **environment: str) -> ChildProcess:
    return await ChildProcess.start(command, {**os.environ, **environment}, folder, inherit=inherit)


async def sh(folder: Path, script: str, **options: Any) -> ChildProcess:
    return await start(folder, "/bin/sh", "-c", script, **options)


async def line_of(pipe: Path) -> str:
    """Return the first line that the child writes into the pipe, by which it says how far it is."""

    def read() -> str:
        with pipe.open() as file:
            return file.readline().strip()

    return await asyncio.to_thread(read)


def nothing() -> None:
    """Request the end in a way that no process hears."""


async def over(process: ChildProcess) -> int:
    """Wait for the exit and stop the process; return its status."""
    status = await process.wait()
    await process.stop(nothing, 0)
    return status


async def ended(pid: int) -> None:
    """Wait for the end of a process that is not our child."""
    while not gone(pid):
        await asyncio.sleep(0.01)


# -- status and log ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("kill -KILL $$", -9), ("kill -TERM $$", -15)],
)
def test_exit_status_and_signal(run: Run, folder: Path, script: str, status: int) -> None:
    """A negative status is the signal that killed it, as in subprocess."""

    async def main() -> int:
        return await over(await sh(folder, script))

    assert run(main) == status


def test_a_crash_is_told_by_its_signal(run: Run, folder: Path) -> None:
    """This holds for a segmentation fault, whether or not it dumps core."""

    async def main() -> int:
        code = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
        return await over(await start(folder, sys.executable, "-c", code))

    assert run(main) == -signal.SIGSEGV


def test_wait_may_be_cancelled_and_called_again(run: Run, folder: Path, pipe: Path) -> None:
    """Several tasks may wait at once, and also after the exit."""

    async def main() -> int:
        process = await sh(folder, f"read line < {pipe}; exit 4")
        waiting = [asyncio.ensure_future(process.wait()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        await asyncio.to_thread(pipe.write_text, "go\n")
        assert await asyncio.gather(*waiting[1:]) == [4, 4]
        assert await process.wait() == 4
        return await over(process)

    assert run(main) == 4


def test_output_is_in_the_log(run: Run, folder: Path) -> None:
    """Standard output and error are in one log, and standard input is empty."""

    async def main() -> str:
        process = await sh(folder, "echo out; echo err >&2; cat; echo end")
        await process.wait()
        tail = process.log.tail()
        await over(process)
        return tail

    assert run(main) == "out\nerr\nend"


def test_the_tail_of_a_long_log_is_its_last_lines(run: Run, folder: Path) -> None:
    """A tail has a limited size, however long the log is."""

    async def main() -> str:
        code = "for i in range(100_000): print('line', i)"
        process = await start(folder, sys.executable, "-c", code)
        await process.wait()
        tail = process.log.tail()
        await over(process)
        return tail

    tail = run(main)
    assert 16_000 < len(tail) <= 16_384
    assert tail.endswith("\n".join(f"line {i}" for i in range(99_000, 100_000)))


def test_the_tail_of_one_long_line_is_limited(run: Run, folder: Path) -> None:
    """A tail has a limited size, also where one line is longer."""

    async def main() -> str:
        process = await start(folder, sys.executable, "-c", "print('y' * 1_000_000 + 'END')")
        await process.wait()
        tail = process.log.tail()
        await over(process)
        return tail

    tail = run(main)
    assert tail.endswith("yEND")
    assert len(tail) < 20_000


def test_output_that_is_no_text_is_shown_as_well_as_possible(run: Run, folder: Path) -> None:
    """Bytes that are not UTF-8, and a character cut by the tail's beginning, never raise."""

    async def main() -> str:
        code = r"""
import sys
sys.stdout.buffer.write(b"\n".join("ü".encode() * 30 for _ in range(1000)) + b"\n\xff\xfe caf\xe9\0\n")
"""
        process = await start(folder, sys.executable, "-c", code)
        await process.wait()
        tail = process.log.tail()
        await over(process)
        return tail

    assert run(main).splitlines()[-2:] == ["ü" * 30, "\ufffd\ufffd caf\ufffd\0"]


def test_the_log_can_be_read_while_it_is_written(run: Run, folder: Path, pipe: Path) -> None:
    """The log of a start that takes too long shows how far it came."""

    async def main() -> str:
        process = await sh(folder, f"echo loading; echo ready > {pipe}; read line < {pipe}")
        assert await line_of(pipe) == "ready"
        tail = process.log.tail()
        await process.stop(nothing, 0)
        return tail

    assert run(main) == "loading"


def test_it_gets_the_environment_and_a_session_of_its_own(run: Run, folder: Path, tmp_path: Path) -> None:
    """It gets exactly the given environment, and a Ctrl-C in our terminal does not reach it."""

    async def main() -> None:
        code = (
            "import os; print(dict(os.environ)['A'], len(os.environ) < 5, os.getsid(0) == os.getpgrp() == os.getpid())"
        )
        process = await ChildProcess.start(
            [sys.executable, "-I", "-c", code], {"A": "b c", "LC_ALL": "C.UTF-8"}, folder
        )
        await process.wait()
        assert process.log.tail() == "b c True True"
        await over(process)

    run(main)


def test_it_inherits_the_lifeline(run: Run, folder: Path) -> None:
    """It inherits only the read end, which reads as ended once the workspace is closed."""

    async def main() -> int:
        with Workspace() as workspace:
            assert workspace.lifeline is not None
            code = "import os, sys; sys.exit(0 if os.read(int(sys.argv[1]), 1) == b'' else 1)"
            command = [sys.executable, "-c", code, str(workspace.lifeline.descriptor)]
            process = await ChildProcess.start(command, os.environ, folder, inherit=[workspace.lifeline.descriptor])
        status = await process.wait()
        assert process.log.tail() == ""
        await over(process)
        return status

    assert run(main) == 0


def test_what_cannot_be_executed_raises(run: Run, folder: Path) -> None:
    """The operating system's own error is raised."""

    async def main() -> None:
        with pytest.raises(FileNotFoundError):
            await start(folder, "/nowhere/blender")
        with pytest.raises(PermissionError):
            await start(folder, str(folder))

    run(main)


# -- stopping ----------------------------------------------------------------------------------------------------


def test_stop_asks_first_and_waits(run: Run, folder: Path, pipe: Path) -> None:
    """A process that ends within its grace is asked once, and not killed."""

    async def main() -> int:
        process = await sh(folder, f"echo ready > {pipe}; read line < {pipe}; exit 5")
        assert await line_of(pipe) == "ready"
        asked = []
        descriptor = os.open(pipe, os.O_RDWR)

        def ask() -> None:
            asked.append(process.pid)
            os.write(descriptor, b"stop\n")

        try:
            await process.stop(ask, LIMIT)
        finally:
            os.close(descriptor)
        assert asked == [process.pid]
        assert not folder.exists()
        return await process.wait()

    assert run(main) == 5


def test_stop_kills_what_does_not_end(run: Run, folder: Path, pipe: Path) -> None:
    """After the grace it kills, also a process that ignores every signal that can be ignored."""

    async def main() -> int:
        process = await sh(folder, f"trap '' INT TERM HUP; echo ready > {pipe}; while :; do sleep 100; done")
        assert await line_of(pipe) == "ready"
        await process.stop(lambda: os.kill(process.pid, signal.SIGTERM), 0.05)
        assert not folder.exists()
        assert not psutil.pid_exists(process.pid)
        return await process.wait()

    assert run(main) == -signal.SIGKILL


def test_stop_kills_even_what_is_suspended(run: Run, folder: Path, pipe: Path) -> None:
    """A suspended process group cannot end by itself, and is killed."""

    async def main() -> int:
        process = await sh(folder, f"echo ready > {pipe}; sleep 100")
        assert await line_of(pipe) == "ready"
        os.killpg(process.pid, signal.SIGSTOP)
        await process.stop(nothing, 0.05)
        return await process.wait()

    assert run(main) == -signal.SIGKILL


def test_stop_is_safe_on_what_has_ended(run: Run, folder: Path) -> None:
    """A process that has ended is not asked, and a second stop does nothing."""

    async def main() -> int:
        process = await sh(folder, "exit 6")
        await process.wait()
        for _ in range(2):
            await process.stop(lambda: pytest.fail("asked a dead process"), LIMIT)
            assert not folder.exists()
        process.kill()
        return await process.wait()

    assert run(main) == 6


def test_a_grandchild_goes_with_its_group(run: Run, folder: Path, pipe: Path) -> None:
    """What a wrapper started is killed with it, even if it ignores signals."""

    async def main() -> None:
        process = await sh(folder, f"(trap '' TERM HUP; exec sleep 100) & (echo ready > {pipe}; exec sleep 100) & wait")
        assert await line_of(pipe) == "ready"
        pids = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        assert len(pids) == 2
        await process.stop(nothing, 0.05)
        for pid in pids:
            await ended(pid)

    run(main)


def test_a_wrapper_that_leaves_a_grandchild_leaves_nothing(run: Run, folder: Path, pipe: Path) -> None:
    """The exit is noticed although the grandchild holds the output, and stop ends the grandchild too."""

    async def main() -> None:
        process = await sh(folder, f"sh -c 'echo up > {pipe}; exec sleep 100' & read line < {pipe}; exit 7")
        assert await process.wait() == 7
        left = [p.pid for p in psutil.process_iter() if _group_of(p.pid) == process.pid and not gone(p.pid)]
        assert len(left) == 1
        await process.stop(nothing, LIMIT)
        await ended(left[0])

    run(main)


def _group_of(pid: int) -> int | None:
    with contextlib.suppress(ProcessLookupError):
        return os.getpgid(pid)
    return None


def test_an_ask_that_raises_still_ends_it(run: Run, folder: Path) -> None:
    """The error is raised, and nothing is left."""

    async def main() -> int:
        process = await sh(folder, "sleep 100")

        def ask() -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await process.stop(ask, LIMIT)
        assert not folder.exists()
        return await process.wait()

    assert run(main) == -signal.SIGKILL


def test_cancelling_stop_kills_at_once(run: Run, folder: Path, pipe: Path) -> None:
    """A second Ctrl-C does not wait for the grace, and nothing is left."""

    async def main() -> int:
        process = await sh(folder, f"trap '' TERM; echo ready > {pipe}; sleep 100")
        assert await line_of(pipe) == "ready"
        asked = asyncio.Event()
        stopping = asyncio.ensure_future(process.stop(asked.set, 1e6))
        await asked.wait()
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        assert not folder.exists()
        assert not psutil.pid_exists(process.pid)
        return await process.wait()

    assert run(main) == -signal.SIGKILL


def test_cancelling_stop_again_and_again_still_finishes(run: Run, folder: Path) -> None:
    """It returns only when nothing is left, and the cancellation is not lost."""

    async def main() -> None:
        process = await sh(folder, "sleep 100")
        stopping = asyncio.ensure_future(process.stop(nothing, 1e6))
        while not stopping.done():
            await asyncio.sleep(0)
            stopping.cancel()
        assert stopping.cancelled()
        assert not folder.exists()
        assert not psutil.pid_exists(process.pid)

    run(main)


@pytest.mark.parametrize("turns", range(8))
def test_a_cancelled_start_leaves_no_process(run: Run, folder: Path, turns: int) -> None:
    """At whichever step a launch is cancelled, the process is there and known, or there is none."""

    async def main() -> None:
        before = {child.pid for child in psutil.Process().children()}
        starting = asyncio.ensure_future(sh(folder, "sleep 100"))
        for _ in range(turns):
            await asyncio.sleep(0)
        if starting.cancel():
            with pytest.raises(asyncio.CancelledError):
                await starting
        else:
            await (await starting).stop(nothing, 0)
        assert {child.pid for child in psutil.Process().children()} <= before

    run(main)


@pytest.mark.parametrize("turns", range(5))
@pytest.mark.exhaustive
def test_a_loop_that_is_closed_meanwhile_abandons_nothing(
    run: Run, folder: Path, turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every task is cancelled and the loop closed, at whichever step of stop: the process is reaped before."""
    closed = threading.Event()
    waitpid = os.waitpid

    def late(pid: int, options: int) -> tuple[int, int]:
        if threading.current_thread() is not threading.main_thread():  # asyncio's own watch, as on a busy machine
            closed.wait(LIMIT)
        return waitpid(pid, options)

    monkeypatch.setattr(os, "waitpid", late)

    async def main() -> int:
        process = await sh(folder, "sleep 100")
        stopping = asyncio.ensure_future(process.stop(nothing, 1e6))
        await asyncio.sleep(0)
        stopping.cancel()
        for _ in range(turns):
            await asyncio.sleep(0)
        return process.pid  # the runner cancels all tasks and closes the loop

    pid = run(main)
    closed.set()
    assert not folder.exists()
    with pytest.raises(ChildProcessError):
        waitpid(pid, os.WNOHANG)
    gc.collect()  # an abandoned transport would warn, and warnings are errors


# -- the exit is noticed -----------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs a pidfd")
def test_the_exit_is_noticed_whoever_handles_sigchld(run: Run, folder: Path, pipe: Path) -> None:
    """Exits are noticed and reaped although somebody, such as torch's DataLoader, replaces the handler of SIGCHLD."""

    async def main() -> int:
        process = await sh(folder, f"read line < {pipe}; exit 8")
        before = signal.signal(signal.SIGCHLD, lambda number, frame: None)
        try:
            await asyncio.to_thread(pipe.write_text, "go\n")
            status = await process.wait()
            await process.stop(nothing, LIMIT)
        finally:
            signal.signal(signal.SIGCHLD, before)
        assert not psutil.pid_exists(process.pid)
        return status

    with warnings.catch_warnings():
        # uvloop's own transport of a process whose end it never saw.
        warnings.simplefilter("ignore", ResourceWarning)
        assert run(main) == 8


def test_the_exit_is_noticed_without_a_pidfd(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On other systems and on old kernels, the process is polled."""

    def refused(pid: int, flags: int = 0) -> int:
        raise OSError("no such call")

    monkeypatch.setattr(os, "pidfd_open", refused, raising=False)

    async def main() -> list[int]:
        statuses = []
        for i, script in enumerate(("exit 9", "kill -KILL $$")):
            folder = tmp_path / str(i)
            folder.mkdir()
            statuses.append(await over(await sh(folder, script)))
            assert not folder.exists()
        return statuses

    assert run(main) == [9, -9]


def test_no_descriptor_is_left(run: Run, tmp_path: Path) -> None:
    """A run that restarts its Blenders for weeks does not run out of them."""

    async def main() -> None:
        counts = []
        for i in range(4):
            folder = tmp_path / str(i)
            folder.mkdir()
            await over(await sh(folder, "exit 0"))
            counts.append(psutil.Process().num_fds())
        assert counts[1:] == counts[1:2] * 3

    run(main)


# -- the workspace -----------------------------------------------------------------------------------------------


def test_the_folder_is_private_and_goes() -> None:
    """Other users may not look into it, and it is removed with all that is in it."""
    with Workspace() as workspace:
        assert stat.S_IMODE(workspace.folder.stat().st_mode) == 0o700
        life = workspace.life_folder(3, 1)
        assert life.parent == workspace.folder
        assert life != workspace.life_folder(3, 2)
        (life / "log.txt").write_text("x")
    assert not workspace.folder.exists()


def test_two_runs_share_nothing() -> None:
    """Each has its own folder and its own pipe."""
    with Workspace() as one, Workspace() as other:
        assert one.folder != other.folder
        assert one.lifeline != other.lifeline


def test_the_lifeline_ends_with_the_workspace() -> None:
    """Its read end reads as ended from then on, and none of its descriptors is left."""
    before = psutil.Process().num_fds()
    with Workspace() as workspace:
        assert workspace.lifeline is not None
        read_end = os.dup(workspace.lifeline.descriptor)
        os.set_blocking(read_end, False)
        with pytest.raises(BlockingIOError):
            os.read(read_end, 1)
    assert os.read(read_end, 1) == b""
    os.close(read_end)
    assert psutil.Process().num_fds() == before
    assert workspace.lifeline is None


def test_leaving_twice_is_harmless() -> None:
    """Another descriptor that has the same number by then is not closed."""
    workspace = Workspace()
    with workspace:
        pass
    ours = os.pipe()
    workspace.__exit__(None, None, None)
    for descriptor in ours:
        os.close(descriptor)


def test_an_error_inside_takes_the_folder_too() -> None:
    """The error is raised, and the folder is removed."""
    with pytest.raises(ZeroDivisionError), Workspace() as workspace:
        raise ZeroDivisionError
    assert not workspace.folder.exists()


def program(tmp_path: Path, source: str, *args: str, limit: float = LIMIT) -> str:
    """Run a program in a process of its own and return its output; it must succeed and write no error."""
    script = tmp_path / "program.py"
    script.write_text(source)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), *args],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout


FORKS = """
import asyncio, os, pathlib, sys, threading
from asyncblend.fleet.process import ChildProcess

async def launch():
    for n in range(100):
        folder = pathlib.Path(sys.argv[1], str(n))
        folder.mkdir()
        process = await ChildProcess.start(["true"], os.environ, folder)
        assert await process.wait() == 0
        await process.stop(lambda: None, 0)

thread = threading.Thread(target=asyncio.run, args=(launch(),), daemon=True)
thread.start()
told, tell = os.pipe()
forked = []
while thread.is_alive() and len(forked) < 200:
    forked.append(os.fork())
    if forked[-1] == 0:
        os.close(tell)
        os.read(told, 1)  # lives until the pipe is closed
        os._exit(0)
thread.join(100)
print("hangs" if thread.is_alive() else "ok")
os.close(tell)
for pid in forked:
    os.waitpid(pid, 0)
"""


@pytest.mark.slow
def test_a_launch_does_not_wait_for_what_another_thread_forks(tmp_path: Path) -> None:
    """A DataLoader's worker that is forked during a launch does not inherit the pipe that Popen reads to its end."""
    assert program(tmp_path, FORKS, str(tmp_path), limit=150) == "ok\n"


MISSED = """
import asyncio, os, pathlib, signal, sys, uvloop, warnings
from asyncblend.fleet.process import ChildProcess

warnings.simplefilter(sys.argv[2], ResourceWarning)

async def main(folder):
    folder.mkdir()
    process = await ChildProcess.start(["sleep", "0.2"], os.environ, folder)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # as torch's DataLoader does
    assert await process.wait() == 0
    await process.stop(lambda: None, 0)

for name in "ab":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(pathlib.Path(sys.argv[1], name)))
print("closed")

async def later():
    async with asyncio.timeout(20):
        return await (await asyncio.create_subprocess_exec("true")).wait()

with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    print(runner.run(later()))
"""


@pytest.mark.parametrize("action", ["default", "error"])
@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_loop_that_missed_an_exit_can_be_closed(tmp_path: Path, action: str) -> None:
    """It waits for no process whose exit it did not hear of, and the next loop hears of its own."""
    assert program(tmp_path, MISSED, str(tmp_path), action) == "closed\n0\n"


def test_a_fork_holds_no_lifeline(tmp_path: Path) -> None:
    """A DataLoader worker, forked from the host, does not keep the host's Blenders alive."""
    source = """
import os, select, sys
from asyncblend.fleet.workspace import Workspace

workspace = Workspace()
read_end = os.dup(workspace.lifeline.descriptor)
told, tell = os.pipe()
child = os.fork()
if child == 0:
    os.close(tell)
    os.close(read_end)
    os.read(told, 1)  # lives until the pipe is closed
    os._exit(3)
os.close(told)
assert not select.select([read_end], [], [], 0)[0], "ended too early"
workspace.__exit__(None, None, None)
assert select.select([read_end], [], [], 20)[0], "the fork holds it"
assert os.read(read_end, 1) == b""
assert os.waitpid(child, os.WNOHANG) == (0, 0), "the fork had ended"
os.close(tell)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
print("ok")
"""
    assert program(tmp_path, source) == "ok\n"


async def test_a_command_has_temporary_files_in_its_own_folder(tmp_path: Path) -> None:
    """Blender that is killed leaves its own folder there, which goes with it."""
    code = "import os, tempfile; print(tempfile.mkdtemp()); os._exit(3)"
    status, output = await output_of([sys.executable, "-c", code], os.environ, folder=tmp_path)
    assert status == 3
    assert Path(output).is_relative_to(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x"),
        FileNotFoundError(errno.ENOENT, "No usable temporary folder"),
    ],
    ids=["full", "nowhere"],
)
async def test_a_full_temporary_folder_is_told(error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a command and of a run, with what to do. A command that is not there is another error."""

    def fail(*_: object, **__: object) -> None:
        raise error

    with pytest.raises(FileNotFoundError):
        await output_of(["/nowhere/blender"], os.environ)
    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "mkdtemp", fail)
        with pytest.raises(ConfigError, match="make room in the temporary folder, or set TMPDIR"):
            await output_of(["true"], os.environ)
    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(ConfigError, match="make room in the temporary folder, or set TMPDIR"):
        Workspace()
