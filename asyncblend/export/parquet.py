"""Parquet: a row for each sample with all of its values, which Hugging Face's `datasets` loads as it is.

    datasets.load_dataset("FOLDER")        # data/train-00000-of-00002.parquet, data/validation-00000-of-00001.parquet

A column has the name of its value, and a type of its own (`columns.py`). Nothing else is needed of a sample than that
its values have the same types as those of the others. So that a file can be written while samples come, the first hundred
of them decide on the types, and of the rest each one must fit. Files have some 500 MB, and row groups a hundred rows or 64 MB.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .plan import Plan, Report

if TYPE_CHECKING:
    from .columns import Cell, Schema

_ROWS, _BYTES = 100, 64_000_000
_FILE_BYTES = 500_000_000
_NAMES = {"train": "train", "val": "validation"}
"""By split its name in the file names, by which `datasets` knows it."""


def write_parquet(items: Iterable[Mapping[str, Any]], folder: Path, plan: Plan) -> Report:
    """Write `data/` into an empty folder.

    Raises:
        ConfigError: A sample has a value for which there is no type, or one of another type than the others; there is no
            sample; pyarrow is missing.
    """
    try:
        from . import columns
    except ImportError as error:
        raise ConfigError(f'the format parquet needs pyarrow: pip install "asyncblend[parquet]" ({error})') from None
    report, schema, classes = Report(entry="data"), columns.Schema(plan.info), Counter[str]()
    (folder / "data").mkdir()

    def rows() -> Iterator[tuple[str, dict[str, Cell]]]:
        for item in items:
            split = plan.split_of(int(item["index"]))
            yield split, columns.cells_of(item)
            report.add_image(split)
            names = item.get("class_name")
            if isinstance(names, list) and all(isinstance(name, str) for name in names):
                classes.update(name or "object" for name in names)

    with contextlib.ExitStack() as stack:
        parts = {split: _Part(stack, folder / "data", _NAMES[split], schema) for split in plan.splits}
        coming = rows()
        first: list[tuple[str, dict[str, Cell]]] = []
        for one in coming:
            first.append(one)
            if len(first) >= _ROWS or sum(_size_of(row) for _, row in first) >= _BYTES:
                break
        schema.learn([row for _, row in first])
        for split, row in itertools.chain(first, coming):
            parts[split].add(row)
        report.check(plan)
        for part in parts.values():
            part.finish()
    report.classes, report.objects = sorted(classes.items()), classes.total()
    return report


def _size_of(row: Mapping[str, Cell]) -> int:
    return sum(cell.size for cell in row.values())


class _Part:
    """The files of a split. They get their final names, which have their number, when it is known."""

    def __init__(self, stack: contextlib.ExitStack, folder: Path, name: str, schema: Schema) -> None:
        self._open = stack.enter_context(contextlib.ExitStack())  # closes the file that is being written
        self._folder, self._name, self._schema = folder, name, schema
        self._rows: list[dict[str, Cell]] = []
        self._size = 0
        self._paths: list[Path] = []
        self._writer: Any = None

    def add(self, row: dict[str, Cell]) -> None:
        """Add a row, and write those that wait if they are many."""
        self._rows.append(row)
        self._size += _size_of(row)
        if len(self._rows) >= _ROWS or self._size >= _BYTES:
            self._flush()

    def finish(self) -> None:
        """Write all that waits, and name the files."""
        self._flush()
        self._close()
        for number, path in enumerate(self._paths):
            path.rename(self._folder / f"{self._name}-{number:05d}-of-{len(self._paths):05d}.parquet")

    def _flush(self) -> None:
        if not self._rows:
            return
        table = self._schema.table(self._rows)
        if self._writer is None:
            self._paths.append(self._folder / f"{self._name}-{len(self._paths):05d}")
            self._writer = self._open.enter_context(self._schema.writer(self._paths[-1]))
        self._writer.write_table(table, row_group_size=len(table))
        self._rows, self._size = [], 0
        if self._paths[-1].stat().st_size >= _FILE_BYTES:
            self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._open.close()
            self._writer = None
            with open(self._paths[-1], "rb") as file:
                os.fsync(file.fileno())
