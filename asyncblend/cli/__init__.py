"""The command line: `asyncblend` and `python -m asyncblend`."""

from __future__ import annotations

import logging
import sys

import typer
from rich.console import Console
from rich.logging import RichHandler

from ..errors import AsyncblendError, BlenderNotFound, InstanceError
from .bench import bench
from .demo import demo
from .doctor.command import doctor
from .export import export
from .inspect import inspect
from .link import link
from .record import record
from .stream import stream

__all__ = ["main"]

app = typer.Typer(
    name="asyncblend",
    help="Live synthetic data from Blender for PyTorch. Start with `asyncblend doctor`, then `asyncblend demo`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for _command in (bench, demo, doctor, export, inspect, link, record, stream):
    app.command()(_command)


def main() -> None:
    """Run the command of `sys.argv`. Exits with 1 on a failure, 2 on wrong usage, 130 on Ctrl-C."""
    console = Console(stderr=True)
    logging.basicConfig(
        level=logging.INFO,
        format="%(message)s",
        handlers=[RichHandler(console=console, show_path=False, show_time=False)],
    )
    try:
        app(standalone_mode=True)
    except AsyncblendError as error:
        console.print(f"[bold red]{type(error).__name__}[/]", end=" ")
        console.print(str(error), markup=False, highlight=False)
        # Not after a script's own mistake, which the message shows already.
        if isinstance(error, BlenderNotFound) or (isinstance(error, InstanceError) and "Traceback" not in str(error)):
            console.print("`asyncblend doctor` looks at what is on this machine.", style="dim")
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("Stopped.", style="dim")
        sys.exit(130)
