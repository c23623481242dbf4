"""Recording: reads a recorded folder, in order of index or one sample after another in any order."""

from __future__ import annotations

import functools
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import RecordingError
from .codec import Sample
from .places import Place, each, place_of
from .shards import Shard, Span, find_shard, read_sample, shards_in


def is_recording(folder: str | os.PathLike[str]) -> bool:
    """Return whether this is a folder, or the URL of one, with at least one shard. Reading it may still raise."""
    place = place_of(folder)
    try:
        return not (isinstance(place, Path) and not place.is_dir()) and bool(shards_in(place))
    except RecordingError:
        return True  # a damaged one; reading it says how


def read(folder: str | os.PathLike[str]) -> Iterator[Sample]:
    """Yield the samples of a recording, in order of index. Raises RecordingError as `Recording` does."""
    yield from Recording(folder)


class Recording:
    """The samples of a recording by position, in order of index. No file stays open, and it can be pickled.

    Args:
        folder: Where it lies: a folder, or the URL of one in an object store, such as "s3://bucket/cubes".

    Raises:
        RecordingError: There is no recording, or a shard is missing, damaged or of another format. The error's `path`
            is the shard's, and its `offset` says where the damage is. Reading a sample may raise it too.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder: Place = place_of(folder)
        numbers = shards_in(self.folder)
        if not numbers:
            raise RecordingError(
                f"{os.fspath(folder)} has no recording: no whole shard, such as shard-000000.tar", path=str(self.folder)
            )
        shards = list(each(self.folder, functools.partial(find_shard, self.folder), numbers))
        self._files = [(shard.path, shard.checked) for shard in shards]
        self._table = table_of(shards)
        if not len(self._table):
            raise RecordingError(f"{self.folder} has a recording without samples", path=str(self.folder))
        self.about: Mapping[str, Any] = shards[0].about
        """What made the samples: seed, script, params, versions and more."""

    @property
    def indices(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The indices of all samples, ascending."""
        return self._table["index"]

    @property
    def shards(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        """For each sample, in order of index, the shard that it is in, counted from 0."""
        return self._table["shard"]

    @functools.cached_property
    def checksum(self) -> int:
        """Tells recordings apart, wherever they lie: of what made the samples, and of each one's index and place."""
        return zlib.crc32(self._table.tobytes(), zlib.crc32(json.dumps(dict(self.about), sort_keys=True).encode()))

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, position: int) -> Sample:
        row = self._table[position]
        span = Span(int(row["index"]), int(row["start"]), int(row["end"]))
        path, checked = self._files[int(row["shard"])]
        return read_sample(path, span, checked=checked)

    def __iter__(self) -> Iterator[Sample]:
        return self.at(range(len(self)))

    def at(self, positions: Iterable[int]) -> Iterator[Sample]:
        """Yield the samples at these positions. From an object store, those to come are read meanwhile."""
        return each(self.folder, self.__getitem__, positions)


def table_of(shards: Sequence[Shard]) -> np.ndarray[Any, Any]:
    """Return index, shard, start and end of all samples, by index. In an array each takes only 28 bytes.

    Raises RecordingError if an index is in two shards.
    """
    kinds = [("index", np.int64), ("shard", np.int32), ("start", np.int64), ("end", np.int64)]
    rows = ((span.sample, number, span.start, span.end) for number, shard in enumerate(shards) for span in shard.spans)
    table = np.fromiter(rows, kinds)
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
