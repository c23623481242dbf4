"""Finds what a run left behind: threads, open files, processes and folders."""

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

from .processes import run_of, uses

__all__ = ["Own"]


class Own:
    """What this process has open at this moment, to find later what a run left. Make it outside of any event loop."""

    def __init__(self) -> None:
        with asyncio.Runner(loop_factory=loop_factory()):
            pass  # the first loop opens files that stay open as long as the process lives
        self._threads, self._files = _threads(), _files()

    def left_by(self, names: set[str], hosts: Path) -> list[str]:
        """Return what was left behind by the runs of these names, and by other hosts with their folders in `hosts`.

        What was just killed has a few seconds to end.
        """
        end = time.monotonic() + 5.0
        while (left := self._left(names, hosts)) and time.monotonic() < end:
            threading.Event().wait(0.05)
        return left

    def _left(self, names: set[str], hosts: Path) -> list[str]:
        gc.collect()
        left = [
            f"process {process.pid}"
            for process in psutil.process_iter()
            if run_of(process) in names or uses(process, hosts)
        ]
        folders = [Path(tempfile.gettempdir()) / name for name in names]
        left += [f"folder {folder}" for folder in [*folders, *hosts.glob("*/tmp/*")] if folder.exists()]
        left += [f"thread {name}" for name in (_threads() - self._threads).elements()]
        left += [f"open file {name}" for name in (_files() - self._files).elements()]
        return left


def _threads() -> Counter[str]:
    """Count the threads of this process by name, ZeroMQ's too, which Python does not know. Empty without /proc."""
    return _each("/proc/self/task", lambda task: (task / "comm").read_text().strip())


def _files() -> Counter[str]:
    """Count the open descriptors of this process by what they are open on. Empty without /proc."""
    return _each("/proc/self/fd", lambda descriptor: str(descriptor.readlink()))


def _each(folder: str, name: Callable[[Path], str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for path in Path(folder).glob("*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            counts[name(path)] += 1
    return counts
