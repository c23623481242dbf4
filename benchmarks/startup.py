"""`python -m benchmarks startup`: how long it takes from nothing to the first frame."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import asyncblend as ab
from asyncblend.aio import loop_factory
from asyncblend.errors import BlenderNotFound
from asyncblend.fleet.discovery import find_blender
from asyncblend.testing import fake_blender

from .measuring import Effort, Timed, Way, in_turn
from .peers.plain import INSIDE, PlainBlenders
from .render import CYCLES
from .report import Metric, Report

__all__ = ["kinds", "measure"]

_METHOD = (
    "One instance, a 128x96 image with Cycles and Blender's own view transform. *asyncblend*: from entering the stream to "
    "the first frame. *plain launch*: from launching the same Blender with a script to its first image rendered; for the fake, which renders "
    "nothing, a Python that imports numpy and zmq."
)
_SCENE = (128, 96, CYCLES)


def measure(how: Effort) -> Report:
    """Measure seconds from entering the stream to the first frame, for the fake and each kind of Blender that is here.

    The limit is to launch the same Blender plainly.
    """
    metrics = [Metric("seconds to the first frame", lambda timed: timed.seconds, 2, less_is_better=True)]
    report = Report("startup", "Start: from nothing to the first frame", _METHOD, metrics, "asyncblend")
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        for kind, blender in kinds(folder, quick=how.quick).items():
            how.say(kind)
            limit = _once(_python) if kind == "fake" else _once(lambda b=blender: _plain(b, folder))  # type: ignore[misc]
            ways = {"asyncblend": _once(lambda b=blender: _ours(b)), "plain launch (limit)": limit}  # type: ignore[misc]
            report.add(kind, in_turn(ways, how))
    return report


def kinds(folder: Path, *, quick: bool) -> dict[str, str]:
    """Return the Blenders that are here, by name: the fake, which is made in the folder, and unless `quick` real ones."""
    found = {"fake": str(fake_blender(folder / "fake", values={"image": ("uint8", (96, 128, 3))}))}
    if quick:
        return found
    with contextlib.suppress(BlenderNotFound):
        find_blender("bpy")
        found["bpy module"] = "bpy"
    if path := shutil.which("blender"):
        found["Blender executable"] = path
    return found


def _once(work: Callable[[], float]) -> Way:
    """Return a way that does its work once, however long it takes. `work` returns the seconds that it took."""
    return lambda seconds: Timed(1, work())


def _ours(blender: str) -> float:
    async def first() -> float:
        began = time.perf_counter()
        stream = ab.BlenderStream(
            script=INSIDE / "cube_stream.py", blender=blender, instances=1, params={"scene": list(_SCENE)}
        )
        async with stream:
            await anext(aiter(stream))
            return time.perf_counter() - began

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(first())


def _plain(blender: str, folder: Path) -> float:
    began = time.perf_counter()
    with PlainBlenders("cube_bare.py", blender, 1, folder) as blenders:
        blenders.tell(scene=_SCENE)
        blenders.answers()  # ready
        blenders.answers()  # and rendered
        return time.perf_counter() - began


def _python() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import numpy, zmq"], check=True)
    return time.perf_counter() - began
