"""Draws a run: memory over time, and the faults below."""

from __future__ import annotations

from pathlib import Path

from ..charts import OURS, draw_curve, name_axis, new_figure, save, strip
from .faults import CLOSE, FEW, GARBAGE, GARBLE, HANG, HOST, KILL, KINDS, PAUSE, REDIRECT, SLOW, STOP
from .run import Run

__all__ = ["plot"]

_COLOURS = {
    **dict.fromkeys((KILL, STOP, HANG, CLOSE, GARBLE), "#d55e00"),  # they end the life of a Blender
    **dict.fromkeys((PAUSE, REDIRECT), "#cc79a7"),  # a Blender goes on
    **dict.fromkeys((GARBAGE, SLOW), "#56b4e9"),  # they meet the host
    **dict.fromkeys((HOST, FEW), "#009e73"),  # they meet other hosts
}


def plot(path: Path, run: Run, title: str) -> None:
    """Write a PNG file with the memory of host and fleet over time, each from zero up, and the faults below."""
    samples, faults, total = run.memory.samples, run.chaos.times, run.total
    last = max([sample.at for sample in samples] + [at for at, _ in faults] + [1e-3])
    unit, seconds = ("minutes", 60.0) if last > 150 else ("seconds", 1.0)
    below = (
        f"{total.frames:,} frames, {total.lost} lost, {total.duplicates} duplicates, "
        f"{len(faults)} faults, {run.stream.stats().restarts} restarts"
    )
    figure = new_figure(11, 8.6, title, below)
    host, fleet, lanes = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 4])
    draw_curve(host, "Host: resident MiB", [(sample.at / seconds, sample.host) for sample in samples], OURS)
    draw_curve(fleet, "All Blenders: resident MiB", [(s.at / seconds, s.fleet) for s in samples], "#57606a")
    strip(lanes, "bottom")
    times = [[at / seconds for at, own in faults if own == kind] for kind in KINDS]
    colours = [_COLOURS[kind] for kind in KINDS]
    lanes.eventplot(times, lineoffsets=range(len(KINDS)), linelengths=0.72, linewidths=1.6, colors=colours)
    labels = [f"{kind}  {len(own)}" for kind, own in zip(KINDS, times, strict=True)]
    lanes.set_yticks(range(len(KINDS)), labels)
    lanes.set_ylim(len(KINDS) - 0.4, -0.6)
    lanes.set_title("Faults", loc="left", fontsize=11, fontweight="bold")
    name_axis(lanes, last / seconds, unit)
    save(figure, path)
