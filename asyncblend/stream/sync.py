"""SyncStream: a fleet in a background thread with its own event loop, for code that is not asynchronous.

    consumer's thread                        event-loop thread
    SyncFrames <- SimpleQueue <------------- queue of a Pass <- Dispatcher
               -> consumed frames, many at a time ---------------------> Dispatcher

A frame keeps its slot until the consumer's thread has taken it, so the bound of a pass holds across the threads. A
SimpleQueue hands over in about 8 us; submitting a coroutine to the loop for each frame would take 40 us.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from ..config import Params, StreamConfig
from ..errors import ConfigError, ForkedProcessError, SampleError, StreamClosed
from .clips import Clip, Collector, Cut
from .episode import MAX_REPLAY, EpisodePass
from .frame import Frame
from .loop_thread import LoopThread
from .params import Drawn
from .passes import Arrival, Indices, Pass
from .queue import EndOfStream
from .run import Run
from .stats import PassStats, StreamStats
from .sync_episode import SyncEpisode

T = TypeVar("T")


class _End:
    # The last item of a channel: there are no more frames, or why not.
    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class _Channel:
    """What the event-loop thread and the consumer's thread share of one pass."""

    def __init__(self, source: Pass) -> None:
        self.source = source
        self.items: SimpleQueue[Arrival | _End] = SimpleQueue()
        self.ended = False  # no more frames are put into `items`
        self.finished = False  # the consumer has met the end of all frames
        self.dropped = False
        self.begun = False

    def put(self, arrival: Arrival) -> None:
        """From the event-loop thread: here is a frame."""
        self.items.put(arrival)

    def end(self, error: BaseException | None) -> None:
        """From the event-loop thread: there are no more frames. Only the first end counts."""
        if not self.ended:
            self.ended = True
            self.items.put(_End(error))

    def drop(self) -> None:
        """From any thread: give out no more frames, also none of those that are here already."""
        self.dropped = True
        with contextlib.suppress(Empty):
            while True:
                if isinstance(item := self.items.get_nowait(), _End):
                    self.items.put(item)
                    return


