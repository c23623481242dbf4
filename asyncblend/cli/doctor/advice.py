"""What `asyncblend doctor` says to type."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import BlenderNotFound
from ...fleet.discovery import VARIABLE, all_blenders, find_blender
from ...fleet.install.embedded import pythons_for_it

if TYPE_CHECKING:
    from ...fleet.discovery import Blender

__all__ = ["apt", "by_hand", "option", "pip", "ways_to_a_blender"]

_DOWNLOAD = "https://www.blender.org/download/"
_APT_LISTS = Path("/var/lib/apt/lists")


def option(blender: Blender) -> str:
    """What the option `blender` takes for it."""
    if blender.kind == "module":
        try:
            if find_blender("bpy") == blender:
                return "bpy"
        except BlenderNotFound:
            pass
    return blender.path


def pip(*packages: str) -> str:
    """The command that installs into this very Python, as short as it is right."""
    names = " ".join(p if shlex.quote(p) == p else f'"{p}"' for p in packages)
    pip = shutil.which("pip")
    if pip is not None and os.path.dirname(os.path.abspath(pip)) == os.path.dirname(sys.executable):
        return f"pip install {names}"
    if importlib.util.find_spec("pip") is None and shutil.which("uv") is not None:
        return f"uv pip install --python {shlex.quote(sys.executable)} {names}"
    return f"{shlex.quote(sys.executable)} -m pip install {names}"


def apt(*packages: str) -> str:
    """The command that installs Debian's packages, with what this user and this machine need before."""
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    command = "apt-get" if root else "sudo apt-get"
    fresh = any(_APT_LISTS.glob("*_Packages*"))  # a bare container has none
    return f"{'' if fresh else f'{command} update && '}{command} install {' '.join(packages)}"


def ways_to_a_blender(message: str, name: str | None, *, fix: bool) -> list[str]:
    """What to type for a Blender, the nearest way first.

    Args:
        message: discovery's, which knows of wheels.
        name: the option that named a Blender.
        fix: whether `--fix` has been tried.
    """
    ways = []
    others = all_blenders()
    if name is None and os.environ.get(VARIABLE) and others:
        ways.append(f"unset {VARIABLE}")
    if not fix and not any(one.kind == "module" for one in others) and any(pythons_for_it()):
        ways.append("asyncblend doctor --fix")
    if "asyncblend[bpy]" in message:
        ways.append(pip("asyncblend[bpy]"))
    if name is not None:
        ways += [f"asyncblend doctor --blender {shlex.quote(option(one))}" for one in others]
    if sys.platform == "linux" and not shutil.which("blender"):
        ways.append(apt("blender") + ("" if shutil.which("apt-get") else "    (on Debian and Ubuntu)"))
    ways.append(f"asyncblend doctor --blender FOLDER    (with the folder of a Blender from {_DOWNLOAD})")
    return ways


def by_hand(blender: Blender) -> str:
    """Starts it without us, to see all that it says."""
    path = shlex.quote(blender.path)
    if blender.kind == "module":
        return f'{path} -c "import bpy; print(bpy.app.version_string)"'
    return f'{path} --background --factory-startup --python-expr "import bpy, sys; print(sys.version)"'
