"""As many Blenders as the other ways have, which render and send nothing: the limit."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..measuring import Timed, Way
from .plain import PlainBlenders, Scene

__all__ = ["bare"]


@contextlib.contextmanager
def bare(blender: str | None, count: int, folder: Path, scene: Callable[[], Scene], **about: Any) -> Iterator[Way]:
    """Yield a way that renders frames which nobody receives. `scene` returns what to render.

    `about` is what else `PlainBlenders` takes.
    """
    with PlainBlenders("cube_bare.py", blender, count, folder, **about) as blenders:
        blenders.answers()

        def way(seconds: float) -> Timed:
            blenders.go(scene())
            time.sleep(seconds)  # there is nothing to receive while they render
            own = blenders.stop()
            took = statistics.fmean(one["seconds"] for one in own)
            return Timed(took * sum(one["frames"] / one["seconds"] for one in own), took)

        yield way
