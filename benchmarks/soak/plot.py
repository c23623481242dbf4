"""The picture: memory over time, and the faults below."""

from __future__ import annotations

from pathlib import Path

from asyncblend.cli.chart import Lines, line_panel, step
from asyncblend.pictures.canvas import DIM, Canvas

from .faults import GARBAGE, KILL, KINDS, SLOW, STOP
from .run import Run

__all__ = ["plot"]

_COLOURS = {KILL: "#d1242f", STOP: "#8250df", GARBAGE: "#bf8700", SLOW: "#0969da"}
_LEFT, _RIGHT = 190, 40


def plot(path: Path, run: Run, title: str) -> None:
    """Memory of host and fleet over time, each from zero up, and the faults below."""
    samples, faults, ledger = run.memory.samples, run.chaos.times, run.ledger
    last = max([sample.at for sample in samples] + [at for at, _ in faults] + [1e-3])
    canvas = Canvas(1200, 640)
    canvas.title(
        title,
        f"{ledger.delivered:,} frames, {ledger.lost} lost, {ledger.duplicates} duplicates, "
        f"{len(faults)} faults, {run.stream.stats().restarts} restarts",
    )
    host = Lines([(sample.at, sample.host) for sample in samples], "#1a7f37")
    fleet = Lines([(sample.at, sample.fleet) for sample in samples], "#57606a")
    for name, lines, top, bottom in (("host", host, 100, 270), ("fleet", fleet, 305, 475)):
        line_panel(canvas, top=top, bottom=bottom, left=_LEFT, last=last, name=name, unit="resident MiB", lines=lines)
    _lanes(canvas, 500, 600, last, faults)
    canvas.save(path)


def _lanes(canvas: Canvas, top: float, bottom: float, last: float, faults: list[tuple[float, str]]) -> None:
    """The faults by kind, and the axis of time."""

    def x(at: float) -> float:
        return _LEFT + at / last * (canvas.width - _LEFT - _RIGHT)

    height = (bottom - top) / len(KINDS)
    for i, kind in enumerate(KINDS):
        middle = top + (i + 0.5) * height
        times = [at for at, own in faults if own == kind]
        canvas.text(40, middle, kind, colour=_COLOURS[kind])
        canvas.text(_LEFT - 10, middle, str(len(times)), colour=DIM, anchor="rm")
        for at in times:
            ends = [(x(at), middle - 0.36 * height), (x(at), middle + 0.36 * height)]
            canvas.line(ends, _COLOURS[kind], 1.5)
    canvas.line([(_LEFT, bottom), (canvas.width - _RIGHT, bottom)], DIM)
    minutes = last > 150
    unit = 60 if minutes else 1
    each = step(last / unit, 8)
    for i in range(int(last / unit / each) + 1):
        at = x(i * each * unit)
        canvas.line([(at, bottom), (at, bottom + 5)], DIM)
        canvas.text(at, bottom + 18, f"{i * each:g}", colour=DIM, anchor="mm")
    canvas.text(_LEFT - 22, bottom + 18, "minutes" if minutes else "seconds", colour=DIM, anchor="rm")
