"""`python -m benchmarks soak`: a fleet under random faults."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from asyncblend.aio import loop_factory

from . import report
from .fleet import fakes
from .fleet import real as real_blenders
from .left import Own
from .live import live
from .run import Run

__all__ = ["soak"]


def soak(
    minutes: Annotated[float, typer.Option(help="How long the soak runs.", min=0.01)] = 1.0,
    chaos: Annotated[bool, typer.Option(help="Whether to inject faults.")] = True,
    real: Annotated[bool, typer.Option(help="Use real Blenders instead of fakes.")] = False,
    blender: Annotated[
        str | None, typer.Option(help="With --real, the Blender to use: its executable, its folder, or `bpy`.")
    ] = None,
    instances: Annotated[int, typer.Option(help="How many Blenders.", min=1)] = 3,
    seed: Annotated[int, typer.Option(help="The seed of the samples and of the faults.", min=0)] = 0,
    out: Annotated[
        Path | None, typer.Option(help="The folder for the plot. By default it is a temporary file.", file_okay=False)
    ] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="A file to write the figures to.")] = None,
) -> None:
    """Run a fleet for minutes under random faults, each kind of them at least once.

    Blenders are killed, stopped, hang, close their descriptors, send what cannot be read. Strangers send garbage, consumers
    are slow. Another program is killed while one of its own Blenders is stopped, and one has too few descriptors.

    The exit status is 1 if anything was lost, came twice or had wrong content, if an instance did not come back, if
    memory grew, if another program did not end as it must, or if a process, file, thread or descriptor was left.
    """
    console = Console()
    if blender is not None and not real:
        raise typer.BadParameter("it goes with --real", param_hint="--blender")
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        fleet = real_blenders(blender) if real else fakes(Path(folder) / "fake")
        config = fleet.config(Path(folder), instances=instances, seed=seed, seconds=60 * minutes)
        run = Run(config, fleet, 60 * minutes, chaos=chaos)
        with _log_kept() as log:
            before = Own()
            with live(run, console), asyncio.Runner(loop_factory=loop_factory()) as runner:
                runner.run(run.run())
            left = before.left_by(run.names, run.hosts.folder)
    from .plot import plot  # imports matplotlib, which would weigh on the host's memory

    title, figures, problems = report.title(run), report.figures(run, left), report.problems(run, left)
    picture = _picture(out, "soak-real.png" if real else "soak.png")
    plot(picture, run, f"Soak of {title}")
    if json_ is not None:
        written = {**figures, "problems": problems, "markdown": report.markdown(figures)}
        json_.write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    console.print(report.table(figures, title))
    console.print(f"plot: {picture}", soft_wrap=True, highlight=False)
    for problem in problems:
        console.print(problem, style="red", markup=False, highlight=False, soft_wrap=True)
    if problems:
        console.print("the log's last lines:", *log, sep="\n", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1)
    console.print("Nothing lost, nothing twice, nothing left, memory flat.", style="green")


@contextlib.contextmanager
def _log_kept() -> Iterator[deque[str]]:
    """Keep the last lines of asyncblend's log, which matter only when something is wrong, and print none."""
    lines: deque[str] = deque(maxlen=40)

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(f"{time.strftime('%X')} {record.getMessage():.300}")

    log, handler = logging.getLogger("asyncblend"), Keep()
    log.addHandler(handler)
    log.propagate = False
    try:
        yield lines
    finally:
        log.removeHandler(handler)
        log.propagate = True


def _picture(out: Path | None, name: str) -> Path:
    if out is None:
        descriptor, path = tempfile.mkstemp(prefix="soak-", suffix=".png")
        os.close(descriptor)
        return Path(path)
    out.mkdir(parents=True, exist_ok=True)
    return out / name
