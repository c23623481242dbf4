"""Guard: one writer for a folder at a time. The system lets go of it when the process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ..errors import RecordingError

__all__ = ["Guard"]

_NAME = ".writing"


class Guard:
    """Holds the folder from when it is made until `release`.

    Raises:
        RecordingError: another writer has it.
        OSError: its file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._descriptor = os.open(folder / _NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(self._descriptor, 20, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._descriptor)
            raise RecordingError(
                f"another recording into {folder} is going on (process {pid}); wait for it, or take another folder",
                path=str(folder),
            ) from None
        except OSError:
            os.close(self._descriptor)
            raise
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let others write."""
        try:
            # Closing is not enough: a process that was forked meanwhile has the same lock through its copy.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        finally:
            os.close(self._descriptor)
