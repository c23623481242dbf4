"""Cleanup is finished despite cancellation and signals."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
import zmq

from asyncblend.aio import end_context, finish


async def test_cleanup_begins_though_every_task_is_cancelled() -> None:
    """A task that is cancelled before its first step never runs; the cleanup does, and the cancellation is not lost."""
    steps: list[str] = []

    async def clean() -> None:
        steps.append("begun")
        await asyncio.sleep(0)
        steps.append("ended")

    async def use() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await finish(clean())

    using = asyncio.ensure_future(use())
    await asyncio.sleep(0)
    using.cancel()
    while not (others := asyncio.all_tasks() - {asyncio.current_task(), using}):  # until its task has been made
        await asyncio.sleep(0)
    for task in {using, *others}:
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await using
    assert steps == ["begun", "ended"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors cannot be counted here")
def test_a_context_ends_whatever_signals_come() -> None:
    """Each time a signal arrives a little later. If signals were not held back, every few contexts would leave a thread."""
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
