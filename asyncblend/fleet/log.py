"""Log: what one process writes to its standard output and error, in a file that stays small."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import BinaryIO

__all__ = ["Log"]

_LIMIT = 1 << 20  # bytes; Cycles alone writes some 5 kB a frame
_KEPT = 64 << 10
_TAIL_BYTES = 16 << 10
_TAIL_LINES = 40


class Log:
    """A file, not a pipe: a process that writes much is never blocked, and nobody has to read along."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start = 0  # of the present process's output

    def open(self) -> BinaryIO:
        """To be the output of a new process."""
        # Appending: what is written after `trim` goes to the new end.
        self._start = self.path.stat().st_size if self.path.exists() else 0
        return open(self.path, "ab")

    def tail(self) -> str:
        """The last lines; what is no UTF-8 is replaced."""
        with contextlib.suppress(OSError):  # the folder may have been swept away
            text = self._last(_TAIL_BYTES).decode(errors="replace")
            return "\n".join(text.splitlines()[-_TAIL_LINES:])
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
