"""The formats that samples can be exported to, by name. A new one is a function as `Writer`, and a line in `FORMATS`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ..errors import ConfigError
from .coco import write_coco
from .report import Report
from .staging import staged

__all__ = ["FORMATS", "Writer", "check_format", "export"]


class Writer(Protocol):
    """Writes samples in one format."""

    def __call__(self, items: Iterable[Mapping[str, Any]], folder: Path, info: Mapping[str, Any]) -> Report:
        """
        Args:
            items: values by name, with "index"; read once, and none is kept. `files`, where an item has it, are its
                files as they were recorded: "image.png" need not be encoded again.
            folder: an empty folder to write into.
            info: about the whole, as JSON has it: description, date_created and the like.

        Raises:
            ConfigError: samples lack what the format needs.
        """
        ...


FORMATS: dict[str, Writer] = {"coco": write_coco}


def check_format(format: str) -> Writer:
    """The writer of a format.

    Raises:
        ConfigError: there is no such format.
    """
    if format in FORMATS:
        return FORMATS[format]
    near = difflib.get_close_matches(format.lower(), FORMATS, n=1)
    raise ConfigError(
        f"there is no format {format!r}; there is {', '.join(FORMATS)}"
        + (f"; did you mean {near[0]!r}?" if near else "")
    )


def export(
    items: Iterable[Mapping[str, Any]],
    out: str | os.PathLike[str],
    format: str = "coco",
    *,
    overwrite: bool = False,
    info: Mapping[str, Any] | None = None,
) -> Report:
    """Write samples into the folder `out`: all of them, or on any error nothing.

    Args:
        items: samples, as `recording.read` gives them; one after another, so that any number fits into memory.
        out: made if it does not exist.
        format: a name in `FORMATS`.
        overwrite: replace an earlier export. Other files in `out` stay.
        info: about the whole, for the format's own header.

    Raises:
        ConfigError: there is no such format; `out` is not empty, or cannot be written to; samples lack what the
            format needs.
    """
    write = check_format(format)
    with staged(Path(out), overwrite=overwrite) as folder:
        return write(items, folder, info or {})
