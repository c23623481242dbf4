"""`asyncblend link`: let a Blender's own Python import asyncblend, for scripts that are run in Blender itself."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console

from ..aio import run
from ..errors import InstanceError, InstanceExited
from ..wire.launch import BOOTSTRAP, Report
from .options import BlenderOption

if TYPE_CHECKING:
    from ..fleet.discovery import Blender

_LIMIT = 120.0  # seconds for Blender to answer
_ANSWER = "asyncblend: "
_ASK = """\
import bpy, dataclasses, json, runpy
runpy.run_path({bootstrap!r})["load_asyncblend"]()
from asyncblend.blender.serving import requirements
modules = bpy.utils.user_resource("SCRIPTS", path="addons/modules", create=True)
print({answer!r} + json.dumps([modules, dataclasses.asdict(requirements.look({cache!r}))]))
"""
# The host's site-packages must never be on Blender's path: this module loads the package alone, and becomes it.
_STUB = """\
# Written by `asyncblend link`; delete this file to undo it.
import runpy, sys
sys.path.append({packages!r})  # what this Python lacks
runpy.run_path({bootstrap!r})["load_asyncblend"]()
"""


class Linkable(NamedTuple):
    """A Blender that has all that asyncblend needs, but does not know where asyncblend is."""

    modules: Path
    """Blender's folder for the user's modules."""
    packages: str
    """The folder with the packages that Blender's Python lacks. It goes last on `sys.path`."""


def link(blender: BlenderOption = None) -> None:
    """Let scripts that are run in Blender itself import asyncblend: in its text editor, or by `blender -b --python`.

    The scripts of a stream do not need this. The command writes one small file into Blender's folder for the user's
    modules, and prints its path. If Blender's Python has no numpy or pyzmq, they are installed into a cache folder,
    as a stream does it.
    """
    from ..fleet.discovery import find_blender

    console = Console()
    found = find_blender(blender)
    if found.kind == "module":
        console.print("This is the bpy module: `python script.py` needs no link.")
        return
    with console.status("Asking Blender ..."):
        ready = run(prepare(found))
    path = ready.modules / "asyncblend.py"
    path.write_text(_STUB.format(bootstrap=str(BOOTSTRAP), packages=ready.packages), encoding="utf-8")
    console.print(f"Wrote {path}", soft_wrap=True)
    console.print("Try it: blender -b --python script.py", style="dim")


async def prepare(blender: Blender) -> Linkable:
    """Ask a Blender executable about itself, and install what its Python lacks. Raises InstanceError if that fails."""
    from ..fleet.install import packages
    from ..fleet.process import output_of

    ask = _ASK.format(bootstrap=str(BOOTSTRAP), answer=_ANSWER, cache=str(packages.cache_folder()))
    command = [blender.path, "--background", "--factory-startup", "--python-expr", ask]
    try:
        status, output = await output_of(command, os.environ, limit=_LIMIT)
    except TimeoutError:
        raise InstanceError(f"{blender.path} did not answer within {_LIMIT:g} s") from None
    for line in output.splitlines():
        if line.startswith(_ANSWER):
            modules, about = json.loads(line.removeprefix(_ANSWER))
            report = Report(**about)
            if report.packages is not None:
                await packages.install(report.packages, report.python, Path(report.folder))
            return Linkable(Path(modules), report.folder)
    raise InstanceExited(f"{blender.path} did not say where its modules are:\n{output}", returncode=status)
