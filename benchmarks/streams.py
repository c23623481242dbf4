"""asyncblend's own ways, as something that can be timed: an open stream, asynchronous or not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncblend as ab
from asyncblend.aio import loop_factory

from .measuring import Timed, Way, timed, timed_async

__all__ = ["PATIENT", "async_for", "sync", "written"]

PATIENT = ab.Timeouts(start=120, beat=600, frame=600, stop=5)
"""Long, because a stream's event loop stands still while another way has its turn."""


def written(folder: Path, name: str, text: str) -> Path:
    """Write a script with that text, and return its path."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@contextlib.contextmanager
def async_for(**options: Any) -> Iterator[Way]:
    """Yield a way that takes frames with `async for` in this thread. `options` are the stream's."""
    stream = ab.BlenderStream(timeouts=PATIENT, **options)

    async def take(seconds: float) -> Timed:
        # Frames made ahead, while other ways had their turn, do not count.
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
    """Yield a way that takes frames of a stream whose event loop has a thread of its own, as a DataLoader uses it."""
    with ab.BlenderStream(timeouts=PATIENT, **options).sync() as stream:

        def take() -> int:
            next(stream)
            return 1

        def way(seconds: float) -> Timed:
            for _ in range(2 * stream.config.queue_size):
                take()
            return timed(take, seconds)

        yield way
