"""Shows in the terminal what a stream is doing, while it runs and when it has ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from ..aio import loop_factory

if TYPE_CHECKING:
    from ..config import StreamConfig
    from ..stream.frame import Frame
    from ..stream.stats import StreamStats

__all__ = ["LiveLine", "facts_table", "watch"]

_BAR_WIDTH = 12  # characters
_STYLES = {
    "ready": "green",
    "idle": "cyan",
    "starting": "yellow",
    "backoff": "yellow",
    "stopping": "yellow",
    "failed": "red",
}


def watch(config: StreamConfig, console: Console, seen: Callable[[Frame], None], *, summary: bool = False) -> None:
    """Run a stream to its end with a `LiveLine`, and call `seen` with each frame.

    Args:
        summary: Whether to print what came in all, also after an error or Ctrl-C.

    Raises:
        AsyncblendError: As `BlenderStream` raises it.
    """
    from ..stream.stream import BlenderStream

    async def run() -> None:
        async with stream:
            async for frame in stream:
                line.frame_came()
                seen(frame)

    stream = BlenderStream(config)
    line = LiveLine(console, stream.stats, config.queue_size, config.length)
    try:
        with line, asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(run())
    finally:
        if summary:
            line.summary()


def facts_table() -> Table:
    """Return an empty table of two columns, without lines: labels, and what is to be said about each."""
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column()
    return table


class LiveLine:
    """A context manager with a line in the terminal: frames per second, how full the queue is, frames by instance.

    Args:
        stats: Returns the stream's statistics, or None while there are none. Called from another thread.
        queue_size: The stream's `queue_size`.
        total: How many frames will come; None if the stream is endless.
    """

    def __init__(
        self, console: Console, stats: Callable[[], StreamStats | None], queue_size: int, total: int | None
    ) -> None:
        self._console, self._stats, self._queue_size, self._total = console, stats, queue_size, total
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
        """Note that the consumer has received one more frame."""
        self._last = time.perf_counter()
        if self._first is None:
            self._first = self._last

    def summary(self, **more: str) -> None:
        """Print what came in all. `more` adds rows to the table.

        Prints nothing if no frame came: then an error says why, or nobody waited for one.
        """
        stats = self._stats()
        if stats is None or self._first is None:
            return
        seconds = self._last - self._first
        table = facts_table()
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
        queued = round(_BAR_WIDTH * stats.queued / self._queue_size)
        rendering = round(_BAR_WIDTH * (stats.queued + stats.rendering) / self._queue_size) - queued
        line.append("  queue ")
        line.append("━" * queued, style="green")
        line.append("━" * rendering, style="yellow")
        line.append("━" * (_BAR_WIDTH - queued - rendering), style="bright_black")
        line.append(f" {stats.queued}/{self._queue_size}")
        line.append("  by instance")
        for number, state in sorted(stats.state.items()):
            line.append(f" {stats.frames[number]}", style=_STYLES.get(state, ""))
        if stats.restarts:
            line.append(f"  restarts {stats.restarts}", style="yellow")
        row = Table.grid(padding=(0, 1))
        row.add_column()
        row.add_column(no_wrap=True)  # a narrow terminal cuts the end off, and the line stays one line
        row.add_row(self._spinner, line)
        return row
