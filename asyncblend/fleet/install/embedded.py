"""The embedded Blender: the pip module `bpy` in an environment of its own, in the user's cache.

The module exists for few versions of Python, and some pin numpy below 2, so it does not go into the trainer's
environment. There may be one embedded Blender for each Python that the module is made for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ...errors import InstanceError
from ...wire.ownership import why_untrusted
from ..process import output_of
from .installer import installer
from .packages import PRIVATE, cache_folder, locked, run_installer

if TYPE_CHECKING:
    from collections.abc import Iterator

_log = logging.getLogger("asyncblend")

Version: TypeAlias = tuple[int, int]
"""Of a Python: (3, 11)."""

MODULES = {(3, 11): "bpy>=4.5,<4.6", (3, 13): "bpy>=5.2,<5.3"}
"""By each version of Python that the module is made for, what is installed; the same as the extra `bpy` installs. These
are Blender's releases with long-term support, which the tests run on."""
RELEASES = {"4.5": (3, 11), "5.2": (3, 13)}
"""By each of these releases, the Python that it is made for."""

_BESIDE = ("numpy", "pyzmq")
_CURRENT = "current"
"""File that names the complete environment beside it. It is written last, as an environment cannot be moved."""
_MISLEADING = ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_PYTHON")
"""Environment variables that would let the installer look, or install, elsewhere."""


def embedded_pythons(version: Version | None = None) -> Iterator[str]:
    """Yield the Python of each complete environment on this machine, the best one first. Looks at files only.

    One that somebody else may have changed is passed over, with a warning.

    Args:
        version: The version of Python that is wanted. None: any.
    """
    for each in _by_preference(version):
        home = _home(each)
        if (python := _complete(home)) is None:
            continue
        if why := why_untrusted(home, home.parent):
            _log.warning("Not using %s: %s", python, why)
        else:
            yield python


def pythons_for_it(version: Version | None = None) -> Iterator[tuple[Version, str]]:
    """Yield version and path of each Python that the module exists for: this one, those on the PATH, pyenv's and uv's.

    Looks at files only, so a Python that is yielded may not start.

    Args:
        version: The version that is wanted. None: any.
    """
    for found in _by_preference(version):
        if found == sys.version_info[:2]:
            yield found, sys.executable
        name = f"python{found[0]}.{found[1]}"
        for folder in (*os.get_exec_path(), *_folders_of_managers(found)):
            if python := shutil.which(name, path=folder):
                yield found, os.path.abspath(python)


async def working_python(version: Version | None = None) -> tuple[Version, str] | None:
    """Return the first of `pythons_for_it` that starts, and has the module `venv`; or None.

    A version manager's stand-in on the PATH may not start.
    """
    for found, python in pythons_for_it(version):
        check = f"import sys, venv; sys.exit(sys.version_info[:2] != {found})"
        with contextlib.suppress(OSError):
            if (await output_of([python, "-I", "-c", check], os.environ))[0] == 0:
                return found, python
    return None


def _folders_of_managers(version: Version) -> Iterator[str]:
    """Yield the folders in which pyenv and uv keep Pythons of this version."""
    number = f"{version[0]}.{version[1]}"
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    pyenv = os.environ.get("PYENV_ROOT") or "~/.pyenv"
    uv = os.environ.get("UV_PYTHON_INSTALL_DIR") or f"{data}/uv/python"
    for root, name in ((f"{pyenv}/versions", f"{number}.*"), (uv, f"cpython-{number}.*")):
        with contextlib.suppress(OSError):
            yield from map(str, sorted(Path(os.path.expanduser(root)).glob(f"{name}/bin")))


def site_packages(python: str) -> Path:
    """Return the folder with the packages of an environment, whose Python `embedded_pythons` gave."""
    environment = Path(python).parents[1]
    return next(environment.glob("lib/python3.*/site-packages"), environment / "lib")


async def make_embedded(wanted: Version | None = None) -> str:
    """Make the environment unless there is one, and return the path of its Python.

    It takes half a minute and a download of some 350 MB. Tasks and processes that make it at the same time wait for
    each other. Cancelling this ends the installer and removes the unfinished environment. What a killed process has
    left is not taken for an environment, and is removed the next time.

    Args:
        wanted: The version of Python, and so the release of Blender. None: any, if possible that of this Python.

    Raises:
        InstanceError: There is no Python here that the module is made for, or it could not be installed. The message has
            the installer's last lines and the command.
    """
    for python in embedded_pythons(wanted):
        return python
    if (found := await working_python(wanted)) is None:
        raise _no_python(wanted)
    version, base = found
    home = _home(version)
    async with locked(home, MODULES[version]):
        home.mkdir(PRIVATE, exist_ok=True)
        return _complete(home) or await _make(base, version, home)


