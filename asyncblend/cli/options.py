"""The arguments and options that several commands take, and the arguments of the script after `--`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ..errors import ConfigError, InstanceExited
from .terminal import Terminal

ConfigArgument = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG",
        help="A Blender script, yours or one that comes with asyncblend (model.py, shapes.py), or a TOML file with "
        "StreamConfig's fields.",
    ),
]
SceneOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The .blend file to open before the script runs. Overrides a TOML file's."),
]
BlenderOption = Annotated[
    str | None,
    typer.Option(
        metavar="BLENDER",
        help="The Blender to use: an executable, a command on the PATH, the folder that holds it, `bpy` for the pip "
        "module, or the Python of another environment that has the module. By default the first one that `asyncblend "
        "doctor` finds is used.",
    ),
]
InstancesOption = Annotated[
    int | None, typer.Option(metavar="N", help="How many Blender processes render. Overrides a TOML file's.")
]
LengthOption = Annotated[
    int | None, typer.Option(metavar="N", help="How many samples to render. Overrides a TOML file's.")
]
SeedOption = Annotated[
    int | None, typer.Option(metavar="N", help="The same seed gives the same samples. Overrides a TOML file's.")
]
RayOption = Annotated[
    str | None,
    typer.Option(
        metavar="[ADDRESS]",
        help="Render on all nodes of a Ray cluster: the one at ADDRESS, such as 10.0.0.5:6379, or this machine's. With "
        "auto none is started. All of them must see FOLDER. --instances is then the number of Blenders in the whole cluster.",
    ),
]
"""Without an address it is ""."""


class ScriptCommand(TyperCommand):
    """A command that runs a script, whose own arguments the context's `args` have.

    They are what follows `--`, and before that the words after `--script-args`, up to the next option.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse what stands before `--`, so that a second file there is a mistake and no argument of the script."""
        own, script = args, []
        if "--" in args:
            place = args.index("--")
            own, script = args[:place], args[place + 1 :]
        own, words = _without_script_args(own)
        script = [*words, *script]
        super().parse_args(ctx, _with_address(own) if self.name == "record" else own)  # elsewhere it needs one
        ctx.args = script
        return script

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Where the script was only asked for its help, print that, and end well."""
        try:
            return super().invoke(ctx)
        except InstanceExited as error:
            if error.returncode != 0 or not {"-h", "--help"} & set(ctx.args):
                raise
            Terminal().print(error.log_tail)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the parts of the line that says how the command is used."""
        return [*super().collect_usage_pieces(ctx), "[-- ARGUMENTS]"]


def check_source(source: Path) -> None:
    """Refuse a SOURCE that is not there and may have been meant as a script or as a recording.

    Raises:
        ConfigError: It does not exist, and its name does not tell what it should be.
    """
    if source.suffix not in (".py", ".toml", ".blend") and not source.exists():
        raise ConfigError(
            f"{source} does not exist (looked in {Path.cwd()}); give a script.py, a TOML file with StreamConfig's "
            f"fields, or a folder that `asyncblend record` wrote"
        )


def _without_script_args(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments without each `--script-args` and its words, and these words."""
    own: list[str] = []
    words: list[str] = []
    taking = False
    for arg in args:
        name, equals, value = arg.partition("=")
        taking = name == "--script-args" or (taking and not arg.startswith("-"))
        if name == "--script-args":
            words += [value] if equals else []
        else:
            (words if taking else own).append(arg)
    return own, words


def _with_address(args: Sequence[str]) -> list[str]:
    """Return the arguments with "" after a `--ray` that no address follows, since typer has no optional values."""
    given: list[str] = []
    for arg, following in itertools.zip_longest(args, args[1:], fillvalue=""):
        given.append(arg)
        if arg == "--ray" and ":" not in following and following != "auto":
            given.append("")
    return given


def refuse_rendering(source: Path, options: Mapping[str, object], arguments: Sequence[str]) -> None:
    """Refuse what goes with a script where a recording is read.

    Raises:
        ConfigError: One of the options is not None, or the script would get arguments.
    """
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if arguments:
        given.append("-- and what follows")
    if given:
        raise ConfigError(f"{source} is no script, so nothing is rendered: leave out {', '.join(given)}")
