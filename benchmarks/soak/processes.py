"""Finds a fleet's processes, as the operating system shows them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

import psutil

from asyncblend.wire.launch import RUN, Launch

__all__ = ["BlenderProcess", "blenders", "is_running", "launch", "run_of", "uses"]

_INSTANCE = "instance="  # the host writes it into the command line of each Blender


class BlenderProcess(NamedTuple):
    """A Blender that is running."""

    instance: int
    process: psutil.Process


def blenders(host: int | None = None) -> list[BlenderProcess]:
    """Return the Blenders that a process started and that are running. `host` is its id; by default it is this one."""
    found = []
    for process in psutil.Process(host).children():
        with contextlib.suppress(psutil.Error):
            for word in process.cmdline():
                if word.startswith(_INSTANCE):
                    found.append(BlenderProcess(int(word.removeprefix(_INSTANCE)), process))
    return found


def is_running(process: psutil.Process) -> bool:
    """Return whether a process has not ended. Whether anybody has asked for its exit status does not matter."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def run_of(process: psutil.Process) -> str | None:
    """Return the name of the run that a process belongs to, from the variable that it inherited."""
    return _environment(process).get(RUN)


def uses(process: psutil.Process, folder: Path) -> bool:
    """Return whether a process was started with its folder for temporary files in this one."""
    return Path(_environment(process).get("TMPDIR", os.devnull)).is_relative_to(folder)


def launch() -> Launch | None:
    """Return what a Blender was told at its start, endpoint and token, as any program of the same user can read it.

    None if no Blender is running.
    """
    for _, process in blenders():
        with contextlib.suppress(KeyError):
            return Launch.take(_environment(process))
    return None


def _environment(process: psutil.Process) -> dict[str, str]:
    """Return the variables that a process was started with. Empty if it has ended or is another user's."""
    try:
        return dict(process.environ())
    except (psutil.Error, OSError):
        return {}
