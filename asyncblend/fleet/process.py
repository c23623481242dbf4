"""ChildProcess: one process that the package started, from its launch until nothing of it is left."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import signal
import tempfile
import threading
from asyncio.subprocess import Process
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from ..aio import close_in_silence, finish
from ..errors import ConfigError
from ..wire import ring
from .log import Log

T = TypeVar("T")
TEMPORARY = ("TMPDIR", "TEMP", "TMP")
"""Environment variables that name the folder for temporary files."""
_REAP = 1.0  # seconds for the event loop to notice an exit that the pidfd has told of
_POLL = 0.02  # seconds between two looks at what the event loop has noticed
_ASK_AGAIN = 1.0  # seconds between two requests to end
_SPARE = 16  # descriptors that a launch may take for a moment

# A launch waits until nobody has the other end of a certain pipe any more. A process that another thread forks just
# then, such as a DataLoader's worker, would have it for as long as it lives. So forks wait for a launch.
_forking = threading.RLock()
os.register_at_fork(before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_forking.release)


@contextlib.contextmanager
def launching() -> Iterator[None]:
    """Let no other thread fork while a process is launched in this block. Do not await in it."""
    with _forking, ring.launching():
        yield


class ChildProcess:
    """A process, its session, its log and its folder. Made by `start`, and ended by `stop`."""

    def __init__(self, process: Process, folder: Path, log: Log) -> None:
        self._process = process
        self._folder = folder
        self.log = log
        self._loop = asyncio.get_running_loop()
        self._exited: asyncio.Future[int] = self._loop.create_future()
        self._stopped = False
        # A pidfd tells of the exit on every event loop, whoever handles SIGCHLD, and while a grandchild holds the output.
        self._pidfd: int | None = None
        try:
            self._pidfd = os.pidfd_open(process.pid)
        except (AttributeError, OSError):  # not Linux, an old kernel, no descriptor is left, or reaped already
            self._look()
        else:
            self._loop.add_reader(self._pidfd, self._look)

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        *,
        log: Log | None = None,
        inherit: Sequence[int] = (),
        cwd: str | None = None,
    ) -> Self:
        """Launch a process in a session of its own. If this is cancelled, no process is left.

        Args:
            environment: All of the process's environment variables.
            folder: The process's own folder, which `stop` removes.
            log: Where its output goes. None: into a file in the folder.
            inherit: The descriptors that the process inherits.
            cwd: Its working directory. None: that of this process.

        Raises:
            OSError: The operating system refused.
        """
        _check_descriptors()
        log = log or Log(folder / "log.txt")
        with log.open() as output:
            launch = _launch(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                env=dict(environment),
                cwd=cwd,
                start_new_session=True,
                pass_fds=tuple(inherit),
            )
            try:
                process = await asyncio.shield(launch)
            except asyncio.CancelledError:
                await finish(cls._abandon(launch, folder, log))
                raise
        return cls(process, folder, log)

    @classmethod
    async def _abandon(cls, launch: asyncio.Future[Process], folder: Path, log: Log) -> None:
        while not launch.done():
            with contextlib.suppress(asyncio.CancelledError):  # the launch ends in a moment
                await asyncio.wait([launch])
        if launch.exception() is None:
            await cls(launch.result(), folder, log).stop(lambda: None, 0)

    @property
    def pid(self) -> int:
        """The process's id, which is also that of its process group and of its session."""
        return self._process.pid

    async def wait(self) -> int:
        """Wait for the exit and return the status; -N says that signal N killed the process."""
        return await asyncio.shield(self._exited)

    def kill(self) -> None:
        """Kill the process and all that it started, at once. After `stop` this does nothing."""
        if self._stopped:
            return  # the id may belong to another process by now
        # What the process started may outlive it, so its group is killed even when it has ended itself. The id of a
        # group is not given to others while one member lives, nor in the moment after the last has ended.
        _kill_group(self.pid)
        killed = {self.pid}
        # A shell or `timeout` makes groups of its own in the session. Again, as one may be made during the search.
        while found := _groups_of(self.pid) - killed:
            for group in found:
                _kill_group(group)
            killed |= found

    def disown(self) -> None:
        """In a forked copy of the host: leave the process alone from now on."""
        self._stopped = True

    async def stop(self, ask: Callable[[], None], grace: float) -> None:
        """Have the process end; return when it is reaped, its session is killed and its folder is gone.

        If this is cancelled (a second Ctrl-C), it kills at once and still finishes.

        Args:
            ask: Requests the end. Called again each second, as a request may be lost with its connection.
            grace: Seconds until the process is killed.
        """
        if self._stopped:
            return
        try:
            await ask_to_end(self._exited, ask, grace)
        finally:
            self.kill()
            await finish(self._clean())

    async def _clean(self) -> None:
        try:
            await self.wait()
            async with asyncio.timeout(_REAP):
                await self._process.wait()  # until the event loop has noticed the exit, too
        except TimeoutError:
            self._reap()
        except asyncio.CancelledError:
            self.see_dead()
            self._forget_pidfd()
            raise
        finally:
            if self._process.returncode is None and not isinstance(self._loop, asyncio.BaseEventLoop):  # uvloop
                close_in_silence(self._loop)
            # asyncio learns of an exit from a thread, which may report to a loop that is closed already. Then nobody
            # else closes the transport; this also reaps the process.
            with contextlib.suppress(ProcessLookupError):  # uvloop's, of a process that was reaped above
                self._process._transport.close()  # type: ignore[attr-defined]
            self._stopped = True
            shutil.rmtree(self._folder, ignore_errors=True)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)

    def see_dead(self) -> None:
        """Block until the process is dead, which takes a moment if it was killed.

        For where the event loop will not tell: every task was cancelled, as a second Ctrl-C does, or it is closed.
        """
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def _forget_pidfd(self) -> None:
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None

    def _look(self) -> None:
        """Look whether the process has exited, again and again. No task does it, because all may be cancelled."""
        self._forget_pidfd()  # it has told all that it can
        status = self._process.returncode
        if status is None and hasattr(os, "waitid"):
            with contextlib.suppress(ChildProcessError):  # the event loop has reaped it, and says so in a moment
                # WNOWAIT: the event loop's own watcher is left to reap it.
                if found := os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    status = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
        if status is not None:
            self._set_exited(status)
        elif not self._loop.is_closed():
            self._loop.call_later(_POLL, self._look)

    def _set_exited(self, status: int) -> None:
        if not self._exited.done():
            self._exited.set_result(status)


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _groups_of(session: int) -> set[int]:
    """Return the process groups in a session. Empty where /proc cannot be read."""
    groups = set()
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdecimal():
                with contextlib.suppress(ProcessLookupError, PermissionError):  # it has ended meanwhile
                    if os.getsid(int(name)) == session:
                        groups.add(os.getpgid(int(name)))
    return groups


