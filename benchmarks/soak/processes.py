"""The fleet's processes, as the operating system shows them."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import psutil

from asyncblend.wire.launch import RUN, Launch

__all__ = ["BlenderProcess", "blenders", "endpoint", "run_of"]

_INSTANCE = "instance="  # the host writes it into the command line of each


class BlenderProcess(NamedTuple):
    """A Blender that lives."""

    instance: int
    process: psutil.Process


def blenders() -> list[BlenderProcess]:
    """The Blenders that this process started, as far as they live."""
    found = []
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            for word in process.cmdline():
                if word.startswith(_INSTANCE):
                    found.append(BlenderProcess(int(word.removeprefix(_INSTANCE)), process))
    return found


def run_of(process: psutil.Process) -> str | None:
    """Name of the run that this process belongs to, by the mark that it inherited."""
    return _environment(process).get(RUN)


def endpoint() -> str | None:
    """Where the Blenders were told to connect: any program of the same user can read it. None if none lives."""
    for _, process in blenders():
        with contextlib.suppress(KeyError):
            return Launch.take(_environment(process)).endpoint
    return None


def _environment(process: psutil.Process) -> dict[str, str]:
    """What it was started with; empty if it is gone, or somebody else's."""
    try:
        return dict(process.environ())
    except (psutil.Error, OSError):
        return {}
