"""`python -m benchmarks memory`: whether resident memory grows over many frames."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Annotated

import typer

import asyncblend as ab
from asyncblend.aio import loop_factory
from asyncblend.testing import fake_blender

from .measuring import Effort
from .options import BlenderOption, JsonOption, OutOption, QuickOption, effort, show
from .peers.arrays import script
from .peers.plain import INSIDE
from .render import CYCLES
from .report import Metric, Report, Row
from .soak.memory import Memory
from .soak.processes import blenders
from .streams import PATIENT, written

__all__ = ["measure", "memory"]

_EARLY, _LATE = "MiB, second quarter", "MiB, last quarter"
_METHOD = (
    "Resident memory of the host and of each of two Blenders while frames stream: the medians of the second and of the "
    "last quarter. Memory that is shared counts for both."
)


def memory(
    real: Annotated[bool, typer.Option(help="Use real Blenders instead of fakes.")] = False,
    blender: BlenderOption = None,
    frames: Annotated[int, typer.Option(help="How many frames to stream.", min=200)] = 5000,
    quick: QuickOption = False,
    json_: JsonOption = None,
    out: OutOption = None,
) -> None:
    """Resident memory of host and Blenders over 5,000 frames of 640x480: flat, or not."""
    if blender is not None and not real:
        raise typer.BadParameter("it goes with --real", param_hint="--blender")
    with effort(quick, None, None, default=(1, 0.0)) as how:
        report = measure(how, frames=frames, real=real, blender=blender)
    show(report, out, json_)


def measure(how: Effort, *, frames: int = 5000, real: bool = False, blender: str | None = None) -> Report:
    """Stream frames from fakes or from real Blenders, and look at the memory of all processes meanwhile."""
    frames = 400 if how.quick else frames
    what = "Blenders" if real else "fakes"
    # The rows below are made from sizes, so that no way runs in turns, and these functions are never called.
    metrics = [Metric(_EARLY, lambda timed: 0.0), Metric(_LATE, lambda timed: 0.0)]
    title = f"Memory: {frames:,} frames of 640x480 from two {what}"
    report = Report("memory-real" if real else "memory", title, _METHOD, metrics)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        if real:
            config = ab.StreamConfig(
                script=INSIDE / "cube_stream.py",
                blender=blender,
                instances=2,
                params={"scene": [640, 480, CYCLES]},
                timeouts=PATIENT,
            )
        else:
            config = ab.StreamConfig(
                script=written(folder, "images.py", script({"image": ("uint8", (480, 640, 3))})),
                blender=fake_blender(folder / "fake"),
                instances=2,
                timeouts=PATIENT,
            )
        how.say(title)
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            seen = runner.run(_watch(config, frames))
    for whose, trend in seen.trends().items():
        report.rows.append(
            Row(f"{what}, {'flat' if trend.flat else 'NOT FLAT'}", whose, {_EARLY: [trend.early], _LATE: [trend.late]})
        )
    report.draw = lambda path: _draw(path, report.title, seen)
    return report


async def _watch(config: ab.StreamConfig, frames: int) -> Memory:
    seen = Memory()
    each = max(1, frames // 200)
    async with ab.BlenderStream(config) as stream:
        number = 0
        async for _ in stream:
            if number % each == 0:
                seen.take(number, [process for _, process in blenders()])
            number += 1
            if number == frames:
                break
    return seen


def _draw(path: Path, title: str, seen: Memory) -> None:
    from .charts import OURS, draw_curve, name_axis, new_figure, save  # imports matplotlib, which takes memory too

    below = ", ".join(
        f"{whose} {'flat' if trend.flat else 'NOT FLAT'} ({trend.early:.0f} to {trend.late:.0f} MiB)"
        for whose, trend in seen.trends().items()
    )
    figure = new_figure(9, 5.2, title, below)
    host, blender = figure.subplots(2, 1, sharex=True)
    draw_curve(host, "Host: resident MiB", [(sample.at, sample.host) for sample in seen.samples], OURS)
    largest = [(sample.at, sample.largest) for sample in seen.samples]
    draw_curve(blender, "One Blender: resident MiB", largest, "#57606a")
    name_axis(blender, max(1.0, seen.samples[-1].at), "frames")
    save(figure, path)
