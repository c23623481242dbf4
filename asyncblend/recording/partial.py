"""PartialShard: the shard at hand. Nobody takes it for a shard before it is whole and on the disk."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .codec import key_of
from .shards import ABOUT, END, Place, Shard

__all__ = ["PartialShard", "remove_leftovers"]

_SUFFIX = ".partial"


class PartialShard:
    """A shard that samples are added to, in a file of another name. Not thread-safe.

    Args:
        path: of the tar, once it is whole.
        about: what makes its samples.

    Raises OSError from all it does, if the disk does not take it; then there is `salvage`.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        from webdataset import TarWriter  # imports torch

        self._path, self._about = path, about
        self._partial = path.with_name(path.name + _SUFFIX)
        self.places: list[Place] = []
        self._file = _File(self._partial)
        # Fixed times and owners: the same samples are the same bytes.
        self._tar = TarWriter(self._file, encoder=False, user="", group="", mode=0o644, mtime=0)
        try:
            self._tar.write({"__key__": ABOUT, "json": json.dumps(about, separators=(",", ":")).encode()})
        except OSError:
            self.salvage()
            raise

    def add(self, index: int, files: Mapping[str, bytes]) -> None:
        """Write a sample."""
        start = self.size
        self._tar.write({"__key__": key_of(index), **files})
        self.places.append(Place(index, start, self.size))

    @property
    def size(self) -> int:
        """In bytes, so far."""
        return int(self._tar.tarstream.offset)

    def finish(self) -> Shard:
        """Make it whole: from here on it is read, and survives a crash of the machine."""
        self._tar.close()
        return self._publish()

    def salvage(self) -> Shard | None:
        """After a failure: make a whole shard of the samples that have reached the file. None: of none."""
        try:
            reached = self._file.size()
            self.places = [place for place in self.places if place.end <= reached]
            while self.places:
                try:
                    self._file.cut(self.places[-1].end)
                    self._file.write(END)
                    return self._publish()
                except OSError:
                    self.places.pop()  # its room is enough for an end
            return None
        except OSError:
            return None
        finally:
            self._file.close()
            with contextlib.suppress(OSError):
                self._partial.unlink(missing_ok=True)

    def _publish(self) -> Shard:
        self._file.sync()
        size = self._file.size()
        self._partial.replace(self._path)
        self._file.close()  # not before: if it could not be replaced, `salvage` needs it
        _sync_folder(self._path.parent)
        return Shard(self._path, size, self._about, self.places)


class _File:
    """A new file that takes all that it is given, or raises; closed, it takes nothing and says nothing.

    The latter because tarfile writes once more when it is forgotten unfinished.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def write(self, data: bytes) -> int:
        if self._descriptor >= 0:
            left = memoryview(data)
            while left:
                left = left[os.write(self._descriptor, left) :]
        return len(data)

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def cut(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)
        os.lseek(self._descriptor, size, os.SEEK_SET)

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """What a crash left unfinished."""
    for path in folder.glob(f"shard-*{_SUFFIX}"):
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """So that a new name in it survives a crash of the machine. Not every file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
