"""The command line: `asyncblend`, or `python -m asyncblend`.

One file for each command, which imports what it needs only when it runs, so that `--help` needs nothing but typer
and rich: `bench`, `demo`, `export`, `inspect`, `link`, `record` and `stream`, and the folder `doctor/`.

What the commands share:

- `options`: the arguments and options that several commands take.
- `config_file`: reads the argument CONFIG, a TOML file or a script, into a `StreamConfig`.
- `live`: runs a stream with a line in the terminal that shows how far it is.
- `tuning`: measures a config with several numbers of instances and threads, and draws the result, for `bench`.
- `scripts`: finds the Blender scripts that come with the package.
- `needs`: which packages are missing, and the line that installs them.
"""

from __future__ import annotations

import logging
import sys

import typer
from rich.logging import RichHandler

from ..errors import AsyncblendError, BlenderNotFound, InstanceError
from .bench import bench
from .demo import demo
from .doctor.command import doctor
from .export import export
from .inspect import inspect
from .link import link
from .live import STDERR
from .needs import what_to_install
from .record import record
from .stream import stream

__all__ = ["main"]

app = typer.Typer(
    name="asyncblend",
    help="Live synthetic data from Blender for PyTorch. Start with `asyncblend doctor`, which looks at your machine, "
    "then type `asyncblend demo`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for _command in (bench, demo, doctor, export, inspect, link, record, stream):
    app.command()(_command)


def main() -> None:
    """Run the command that `sys.argv` names.

    The exit status is 1 after a failure, 2 after wrong usage, and 130 after Ctrl-C.
    """
    handler = RichHandler(console=STDERR, show_path=False, show_time=False)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    try:
        app(standalone_mode=True)
    except AsyncblendError as error:
        STDERR.print(f"[bold red]{type(error).__name__}[/]", end=" ")
        STDERR.print(str(error), markup=False, highlight=False)
        # The doctor cannot help where the user's script raised: the message shows the script's traceback already.
        if isinstance(error, BlenderNotFound) or (isinstance(error, InstanceError) and "Traceback" not in str(error)):
            STDERR.print("`asyncblend doctor` looks at what is on this machine.", style="dim")
        sys.exit(1)
    except ImportError as error:
        if (sentence := what_to_install(error)) is None:
            raise
        STDERR.print(sentence, markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        STDERR.print("Stopped.", style="dim")
        sys.exit(130)
