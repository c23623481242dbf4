"""Blenders that only render, as many as the others have: the limit."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..measuring import Timed, Way
from .plain import PlainBlenders, Scene

__all__ = ["bare"]


@contextlib.contextmanager
def bare(blender: str | None, count: int, folder: Path, scene: Callable[[], Scene]) -> Iterator[Way]:
    """Frames that nobody gets. `scene` says what to render now."""
    with PlainBlenders("cube_bare.py", blender, count, folder) as blenders:
        blenders.answers()

        def way(seconds: float) -> Timed:
            blenders.go(scene())
            time.sleep(seconds)  # they render for so long, and there is nothing to receive
            own = blenders.stop()
            took = statistics.fmean(one["seconds"] for one in own)
            return Timed(took * sum(one["frames"] / one["seconds"] for one in own), took)

        yield way
