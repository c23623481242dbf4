"""Sweeper: a small process that removes what a killed host leaves of its run."""

from __future__ import annotations

import os
import subprocess
import weakref
from pathlib import Path

from ..wire.launch import RUN
from .process import launching

_PATIENCE = 5.0  # seconds for removing a folder
_sweepers: weakref.WeakSet[Sweeper] = weakref.WeakSet()

_SWEEP = """
PATH=/usr/bin:/bin:$PATH
trap '' HUP INT TERM
sweep() {
    for found in $(LC_ALL=C grep -lsF "$2" /proc/[0-9]*/environ); do
        found=${found#/proc/}
        kill -KILL "${found%/environ}"
    done
    rm -rf "$1"
}
read -r end
sweep "$@" || { sleep 1; sweep "$@"; }
"""
"""Waits for the end of its input, kills what has the run's mark in its environment, and removes the run's folder.

It tries again if something was written there meanwhile. Its arguments are the folder and the mark.
"""


class Sweeper:
    """Waits for the end of a pipe, and then removes a run's folder and kills all processes with the run's mark.

    The kernel kills a Blender with its host, and nobody is left in it to remove the folder. Nor does the kernel reach
    what a script started in another process group.

    Args:
        folder: The run's folder.
        pipe: Read end of a pipe that ends when the host does.

    Raises:
        OSError: It could not be started.
    """

    def __init__(self, folder: Path, pipe: int) -> None:
        # Without the mark of a run that this process may itself belong to.
        environment = {name: value for name, value in os.environ.items() if name != RUN}
        with launching():
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _SWEEP, "asyncblend-sweeper", str(folder), f"{RUN}={folder.name}"],
                stdin=pipe,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
                cwd="/",
                start_new_session=True,  # neither Ctrl-C nor the end of the terminal reaches it
            )
        _sweepers.add(self)

    def dismiss(self) -> None:
        """End it without sweeping."""
        self._process.kill()
        self._process.wait()

    def wait(self) -> None:
        """Return when it has swept, after the end of the pipe, or does not get on."""
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self.dismiss()


def _disown_in_forked_child() -> None:
    for sweeper in list(_sweepers):
        sweeper._process.returncode = 0  # it is the parent's child, so nobody here waits for it


os.register_at_fork(after_in_child=_disown_in_forked_child)
