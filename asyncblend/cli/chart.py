"""Charts: bars and lines, drawn with Pillow. For `asyncblend bench`, and for all benchmarks of a checkout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..pictures.canvas import DIM, GRID, INK, Canvas, text_width

__all__ = [
    "OTHERS",
    "OURS",
    "OURS_TOO",
    "Bar",
    "Lines",
    "Panel",
    "bar_chart",
    "line_panel",
    "step",
]

OURS, OURS_TOO = "#1a7f37", "#7fc98f"
OTHERS = ("#d1242f", "#0969da", "#8250df", "#bf8700")

_MARGIN, _GAP, _BAR, _HEADING = 40, 30, 26, 34


class Bar(NamedTuple):
    """One bar of a panel."""

    label: str
    value: float
    low: float
    """The bar's whisker goes from here..."""
    high: float
    """...to here."""
    text: str
    """What stands beside it: the value with its unit."""
    colour: str


class Panel(NamedTuple):
    """Bars that are compared with each other: from zero up, on one scale."""

    title: str
    bars: Sequence[Bar]


def bar_chart(path: Path, title: str, below: str, panels: Sequence[Panel], *, columns: int = 1) -> None:
    """Panels of horizontal bars, in rows of `columns`. Each panel has a scale of its own.

    Labels stand on the left of a row only, so the panels of a row must have the same ones.
    """
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    wide = max(text_width(bar.label, 15) for panel in panels for bar in panel.bars) + 14
    beside = max(text_width(bar.text, 14) for panel in panels for bar in panel.bars) + 10
    each = max(430 if columns > 1 else 800, beside + 220)
    width = max(
        _MARGIN + wide + columns * (each + _GAP),
        2 * _MARGIN + text_width(title, 24),
        2 * _MARGIN + text_width(below, 16),
    )
    heights = [_HEADING + _BAR * max(len(panel.bars) for panel in row) + 18 for row in rows]
    canvas = Canvas(math.ceil(width), 95 + sum(heights) + 10)
    canvas.title(title, below)
    top = 95.0
    for row, height in zip(rows, heights, strict=True):
        for i, bar in enumerate(row[0].bars):
            canvas.text(_MARGIN + wide - 10, top + _HEADING + (i + 0.5) * _BAR, bar.label, anchor="rm")
        for i, panel in enumerate(row):
            _bars(canvas, _MARGIN + wide + i * (each + _GAP), top, each - beside, panel)
        top += height
    canvas.save(path)


def _bars(canvas: Canvas, left: float, top: float, long: float, panel: Panel) -> None:
    highest = max([bar.high for bar in panel.bars] + [bar.value for bar in panel.bars]) or 1.0
    canvas.text(left, top + 14, panel.title, size=16)
    canvas.line([(left, top + _HEADING - 2), (left, top + _HEADING + len(panel.bars) * _BAR)], DIM)
    for i, bar in enumerate(panel.bars):
        middle = top + _HEADING + (i + 0.5) * _BAR
        canvas.box(left, middle - 9, left + bar.value / highest * long, middle + 9, bar.colour)
        low, high = (left + end / highest * long for end in (bar.low, bar.high))
        if high - low > 2:
            canvas.line([(low, middle), (high, middle)], INK, 1.5)
            for end in (low, high):
                canvas.line([(end, middle - 4), (end, middle + 4)], INK, 1.5)
        canvas.text(max(high, left + bar.value / highest * long) + 8, middle, bar.text, size=14)


class Lines(NamedTuple):
    """One curve of a panel."""

    points: Sequence[tuple[float, float]]
    colour: str


def line_panel(
    canvas: Canvas,
    *,
    top: float,
    bottom: float,
    left: float,
    last: float,
    name: str,
    unit: str,
    lines: Lines,
    right: float = _MARGIN,
) -> None:
    """A curve over time, from zero up; `last`: the time at the right edge, which is `right` from the picture's."""
    end = canvas.width - right
    highest = max([value for _, value in lines.points] + [1.0])
    each = step(highest, 4)
    high = each * (int(highest / each) + 1)

    def y(value: float) -> float:
        return bottom - value / high * (bottom - top)

    for i in range(round(high / each) + 1):
        canvas.line([(left, y(i * each)), (end, y(i * each))], DIM if i == 0 else GRID)
        canvas.text(left - 10, y(i * each), f"{i * each:,.0f}", colour=DIM, anchor="rm")
    canvas.text(_MARGIN, top + 10, name, size=19, colour=lines.colour)
    canvas.text(_MARGIN, top + 34, unit, colour=DIM)
    if len(lines.points) > 1:
        points = [(left + at / last * (end - left), y(value)) for at, value in lines.points]
        canvas.line(points, lines.colour, 2)


def step(high: float, most: int) -> float:
    """A round number that fits into `high` at most so many times."""
    power = 10.0 ** math.floor(math.log10(high / most))
    return next(n * power for n in (1, 2, 5, 10) if n * power * most >= high)
