"""Report: what a question's measurement found; as a table for people, as Markdown, as JSON, as a picture."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from asyncblend.cli.chart import OTHERS, OURS, OURS_TOO, Bar, Panel, bar_chart
from asyncblend.pictures.canvas import DIM

from .measuring import Timed

__all__ = ["Metric", "Report", "Row"]


@dataclass(frozen=True)
class Metric:
    """One kind of figure."""

    name: str
    """With its unit."""
    of: Callable[[Timed], float]
    digits: int = 0
    less_is_better: bool = False

    def show(self, value: float) -> str:
        """With its digits."""
        return f"{value:,.{self.digits}f}"


@dataclass(frozen=True)
class Row:
    """One way, in one case."""

    case: str
    way: str
    values: Mapping[str, Sequence[float]]
    """By metric: one value a round."""

    def median(self, metric: str) -> float:
        """Of the rounds."""
        return statistics.median(self.values[metric])


@dataclass
class Report:
    """The answer to one question."""

    name: str
    """The command's."""
    title: str
    method: str
    """How it was measured, and what the ways are."""
    metrics: Sequence[Metric]
    """The first one is compared, and drawn."""
    ours: str = ""
    """The way that all others are compared with, within their case; none if empty."""
    own: Sequence[str] = ()
    """Other ways of asyncblend's."""
    columns: int = 1
    """Cases side by side in the picture."""
    rows: list[Row] = field(default_factory=list)
    draw: Callable[[Path], None] | None = None
    """Draws another picture than bars."""

    def add(self, case: str, rounds: Mapping[str, Iterable[Timed]]) -> None:
        """Take in a case, by way."""
        for way, times in rounds.items():
            timed = list(times)
            self.rows.append(Row(case, way, {m.name: [m.of(one) for one in timed] for m in self.metrics}))

    @property
    def cases(self) -> dict[str, list[Row]]:
        """The rows by case, in their order."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.case, []).append(row)
        return found

    def ratio(self, row: Row) -> float | None:
        """How many times as good as this way ours is. None where there is nothing to compare."""
        main = self.metrics[0]
        ours = next((one for one in self.cases[row.case] if one.way == self.ours), None)
        if ours is None or ours is row:
            return None
        a, b = ours.median(main.name), row.median(main.name)
        if main.less_is_better:
            a, b = b, a
        return a / b if b else None

    # -- shown --------------------------------------------------------------------------------------------------

    def tables(self) -> list[Table]:
        """For a terminal: one a case."""
        tables = []
        for case, rows in self.cases.items():
            table = Table(title=case, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
            for i, heading in enumerate(self._headings()[1:]):
                table.add_column(heading, justify="right" if i else "left", no_wrap=True)
            for row in rows:
                table.add_row(*self._cells(row)[1:], style="green" if row.way == self.ours else "")
            tables.append(table)
        return tables

    def markdown(self) -> list[str]:
        """Lines of a table."""
        headings = self._headings()
        lines = [f"| {' | '.join(headings)} |", f"|---|---|{'--:|' * (len(headings) - 2)}"]
        for rows in self.cases.values():
            for i, row in enumerate(rows):
                cells = self._cells(row)
                if i:
                    cells[0] = ""
                if row.way == self.ours:
                    cells = [cell and f"**{cell}**" for cell in cells]
                lines.append(f"| {' | '.join(cells)} |")
        return lines

    def json(self) -> dict[str, Any]:
        """All figures: by case, way and metric."""
        cases: dict[str, Any] = {}
        for case, rows in self.cases.items():
            for row in rows:
                figures: dict[str, Any] = {
                    name: {
                        "median": statistics.median(values),
                        "low": min(values),
                        "high": max(values),
                        "rounds": list(values),
                    }
                    for name, values in row.values.items()
                }
                if (ratio := self.ratio(row)) is not None:
                    figures["ours_is_times"] = ratio
                cases.setdefault(case, {})[row.way] = figures
        return {"name": self.name, "title": self.title, "method": self.method, "cases": cases}

    def picture(self, path: Path) -> None:
        """Write the picture: bars of the first metric, unless `draw` draws another."""
        if self.draw is not None:
            self.draw(path)
            return
        ways = list(dict.fromkeys(row.way for row in self.rows))
        colours = self._colours(ways)
        panels = [Panel(case, [self._bar(row, colours[row.way]) for row in rows]) for case, rows in self.cases.items()]
        better = "less is better" if self.metrics[0].less_is_better else "more is better"
        compared = f"; 2x: {self.ours} is twice as good" if self.ours else ""
        bar_chart(path, self.title, f"{self.metrics[0].name}, {better}{compared}", panels, columns=self.columns)

    def _colours(self, ways: Sequence[str]) -> dict[str, str]:
        """Ours are green, limits are grey."""
        left = itertools.cycle(OTHERS)
        return {
            way: OURS
            if way == self.ours
            else OURS_TOO
            if way in self.own
            else DIM
            if way.endswith("(limit)")
            else next(left)
            for way in ways
        }

    def _bar(self, row: Row, colour: str) -> Bar:
        main, ratio = self.metrics[0], self.ratio(row)
        values, beside = row.values[main.name], "" if ratio is None else f"   {_times(ratio)}"
        median = row.median(main.name)
        return Bar(row.way, median, min(values), max(values), f"{main.show(median)}{beside}", colour)

    def _headings(self) -> list[str]:
        main, *others = self.metrics
        headings = ["", "", main.name, "spread", *(metric.name for metric in others)]
        return [*headings, f"{self.ours} is"] if self.ours else headings

    def _cells(self, row: Row) -> list[str]:
        main, *others = self.metrics
        values, ratio = row.values[main.name], self.ratio(row)
        cells = [row.case, row.way, main.show(row.median(main.name))]
        cells.append(f"{main.show(min(values))} to {main.show(max(values))}" if len(values) > 1 else "")
        cells += [metric.show(row.median(metric.name)) for metric in others]
        return [*cells, "" if ratio is None else _times(ratio)] if self.ours else cells


def _times(ratio: float) -> str:
    return f"{ratio:.1f}x" if ratio >= 2 else f"{ratio:.2f}x"
