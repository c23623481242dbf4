"""Lifeline: ends this Blender when its host is gone, however the host died."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import threading

from ...wire.launch import Lifeline

_POLL = 1000  # milliseconds between two looks at the parent's id


def hold(lifeline: Lifeline | None) -> None:
    """Have this process group killed when the host is gone: by the kernel where it can, else by a daemon thread.

    The kernel kills at once, also a process that is stopped or whose Python waits for C code. The thread is for other
    systems, for a Blender that may not open its own descriptors, and for a script that closes them.

    Args:
        lifeline: The read end of a pipe whose write end only the host has, so that it reads as ended when the host is
            gone. A wrapper script passes it on, whereas the parent's id tells only of the wrapper.
    """
    if lifeline is not None:
        lifeline = _have_the_kernel_kill(lifeline)
    args = (lifeline, os.getppid())
    threading.Thread(target=_watch, args=args, name="asyncblend lifeline", daemon=True).start()


def _have_the_kernel_kill(inherited: Lifeline) -> Lifeline:
    """Let the end of the pipe raise SIGKILL for this process group. Return what to watch from now on."""
    if not inherited.holds():
        return inherited
    try:
        # All Blenders inherit the same open file description, which has one owner. This opens one of our own.
        own = os.open(f"/proc/self/fd/{inherited.descriptor}", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:  # not Linux, no /proc, or another user's pipe
        return inherited
    with contextlib.suppress(OSError, AttributeError):
        fcntl.fcntl(own, fcntl.F_SETOWN, -os.getpgrp() if _leads_its_session() else os.getpid())
        fcntl.fcntl(own, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(own, fcntl.F_SETFL, fcntl.fcntl(own, fcntl.F_GETFL) | os.O_ASYNC)
    # The end of a host that died before raises no signal any more, but the thread's first look finds it.
    os.close(inherited.descriptor)
    return inherited._replace(descriptor=own)


def _watch(lifeline: Lifeline | None, parent: int) -> None:
    poll = select.poll()  # select.select takes no descriptor from 1024 on
    if lifeline is not None:
        poll.register(lifeline.descriptor, select.POLLHUP)
    while os.getppid() == parent:
        for found, event in poll.poll(_POLL):
            # A script or a wrapper may have closed it. Then only the parent's id can be watched.
            if lifeline is None or not lifeline.holds():
                poll.unregister(found)
            elif event & select.POLLHUP:
                _end()
    _end()


def _leads_its_session() -> bool:
    """Return whether the process group is this Blender's own, as the host starts each one in a new session."""
    return os.getpgrp() == os.getsid(0) > 0  # 0 is a group that this process's pid namespace cannot name


def _end() -> None:
    if _leads_its_session():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)
