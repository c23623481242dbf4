"""Spool: a list that lies on the disk, so that its length costs no memory."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["Spool"]


class Spool:
    """Values as JSON has them: add them all, then read them in that order. A context manager; its file has no name.

    Args:
        folder: on whose disk.
    """

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile("w+", encoding="ascii", dir=folder)  # noqa: SIM115 (closed by __exit__)
        self._count = 0

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, value: Any) -> None:
        """Append a value."""
        self._file.write(json.dumps(value, separators=(",", ":"), allow_nan=False) + "\n")
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Any]:
        self._file.seek(0)
        for line in self._file:
            yield json.loads(line)
