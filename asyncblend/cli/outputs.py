"""The files that a command writes: whether it can, found out before anything is rendered, not after it."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import ConfigError


def check_file(option: str, path: Path) -> None:
    """Find out whether a file can be written, or an older one replaced. Nothing is left of the trial.

    Raises:
        ConfigError: It cannot.
    """
    missing: list[Path] = []
    try:
        with writing(option, path):
            if path.exists():
                open(path, "ab").close()
                return
            missing = [folder for folder in path.parents if not folder.exists()]
            path.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path.parent).close()
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):  # it was not made, or somebody else has put something into it
                folder.rmdir()


def write(option: str, path: Path, text: str) -> None:
    """Write a text file, whole or not at all; an older one is replaced. Missing folders are made.

    Raises:
        ConfigError: It cannot be written.
    """
    with writing(option, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # a pipe or a device, which nothing may replace
            path.write_text(text, encoding="utf-8")
            return
        place = Path(os.path.realpath(path))  # a link stays
        beside = place.with_name(f".asyncblend-{secrets.token_hex(4)}.partial")
        try:
            beside.write_text(text, encoding="utf-8")
            beside.replace(place)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def writing(option: str, path: Path) -> Iterator[None]:
    """Turn what the operating system says about a file, or its folder, into a ConfigError that names the option."""
    try:
        yield
    except OSError as error:
        # `mkdir` says of a file on the way only that it exists.
        no_folder = isinstance(error, FileExistsError)
        reason = os.strerror(errno.ENOTDIR) if no_folder else error.strerror or str(error)
        raise ConfigError(f"{option} {str(path)!r} cannot be written: {reason}; choose another place") from None
