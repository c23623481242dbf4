"""Lifeline: ends this Blender when its host is gone, however the host died."""

from __future__ import annotations

import os
import select
import shutil
import signal
import threading

__all__ = ["hold"]

_POLL = 1.0  # seconds between two looks at the parent's id


def hold(descriptor: int | None, scratch: str) -> None:
    """Watch the host from a daemon thread: kill this process group, and remove `scratch`, when it is gone.

    Args:
        descriptor: read end of a pipe whose write end only the host has; it reads as ended when the host is gone.
            A wrapper script passes it on, whereas the parent's id tells only of the wrapper.
        scratch: the run's private folder, which a killed host cannot remove any more.
    """
    threading.Thread(
        target=_watch, args=(descriptor, scratch, os.getppid()), name="asyncblend lifeline", daemon=True
    ).start()


def _watch(descriptor: int | None, scratch: str, parent: int) -> None:
    waiting = threading.Event()
    while os.getppid() == parent:
        if descriptor is None:
            waiting.wait(_POLL)
        elif _ended(descriptor):
            break
        elif not _open(descriptor):  # a wrapper closed it: the parent's id is all there is to watch
            descriptor = None
    shutil.rmtree(scratch, ignore_errors=True)
    if hasattr(os, "killpg") and os.getpgrp() == os.getsid(0):  # ours: the host starts each Blender in a new session
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


def _ended(descriptor: int) -> bool:
    """Wait a moment; whether the pipe reads as ended."""
    poll = select.poll()  # select.select takes no descriptor from 1024 on
    poll.register(descriptor, select.POLLIN)
    events = poll.poll(int(1000 * _POLL))
    return any(event & (select.POLLIN | select.POLLHUP) for _, event in events) and not os.read(descriptor, 1)


def _open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
