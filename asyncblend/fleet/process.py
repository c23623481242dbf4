"""ChildProcess: one process that we started, from its launch until nothing of it is left."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import signal
import tempfile
import types
from asyncio.subprocess import Process
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from ..aio import abandon_loop, finish
from ..wire import ring
from .log import Log

__all__ = ["ChildProcess", "output_of"]

_REAP = 1.0  # seconds for the event loop to notice what we know already
_ASK = 0.02  # seconds between two looks at what the event loop knows
_ASK_AGAIN = 1.0  # seconds between two requests to end
_SPARE = 16  # descriptors that a launch may take for a moment


class ChildProcess:
    """A process, its process group, its log and its folder. Made by `start`."""

    def __init__(self, process: Process, folder: Path, log: Log) -> None:
        self._process = process
        self._folder = folder
        self.log = log
        self._loop = asyncio.get_running_loop()
        self._exited: asyncio.Future[int] = self._loop.create_future()
        self._pidfd: int | None = None
        self._over = False
        self._watch_exit()

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
        """Launch `command` in a session of its own, with a folder of its own, which goes when it is stopped.

        If this is cancelled, no process is left.

        Args:
            log: where its output goes; None for a file in the folder.
            inherit: descriptors that the process inherits.
            cwd: its working directory; None for ours.

        Raises:
            OSError: the operating system refused.
        """
        _check_descriptors()
        log = log or Log(folder / "log.txt")
        with log.open() as output:
            launching = asyncio.ensure_future(  # create_task takes no generator since Python 3.12
                _launch(
                    *command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=asyncio.subprocess.STDOUT,
                    env=dict(environment),
                    cwd=cwd,
                    start_new_session=True,
                    pass_fds=tuple(inherit),
                )
            )
            try:
                # Cancelled half-way, create_subprocess_exec may leave a process that nobody knows of.
                process = await asyncio.shield(launching)
            except asyncio.CancelledError:
                await finish(cls._abandon(launching, folder, log))
                raise
        return cls(process, folder, log)

    @classmethod
    async def _abandon(cls, launching: asyncio.Task[Process], folder: Path, log: Log) -> None:
        while not launching.done():
            await asyncio.wait([launching], timeout=_REAP)
            if launching.cancelling():
                # Every task was cancelled, also the one of asyncio's that is to tell of the exit: it waits in vain
                # for a process that it has killed.
                launching.cancel()
        if launching.cancelled() or launching.exception() is not None:
            return
        await cls(launching.result(), folder, log).stop(lambda: None, 0)

    @property
    def pid(self) -> int:
        """Process id, which is its process group's too."""
        return self._process.pid

    async def wait(self) -> int:
        """Its exit status once it has ended; negative is the signal that killed it. May be cancelled, and called again."""
        return await asyncio.shield(self._exited)

    def kill(self) -> None:
        """Kill its whole process group, at once. What it started dies with it, also when it has ended already.

        After `stop` it does nothing: the number may be another's.
        """
        if self._over:
            return
        if os.name == "posix":
            # Its own children may outlive it, so its group is killed even when it is dead. The group's number is
            # not free for others as long as one member lives, and is not reused in the moment after the last.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        else:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def stop(self, ask: Callable[[], None], grace: float) -> None:
        """Ask it to end, give it `grace` seconds, then kill its group; return when it is reaped and its folder gone.

        If it is cancelled meanwhile (a second Ctrl-C), it kills at once and still finishes.
        """
        try:
            if not self._exited.done():
                async with asyncio.timeout(grace):
                    while not self._exited.done():
                        ask()  # again: the first request may have gone down with its connection
                        await asyncio.wait([self._exited], timeout=_ASK_AGAIN)
        except TimeoutError:
            pass
        finally:
            self.kill()
            await finish(self._clean())

    async def _clean(self) -> None:
        try:
            await self.wait()
            try:
                async with asyncio.timeout(_REAP):
                    await self._process.wait()
            except TimeoutError:
                self._reap()
        except asyncio.CancelledError:
            self._see_dead()  # every task was cancelled, this one too: a second Ctrl-C
            raise
        finally:
            self._over = True
            shutil.rmtree(self._folder, ignore_errors=True)

    def _see_dead(self) -> None:
        # It was killed, so this blocks for moments. Whoever watches children is left to reap it.
        with contextlib.suppress(ChildProcessError, AttributeError):
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)
        abandon_loop(self._loop)

    # A pidfd tells of the exit on every event loop, whoever handles SIGCHLD, and while a grandchild holds the output.

    def _watch_exit(self) -> None:
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except (AttributeError, OSError):  # not Linux, an old kernel, or reaped already
            self._ask_watcher()
        else:
            self._loop.add_reader(self._pidfd, self._on_pidfd)

    def _ask_watcher(self) -> None:
        """Ask the event loop's own watcher until it knows. No task: when all tasks are cancelled, it goes on."""
        if self._process.returncode is not None:
            self._set_exited(self._process.returncode)
        elif not self._loop.is_closed():
            self._loop.call_later(_ASK, self._ask_watcher)

    def _on_pidfd(self) -> None:
        assert self._pidfd is not None
        self._loop.remove_reader(self._pidfd)
        try:
            # WNOWAIT: the event loop's own watcher is left to reap it.
            status = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # the watcher was faster, and will say so
            status = None
        finally:
            os.close(self._pidfd)
            self._pidfd = None
        if status is not None:
            killed = status.si_code != os.CLD_EXITED
            self._set_exited(-status.si_status if killed else status.si_status)
        else:
            self._ask_watcher()

    def _set_exited(self, status: int) -> None:
        if not self._exited.done():
            self._exited.set_result(status)


@types.coroutine
def _launch(*command: str, **options: Any) -> Generator[Any, Any, Process]:
    """create_subprocess_exec. uvloop forks in its first step, and runs the hooks for forks."""
    steps = asyncio.create_subprocess_exec(*command, **options).__await__()
    step: Callable[[], Any] = functools.partial(next, steps)
    try:
        with ring.launching():
            awaited = step()
        while True:
            try:
                answer = yield awaited
            except BaseException as error:
                step = functools.partial(steps.throw, error)
            else:
                step = functools.partial(steps.send, answer)
            awaited = step()
    except StopIteration as end:
        process: Process = end.value
        return process


async def output_of(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    limit: float | None = None,
    folder: Path | None = None,
) -> tuple[int, str]:
    """Run a command to its end: its exit status, and the last lines of what it wrote. Cancelling kills it.

    Args:
        limit: seconds; None for no limit.
        folder: where its log is meanwhile; None for the temporary folder.

    Raises:
        TimeoutError: it took longer than `limit` seconds, and was killed.
        OSError: it cannot be started.
    """
    with tempfile.TemporaryDirectory(prefix="asyncblend-install-", dir=folder) as own:
        process = await ChildProcess.start(command, environment, Path(own))
        try:
            async with asyncio.timeout(limit):
                return await process.wait(), process.log.tail()
        finally:
            await finish(process.stop(lambda: None, 0))


def _check_descriptors() -> None:
    """
    Raises:
        OSError: a launch would run out of descriptors half-way, where uvloop loses those that it has opened.
    """
    with open(os.devnull, "rb") as null, contextlib.ExitStack() as spare:
        for _ in range(_SPARE):
            spare.callback(os.close, os.dup(null.fileno()))
