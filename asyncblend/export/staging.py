"""Staging: new files get to their place together, when all are written."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import AsyncblendError, ConfigError

__all__ = ["check_empty", "staged"]

_PREFIX = ".export-"


def check_empty(out: Path) -> None:
    """
    Raises:
        ConfigError: it is a file, or a folder with something in it.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; an export is a folder")
    if out.is_dir() and any(not entry.name.startswith(_PREFIX) for entry in out.iterdir()):
        raise ConfigError(
            f"{out} is not empty. Name another folder, or replace an earlier export in it with --overwrite "
            f"(overwrite=True); other files in it stay"
        )


@contextlib.contextmanager
def staged(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A new folder within `out`. What is in it at the end takes its place in `out`; after an error it is gone.

    With `overwrite`, what bears the same names in `out` is replaced, folders as a whole; nothing else is touched.
    Of the new names folders come first and files last, so a file that lists others never names what is not there.

    Raises:
        ConfigError: `out` is not empty, or cannot be written to.
    """
    if not overwrite or not out.is_dir():
        check_empty(out)
    existed = out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=out) as temporary:
            new, old = Path(temporary, "new"), Path(temporary, "old")
            new.mkdir()
            old.mkdir()
            yield new
            entries = sorted(new.iterdir(), key=lambda entry: entry.is_file())
            for entry in reversed(entries):  # the list before what it lists
                if os.path.lexists(out / entry.name):
                    os.rename(out / entry.name, old / entry.name)
            for entry in entries:
                os.rename(entry, out / entry.name)
    except BaseException as error:
        if not existed:
            with contextlib.suppress(OSError):
                out.rmdir()
        if isinstance(error, OSError) and not isinstance(error, AsyncblendError):
            raise ConfigError(
                f"cannot export to {out}: {error.strerror or error}; nothing was changed there"
            ) from error
        raise
