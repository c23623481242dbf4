"""Has the signals that ask a program to end do what Ctrl-C does: what is begun is finished or undone, and Blenders end."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
from types import FrameType

_received: int = signal.SIGINT


def end_on_signals() -> None:
    """Let SIGTERM and SIGHUP end the command as Ctrl-C does.

    SIGTERM comes from `kill`, from a container that is stopped, and from a scheduler whose time is up. SIGHUP comes from a
    terminal that is closed. Those that this program was started to ignore, as by `nohup`, stay ignored.
    """
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # So it is where a script has started the command in the background. asyncio would not handle it then, and only
        # its handler ends a program in good order. So it is held back instead, and handled when `_end` says so.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, signal.default_int_handler)


def exit_status() -> int:
    """Return the exit status of a command that was interrupted, as shells give it: 130 after Ctrl-C."""
    return 128 + _received


def _end(number: int, frame: FrameType | None) -> None:
    global _received
    _received = number
    if number != signal.SIGTERM:
        signal.signal(
            number, signal.SIG_IGN
        )  # a shell that ends may send it once more; nobody is there to be in a hurry
        _let_go_of_the_terminal()
    interrupt = signal.getsignal(signal.SIGINT)
    if callable(interrupt):
        interrupt(signal.SIGINT, frame)


def _let_go_of_the_terminal() -> None:
    """Drop what is still printed to the terminal, if it is gone: each write would raise. It is no terminal any more then."""
    with contextlib.suppress(OSError):  # no descriptor is left
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                os.dup2(null, descriptor)
        os.close(null)
