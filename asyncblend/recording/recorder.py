"""Recorder: writes the frames of a pass into a folder while they come. What `BlenderStream.record` returns."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any, Protocol, TypeVar

from ..aio import finish
from ..checks import check_whole
from ..config import StreamConfig, cores
from ..errors import ConfigError, RecordingError
from .about import about, check_blender
from .codec import Images, encode_sample
from .places import folder_of
from .writer import ShardSize, Writer

F = TypeVar("F")
F_co = TypeVar("F_co", covariant=True)


class _Frames(Protocol[F_co]):
    """A pass over the stream, whose frames are mappings with the attributes `index`, `instance` and `params`.

    An episode has a `length` too.
    """

    def samples(self) -> _Samples[F_co]: ...


class _Samples(Protocol[F_co]):
    """Its samples: frames, and one for each episode that has all of its frames."""

    def __anext__(self) -> Awaitable[F_co]: ...
    async def aclose(self) -> None: ...


class _Stream(Protocol[F_co]):
    """The stream that is recorded."""

    config: StreamConfig

    @property
    def blender_version(self) -> str: ...
    def source(self) -> dict[str, Any]: ...
    def frames(self, indices: Sequence[int], *, state: Mapping[str, Any]) -> _Frames[F_co]: ...
    async def __aenter__(self) -> object: ...
    async def aclose(self) -> None: ...


class Recorder(AsyncIterator[F]):
    """Records a stream: to its end, when it is awaited; or frame by frame, as an asynchronous iterator.

    Threads encode the images and write the files, so the event loop never waits for either. When two frames for each
    thread wait to be written, the iterator waits too; then the slots fill up, and the fleet waits. Frames are written
    in the order in which they come.

    Args:
        stream: The stream. The recorder is a pass over those of its indices that the folder lacks.
        entered: Returns whether the stream is entered. Otherwise the recorder enters and closes it.
        folder, length, images, shard_size: As `BlenderStream.record` has them.

    Raises:
        ConfigError: The length is wrong, or missing for an endless stream.
    """

    def __init__(
        self,
        stream: _Stream[F],
        entered: Callable[[], bool],
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
        self._stream, self._entered, self._folder, self._images = stream, entered, folder_of(folder), images
        k, n = config.shard or (0, 1)
        end = config.start + (length if length is not None else config.length or 0)
        self._indices = range(config.start + k, end, n)
        self._shard_size = shard_size
        self._threads = cores()
        self._writer: Writer | None = None
        self._frames: _Samples[F] | None = None  # none if the folder has all samples
        self._pool: ThreadPoolExecutor | None = None
        self._jobs: set[asyncio.Future[None]] = set()
        self._written = threading.Event()  # whether the frame that came last is written
        self._written.set()
        self._error: BaseException | None = None  # of a job, until it has been raised
        self._beginning: asyncio.Future[None] | None = None
        self._finishing: asyncio.Future[None] | None = None
        self.before: int = 0  # samples that were in the folder at the beginning
        self._owns_stream = False
        self.closed: bool = False  # whether it records no more

    @property
    def recorded(self) -> int:
        """Samples in the folder, of earlier runs too, without those that are being written."""
        return 0 if self._writer is None else len(self._writer.indices)

    @property
    def written(self) -> int:
        """Bytes that this recorder has written."""
        return 0 if self._writer is None else self._writer.written

    def __await__(self) -> Generator[Any, None, int]:
        return self._to_the_end().__await__()

    async def __anext__(self) -> F:
        """Return the next frame, which is being written meanwhile.

        Raises:
            StopAsyncIteration: All samples are recorded.
            RecordingError: A sample cannot be written. All whole samples stay readable.
            ConfigError: The folder has a recording of another stream, or of another version of Blender.
            AsyncblendError: As iterating over the stream raises. In all these cases the recorder is closed.
        """
        if self.closed:
            raise StopAsyncIteration
        try:
            if self._beginning is None:
                self._beginning = asyncio.ensure_future(self._open())
            await asyncio.shield(self._beginning)  # a cancelled caller must not leave it half done
            while len(self._jobs) >= 2 * self._threads:
                await asyncio.wait(self._jobs, return_when=asyncio.FIRST_COMPLETED)
            if self._error is not None:
                raise self._error
            if self._frames is None:
                raise StopAsyncIteration
            frame = await self._frames.__anext__()
        except StopAsyncIteration:
            await self.aclose()
            raise
        except Exception:
            with contextlib.suppress(RecordingError):  # one error is enough
                await self.aclose()
            raise
        # From here on nothing is awaited: a frame that was taken is recorded, also if this task is cancelled.
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, "asyncblend recording")
        before, self._written = self._written, threading.Event()
        write = partial(self._write, frame, before, self._written)
        job = asyncio.get_running_loop().run_in_executor(self._pool, write)
        self._jobs.add(job)
        job.add_done_callback(self._done)
        return frame

    async def aclose(self) -> None:
        """Make the last shard whole, so that all frames that were returned are on the disk. May be called twice.

        Raises:
            RecordingError: It cannot be written.
        """
        await finish(self._close())

    async def __aenter__(self) -> Recorder[F]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(*([] if error is None else [RecordingError])):
            await self.aclose()

    async def stream_closed(self) -> BaseException | None:
        """Wait until all that the closed stream gave is on the disk. Return the error that nobody has been told of."""
        return None if self._owns_stream else await self._finished()  # its own stream the recorder closes itself

    async def _to_the_end(self) -> int:
        async with self:
            async for _ in self:
                pass
        return self.recorded

    async def _open(self) -> None:
        """Read what the folder has, and begin a pass over the rest."""
        if self._stream.config.fleet is not None:  # which alone knows what its samples are made of
            await self._enter()
        made_of = await asyncio.to_thread(self._made_of)
        self._writer = Writer(self._folder, made_of, self._shard_size)
        await asyncio.to_thread(self._writer.open)
        there = set(self._writer.indices)
        self.before = len(there)
        indices = self._indices
        done = sorted(indices.index(index) for index in there if index in indices)
        if self.closed or len(done) == len(indices):
            return
        await self._enter()
        if not getattr(self._stream.config.cluster, "mixed_blenders", False):
            check_blender(self._writer.blender, self._stream.blender_version, self._folder)
        # A state, not a list of what is missing, which may be long.
        watermark = next((i for i, position in enumerate(done) if i != position), len(done))
        described = {"start": indices.start, "stop": indices.stop, "step": indices.step}
        state = {"seed": self._stream.config.seed, "indices": described, "watermark": watermark}
        self._frames = self._stream.frames(indices, state={**state, "above": done[watermark:]}).samples()

    def _made_of(self) -> dict[str, Any]:
        return about(self._stream.config, self._images, self._stream.source())

    async def _enter(self) -> None:
        """Enter the stream, unless it is entered already."""
        if not self._entered():
            self._owns_stream = True
            await self._stream.__aenter__()

    def _write(self, frame: Any, before: threading.Event, written: threading.Event) -> None:
        """Encode a frame, and write it after the one before it, in a thread of the pool, which begins that one first."""
        assert self._writer is not None
        try:
            files = encode_sample(frame, self._images)
            before.wait()
            self._writer.add(frame.index, files, blender=self._stream.blender_version)
        finally:
            written.set()

    def _done(self, job: asyncio.Future[None]) -> None:
        self._jobs.discard(job)
        error = job.exception()  # asked for in any case: otherwise asyncio reports that nobody did
        self._error = self._error or error

    async def _close(self) -> None:
        self.closed = True
        error: BaseException | None = None
        try:
            if self._frames is not None:
                # Before the Blenders end, which may take longer than the patience of a user who presses Ctrl-C again.
                await self._frames.aclose()
                error = await self._finished()
        finally:
            if self._owns_stream:
                await self._stream.aclose()
        if (error := error or await self._finished()) is not None:
            raise error

    async def _finished(self) -> BaseException | None:
        """Wait until all is on the disk, and return the error that has not been raised."""
        self.closed = True
        if self._finishing is None:
            self._finishing = asyncio.ensure_future(self._finish())
        await asyncio.wait([self._finishing])
        error, self._error = self._error, None
        return error

    async def _finish(self) -> None:
        if self._beginning is not None:
            await asyncio.wait([self._beginning])
            self._beginning.exception()  # whoever waited for it has it; nobody else needs it
        while self._jobs:
            await asyncio.wait(self._jobs)
        if self._writer is not None:
            try:
                await asyncio.to_thread(self._writer.close)
            except RecordingError as error:
                self._error = self._error or error
        if self._pool is not None:
            self._pool.shutdown()
