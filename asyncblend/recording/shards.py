"""Shards: tar files of samples, as they lie in a folder, and the table of each.

    shard-000000.tar     whole, under this name; while it is written it has another
    shard-000000.json    its table: where each sample lies in it, and what made them; made again where it is missing

A sample is a stretch of the tar, so that it is read at once, in any order. The tar alone has all that the table says:
its first file, which WebDataset's readers skip, says what made the samples.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..errors import RecordingError
from .codec import Damaged, Sample, decode

__all__ = ["ABOUT", "END", "Place", "Shard", "name_of", "numbers", "read_sample", "shard_of", "write_table"]

ABOUT = "__recording__/about"
"""Key of the file that says what made the samples; "json" is its only suffix."""
END = b"\0" * 1024
"""Of a tar."""
_BLOCK = 512
_FORMAT = 1


class Place(NamedTuple):
    """Where a sample lies in its shard."""

    sample: int
    """Its index."""
    start: int
    end: int
    """In bytes."""


@dataclass(frozen=True)
class Shard:
    """A whole shard."""

    path: Path
    """Of the tar."""
    size: int
    """Of the tar, in bytes."""
    about: Mapping[str, Any]
    """What made it."""
    places: Sequence[Place]


def name_of(number: int) -> str:
    """Without the suffix."""
    return f"shard-{number:06d}"


def numbers(folder: Path) -> list[int]:
    """Of the whole shards in a folder, in their order.

    Raises:
        RecordingError: the folder cannot be read, or a shard is gone whose table is there.
    """
    tars: set[int] = set()
    tables: set[int] = set()
    try:
        for entry in os.scandir(folder):
            if match := re.fullmatch(r"shard-(\d{6,})\.(tar|json)", entry.name):
                (tars if match[2] == "tar" else tables).add(int(match[1]))
    except OSError as error:
        raise RecordingError(f"cannot read the folder {folder}: {error.strerror}", path=str(folder)) from error
    for number in sorted(tables - tars):
        tar = folder / f"{name_of(number)}.tar"
        raise RecordingError(
            f"{tar} is missing, and its table {tar.with_suffix('.json').name} is there. Put it back; or remove the "
            f"table, to go on without its samples and have the next `record` make them again",
            path=str(tar),
        )
    return sorted(tars)


def shard_of(folder: Path, number: int) -> tuple[Shard, bool]:
    """A whole shard, by its table, or by a look at all of the tar; and whether the table is good.

    Raises:
        RecordingError: it is damaged.
    """
    path = folder / f"{name_of(number)}.tar"
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if (shard := _by_table(path, size)) is not None:
                return shard, True
            return _by_scan(path, size, file), False
    except OSError as error:
        raise RecordingError(f"cannot read {path}: {error.strerror}", path=str(path)) from error


def read_sample(path: Path, place: Place) -> Sample:
    """A sample of the shard of this path.

    Raises:
        RecordingError: the shard is damaged there.
    """
    try:
        with path.open("rb", buffering=0) as file:
            block = _read(file, place.start, place.end - place.start)
        files = {
            name.partition(".")[2]: block[start : start + size]
            for name, start, size in _members(lambda at: block[at : at + _BLOCK], len(block))
        }
        sample = decode(files)
        if sample.index != place.sample:
            raise Damaged(f"it is sample {sample.index}")
        return sample
    except Damaged as error:
        raise RecordingError(
            f"{path} is damaged: sample {place.sample}, at byte {place.start}: {error}", path=str(path)
        ) from None
    except OSError as error:
        raise RecordingError(f"cannot read {path}: {error.strerror}", path=str(path)) from error


def write_table(shard: Shard) -> None:
    """Put the shard's table beside it, in one step. OSError if it cannot be."""
    table = {"format": _FORMAT, "size": shard.size, "about": shard.about, "samples": shard.places}
    path = shard.path.with_suffix(".json")
    partial = path.with_suffix(".json.partial")
    try:
        partial.write_text(json.dumps(table, separators=(",", ":")) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def _by_table(path: Path, size: int) -> Shard | None:
    """None: it has no table, or none that belongs to a tar of this size."""
    try:
        table = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        places = [Place(*map(int, place)) for place in table["samples"]]
        about = dict(table["about"])
        good = table["format"] == _FORMAT and all(0 <= p.start < p.end <= size for p in places)
        whole = table["size"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if type(whole) is int and whole > size:
        raise RecordingError(
            f"{path} is cut off: it has {size} bytes, its table says {whole}. Copy it again; or remove both, to go on "
            f"without its samples and have the next `record` make them again",
            path=str(path),
        )
    return Shard(path, size, about, places) if good and whole == size else None


def _by_scan(path: Path, size: int, file: BinaryIO) -> Shard:
    about: dict[str, Any] = {}
    places: list[Place] = []
    end = 0
    try:
        for name, start, length in _members(lambda at: _read(file, at, _BLOCK), size):
            key = name.partition(".")[0]
            begun, end = end, _padded(start + length)
            if key == ABOUT:
                about = json.loads(_read(file, start, length))
            elif not key.isdecimal():
                raise Damaged(f"{name} is no file of a recording")
            elif places and places[-1].sample == int(key):
                places[-1] = places[-1]._replace(end=end)
            else:
                places.append(Place(int(key), begun, end))
        if _read(file, end, len(END)) != END:
            raise Damaged("it has no end")
    except (Damaged, ValueError) as error:
        raise RecordingError(
            f"{path} is damaged at byte {end}: {error}. Copy it again; or remove it, and its table if there is one, to "
            f"go on without its samples and have the next `record` make them again",
            path=str(path),
        ) from None
    return Shard(path, size, about, places)


def _members(header_at: Callable[[int], bytes], size: int) -> Iterator[tuple[str, int, int]]:
    """Name, start and size of each file of a tar, or of a stretch of it, until its end.

    Raises:
        Damaged: what is there is no tar, or ends too early.
    """
    at = 0
    while at < size:
        header = header_at(at)
        if not header.strip(b"\0"):
            return
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError) as error:
            raise Damaged(f"no header of a file: {error}") from None
        at += _BLOCK
        if at + member.size > size:
            raise Damaged(f"{member.name} is cut off")
        yield member.name, at, member.size
        at = _padded(at + member.size)


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _read(file: BinaryIO, at: int, size: int) -> bytes:
    """So many bytes, or as many as there are."""
    file.seek(at)
    data = file.read(size)
    while len(data) < size and (more := file.read(size - len(data))):
        data += more  # a system call reads at most 2 GiB
    return data
