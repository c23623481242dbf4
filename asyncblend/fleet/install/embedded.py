"""The embedded Blender: the pip module `bpy` in an environment of its own, in the user's cache.

The module pins numpy below 2 and is made for few Pythons, so it does not go into the trainer's environment.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import secrets
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import InstanceError
from ..process import output_of
from . import packages

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["MODULES", "embedded_pythons", "make_embedded", "pythons_for_it", "site_packages"]

_log = logging.getLogger("asyncblend")

MODULES = {(3, 11): "bpy>=4.5,<4.6", (3, 13): "bpy>=5.1"}
"""By Python version, what is installed for it: as the extra `bpy`."""

_BESIDE = ("numpy", "pyzmq")
_CURRENT = "current"
"""File that names the one complete environment beside it. It is written last, for an environment cannot be moved."""
_BY_HAND = "by-hand"
_SHOWN_LINES = 12
"""Lines of the installer's output that an error's message shows; `log_tail` has all."""
_NOT_FOR_IT = ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_PYTHON")
"""Variables that would let the installer look, or install, elsewhere."""


def embedded_pythons() -> Iterator[str]:
    """The Python of each complete environment on this machine, the best first. Looks at files only."""
    for version in _by_preference():
        if (python := _complete(_home(version))) is not None:
            yield python


def pythons_for_it() -> Iterator[tuple[tuple[int, int], str]]:
    """Version and path of the Pythons that there is a module for: this one, and what is on the PATH by its name.

    Looks at files only: what is there need not start.
    """
    for version in _by_preference():
        if version == sys.version_info[:2]:
            yield version, sys.executable
        for folder in os.get_exec_path():
            if python := shutil.which(f"python{version[0]}.{version[1]}", path=folder):
                yield version, os.path.abspath(python)


def site_packages(python: str) -> Path:
    """Where an environment's packages are. `python`: of `embedded_pythons`."""
    environment = Path(python).parents[1]
    if sys.platform == "win32":
        return environment / "Lib" / "site-packages"
    return next(environment.glob("lib/python3.*/site-packages"), environment / "lib")


async def make_embedded() -> str:
    """Make the environment, unless there is one; return its Python.

    It takes half a minute and some 350 MB of download. Tasks and processes that make it at a time wait for each other.
    Cancelling ends the installer and removes what is half made; what a killed process left is not taken for an
    environment, and goes the next time.

    Raises:
        InstanceError: there is no module for any Python here, or it could not be installed; the message has the
            installer's last lines and the command.
    """
    for python in embedded_pythons():
        return python
    version, base = await _working_python()
    home = _home(version)
    try:
        home.mkdir(parents=True, exist_ok=True)
        async with packages._locked(home):
            return _complete(home) or await _make(base, version, home)
    except OSError as error:
        raise InstanceError(
            f"Cannot write {MODULES[version]} into {home}: {error}\n$ASYNCBLEND_CACHE names another folder for it.",
            command=packages.OTHER_FOLDER,
        ) from error


def _by_preference() -> list[tuple[int, int]]:
    return sorted(MODULES, key=lambda version: version != sys.version_info[:2])


def _home(version: tuple[int, int]) -> Path:
    """The folder with the environment, among folders of other Pythons and platforms."""
    tag = f"cpython-{version[0]}{version[1]}-{sysconfig.get_platform()}"
    return packages.cache_folder().parent / f"bpy-{tag}"


def _complete(home: Path) -> str | None:
    """The Python of the environment that is complete, if that is still there and starts something."""
    try:
        name = (home / _CURRENT).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    python = _python_in(home / name)
    whole = os.access(python, os.X_OK) and (site_packages(python) / "bpy").is_dir()
    return python if name and whole else None


