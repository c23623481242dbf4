"""Workspace: what one run has on this machine besides its processes, and takes away with it."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import weakref
from pathlib import Path
from types import TracebackType

__all__ = ["Workspace"]


_open: weakref.WeakSet[Workspace] = weakref.WeakSet()


class Workspace:
    """A private folder (mode 0700), and a pipe whose other end every Blender of the run watches.

    Used as a context manager by the process that owns the run.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="asyncblend-"))
        self.cwd = os.getcwd()
        """Where the run began: each Blender's working directory, also of those that start later."""
        self.lifeline: int | None = None
        """Read end of the pipe, to be inherited by each Blender."""
        self._held: int | None = None
        if os.name == "posix":
            self.lifeline, self._held = os.pipe()
        _open.add(self)

    def life_folder(self, instance: int, epoch: int) -> Path:
        """A new folder for one life of an instance: its log, and its temporary files."""
        folder = self.folder / f"{instance}.{epoch}"
        folder.mkdir()
        return folder

    def __enter__(self) -> Workspace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in (self.lifeline, self._held):
            if descriptor is not None:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        self.lifeline = self._held = None
        shutil.rmtree(self.folder, ignore_errors=True)


def _forked() -> None:
    # A forked child (a DataLoader's worker) must not keep the Blenders alive that belong to its parent. Only the held
    # end: uvloop runs this in each Blender-to-be as well, which needs the other one.
    for workspace in list(_open):
        if workspace._held is not None:
            os.close(workspace._held)
            workspace._held = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
