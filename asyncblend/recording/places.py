"""Places: where a recording can be read: in a folder of this machine, or in an object store, at a URL.

A folder is a Path, and what a URL names is a `Remote`. fsspec reads URLs, and is loaded only for them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar
from urllib.parse import unquote_to_bytes

from ..errors import ConfigError, RecordingError

T = TypeVar("T")
R = TypeVar("R")

_AT_ONCE = 16  # requests to an object store, each of which takes a round trip


class Remote(PurePosixPath):
    """A folder or a file at a URL, such as "s3://bucket/cubes"."""

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)  # a path has no double slash


Place = Path | Remote


def place_of(folder: str | os.PathLike[str]) -> Place:
    """Return the place that a path or a URL names. A path is absolute, so that it stays the same wherever one goes."""
    text = os.fspath(folder)
    if text.startswith("file://"):
        return Path(os.fsdecode(unquote_to_bytes(os.fsencode(text.removeprefix("file://"))))).absolute()
    return Remote(text) if "://" in text else Path(text).absolute()


def folder_of(folder: str | os.PathLike[str]) -> Path:
    """Return the folder of this machine that is to be written into.

    Raises:
        ConfigError: It is a URL.
    """
    text = os.fspath(folder)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):  # a path made of a URL has one slash less
        raise ConfigError(f"a recording is written into a folder, not to {text!r}; copy it there when it is whole")
    return Path(text)


def names_in(folder: Place) -> list[str]:
    """Return the names of what is in a folder. Raises OSError if it cannot be read."""
    if isinstance(folder, Path):
        return os.listdir(folder)
    with _as_os_errors():
        files, path = _store_of(folder)
        files.invalidate_cache(path)  # what was listed before may have changed since
        return [found.rstrip("/").rpartition("/")[2] for found in files.ls(path, detail=False)]


def open_file(path: Place, *, ahead: int = 0) -> BinaryIO | RemoteFile:
    """Open a file for reading. Raises OSError if it is a pipe, which would be waited for, or a device without an end.

    Args:
        path: The file.
        ahead: How many bytes at least are asked of an object store at once.
    """
    if not isinstance(path, Path):
        return RemoteFile(path, ahead)

    def opener(name: str, flags: int) -> int:
        descriptor = os.open(name, flags | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "it is no ordinary file")
        return descriptor

    return open(path, "rb", opener=opener)


def size_of(file: BinaryIO | RemoteFile) -> int:
    """Return the size of an open file in bytes. Raises OSError."""
    return file.size() if isinstance(file, RemoteFile) else os.fstat(file.fileno()).st_size


def each(place: Place, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield what a function returns for each item, in their order. It reads at the place, many at once if it is remote."""
    if isinstance(place, Path):
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(_AT_ONCE, "asyncblend reading")
    begun: deque[Future[R]] = deque()
    try:
        for item in items:
            begun.append(pool.submit(function, item))
            if len(begun) == _AT_ONCE:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class RemoteFile:
    """A file in an object store, of which each `read` is one request. Nothing stays open."""

    def __init__(self, path: Remote, ahead: int) -> None:
        self._path, self._ahead, self._at = path, ahead, 0
        self._start, self._bytes = 0, b""  # what was read ahead, and where it begins

    def __enter__(self) -> RemoteFile:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def size(self) -> int:
        """Return its size in bytes. Raises OSError, as `read` does."""
        with _as_os_errors():
            files, path = _store_of(self._path)
            return int(files.info(path)["size"])

    def seek(self, at: int) -> None:
        """Let the next `read` begin there."""
        self._at = at

    def read(self, size: int) -> bytes:
        """Return so many bytes, or as many as there are. -1: all of them."""
        at, end = self._at, self._at + size
        if size >= 0 and self._start <= at and end <= self._start + len(self._bytes):
            return self._bytes[at - self._start : end - self._start]
        with _as_os_errors():
            files, path = _store_of(self._path)
            if size < 0:
                return bytes(files.cat_file(path, start=at))
            try:
                found = bytes(files.cat_file(path, start=at, end=max(end, at + self._ahead)))
            except Exception:
                files.invalidate_cache(path)  # it may have become shorter since it was listed
                if at < int(files.info(path)["size"]):
                    raise
                found = b""  # it ends before: most stores refuse a request for what is beyond the end
            self._start, self._bytes = at, found
        return self._bytes[:size]


def _store_of(path: Remote) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and the path in it.

    Each time anew, which costs little: a process that was forked since must not use the one of its parent.

    Raises:
        RecordingError: fsspec, or what it needs for such a URL, is not installed, or there is no such protocol.
    """
    try:
        from fsspec.core import url_to_fs

        files, inside = url_to_fs(str(path))
    except ImportError as error:
        text = (
            f"{path} cannot be read without fsspec and its package for such URLs, which are s3fs for s3://, gcsfs for gs:// "
            f'and adlfs for az://: pip install "asyncblend[cloud]" has the first'
        )
        raise RecordingError(f"{text} ({error})", path=str(path)) from None
    except ValueError as error:
        raise RecordingError(f"{path} cannot be read: {error}", path=str(path)) from None
    return files, inside


@contextlib.contextmanager
def _as_os_errors() -> Iterator[None]:
    """Raise an OSError with a text for whatever a file system raises, which is of many kinds."""
    try:
        yield
    except RecordingError:
        raise
    except Exception as error:
        number = getattr(error, "errno", None)
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise OSError(number if isinstance(number, int) else errno.EIO, text) from error
