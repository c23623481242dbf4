"""asyncblend's own ways: a stream, asynchronous or in a thread, as something that can be timed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncblend as ab
from asyncblend.aio import loop_factory
from asyncblend.stream.sync import SyncStream

from .measuring import Timed, Way, timed, timed_async

__all__ = ["PATIENT", "async_for", "sync", "written"]

PATIENT = ab.Timeouts(start=120, beat=600, frame=600, stop=5)
"""The loop stands still while another way has its turn."""


def written(folder: Path, name: str, text: str) -> Path:
    """A script with that text."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@contextlib.contextmanager
def async_for(**options: Any) -> Iterator[Way]:
    """Frames of `async for`, in this thread. `options`: the stream's."""
    stream = ab.BlenderStream(timeouts=PATIENT, **options)

    async def take(seconds: float) -> Timed:
        # What was made ahead, while this way did not have its turn, does not count.
        for _ in range(2 * stream.config.queue_size):
            await anext(stream)
        return await timed_async(stream.__anext__, seconds)

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        try:
            runner.run(stream.__aenter__())
            yield lambda seconds: runner.run(take(seconds))
        finally:
            runner.run(stream.aclose())


@contextlib.contextmanager
def sync(**options: Any) -> Iterator[Way]:
    """Time frames of a SyncStream, whose loop has a thread of its own: what a DataLoader uses."""
    own = SyncStream(ab.StreamConfig(timeouts=PATIENT, **options))

    def take() -> int:
        source.get()
        return 1

    def way(seconds: float) -> Timed:
        for _ in range(2 * own.config.queue_size):
            take()
        return timed(take, seconds)

    try:
        own.start()
        source = own.frames()
        yield way
    finally:
        own.close()
