"""Which packages are missing here, and the line that installs them into this Python."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import sys

from ..fleet.install.installer import installer

_BASE = ("numpy", "zmq", "PIL", "isal", "filelock", "platformdirs")
"""The modules that almost every command imports."""
_PACKAGES = {
    "zmq": "pyzmq",
    "PIL": "pillow",
    "matplotlib": "asyncblend[plot]",
    "pycocotools": "asyncblend[coco]",
    "prometheus_client": "asyncblend[metrics]",
    "webdataset": "asyncblend[record]",
    "ray": "asyncblend[ray]",
    "rerun": "asyncblend[view]",
    "pyarrow": "asyncblend[ray]",
}
"""What pip installs for a module, where that is not the module's name."""


def is_missing(module: str) -> bool:
    """Return whether a module is not installed. Nothing is imported: torch would take seconds."""
    try:
        return importlib.util.find_spec(module) is None
    except ImportError:  # an import hook refuses it
        return True


def require(*modules: str) -> None:
    """Raise ModuleNotFoundError now if a command would miss a module later. `main` makes it the line to type."""
    for module in modules:
        if is_missing(module):
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)


def what_to_install(error: ImportError) -> str | None:
    """Return a sentence with the missing packages and the line that installs them, or None if that is not the reason.

    A package that is there and cannot be imported is to be installed again.
    """
    named = (error.name or "").partition(".")[0]
    if not (missing := [module for module in dict.fromkeys((named, *_BASE)) if module and is_missing(module)]):
        if named in ("", "asyncblend") or named in sys.stdlib_module_names:
            return None
        line = pip("--force-reinstall", _PACKAGES.get(named, named))
        return f"{named} is installed here, but cannot be imported: {error}. Type: {line}"
    line = pip(*(_PACKAGES.get(module, module) for module in missing))
    return f"This command needs what is not installed here: {', '.join(missing)}. Type: {line}"


def pip(*packages: str) -> str:
    """Return the shortest command line that surely installs packages into the Python that runs here."""
    names = " ".join(p if shlex.quote(p) == p else f'"{p}"' for p in packages)
    pip = shutil.which("pip")
    if pip is not None and os.path.dirname(os.path.abspath(pip)) == os.path.dirname(sys.executable):
        return f"pip install {names}"
    return f"{shlex.join(installer(sys.executable) or [sys.executable, '-m', 'pip', 'install'])} {names}"
