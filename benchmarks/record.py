"""`python -m benchmarks record`: how fast samples get onto the disk."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import asyncblend as ab
from asyncblend.aio import loop_factory
from asyncblend.config import cores
from asyncblend.errors import BlenderNotFound
from asyncblend.fleet.discovery import find_blender
from asyncblend.recording.codec import Images, encode
from asyncblend.testing import fake_blender

from .machine import blender_name
from .measuring import Effort, Timed, Way, in_turn, timed, timed_async
from .report import Metric, Report
from .streams import PATIENT, async_for
from .tune import CUBE

__all__ = ["measure"]

_PICTURES = Path(__file__).parent / "inside" / "pictures.py"
_ENDLESS = 1 << 40
_METHOD = (
    "640x480 RGB images with keypoints, of two Blenders. *not recorded*: `async for` over the stream. *PNG*, *JPEG*: over "
    "`stream.record(folder)`, in shards of 100 samples, each written through to the disk. *PNG alone (limit)*, *JPEG alone "
    "(limit)*: the same images encoded by as many threads, and dropped. Fakes hand out pictures of a ball, plain, or with "
    "noise of 4 in 255, as of few samples a pixel; the last case is really rendered."
)


def measure(how: Effort, blender: str | None = None) -> Report:
    """Count images recorded per second, as PNG and as JPEG, beside the same stream not recorded.

    The limit is encoding the same images, and nothing else. Plain and noisy pictures of fakes, and the cube of the
    demo, if there is a Blender.
    """
    metrics = [
        Metric("images/s", lambda timed: timed.rate, 1),
        Metric("host CPU ms/image", lambda timed: timed.cpu_each / 1000, 2),
    ]
    report = Report("record", "Record: samples onto the disk", _METHOD, metrics, "PNG", own=["JPEG", "not recorded"])
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        fake = {"script": _PICTURES, "blender": fake_blender(folder / "fake")}
        cases: dict[str, dict[str, Any]] = {
            "plain pictures": {**fake, "script_args": ["0"]},
            "noisy pictures": {**fake, "script_args": ["4"]},
        }
        if how.quick:
            del cases["plain pictures"]
        elif _there_is(blender):
            cases[f"cube.py, {blender_name(blender)}"] = {"script": CUBE, "blender": blender}
        for number, (case, options) in enumerate(cases.items()):
            how.say(case)
            with _ways(folder / str(number), options) as ways:
                report.add(case, in_turn(ways, how))
    return report


def _there_is(blender: str | None) -> bool:
    try:
        find_blender(blender)
    except BlenderNotFound:
        return False
    return True


@contextlib.contextmanager
def _ways(folder: Path, options: dict[str, Any]) -> Iterator[Mapping[str, Way]]:
    options = {"instances": 2, **options}
    png, jpeg = Images("png"), Images("jpeg")
    with contextlib.ExitStack() as stack:
        ways = {
            "not recorded": stack.enter_context(async_for(**options)),
            "PNG": stack.enter_context(_recorded(folder / "png", "png", options)),
            "JPEG": stack.enter_context(_recorded(folder / "jpeg", "jpeg", options)),
        }
        frames = _some(options)
        pool = stack.enter_context(ThreadPoolExecutor(cores()))
        yield {**ways, "PNG alone (limit)": _alone(pool, frames, png), "JPEG alone (limit)": _alone(pool, frames, jpeg)}


@contextlib.contextmanager
def _recorded(folder: Path, image_format: str, options: dict[str, Any]) -> Iterator[Way]:
    """Record a stream, and give a way that takes its frames."""
    stream = ab.BlenderStream(timeouts=PATIENT, **options)
    recorder = stream.record(folder, length=_ENDLESS, image_format=image_format)

    frames = aiter(recorder)

    async def way(seconds: float) -> Timed:
        # Frames that were rendered ahead, while another way had its turn, do not count.
        for _ in range(2 * stream.config.queue_size):
            await anext(frames)
        return await timed_async(frames.__anext__, seconds)

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        try:
            yield lambda seconds: runner.run(way(seconds))
        finally:
            runner.run(recorder.aclose())


def _some(options: dict[str, Any]) -> list[ab.Frame]:
    """Return copies of the first frames, whose own memory is used again for later frames."""

    async def first() -> list[ab.Frame]:
        async with ab.BlenderStream(length=8, **options) as stream:
            return [_copied(frame) async for frame in stream]

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(first())


def _copied(frame: ab.Frame) -> ab.Frame:
    values = {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in frame.items()}
    return ab.Frame(values, index=frame.index, instance=frame.instance)


def _alone(pool: ThreadPoolExecutor, frames: list[ab.Frame], images: Images) -> Way:
    """Return a way that encodes the frames with as many threads as a recorder, and drops the files."""

    def one(frame: ab.Frame) -> None:
        encode(frame, index=frame.index, instance=0, params={}, images=images)

    def work() -> int:
        list(pool.map(one, frames))
        return len(frames)

    return lambda seconds: timed(work, seconds)
