"""Shards: tar files of samples, as they lie in a folder, and the table of each.

    shard-000000.tar     a whole shard; an unfinished one has another name
    shard-000000.json    its table: where each sample lies in the tar, and what made them

Each sample is one stretch of the tar, so a sample is one read, in any order. The tar alone has all that the table says,
and a missing table is made again from it. What made the samples is the tar's first file, which WebDataset's readers
skip. Everything has checksums, by `checksums`; a table whose checksum differs is made again.
"""

from __future__ import annotations

import contextlib
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from ..errors import RecordingError
from .checksums import CHECKED, FORMAT, Damaged, sealed, unsealed
from .codec import Sample, decode
from .places import Place, RemoteFile, names_in, open_file, size_of

P = TypeVar("P", Path, Place)

ABOUT = "__recording__/about"  # the key of the file that says what made the samples; its extension is "json"
END = b"\0" * 1024  # the end of a tar file
_FORMATS = (2, *CHECKED)  # those that are read
_BLOCK = 512  # bytes; a tar consists of these
_PADDING = 1 << 20  # bytes at the end of a tar that are looked at; a writer leaves at most 11 KiB
_MAX_INDEX = 1 << 63  # an index is kept as an int64
_AHEAD = 1 << 20  # bytes; where a table is missing, the headers in a tar are read
_GO_ON = "to go on without its samples and have the next `record` make them again"


class Span(NamedTuple):
    """Where a sample lies in its shard: from byte `start` to before byte `end`."""

    sample: int  # The index of the sample
    start: int
    end: int


@dataclass(frozen=True)
class Shard:
    """A whole shard: a tar file of `size` bytes. `has_table` says whether its table is there and right."""

    path: Place
    size: int
    about: Mapping[str, Any]  # What made the samples
    spans: Sequence[Span]
    has_table: bool = True

    @property
    def checked(self) -> bool:
        """Whether its samples have checksums."""
        return self.about["format"] in CHECKED


def tar_of(folder: P, number: int) -> P:
    """Return the path of a shard's tar file."""
    return folder / f"shard-{number:06d}.tar"


def shards_in(folder: Place) -> list[int]:
    """Return the numbers of the whole shards in a folder, ascending.

    Raises RecordingError if the folder cannot be read, or a shard is missing whose table is there.
    """
    tars: set[int] = set()
    tables: set[int] = set()
    try:
        for name in names_in(folder):
            if match := re.fullmatch(r"shard-(\d{6,})\.(tar|json)", name):
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


def find_shard(folder: Place, number: int) -> Shard:
    """Return a whole shard, from its table if that is right, else from the headers in the tar.

    Raises RecordingError if the shard is damaged, or was written in another format.
    """
    path = tar_of(folder, number)
    try:
        with open_file(path, ahead=_AHEAD) as file:
            size = size_of(file)
            shard = _from_table(path, size) or _from_tar(path, size, file)
    except OSError as error:
        raise RecordingError(f"cannot read {path}: {error.strerror}", path=str(path)) from error
    if shard.about.get("format") not in _FORMATS:
        raise RecordingError(
            f"{path} is of the format {shard.about.get('format', 1)!r:.40} of recordings, and this version of "
            f"asyncblend reads formats {_FORMATS[0]} to {_FORMATS[-1]}. Take the version that wrote it; or record "
            f"the samples again, into another folder",
            path=str(path),
        )
    return shard


def read_sample(path: Place, span: Span, *, checked: bool) -> Sample:
    """Read a sample from the shard at `path`, and compare its checksums if it has them.

    Raises:
        RecordingError: The shard is damaged there, at the error's `offset`.
    """
    places: dict[str, int] = {}
    try:
        with open_file(path) as file:
            block = _read(file, span.start, span.end - span.start)
        files = {}
        for member, start, size in _members(lambda at: block[at : at + _BLOCK], len(block)):
            name = member.partition(".")[2]
            files[name], places[name] = block[start : start + size], start
        sample = decode(files, checked=checked)
        if sample.index != span.sample:
            raise Damaged(f"it is sample {sample.index}", file="json")
        return sample
    except Damaged as error:
        at = span.start + places.get(error.file, error.at)
        raise RecordingError(
            f"{path} is damaged: sample {span.sample}, at byte {at}: {error}", path=str(path), offset=at
        ) from None
    except OSError as error:
        raise RecordingError(f"cannot read {path}: {error.strerror}", path=str(path)) from error


def write_table(shard: Shard) -> None:
    """Put the shard's table beside it, in one step. Raises OSError if that fails."""
    table = {"format": FORMAT, "size": shard.size, "about": shard.about, "samples": shard.spans}
    assert isinstance(shard.path, Path), "nothing is written to an object store"
    path = shard.path.with_suffix(".json")
    partial = path.with_suffix(".json.partial")
    try:
        with partial.open("xb") as file:  # a new file: what has this name already may lead out of the folder
            file.write(sealed(table))
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def _from_table(path: Place, size: int) -> Shard | None:
    """Return the shard as its table has it. None if there is no table, or it does not fit a tar of this size."""
    try:
        with open_file(path.with_suffix(".json")) as file:
            table = unsealed(_read(file, 0, -1), checked=True)
        spans = [Span(*map(int, span)) for span in table["samples"]]
        about, full_size = dict(table["about"]), table["size"]
        right = all(0 <= span.sample < _MAX_INDEX and 0 <= span.start < span.end <= size for span in spans)
        good = table["format"] in CHECKED and right
    except (Damaged, OSError, ValueError, TypeError, KeyError, OverflowError):
        return None
    if type(full_size) is int and full_size > size:
        raise RecordingError(
            f"{path} is cut off: it has {size} bytes, its table says {full_size}. Copy it again; or remove both, {_GO_ON}",
            path=str(path),
            offset=size,
        )
    return Shard(path, size, about, spans) if good and full_size == size else None


def _from_tar(path: Place, size: int, file: BinaryIO | RemoteFile) -> Shard:
    about: dict[str, Any] = {}
    spans: list[Span] = []
    end = 0
    try:
        for name, start, length in _members(lambda at: _read(file, at, _BLOCK), size):
            key = name.partition(".")[0]
            after = _padded(start + length)
            if key == ABOUT:
                about = unsealed(_read(file, start, length), checked=False)
            elif not key.isdecimal() or int(key) >= _MAX_INDEX:
                raise Damaged(f"{name} is no file of a recording")
            elif spans and spans[-1].sample == int(key):
                spans[-1] = spans[-1]._replace(end=after)
            else:
                spans.append(Span(int(key), end, after))
            end = after
        rest = _read(file, end, _PADDING)
        if size - end > _PADDING or len(rest) < len(END) or rest.strip(b"\0"):
            raise Damaged("it has no end")
    except Damaged as error:
        raise RecordingError(
            f"{path} is damaged at byte {end}: {error}. Copy it again; or remove it, and its table if there is one, {_GO_ON}",
            path=str(path),
            offset=end,
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
            raise Damaged(f"no header of a file: {error}", at=at) from None
        start = at + _BLOCK
        if not 0 <= member.size <= size - start:
            raise Damaged(f"{member.name!r:.80} has {member.size} bytes, and {size - start} are there", at=at)
        yield member.name, start, member.size
        at = _padded(start + member.size)


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _read(file: BinaryIO | RemoteFile, at: int, size: int) -> bytes:
    """Read `size` bytes from `at`, or as many as there are. Raises Damaged if they do not fit into memory."""
    file.seek(at)
    try:
        return file.read(size)
    except MemoryError:
        raise Damaged(f"{size} bytes do not fit into memory") from None
