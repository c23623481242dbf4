"""BlenderStream: the public way to a fleet's frames from asyncio."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import warnings
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..aio import finish, the_one_error
from ..config import StreamConfig, check_whole, resolve
from ..errors import ConfigError, StreamClosed
from ..fleet.discovery import Blender, find_blender
from ..fleet.fleet import Fleet
from ..fleet.spawn import Spawner
from ..fleet.workspace import Workspace
from .batch import Batch
from .dispatcher import Dispatcher, new_book
from .frame import Frame
from .hub import Hub
from .queue import EndOfStream
from .stats import StreamStats

if TYPE_CHECKING:
    from ..recording.recorder import Recorder

__all__ = ["BlenderStream"]

_log = logging.getLogger("asyncblend")


class BlenderStream:
    """Frames from a fleet of Blenders, as an asynchronous iterator:

        async with BlenderStream(script="cube.py", instances=2) as stream:
            async for frame in stream:
                ...

    Entering starts the fleet and returns when the first instance is ready; leaving stops it, on every path, within
    `timeouts.stop` and a little. A stream is entered once, in one event loop, and is not thread-safe; several tasks
    may iterate it, and each frame goes to one of them.

    Args:
        config: the options.
        options: StreamConfig's fields; they override the config's.

    Raises:
        ConfigError: an option is wrong.
    """

    def __init__(self, config: StreamConfig | None = None, **options: Any) -> None:
        self._running: asyncio.Task[None] | None = None  # first: a wrong option leaves the rest unmade
        self.config = resolve(config, options)
        self._book = new_book(self.config, self.config.start)
        self._dispatcher: Dispatcher | None = None
        self._started: asyncio.Future[None] | None = None
        self._closing: asyncio.Future[None] | None = None
        self._recorder: Recorder | None = None
        self._unheard: BaseException | None = None  # of a recording, when its loop had been left already
        self._pid = os.getpid()

    async def __aenter__(self) -> BlenderStream:
        """Start the fleet.

        Raises:
            ConfigError: script or scene do not exist.
            BlenderNotFound: there is no Blender.
            InstanceExited, StartTimeout: a Blender died, or was not ready in time; nothing is left running.
            StreamClosed: it was entered before.
        """
        if self.entered:
            raise StreamClosed("a stream can be entered only once; make another one")
        _check_file("script", self.config.script)
        if self.config.scene is not None:
            _check_file("scene", self.config.scene)
        blender = find_blender(self.config.blender)
        self._pid = os.getpid()
        self._started = asyncio.get_running_loop().create_future()
        self._running = asyncio.create_task(self._run(blender), name="asyncblend stream")  # aclose awaits it
        try:
            await self._started
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
        if self._unheard is not None and error is None:
            raise self._unheard

    def __aiter__(self) -> BlenderStream:
        return self

    async def __anext__(self) -> Frame:
        """The next frame; its place is free for another.

        Raises:
            StopAsyncIteration: all of a finite stream has been delivered.
            AsyncblendError: why there are no more frames, after all good ones.
            StreamClosed: the stream is not open.
        """
        try:
            frame = await self.receive()
        except EndOfStream:
            raise StopAsyncIteration from None
        self.take(frame)
        return frame

    async def receive(self) -> Frame:
        """The next frame, which keeps its place and counts as queued until `take`. For consumers in other threads.

        Raises:
            EndOfStream: all of a finite stream has been delivered.
        """
        return await self._open().queue.get()

    def take(self, frame: Frame) -> None:
        """The consumer has this frame of `receive`."""
        self._open().take(frame)

    async def batches(self, size: int, *, drop_last: bool = False) -> AsyncIterator[dict[str, Any]]:
        """The stream in batches: dicts of arrays with a first axis of `size`, and "index" (int64).

        Each frame is copied once, into memory of its batch's own, which is yours and writable. Numbers are stacked
        too; strings and None come as lists. The last batch is shorter, or left out with `drop_last`.

        Raises:
            ConfigError: `size` is not a whole number from 1 on.
            SampleError: the samples differ in their names, shapes or dtypes.
            Also all that iterating over the frames raises.
        """
        check_whole("size", size, 1)
        batch = Batch(size)
        async for frame in self:
            batch.add(frame, frame.index)
            if batch.full:
                yield batch.finish()
                batch = Batch(size)
        if len(batch) and not drop_last:
            yield batch.finish()

    def record(
        self,
        folder: str | os.PathLike[str],
        *,
        length: int | None = None,
        image_format: str = "png",
        quality: int | None = None,
        shard_size: int | str = 100,
    ) -> Recorder:
        """Record the samples into a folder of WebDataset shards:

            async with BlenderStream(script="cube.py", length=1000) as stream:
                await stream.record("cubes")

        or train and record at once, with `async for frame in stream.record("cubes")`: leaving the loop early, and
        then the stream, makes the shard at hand whole. A stream that is not entered is entered, and closed at the end.

        If the folder has a part of the samples already, the others are rendered. (To have none of them rendered again,
        do not enter the stream before: else up to `queue_size` of the first ones are on their way already.) A crash
        costs the samples of the shard at hand, which are rendered again.

        Args:
            folder: made if it is missing.
            length: samples in all, those that are there included; None: the stream's.
            image_format: "png", or "jpeg" for `image` and values whose name begins with that. Other images, with three
                or four channels of uint8, are PNG, all other arrays npy.
            quality: of JPEG, 1 to 100; None: 95.
            shard_size: samples in a shard; or bytes, as "500MB".

        Raises:
            ConfigError: an option is wrong. Whether the folder has a recording of something else, and what else can go
                wrong there, says the iteration.
        """
        from ..recording.codec import Images
        from ..recording.recorder import Recorder  # not above: most streams are not recorded
        from ..recording.writer import ShardSize

        images = Images(image_format, quality)
        recorder = Recorder(self, folder, length=length, images=images, shard_size=ShardSize(shard_size))
        if self._recorder is not None and not self._recorder.closed:
            raise ConfigError("the stream is being recorded already; close that recording with its aclose()")
        self._recorder = recorder
        return recorder

    def rewind(self, start: int | None = None, state: Mapping[str, Any] | None = None) -> None:
        """Begin again at index `start` (default: the config's), with the same warm Blenders; or, before the stream is
        entered, begin there.

        Frames on their way or queued are dropped. An iteration that waits for a frame ends; one that does not goes on
        with the new pass. With `state`, from `state_dict` of
        a stream with the same `start`, go on where that was.

        Raises:
            ConfigError: the state does not fit.
            StreamClosed: the stream was closed.
        """
        start = self.config.start if start is None else start
        # Until there is a dispatcher, it is enough to have the book that it will begin with.
        dispatcher = None if self._dispatcher is None and self._closing is None else self._open()
        book = new_book(self.config, start, 0 if dispatcher is None else dispatcher.book.next_serial)
        if state is not None:
            if not isinstance(state, Mapping) or state.get("seed") != self.config.seed:
                raise ConfigError(
                    f"not a saved state of this stream, which has seed={self.config.seed}: {state!r:.200}"
                )
            book.load_state_dict(state)
        self._book = book
        if dispatcher is not None:
            dispatcher.begin(book)

    @property
    def entered(self) -> bool:
        """Whether it has been entered; it may be closed again."""
        return self._running is not None or self._closing is not None

    def go_on_after(self, indices: Iterable[int], length: int | None) -> bool:
        """Begin a pass of this length without these indices, unless that is what is going on. False: none is left.

        Raises:
            StreamClosed: the stream was closed.
        """
        config = dataclasses.replace(self.config, length=length)
        dispatcher = self._open() if self.entered else None
        book = new_book(config, config.start, 0 if dispatcher is None else dispatcher.book.next_serial)
        book.leave_out(indices)
        if dispatcher is None:
            self._book = book
        elif book.state_dict() != dispatcher.book.state_dict():
            self._book = book
            dispatcher.begin(book)
        return not book.done

    def stats(self) -> StreamStats:
        """A snapshot. Also after the end."""
        if self._dispatcher is not None:
            return self._dispatcher.stats()
        numbers = range(self.config.first_instance, self.config.first_instance + self.config.instances)
        return StreamStats(
            delivered=0, rendering=0, queued=0, restarts=0, recycled=0, duplicates=0, stale=0, bad_messages=0, skipped=0,
            frames=dict.fromkeys(numbers, 0), state=dict.fromkeys(numbers, "new"),
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Which indices have been taken: plain data, for `load_state_dict` of a stream that goes on from here."""
        return {"seed": self.config.seed, **self._book.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was saved. Before the stream is entered.

        Raises:
            ConfigError: the state is of another stream (seed, start, length or shard differ), or no state.
            StreamClosed: the stream was entered already.
        """
        if self._running is not None:
            raise StreamClosed("load_state_dict comes before the stream is entered")
        if state is None:
            raise ConfigError("not a saved state: None")
        self.rewind(state=state)

    @property
    def blender_version(self) -> str:
        """Of the Blenders, once one is ready; "" before, and where there is none."""
        return "" if self._dispatcher is None else self._dispatcher.blender_version

    @property
    def broken(self) -> bool:
        """The fleet has ended by itself: `rewind` will not help."""
        return self._running is not None and self._running.done()

    async def aclose(self) -> None:
        """Stop the fleet. May be called at any time, also twice; returns when nothing is left."""
        if self._pid != os.getpid():
            return  # a forked copy: nothing here is ours
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await finish(_wait_for(self._closing))

    async def _close(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
        if self._started is not None and not self._started.done():
            self._started.set_exception(StreamClosed("the stream was closed"))  # for who is entering it
        if self._dispatcher is not None:
            self._dispatcher.queue.close(StreamClosed("the stream was closed"))
            self._dispatcher.queue.clear()  # frames that nobody can take any more, with the memory that they hold
        if self._recorder is not None and (error := await self._recorder.stream_closed()) is not None:
            self._unheard = error
            _log.error("%s", error)

    async def _run(self, blender: Blender) -> None:
        """The fleet and the hub, until cancelled or until they cannot go on. Its own errors go to the consumer."""
        assert self._started is not None
        try:
            with (
                Workspace() as workspace,
                Hub(workspace.folder, self.config.seed, share=self.config.shared_memory) as hub,
            ):
                spawn = Spawner(self.config, blender, workspace, hub)
                fleet = Fleet(self.config, spawn, hub.send_stop)
                self._dispatcher = Dispatcher(self.config, hub, fleet, self._book)
                # The hub outlives the fleet: who comes back on another connection while it is stopped is heard.
                async with asyncio.TaskGroup() as outer:
                    serving = outer.create_task(hub.serve(self._dispatcher), name="asyncblend hub")
                    async with asyncio.TaskGroup() as group:
                        group.create_task(fleet.run(self._dispatcher.life_over), name="asyncblend fleet")
                        await fleet.first_ready()
                        if not self._started.done():
                            self._started.set_result(None)
                    serving.cancel()
        except BaseException as error:
            cause = the_one_error(error)
            if isinstance(cause, asyncio.CancelledError):
                raise
            if self._dispatcher is not None:
                self._dispatcher.fail(cause)
                cause = self._dispatcher.end or cause  # why it began to fail
            if not self._started.done():
                self._started.set_exception(cause)
            if not isinstance(cause, Exception):
                raise

    def _open(self) -> Dispatcher:
        if self._pid != os.getpid():
            raise StreamClosed(
                "this stream belongs to another process, from which this one was forked; make a new one here"
            )
        if self._dispatcher is None or self._closing is not None:
            how = "has been closed" if self._closing is not None else "is not open; use it as `async with`"
            raise StreamClosed(f"the stream {how}")
        return self._dispatcher

    def __del__(self) -> None:
        if self._running is not None and not self._running.done() and self._pid == os.getpid():
            warnings.warn(f"{self!r} was not closed; use it as `async with`", ResourceWarning, stacklevel=1)


async def _wait_for(future: asyncio.Future[None]) -> None:
    await asyncio.wait([future])
    future.result()


def _check_file(name: str, path: str | os.PathLike[str]) -> None:
    if not Path(path).is_file():
        what = "is a folder" if Path(path).is_dir() else "does not exist"
        raise ConfigError(f"{name} {os.fspath(path)!r} {what} (looked in {Path.cwd()})")
