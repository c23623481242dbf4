"""`asyncblend record --ray`: the same recording from all nodes of a cluster, with one line of progress for all of them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

from .live import Waiting
from .needs import require
from .terminal import Terminal, typed

if TYPE_CHECKING:
    from ..config import StreamConfig
    from ..ray import Progress


def record_on_ray(address: str | None, config: StreamConfig, out: Path, **how: Any) -> None:
    """Record on the cluster at an address, or on that of this machine, and say how far it is and what to type next.

    Args:
        address: Where the cluster is. None: on this machine, where one is started if there is none.
        config, out, how: As `asyncblend.ray.record` has them.
    """
    require("ray", "pyarrow")
    from ..ray import record

    then = "The same command goes on after them."
    line = _Line(config.length)
    try:
        with line:
            line.report(record(config, out, address=address, quiet=True, progress=line.report, **how))
        then = f"Look at them: asyncblend inspect {typed(out)}"
    finally:
        if line.now is not None and (line.now.recorded or line.now.skipped):  # else an error says why there is none
            line.summary(out, then)


def skipped(count: int) -> str:
    """Return what is said of samples that were skipped."""
    are = "sample was" if count == 1 else "samples were"
    return f"{count} {are} skipped, because they failed; recording again tries them again"


class _Line(Waiting):
    """How many samples the cluster has rendered, how fast, and on how many nodes."""

    now: Progress | None = None

    def __init__(self, total: int | None) -> None:
        self._began = time.perf_counter()
        self._first: float | None = None  # when it was first known that a node renders
        super().__init__(self._what, unit="samples", total=total)

    def report(self, now: Progress) -> None:
        """Note how far it is."""
        before, self.now = self.now, now
        if before is None and now.before:
            self.print(f"{now.before} of {now.total} samples are there already")
        if began := self._first is None and now.nodes > 0:
            self._first = time.perf_counter()
        self.step(now.recorded + now.rendered, began=began)

    def summary(self, out: Path, then: str) -> None:
        """Print what was recorded, and what to type next."""
        now, console = self.now, Terminal()
        assert now is not None, "something was recorded or skipped"
        text = f"{now.recorded} samples are in {out}"
        if new := now.recorded - now.before:
            seconds = time.perf_counter() - self._began
            nodes = "1 node" if now.nodes == 1 else f"{now.nodes} nodes"
            text += f": {new} new ones in {seconds:.1f} s, {new / seconds:.1f}/s, {decimal(now.written)}, from {nodes}"
        console.print(text)
        if now.skipped:
            console.print(skipped(now.skipped))
        if now.recorded:
            console.print(then)

    def _what(self) -> str:
        now = self.now
        if now is None or self._first is None:
            return f"waiting for the first sample, {time.perf_counter() - self._began:.0f} s"
        seconds = max(time.perf_counter() - self._first, 1.0)
        rate = max(now.recorded + now.rendered - now.before, 0) / seconds
        return f"{rate:.1f}/s  {now.nodes} node{'s' * (now.nodes > 1)}" + (
            f"  {now.skipped} skipped" if now.skipped else ""
        )
