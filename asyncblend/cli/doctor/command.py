"""`asyncblend doctor`: the command, for people and, as JSON, for programs."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from ...aio import run
from ..terminal import Terminal
from .page import Page


def doctor(
    blender: Annotated[
        str | None,
        typer.Option(
            metavar="BLENDER",
            help="Look at one Blender only: its executable, its folder, `bpy` for the module, or another Python with it.",
        ),
    ] = None,
    fix: Annotated[
        bool, typer.Option("--fix/--no-fix", help="Install what is missing into your cache folder.")
    ] = False,
    json_: Annotated[
        bool, typer.Option("--json/--no-json", help="Print one JSON object with everything, and no page.")
    ] = False,
) -> None:
    """Say what is missing on this machine.

    Each Blender is looked at and renders a small frame, and where that fails, it is said why and what to type. With
    `--fix`, pyzmq is installed for Blender's Python and, if there is no bpy module, Blender itself as one, in an
    environment of its own: your Python's packages stay as they are.

    The exit status is 0 if torch is installed and the Blender that would be used renders, and 1 if not.

    Examples:

        asyncblend doctor
        asyncblend doctor --blender /opt/blender
        asyncblend doctor --fix
    """
    from .examining import examine

    page = Page(Terminal(quiet=json_))
    report = run(examine(blender, fix=fix, page=page))
    if json_:
        typer.echo(json.dumps(report, indent=2))
    if not report["ready"]:
        raise typer.Exit(1)
