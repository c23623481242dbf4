"""`python -m benchmarks soak`."""

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
from .plot import plot
from .run import Run

__all__ = ["soak"]


def soak(
    minutes: Annotated[float, typer.Option(help="How long.", min=0.01)] = 1.0,
    chaos: Annotated[bool, typer.Option(help="Inject faults.")] = True,
    real: Annotated[bool, typer.Option(help="Real Blenders instead of fakes.")] = False,
    blender: Annotated[
        str | None, typer.Option(help='With --real: executable, folder, or "bpy"; default: what is found.')
    ] = None,
    instances: Annotated[int, typer.Option(help="Blenders.", min=1)] = 3,
    seed: Annotated[int, typer.Option(help="Of the samples and of the faults.", min=0)] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the plot; default: a temporary file.", file_okay=False)
    ] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Minutes of random SIGKILL, SIGSTOP, garbage and slow consumers: nothing lost, nothing twice, memory flat.

    Exit status 1 if anything was lost, came twice or with wrong content, if an instance did not come back, if memory
    grew, or if a process, file, thread or descriptor was left.
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
            left = before.left_by(run.names)
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
    """asyncblend's log, its last lines only: each fault writes some, and they matter only when something is wrong."""
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
