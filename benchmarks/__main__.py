"""Benchmarks of asyncblend. Each command answers one question, and shows beside its figures what cannot be beaten."""

from __future__ import annotations

import inspect

import typer

from benchmarks.fuzz.command import fuzz
from benchmarks.gpu.command import gpu
from benchmarks.questions import QUESTIONS
from benchmarks.results import everything
from benchmarks.soak.command import soak

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
for _question in QUESTIONS:
    _told_by = _question.own_command or _question.measure
    app.command(_question.name, help=inspect.getdoc(_told_by))(_question.command)
app.command()(gpu)
app.command()(soak)
app.command()(fuzz)
app.command("all")(everything)


if __name__ == "__main__":
    app()
