"""Log: what one process writes to its standard output and error, in a file that stays small."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import BinaryIO

_LIMIT = 1 << 20  # bytes; Cycles alone writes some 5 kB a frame
_KEPT = 64 << 10
_TAIL = 16 << 10


class Log:
    """The output of a process. A file, not a pipe, so the process never blocks though nobody reads along."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start = 0  # where the present process's output begins

    def open(self) -> BinaryIO:
        """Open the file for the output of a new process."""
        # In append mode the process writes to the new end after `trim`.
        self._start = self.path.stat().st_size if self.path.exists() else 0
        return open(self.path, "ab")

    def tail(self) -> str:
        """Return the end of the present process's output, some pages. Bytes that are not UTF-8 are replaced."""
        with contextlib.suppress(OSError):  # the folder may have been removed
            return "\n".join(self._last(_TAIL).decode(errors="replace").splitlines())
        return ""

    def trim(self) -> None:
        """Drop the oldest output of a file that has grown too large. The process may write meanwhile."""
        with contextlib.suppress(OSError):
            if self.path.stat().st_size > _LIMIT:
                kept = self._last(_KEPT)
                os.truncate(self.path, 0)
                self._start = 0
                with open(self.path, "ab") as file:
                    file.write(b"[earlier output was dropped]\n" + kept.partition(b"\n")[2])

    def _last(self, size: int) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(self._start, file.tell() - size))
            return file.read(size)