def _launch(*command: str, **options: Any) -> asyncio.Future[Process]:
    """Run create_subprocess_exec to its end. No cancellation reaches it, also not that of all tasks of the loop.

    Cancelled half-way, it may leave a process that nobody knows of, or wait forever for the task of its transport.
    """
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()
    loop.set_task_factory(lambda _, steps, **options: _without_task(steps))
    try:
        # In their first step both loops launch. uvloop itself forks then, and runs the hooks for forks.
        with launching():
            return _without_task(asyncio.create_subprocess_exec(*command, **options))
    finally:
        loop.set_task_factory(before)


class _Steps(asyncio.Future[T]):
    """What a coroutine returns that no task runs."""

    def set_name(self, name: object) -> None:
        """Do nothing: the event loop of Python 3.13 names whatever its task factory has made."""


def _without_task(work: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
    """Run a coroutine as a task would, but out of reach of who cancels tasks. Its first step is run at once."""
    loop = asyncio.get_running_loop()
    result = _Steps[T](loop=loop)

    def step(_: object = None) -> None:
        try:
            awaited = work.send(None)
        except StopIteration as end:
            result.set_result(end.value)
        except BaseException as error:
            result.set_exception(error)
        else:
            if awaited is None:
                loop.call_soon(step)
            else:
                awaited._asyncio_future_blocking = False
                awaited.add_done_callback(step)

    step()
    return result


async def ask_to_end(exited: asyncio.Future[Any], ask: Callable[[], None], grace: float) -> None:
    """Ask again and again, until `exited` is done or `grace` seconds have passed."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(grace):
            while not exited.done():
                ask()
                await asyncio.wait([exited], timeout=_ASK_AGAIN)


@contextlib.contextmanager
def temporary_room() -> Iterator[None]:
    """Turn what the system says where the temporary folder is full into an error that says what to do.

    Raises:
        ConfigError: There was no room in it for what this block made.
    """
    try:
        yield
    except OSError as error:
        nowhere = isinstance(error, FileNotFoundError) and error.filename is None  # tempfile has found no folder
        if not nowhere and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ConfigError(f"{error}: make room in the temporary folder, or set TMPDIR to another one") from error


async def output_of(
    command: Sequence[str], environment: Mapping[str, str], *, limit: float | None = None, folder: Path | None = None
) -> tuple[int, str]:
    """Run a command to its end; return its exit status and the last lines of what it wrote.

    Cancelling this kills the command.

    Args:
        environment: All of the command's environment variables.
        limit: Seconds that it may take. None: no limit.
        folder: Where its log and its own temporary files are kept meanwhile. None: in the temporary folder.

    Raises:
        TimeoutError: The command took longer than `limit` seconds, and was killed.
        ConfigError: The temporary folder has no room.
        OSError: The command cannot be started.
    """
    with contextlib.ExitStack() as stack:
        with temporary_room() if folder is None else contextlib.nullcontext():
            own = stack.enter_context(tempfile.TemporaryDirectory(prefix="asyncblend-install-", dir=folder))
            inside = {**environment, **dict.fromkeys(TEMPORARY, own)}  # a process that is killed leaves nothing there
            process = await ChildProcess.start(command, inside, Path(own))
        try:
            async with asyncio.timeout(limit):
                return await process.wait(), process.log.tail()
        finally:
            await finish(process.stop(lambda: None, 0))


def _check_descriptors() -> None:
    """Check that a launch would not run out of descriptors half-way, where uvloop loses those that it has opened.

    Raises:
        OSError: It would.
    """
    with open(os.devnull, "rb") as null, contextlib.ExitStack() as spare:
        for _ in range(_SPARE):
            spare.callback(os.close, os.dup(null.fileno()))
