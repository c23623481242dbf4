"""asyncblend's own ways, a stream, asynchronous or in a thread, as something that can be timed."""

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
"""Timeouts for a stream whose event loop stands still while another way has its turn."""


def written(folder: Path, name: str, text: str) -> Path:
    """Write a script, and return its path."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@contextlib.contextmanager
def async_for(**options: Any) -> Iterator[Way]:
    """Open a stream in this thread, and give a way that takes its frames. `options` are the stream's."""
    stream = ab.BlenderStream(timeouts=PATIENT, **options)
    frames = aiter(stream)

    async def way(seconds: float) -> Timed:
        # Frames that were rendered ahead, while another way had its turn, do not count.
        for _ in range(2 * stream.config.queue_size):
            await anext(frames)
        return await timed_async(frames.__anext__, seconds)

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        try:
            runner.run(stream.__aenter__())
            yield lambda seconds: runner.run(way(seconds))
        finally:
            runner.run(stream.aclose())


@contextlib.contextmanager
def sync(**options: Any) -> Iterator[Way]:
    """Open a stream whose event loop has a thread of its own, as datasets do, and give a way that takes its frames."""
    stream = ab.BlenderStream(timeouts=PATIENT, **options)
    with stream.sync() as frames:

        def take_one() -> int:
            next(frames)
            return 1

        def way(seconds: float) -> Timed:
            for _ in range(2 * stream.config.queue_size):
                take_one()
            return timed(take_one, seconds)

        yield way
