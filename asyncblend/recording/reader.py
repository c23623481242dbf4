"""Reading a recording: in order of index, or one sample after another in any order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import RecordingError
from .codec import Sample
from .shards import Place, Shard, numbers, read_sample, shard_of

__all__ = ["Recording", "is_recording", "read", "table_of"]


def is_recording(folder: str | os.PathLike[str]) -> bool:
    """Whether this is a folder with at least one whole shard."""
    path = Path(folder)
    try:
        return path.is_dir() and bool(numbers(path))
    except RecordingError:
        return True  # a damaged one; reading it says how


def read(folder: str | os.PathLike[str]) -> Iterator[Sample]:
    """The samples of a recording, in order of index.

    A sample is a dict of the values by name, arrays as numpy's, and "index". It has `index`, `instance`, `params`,
    and `files`: the bytes of each as they were recorded, by names such as "image.png".

    Raises:
        RecordingError: there is no recording, or a shard is missing or damaged; its `path` is the shard's.
    """
    yield from Recording(folder)


class Recording:
    """The samples of a recording by position, in order of index. No file stays open; it can be pickled.

    Raises:
        RecordingError: as `read` does.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        found = numbers(self.folder)
        if not found:
            raise RecordingError(
                f"{self.folder} has no recording: no whole shard, such as shard-000000.tar",
                path=str(self.folder),
            )
        shards = [shard_of(self.folder, number)[0] for number in found]
        self._paths = [shard.path for shard in shards]
        self._table = table_of(shards)
        self.about: Mapping[str, Any] = shards[0].about
        """What made it: seed, script, params, versions and more."""

    @property
    def indices(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Of all samples, int64, ascending."""
        return self._table["index"]

    @property
    def shards(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        """In which shard each sample is, in order of index; numbered from 0 on."""
        return self._table["shard"]

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, position: int) -> Sample:
        row = self._table[position]
        place = Place(int(row["index"]), int(row["start"]), int(row["end"]))
        return read_sample(self._paths[int(row["shard"])], place)

    def __iter__(self) -> Iterator[Sample]:
        return (self[position] for position in range(len(self)))


def table_of(shards: Sequence[Shard]) -> np.ndarray[Any, Any]:
    """Index, shard and place of all samples, by index: 28 bytes each, however many there are."""
    kinds = [("index", np.int64), ("shard", np.int32), ("start", np.int64), ("end", np.int64)]
    table = np.empty(sum(len(shard.places) for shard in shards), kinds)
    row = 0
    for number, shard in enumerate(shards):
        for place in shard.places:
            table[row] = (place.sample, number, place.start, place.end)
            row += 1
    table.sort(order="index", kind="stable")
    twice = np.flatnonzero(table["index"][1:] == table["index"][:-1])
    if len(twice):
        one, other = (shards[table["shard"][twice[0] + i]].path for i in (0, 1))
        raise RecordingError(
            f"sample {table['index'][twice[0]]} is both in {one} and in {other.name}: are these two recordings in one "
            f"folder?",
            path=str(other),
        )
    return table
