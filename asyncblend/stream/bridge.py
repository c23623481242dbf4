"""Bridge: between the event-loop thread of a fleet and the threads that consume its frames.

    consumer's thread                        event-loop thread
    SyncFrames <- SimpleQueue <------------- queue of a Pass <- Dispatcher
               -> consumed frames, many at a time ---------------------> Dispatcher

Steps of an episode that its consumer asks for may go past all this, over a line to Blender: see `direct`.

A frame keeps its slot until the consumer's thread has taken it, so the bound of a pass holds across the threads. A
SimpleQueue hands over in about 8 us; submitting a coroutine to the loop for each frame would take 40 us.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TypeVar

from ..errors import ConfigError, ForkedProcessError, ProtocolError, StreamClosed
from ..wire.line import LineBroken
from .episode_pass import EpisodePass
from .frame import Frame
from .loop_thread import LoopThread
from .params import Drawn
from .passes import Arrival, Pass
from .run import Run

T = TypeVar("T")


class End:
    """The last item of a channel: there are no more frames, or why not."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Channel:
    """What the event-loop thread and the consumer's thread share of one pass."""

    def __init__(self, source: Pass) -> None:
        self.source = source
        self.items: SimpleQueue[Arrival | End] = SimpleQueue()
        self.ended: bool = False  # no more frames are put into `items`
        self.finished = False  # the consumer has met the end of all frames
        self.dropped: bool = False
        self.begun = False

    def put(self, arrival: Arrival) -> None:
        """From the event-loop thread: here is a frame."""
        self.items.put(arrival)

    def end(self, error: BaseException | None) -> None:
        """From the event-loop thread: there are no more frames. Only the first end counts."""
        if not self.ended:
            self.ended = True
            self.items.put(End(error))

    def drop(self) -> None:
        """From any thread: give out no more frames, also none of those that are here already."""
        self.dropped = True
        with contextlib.suppress(Empty):
            while True:
                if isinstance(item := self.items.get_nowait(), End):
                    self.items.put(item)
                    return


class Bridge:
    """Carries frames to consumers' threads, and back what these have consumed, asked for and given up.

    Args:
        run: The fleet.
        thread: The thread whose event loop it runs in.
    """

    def __init__(self, run: Run, thread: LoopThread) -> None:
        self.run: Run = run
        self._thread = thread
        self.channels: set[Channel] = set()
        """Those of the passes that have begun and not ended."""
        self._consumed: deque[tuple[Channel, Arrival]] = deque()
        self._scheduled = False  # whether the loop will look at what was consumed
        self._asked: deque[tuple[EpisodePass, Drawn]] = deque()
        self._asking = False  # whether the loop will look at which steps were asked for

    # -- from any thread ----------------------------------------------------------------------------------------

    def check_thread(self) -> None:
        """Raise ConfigError in the event-loop thread."""
        if self._thread.is_current:
            raise ConfigError(
                "frames cannot be waited for in the stream's own thread, which draws params: it would wait for itself"
            )

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` in the event-loop thread, after what was consumed before is noted."""
        self.run.check_process()

        def call() -> T:
            self._note_consumed()
            return function()

        return self._thread.call(call)

    def call_or_now(self, function: Callable[[], T]) -> T:
        """Do the same while the thread runs. Afterwards nothing changes any more, and any thread may look."""
        with contextlib.suppress(StreamClosed, ForkedProcessError):
            return self.call(function)
        return function()

    def begin(self, channel: Channel) -> None:
        """Begin the pass of a channel, if an earlier call has not: it may have been interrupted while it waited."""
        self.call(lambda: self._start_feeding(channel))

    def took(self, channel: Channel, arrival: Arrival) -> None:
        """Note, in the consumer's thread, that it has a frame."""
        source = channel.source
        if isinstance(source, EpisodePass) and (direct := source.direct) is not None and direct.take(arrival.frame):
            return
        self._consumed.append((channel, arrival))
        # The next step of an episode that is stepped notes it: to wake the loop for that would double the step's cost.
        if not self._scheduled and not source.on_demand:
            self._scheduled = True
            self._thread.post(self._note_consumed)  # if the loop has ended, its last frames may still be taken

    def ask(self, source: EpisodePass, drawn: Drawn) -> None:
        """Make the next step of an episode, after its consumer has taken the one before."""
        self.run.check_process()
        if (direct := source.direct) is not None and direct.send(drawn):
            return
        self._asked.append((source, drawn))
        if not self._asking:
            self._asking = True
            self._thread.post(self._make_asked_steps)  # all that are asked for until the loop comes to it

    def answer(self, source: EpisodePass, timeout: float | None) -> Frame | None:
        """Return the frame of the step that was asked for, if it comes over a line. None: it comes through the channel.

        Raises:
            TimeoutError: It did not come within so many seconds.
        """
        self.run.check_process()
        if (direct := source.direct) is None:
            return None
        self.check_thread()
        timing, began = source.timing, time.monotonic()
        timing.wait(began)
        try:
            frame = direct.receive(timeout)
        except (LineBroken, ProtocolError) as error:
            self._thread.post(self.run.dispatcher.line_broken, direct, error)
            return None
        finally:
            timing.waited(now := time.monotonic(), began)
        if frame is not None:
            timing.took(now)
        return frame

    def abandon(self, channel: Channel, reason: str = "this iteration was closed") -> None:
        """End a pass that nobody consumes any more. Also in a garbage collection."""
        if self.run.forked:
            return
        if not channel.ended:
            channel.drop()
        self._thread.post(self._stop_feeding, channel, StreamClosed(reason))  # a loop that has ended has ended the pass

    # -- in the event-loop thread -------------------------------------------------------------------------------

    def _start_feeding(self, channel: Channel) -> None:
        if channel.begun:
            return
        self.run.dispatcher.begin(channel.source)
        channel.begun = True
        self.channels.add(channel)
        channel.source.queue.hand_to(channel)

    def _stop_feeding(self, channel: Channel, error: BaseException) -> None:
        self._note_consumed()
        self.channels.discard(channel)
        channel.end(error)
        self.run.dispatcher.end(channel.source, error)

    def _make_asked_steps(self) -> None:
        self._asking = False
        self._note_consumed()
        while self._asked:
            source, drawn = self._asked.popleft()
            self.run.dispatcher.ask(source, drawn)

    def _note_consumed(self) -> None:
        self._scheduled = False
        if not self._consumed:
            return
        dispatcher = self.run.dispatcher
        dispatcher.begin_turn()
        try:
            while self._consumed:
                channel, arrival = self._consumed.popleft()
                dispatcher.consume(channel.source, arrival)
        finally:
            dispatcher.end_turn()
