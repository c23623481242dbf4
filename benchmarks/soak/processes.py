"""Finds the fleet's processes, as the operating system shows them."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import psutil

from asyncblend.wire.launch import RUN, Launch

__all__ = ["BlenderProcess", "blenders", "launch", "run_of"]

_INSTANCE = "instance="  # the host writes it into the command line of each Blender


class BlenderProcess(NamedTuple):
    """A Blender that is running."""

    instance: int
    process: psutil.Process


def blenders() -> list[BlenderProcess]:
    """Return the Blenders that this process started and that are running."""
    found = []
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            for word in process.cmdline():
                if word.startswith(_INSTANCE):
                    found.append(BlenderProcess(int(word.removeprefix(_INSTANCE)), process))
    return found


def run_of(process: psutil.Process) -> str | None:
    """Return the name of the run that a process belongs to, from the variable that it inherited."""
    return _environment(process).get(RUN)


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