def _python_in(environment: Path) -> str:
    # Links are kept: followed, it would be the Python that the environment was made of.
    return os.path.abspath(environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python"))


async def _working_python() -> tuple[tuple[int, int], str]:
    """The first Python that really starts (a version manager's stand-in may not), and can make environments."""
    for version, python in pythons_for_it():
        check = f"import sys, venv; sys.exit(sys.version_info[:2] != {version})"
        with contextlib.suppress(OSError):
            if (await _run([python, "-I", "-c", check]))[0] == 0:
                return version, python
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    names = " and no ".join(f"python{a}.{b}" for a, b in MODULES)
    versions = " or ".join(f"{a}.{b}" for a, b in MODULES)
    why = (
        f"this Python {here} cannot make environments"
        if sys.version_info[:2] in MODULES
        else f"There is no module bpy for Python {here}, which runs here"
    )
    raise InstanceError(
        f"{why}, and no {names} that works is on the PATH.\n"
        f"Install Python {versions}, and type `asyncblend doctor --fix` again.",
        command=f"asyncblend doctor --fix    (with Python {versions} on the PATH)",
    )


async def _make(base: str, version: tuple[int, int], home: Path) -> str:
    environment = home / f"env-{secrets.token_hex(4)}"
    _sweep(home, keep=environment)
    python = _python_in(environment)
    _log.info("Installing %s into %s (once; it takes a while)", MODULES[version], environment)
    try:
        for command in _commands(base, version, environment, python):
            code, output = await _run(command, home)  # there, `_sweep` finds the log
            if code:
                last = "\n".join(output.splitlines()[-_SHOWN_LINES:])
                raise InstanceError(
                    f"Installing {MODULES[version]} for Python {version[0]}.{version[1]} failed with status {code}:\n"
                    f"{last}\nTo install by hand, type:\n{_by_hand(base, version, home)}",
                    log_tail=output,
                    details=last,
                    command=_by_hand(base, version, home),
                )
        fresh = environment / _CURRENT
        fresh.write_text(environment.name, encoding="utf-8")
        fresh.replace(home / _CURRENT)
        _sweep(home, keep=environment)  # the installer of a killed process may have gone on
    except BaseException:
        shutil.rmtree(environment, ignore_errors=True)
        raise
    return python


def _sweep(home: Path, keep: Path) -> None:
    """Remove other environments: of processes that were killed, or of a Python that is gone."""
    for entry in home.iterdir():
        if entry.is_dir() and entry != keep:
            shutil.rmtree(entry, ignore_errors=True)


def _commands(base: str, version: tuple[int, int], environment: Path, python: str) -> Iterator[list[str]]:
    """The host's pip installs, else uv, else a pip of the environment's own, which not every Python can make."""
    wanted = [MODULES[version], *_BESIDE]
    quiet = ["--no-input", "--disable-pip-version-check", "--only-binary=:all:"]
    uv = shutil.which("uv")
    if importlib.util.find_spec("pip") is not None:
        yield [base, "-m", "venv", "--without-pip", str(environment)]
        yield [sys.executable, "-m", "pip", "--python", python, "install", *quiet, *wanted]
    elif uv is not None:
        yield [base, "-m", "venv", "--without-pip", str(environment)]
        yield [uv, "pip", "install", "--python", python, "--only-binary=:all:", *wanted]
    else:
        yield [base, "-m", "venv", str(environment)]
        yield [python, "-m", "pip", "install", *quiet, *wanted]


def _by_hand(base: str, version: tuple[int, int], home: Path) -> str:
    """One line for a shell that does the same, and says that it is done."""
    environment = home / _BY_HAND
    steps = [*_commands(base, version, environment, _python_in(environment)), ["echo", _BY_HAND]]
    return f"{' && '.join(map(shlex.join, steps))} > {shlex.quote(str(home / _CURRENT))}"


async def _run(command: Sequence[str], folder: Path | None = None) -> tuple[int, str]:
    """Exit status and last output of a command, whose log is in `folder` meanwhile. Cancelling kills it."""
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_IT}
    environment.update(PIP_USER="0", PIP_REQUIRE_VIRTUALENV="0")
    return await output_of(command, environment, folder=folder)
