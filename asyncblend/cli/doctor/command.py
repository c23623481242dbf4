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
    bpy: Annotated[
        str | None,
        typer.Option(
            metavar="RELEASE",
            help="Install this release of Blender as a bpy module in an environment of its own, beside what is here: "
            "4.5, which takes Python 3.11, or 5.2, which takes Python 3.13. Your own Python may be another one.",
        ),
    ] = None,
    json_: Annotated[
        bool, typer.Option("--json/--no-json", help="Print one JSON object with everything, and no page.")
    ] = False,
) -> None:
    """Say what is missing on this machine.

    Each Blender is looked at and renders a small frame, and where that fails, it is said why and what to type. What
    Blender's Python lacks, numpy or pyzmq, is installed into your cache folder for that, as a stream does it. With
    `--fix`, Blender itself is installed as a bpy module if there is none, in an environment of its own: your Python's
    packages stay as they are. `--bpy` installs one in any case, and says how to choose it where another Blender is
    taken by default.

    The exit status is 0 if torch is installed, the Blender that would be used renders, and what `--bpy` asks for is
    here, and 1 if not.

    Examples:

        asyncblend doctor
        asyncblend doctor --blender /opt/blender
        asyncblend doctor --fix
        asyncblend doctor --bpy 5.2
    """
    from ...fleet.install.embedded import RELEASES
    from .examining import examine

    if bpy is not None and bpy not in RELEASES:
        raise typer.BadParameter(f"{bpy!r} is none of {', '.join(RELEASES)}", param_hint="'--bpy'")
    page = Page(Terminal(quiet=json_))
    report = run(examine(blender, fix=fix, bpy=bpy, page=page))
    if json_:
        typer.echo(json.dumps(report, indent=2))
    if not report["ready"]:
        raise typer.Exit(1)
