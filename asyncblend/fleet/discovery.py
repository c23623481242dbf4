"""Which Blenders are on this machine. Looks at files only: no Blender is started, and the module is not imported.

So nobody knows yet whether a Python that the user names has the module: `pythons.check` asks it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import sys
from dataclasses import dataclass, field
from typing import Literal

from ..errors import BlenderNotFound
from .install.embedded import MODULES, embedded_pythons, pythons_for_it

VARIABLE = "ASYNCBLEND_BLENDER"
"""Environment variable that says which Blender to use when no option does. It takes the same forms."""

_MODULE = "bpy"
_FORMS = (
    f"Give the path of Blender's executable, or of its folder, or {_MODULE!r} for the pip module, "
    f"or the Python of another environment that has the module."
)


@dataclass(frozen=True)
class Blender:
    """A Blender that can be started."""

    kind: Literal["module", "executable"]
    path: str
    """Absolute path of the executable, or of the Python that imports the module: this one, the embedded Blender's, or
    that of another environment."""

    found: str = field(default="", compare=False)
    """Where it was found, in words for people."""


def find_blender(blender: str | os.PathLike[str] | None = None) -> Blender:
    """Return the Blender that an option asks for.

    Args:
        blender: The path of an executable, of a folder that holds one, or of a Python that has the pip module, which
            may be another version than this one; or of the folder of its environment. A name without a slash is that of
            a command on the PATH, as in a shell, if there is one. Or "bpy" for the module in this Python, else the
            embedded Blender (see `make_embedded`).
            None: $ASYNCBLEND_BLENDER in the same forms, else `blender` on the PATH, else as for "bpy".

    Raises:
        BlenderNotFound: Nothing usable is there. The message says where we looked and what to do. A wrong option or
            variable is an error; no other Blender is used in its place.
    """
    if blender is not None:
        return _named(os.fspath(blender), f"blender={os.fspath(blender)!r}")
    if named := os.environ.get(VARIABLE):
        return _named(named, f"${VARIABLE}={named!r}")
    for found in _unnamed():
        return found
    raise BlenderNotFound(
        f"No Blender found: ${VARIABLE} is not set, there is no `blender` on the PATH "
        f"({os.environ.get('PATH', '')}), and {sys.executable} has no module {_MODULE}.\n"
        f"Install Blender, or give its path as the option blender=... or in ${VARIABLE}, or use the module: "
        f"{_how_to_get_module()}"
    )


def is_path(blender: str) -> bool:
    """Return whether an option is taken for a path: it is neither "bpy" nor the name of a command on the PATH."""
    return blender != _MODULE and _command(blender) is None


def all_blenders() -> list[Blender]:
    """Return each Blender that is found on this machine, in the order in which `find_blender(None)` tries them.

    A wrong $ASYNCBLEND_BLENDER is passed over here; `find_blender(None)` raises what is wrong with it.
    """
    found: list[Blender] = []
    if named := os.environ.get(VARIABLE):
        with contextlib.suppress(BlenderNotFound):
            found.append(_named(named, f"${VARIABLE}"))
    return list(dict.fromkeys(found + _unnamed()))


def _unnamed() -> list[Blender]:
    """Return the Blenders that need no option and no variable."""
    path = shutil.which("blender")
    # An entry of PATH may be relative, and the fleet's working directory may change.
    on_path = [Blender("executable", os.path.abspath(path), "`blender` on the PATH")] if path else []
    return [*on_path, *_module("the bpy module"), *_embedded("the embedded Blender")]


def _named(name: str, given: str) -> Blender:
    """Return the Blender at a path, or the module. `given` says who named it, for messages."""
    if name == _MODULE:
        for module in (*_module(given), *_embedded(given)):
            return module
        why = _no_module()
        raise BlenderNotFound(f"{given}: {why}\n(A file or folder of that name: ./{_MODULE})", details=why)
    path = os.path.abspath(_command(name) or os.path.expanduser(name))
    if path == sys.executable:
        for module in _module(given):
            return module
        raise BlenderNotFound(f"{given}: {_no_module()}", details=_no_module())
    if (embedded := Blender("module", path, given)) in _embedded(given):
        return embedded
    if os.path.isdir(path):
        return _in_folder(path, given)
    if not os.path.exists(path):
        nor = f", and there is no {name} on the PATH" if os.path.basename(name) == name else ""
        raise BlenderNotFound(f"{given}: {path} does not exist{nor}. {_FORMS}")
    if not shutil.which(path):
        raise BlenderNotFound(f"{given}: {path} is not an executable file. {_FORMS}")
    return Blender("module" if _is_python(path) else "executable", path, given)


def _command(name: str) -> str | None:
    """Return the path of the command on the PATH that has this name, which a path with a slash is not."""
    return shutil.which(name) if os.path.basename(name) == name else None


def _in_folder(folder: str, given: str) -> Blender:
    names = ["blender"]
    if sys.platform == "darwin":
        names = ["Blender.app/Contents/MacOS/Blender", "Contents/MacOS/Blender", "Blender", "blender"]
    for name in names:
        if path := shutil.which(os.path.join(folder, name)):
            return Blender("executable", path, given)
    own = os.path.join(folder, "bin", "python")  # of an environment
    if python := shutil.which(own):
        return Blender("module", python, given)
    if os.path.islink(own) and not os.path.exists(own):
        raise BlenderNotFound(
            f"{given}: the environment in {folder} has lost its Python: {own} leads to {os.path.realpath(own)}, which "
            f"does not exist. Make the environment again with a Python that is there"
        )
    raise BlenderNotFound(
        f"{given}: there is no Blender in the folder {folder}: looked for {', '.join(names)} there, "
        f"as an executable file. {_FORMS}"
    )


def _is_python(path: str) -> bool:
    """Return whether an executable is a Python by its name, or by that of the file that it is a link to."""
    names = (os.path.basename(path), os.path.basename(os.path.realpath(path)))
    return any(re.fullmatch(r"python[\d.]*t?", name, re.IGNORECASE) for name in names)


def _module(found: str) -> list[Blender]:
    try:
        spec = importlib.util.find_spec(_MODULE)  # importing it would take seconds, and the host has no use for it
    except ValueError:  # something without a spec stands in its place in sys.modules
        spec = None
    # Without an origin it is only a folder of that name, somewhere on sys.path.
    return [Blender("module", sys.executable, found)] if spec is not None and spec.origin else []


def _embedded(found: str) -> list[Blender]:
    return [Blender("module", python, found) for python in embedded_pythons()]


def _no_module() -> str:
    return f"{sys.executable} has no module {_MODULE}. {_how_to_get_module()}"


def _how_to_get_module() -> str:
    python = f"Python {sys.version_info[0]}.{sys.version_info[1]}"
    if sys.version_info[:2] in MODULES:
        return 'pip install "asyncblend[bpy]", or in an environment of its own: asyncblend doctor --fix'
    made_for = " and ".join(f"{a}.{b}" for a, b in MODULES)
    there = next((f"for {path}" for _, path in pythons_for_it()), "where one of them is on the PATH")
    return (
        f"There is none for {python}, which runs here; there are some for Python {made_for}. "
        f"`asyncblend doctor --fix` installs one {there}"
    )
