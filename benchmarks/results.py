"""`python -m benchmarks all`: answers every question, and writes benchmarks/RESULTS.md."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from asyncblend.fleet.discovery import find_blender

from . import render
from .machine import machine
from .measuring import Effort
from .options import BlenderOption, JsonOption, QuickOption
from .questions import QUESTIONS, Question
from .report import Report

__all__ = ["everything", "write"]

_HERE = Path(__file__).parent
_console = Console()
_ABOUT = (
    "# Results\n\nBy `python -m benchmarks all`. Each question has a command of its own, named below its heading. All ways of a "
    "table ran in the same run and in turns; the figures are medians of the rounds, with the lowest and the highest."
)


def everything(
    blender: BlenderOption = None,
    quick: QuickOption = False,
    json_: JsonOption = None,
    out: Annotated[Path, typer.Option("--out", help="The folder for RESULTS.md and its pictures.")] = _HERE,
) -> None:
    """Answer every question, and write RESULTS.md with tables, pictures, machine and versions.

    It takes half an hour on two cores. Without --blender it is the Blender that a stream would take.
    """
    began = time.monotonic()
    reports = []
    with _console.status("starting") as status:
        for question in _asked(blender):
            how = Effort(
                rounds=1 if quick else question.rounds,
                seconds=0.05 if quick else question.seconds,
                quick=quick,
                say=lambda case, name=question.name: status.update(f"{name}: {case}"),  # type: ignore[misc]
            )
            reports.append(question.answer(how, blender))
            _console.print(f"{question.name}: done after {time.monotonic() - began:.0f} s", highlight=False)
    write(out, reports, machine(), json_)
    _console.print(f"{out / 'RESULTS.md'}", soft_wrap=True, highlight=False)


def _asked(blender: str | None) -> list[Question]:
    """Return the questions. If the module is measured, the executable is measured too, with fewer cases."""
    asked = list(QUESTIONS)
    other = shutil.which("blender")
    if other and find_blender(blender).kind == "module":
        at, render = next((i, question) for i, question in enumerate(asked) if question.name == "render")
        asked.insert(
            at + 1,
            Question(
                "render-executable",
                lambda how: _of_executable(how, other),
                rounds=render.rounds,
                seconds=render.seconds,
            ),
        )
    return asked


def _of_executable(how: Effort, path: str) -> Report:
    report = render.measure(how, path, small=True)
    report.name = "render-executable"
    return report


def write(
    folder: Path,
    reports: Sequence[Report],
    about: Mapping[str, str],
    figures: Path | None = None,
    *,
    name: str = "RESULTS.md",
    introduction: str = _ABOUT,
) -> None:
    """Write RESULTS.md into a folder, its pictures into `pictures` there, and all figures into a file."""
    from .charts import draw_report  # imports matplotlib, which would weigh on the memory of what is measured

    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    lines = [introduction, "", "| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in about.items()), ""]
    for report in reports:
        draw_report(pictures / f"{report.name}.png", report)
        lines += [f"## {report.title}", "", f"`python -m benchmarks {report.name.partition('-')[0]}`. {report.method}"]
        lines += ["", f"![{report.title}](pictures/{report.name}.png)", "", *report.markdown(), ""]
    (folder / name).write_text("\n".join(lines), encoding="utf-8")
    if figures is not None:
        written = {"machine": dict(about), "reports": [report.json() for report in reports]}
        figures.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