def _by_preference(wanted: Version | None) -> list[Version]:
    if wanted is not None:
        return [wanted]
    return sorted(MODULES, key=lambda version: version != sys.version_info[:2])


def _home(version: Version) -> Path:
    """Return the folder of the environment, beside those for other Pythons and platforms."""
    tag = f"cpython-{version[0]}{version[1]}-{sysconfig.get_platform()}"
    return cache_folder().parent / f"bpy-{tag}"


def _complete(home: Path) -> str | None:
    """Return the Python of the environment that is complete, if it can be executed and has the module."""
    try:
        name = (home / _CURRENT).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    python = _python_in(home / name)
    whole = os.access(python, os.X_OK) and (site_packages(python) / "bpy").is_dir()
    return python if name and whole else None


def _python_in(environment: Path) -> str:
    # Not resolved: the link leads to the Python that the environment was made with.
    return os.path.abspath(environment / "bin/python")


def _no_python(wanted: Version | None) -> InstanceError:
    here, fix = f"Python {sys.version_info[0]}.{sys.version_info[1]}", "asyncblend doctor --fix"
    why = f"There is no module bpy for {here}, which runs here"
    if sys.version_info[:2] in MODULES:
        why = f"This {here} cannot make environments"
    versions = [f"{a}.{b}" for a, b in _by_preference(wanted)]
    if wanted is not None:
        (release,) = (name for name, version in RELEASES.items() if version == wanted)
        fix += f" --bpy {release}"
        if wanted != sys.version_info[:2]:
            why = f"The module bpy {release} is for Python {versions[0]} only, and {here} runs here"
    return InstanceError(
        f"{why}, and no python{' and no python'.join(versions)} that works is on the PATH, or among those of pyenv and "
        f"uv.\nInstall Python {' or '.join(versions)}, and type `{fix}` again.",
        command=f"{fix}    (with Python {' or '.join(versions)} on the PATH)",
    )


async def _make(base: str, version: Version, home: Path) -> str:
    environment = home / f"env-{secrets.token_hex(4)}"
    _remove_others(environment)
    _log.info("Installing %s into %s (once; it takes a while)", MODULES[version], environment)
    try:
        for command in _commands(base, version, environment):
            await run_installer(
                command,
                f"Installing {MODULES[version]} for Python {version[0]}.{version[1]}",
                _by_hand(base, version, home),
                without=_MISLEADING,
                folder=home,  # should this process be killed, `_remove_others` finds the log there
            )
        current = environment / _CURRENT
        current.write_text(environment.name, encoding="utf-8")
        current.replace(home / _CURRENT)
        _remove_others(environment)  # the installer of a killed process may have gone on
    except BaseException:
        shutil.rmtree(environment, ignore_errors=True)
        raise
    return _python_in(environment)


def _remove_others(environment: Path) -> None:
    """Remove the environments beside this one: of processes that were killed, or of a Python that is gone."""
    for entry in environment.parent.iterdir():
        if entry.is_dir() and entry != environment:
            shutil.rmtree(entry, ignore_errors=True)


def _commands(base: str, version: Version, environment: Path) -> Iterator[list[str]]:
    """Yield the command lines: with the host's installer, or a pip in the environment, which not every Python has."""
    python = _python_in(environment)
    quiet = ["--no-input", "--disable-pip-version-check"]
    command = installer(python, of_pip=quiet)
    yield [base, "-m", "venv", *(["--without-pip"] if command else []), str(environment)]
    command = command or [python, "-m", "pip", "install", *quiet]
    yield [*command, "--only-binary=:all:", MODULES[version], *_BESIDE]


def _by_hand(base: str, version: Version, home: Path) -> str:
    """Return one line for a shell that makes an environment and records that it is complete."""
    environment = home / "by-hand"
    steps = [*_commands(base, version, environment), ["echo", environment.name]]
    return f"{' && '.join(map(shlex.join, steps))} > {shlex.quote(str(home / _CURRENT))}"
