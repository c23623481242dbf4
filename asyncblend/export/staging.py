"""Staging: new files get to their place together, when all are written."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import AsyncblendError, ConfigError

__all__ = ["staged"]

_PREFIX = ".export-"


@contextlib.contextmanager
def staged(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A new folder within `out`. What is in it at the end takes its place in `out`; after an error it is gone.

    With `overwrite`, what bears the same names in `out` is replaced, folders as a whole; nothing else is touched. An
    error between these renames, or Ctrl-C, undoes them. Of the new names folders come first and files last, so a file
    that lists others never names what is not there.

    Raises:
        ConfigError: `out` is not empty, or cannot be written to, or another export into it is going on.
    """
    existed = out.exists()
    if existed and not out.is_dir():
        raise ConfigError(f"{out} is a file; an export is a folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _held(out) as alone:
            if not overwrite:
                _check_empty(out)
            if alone:
                for left in out.glob(f"{_PREFIX}*"):
                    _discard(left)
            temporary = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=out))
            try:
                new, old = temporary / "new", temporary / "old"
                new.mkdir()
                old.mkdir()
                yield new
                _put(new, out, old)
            except BaseException:
                _discard(temporary)
                raise
            for done in out.glob(f"{_PREFIX}*") if alone else [temporary]:
                shutil.rmtree(done, ignore_errors=True)
    except BaseException as error:
        if not existed:
            with contextlib.suppress(OSError):
                out.rmdir()
        if isinstance(error, OSError) and not isinstance(error, AsyncblendError):
            raise ConfigError(
                f"cannot export to {out}: {error.strerror or error}; nothing was changed there"
            ) from error
        raise


def _check_empty(out: Path) -> None:
    """
    Raises:
        ConfigError: something is in the folder.
    """
    if any(not entry.name.startswith(_PREFIX) for entry in out.iterdir()):
        raise ConfigError(
            f"{out} is not empty. Name another folder, or replace an earlier export in it with --overwrite "
            f"(overwrite=True); other files in it stay"
        )


@contextlib.contextmanager
def _held(out: Path) -> Iterator[bool]:
    """Keep other exports out of the folder, so that what one left in it is of a process that died.

    The system lets go of it when the process ends, however it ends. False: this file system has no such locks.

    Raises:
        ConfigError: another export has it.
    """
    descriptor = os.open(out, os.O_RDONLY | os.O_CLOEXEC)
    try:
        alone = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another export into {out} is going on; wait for it, or take another folder") from None
        except OSError:
            alone = False
        yield alone
    finally:
        os.close(descriptor)


def _put(new: Path, out: Path, old: Path) -> None:
    """Move what bears the new names from `out` to `old`, and the new files into `out`: all, or nothing.

    Raises:
        ConfigError: a move failed, and so did its undoing.
    """
    entries = sorted(new.iterdir(), key=lambda entry: entry.is_file())
    moves = [
        (out / entry.name, old / entry.name)
        for entry in reversed(entries)  # the list before what it lists
        if os.path.lexists(out / entry.name)
    ]
    moves += [(entry, out / entry.name) for entry in entries]
    try:
        for source, target in moves:
            os.rename(source, target)
    except BaseException as error:
        try:
            for source, target in reversed(moves):
                if not os.path.lexists(source):  # it was moved
                    os.rename(target, source)
        except OSError as second:
            raise ConfigError(
                f"cannot export to {out}: {error}; nor could the earlier files be put back ({second}): those that are "
                f"missing are in {old}"
            ) from error
        raise


def _discard(temporary: Path) -> None:
    """Remove what was written. What is in `old` was there before, and could not be put back: it stays."""
    shutil.rmtree(temporary / "new", ignore_errors=True)
    for folder in (temporary / "old", temporary):
        with contextlib.suppress(OSError):
            folder.rmdir()
