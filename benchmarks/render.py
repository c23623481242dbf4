"""`python -m benchmarks render`: images that Blenders really render."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncblend as ab
from asyncblend.aio import loop_factory

from .machine import blender_name, own_view
from .measuring import Effort, Timed, Way, in_turn, timed_async
from .peers.bare import bare
from .peers.origin import origin
from .peers.plain import INSIDE, Scene
from .report import Metric, Report
from .streams import PATIENT

__all__ = ["CYCLES", "NAMES", "WORKBENCH", "engines", "measure", "rendered"]

CYCLES, WORKBENCH = "CYCLES", "BLENDER_WORKBENCH"
_STANDARD = "Standard"
NAMES = {CYCLES: "Cycles, 1 sample", WORKBENCH: "Workbench"}
_METHOD = (
    "A cube of random rotation and colour, with the pixel coordinates of its corners, with Blender's own view transform "
    "(AgX, or Filmic before Blender 4.0) and with Standard. *asyncblend*: `async for`. "
    "*PNG, pickle, PUB/SUB*: what blendtorch's first version did: each Blender renders into a file, reads it, pickles "
    "and publishes it. *bare render*: as many processes that call `bpy.ops.render.render(write_still=False)` in a loop, "
    "and send nothing."
)


def measure(how: Effort, blender: str | None = None, *, small: bool = False) -> Report:
    """Count images per second of a cube from 1, 2 and 4 Blenders, beside blendtorch's method: a file, pickle, PUB/SUB.

    The limit is as many Blenders that render and send nothing. Workbench is measured only where Blender can render with
    it without a display.
    """
    # `small` is 640x480 with Cycles only.
    sizes = [(128, 96)] if how.quick else [(640, 480)] if small else [(640, 480), (128, 96)]
    kinds = [CYCLES] if how.quick or small else engines(blender)
    scenes: list[Scene] = [(*size, engine) for engine in kinds for size in sizes]
    if not how.quick:
        scenes.insert(len(sizes), (*sizes[0], CYCLES, _STANDARD))
    own = own_view(blender)
    metrics = [Metric("images/s", lambda timed: timed.rate, 1), Metric("ms/image", lambda timed: 1000 / timed.rate, 1)]
    report = Report("render", f"Render: a cube, by {blender_name(blender)}", _METHOD, metrics, "asyncblend", columns=3)
    counts = (1,) if how.quick else (1, 2, 4)
    found: dict[tuple[Scene, int], dict[str, list[Timed]]] = {}
    for instances in counts:
        now: list[Scene] = [(*sizes[0], CYCLES)]
        how.say(f"{instances} Blenders of each kind start")
        with _ways(blender, instances, lambda now=now: now[0]) as ways:  # type: ignore[misc]
            for scene in scenes:
                now[0] = scene
                how.say(_case(scene, own, instances))
                found[scene, instances] = in_turn(ways, how)
    for scene in scenes:
        for instances in counts:
            report.add(_case(scene, own, instances), found[scene, instances])
    return report


def _case(scene: Scene, own: str, instances: int) -> str:
    width, height, engine, view = (*scene, own)[:4]
    return f"{NAMES[engine]}, {view}, {width}x{height}, {instances} instance{'s' * (instances > 1)}"


@contextlib.contextmanager
def _ways(blender: str | None, instances: int, scene: Callable[[], Scene]) -> Iterator[dict[str, Way]]:
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder, contextlib.ExitStack() as stack:
        # This way is the first, because it installs what Blender's Python lacks.
        ours = stack.enter_context(rendered(blender, instances, scene))
        yield {
            "asyncblend": ours,
            "PNG, pickle, PUB/SUB": stack.enter_context(origin(blender, instances, Path(folder), scene)),
            "bare render (limit)": stack.enter_context(bare(blender, instances, Path(folder), scene)),
        }


@contextlib.contextmanager
def rendered(blender: str | None, instances: int, scene: Callable[[], Scene], **options: Any) -> Iterator[Way]:
    """Open a stream, and give a way that takes its frames. `scene` returns what to render now.

    `options` are other options of the stream.
    """
    stream = ab.BlenderStream(
        script=INSIDE / "cube_stream.py",
        blender=blender,
        instances=instances,
        queue_size=max(4, 2 * instances),
        params=lambda index: {"scene": list(scene())},
        timeouts=PATIENT,
        **options,
    )

    frames = aiter(stream)

    async def way(seconds: float) -> Timed:
        # The first frames are of the case before, or were rendered while another way had its turn.
        remaining = stream.config.queue_size + 2 * instances
        while remaining:
            frame = await anext(frames)
            remaining -= frame.params["scene"] == list(scene())
        done = await timed_async(frames.__anext__, seconds)
        while stream.stats().rendering:  # the next way's turn begins when the Blenders are idle
            await asyncio.sleep(0.002)
        return done

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        try:
            runner.run(stream.__aenter__())
            yield lambda seconds: runner.run(way(seconds))
        finally:
            runner.run(stream.aclose())


def engines(blender: str | None) -> list[str]:
    """Return the engines that this Blender can render with here: Workbench needs a display, or EGL."""
    stream = rendered(blender, 1, lambda: (64, 48, WORKBENCH))
    try:
        with stream as way:
            way(0.01)
    except ab.AsyncblendError:
        return [CYCLES]
    return [CYCLES, WORKBENCH]
