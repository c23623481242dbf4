"""What Blender's Python lacks (numpy, pyzmq), installed by the host into a folder of the user's cache.

Blender's own folder is never written to, so no administrator's rights are needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import importlib.util
import logging
import os
import secrets
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import InstanceError
from ..process import output_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["OTHER_FOLDER", "cache_folder", "install"]

_log = logging.getLogger("asyncblend")

OTHER_FOLDER = "export ASYNCBLEND_CACHE=FOLDER    (with a folder that you may write to)"
"""What to type where the cache folder cannot be written."""

_FRESH = ".new-"
_NOT_MODULES = {"..", "bin", "Scripts", "__pycache__"}
_SHOWN_LINES = 12
"""Lines of pip's output that an error's message shows; `log_tail` has all."""


def cache_folder() -> Path:
    """The folder with one folder of packages per kind of Python. It need not exist.

    `packages` in $ASYNCBLEND_CACHE, else in `asyncblend` in the user's cache folder.
    """
    if own := os.environ.get("ASYNCBLEND_CACHE"):
        return Path(own).expanduser().absolute() / "packages"
    if sys.platform == "win32":
        caches = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        caches = Path.home() / "Library" / "Caches"
    else:
        named = Path(os.environ.get("XDG_CACHE_HOME", ""))  # relative: to be ignored, say the XDG rules
        caches = named if named.is_absolute() else Path.home() / ".cache"
    return caches / "asyncblend" / "packages"


async def install(packages: Sequence[str], python: str, folder: Path) -> None:
    """Make the packages importable from `folder`, for a CPython of that version on this machine.

    Returns at once if they are there. Tasks and processes that install into one folder at a time wait for each
    other. A package appears in the folder whole: Blenders may read it meanwhile. Cancelling ends the installer
    and leaves the folder as it was.

    Args:
        packages: names of distributions. What they depend on is not installed.
        python: "major.minor" of Blender's Python.
        folder: where to; other packages there stay.

    Raises:
        InstanceError: they could not be installed; the message has the installer's last lines and the command.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        async with _locked(folder):
            missing = [package for package in packages if not _is_in(folder, package)]
            if missing:
                names = " and ".join(missing)
                _log.info("Installing %s for Blender's Python %s into %s (once)", names, python, folder)
                await _install(missing, python, folder)
    except OSError as error:
        raise InstanceError(
            f"Cannot write {', '.join(packages)} for Blender's Python {python} into {folder}: {error}\n"
            f"$ASYNCBLEND_CACHE names another folder for it.",
            command=OTHER_FOLDER,
        ) from error


async def _install(packages: Sequence[str], python: str, folder: Path) -> None:
    # A sibling, so that a rename is all that is left to do. Its name says that nobody reads it.
    fresh = folder.with_name(f"{folder.name}{_FRESH}{secrets.token_hex(4)}")
    fresh.mkdir()
    try:
        code, output = await _run(_command(packages, python, fresh))
        if code:
            last = "\n".join(output.splitlines()[-_SHOWN_LINES:])
            raise InstanceError(
                f"Blender's Python {python} has no {' and no '.join(packages)}, and installing failed with "
                f"status {code}:\n{last}\nTo install by hand, type:\n"
                f"{shlex.join(_command(packages, python, folder))}",
                log_tail=output,
                details=last,
                command=shlex.join(_command(packages, python, folder)),
            )
        _move_in(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _command(packages: Sequence[str], python: str, target: Path) -> list[str]:
    """The installer's command line: the host's pip, else uv, which makes environments without pip.

    Raises:
        InstanceError: there is neither.
    """
    where = ["--target", str(target), "--python-version", python, "--only-binary=:all:", "--no-deps"]
    if importlib.util.find_spec("pip") is not None:
        # Without byte code: it would be of the host's Python, not of Blender's.
        quiet = ["--no-compile", "--no-input", "--disable-pip-version-check", "--no-warn-script-location"]
        return [sys.executable, "-m", "pip", "install", *where, "--implementation", "cp", *quiet, *packages]
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--python", sys.executable, *where, *packages]
    raise InstanceError(
        f"Blender's Python {python} has no {' and no '.join(packages)}, and {sys.executable} has no pip to "
        f"install with, nor is uv on the PATH. Type `{shlex.quote(sys.executable)} -m ensurepip`, and start again.",
        command=f"{shlex.quote(sys.executable)} -m ensurepip",
    )


async def _run(command: Sequence[str]) -> tuple[int, str]:
    """Exit status and last output of a command. Cancelling kills it."""
    # A user's settings that would not go together with --target.
    environment = {**os.environ, "PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"}
    return await output_of(command, environment)


def _is_in(folder: Path, package: str) -> bool:
    """Whether all of a distribution that counts is there: an earlier move may have been cut off."""
    for found in importlib.metadata.distributions(name=package, path=[str(folder)]):
        entries = {file.parts[0] for file in found.files or ()} - _NOT_MODULES
        if entries and all((folder / entry).exists() for entry in entries):
            return True
    return False


def _move_in(fresh: Path, folder: Path) -> None:
    """Move what was installed into place, each entry by one rename."""
    try:
        fresh.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    else:
        return
    entries = [entry for entry in fresh.iterdir() if entry.name not in _NOT_MODULES]
    for entry in sorted(entries, key=_moving_order):
        place = folder / entry.name
        if place.exists():  # left by a move that was cut off
            place.rename(fresh / f"{entry.name}.old")
        entry.rename(place)


def _moving_order(entry: Path) -> int:
    """A module's shared libraries go before it, for a Blender may import it at once; then what says it is there."""
    return {".libs": 0, ".dist-info": 2}.get(entry.suffix, 1)


@contextlib.asynccontextmanager
async def _locked(folder: Path) -> AsyncIterator[None]:
    """Hold the folder's lock, among tasks and processes. Waiting for it never blocks the event loop."""
    if fcntl is None:  # without it, whoever moves in last wins, with the same packages
        yield
        return
    with _lock_file(folder) as lock:
        while not _try_lock(lock):  # noqa: ASYNC110 - a lock of the kernel's has no event to wait for
            await asyncio.sleep(0.1)
        for leftover in folder.parent.glob(f"{folder.name}{_FRESH}*"):  # of a process that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        yield


@contextlib.contextmanager
def _lock_file(folder: Path) -> Iterator[int]:
    lock = os.open(folder.with_name(f"{folder.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        yield lock
    finally:
        # A process forked meanwhile has the same lock open: closing here would not free it.
        fcntl.flock(lock, fcntl.LOCK_UN)
        os.close(lock)


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
