"""Options that the commands share, and what they do with a report."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .machine import machine
from .measuring import Effort
from .report import Report

__all__ = [
    "BlenderOption",
    "JsonOption",
    "OutOption",
    "QuickOption",
    "RoundsOption",
    "SecondsOption",
    "effort",
    "show",
]

QuickOption = Annotated[bool, typer.Option("--quick", help="See only that it works: the figures mean nothing.")]
RoundsOption = Annotated[int | None, typer.Option("--rounds", help="Rounds; each is every way once.", min=1)]
SecondsOption = Annotated[float | None, typer.Option("--seconds", help="Of each way in each round.", min=0.01)]
JsonOption = Annotated[Path | None, typer.Option("--json", help="File for all figures.", dir_okay=False)]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", help="Folder for the picture; default: a temporary one.", file_okay=False),
]
BlenderOption = Annotated[
    str | None, typer.Option("--blender", help='Executable, folder, or "bpy"; default: what is found.')
]

_console = Console()
if not _console.is_terminal:
    _console = Console(width=120)  # into a file: no need to squeeze


@contextlib.contextmanager
def effort(
    quick: bool, rounds: int | None, seconds: float | None, *, default: tuple[int, float] = (5, 0.3)
) -> Iterator[Effort]:
    """What the options ask for, of which `default` has rounds and seconds; shows what is going on."""
    usual = (1, 0.05) if quick else default
    with _console.status("starting") as status:
        yield Effort(
            rounds=rounds or usual[0],
            seconds=seconds or usual[1],
            quick=quick,
            say=lambda text: status.update(text),
        )


def show(report: Report, out: Path | None, figures: Path | None) -> None:
    """Print the table, draw the picture, write the figures."""
    _console.print(report.title, style="bold underline")
    for table in report.tables():
        _console.print(table)
    folder = Path(tempfile.mkdtemp(prefix="benchmark-")) if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / f"{report.name}.png"
    report.picture(picture)
    if figures is not None:
        written = {"machine": machine(), **report.json()}
        figures.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    _console.print(f"plot: {picture}", soft_wrap=True, highlight=False)
