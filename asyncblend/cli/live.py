"""Shows how far a command is, while it runs and when it has ended: a live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from ..aio import run
from .terminal import STDERR, Fitting, Terminal, styled

if TYPE_CHECKING:
    from ..config import StreamConfig
    from ..stream.frame import Frame
    from ..stream.stats import StreamStats
    from ..warm.told import FleetStatus

_EVERY = 10.0  # seconds between two plain lines
_LATE = 10.0  # seconds without a frame, after which it is said what is being waited for
MEASURABLE = 0.1
"""Seconds that are long enough to say how many frames came in one."""

_STYLES = {"ready": "green", "idle": "cyan", "starting": "yellow", "backoff": "yellow", "failed": "red"}
_DOING = {
    "new": "not started yet",
    "starting": "starting",
    "ready": "rendering",
    "idle": "waiting for work",
    "backoff": "down after a crash",
    "stopping": "stopping",
    "stopped": "stopped",
    "failed": "given up",
}
"""What an instance does in each state of `StreamStats.state`."""


def watch(
    config: StreamConfig,
    seen: Callable[[Frame], None] | None = None,
    *,
    most: int | None = None,
    metrics: int | None = None,
) -> None:
    """Run a stream to its end, or until `most` frames came, with a `LiveLine`, and call `seen` with each frame.

    Without `seen` the first frame is printed, and a summary of what came in all, also after an error or Ctrl-C.
    `metrics` is the port where Prometheus may ask for them meanwhile.
    """
    from ..metrics import serve
    from ..stream.stream import BlenderStream
    from ..stream.verdict import verdict

    async def consume() -> None:
        async with stream:
            async for frame in stream:
                line.frame_came(whole=frame.step == 0 and frame.last)
                if seen is not None:
                    seen(frame)
                elif line.frames == 1:
                    line.print(repr(frame))
                if line.frames == most:
                    break
            line.judge()

    stream = BlenderStream(config)
    stream.consumer = None  # nobody trains here
    line = LiveLine(config, stream.stats, verdict=lambda stats: verdict(stats, None))
    try:
        with line, nullcontext() if metrics is None else serve(stream, metrics) as server:
            if server is not None:
                STDERR.print(f"Metrics: {server.url}", style="dim")
            run(consume())
    finally:
        if seen is None:
            line.summary()


def facts_table(facts: Mapping[str, str | Text]) -> Table:
    """Return a table without lines: labels, and beside each what is to be said about it."""
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for label, text in facts.items():
        table.add_row(label, text)
    return table


def doing(stats: StreamStats | FleetStatus | None) -> str:
    """Return what the Blenders of a stream or a fleet do now, such as "Blenders: 1 starting, 3 rendering"."""
    if stats is None or not stats.state:
        return "no Blender was started yet"
    counts = Counter(_DOING.get(state, state) for state in stats.state.values())
    what = ", ".join(f"{count} {activity}" for activity, count in counts.items())
    return f"Blenders: {what}"


class Waiting:
    """A context manager that shows on `STDERR` what is being waited for: in a terminal beside a spinner, all the time.

    Where there is no terminal, or one that cannot move its cursor, such as for the log of a cluster's job, a line comes
    every ten seconds instead.

    Args:
        what: What there is to say, with the seconds since then; or a function that returns it, called from another
            thread. It may return several texts, of which the first one that fits into the line is shown.
        unit: What `step` counts, such as "frames", for a bar or a number of them. Without it nothing is counted.
        total: How many there will be. None: nobody knows.
    """

    def __init__(
        self, what: str | Callable[[], str | Sequence[Text]], *, unit: str = "", total: int | None = None
    ) -> None:
        began = time.perf_counter()

        def texts() -> Sequence[Text]:
            said = f"{what}, {time.perf_counter() - began:.0f} s" if isinstance(what, str) else what()
            return [styled(said)] if isinstance(said, str) else said

        self._texts, self._unit, self._done, self._total = texts, unit, 0, total
        self._ended = threading.Event()
        self._lines: threading.Thread | None = None
        fixed = Column(no_wrap=True)  # where the line is too long, it is the text that is made shorter
        columns: list[ProgressColumn] = [SpinnerColumn(table_column=fixed), _Said(texts)]
        if unit:
            columns[1:1] = [BarColumn(10, table_column=fixed), MofNCompleteColumn(table_column=fixed)]
            columns.append(TimeRemainingColumn(table_column=fixed))
        self._progress = Progress(*columns, console=STDERR, transient=True, disable=not STDERR.is_interactive)
        self._task = self._progress.add_task("", total=total)

    def __enter__(self) -> Self:
        self._progress.start()
        if self._progress.disable:
            self._lines = threading.Thread(target=self._print_lines, name="asyncblend progress", daemon=True)
            self._lines.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        if self._lines is not None:
            self._lines.join()
        self._progress.stop()

    def step(self, done: int, *, began: bool = False) -> None:
        """Note how many there are. `began`: the time that remains is reckoned from now on."""
        self._done = done
        if began:
            self._progress.reset(self._task, completed=done)
        self._progress.update(self._task, completed=done)

    def forget_total(self) -> None:
        """Note that nobody knows how many there will be."""
        if self._total is not None:
            self._total = None
            self._progress.tasks[0].total = None  # for `update`, None leaves it as it is

    def print(self, text: str) -> None:
        """Print on the standard output; where that is the same terminal, above the line."""
        output = Terminal()
        (STDERR if STDERR.is_interactive and output.is_terminal else output).print(text)

    def _print_lines(self) -> None:
        while not self._ended.wait(_EVERY):
            of = "" if self._total is None else f" of {self._total}"
            STDERR.print(styled(f"{self._done}{of} {self._unit}  " if self._unit else ""), self._texts()[0], sep="")


class _Said(ProgressColumn):
    """What a function says whenever the line is drawn."""

    def __init__(self, texts: Callable[[], Sequence[Text]]) -> None:
        super().__init__()
        self._texts = texts

    def render(self, task: Task) -> Fitting:
        return Fitting(self._texts())


class LiveLine(Waiting):
    """How many frames of a stream came, how fast, how full the queue is; and what is waited for while none comes.

    Args:
        stats: Returns the stream's statistics, or None while there are none. Called from another thread.
        unit: "frames"; or "samples", which may have several frames each, that come from Blender one after another.
        verdict: Returns from the statistics who is the bottleneck, which is shown too.
    """

    def __init__(
        self,
        config: StreamConfig,
        stats: Callable[[], StreamStats | None],
        *,
        unit: str = "frames",
        verdict: Callable[[StreamStats], str] | None = None,
    ) -> None:
        self.frames: int = 0
        self.first: float | None = None
        """When the first frame came, on the clock of `time.perf_counter`."""
        self.last: float = time.perf_counter()
        """When the last one came."""
        self._stats, self._queue_size, self._verdict = stats, config.queue_size, verdict
        self._began = self._heard = self.last
        self._made = 0  # frames, when they were more than before for the last time
        self._judged: StreamStats | None = None
        super().__init__(self._now, unit=unit, total=config.length)

    def frame_came(self, before: int = 0, *, whole: bool = True) -> None:
        """Note that one more frame came.

        Args:
            before: How many were there before this run.
            whole: Whether it is a whole sample. How many frames there will be is not known of episodes.
        """
        if not whole:
            self.forget_total()
        self.last = time.perf_counter()
        self.frames += 1
        if began := self.first is None:
            self.first = self.last
        self.step(before + self.frames, began=began)

    def judge(self) -> None:
        """Let the summary's verdict be of this moment: from now on the Blenders quit, which is nobody's waiting."""
        self._judged = self._stats()

    def summary(self, **more: str) -> None:
        """Print what came in all, with further rows for `more`, or nothing if no frame came."""
        stats = self._stats()
        if stats is None or self.first is None:
            return
        made, seconds, rest = sum(stats.frames.values()), self.last - self.first, self.frames - 1
        facts: dict[str, str | Text] = {
            # At the end of a stream that was stopped some had come that nobody took.
            "frames": f"{stats.delivered}" + (f" of {made} that were rendered" if made > stats.delivered else ""),
            "time to the first frame": f"{self.first - self._began:.1f} s",
        }
        if rest and seconds < MEASURABLE:
            facts["then"] = f"{rest} frame{'s' * (rest > 1)} in less than {MEASURABLE} s"
        elif rest:
            facts["then"] = f"{rest / seconds:.1f} frames/s over {seconds:.1f} s"
        if self._verdict is not None and rest and (judged := self._judged or stats).window:
            facts["verdict"] = self._verdict(judged)
        facts["frames by instance"] = "  ".join(f"{i}: {n}" for i, n in sorted(stats.frames.items()))
        troubles = {
            "restarts": "restarts",
            "stale": "stale frames dropped",
            "bad_messages": "bad messages dropped",
            "refused": "connections refused",
        }
        for field, name in troubles.items():
            if count := getattr(stats, field):
                facts[name] = styled((str(count), "yellow"))
        Terminal().print(facts_table({**facts, **more}))

    def _now(self) -> list[Text]:
        """Return what there is to say at this moment, and shorter forms of it for a narrow terminal."""
        stats, now, of_frames = self._stats(), time.perf_counter(), self._unit == "frames"
        if stats is not None and (made := sum(stats.frames.values())) > self._made:
            self._made, self._heard = made, now
        waited = now - (self.last if of_frames else max(self._heard, self.last))
        if self.first is None and self._made and not of_frames and waited <= _LATE:
            first = f"{self._made} frame{'s' * (self._made > 1)} of the first samples so far: {doing(stats)}"
        elif self.first is None or waited > _LATE:
            which = "first" if self.first is None else "next"
            first = f"waiting for the {which} {self._unit.removesuffix('s')}, {waited:.0f} s: {doing(stats)}"
        else:
            first = f"{self._rate():.1f}/s"
        queue: list[str | tuple[str, str]] = []
        instances: list[str | tuple[str, str]] = []
        if self.first is not None and stats is not None:
            queue.append(f"  queue {stats.queued}/{self._queue_size}, {stats.rendering} rendering")
            instances.append("  by instance" if of_frames else "  frames by instance")
            for number, state in sorted(stats.state.items()):
                instances += [" ", (str(stats.frames[number]), _STYLES.get(state, ""))]
        restarts = [(f"  restarts {stats.restarts}", "yellow")] if stats is not None and stats.restarts else []
        said = [""]
        if self._verdict is not None and self.first is not None and stats is not None and stats.window:
            whole = self._verdict(stats)
            said = [f"  {whole}", f"  {whole.partition(':')[0]}", ""]
        return [
            *(styled(first, *queue, *instances, *restarts, (text, "dim")) for text in said),
            styled(first, *queue, *restarts),
            styled(first, *restarts),
        ]

    def _rate(self) -> float:
        return (self.frames - 1) / max(self.last - (self.first or 0.0), 1e-9)
