"""Shows in the terminal how far a run is."""

from __future__ import annotations

from rich.console import Console, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from .run import Run

__all__ = ["live"]


def live(run: Run, console: Console) -> Live:
    """Return a context manager for the time of the run. It leaves nothing on the screen."""
    spinner = Spinner("dots")

    def lines() -> RenderableType:
        grid = Table.grid(padding=(0, 1))
        grid.add_column()
        grid.add_column(no_wrap=True)  # a narrow terminal cuts the end off, and the line stays one line
        if run.began is None:
            grid.add_row(spinner, "waiting for the first Blender")
            return grid
        grid.add_row(spinner, _frames(run))
        if run.with_chaos:
            grid.add_row("", _faults(run))
        return grid

    return Live(console=console, get_renderable=lines, refresh_per_second=8, transient=True)


def _frames(run: Run) -> Text:
    total, passed = run.total, run.passed
    minutes, seconds = divmod(max(0, round(run.seconds - passed)), 60)
    line = Text()
    line.append(f"{minutes}:{seconds:02} left", style="bold")
    line.append(f"  {total.frames:,} frames  {total.frames / max(passed, 1e-9):,.0f}/s")
    for name, count in (("lost", total.lost), ("duplicates", total.duplicates), ("wrong", total.wrong)):
        line.append(f"  {name} {count}", style="bold red" if count else "green")
    return line


def _faults(run: Run) -> Text:
    times = run.chaos.times
    line = Text(f"{len(times)} faults", style="yellow")
    if times:
        line.append(f", the last one: {times[-1][1]}")
    line.append(f"  recovering {run.recoveries.open}")
    return line
