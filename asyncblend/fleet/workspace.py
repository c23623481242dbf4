"""Workspace: what one run has on this machine besides its processes, and removes at its end."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import weakref
from pathlib import Path

from ..wire.launch import Lifeline
from .preflight import temporary_folder
from .process import launching, temporary_room
from .sweeper import Sweeper

_log = logging.getLogger("asyncblend")
_workspaces: weakref.WeakSet[Workspace] = weakref.WeakSet()


class Workspace(contextlib.AbstractContextManager["Workspace"]):
    """A private folder (mode 0700), and a pipe whose read end every Blender of the run watches, and a sweeper too.

    Use it as a context manager in the process that owns the run.

    Raises:
        ConfigError: The folder for temporary files cannot be used, or has no room.
        OSError: The operating system refused. Nothing is left then.
    """

    def __init__(self) -> None:
        temporary = temporary_folder()
        self.lifeline: Lifeline | None  # The read end of the pipe, which each Blender inherits. None after the end
        self._held: int | None
        self._sweeper: Sweeper | None = None
        with launching():  # whom another thread forks just then would keep the pipe open
            read, self._held = os.pipe()
            self.lifeline = Lifeline.of(read)
            _workspaces.add(self)
        self.folder: Path = Path(temporary, f"asyncblend-{secrets.token_urlsafe(6)}")
        try:
            try:
                # Before the folder, so that there is no moment in which a kill leaves one.
                self._sweeper = Sweeper(self.folder, read)
            except (FileNotFoundError, PermissionError) as error:
                _log.warning("If this program is killed, %s will stay: %s", self.folder, error)
            with temporary_room():
                self.folder.mkdir(0o700)
        except BaseException:
            self.__exit__()
            raise

    def life_folder(self, instance: int, epoch: int) -> Path:
        """Make a folder for one life of an instance, for its log and its temporary files, and return its path."""
        folder = self.folder / f"{instance}.{epoch}"
        folder.mkdir()
        return folder

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        left = os.path.lexists(self.folder)
        if self._sweeper is not None and not left:
            self._sweeper.dismiss()
        self._close_pipe()
        if self._sweeper is not None and left:
            self._sweeper.wait()  # it needs no descriptor of this process, which may have none left

    def _close_pipe(self) -> None:
        read = None if self.lifeline is None else self.lifeline.descriptor
        for descriptor in (read, self._held):
            if descriptor is not None:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        self.lifeline = self._held = None


def _close_in_forked_child() -> None:
    # Else a forked child, such as a DataLoader's worker, would keep its parent's Blenders alive when the parent dies.
    for workspace in list(_workspaces):
        if workspace._held is not None:
            os.close(workspace._held)
            workspace._held = None


os.register_at_fork(after_in_child=_close_in_forked_child)