class SyncFrames(Iterator[Frame], contextlib.AbstractContextManager["SyncFrames"]):
    """One pass, consumed by one thread: an iterator over its frames. What `SyncStream.frames` returns.

    Closing it, `with`, garbage collection and closing the stream end the pass.
    """

    def __init__(self, stream: SyncStream, channel: _Channel) -> None:
        self._stream, self._channel = stream, channel
        self._finalizer = weakref.finalize(self, stream._abandon, channel)
        self._finalizer.atexit = False

    def __next__(self) -> Frame:
        """Wait for the next frame.

        Raises:
            StopIteration: All frames have been delivered.
            AsyncblendError: Why there are no more frames, after all good ones.
            StreamClosed: This iteration or the stream was closed.
            ForkedProcessError: This is a forked copy.
        """
        try:
            arrival = self._received(None, block=True)
        except EndOfStream:
            raise StopIteration from None
        assert arrival is not None, "no limit, no timeout"
        return arrival.frame

    def episodes(self) -> Iterator[list[Frame]]:
        """Yield whole episodes, as `Frames.episodes` does."""
        collector = Collector(self._channel.source)
        for arrival in self._arrivals(collector):
            yield from collector.episodes(arrival)

    def clips(self, length: int, stride: int = 1) -> Iterator[Clip]:
        """Yield clips of `length` frames, as `Frames.clips` does."""
        collector, cut = Collector(self._channel.source), Cut.checked(length, stride)
        for arrival in self._arrivals(collector):
            yield from collector.clips(arrival, cut)

    def _arrivals(self, collector: Collector) -> Iterator[Arrival]:
        with contextlib.suppress(EndOfStream):
            while True:
                arrival = self._received(None, block=True, collector=collector)
                assert arrival is not None, "no limit, no timeout"
                yield arrival

    def get(self, timeout: float | None = None) -> Frame:
        """Wait for the next frame, at most `timeout` seconds. None waits forever.

        Raises:
            TimeoutError: No frame came in time.
            StreamClosed: All frames have been delivered; or this iteration or the stream was closed.
            AsyncblendError: Why there are no more frames, after all good ones.
        """
        try:
            arrival = self._received(timeout, block=True)
        except EndOfStream:
            raise StreamClosed("all frames have been delivered") from None
        if arrival is None:
            raise TimeoutError(f"no frame came within {timeout:g} s")
        return arrival.frame

    def poll(self) -> Frame | None:
        """Return the next frame if it is here already, else None. `finished` tells whether there will be another.

        Raises:
            StreamClosed, AsyncblendError: As `get` does, but for the end of the frames.
        """
        try:
            arrival = self._received(None, block=False)
        except EndOfStream:
            return None
        return None if arrival is None else arrival.frame

    @property
    def finished(self) -> bool:
        """Whether all frames have been delivered and the end was met."""
        return self._channel.finished

    def flush(self) -> int:
        """Give up the samples that no Blender has begun, and draw their params anew. Return their number."""
        with contextlib.suppress(StreamClosed):
            return self._stream._call(lambda: self._stream._run.dispatcher.flush(self._channel.source))
        return 0

    def stats(self) -> PassStats:
        """Return a snapshot of the counters, also after the end."""
        return self._stream._call_or_now(self._channel.source.stats)

    def state_dict(self) -> dict[str, Any]:
        """Return which samples this thread has taken, as plain data that JSON can hold."""
        return self._stream._call_or_now(self._channel.source.state_dict)

    def close(self, reason: str = "this iteration was closed") -> None:
        """End the pass. What is rendering or queued of it is dropped. May be called from any thread, also twice."""
        if self._finalizer.detach() is not None:
            self._stream._abandon(self._channel, reason)

    def __exit__(self, *error: object) -> None:
        self.close()

    def _received(self, timeout: float | None, *, block: bool, collector: Collector | None = None) -> Arrival | None:
        """Return the next frame, or None if there is none in time."""
        self._stream._run.check_process()
        channel = self._channel
        if channel.dropped:  # its end is on its way
            block, timeout = True, None
        if block:
            self._stream._check_thread()
        try:
            item = channel.items.get(block, timeout)
        except Empty:
            return None
        while channel.dropped and not isinstance(item, _End):
            item = channel.items.get()  # a frame that came meanwhile, which nobody would count as consumed
        if isinstance(item, _End):
            channel.items.put(item)  # for the next call
            channel.finished = item.error is None
            if isinstance(item.error, SampleError):
                raise item.error.with_traceback(None)  # the way through our own thread tells nobody anything
            raise item.error or EndOfStream
        if collector is not None:
            collector.take(item)
        self._stream._took(channel, item)
        return item


