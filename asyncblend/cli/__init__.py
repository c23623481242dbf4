"""The command line: `asyncblend`, or `python -m asyncblend`.

One file for each command, which imports what it needs only when it runs, so that `--help` needs nothing but typer
and rich: `demo`, `export`, `inspect`, `link`, `record`, `stream` and `view`, the three of `fleet`, and the folders
`bench/` and `doctor/`.

What the commands share:

- `terminal`: the only way to print, by which no text of a user's is taken for markup or for a terminal's commands.
- `live`: shows how far a stream is, and what is being waited for.
- `options`: the arguments and options that several commands take, and the script's own after `--`.
- `config_file`: reads the argument CONFIG, a TOML file or a script, into a `StreamConfig`.
- `outputs`: finds out whether a file can be written, before anything is rendered.
- `signals`: SIGTERM and SIGHUP do what Ctrl-C does.
- `on_ray`: `record --ray`.
- `needs`: which packages are missing, and the line that installs them.
"""

from __future__ import annotations

import inspect as introspection
import io
import logging
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .. import __version__
from ..errors import AsyncblendError, BlenderNotFound, InstanceError, SampleError
from .bench.command import bench
from .demo import demo
from .doctor.command import doctor
from .export import export
from .fleet import list_, start, stop
from .inspect import inspect
from .link import link
from .needs import what_to_install
from .options import ScriptCommand
from .record import record
from .signals import end_on_signals, exit_status
from .stream import stream
from .terminal import STDERR, LogHandler, styled
from .view import view

__all__ = ["main"]


class _Commands(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of the help. typer would put a group of commands at the end."""
        return sorted(super().list_commands(ctx))

    def invoke(self, ctx: Any) -> Any:
        """Run the command. typer would let Ctrl-C end it without a word."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            STDERR.print("Stopped.", style="dim")
            raise typer.Exit(exit_status()) from None


app: typer.Typer = typer.Typer(
    name="asyncblend",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its panels are too narrow for what is to be said
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _help(command: Callable[..., None]) -> str:
    """Return a command's docstring for typer, which is not to join the lines of indented paragraphs."""
    paragraphs = introspection.cleandoc(command.__doc__ or "").split("\n\n")
    return "\n\n".join(f"\b\n{one}" if one.startswith("    ") else one for one in paragraphs)


_RENDERING: tuple[Callable[..., None], ...] = (bench, export, inspect, record, stream, view)
_OTHERS: tuple[Callable[..., None], ...] = (demo, doctor, link)
_ABOUT_ARGUMENTS = (
    "The ARGUMENTS after `--` are the script's: its `sys.argv[1:]`. `--script-args` WORDS, up to the next option, are the "
    "same, and come first. `-- --help` shows the options of a script that has them."
)
for _command in sorted(_RENDERING + _OTHERS, key=lambda command: command.__name__):
    if _command in _RENDERING:
        app.command(help=_help(_command), epilog=_ABOUT_ARGUMENTS, cls=ScriptCommand)(_command)
    else:
        app.command(help=_help(_command))(_command)
_fleet = typer.Typer(cls=_Commands, no_args_is_help=True, rich_markup_mode=None)
_fleet.command(help=_help(start), epilog=_ABOUT_ARGUMENTS, cls=ScriptCommand)(start)
_fleet.command("list", help=_help(list_))(list_)
_fleet.command(help=_help(stop))(stop)
app.add_typer(_fleet, name="fleet", help="Start, list and stop fleets that stay warm.")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"asyncblend {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Live synthetic data from Blender for PyTorch.

    Start with `asyncblend doctor`, which looks at your machine, then type `asyncblend demo`. `asyncblend stream -h`
    says what the options of a command are, with examples.
    """


def main() -> None:
    """Run the command that `sys.argv` names.

    The exit status is 1 after a failure, 2 after wrong usage, 130 after Ctrl-C, 143 after SIGTERM and 129 after SIGHUP.
    """
    _open_missing_descriptors()
    try:
        end_on_signals()
        for output in (sys.stdout, sys.stderr):
            if isinstance(output, io.TextIOWrapper):
                output.reconfigure(errors="backslashreplace")  # of letters that this terminal's charset has not
        logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[LogHandler()])
        app(standalone_mode=True)
    except KeyboardInterrupt:  # before or after the command itself
        sys.exit(exit_status())
    except AsyncblendError as error:
        _print_error(error)
        sys.exit(1)
    except ImportError as error:
        if (sentence := what_to_install(error)) is None:
            raise
        STDERR.print(sentence)
        sys.exit(1)


def _open_missing_descriptors() -> None:
    """Open the standard descriptors that this program was started without. Else its next files would take their places."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest one that is free, which is this one


def _print_error(error: AsyncblendError) -> None:
    """Print Blender's own traceback, if it has one, then what failed; the last lines are what is read first."""
    text = str(error)
    if isinstance(error, SampleError) and error.traceback:
        STDERR.print(error.traceback)
        text = text.removesuffix(error.traceback.rstrip()).rstrip()
    STDERR.print(styled((type(error).__name__, "bold red"), f" {text}"))
    # The doctor cannot help where the user's script raised: its traceback is shown already.
    if isinstance(error, BlenderNotFound) or (isinstance(error, InstanceError) and "Traceback" not in str(error)):
        STDERR.print("`asyncblend doctor` looks at what is on this machine.", style="dim")
