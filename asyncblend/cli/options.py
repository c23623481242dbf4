"""The arguments and options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigArgument = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="A Blender script, or a TOML file with StreamConfig's fields.")
]
BlenderOption = Annotated[
    str | None,
    typer.Option(
        help="The Blender to use: its executable, the folder that holds it, `bpy` for the pip module, or the Python "
        "of another environment that has the module. By default the first one that `asyncblend doctor` finds is used."
    ),
]
InstancesOption = Annotated[int | None, typer.Option(help="How many Blender processes render. Overrides CONFIG.")]
LengthOption = Annotated[int | None, typer.Option(help="How many samples to render. Overrides CONFIG.")]
SeedOption = Annotated[int | None, typer.Option(help="The same seed gives the same samples. Overrides CONFIG.")]
