"""One process that the package started, from its launch until nothing of it is left.

The process belongs to the object that launched it, which also notices its exit and reaps it. asyncio's own child
processes would not do: asyncio learns of an exit from a thread, and uvloop from a handler of SIGCHLD, which torch's
DataLoader replaces. An event loop that is closed before either has reported abandons the process's transport.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from ..aio import finish
from .log import Log

__all__ = ["ChildProcess", "output_of"]

_POLL = 0.02  # seconds between two looks at a process that has no pidfd
_ASK_AGAIN = 1.0  # seconds between two requests to end

# Popen waits until nobody has the other end of a certain pipe any more. A process that another thread forks just then,
# such as a DataLoader's worker, would have it for as long as it lives. So forks wait for a launch.
_launching = threading.RLock()
os.register_at_fork(before=_launching.acquire, after_in_parent=_launching.release, after_in_child=_launching.release)


class ChildProcess:
    """A process, its process group, its log and its folder. Made by `start`, and ended by `stop`."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, log: Log) -> None:
        self._process = process
        self._folder = folder
        self.log = log
        self._loop = asyncio.get_running_loop()
        self._exited: asyncio.Future[int] = self._loop.create_future()
        self._stopped = False
        self._pidfd: int | None = None
        try:
            self._pidfd = os.pidfd_open(process.pid)
        except (AttributeError, OSError):  # not Linux, an old kernel, or no descriptor is left
            self._check_exit()
        else:
            self._loop.add_reader(self._pidfd, self._check_exit)

    @classmethod
    def start(
        cls,
        command: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        *,
        log: Log | None = None,
        inherit: Sequence[int] = (),
        cwd: str | None = None,
    ) -> Self:
        """Launch a process in a session of its own. Call it in a running event loop.

        Args:
            environment: All of the process's environment variables.
            folder: The process's own folder, which `stop` removes.
            log: Where its output goes. None: into a file in the folder.
            inherit: The descriptors that the process inherits.
            cwd: Its working directory. None: that of this process.

        Raises:
            OSError: The operating system refused.
        """
        log = log or Log(folder / "log.txt")
        with log.open() as output, _launching:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=cwd,
                start_new_session=True,
                pass_fds=inherit,
            )
        return cls(process, folder, log)

    @property
    def pid(self) -> int:
        """The process's id, which is also that of its process group."""
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
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    async def stop(self, ask: Callable[[], None], grace: float) -> None:
        """Have the process end; return when it is reaped, its group is killed and its folder is gone.

        If this is cancelled (a second Ctrl-C), it kills at once and still finishes.

        Args:
            ask: Requests the end. Called again each second, as a request may be lost with its connection.
            grace: Seconds until the process is killed.
        """
        try:
            if not self._exited.done():
                async with asyncio.timeout(grace):
                    while not self._exited.done():
                        ask()
                        await asyncio.wait([self._exited], timeout=_ASK_AGAIN)
        except TimeoutError:
            pass
        finally:
            self.kill()
            try:
                await finish(self.wait())
            except asyncio.CancelledError:
                # Every task of the loop was cancelled, as a second Ctrl-C does, and the loop may be closed next. So
                # this blocks the loop, for moments only: the process was killed.
                self._process.wait()
                self._check_exit()
                raise
            finally:
                self._stopped = True
                shutil.rmtree(self._folder, ignore_errors=True)

    def _check_exit(self) -> None:
        """Reap the process if it has ended. Called when its pidfd is readable, or else again and again."""
        status = self._process.poll()
        if status is None:
            if self._pidfd is None:
                self._loop.call_later(_POLL, self._check_exit)
            return
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        if not self._exited.done():
            self._exited.set_result(status)


async def output_of(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    limit: float | None = None,
    folder: Path | None = None,
) -> tuple[int, str]:
    """Run a command to its end; return its exit status and the last lines of what it wrote.

    Cancelling this kills the command.

    Args:
        environment: All of the command's environment variables.
        limit: Seconds that it may take. None: no limit.
        folder: Where its log is kept meanwhile. None: in the temporary folder.

    Raises:
        TimeoutError: The command took longer than `limit` seconds, and was killed.
        OSError: The command cannot be started.
    """
    with tempfile.TemporaryDirectory(prefix="asyncblend-install-", dir=folder) as own:
        process = ChildProcess.start(command, environment, Path(own))
        try:
            async with asyncio.timeout(limit):
                return await process.wait(), process.log.tail()
        finally:
            await finish(process.stop(lambda: None, 0))