class SyncStream(Iterator[Frame]):
    """A BlenderStream for programs without asyncio. `BlenderStream(...).sync()` returns one:

        with BlenderStream(script="cube.py", length=100).sync() as frames:
            for frame in frames:
                ...

    Iterating over it is one pass over the config's own indices; `frames` begins others, and `render` makes a single
    sample. It may be used by several threads, each pass by one at a time, of the process that started it.

    Args:
        config: The options.
        state: From `state_dict`; iterating goes on there.
        first_instance: Number of the first instance, where several processes number theirs together.
    """

    def __init__(
        self, config: StreamConfig, state: Mapping[str, Any] | None = None, *, first_instance: int = 0
    ) -> None:
        self.config = config
        self._run = Run(config, first_instance=first_instance)
        self._source = Pass(config, state=state)
        self._own: SyncFrames | None = None
        self._own_channel = _Channel(self._source)
        self._started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._opened = threading.Event()  # passes can be begun, or it is known why not
        self._thread = LoopThread(self._main, self._ended)
        self._channels: set[_Channel] = set()
        self._consumed: deque[tuple[_Channel, Arrival]] = deque()
        self._scheduled = False  # whether the loop will look at what was consumed
        self._asked: deque[tuple[EpisodePass, Drawn]] = deque()
        self._asking = False  # whether the loop will look at which steps were asked for

    # -- from any thread ----------------------------------------------------------------------------------------

    def start(self, *, wait: bool = True) -> None:
        """Start the thread and the fleet, and return when the first Blender is ready.

        Args:
            wait: Whether to wait for that. Otherwise what goes wrong at the start, the passes raise.

        Raises:
            ConfigError: It was started before.
            AsyncblendError: As entering a BlenderStream does. Nothing is left running.
        """
        if self._thread.started or self._thread.closing:
            raise ConfigError("a stream can be started only once; make another one")
        self._thread.start()
        if wait:
            try:
                self.wait_ready()
            except BaseException:
                self.close()
                raise

    def wait_ready(self) -> None:
        """Wait until the first Blender is ready, or raise why there will be none."""
        self._started.result()

    def __enter__(self) -> SyncStream:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __next__(self) -> Frame:
        """Wait for the next frame of the config's own pass, as `SyncFrames` does."""
        if self._own is None:
            own = SyncFrames(self, self._own_channel)
            own._finalizer.detach()  # it lives as long as this stream, which the finalizer would keep alive
            self._begin(self._own_channel)  # if Ctrl-C interrupts it, the next call goes on with the same channel
            self._own = own
        return next(self._own)

    def frames(
        self,
        indices: Indices | None = None,
        *,
        params: Params | None = None,
        ordered: bool | None = None,
        queue_size: int | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> SyncFrames:
        """Begin another pass over the warm fleet, as `BlenderStream.frames` does.

        Args:
            indices, params, ordered, queue_size: As `BlenderStream.frames` has them.
            state: From `state_dict` of a pass over the same indices; the samples delivered then are excluded.

        Raises:
            AsyncblendError: As `BlenderStream.frames` raises, or because the fleet could not start.
        """
        return self._frames(
            Pass(self.config, indices, params=params, ordered=ordered, queue_size=queue_size, state=state)
        )

    def render(self, index: int, params: Mapping[str, Any] | None = None) -> Frame:
        """Render one sample, and wait for its frame, as `BlenderStream.render` does."""
        with self._frames(Pass.single(self.config, index, params)) as frames:
            return next(frames)

    def episode(
        self, index: int, params: Mapping[str, Any] | None = None, *, max_replay: int = MAX_REPLAY
    ) -> SyncEpisode:
        """Begin an episode that is stepped by its consumer, and wait for its first frame, as `BlenderStream.episode` does.

        Args:
            index, params, max_replay: As `BlenderStream.episode` has them.
        """
        episode = self.begin_episode(index, params, max_replay=max_replay)
        try:
            episode.receive()
        except BaseException:
            episode.close()
            raise
        return episode

    def begin_episode(
        self, index: int, params: Mapping[str, Any] | None = None, *, max_replay: int = MAX_REPLAY
    ) -> SyncEpisode:
        """Begin an episode, and do not wait for its first frame: its `receive` does. So several begin at once."""
        source = EpisodePass(self.config, index, params, max_replay=max_replay)
        return SyncEpisode(source, self._frames(source), self._ask)

    def flush(self) -> int:
        """Give up the samples of the config's own pass that no Blender has begun, as `BlenderStream.flush` does."""
        self._wait_open()
        return self._call(lambda: self._run.dispatcher.flush(self._source))

    def stats(self) -> StreamStats:
        """Return a snapshot of the counters of all passes and of the fleet, also after the end."""
        return self._call_or_now(self._run.stats)

    def state_dict(self) -> dict[str, Any]:
        """Return which samples of the config's own pass have been delivered, as plain data that JSON can hold."""
        return self._call_or_now(self._source.state_dict)

    @property
    def usable(self) -> bool:
        """Whether passes can be begun: it is started, of this process, and its fleet has not ended."""
        return not self._run.forked and self._thread.alive and not self._run.ending

    def close(self) -> None:
        """Stop the fleet and the thread. Return when nothing of them is left. From any thread, also twice.

        From the event loop's own thread (a garbage collection there) it only begins to stop. A KeyboardInterrupt
        meanwhile kills the Blenders at once.
        """
        if self._run.forked:
            return  # a forked copy owns nothing
        for channel in list(self._channels):
            channel.drop()
        self._thread.close()

    def _frames(self, source: Pass) -> SyncFrames:
        channel = _Channel(source)
        frames = SyncFrames(self, channel)  # if Ctrl-C interrupts the next line, its finalizer ends the pass
        self._begin(channel)
        return frames

    def _begin(self, channel: _Channel) -> None:
        self._check_thread()
        self._wait_open()
        try:
            self._call(lambda: self._start_feeding(channel))
        except StreamClosed:
            if self._started.done():
                self._started.result()  # if the start has failed, it says why
            raise

    def _wait_open(self) -> None:
        """Wait until passes can be begun, or it is known why not."""
        self._run.check_process()
        if not self._thread.started:
            if self._thread.closing:
                raise StreamClosed("the stream was closed")
            raise ConfigError("the stream is not started; use it in a `with` block")
        self._opened.wait()

    def _check_thread(self) -> None:
        if self._thread.is_current:
            raise ConfigError(
                "frames cannot be waited for in the stream's own thread, which draws params: it would wait for itself"
            )

    def _took(self, channel: _Channel, arrival: Arrival) -> None:
        """Note, in the consumer's thread, that it has a frame."""
        self._consumed.append((channel, arrival))
        # The next step of an episode that is stepped notes it: to wake the loop for that would double the step's cost.
        if not self._scheduled and not channel.source.on_demand:
            self._scheduled = True
            self._thread.post(self._note_consumed)  # if the loop has ended, its last frames may still be taken

    def _ask(self, source: EpisodePass, drawn: Drawn) -> None:
        """Make the next step of an episode, after its consumer has taken the one before."""
        self._asked.append((source, drawn))
        if not self._asking:
            self._asking = True
            self._thread.post(self._make_asked_steps)  # all that are asked for until the loop comes to it

    def _abandon(self, channel: _Channel, reason: str = "this iteration was closed") -> None:
        """End a pass that nobody consumes any more; from any thread, also in a garbage collection."""
        if self._run.forked:
            return
        if not channel.ended:
            channel.drop()
        self._thread.post(self._stop_feeding, channel, StreamClosed(reason))  # a loop that has ended has ended the pass

    # -- in the event-loop thread -------------------------------------------------------------------------------

    def _ended(self, error: BaseException | None) -> None:
        cause = StreamClosed("the stream was closed")
        cause.__cause__ = error
        if not self._started.done():
            self._started.set_exception(error or cause)
        for channel in list(self._channels):
            channel.end(error if isinstance(error, Exception) else cause)
        self._opened.set()

    async def _main(self) -> None:
        try:
            self._run.open()
            self._opened.set()
            await self._run.ready()
            self._started.set_result(None)
            await asyncio.Event().wait()  # until close cancels this task
        finally:
            # That the queues are closed is no end of the passes; `_ended` says why they end.
            for channel in self._channels:
                channel.source.queue.hand_to(None)
            await self._run.aclose()

    def _start_feeding(self, channel: _Channel) -> None:
        if channel.begun:
            return  # an earlier call began it, and was interrupted while it waited for that
        self._run.dispatcher.begin(channel.source)
        channel.begun = True
        self._channels.add(channel)
        channel.source.queue.hand_to(channel)

    def _stop_feeding(self, channel: _Channel, error: BaseException) -> None:
        self._note_consumed()
        self._channels.discard(channel)
        channel.end(error)
        self._run.dispatcher.end(channel.source, error)

    def _make_asked_steps(self) -> None:
        self._asking = False
        self._note_consumed()
        while self._asked:
            source, drawn = self._asked.popleft()
            source.ask(drawn)
            self._run.dispatcher.step(source)

    def _note_consumed(self) -> None:
        self._scheduled = False
        while self._consumed:
            channel, arrival = self._consumed.popleft()
            self._run.dispatcher.consume(channel.source, arrival)

    # -- across -------------------------------------------------------------------------------------------------

    def _call(self, function: Callable[[], T]) -> T:
        """Run `function` in the event-loop thread, after what was consumed before is noted."""
        self._run.check_process()

        def call() -> T:
            self._note_consumed()
            return function()

        return self._thread.call(call)

    def _call_or_now(self, function: Callable[[], T]) -> T:
        """Do the same while the thread runs. Afterwards nothing changes any more, and any thread may look."""
        with contextlib.suppress(StreamClosed, ForkedProcessError):
            return self._call(function)
        return function()
