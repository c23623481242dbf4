"""`asyncblend link`: let a Blender's own Python import asyncblend, for scripts that are run in Blender itself.

The Python of another environment with the bpy module, such as the one that `doctor --fix` makes, is such a Blender too.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from ..aio import run
from ..errors import BlenderNotFound, ConfigError, InstanceError, InstanceExited
from ..wire.launch import BOOTSTRAP, Report
from .live import Waiting
from .options import BlenderOption
from .outputs import write, writing
from .terminal import Terminal

if TYPE_CHECKING:
    from ..fleet.discovery import Blender

_LIMIT = 120.0  # seconds for Blender to answer
_ANSWER = "asyncblend: "
_FOLDERS = {
    "executable": ("bpy", 'bpy.utils.user_resource("SCRIPTS", path="addons/modules")'),
    "module": ("sysconfig", 'sysconfig.get_path("purelib")'),
}
"""For each kind of Blender what says where its modules are, and the module that this needs."""
_ASK_WHERE = """\
import json, {needs}
print({answer!r} + json.dumps([{folder}]))
"""
_ASK_ALL = """\
import dataclasses, json, runpy, {needs}
runpy.run_path({bootstrap!r})["load_asyncblend"]()
from asyncblend.blender.serving import requirements
print({answer!r} + json.dumps([{folder}, dataclasses.asdict(requirements.look({cache!r}))]))
"""
_WRITTEN = "# Written by `asyncblend link`"
# The host's site-packages must never be on Blender's path: this module loads the package alone, and becomes it.
_STUB = (
    _WRITTEN
    + """; `asyncblend link --undo` removes it.
import runpy, sys
sys.path.append({packages!r})  # what this Python lacks
runpy.run_path({bootstrap!r})["load_asyncblend"]()
"""
)


class Linkable(NamedTuple):
    """A Blender that has all that asyncblend needs, but does not know where asyncblend is."""

    modules: Path
    """Blender's folder for the user's modules, which may not exist yet, or that of an environment's packages."""
    packages: str
    """The folder with the packages that Blender's Python lacks. It goes last on `sys.path`."""


def link(
    blender: BlenderOption = None,
    undo: Annotated[
        bool, typer.Option("--undo/--no-undo", help="Remove what this command has written for this Blender.")
    ] = False,
) -> None:
    """Let Blender itself import asyncblend.

    Scripts can then be run in its text editor, or by `blender -b --python`; with the bpy module of another environment,
    such as the one that `asyncblend doctor --fix` makes, by that environment's Python. The scripts of a stream do not
    need this. The command writes one small file into Blender's folder for the user's modules, or among the packages of
    the environment, and prints its path and what to type. If Blender's Python has no numpy or pyzmq, they are installed
    into a cache folder, as a stream does it.

    Examples:

        asyncblend link
        asyncblend link --blender /opt/blender
        asyncblend link --blender bpy
        asyncblend link --undo
    """
    from ..fleet.discovery import find_blender

    console = Terminal()
    found = find_blender(blender)
    itself = shlex.quote(found.path) + (" -b --python script.py" if found.kind == "executable" else " script.py")
    if found.path == sys.executable:
        console.print("The bpy module is in this Python, which has asyncblend: nothing needs to be linked.")
        console.print(f"Try it: {itself}", style="dim")
        return
    with Waiting(f"Asking {found.path}"):
        ready = None if undo else run(prepare(found))
        modules = ready.modules if ready is not None else run(_modules_of(found))
    path = modules / "asyncblend.py"
    _check_ours(path)
    if ready is None:
        removed = _remove(path)
        for one in removed:
            console.print(f"Removed {one}")
        if not removed:
            console.print(f"Nothing is linked: {path} does not exist.")
        return
    write("the file for Blender", path, _STUB.format(bootstrap=str(BOOTSTRAP), packages=ready.packages))
    console.print(f"Wrote {path}")
    console.print(f"Try it: {itself}", style="dim")


def _check_ours(path: Path) -> None:
    """Raise ConfigError if somebody else wrote a module of that name: it is neither replaced nor removed."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    if not text.startswith(_WRITTEN):
        raise ConfigError(f"{path} was not written by `asyncblend link`, so it stays as it is; move it away yourself")


def _remove(path: Path) -> list[Path]:
    """Remove the file, what Python compiled of it, and the folders that are empty then. Return what was removed."""
    if not os.path.lexists(path):
        return []
    removed = [path]
    with writing("the file for Blender", path):
        path.unlink()
        cache = Path(importlib.util.cache_from_source(str(path))).parent
        for compiled in cache.glob("asyncblend.*.pyc"):
            compiled.unlink()
            removed.append(compiled)
    # `addons/modules` in Blender's folder for scripts, made by this command if it was missing.
    for folder in (cache, path.parent, path.parent.parent, path.parent.parent.parent):
        try:
            folder.rmdir()
        except FileNotFoundError:
            continue
        except OSError:  # there is something of the user's in it
            break
        removed.append(folder)
    return removed


async def prepare(blender: Blender) -> Linkable:
    """Ask a Blender about itself, and install what its Python lacks.

    Raises:
        InstanceError: That failed.
        BlenderNotFound: It cannot be executed, or is a Python without the bpy module.
        ConfigError: The temporary folder has no room.
    """
    from ..fleet.install import packages
    from ..fleet.pythons import module_of

    if blender.kind == "module":
        await module_of(blender.path)
    modules, about = await _answer(blender, _ASK_ALL, bootstrap=str(BOOTSTRAP), cache=str(packages.cache_folder()))
    report = Report(**about)
    if report.packages is not None:
        await packages.install(report.packages, report.python, Path(report.folder))
    return Linkable(Path(modules), report.folder)


async def _modules_of(blender: Blender) -> Path:
    """Ask a Blender where it looks for the user's modules."""
    return Path((await _answer(blender, _ASK_WHERE))[0])


async def _answer(blender: Blender, question: str, **filled: str) -> list[Any]:
    from ..fleet.process import output_of

    needs, folder = _FOLDERS[blender.kind]
    ask = question.format(answer=_ANSWER, needs=needs, folder=folder, **filled)
    # -I: what the environment variables of this Python name is no part of the other one.
    how = ["-I", "-c"] if blender.kind == "module" else ["--background", "--factory-startup", "--python-expr"]
    try:
        status, output = await output_of([blender.path, *how, ask], os.environ, limit=_LIMIT)
    except TimeoutError:
        raise InstanceError(f"{blender.path} did not answer within {_LIMIT:g} s") from None
    except OSError as error:
        raise BlenderNotFound(f"cannot execute {blender.path}: {error.strerror}") from None
    for line in output.splitlines():
        if line.startswith(_ANSWER):
            answer: list[Any] = json.loads(line.removeprefix(_ANSWER))
            return answer
    raise InstanceExited(f"{blender.path} did not say where its modules are:\n{output}", returncode=status)
