"""Shards: tar files of samples, as they lie in a folder, and the table of each.

    shard-000000.tar     a whole shard; an unfinished one has another name
    shard-000000.json    its table: where each sample lies in the tar, and what made them

Each sample is one stretch of the tar, so a sample is one read, in any order. The tar alone has all that the table says,
and a missing table is made again from it. What made the samples is the tar's first file, which WebDataset's readers
skip.
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

ABOUT = "__recording__/about"  # the key of the file that says what made the samples; its extension is "json"
END = b"\0" * 1024  # the end of a tar file
FORMAT = 2  # the version of the format of recordings
_BLOCK = 512  # bytes; a tar consists of these
_MAX_INDEX = 1 << 63  # an index is kept as an int64
_GO_ON = "to go on without its samples and have the next `record` make them again"


class Span(NamedTuple):
    """Where a sample lies in its shard: from byte `start` to before byte `end`."""

    sample: int  # The index of the sample
    start: int
    end: int


@dataclass(frozen=True)
class Shard:
    """A whole shard: a tar file of `size` bytes. `has_table` says whether its table is there and right."""

    path: Path
    size: int
    about: Mapping[str, Any]  # What made the samples
    spans: Sequence[Span]
    has_table: bool = True


def tar_of(folder: Path, number: int) -> Path:
    """Return the path of a shard's tar file."""
    return folder / f"shard-{number:06d}.tar"


def shards_in(folder: Path) -> list[int]:
    """Return the numbers of the whole shards in a folder, ascending.

    Raises RecordingError if the folder cannot be read, or a shard is missing whose table is there.
    """
    tars: set[int] = set()
    tables: set[int] = set()
    try:
        for entry in os.scandir(folder):
            if match := re.fullmatch(r"shard-(\d{6,})\.(tar|json)", entry.name):
                (tars if match[2] == "tar" else tables).add(int(match[1]))
    except OSError as error:
        raise RecordingError(f"cannot read the folder {folder}: {error.strerror}", path=str(folder)) from error
    if missing := tables - tars:
        tar = tar_of(folder, min(missing))
        raise RecordingError(
            f"{tar} is missing, and its table {tar.with_suffix('.json').name} is there. Put it back; or remove the "
            f"table, {_GO_ON}",
            path=str(tar),
        )
    return sorted(tars)


def find_shard(folder: Path, number: int) -> Shard:
    """Return a whole shard, from its table if that is right, else from the headers in the tar.

    Raises RecordingError if the shard is damaged, or was written in another format.
    """
    path = tar_of(folder, number)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            shard = _from_table(path, size) or _from_tar(path, size, file)
    except OSError as error:
        raise RecordingError(f"cannot read {path}: {error.strerror}", path=str(path)) from error
    if shard.about.get("format") != FORMAT:
        raise RecordingError(
            f"{path} is of the format {shard.about.get('format', 1)!r:.40} of recordings, and this version of "
            f"asyncblend reads format {FORMAT}. Record the samples again, into another folder",
            path=str(path),
        )
    return shard


def read_sample(path: Path, span: Span) -> Sample:
    """Read a sample from the shard at `path`. Raises RecordingError if the shard is damaged there."""
    try:
        with path.open("rb") as file:
            block = _read(file, span.start, span.end - span.start)
        files = {
            name.partition(".")[2]: block[start : start + size]
            for name, start, size in _members(lambda at: block[at : at + _BLOCK], len(block))
        }
        sample = decode(files)
        if sample.index != span.sample:
            raise Damaged(f"it is sample {sample.index}")
        return sample
    except Damaged as error:
        raise RecordingError(
            f"{path} is damaged: sample {span.sample}, at byte {span.start}: {error}", path=str(path)
        ) from None
    except OSError as error:
        raise RecordingError(f"cannot read {path}: {error.strerror}", path=str(path)) from error


def write_table(shard: Shard) -> None:
    """Put the shard's table beside it, in one step. Raises OSError if that fails."""
    table = {"format": FORMAT, "size": shard.size, "about": shard.about, "samples": shard.spans}
    path = shard.path.with_suffix(".json")
    partial = path.with_suffix(".json.partial")
    try:
        partial.write_text(json.dumps(table, separators=(",", ":")) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def _from_table(path: Path, size: int) -> Shard | None:
    """Return the shard as its table has it. None if there is no table, or it does not fit a tar of this size."""
    try:
        table = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        spans = [Span(*map(int, span)) for span in table["samples"]]
        about, full_size = dict(table["about"]), table["size"]
        right = all(0 <= span.sample < _MAX_INDEX and 0 <= span.start < span.end <= size for span in spans)
        good = table["format"] == FORMAT and right
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if type(full_size) is int and full_size > size:
        raise RecordingError(
            f"{path} is cut off: it has {size} bytes, its table says {full_size}. Copy it again; or remove both, {_GO_ON}",
            path=str(path),
        )
    return Shard(path, size, about, spans) if good and full_size == size else None


def _from_tar(path: Path, size: int, file: BinaryIO) -> Shard:
    about: dict[str, Any] = {}
    spans: list[Span] = []
    end = 0
    try:
        for name, start, length in _members(lambda at: _read(file, at, _BLOCK), size):
            key = name.partition(".")[0]
            header, end = end, _padded(start + length)
            if key == ABOUT:
                about = dict(json.loads(_read(file, start, length)))
            elif not key.isdecimal() or int(key) >= _MAX_INDEX:
                raise Damaged(f"{name} is no file of a recording")
            elif spans and spans[-1].sample == int(key):
                spans[-1] = spans[-1]._replace(end=end)
            else:
                spans.append(Span(int(key), header, end))
        if _read(file, end, len(END)) != END:
            raise Damaged("it has no end")
    except (Damaged, ValueError, TypeError, RecursionError) as error:
        raise RecordingError(
            f"{path} is damaged at byte {end}: {error}. Copy it again; or remove it, and its table if there is one, {_GO_ON}",
            path=str(path),
        ) from None
    return Shard(path, size, about, spans, has_table=False)


def _members(header_at: Callable[[int], bytes], size: int) -> Iterator[tuple[str, int, int]]:
    """Yield name, start and size of each file of a tar, or of a stretch of one. Raises Damaged if it is no tar."""
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
        if not 0 <= member.size <= size - at:
            raise Damaged(f"{member.name} is cut off")
        yield member.name, at, member.size
        at = _padded(at + member.size)


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _read(file: BinaryIO, at: int, size: int) -> bytes:
    """Read `size` bytes from `at`, or as many as there are."""
    file.seek(at)
    return file.read(size)
