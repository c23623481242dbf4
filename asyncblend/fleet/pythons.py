"""Other Pythons: whether one of them has the bpy module. It is asked, because only it knows its environment."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

from ..errors import BlenderNotFound
from ..wire.launch import RUN
from .discovery import Blender
from .install.embedded import MODULES
from .install.installer import installer
from .process import output_of, temporary_room

_LIMIT = 30.0  # seconds for an answer; a Python takes some 0.05 to start, and on a slow network drive several
_LAST_LINES = 5
_OLDEST = (3, 10)
_ANSWER = "asyncblend: "
_ASK = f"""\
import sys
sys.path[:] = [path for path in sys.path if path]  # without the working directory, which is none of its folders
import importlib.metadata, importlib.util, json
found = importlib.util.find_spec("bpy")
file = found and found.origin  # a folder of that name has none
try:
    version = importlib.metadata.version("bpy") if file else ""
except importlib.metadata.PackageNotFoundError:  # it was not installed by pip
    version = ""
pip = importlib.util.find_spec("pip") is not None
print({_ANSWER!r} + json.dumps([file or "", version, sys.version_info[:2], pip]))
"""


class Module(NamedTuple):
    """The bpy module of another Python."""

    file: str
    """The shared library that is imported."""
    version: str
    """Empty if it is not known."""


async def check(blender: Blender, folder: Path) -> None:
    """Check that a Blender is there to be started, as far as `find_blender` could not.

    Args:
        folder: The run's, which is removed whatever happens, and names the run.

    Raises:
        BlenderNotFound: It is the module of another Python, which has none. The message says what to type.
    """
    if blender.kind == "module" and blender.path != sys.executable:
        try:
            await module_of(blender.path, folder)
        except BlenderNotFound as error:
            text = f"{blender.found}: {error}"
            raise BlenderNotFound(text, command=error.command, details=error.details) from error.__cause__


async def module_of(python: str, folder: Path | None = None) -> Module:
    """Start a Python, and return its module.

    Args:
        folder: That of a run, whose mark the process gets. None: it belongs to none.

    Raises:
        BlenderNotFound: It has none, or gives no answer in time. The message says what to type.
        ConfigError: The temporary folder has no room.
    """
    # As a fleet starts it: these variables are meant for the host's Python.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    if folder is not None:
        environment[RUN] = folder.name
    try:
        with temporary_room():  # that of a run is in there, too
            _, output = await output_of([python, "-c", _ASK], environment, limit=_LIMIT, folder=folder)
    except OSError as error:
        if not isinstance(error, TimeoutError):
            raise BlenderNotFound(f"cannot execute {python}: {error.strerror}") from error
        by_hand = shlex.join([python, "-c", "import bpy"])
        text = f"{python} did not say within {_LIMIT:g} s whether it has the module bpy. See what this does: {by_hand}"
        raise BlenderNotFound(text, command=by_hand) from None
    for line in output.splitlines():
        if line.startswith(_ANSWER):
            file, version, numbers, pip = json.loads(line.removeprefix(_ANSWER))
            if tuple(numbers) < _OLDEST:
                raise BlenderNotFound(
                    f"{python} is Python {numbers[0]}.{numbers[1]}, and asyncblend needs {_OLDEST[0]}.{_OLDEST[1]} or "
                    f"later inside Blender: take a newer Blender"
                )
            if file:
                return Module(file, version)
            raise _has_none(python, tuple(numbers), pip=pip)
    last = "\n".join(output.splitlines()[-_LAST_LINES:])
    raise BlenderNotFound(f"{python} does not run Python code. Its last output:\n{last}", details=last)


def _has_none(python: str, version: tuple[int, int], *, pip: bool) -> BlenderNotFound:
    name = f"Python {version[0]}.{version[1]}"
    why = f"{python} is {name} and has no module bpy."
    if version not in MODULES:
        made_for = " and ".join(f"{a}.{b}" for a, b in MODULES)
        return BlenderNotFound(f"{why} There is none for {name}; there are some for Python {made_for}.")
    own = [python, "-m", "pip", "install"] if pip else installer(python)
    command = shlex.join([*(own or [sys.executable, "-m", "pip", "--python", python, "install"]), MODULES[version]])
    return BlenderNotFound(f"{why} Type: {command}", command=command)
