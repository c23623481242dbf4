"""`python -m benchmarks all`: answers every question, and writes benchmarks/RESULTS.md."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from asyncblend.fleet.discovery import find_blender

from . import (
    cluster,
    dataloader,
    environment,
    labels,
    latency,
    memory,
    origin,
    passes,
    ray,
    record,
    render,
    replay,
    startup,
    transport,
    tune,
    warm,
)
from .machine import machine
from .measuring import Effort
from .options import BlenderOption, JsonOption, QuickOption
from .report import Report

__all__ = ["everything", "write"]

_HERE = Path(__file__).parent
_console = Console()
_ABOUT = (
    "By `python -m benchmarks all`. Each question has a command of its own, named below its heading. All ways of a "
    "table ran in the same run and in turns; the figures are medians of the rounds, with the lowest and the highest."
)


def everything(
    blender: BlenderOption = None,
    quick: QuickOption = False,
    json_: JsonOption = None,
    out: Annotated[Path, typer.Option("--out", help="The folder for RESULTS.md and its pictures.")] = _HERE,
) -> None:
    """Answer every question, and write RESULTS.md with tables, pictures, machine and versions.

    It takes some ten minutes.
    """
    began = time.monotonic()
    reports = []
    with _console.status("starting") as status:
        for name, measure, (rounds, seconds) in _questions(blender):
            how = Effort(
                rounds=1 if quick else rounds,
                seconds=0.05 if quick else seconds,
                quick=quick,
                say=lambda case, name=name: status.update(f"{name}: {case}"),  # type: ignore[misc]
            )
            reports.append(measure(how))
            _console.print(f"{name}: done after {time.monotonic() - began:.0f} s", highlight=False)
    write(out, reports, machine(), json_)
    _console.print(f"{out / 'RESULTS.md'}", soft_wrap=True, highlight=False)


Question = tuple[str, Callable[[Effort], Report], tuple[int, float]]
"""Its name, the function that answers it, and for this function the rounds and the seconds."""


def _questions(blender: str | None) -> list[Question]:
    questions: list[Question] = [
        # Memory comes first, because other questions import torch, which takes more of it than all the rest.
        ("memory", memory.measure, (1, 0.0)),
        ("transport", transport.measure, (4, 0.2)),
        ("latency", latency.measure, (5, 0.3)),
        ("origin", lambda how: origin.measure(how, blender), (3, 1.0)),
        ("render", lambda how: render.measure(how, blender), (3, 0.7)),
        ("passes", lambda how: passes.measure(how, blender), (5, 1.0)),
        ("environment", environment.measure, (5, 0.3)),
        ("ray", ray.measure, (3, 4.0)),
        ("cluster", cluster.measure, (3, 4.0)),
        ("labels", lambda how: labels.measure(how, blender), (7, 1.5)),
        ("dataloader", dataloader.measure, (5, 0.4)),
        ("record", lambda how: record.measure(how, blender), (5, 1.0)),
        ("replay", replay.measure, (5, 0.3)),
        ("startup", startup.measure, (3, 0.0)),
        ("warm", warm.measure, (5, 0.0)),
        ("tune", lambda how: tune.measure(how, blender=blender), (1, 2.0)),
    ]
    # If the module was measured, the executable is measured too, with fewer cases.
    other = shutil.which("blender")
    if other and find_blender(blender).kind == "module":
        at = 1 + next(i for i, question in enumerate(questions) if question[0] == "render")
        questions.insert(at, ("render-executable", lambda how: _of_executable(how, other), (3, 0.7)))
    return questions


def _of_executable(how: Effort, path: str) -> Report:
    report = render.measure(how, path, small=True)
    report.name = "render-executable"
    return report


def write(folder: Path, reports: Sequence[Report], about: Mapping[str, str], figures: Path | None = None) -> None:
    """Write RESULTS.md into a folder, its pictures into `pictures` there, and all figures into a file."""
    from .charts import draw_report  # imports matplotlib, which would weigh on the memory of what is measured

    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    lines = [
        "# Results",
        "",
        _ABOUT,
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in about.items()),
        "",
    ]
    for report in reports:
        draw_report(pictures / f"{report.name}.png", report)
        lines += [f"## {report.title}", "", f"`python -m benchmarks {report.name.partition('-')[0]}`. {report.method}"]
        lines += ["", f"![{report.title}](pictures/{report.name}.png)", "", *report.markdown(), ""]
    (folder / "RESULTS.md").write_text("\n".join(lines), encoding="utf-8")
    if figures is not None:
        written = {"machine": dict(about), "reports": [report.json() for report in reports]}
        figures.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
