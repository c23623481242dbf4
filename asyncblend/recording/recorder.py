"""Recorder: writes a stream's frames into a folder while they come. What `BlenderStream.record` gives."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..aio import finish
from ..config import check_whole, cores
from ..errors import ConfigError, RecordingError
from ..stream.frame import Frame
from .about import about
from .codec import Images, encode
from .writer import ShardSize, Writer

if TYPE_CHECKING:
    from ..stream.stream import BlenderStream

__all__ = ["Recorder"]


class Recorder:
    """Records a stream: to its end, when awaited; or frame by frame, as an asynchronous iterator.

    Images are encoded by threads, and the files written by them; the event loop never waits. At most two frames for
    each thread wait for that, then the iterator does, and so, its places being taken, the fleet.
    """

    def __init__(
        self,
        stream: BlenderStream,
        folder: str | os.PathLike[str],
        *,
        length: int | None,
        images: Images,
        shard_size: ShardSize,
    ) -> None:
        config = stream.config
        if length is not None:
            check_whole("length", length, 0)
            if config.length is not None and length > config.length:
                raise ConfigError(f"length={length} is more than the stream has, which is {config.length}")
        elif config.length is None:
            raise ConfigError("an endless stream is recorded up to a length: record(folder, length=1000)")
        self._stream, self._folder, self._images = stream, Path(folder), images
        self._length = config.length if length is None else length
        self._shard_size = shard_size
        self._threads = cores()
        self._writer: Writer | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._jobs: set[asyncio.Future[None]] = set()
        self._error: BaseException | None = None  # of a job, until somebody has heard of it
        self._beginning: asyncio.Future[None] | None = None
        self._finishing: asyncio.Future[None] | None = None
        self._before = 0
        self._complete = False  # from the beginning
        self._entered = False  # by us
        self._closing = False

    @property
    def recorded(self) -> int:
        """Samples in the folder, of earlier runs too; those on their way there are not counted."""
        return 0 if self._writer is None else len(self._writer.indices)

    @property
    def before(self) -> int:
        """Samples that were in the folder when it began."""
        return self._before

    @property
    def written(self) -> int:
        """Bytes, by this recorder."""
        return 0 if self._writer is None else self._writer.written

    def __await__(self) -> Generator[Any, None, int]:
        return self._to_the_end().__await__()

    def __aiter__(self) -> Recorder:
        return self

    async def __anext__(self) -> Frame:
        """The next frame, which is on its way to the disk.

        Raises:
            StopAsyncIteration: all is recorded.
            RecordingError: it cannot be written; all whole samples stay readable.
            ConfigError: the folder has a recording of another stream.
            Also what a stream raises. In all these cases the recorder is closed.
        """
        if self._closing:
            raise StopAsyncIteration
        try:
            await self._begin()
            await self._room()
            if self._complete:
                raise StopAsyncIteration
            frame = await anext(self._stream)
        except StopAsyncIteration:
            await self.aclose()
            raise
        except Exception:
            with contextlib.suppress(RecordingError):  # one error is enough
                await self.aclose()
            raise
        # From here on no await: a frame that was taken is recorded, also if we are cancelled.
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, "asyncblend recording")
        job = asyncio.get_running_loop().run_in_executor(self._pool, partial(self._write, frame))
        self._jobs.add(job)
        job.add_done_callback(self._done)
        return frame

    async def aclose(self) -> None:
        """Make the shard at hand whole, so that all frames that were given are on the disk. May be called twice.

        Raises:
            RecordingError: it cannot be written.
        """
        await finish(self._close())

    async def __aenter__(self) -> Recorder:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(*([] if error is None else [RecordingError])):
            await self.aclose()

    @property
    def closed(self) -> bool:
        """It records no more."""
        return self._closing

    async def stream_closed(self) -> BaseException | None:
        """The stream's own: it is closed, and waits until all that it gave is on the disk. What went wrong at that."""
        if self._entered:
            return None  # it is we who close it
        await self._finished()
        error, self._error = self._error, None
        return error

    async def _to_the_end(self) -> int:
        async with self:
            async for _ in self:
                pass
        return self.recorded

    async def _begin(self) -> None:
        if self._beginning is None:
            self._beginning = asyncio.ensure_future(self._open())
        await asyncio.shield(self._beginning)  # it is not left half done

    async def _open(self) -> None:
        """See what the folder has, and have the stream go on after that, before it renders anything."""
        made_of = await asyncio.to_thread(about, self._stream.config, self._images)
        self._writer = Writer(self._folder, made_of, self._shard_size)
        await asyncio.to_thread(self._writer.open)
        self._before = len(self._writer.indices)
        if self._closing:
            return
        self._complete = not self._stream.go_on_after(self._writer.indices, self._length)
        if not self._complete and not self._stream.entered:
            self._entered = True
            await self._stream.__aenter__()

    async def _room(self) -> None:
        while len(self._jobs) >= 2 * self._threads:
            await asyncio.wait(self._jobs, return_when=asyncio.FIRST_COMPLETED)
        if self._error is not None:
            raise self._error

    def _write(self, frame: Frame) -> None:
        """In a thread of the pool."""
        assert self._writer is not None
        files = encode(frame, index=frame.index, instance=frame.instance, params=frame.params, images=self._images)
        self._writer.add(frame.index, files, blender=self._stream.blender_version)

    def _done(self, job: asyncio.Future[None]) -> None:
        self._jobs.discard(job)
        error = job.exception()
        self._error = self._error or error

    async def _close(self) -> None:
        self._closing = True
        if self._entered:
            await self._stream.aclose()  # first: we may be waiting for it to start
        await self._finished()
        error, self._error = self._error, None
        if error is not None:
            raise error

    async def _finished(self) -> None:
        self._closing = True
        if self._finishing is None:
            self._finishing = asyncio.ensure_future(self._finish())
        await asyncio.wait([self._finishing])

    async def _finish(self) -> None:
        if self._beginning is not None:
            await asyncio.wait([self._beginning])
            self._beginning.exception()  # who waited for it has it; nobody else needs it
        while self._jobs:
            await asyncio.wait(self._jobs)
        if self._writer is not None:
            try:
                await asyncio.to_thread(self._writer.close)
            except RecordingError as error:
                self._error = self._error or error
        if self._pool is not None:
            self._pool.shutdown()
