"""Which packages are missing here, and the line that installs them into this Python."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import sys

__all__ = ["is_missing", "pip", "require", "what_to_install"]

_BASE = {
    "numpy": "numpy",
    "zmq": "pyzmq",
    "PIL": "pillow",
    "filelock": "filelock",
    "platformdirs": "platformdirs",
}
"""Modules that almost every command imports, and what pip installs for each."""
_OTHERS = {
    "torch": "torch",
    "matplotlib": "asyncblend[plot]",
    "pycocotools": "asyncblend[coco]",
    "webdataset": "asyncblend[record]",
}
"""Modules that one command imports."""


def is_missing(module: str) -> bool:
    """Return whether a module is not installed. Nothing is imported: torch would take seconds."""
    try:
        return importlib.util.find_spec(module) is None
    except ImportError:  # an import hook refuses it
        return True


def require(*modules: str) -> None:
    """Stop a command before it starts anything, if it would miss one of these modules later.

    Raises:
        ModuleNotFoundError: A module is not installed. `main` turns this into the line to type.
    """
    for module in modules:
        if is_missing(module):
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)


def what_to_install(error: ImportError) -> str | None:
    """Return a sentence that names the missing packages and the line that installs them.

    Returns:
        None if no package is missing: then the error is a mistake of ours, or an installation is broken.
    """
    named = (error.name or "").partition(".")[0]
    missing = [module for module in dict.fromkeys([named, *_BASE]) if module and is_missing(module)]
    if not missing:
        return None
    packages = [(_BASE | _OTHERS).get(module, module) for module in missing]
    verb = "is" if len(missing) == 1 else "are"
    return f"This command needs {' and '.join(missing)}, which {verb} not installed. Type: {pip(*packages)}"


def pip(*packages: str) -> str:
    """Return the shortest command line that surely installs packages into the Python that runs here."""
    names = " ".join(p if shlex.quote(p) == p else f'"{p}"' for p in packages)
    pip = shutil.which("pip")
    if pip is not None and os.path.dirname(os.path.abspath(pip)) == os.path.dirname(sys.executable):
        return f"pip install {names}"
    if importlib.util.find_spec("pip") is None and shutil.which("uv") is not None:
        return f"uv pip install --python {shlex.quote(sys.executable)} {names}"
    return f"{shlex.quote(sys.executable)} -m pip install {names}"
