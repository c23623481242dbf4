"""Bridge: between the event-loop thread of a fleet and the threads that consume its frames.

    consumer's thread                        event-loop thread
    SyncFrames <- Channel <----------------- queue of a Pass <- Dispatcher
               -> consumed frames, many at a time ---------------------> Dispatcher

Steps of an episode that its consumer asks for may go past all this, over a line to Blender: see `direct`.

A frame keeps its slot until the consumer's thread has taken it, so the bound of a pass holds across the threads. A
SimpleQueue wakes the consumer in about 8 us; submitting a coroutine to the loop for each frame would take 40 us.
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
    """What the event-loop thread and the consumer's thread share of one pass.

    A frame stays here until the consumer has noted that it has it: a Ctrl-C, which may come between any two operations of
    the consumer's thread, must not take a frame away with its slot.
    """

    def __init__(self, source: Pass) -> None:
        self.source = source
        self.finished = False  # the consumer has met the end of all frames
        self.dropped: bool = False
        self.begun = False
        self.told: Arrival | None = None
        """In the consumer's thread: the latest frame of which the pass was told before it was consumed."""
        self.consumed: Arrival | None = None
        """In the event-loop thread: the latest frame that was consumed. The consumer may note a frame twice."""
        self._frames: deque[Arrival] = deque()
        self._end: End | None = None
        self._waits = False  # whether the consumer is about to wait, or does
        self._wakings: SimpleQueue[None] = SimpleQueue()

    @property
    def ended(self) -> bool:
        """Whether no more frames are put into it."""
        return self._end is not None

    @property
    def queued(self) -> int:
        """How many frames are here."""
        return len(self._frames)

    def put(self, arrival: Arrival) -> None:
        """From the event-loop thread: here is a frame."""
        if not self.dropped:
            self._frames.append(arrival)
            self._wake()

    def end(self, error: BaseException | None) -> None:
        """From the event-loop thread: there are no more frames. Only the first end counts."""
        if self._end is None:
            self._end = End(error)
            self._wake()

    def drop(self) -> None:
        """From any thread: give out no more frames, also none of those that are here already."""
        self.dropped = True
        self._frames.clear()

    def first(self) -> Arrival | End | None:
        """In the consumer's thread: return the first frame, which stays, or the end after all frames. None: not yet."""
        end = self._end  # before the frames, which may come, and then the end, between the two looks
        try:
            return end if self.dropped else self._frames[0]
        except IndexError:
            return end

    def wait(self, timeout: float | None = None) -> Arrival | End | None:
        """In the consumer's thread: wait for what `first` returns. None: it did not come within so many seconds."""
        limit = None if timeout is None else time.monotonic() + timeout
        while True:
            self._waits = True  # before the look: what comes after it wakes this thread
            if (item := self.first()) is not None:
                self._waits = False
                return item
            try:
                self._wakings.get(timeout=None if limit is None else max(0, limit - time.monotonic()))
            except Empty:
                return self.first()

    def pop(self) -> None:
        """In the consumer's thread: remove the first frame, which was noted."""
        try:  # noqa: SIM105 - contextlib.suppress takes longer than all else that is done here
            self._frames.popleft()
        except IndexError:
            pass  # dropped in the meantime

    def _wake(self) -> None:
        if self._waits:
            self._waits = False
            self._wakings.put(None)


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
            try:
                self._scheduled = True
                self._thread.post(self._note_consumed)  # if the loop has ended, its last frames may still be taken
            except BaseException:
                self._scheduled = False  # Ctrl-C; perhaps it was not posted
                raise

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
            NotInTime: It did not come within so many seconds.
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
                if arrival is not channel.consumed:
                    channel.consumed = arrival
                    dispatcher.consume(channel.source, arrival)
        finally:
            dispatcher.end_turn()
