"""Workspace: what one run has on this machine besides its processes, and removes at its end."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import weakref
from pathlib import Path

_workspaces: weakref.WeakSet[Workspace] = weakref.WeakSet()


class Workspace(contextlib.AbstractContextManager["Workspace"]):
    """A private folder (mode 0700), and a pipe whose read end every Blender of the run watches.

    Use it as a context manager in the process that owns the run.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="asyncblend-"))
        self.cwd = os.getcwd()
        """The working directory when the run began. Every Blender gets it, also one that starts later."""
        self.lifeline: int | None  # The read end of the pipe, which each Blender inherits. None after the end
        self._held: int | None
        self.lifeline, self._held = os.pipe()
        _workspaces.add(self)

    def life_folder(self, instance: int, epoch: int) -> Path:
        """Make a folder for one life of an instance, for its log and its temporary files, and return its path."""
        folder = self.folder / f"{instance}.{epoch}"
        folder.mkdir()
        return folder

    def __exit__(self, *error: object) -> None:
        for descriptor in (self.lifeline, self._held):
            if descriptor is not None:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        self.lifeline = self._held = None
        shutil.rmtree(self.folder, ignore_errors=True)


def _close_in_forked_child() -> None:
    # Else a forked child, such as a DataLoader's worker, would keep its parent's Blenders alive when the parent dies.
    for workspace in list(_workspaces):
        if workspace._held is not None:
            os.close(workspace._held)
            workspace._held = None


os.register_at_fork(after_in_child=_close_in_forked_child)
