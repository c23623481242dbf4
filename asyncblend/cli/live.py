"""LiveLine: what a stream is doing, in the terminal, while it runs and when it has ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from ..stream.stats import StreamStats

__all__ = ["LiveLine"]

_BAR = 12  # characters
_STYLES = {
    "ready": "green",
    "idle": "cyan",
    "starting": "yellow",
    "backoff": "yellow",
    "stopping": "yellow",
    "failed": "red",
}


class LiveLine:
    """A line that is drawn anew several times a second: frames per second, frames by instance, queue fill.

    Args:
        stats: gives the stream's statistics, from any thread; None while there are none.
        places: the stream's `queue_size`.
        total: frames that will come, None for endless.
    """

    def __init__(
        self, console: Console, stats: Callable[[], StreamStats | None], places: int, total: int | None
    ) -> None:
        self._console, self._stats, self._places, self._total = console, stats, places, total
        self._spinner = Spinner("dots")
        self._began = time.perf_counter()
        self._first: float | None = None
        self._last = self._began
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=8, transient=True)

    def __enter__(self) -> LiveLine:
        self._began = time.perf_counter()
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def frame_came(self) -> None:
        """Note that the consumer has one more frame."""
        self._last = time.perf_counter()
        if self._first is None:
            self._first = self._last

    def summary(self, **more: str) -> None:
        """Print what it was, in all. `more`: further rows."""
        stats = self._stats()
        if stats is None or self._first is None:
            return  # no frame came: an error tells why, or nobody waited for one
        seconds = self._last - self._first
        table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(style="dim")
        table.add_column()
        table.add_row("frames", str(stats.delivered))
        table.add_row("time to the first frame", f"{self._first - self._began:.1f} s")
        if seconds > 0:
            rate = (stats.delivered - 1) / seconds
            table.add_row("then", f"{rate:.1f} frames/s over {seconds:.1f} s")
        table.add_row("frames by instance", "  ".join(f"{i}: {n}" for i, n in sorted(stats.frames.items())))
        for name, count in (
            ("restarts", stats.restarts),
            ("stale frames dropped", stats.stale),
            ("bad messages dropped", stats.bad_messages),
        ):
            if count:
                table.add_row(name, str(count), style="yellow")
        for name, text in more.items():
            table.add_row(name, text)
        self._console.print(table)

    def _render(self) -> RenderableType:
        stats = self._stats()
        if stats is None:
            return Text("")
        now = time.perf_counter()
        line = Text()
        if self._first is None:
            line.append(f"waiting for the first frame, {now - self._began:.0f} s")
        else:
            rate = max(stats.delivered - 1, 0) / max(now - self._first, 1e-9)
            total = "" if self._total is None else f"/{self._total}"
            line.append(f"{stats.delivered}{total} frames", style="bold")
            line.append(f"  {rate:.1f}/s")
        queued = round(_BAR * stats.queued / self._places)
        rendering = round(_BAR * (stats.queued + stats.rendering) / self._places) - queued
        line.append("  queue ")
        line.append("━" * queued, style="green")
        line.append("━" * rendering, style="yellow")
        line.append("━" * (_BAR - queued - rendering), style="bright_black")
        line.append(f" {stats.queued}/{self._places}")
        line.append("  by instance")
        for number, state in sorted(stats.state.items()):
            line.append(f" {stats.frames[number]}", style=_STYLES.get(state, ""))
        if stats.restarts:
            line.append(f"  restarts {stats.restarts}", style="yellow")
        row = Table.grid(padding=(0, 1))
        row.add_column()
        row.add_column(no_wrap=True)  # a narrow terminal cuts the end off
        row.add_row(self._spinner, line)
        return row
