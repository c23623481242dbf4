"""`python -m benchmarks record`: how fast samples get onto the disk."""

from __future__ import annotations

import asyncio
import contextlib
import io
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import asyncblend as ab
from asyncblend.aio import loop_factory
from asyncblend.config import cores
from asyncblend.errors import BlenderNotFound
from asyncblend.fleet.discovery import find_blender
from asyncblend.recording.codec import Images, encode
from asyncblend.scripts import script
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
    "(limit)*: the same images encoded by as many threads, and dropped. *Pillow alone*: as *PNG alone*, with PNG by Pillow "
    "and arrays as npy that is not compressed, as recordings before format 4 were. Fakes hand out pictures of a ball, "
    "plain, or with noise of 4 in 255, as of few samples a pixel; the cases with the name of a script are really rendered, "
    "shapes.py with all of its labels. MB: of the files, or, not recorded, in memory."
)


def measure(how: Effort, blender: str | None = None) -> Report:
    """Count images recorded per second, as PNG and as JPEG, beside the same stream not recorded.

    The limit is encoding the same images, and nothing else. Plain and noisy pictures of fakes, and, if there is a
    Blender, the cube of the demo, and shapes with all labels.
    """
    metrics = [
        Metric("images/s", lambda timed: timed.rate, 1),
        Metric("host CPU ms/image", lambda timed: timed.cpu_each / 1000, 2),
        Metric("MB/image", lambda timed: timed.size / 1e6, 2),
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
            # The queue is short, because a way first takes the frames that it has rendered before its turn.
            shapes = {"script": script("shapes.py"), "blender": blender, "queue_size": 4}
            cases[f"shapes.py, {blender_name(blender)}"] = shapes
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
    png, jpeg, pillow = Images("png"), Images("jpeg"), _Pillow("png")
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(async_for(**options))
        as_png = stack.enter_context(_recorded(folder / "png", "png", options))
        as_jpeg = stack.enter_context(_recorded(folder / "jpeg", "jpeg", options))
        frames = _some(options)
        pool = stack.enter_context(ThreadPoolExecutor(cores()))
        yield {
            "not recorded": _sized(stream, statistics.mean(map(_bytes, frames))),
            "PNG": _sized(as_png, _recorded_bytes(frames, png)),
            "JPEG": _sized(as_jpeg, _recorded_bytes(frames, jpeg)),
            "PNG alone (limit)": _alone(pool, frames, png),
            "Pillow alone": _alone(pool, frames, pillow),
            "JPEG alone (limit)": _alone(pool, frames, jpeg),
        }


class _Pillow(Images):
    """How recordings before format 4 were encoded."""

    def encode(self, array: np.ndarray[Any, Any], name: str) -> tuple[str, bytes]:
        buffer = io.BytesIO()
        if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] in (3, 4):
            # Type 3 is run lengths, which are best with noise.
            Image.fromarray(array).save(buffer, "PNG", compress_level=1, compress_type=3)
            return "png", buffer.getvalue()
        np.save(buffer, array)
        return "npy", buffer.getvalue()


def _sized(way: Way, size: float) -> Way:
    """Return a way that says how many bytes a frame takes, too."""
    return lambda seconds: way(seconds)._replace(size=size)


def _bytes(value: Any) -> int:
    """Return the bytes in memory of all arrays in a value."""
    if isinstance(value, Mapping | list):
        return sum(map(_bytes, value.values() if isinstance(value, Mapping) else value))
    return value.nbytes if isinstance(value, np.ndarray) else 0


def _recorded_bytes(frames: list[ab.Frame], images: Images) -> float:
    return statistics.mean(sum(map(len, _files(frame, images).values())) for frame in frames)


def _files(frame: ab.Frame, images: Images) -> dict[str, bytes]:
    return encode(frame, index=frame.index, instance=0, params={}, images=images)


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
        _files(frame, images)

    def work() -> int:
        list(pool.map(one, frames))
        return len(frames)

    return _sized(lambda seconds: timed(work, seconds), _recorded_bytes(frames, images))
