"""Command lines for the user to type, as short as they are right on this machine."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from ...errors import BlenderNotFound
from ...fleet.discovery import VARIABLE, Blender, all_blenders, find_blender
from ...fleet.install.embedded import MODULES, RELEASES, embedded_pythons, pythons_for_it, working_python
from ..needs import pip

_DOWNLOAD = "https://www.blender.org/download/"
_APT_LISTS = Path("/var/lib/apt/lists")


def find(name: str | None) -> Blender | BlenderNotFound:
    """Return the Blender that an option asks for, or the error that says why there is none."""
    try:
        return find_blender(name)
    except BlenderNotFound as error:
        return error


def is_embedded(blender: Blender) -> bool:
    """Return whether a Blender is the module in the environment that `--fix` makes."""
    return blender.path in embedded_pythons()


def option(blender: Blender) -> str:
    """Return what the option `blender` takes for a Blender."""
    return "bpy" if blender.kind == "module" and find("bpy") == blender else blender.path


def take(name: str) -> str:
    """Return the command after which a Blender is used where no option names another one."""
    return f"export {VARIABLE}={shlex.quote(name)}"


async def offers() -> list[dict[str, str]]:
    """Return the releases of Blender that `--bpy` can install here, and has not yet, each with the Python it takes."""
    found = []
    for release, version in RELEASES.items():
        is_here = version == sys.version_info[:2] and any(_is_own_module(one) for one in all_blenders())
        if is_here or any(embedded_pythons(version)) or (python := await working_python(version)) is None:
            continue
        found.append({"release": release, "python": python[1], "command": f"asyncblend doctor --bpy {release}"})
    return found


def _is_own_module(blender: Blender) -> bool:
    return blender.kind == "module" and blender.path == sys.executable


def apt(*packages: str) -> str:
    """Return the command that installs Debian's packages, with what this user and this machine need before it."""
    command = "apt-get" if hasattr(os, "geteuid") and os.geteuid() == 0 else "sudo apt-get"
    has_lists = any(_APT_LISTS.glob("*_Packages*"))  # a bare container has none
    return f"{'' if has_lists else f'{command} update && '}{command} install {' '.join(packages)}"


def ways_to_a_blender(name: str | None, *, fix: bool) -> list[str]:
    """Return what to type to get the Blender that an option names, the nearest way first. `fix`: `--fix` was tried."""
    ways, others = [], all_blenders()
    if name is None and os.environ.get(VARIABLE) and others:
        ways.append(f"unset {VARIABLE}")
    if not any(one.kind == "module" for one in others):
        if not fix and any(pythons_for_it()):
            ways.append("asyncblend doctor --fix")
        if name in (None, "bpy") and sys.version_info[:2] in MODULES:
            ways.append(pip("asyncblend[bpy]"))
    if name is not None:
        ways += [f"asyncblend doctor --blender {shlex.quote(option(one))}" for one in others]
    if sys.platform == "linux" and not shutil.which("blender"):
        ways.append(apt("blender") + ("" if shutil.which("apt-get") else "    (on Debian and Ubuntu)"))
    ways.append(f"asyncblend doctor --blender FOLDER    (with the folder of a Blender from {_DOWNLOAD})")
    return ways


def by_hand(blender: Blender) -> str:
    """Return the command that starts a Blender without asyncblend, to see all that it prints."""
    path = shlex.quote(blender.path)
    if blender.kind == "module":
        return f'{path} -c "import bpy; print(bpy.app.version_string)"'
    return f'{path} --background --factory-startup --python-expr "import bpy, sys; print(sys.version)"'
