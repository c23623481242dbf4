"""Writer: writes a recording so that whatever happens, the folder holds whole shards.

A writer continues after the whole shards that are there. What a crash left unfinished is removed, and since its samples
are not among `indices`, they are made again.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import secrets
import stat
import tarfile
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from filelock import FileLock, Timeout

from ..errors import AsyncblendError, ConfigError, RecordingError
from .about import check_same
from .checksums import FORMAT, sealed
from .codec import key_of
from .reader import table_of
from .shards import ABOUT, END, Shard, Span, find_shard, shards_in, tar_of, write_table

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
_LOCK = ".writing"
_PARTIAL = ".partial"


class ShardSize:
    """When a shard is full: at a number of samples, or of bytes such as "500MB", which the last sample may exceed.

    Raises ConfigError if `size` is neither.
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

    def reached(self, samples: int, size: int) -> bool:
        """Return whether a shard of so many samples and bytes is full."""
        return samples >= self._samples or size >= self._bytes


class Writer:
    """The only writer of a folder: call `open`, then `add` from any thread, then `close`. All of them block.

    Args:
        folder: Made if it is missing.
        about: What the samples are made from, as `about.about` returns it.
        shard_size: When a shard is full.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], shard_size: ShardSize) -> None:
        self._folder, self._about, self._shard_size = folder, {"format": FORMAT, **about}, shard_size
        self._adding = threading.Lock()
        self._folder_lock: FileLock | None = None
        self._shard: _PartialShard | None = None
        self._next_number = 0
        self._failure: Exception | None = None
        self.indices: set[int] = set()  # The indices of all samples in the folder, with those in the unfinished shard
        self.recorded: int = 0  # The number of samples in whole shards, with those of earlier writers
        self.blender: str | None = None  # The version that the first shard was made with, if it says so
        self._written = 0

    @property
    def written(self) -> int:
        """The bytes that this writer has written."""
        shard = self._shard  # another thread may be finishing it
        return self._written + (0 if shard is None else shard.size)

    def open(self) -> None:
        """Lock the folder, and find out what is in it.

        Raises:
            RecordingError: The folder cannot be written, or another writer has it; a shard is missing, damaged or of
                another format; webdataset is not installed.
            ConfigError: The folder has a recording that was made from something else.
        """
        _tar_writer()  # a missing webdataset should not be noticed only at the first sample
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock_folder()
            self.sweep()
            numbers = shards_in(self._folder)
            shards = [find_shard(self._folder, number) for number in numbers]
            for shard in shards:
                if not shard.has_table:
                    write_table(shard)
            if shards:
                check_same(shards[0].about, self._about, self._folder)
                self.blender = shards[0].about.get("blender")
            self.indices = set(table_of(shards)["index"].tolist())
            self.recorded = len(self.indices)
            self._next_number = numbers[-1] + 1 if numbers else 0
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise self._cannot_write(error) from error
            raise

    def add(self, index: int, files: Mapping[str, bytes], **about: Any) -> None:
        """Write a sample, whose files `codec.encode` made, unless its index is in the folder already.

        `about` is what is known about the making of samples only now. It is written into each new shard.

        Raises:
            RecordingError: The disk does not take it. All whole shards stay readable; the error's `recorded` is the
                number of samples in them.
        """
        with self._adding:
            if self._failure is not None:
                raise self._cannot_write(self._failure) from self._failure
            if self._folder_lock is None:
                raise RecordingError(f"the recording into {self._folder} is closed", path=str(self._folder))
            if index in self.indices:
                return
            try:
                if self._shard is None:
                    self._shard = _PartialShard(tar_of(self._folder, self._next_number), {**self._about, **about})
                    self._next_number += 1
                self._shard.add(index, files)
                self.indices.add(index)
                if self._shard_size.reached(len(self._shard.spans), self._shard.size):
                    self._count(self._shard.finish())
            except Exception as error:
                self._fail(error)

    def include(self, shard: Shard) -> None:
        """Count a shard that `write_shard` wrote, and write its table.

        Raises:
            RecordingError: It is not there, or the disk does not take its table.
        """
        with self._adding:
            try:
                if os.stat(shard.path).st_size != shard.size:
                    raise OSError(f"{shard.path.name} has another size here than where it was written")
                self._count(shard)
            except OSError as error:
                self._fail(error)

    def sweep(self) -> None:
        """Remove unfinished shards and tables, so that whoever may still write them cannot give them their names."""
        for leftover in self._folder.glob(f"shard-*{_PARTIAL}"):
            leftover.unlink(missing_ok=True)

    def close(self) -> None:
        """Make the unfinished shard whole, and unlock the folder. May be called twice.

        Raises:
            RecordingError: The disk does not take it, as in `add`.
        """
        with self._adding:
            try:
                if self._shard is not None:
                    self._count(self._shard.finish())
            except Exception as error:
                self._fail(error)
            finally:
                if self._folder_lock is not None:
                    self._folder_lock.release()
                    self._folder_lock = None

    def _lock_folder(self) -> None:
        """Lock the folder. The system unlocks it when the process ends, however it ends."""
        path = self._folder / _LOCK
        with contextlib.suppress(FileNotFoundError):
            _check_own(path, path.lstat())
        lock = FileLock(path, thread_local=False)  # one thread opens the writer, and another may close it
        try:
            lock.acquire(timeout=0)
        except Timeout:
            with open(path, "rb", opener=_own) as file:
                process = file.read(20).decode(errors="replace").strip() or "unknown"
            raise RecordingError(
                f"another recording into {self._folder} is going on (process {process}); wait for it, or take another "
                f"folder",
                path=str(self._folder),
            ) from None
        self._folder_lock = lock
        with open(path, "r+b", opener=_own) as file:
            file.truncate(0)
            file.write(f"{os.getpid()}\n".encode())

    def _count(self, shard: Shard) -> None:
        """Count a shard that has become whole, and write its table."""
        self._shard = None
        self.indices.update(span.sample for span in shard.spans)
        self.recorded += len(shard.spans)
        self._written += shard.size
        write_table(shard)

    def _fail(self, error: Exception) -> NoReturn:
        """Save what can be saved of the unfinished shard, and refuse all further samples."""
        self._failure = error
        if (partial := self._shard) is not None:
            self._shard = None
            self.indices.difference_update(span.sample for span in partial.spans)
            with contextlib.suppress(OSError):  # a missing table is made again
                if (shard := partial.salvage()) is not None:
                    self._count(shard)
        raise self._cannot_write(error) from error

    def _cannot_write(self, error: Exception) -> RecordingError:
        why = error.strerror or str(error) if isinstance(error, OSError) else repr(error)
        text = f"cannot record into {self._folder}: {why}"
        if self.recorded:
            text += f". {self.recorded} samples are recorded there and stay readable; recording again adds the others"
        return RecordingError(text, path=str(self._folder), recorded=self.recorded)


def write_shard(
    folder: Path, number: int, about: Mapping[str, Any], samples: Iterable[tuple[int, Mapping[str, bytes]]]
) -> Shard | None:
    """Write a shard of its own into a folder that another process has open, perhaps on another machine.

    A shard of this number that is there already is returned as it is: the process before this one got that far. The
    table is left to the folder's writer.

    Args:
        folder: It must be there.
        number: The shard's, which no other process has.
        about: What the samples are made from and with.
        samples: Their indices and files.

    Returns:
        The shard, or None if there were no samples.

    Raises:
        RecordingError: The disk does not take it. Nothing of it is left.
    """
    path = tar_of(folder, number)
    try:
        if path.exists():
            return find_shard(folder, number)
        shard = _PartialShard(path, {"format": FORMAT, **about})
        try:
            for index, files in samples:
                shard.add(index, files)
            return shard.finish() if shard.spans else None
        finally:
            shard.discard()
    except AsyncblendError:
        raise  # some are OSErrors too
    except OSError as error:
        raise RecordingError(f"cannot record into {folder}: {error.strerror or error}", path=str(folder)) from error


class _PartialShard:
    """A shard that samples are added to. It gets its name when it is whole and on the disk. Not thread-safe.

    Every method raises OSError if the disk does not take what it writes. Then call `salvage`.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self._path, self._about = path, about
        # A name that no process had before: a shard may be begun again while the one that began it still ends.
        self._partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_PARTIAL}")
        self.size = 0  # The bytes written so far
        self.spans: list[Span] = []
        self._descriptor = os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            self._write_files({"__key__": ABOUT, "json": sealed(about)})
        except BaseException:
            self.salvage()
            raise

    def add(self, index: int, files: Mapping[str, bytes]) -> None:
        if not os.fstat(self._descriptor).st_nlink:
            raise OSError(errno.ESTALE, "the recording was ended, and this unfinished shard was removed")
        start = self.size
        self._write_files({"__key__": key_of(index), **files})
        self.spans.append(Span(index, start, self.size))

    def finish(self) -> Shard:
        """Make the shard whole and return it. From then on it is read, and survives a crash of the machine."""
        self._write(END + bytes(-(self.size + len(END)) % tarfile.RECORDSIZE))
        return self._publish()

    def salvage(self) -> Shard | None:
        """After an error, make a whole shard of the samples that are in the file. None if there is none."""
        try:
            while self.spans:
                try:
                    os.ftruncate(self._descriptor, self.spans[-1].end)
                    os.lseek(self._descriptor, 0, os.SEEK_END)
                    self._write(END)
                    return self._publish()
                except OSError:
                    self.spans.pop()  # where this sample was, there is room for the end of the tar
            return None
        finally:
            self.discard()

    def discard(self) -> None:
        """Remove the file, unless it has its name."""
        self._close()
        with contextlib.suppress(OSError):
            self._partial.unlink(missing_ok=True)

    def _write_files(self, files: Mapping[str, Any]) -> None:
        # Fixed times and owners, so that the same samples give the same bytes.
        buffer = io.BytesIO()
        with _tar_writer()(buffer, encoder=False, user="", group="", mode=0o644, mtime=0) as tar:
            tar.write(files)
            size = tar.tarstream.offset  # without the end of the tar, which closing it writes
        self._write(buffer.getbuffer()[:size])

    def _write(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        while rest:
            written = os.write(self._descriptor, rest)
            rest = rest[written:]
            self.size += written

    def _publish(self) -> Shard:
        os.fsync(self._descriptor)
        size = os.fstat(self._descriptor).st_size
        self._partial.replace(self._path)
        self._close()  # not before: if the renaming fails, `salvage` needs the file
        # The new name too must survive a crash of the machine. Not every file system can do that.
        with contextlib.suppress(OSError):
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        return Shard(self._path, size, self._about, self.spans)

    def _close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


def _own(path: str, flags: int) -> int:
    """Open a file of the folder, for `open`. Raises RecordingError if it is a link, or OSError."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        _check_own(Path(path), os.fstat(descriptor))
    except RecordingError:
        os.close(descriptor)
        raise
    return descriptor


def _check_own(path: Path, status: os.stat_result) -> None:
    """Raise RecordingError if this is a link, symbolic or hard, so that writing into it would change another file."""
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise RecordingError(
            f"{path} is a link or no file, so it is not written into; remove it", path=str(path.parent)
        )


def _tar_writer() -> Any:
    """Return webdataset's TarWriter. The first call takes a second or two, because webdataset imports torch."""
    try:
        from webdataset import TarWriter
    except ImportError as error:
        raise RecordingError(f'recording needs webdataset: pip install "asyncblend[record]" ({error})') from None
    return TarWriter
