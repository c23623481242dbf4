"""Frames: the consumer's end of a pass, as an asynchronous iterator. What `BlenderStream.frames` returns."""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any, TypeVar

from ..checks import check_whole
from ..errors import StreamClosed
from .batch import Batch, check_ragged
from .clips import Clip, Collector, Cut, Pending
from .dispatcher import Dispatcher
from .frame import Frame, with_params
from .passes import Arrival, Pass
from .queue import EndOfStream
from .run import Run
from .stats import PassStats

T = TypeVar("T")


class Frames(AsyncIterator[Frame], contextlib.AbstractAsyncContextManager["Frames"]):
    """One pass over a running stream: an asynchronous iterator over its frames.

        frames = stream.frames(range(100, 200))
        async for frame in frames:
            ...

    Each pass has its own slots, so one that is not consumed stops by itself and holds up no other. Leaving the loop
    early keeps the pass: iterating again goes on, `aclose` ends it, and so do `async with`, garbage collection and
    closing the stream. Several tasks may iterate; each frame goes to one of them.
    """

    def __init__(self, run: Run, source: Pass) -> None:
        run.check_process()
        self._run, self._dispatcher, self._source = run, run.dispatcher, source
        self._collector = Collector(source, Pending(source))
        self._dispatcher.begin(source)
        # The pass of an iterator that nobody has any more must not keep its slots and its Blenders.
        self._finalizer = weakref.finalize(self, _abandon, run.loop, self._dispatcher, source)
        self._finalizer.atexit = False

    async def __anext__(self) -> Frame:
        """Return the next frame; its slot is free for another sample.

        Raises:
            StopAsyncIteration: All frames have been delivered.
            AsyncblendError: Why there are no more frames, after all good ones.
            StreamClosed: The pass or the stream was closed.
            ForkedProcessError: This is a forked copy.
        """
        arrival = self._here() or await self._next()
        self._dispatcher.consume(self._source, arrival)
        return arrival.frame

    async def _next(self) -> Arrival:
        """Wait for a frame."""
        self._run.check_loop()
        timing, queue = self._source.timing, self._source.queue
        began = None if queue.ready else time.monotonic()
        if began is not None:
            timing.wait(began)
        try:
            arrival = await queue.get()
        except EndOfStream:
            self._dispatcher.end(self._source)
            raise StopAsyncIteration from None
        finally:
            if began is not None:
                timing.waited(time.monotonic(), began)
        timing.took(time.monotonic())
        return arrival

    def _here(self) -> Arrival | None:
        """Take a frame that is here already."""
        self._run.check_process()
        arrival = self._source.queue.get_nowait()
        if arrival is not None:
            self._source.timing.took(time.monotonic())
        return arrival

    async def _taken(self, note: Callable[[Arrival], object]) -> Arrival:
        """Wait for a frame, and consume it.

        Args:
            note: Called with it before it counts as consumed, to note that it is part of something that is not given out.
        """
        arrival = self._here() or await self._next()
        note(arrival)
        self._dispatcher.consume(self._source, arrival)
        return arrival

    async def _collect(self) -> None:
        """Wait for a frame, and add it to what is collected."""
        self._collector.add(await self._taken(self._collector.take))

    def episodes(self) -> Collected[list[Frame]]:
        """Iterate over whole episodes, each the list of its frames from step 0 to the last one.

        They come in the order in which they are complete, or in the order of the pass if it is `ordered`. A sample that
        is one frame is an episode of one. The frames of episodes that are not complete are kept in memory, besides those
        in the queue. An episode that is skipped as a bad sample is left out.

        The iterator raises:
            ConfigError: The first frames of an episode were delivered otherwise, perhaps before a state was saved that
                this pass goes on from.
            AsyncblendError: As iterating over the frames raises.
        """
        return Collected(self, self._collector.episode)

    def clips(self, length: int, stride: int = 1) -> Collected[Clip]:
        """Iterate over clips of `length` frames, with arrays of T x H x W x C: each value has time as its first axis.

        Clips are cut out of each episode one after another and do not overlap. What is left at its end is too short for
        a clip, and is left out.

        Args:
            length: Frames in a clip, T.
            stride: Steps of the episode from one frame of a clip to the next.

        Raises:
            ConfigError: An argument is wrong. The iterator raises it too, if an episode is shorter than a clip.
        """
        cut = Cut.checked(length, stride)
        return Collected(self, lambda: self._collector.clip(cut))

    def samples(self) -> Collected[Frame]:
        """Iterate over samples: frames, and where a sample is an episode, a Clip of all its frames.

        The iterator raises what that of `episodes` does.
        """
        return Collected(self, self._collector.sample)

    def batches(self, size: int, *, drop_last: bool = False, ragged: Collection[str] = ()) -> Batches:
        """Iterate over the frames in batches: dicts of what `collate` makes of them, as numpy's arrays, and "index" (int64).

        Arrays of one shape are stacked along a new first axis. Each is copied once, into memory that belongs to its
        batch and is writable. Where there are params, "params" has them, batched in the same way; a list of dicts, if
        their forms differ within a batch. A frame counts as delivered when its batch is given out.

        Args:
            size: Samples in a batch. The last batch may have fewer.
            drop_last: Leave out a batch that is shorter.
            ragged: Names whose values come as a list in each batch, and are never stacked.

        Raises:
            ConfigError: `size` is not a whole number from 1 on, or `ragged` is no names. The iterator raises it too, if
                `ragged` has a name that the samples have not.

        The iterator raises:
            SampleError: The samples differ in their names, in the dtype or rank of an array, or in the kind of a value.
            AsyncblendError: As iterating over the frames raises.
        """
        check_whole("size", size, 1)
        return Batches(self, size, drop_last=drop_last, ragged=check_ragged(ragged))

    def flush(self) -> int:
        """Give up the samples that no Blender has begun; they get new params, so that changed ones take hold at once.

        Returns:
            The number of samples given up. Each of them is rendered later, with its new params.
        """
        self._run.check_process()
        return self._dispatcher.flush(self._source)

    def stats(self) -> PassStats:
        """Return a snapshot of the counters, also after the end."""
        return self._source.stats()

    def state_dict(self) -> dict[str, Any]:
        """Return which samples have been delivered, as plain data that JSON can hold.

        The params that other samples have already are part of it, and the params' own state, as StreamConfig says.
        """
        return self._source.state_dict()

    async def aclose(self) -> None:
        """End the pass. What is rendering or queued of it is dropped. May be called twice."""
        if self._finalizer.detach() is not None and not self._run.forked:
            self._dispatcher.end(self._source, StreamClosed("this iteration was closed"))

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()


