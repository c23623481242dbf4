"""What must be finished, is: under signals too."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import zmq

from asyncblend.aio import end_context


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors cannot be counted here")
@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
def test_a_context_ends_whatever_signals_come() -> None:
    """Each end is interrupted after another time. Without care every few of them leave a thread behind."""
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        files = len(os.listdir("/proc/self/fd"))
        for delay in range(10, 310):
            context = zmq.Context()
            socket = context.socket(zmq.DEALER)
            socket.connect("ipc:///nobody/listens")
            signal.setitimer(signal.ITIMER_REAL, delay * 1e-6)
            end_context(context)
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert socket.closed
        assert len(os.listdir("/proc/self/fd")) == files
    finally:
        signal.signal(signal.SIGALRM, before)
