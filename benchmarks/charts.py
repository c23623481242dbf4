"""Pictures of what was measured: bars for a report, and panels over time. They need matplotlib."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from asyncblend.cli.charts import DIM, INK, OTHER, OTHERS, OURS, OURS_TOO, Bar, bar_chart, strip

from .report import Report, Row, times

__all__ = ["draw_curve", "draw_report", "name_axis"]


def draw_report(path: Path, report: Report) -> None:
    """Write a PNG file with a panel for each case, and in it a bar of the first metric for each way."""
    main, colours = report.metrics[0], _colours(report)

    def bar(row: Row) -> Bar:
        values, median, ratio = row.values[main.name], row.median(main.name), report.ratio(row)
        text = main.show(median) + ("" if ratio is None else f"   {times(ratio)}")
        return Bar(row.way, median, min(values), max(values), text, colours[row.way])

    below = "Medians of the rounds, and the lowest and highest."
    if report.ours:
        below += f' 2x means that "{report.ours}" is twice as good.'
    unit = f"{main.name} ({'less' if main.less_is_better else 'more'} is better)"
    panels = {case: [bar(row) for row in rows] for case, rows in report.cases.items()}
    bar_chart(path, report.title, below, unit, panels, columns=report.columns)


def _colours(report: Report) -> dict[str, str]:
    """Return a colour for each way: blues for ours, grey for limits, and one for each of the others."""
    others = itertools.cycle(OTHERS)
    colours = {}
    for way in dict.fromkeys(row.way for row in report.rows):
        if way == report.ours:
            colours[way] = OURS
        elif way in report.own:
            colours[way] = OURS_TOO
        else:
            colours[way] = OTHER if way.endswith("(limit)") else next(others)
    return colours


def draw_curve(axes: Axes, name: str, points: Sequence[tuple[float, float]], colour: str) -> None:
    """Draw a curve from zero up, with a few faint lines across for reading values off.

    Args:
        name: What the curve shows, with its unit.
        points: The position on the horizontal axis, and the value, of each point.
    """
    strip(axes, "bottom")
    axes.plot([x for x, _ in points], [y for _, y in points], color=colour, lw=1.8)
    axes.set_ylim(0, 1.15 * max([1.0, *(y for _, y in points)]))
    axes.set_title(name, loc="left", fontsize=11, fontweight="bold", color=colour)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(axis="y", color="#e4e7eb", lw=0.8)
    axes.set_axisbelow(True)


def name_axis(axes: Axes, last: float, name: str) -> None:
    """Give a panel, and those that share its horizontal axis, the range from 0 to `last` and the axis's name."""
    axes.set_xlim(0, last)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.5g}"))
    axes.tick_params(axis="x", length=3, color=DIM, labelcolor=INK)
    axes.set_xlabel(name, fontsize=10.5, color=DIM)