class Collected(AsyncIterator[T]):
    """What is put together from the frames of a pass. A call that is cancelled loses nothing.

    Args:
        frames: The pass.
        collected: Returns the next one of what was collected, or None if there is none yet.
    """

    def __init__(self, frames: Frames, collected: Callable[[], T | None]) -> None:
        self._frames, self._collected = frames, collected

    async def __anext__(self) -> T:
        """Return the next one. Raises what the next frame of the pass raises."""
        while (one := self._collected()) is None:
            await self._frames._collect()
        return one

    async def aclose(self) -> None:
        """End the pass, as its own `aclose` does."""
        await self._frames.aclose()


class Batches(AsyncIterator[dict[str, Any]]):
    """The frames of a pass in batches. A call that is cancelled loses nothing: the next one goes on with its batch.

    Args:
        frames: The pass.
        size, drop_last, ragged: As `Frames.batches` has them.
    """

    def __init__(self, frames: Frames, size: int, *, drop_last: bool, ragged: Collection[str]) -> None:
        self._frames, self._size, self._drop_last, self._ragged = frames, size, drop_last, ragged
        self._begin()

    async def __anext__(self) -> dict[str, Any]:
        """Return the next batch. Raises what the next frame of the pass raises."""
        while True:
            try:
                # Not `self._pending.take` itself: another task may give out the batch while this one waits.
                arrival = await self._frames._taken(lambda one: self._pending.take(one))
            except StopAsyncIteration:
                if len(self._batch) and not self._drop_last:
                    return self._given()
                self._pending.deliver()  # of a batch that is left out
                raise
            try:
                self._batch.add(with_params(arrival.frame), arrival.frame.index)
            except BaseException:
                self._begin()  # a batch that has refused a sample is of no use
                raise
            if self._batch.full:
                return self._given()

    async def aclose(self) -> None:
        """End the pass, as its own `aclose` does."""
        await self._frames.aclose()

    def _begin(self) -> None:
        self._batch = Batch(self._size, ragged=self._ragged)
        self._pending = Pending(self._frames._source, at_once=False)

    def _given(self) -> dict[str, Any]:
        batch, pending = self._batch, self._pending
        self._begin()
        pending.deliver()
        return batch.finish()


def _abandon(loop: asyncio.AbstractEventLoop, dispatcher: Dispatcher, source: Pass) -> None:
    """End a pass whose iterator was collected, which may happen in any thread."""
    with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the stream
        loop.call_soon_threadsafe(dispatcher.end, source)
