"""What a run left behind: threads, open files, processes, folders."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil

from asyncblend.aio import loop_factory

from .processes import run_of

__all__ = ["Own"]


class Own:
    """What this process has open when this is made, and what a run left since. Outside of any event loop."""

    def __init__(self) -> None:
        with asyncio.Runner(loop_factory=loop_factory()):
            pass  # the first loop opens what stays for the process's life
        self._threads, self._files = _threads(), _files()

    def left_by(self, names: set[str]) -> list[str]:
        """What the runs of these names left behind; what was killed a moment ago has a moment to go."""
        end = time.monotonic() + 5.0
        while (left := self._left(names)) and time.monotonic() < end:
            threading.Event().wait(0.05)
        return left

    def _left(self, names: set[str]) -> list[str]:
        gc.collect()
        left = [f"process {process.pid}" for process in psutil.process_iter() if run_of(process) in names]
        folders = [Path(tempfile.gettempdir()) / name for name in names]
        left += [f"folder {folder}" for folder in folders if folder.exists()]
        left += [f"thread {name}" for name in (_threads() - self._threads).elements()]
        left += [f"open file {name}" for name in (_files() - self._files).elements()]
        return left


def _threads() -> Counter[str]:
    """The operating system's threads of this process, by name: ZeroMQ's are no Python threads. Empty without /proc."""
    return _each("/proc/self/task", lambda task: (task / "comm").read_text().strip())


def _files() -> Counter[str]:
    """The open descriptors of this process, by what they are open on. Empty without /proc."""
    return _each("/proc/self/fd", lambda descriptor: str(descriptor.readlink()))


def _each(folder: str, name: Callable[[Path], str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for path in Path(folder).glob("*"):
        with contextlib.suppress(OSError):  # gone meanwhile
            counts[name(path)] += 1
    return counts
