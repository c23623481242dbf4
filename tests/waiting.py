"""Waits for what other processes and threads bring about."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import psutil

LIMIT = 60.0  # seconds; the bound of failure of every wait


def until(condition: Callable[[], Any]) -> None:
    """Wait for a condition that nothing tells of."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end
        threading.Event().wait(0.002)


def gone(process: int | psutil.Process) -> bool:
    """Tell whether a process, or that with this number, has ended. An orphan may not have been reaped yet."""
    try:
        one = psutil.Process(process) if isinstance(process, int) else process
        return bool(one.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
