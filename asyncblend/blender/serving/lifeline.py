"""Lifeline: ends this Blender when its host is gone, however the host died."""

from __future__ import annotations

import os
import select
import shutil
import signal
import threading

_POLL = 1000  # milliseconds between two looks at the parent's id


def hold(descriptor: int | None, scratch: str) -> None:
    """Watch the host from a daemon thread. When it is gone, kill this process group and remove `scratch`.

    Args:
        descriptor: Read end of a pipe whose write end only the host has, so that it reads as ended when the host is
            gone. A wrapper script passes it on, whereas the parent's id tells only of the wrapper.
        scratch: The run's private folder, which a killed host cannot remove.
    """
    args = (descriptor, scratch, os.getppid())
    threading.Thread(target=_watch, args=args, name="asyncblend lifeline", daemon=True).start()


def _watch(descriptor: int | None, scratch: str, parent: int) -> None:
    poll = select.poll()  # select.select takes no descriptor from 1024 on
    if descriptor is not None:
        poll.register(descriptor, select.POLLIN)
    while os.getppid() == parent:
        for found, event in poll.poll(_POLL):
            if event & select.POLLNVAL:  # a wrapper script closed it, so only the parent's id can be watched
                poll.unregister(found)
            elif not os.read(found, 1):
                _end(scratch)
    _end(scratch)


def _end(scratch: str) -> None:
    shutil.rmtree(scratch, ignore_errors=True)
    if os.getpgrp() == os.getsid(0):  # the group is this Blender's own, as the host starts each one in a new session
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)
