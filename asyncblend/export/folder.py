"""export(): writes samples as a folder in another tool's format, as a whole or not at all."""

from __future__ import annotations

import difflib
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import AsyncblendError, ConfigError
from .coco import Report, write_coco

FORMATS = {"coco": write_coco}
"""The formats by name. A writer gets the samples, an empty folder to write into, and `info`."""


def check_format(format: str) -> None:
    """Raise ConfigError if there is no such format."""
    if format not in FORMATS:
        near = difflib.get_close_matches(format.lower(), FORMATS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"there is no format {format!r}; there is {', '.join(FORMATS)}{hint}")


def export(
    items: Iterable[Mapping[str, Any]],
    out: str | os.PathLike[str],
    format: str = "coco",
    *,
    overwrite: bool = False,
    info: Mapping[str, Any] | None = None,
) -> Report:
    """Write samples into the folder `out`: all of them, or, on any error, nothing.

    The samples are written into a hidden folder beside `out`, which then takes its place. A process that is killed
    meanwhile leaves that folder there.

    Args:
        items: Values by name, with "index", such as the samples of a `recording.Recording`. They are read once, one
            after another, so any number of them fits into memory.
        out: The folder. It is made if it does not exist.
        format: A name in `FORMATS`.
        overwrite: Replace an earlier export. Other files in `out` stay.
        info: Facts about the whole export as JSON values, such as "description", for the format's own header.

    Raises:
        ConfigError: There is no such format; `out` is not empty, or cannot be written to; samples lack what the
            format needs.
    """
    check_format(format)
    what = "nothing was changed there"
    try:
        target = Path(out).resolve()  # a symbolic link stays, and the folder that it leads to is replaced
        _check_target(out, target, overwrite=overwrite)
        if not target.parent.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.export-", dir=target.parent))
        new, old = temporary / "new", temporary / "old"
        try:
            new.mkdir()
            report = FORMATS[format](items, new, info or {})
            if target.exists():
                shutil.copymode(target, new)
                if overwrite:
                    target.rename(old)
            new.rename(target)  # fails if somebody has put files there meanwhile
        finally:
            if old.exists():
                what = f"the earlier files are in {old}"
                _settle(old, target)
                what = "nothing was changed there"
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        if isinstance(error, AsyncblendError):
            raise
        raise ConfigError(f"cannot export to {out}: {error.strerror or error}; {what}") from error
    return report


def _check_target(out: str | os.PathLike[str], target: Path, *, overwrite: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise ConfigError(f"{out} is a file; an export is a folder")
    if target.is_mount() or Path.cwd().is_relative_to(target):
        raise ConfigError(f"{out} holds the current folder or is a mount point; name a folder in it, which is replaced")
    if not overwrite and any(target.iterdir()):
        raise ConfigError(f"{out} is not empty; take another folder, or overwrite=True (--overwrite) to replace it")


def _settle(old: Path, target: Path) -> None:
    """Put the earlier folder back if nothing has taken its place. Else keep only its other files, in the new one."""
    if not target.exists():
        old.rename(target)
    else:
        for entry in old.iterdir():
            if not os.path.lexists(target / entry.name):
                entry.rename(target / entry.name)
