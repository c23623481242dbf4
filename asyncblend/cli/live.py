"""Shows in the terminal how far a stream is, while it runs and when it has ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..aio import run

if TYPE_CHECKING:
    from ..config import StreamConfig
    from ..stream.frame import Frame
    from ..stream.stats import StreamStats

STDERR = Console(stderr=True)
"""Where the log goes. A spinner on it stays below the log's lines."""
_STYLES = {"ready": "green", "idle": "cyan", "starting": "yellow", "backoff": "yellow", "failed": "red"}


def watch(config: StreamConfig, console: Console, seen: Callable[[Frame], None], *, summary: bool = False) -> None:
    """Run a stream to its end with a `LiveLine`, and call `seen` with each frame.

    The `summary` of what came in all is printed also after an error or Ctrl-C.
    """
    from ..stream.stream import BlenderStream

    async def consume() -> None:
        async with stream:
            async for frame in stream:
                line.frame_came()
                seen(frame)

    stream = BlenderStream(config)
    line = LiveLine(console, config, stream.stats)
    try:
        with line:
            run(consume())
    finally:
        if summary:
            line.summary()


def facts_table(facts: Mapping[str, str]) -> Table:
    """Return a table without lines: labels, and beside each what is to be said about it."""
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    for label, text in facts.items():
        table.add_row(label, text)
    return table


class LiveLine:
    """A context manager with a line in the terminal: how many frames came, how fast, and how full the queue is.

    Args:
        stats: Returns the stream's statistics, or None while there are none. Called from another thread.
    """

    def __init__(self, console: Console, config: StreamConfig, stats: Callable[[], StreamStats | None]) -> None:
        self.frames = 0
        self.first: float | None = None
        """When the first frame came, on the clock of `time.perf_counter`."""
        self._console, self._stats, self._queue_size = console, stats, config.queue_size
        self._began = self._last = time.perf_counter()
        text = TextColumn("{task.fields[line].text}")  # the text is asked for anew whenever the line is drawn
        columns = (SpinnerColumn(), BarColumn(16), MofNCompleteColumn(), text, TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task("", total=config.length, line=self)

    def __enter__(self) -> LiveLine:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def frame_came(self, before: int = 0) -> None:
        """Note that one more frame came. `before` is how many were there before this run."""
        self._last = time.perf_counter()
        self.frames += 1
        if self.first is None:
            self.first = self._last
            self._progress.reset(self._task, completed=before)  # the wait does not count for the time that remains
        self._progress.update(self._task, completed=before + self.frames)

    @property
    def text(self) -> str:
        """How fast frames come, how full the queue is, and how many each instance has delivered."""
        waited = f"waiting for the first frame, {time.perf_counter() - self._began:.0f} s"
        parts = [waited if self.first is None else f"{self._rate():.1f}/s"]
        if (stats := self._stats()) is not None:
            parts.append(f"queue {stats.queued}/{self._queue_size}, {stats.rendering} rendering")
            states = sorted(stats.state.items())
            frames = [f"[{_STYLES.get(state, 'default')}]{stats.frames[number]}[/]" for number, state in states]
            parts.append(f"by instance {' '.join(frames)}")
            if stats.restarts:
                parts.append(f"[yellow]restarts {stats.restarts}[/]")
        return "  ".join(parts)

    def summary(self, **more: str) -> None:
        """Print what came in all, with further rows for `more`, or nothing if no frame came."""
        stats = self._stats()
        if stats is None or self.first is None:
            return
        facts = {"frames": str(stats.delivered), "time to the first frame": f"{self.first - self._began:.1f} s"}
        if self.frames > 1:
            facts["then"] = f"{self._rate():.1f} frames/s over {self._last - self.first:.1f} s"
        facts["frames by instance"] = "  ".join(f"{i}: {n}" for i, n in sorted(stats.frames.items()))
        troubles = {"restarts": "restarts", "stale": "stale frames dropped", "bad_messages": "bad messages dropped"}
        facts |= {name: f"[yellow]{count}" for field, name in troubles.items() if (count := getattr(stats, field))}
        self._console.print(facts_table(facts | more))

    def _rate(self) -> float:
        return (self.frames - 1) / max(self._last - (self.first or 0.0), 1e-9)
