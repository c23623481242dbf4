"""Writer: writes a recording, so that whatever happens leaves whole shards and nothing else that counts.

It goes on where whole shards end: what a crash left unfinished is removed, and its samples are made again.
"""

from __future__ import annotations

import contextlib
import re
import sys
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn

from ..errors import ConfigError, RecordingError
from .about import check_same
from .guard import Guard
from .partial import PartialShard, remove_leftovers
from .reader import table_of
from .shards import Shard, name_of, numbers, shard_of, write_table

__all__ = ["ShardSize", "Writer"]

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


class ShardSize:
    """When a shard is full.

    Args:
        size: samples, or bytes as "500MB"; a shard of bytes is over it by less than a sample.

    Raises:
        ConfigError: it is neither.
    """

    def __init__(self, size: int | str) -> None:
        self._samples = self._bytes = float("inf")
        match = re.fullmatch(r"(\d+) ?(KB|MB|GB)", size) if isinstance(size, str) else None
        if match and int(match[1]):
            self._bytes = int(match[1]) * _UNITS[match[2]]
        elif isinstance(size, int) and not isinstance(size, bool) and size >= 1:
            self._samples = size
        else:
            raise ConfigError(
                f'shard_size must be a number of samples, at least 1, or of bytes, such as "500MB"; got {size!r}'
            )

    def reached(self, shard: PartialShard) -> bool:
        """Whether the shard is full."""
        return len(shard.places) >= self._samples or shard.size >= self._bytes


class Writer:
    """The one writer of a folder: `open`, then `add` from any thread, then `close`. It blocks while it writes.

    Args:
        folder: made if it is missing.
        about: what makes the samples; of `about.about`.
        shard_size: when a shard is full.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], shard_size: ShardSize) -> None:
        self._folder, self._about, self._shard_size = folder, dict(about), shard_size
        self._lock = threading.Lock()
        self._guard: Guard | None = None
        self._shard: PartialShard | None = None
        self._next = 0  # number of the next shard
        self._failure: Exception | None = None
        self._indices: set[int] = set()
        self._recorded = 0
        self._written = 0

    @property
    def indices(self) -> Collection[int]:
        """Of all samples in the folder; those in the shard at hand too."""
        return self._indices

    @property
    def recorded(self) -> int:
        """Samples in whole shards, also of earlier writers."""
        return self._recorded

    @property
    def written(self) -> int:
        """Bytes, by this writer."""
        shard = self._shard  # another thread may be at its end
        return self._written + (0 if shard is None else shard.size)

    def open(self) -> None:
        """Take the folder, and see what it has.

        Raises:
            RecordingError: it cannot be written, another writer has it, or a shard is missing or damaged.
            ConfigError: it has a recording of something else.
        """
        _import_webdataset()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._guard = Guard(self._folder)
            self._begin()
        except OSError as error:
            self.close()
            raise self._cannot_write(error) from error
        except BaseException:
            self.close()
            raise

    def add(self, index: int, files: Mapping[str, bytes], **about: Any) -> None:
        """Write a sample; one that is there already is left out.

        Args:
            files: of `codec.encode`.
            about: what is known of its making only now; it goes into each new shard.

        Raises:
            RecordingError: the disk does not take it. All that is whole stays readable; `recorded` says how much.
        """
        with self._lock:
            if self._failure is not None:
                raise self._cannot_write(self._failure) from self._failure
            if self._guard is None:
                raise RecordingError(f"the recording into {self._folder} is closed", path=str(self._folder))
            if index in self._indices:
                return
            try:
                if self._shard is None:
                    path = self._folder / f"{name_of(self._next)}.tar"
                    self._shard = PartialShard(path, {**self._about, **about})
                    self._next += 1
                self._shard.add(index, files)
                self._indices.add(index)
                if self._shard_size.reached(self._shard):
                    self._finish()
            except Exception as error:
                self._fail(error)

    def close(self) -> None:
        """Make the shard at hand whole, and let others write. May be called twice.

        Raises:
            RecordingError: as `add` does.
        """
        with self._lock:
            try:
                if self._shard is not None:
                    self._finish()
            except Exception as error:
                self._fail(error)
            finally:
                if self._guard is not None:
                    self._guard.release()
                    self._guard = None

    def _begin(self) -> None:
        remove_leftovers(self._folder)
        found = numbers(self._folder)
        shards = []
        for number in found:
            shard, has_table = shard_of(self._folder, number)
            shards.append(shard)
            if not has_table:
                write_table(shard)
        for shard in shards[:1]:
            check_same(shard.about, self._about, self._folder)
        self._indices = set(table_of(shards)["index"].tolist())
        self._recorded = len(self._indices)
        self._next = found[-1] + 1 if found else 0

    def _finish(self) -> None:
        assert self._shard is not None
        shard = self._shard.finish()
        self._count(shard)
        write_table(shard)

    def _count(self, shard: Shard | None) -> None:
        self._shard = None
        if shard is not None:
            self._recorded += len(shard.places)
            self._written += shard.size

    def _fail(self, error: Exception) -> NoReturn:
        """Nothing more is written, but what can be saved of the shard at hand."""
        self._failure = error
        if self._shard is not None:
            self._indices -= {place.sample for place in self._shard.places}
            shard = self._shard.salvage()
            self._count(shard)
            if shard is not None:
                self._indices |= {place.sample for place in shard.places}
                with contextlib.suppress(OSError):  # it is made again when it is missing
                    write_table(shard)
        raise self._cannot_write(error) from error

    def _cannot_write(self, error: Exception) -> RecordingError:
        why = error.strerror or str(error) if isinstance(error, OSError) else repr(error)
        text = f"cannot record into {self._folder}: {why}"
        if self._recorded:
            text += (
                f". {self._recorded} samples are recorded there and stay readable; the same again goes on after them"
            )
        return RecordingError(text, path=str(self._folder), recorded=self._recorded)


def _import_webdataset() -> None:
    """Not while the first sample waits: it takes a second or two, since it imports torch."""
    try:
        import webdataset  # noqa: F401
    except ImportError as error:
        raise RecordingError(
            f"recording needs the library webdataset, which cannot be imported ({error}); type: "
            f"{sys.executable} -m pip install webdataset"
        ) from error
