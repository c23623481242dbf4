"""The options that the commands share, and what the commands do with a report."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .machine import machine
from .measuring import Effort
from .report import Report

__all__ = ["BlenderOption", "JsonOption", "OutOption", "QuickOption", "SecondsOption", "command", "effort", "show"]

QuickOption = Annotated[bool, typer.Option("--quick", help="See only that it works. The figures mean nothing.")]
RoundsOption = Annotated[
    int | None, typer.Option("--rounds", help="How many rounds. Each round runs every way once.", min=1)
]
SecondsOption = Annotated[
    float | None, typer.Option("--seconds", help="How long each way runs in each round.", min=0.01)
]
JsonOption = Annotated[Path | None, typer.Option("--json", help="A file to write all figures to.", dir_okay=False)]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="The folder for the picture. By default a temporary one.", file_okay=False)
]
BlenderOption = Annotated[
    str | None,
    typer.Option(
        "--blender",
        help="The Blender to use: its executable, its folder, or `bpy`. By default the first one that is found.",
    ),
]

_console = Console()
if not _console.is_terminal:
    _console = Console(width=120)  # a file is as wide as the tables need it


@contextlib.contextmanager
def effort(quick: bool, rounds: int | None, seconds: float | None, *, default: tuple[int, float]) -> Iterator[Effort]:
    """Turn the options into an `Effort`, and show what is being measured. `default` has the rounds and the seconds."""
    usual = (1, 0.05) if quick else default
    with _console.status("starting") as status:
        yield Effort(
            rounds=rounds or usual[0], seconds=seconds or usual[1], quick=quick, say=lambda text: status.update(text)
        )


def show(report: Report, out: Path | None, figures: Path | None) -> None:
    """Print the tables, draw the picture into the folder `out`, and write the figures into a file."""
    _console.print(report.title, style="bold underline")
    for table in report.tables():
        _console.print(table)
    folder = Path(tempfile.mkdtemp(prefix="benchmark-")) if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / f"{report.name}.png"
    from .charts import draw_report  # imports matplotlib, which would weigh on the memory of what is measured

    draw_report(picture, report)
    if figures is not None:
        written = {"machine": machine(), **report.json()}
        figures.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    _console.print(f"plot: {picture}", soft_wrap=True, highlight=False)


def command(
    measure: Callable[..., Report], rounds: int, seconds: float, *, chooses_blender: bool
) -> Callable[..., None]:
    """Return the command that measures and shows a report, with the options of all of them.

    Args:
        measure: Gets the `Effort`, and `blender` if `chooses_blender`.
        rounds, seconds: How long it measures, unless an option says otherwise.
        chooses_blender: Whether there is the option --blender.
    """
    usual = (rounds, seconds)

    def plain(
        quick: QuickOption = False,
        rounds: RoundsOption = None,
        seconds: SecondsOption = None,
        json_: JsonOption = None,
        out: OutOption = None,
    ) -> None:
        with effort(quick, rounds, seconds, default=usual) as how:
            report = measure(how)
        show(report, out, json_)

    def of_blender(
        blender: BlenderOption = None,
        quick: QuickOption = False,
        rounds: RoundsOption = None,
        seconds: SecondsOption = None,
        json_: JsonOption = None,
        out: OutOption = None,
    ) -> None:
        with effort(quick, rounds, seconds, default=usual) as how:
            report = measure(how, blender=blender)
        show(report, out, json_)

    return of_blender if chooses_blender else plain
