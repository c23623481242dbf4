"""What Blender's Python lacks (numpy, pyzmq), installed by the host into a folder of the user's cache.

Blender's own folder is never written to, so no administrator's rights are needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import os
import secrets
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs
from filelock import FileLock, Timeout

from ...errors import ConfigError, InstanceError
from ...wire.ownership import why_untrusted
from ..process import output_of
from .installer import installer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Sequence

_log = logging.getLogger("asyncblend")

OTHER_FOLDER = "export ASYNCBLEND_CACHE=FOLDER    (with a folder that you may write to)"
"""What to type where the cache folder cannot be written."""

PRIVATE = 0o700
"""Mode of each folder that is made here, whatever the umask: what others could write there would run as this user."""

_UNFINISHED = ".new-"
_NOT_MODULES = {"..", "bin", "__pycache__"}
_RETRY = 0.1  # seconds between two attempts to get a lock
_SHOWN_LINES = 12
"""Lines of the installer's output in an error's message; its `log_tail` has all."""


def cache_folder() -> Path:
    """Return the folder that has one folder of packages per kind of Python. It need not exist.

    It is `packages` in $ASYNCBLEND_CACHE, or else in `asyncblend` in the user's cache folder. A user without a home has
    it among the temporary files.

    Raises:
        ConfigError: $ASYNCBLEND_CACHE begins with a home folder that is not known.
    """
    if own := os.environ.get("ASYNCBLEND_CACHE"):
        folder = os.path.expanduser(own)
        if folder.startswith("~"):
            text = f"$ASYNCBLEND_CACHE={own!r} begins with a home folder that is not known; give its whole path"
            raise ConfigError(text)
    elif os.path.expanduser("~") == "~" and not os.path.isabs(os.environ.get("XDG_CACHE_HOME", "")):
        folder = os.path.join(tempfile.gettempdir(), f"asyncblend-cache-{os.geteuid()}")
    else:
        folder = platformdirs.user_cache_dir("asyncblend")
    return Path(folder).absolute() / "packages"


async def install(packages: Sequence[str], python: str, folder: Path) -> None:
    """Make packages importable from a folder, for a certain version of CPython on this machine.

    Returns at once if they are there. Tasks and processes that install into the same folder wait for each other. A
    package appears in the folder whole, so Blenders may read it meanwhile. Cancelling this ends the installer and
    leaves the folder as it was.

    Args:
        packages: Names of distributions. What they depend on is not installed.
        python: The version of Blender's Python as "major.minor".
        folder: Where to install. Other packages in it stay.

    Raises:
        InstanceError: They could not be installed. The message has the installer's last lines and the command.
    """
    async with locked(folder, f"{', '.join(packages)} for Blender's Python {python}"):
        for unfinished in folder.parent.glob(f"{folder.name}{_UNFINISHED}*"):  # by a process that was killed
            shutil.rmtree(unfinished, ignore_errors=True)
        if missing := [package for package in packages if not _is_in(folder, package)]:
            names = " and ".join(missing)
            _log.info("Installing %s for Blender's Python %s into %s (once)", names, python, folder)
            await _install(missing, python, folder)


async def _install(packages: Sequence[str], python: str, folder: Path) -> None:
    # Installed beside the folder, under a name that nobody reads, so that moving it in takes no more than renaming.
    fresh = folder.with_name(f"{folder.name}{_UNFINISHED}{secrets.token_hex(4)}")
    fresh.mkdir(PRIVATE)
    try:
        await run_installer(
            _command(packages, python, fresh),
            f"Blender's Python {python} has no {' and no '.join(packages)}, and installing",
            by_hand=shlex.join(_command(packages, python, folder)),
        )
        _move_in(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _command(packages: Sequence[str], python: str, target: Path) -> list[str]:
    """Return the command line of the host's installer.

    Raises:
        InstanceError: It has none.
    """
    # Byte code would be that of the host's Python, not of Blender's.
    quiet = ["--no-compile", "--no-input", "--disable-pip-version-check", "--no-warn-script-location"]
    if command := installer(sys.executable, of_pip=["--implementation", "cp", *quiet]):
        where = ["--target", str(target), "--python-version", python, "--only-binary=:all:", "--no-deps"]
        return [*command, *where, *packages]
    raise InstanceError(
        f"Blender's Python {python} has no {' and no '.join(packages)}, and {sys.executable} has no pip to "
        f"install with, nor is uv on the PATH. Type `{shlex.quote(sys.executable)} -m ensurepip`, and start again.",
        command=f"{shlex.quote(sys.executable)} -m ensurepip",
    )


async def run_installer(
    command: Sequence[str], what: str, by_hand: str, *, without: Collection[str] = (), folder: Path | None = None
) -> None:
    """Run an installer to its end. Cancelling this kills it.

    Args:
        what: Beginning of an error's message, up to the words "failed with status".
        by_hand: What to type into a shell instead; for an error's message.
        without: Environment variables that the installer must not see.
        folder: Where its log is kept meanwhile. None: in the temporary folder.

    Raises:
        InstanceError: The installer failed.
        OSError: It could not be started.
    """
    environment = {name: value for name, value in os.environ.items() if name not in without}
    environment.update(PIP_USER="0", PIP_REQUIRE_VIRTUALENV="0")  # a user's settings that contradict our options
    environment["PYTHONSAFEPATH"] = "1"  # nothing is imported from the working directory
    status, output = await output_of(command, environment, folder=folder)
    if status:
        last = "\n".join(output.splitlines()[-_SHOWN_LINES:])
        text = f"{what} failed with status {status}:\n{last}\nTo install by hand, type:\n{by_hand}"
        raise InstanceError(text, log_tail=output, details=last, command=by_hand)


def _is_in(folder: Path, package: str) -> bool:
    """Return whether all modules of a distribution are there: an earlier installation may have been interrupted."""
    for found in importlib.metadata.distributions(name=package, path=[str(folder)]):
        entries = {file.parts[0] for file in found.files or ()} - _NOT_MODULES
        if entries and all((folder / entry).exists() for entry in entries):
            return True
    return False


def _move_in(fresh: Path, folder: Path) -> None:
    """Move what was installed into place, each entry by a single rename."""
    if not folder.exists():
        fresh.rename(folder)
        return
    entries = [entry for entry in fresh.iterdir() if entry.name not in _NOT_MODULES]
    # A module's shared libraries go before it, as a Blender may import it at once, and its metadata goes after it.
    order = {".libs": 0, ".dist-info": 2}
    for entry in sorted(entries, key=lambda entry: order.get(entry.suffix, 1)):
        place = folder / entry.name
        if place.exists():  # left by an interrupted installation
            place.rename(fresh / f"{entry.name}.old")
        entry.rename(place)


@contextlib.asynccontextmanager
async def locked(folder: Path, what: str) -> AsyncIterator[None]:
    """Hold the lock file beside a folder while `what` is installed into it. Of all processes, one task can hold it.

    Waiting for it does not block the event loop. When a process dies, its lock is released.

    Raises:
        InstanceError: The lock file, or something inside this context, could not be written; or the folder is another
            user's, or others may write to it.
    """
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    waits = False
    try:
        _make_private(folder.parent)
        if why := why_untrusted(folder, folder.parent, folder.parent.parent):
            text = f"{what} cannot be in {folder}, because code from there would run as this user, and {why}.\n"
            raise InstanceError(
                f"{text}Remove that folder or make it yours alone, or let $ASYNCBLEND_CACHE name another one.",
                command=OTHER_FOLDER,
                details=why,
            )
        while not lock.is_locked:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                if not waits:
                    _log.warning("Waiting for %s, which holds %s", _holder(lock.lock_file), lock.lock_file)
                waits = True
                await asyncio.sleep(_RETRY)
        yield
    except OSError as error:
        text = f"Cannot write {what} into {folder}: {error}\n$ASYNCBLEND_CACHE names another folder for it."
        raise InstanceError(text, command=OTHER_FOLDER) from error
    finally:
        lock.release()


def _make_private(folder: Path) -> None:
    """Make a folder and those above it, unlike `mkdir(parents=True)`, which makes those above for everybody."""
    for missing in reversed([above for above in (folder, *folder.parents) if not above.exists()]):
        missing.mkdir(PRIVATE, exist_ok=True)


def _holder(lock_file: str) -> str:
    """Return who holds a lock file, in words. Linux lists the process."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        state = os.stat(lock_file)
        file = f"{os.major(state.st_dev):02x}:{os.minor(state.st_dev):02x}:{state.st_ino}"
        for line in Path("/proc/locks").read_text().splitlines():
            *_, holder, locked_file, _, _ = line.split()
            if locked_file == file and int(holder) > 0:  # one outside of this container has no number
                return f"the installation by process {holder}"
    return "another installation"
