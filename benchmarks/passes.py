"""`python -m benchmarks passes`: passes that share one fleet, one of them stalled."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Mapping

import asyncblend as ab
from asyncblend.aio import loop_factory

from .machine import blender_name, own_view
from .measuring import Effort, Timed, Way, in_turn
from .peers.plain import INSIDE
from .render import CYCLES
from .report import Metric, Report
from .streams import PATIENT

__all__ = ["measure"]

_METHOD = (
    "A cube, Cycles with one sample a pixel, two Blenders, one fleet for all ways. *one pass (limit)*: one consumer has "
    "the fleet for itself. *beside a stalled pass*: another pass has filled its queue, and nobody consumes it. *two, "
    "beside a stalled pass*: the sum of two consumers at once."
)


def measure(how: Effort, blender: str | None = None) -> Report:
    """Images/s of one pass, of one beside a stalled pass, and of two beside a stalled pass.

    Small images, where sharing would cost most, and large ones.
    """
    title = f"Passes that share two Blenders, by {blender_name(blender)}"
    metrics = [Metric("images/s", lambda timed: timed.rate, 1)]
    report = Report("passes", title, _METHOD, metrics, "two, beside a stalled pass", own=["beside a stalled pass"])
    for width, height in [(128, 96)] if how.quick else [(128, 96), (640, 480)]:
        case = f"{own_view(blender)}, {width}x{height}"
        how.say(case)
        with _ways(blender, (width, height)) as ways:
            report.add(case, in_turn(ways, how))
    return report


@contextlib.contextmanager
def _ways(blender: str | None, size: tuple[int, int]) -> Iterator[Mapping[str, Way]]:
    stream = ab.BlenderStream(
        script=INSIDE / "cube_stream.py",
        blender=blender,
        instances=2,
        queue_size=8,
        timeouts=PATIENT,
        params={"scene": [*size, CYCLES]},
    )
    with asyncio.Runner(loop_factory=loop_factory()) as runner:

        def way(consumers: int, *, stalled: bool) -> Way:
            return lambda seconds: runner.run(_consume(stream, consumers, stalled, seconds))

        try:
            runner.run(stream.__aenter__())
            yield {
                "two, beside a stalled pass": way(2, stalled=True),
                "beside a stalled pass": way(1, stalled=True),
                "one pass (limit)": way(1, stalled=False),
            }
        finally:
            runner.run(stream.aclose())


async def _consume(stream: ab.BlenderStream, consumers: int, stalled: bool, seconds: float) -> Timed:
    """Consume some passes for so long, beside one that is full if `stalled`."""
    async with contextlib.AsyncExitStack() as stack:
        if stalled:  # first, because a pass with all slots free comes before one whose queue is nearly full
            full = await stack.enter_async_context(stream.frames())
            while full.stats().queued < stream.config.queue_size:
                await asyncio.sleep(0.01)
        frames = [await stack.enter_async_context(stream.frames()) for _ in range(consumers)]
        for _ in range(2 * stream.config.queue_size):  # what was rendered ahead does not count
            for one in frames:
                await anext(one)
        began, cpu = time.perf_counter(), time.process_time()
        counts = await asyncio.gather(*(_count(one, began + seconds) for one in frames))
        return Timed(sum(counts), time.perf_counter() - began, time.process_time() - cpu)


async def _count(frames: ab.Frames, end: float) -> int:
    count = 0
    while time.perf_counter() < end:
        await anext(frames)
        count += 1
    return count
