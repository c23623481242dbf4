"""What the measurement of one question found: as a table for people, as Markdown, as JSON and as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from .measuring import Timed

__all__ = ["Metric", "Report", "Row", "times"]


@dataclass(frozen=True)
class Metric:
    """A kind of figure."""

    name: str
    """The name, which has the unit in it."""
    of: Callable[[Timed], float]
    digits: int = 0
    less_is_better: bool = False

    def show(self, value: float) -> str:
        """Return a value as text, with as many digits as this metric has."""
        return f"{value:,.{self.digits}f}"


@dataclass(frozen=True)
class Row:
    """What was measured of one way, in one case."""

    case: str
    way: str
    values: Mapping[str, Sequence[float]]
    """By the metric's name: one value for each round."""

    def median(self, metric: str) -> float:
        """Return the median of the rounds."""
        return statistics.median(self.values[metric])


@dataclass
class Report:
    """The answer to one question."""

    name: str
    """The name of the command, and of the picture's file."""
    title: str
    method: str
    """How it was measured, and what each way is."""
    metrics: Sequence[Metric]
    """The first metric is the one that is compared and drawn."""
    ours: str = ""
    """The way that all others of the same case are compared with. If it is empty, nothing is compared."""
    own: Sequence[str] = ()
    """Other ways that are asyncblend's own."""
    columns: int = 1
    """How many cases stand side by side in the picture."""
    rows: list[Row] = field(default_factory=list)
    draw: Callable[[Path], None] | None = None
    """Draws the picture, where bars would not show what was found."""

    def add(self, case: str, rounds: Mapping[str, Iterable[Timed]]) -> None:
        """Add a case: for each way, what its rounds did."""
        for way, times in rounds.items():
            timed = list(times)
            self.rows.append(Row(case, way, {m.name: [m.of(one) for one in timed] for m in self.metrics}))

    @property
    def cases(self) -> dict[str, list[Row]]:
        """The rows by case, both in the order in which they were added."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.case, []).append(row)
        return found

    def ratio(self, row: Row) -> float | None:
        """Return how many times as good as this way ours is, or None where there is nothing to compare."""
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
        """Return one table for each case, for a terminal."""
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
        """Return the lines of one table with all cases."""
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
        """Return all figures by case, way and metric, as `json.dumps` takes them."""
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
        return [*cells, "" if ratio is None else times(ratio)] if self.ours else cells


def times(ratio: float) -> str:
    """Return a ratio as text, such as "1.25x"."""
    return f"{ratio:.1f}x" if ratio >= 2 else f"{ratio:.2f}x"
