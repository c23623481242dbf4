"""SyncFrames: the consumer's end of one pass, for programs without asyncio. What `SyncStream.frames` returns."""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from ..errors import SampleError, StreamClosed
from .bridge import Bridge, Channel, End
from .clips import Clip, Collector, Cut, Pending
from .frame import Frame
from .passes import Arrival
from .queue import EndOfStream, NotInTime
from .stats import PassStats

T = TypeVar("T")


class SyncFrames(Iterator[Frame], contextlib.AbstractContextManager["SyncFrames"]):
    """One pass, consumed by one thread: an iterator over its frames. What `SyncStream.frames` returns.

    Closing it, `with`, garbage collection and closing the stream end the pass.
    """

    def __init__(self, bridge: Bridge, channel: Channel) -> None:
        self._bridge, self._channel = bridge, channel
        self._finalizer = weakref.finalize(self, bridge.abandon, channel)
        self._finalizer.atexit = False
        self._begin_collecting(at_once=True)

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
        """Iterate over whole episodes, as `Frames.episodes` does."""
        return self._collected(self._collector.episode)

    def clips(self, length: int, stride: int = 1) -> Iterator[Clip]:
        """Iterate over clips of `length` frames, as `Frames.clips` does."""
        cut = Cut.checked(length, stride)
        return self._collected(lambda: self._collector.clip(cut))

    def samples(self) -> Iterator[Frame]:
        """Iterate over samples: frames, and where a sample is an episode, a Clip of all its frames."""
        return self._collected(self._collector.sample)

    def _collected(self, collected: Callable[[], T | None]) -> Iterator[T]:
        with contextlib.suppress(EndOfStream):
            while True:
                while (one := collected()) is not None:
                    yield one
                arrival = self._received(None, block=True, taking=self._collector)
                assert arrival is not None, "no limit, no timeout"
                self._collector.add(arrival)

    def hold(self) -> Callable[[], None]:
        """Let what is taken count as delivered, for `state_dict`, when the returned function is called.

        Without it, it counts when it is taken. Call it before anything is.
        """
        self._begin_collecting(at_once=False)
        return self._pending.deliver

    def _begin_collecting(self, *, at_once: bool) -> None:
        self._pending = Pending(self._channel.source, at_once=at_once)
        self._collector = Collector(self._channel.source, self._pending)

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
            raise NotInTime(f"no frame came within {timeout:g} s")
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
            return self._bridge.call(lambda: self._bridge.run.dispatcher.flush(self._channel.source))
        return 0

    def stats(self) -> PassStats:
        """Return a snapshot of the counters, also after the end."""
        return self._bridge.call_or_now(self._channel.source.stats)

    def state_dict(self) -> dict[str, Any]:
        """Return which samples this thread has taken, as plain data that JSON can hold."""
        return self._bridge.call_or_now(self._channel.source.state_dict)

    def close(self, reason: str = "this iteration was closed") -> None:
        """End the pass. What is rendering or queued of it is dropped. May be called from any thread, also twice."""
        if self._finalizer.detach() is not None:
            self._bridge.abandon(self._channel, reason)

    def __exit__(self, *error: object) -> None:
        self.close()

    def _received(
        self, timeout: float | None, *, block: bool, taking: Pending | Collector | None = None
    ) -> Arrival | None:
        """Return the next frame, or None if there is none in time. Who takes it is told before it is consumed."""
        self._bridge.run.check_process()
        channel = self._channel
        if channel.dropped:  # its end is on its way
            block, timeout = True, None
        if block:
            self._bridge.check_thread()
        if (item := channel.first()) is None and block:
            item = self._waited_for(timeout, time.monotonic())
        if item is None:
            return None
        if isinstance(item, End):
            channel.finished = item.error is None
            if isinstance(item.error, SampleError):
                raise item.error.with_traceback(None)  # the way through our own thread tells nobody anything
            raise item.error or EndOfStream
        if channel.told is not item:  # else Ctrl-C came after that, and before the frame was returned
            (taking or self._pending).take(item)
            channel.told = item
        channel.source.timing.took(time.monotonic())
        self._bridge.took(channel, item)
        channel.pop()
        return item

    def _waited_for(self, timeout: float | None, began: float) -> Arrival | End | None:
        timing = self._channel.source.timing
        timing.wait(began)
        try:
            return self._channel.wait(timeout)
        finally:
            timing.waited(time.monotonic(), began)
