"""Pictures of what was measured, with matplotlib: bars for a report, and panels over time.

Figures are made without pyplot, so that neither a display nor matplotlib's global settings are touched.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from .report import Report, Row, times

__all__ = ["OURS", "draw_curve", "draw_report", "name_axis", "new_figure", "save", "strip"]

INK, DIM, OTHER = "#1f2328", "#656d76", "#b1b7be"
# The palette of Okabe and Ito, which people with any kind of colour blindness can tell apart.
OURS, OURS_TOO = "#0072b2", "#56b4e9"
OTHERS = ("#d55e00", "#e69f00", "#cc79a7", "#f0e442")


def draw_report(path: Path, report: Report) -> None:
    """Write a PNG file with a panel for each case, and in it a bar of the first metric for each way.

    A report with a `draw` of its own draws that instead.
    """
    if report.draw is not None:
        report.draw(path)
        return
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


class Bar(NamedTuple):
    """One bar of a chart."""

    label: str
    value: float
    low: float
    """Where the bar's whisker begins."""
    high: float
    """Where the bar's whisker ends."""
    text: str
    """What stands beside the bar, such as its value."""
    colour: str


def bar_chart(
    path: Path, title: str, below: str, unit: str, panels: Mapping[str, Sequence[Bar]], *, columns: int = 1
) -> None:
    """Write horizontal bars as a PNG file, in one panel for each title in `panels`.

    Args:
        below: A sentence under the title.
        unit: What the bars measure.
        panels: Every panel has a scale of its own, from zero up. Labels stand on the left of a row only, so the
            panels of a row must have the same ones.
        columns: How many panels stand side by side.
    """
    rows = -(-len(panels) // columns)
    bars = max(len(one) for one in panels.values())
    width = 9.0 if columns == 1 else 1.6 + 4.5 * columns
    figure = new_figure(width, 1.3 + rows * (0.55 + 0.32 * bars), title, below)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, (name, own) in zip(grid.flat, panels.items(), strict=False):
        _draw_bars(axes, name, own, room=1.3 if columns == 1 else 1.75)
    for axes in grid[:, 1:].flat:
        axes.set_yticks([])
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    figure.supxlabel(unit, fontsize=10.5, color=DIM)
    save(figure, path)


def _draw_bars(axes: Axes, name: str, bars: Sequence[Bar], room: float) -> None:
    strip(axes, "left")
    places = range(len(bars))
    axes.barh(places, [bar.value for bar in bars], 0.72, color=[bar.colour for bar in bars])
    highest = max(max(bar.high, bar.value) for bar in bars) or 1.0
    for place, bar in zip(places, bars, strict=True):
        if bar.high - bar.low > highest / 200:  # a shorter whisker would be a blot
            axes.errorbar(
                bar.value, place, xerr=[[bar.value - bar.low], [bar.high - bar.value]], color=INK, lw=1, capsize=2.5
            )
        beside = (max(bar.high, bar.value), place)
        axes.annotate(bar.text, beside, (7, 0), textcoords="offset points", va="center", fontsize=10, color=INK)
    axes.set_title(name, loc="left", fontsize=10, fontweight="bold", color=INK)
    axes.set_yticks(places, [bar.label for bar in bars], fontsize=10.5, color=INK)
    axes.set_xticks([])  # the values stand beside the bars
    axes.set_xlim(0, room * highest)  # beyond the longest bar, its text has its place
    axes.set_ylim(len(bars) - 0.5, -0.5)


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


def new_figure(width: float, height: float, title: str, below: str) -> Figure:
    """Return a white figure of a size in inches, with a title and a sentence under it."""
    figure = Figure(figsize=(width, height), dpi=130, facecolor="white", layout="constrained")
    inch = 1 / height
    figure.text(0.02, 1 - 0.28 * inch, title, fontsize=15, fontweight="bold", color=INK, va="center")
    figure.text(0.02, 1 - 0.6 * inch, below, fontsize=10.5, color=DIM, va="center")
    figure.get_layout_engine().set(rect=(0.01, 0.01, 0.98, 0.99 - 0.85 * inch), h_pad=0.08, w_pad=0.08)  # type: ignore[union-attr,call-arg]
    return figure


def strip(axes: Axes, *kept: str) -> None:
    """Remove the frame of a panel except for the sides that are named, and its ticks' marks."""
    for side, spine in axes.spines.items():
        spine.set_visible(side in kept)
        spine.set_color(DIM)
    axes.tick_params(length=0, labelcolor=INK, labelsize=10)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file."""
    figure.savefig(path, format="png")
