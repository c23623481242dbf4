"""Direct: the steps of one lease that a consumer's thread and a Blender exchange over a line, past the event loop.

    consumer's thread          event-loop thread
    SyncEpisode <-> Direct <-- Directs, which begins and ends it
                      ^
                      line to Blender

It begins with a frame that came as a message. From then on the consumer's thread alone knows how many steps were asked
for, and how many frames have come. When anything else happens to the lease (its Blender dies, its pass ends, a message
comes about it), the loop ends the direct way and notes what was played. The next step then goes as a message, and the
frame that answers it may begin another direct way.
"""

from __future__ import annotations

import threading
import time
from typing import NamedTuple, Protocol

from ..wire import payload
from ..wire.launch import Life
from ..wire.line import Line, LineMessage, gone_on, pack
from ..wire.protocol import Name
from .frame import Frame
from .params import Drawn
from .queue import NotInTime

_PATIENCE = 1.0  # seconds that the loop waits for the consumer's thread
_TICK = 0.1  # seconds between two looks at whether the loop has ended it, as long as the line waits


class Asked(Protocol):
    """Keeps what was asked for, for a replay: EpisodePass."""

    def remember(self, drawn: Drawn) -> int: ...
    def forget_after(self, step: int) -> None: ...


class Played(NamedTuple):
    """What was played of an episode past the book."""

    made: int
    """Frames that came over the line. The consumer has them."""
    first_consumed: bool
    """Whether the consumer has the frame that it began with."""
    bytes: int
    """Of the arrays of all these."""
    asked: bool
    """Whether another step was sent, whose frame has not come."""


class Direct:
    """The direct way of one lease. `take`, `send` and `receive` are for the consumer's thread, the rest is for the loop.

    Args:
        line: The line to the Blender.
        life: The Blender's.
        name: The lease's.
        index: The sample's.
        age: `params_age` of the frames.
        first: The number of the step whose frame offered the line.
        asked: Keeps the steps that are asked for.
    """

    def __init__(self, line: Line, life: Life, name: Name, *, index: int, age: int, first: int, asked: Asked) -> None:
        self.life: Life = life
        self.name: Name = name
        self._made = self._bytes = 0
        self._began: float | None = None  # when the step was sent whose frame has not come
        self._line, self._index, self._age, self._asked = line, index, age, asked
        self._step = first
        self._drawn: Drawn | None = None  # the params of the step whose frame has not come
        self._frame: Frame | None = None  # the latest one, until the next step: Ctrl-C may come before somebody has it
        self._first_consumed = self._ended = False
        # Who has it changes what was played, or ends it. The consumer's thread never waits while it has it.
        self._lock = threading.Lock()

    def take(self, frame: Frame) -> bool:
        """Note that the consumer has the frame that it began with. False: it has ended, and the book notes that."""
        with self._lock:
            self._first_consumed = not self._ended
            if self._first_consumed:
                self._bytes += frame.nbytes
            return self._first_consumed

    def send(self, drawn: Drawn) -> bool:
        """Ask for the next step. False: it has ended, or these params do not fit; then a message must ask for it."""
        with self._lock:
            self._frame = None  # the consumer has it
            message = pack(self.name, self._step + 1, drawn.parts)
            if self._ended or message is None:
                return False
            self._step, self._drawn = self._asked.remember(drawn), drawn
            self._began = time.monotonic()
            try:
                self._line.send(message)
            except KeyboardInterrupt:  # perhaps it is not sent; a step that comes twice is made once
                self._line.send(message)
                raise
            return True

    def receive(self, timeout: float | None) -> Frame | None:
        """Return the frame of the step that was asked for. None: it comes as a message, or the loop knows why not.

        Raises:
            NotInTime: It did not come within so many seconds.
            LineBroken, ProtocolError: Nothing more comes over the line, or nothing that can be read.
        """
        limit = None if timeout is None else time.monotonic() + timeout
        self._line.reading = True  # before the look at whether it has ended: who begins another way looks at this
        try:
            while self._drawn is not None and self._frame is None and not self._ended:
                message = self._line.receive(wait=limit is None)
                if message is None:
                    if limit is not None:
                        self._wait(limit)
                elif not message.parts and self._is_answer(message):
                    return None
                elif message.parts:
                    self._read(message, self._drawn)
            return self._delivered()
        finally:
            self._line.reading = False

    def _wait(self, limit: float) -> None:
        left = limit - time.monotonic()
        if left <= 0:
            raise NotInTime
        self._line.wait(min(left, _TICK))

    def end(self) -> Played:
        """From now on neither send nor receive, and have the Blender listen to messages. Return what was played."""
        self._ended = True
        # Who has the lock has it for microseconds, or was interrupted by a signal's handler that waits for this thread.
        has_lock = self._lock.acquire(timeout=_PATIENCE)
        try:
            self._line.send(gone_on(self.name, self._step))
            return self.played
        finally:
            if has_lock:
                self._lock.release()

    @property
    def played(self) -> Played:
        """What was played so far, while the consumer goes on."""
        return Played(self._made, self._first_consumed, self._bytes, self._drawn is not None)

    @property
    def at_work_since(self) -> float | None:
        """When the Blender began the step that it is at, by time.monotonic. None: it waits for the next one."""
        began = self._began
        return None if began is None or self._line.wait(0) else began

    def has_step(self, step: int) -> bool:
        """Whether the frame of this step has come."""
        return step < self._step or (step == self._step and self._drawn is None)

    def _is_answer(self, message: LineMessage) -> bool:
        return message.name == self.name and message.step == self._step

    def _read(self, message: LineMessage, drawn: Drawn) -> None:
        """Make a frame of a message, if it is the one that is awaited and not of an episode that was given up."""
        try:
            values = payload.decode_values(message.parts, self._line.hold)  # also to free memory that it shares
            if self._is_answer(message):
                self._frame = Frame(
                    values,
                    index=self._index,
                    instance=self.life.instance,
                    params=drawn.values,
                    params_age=self._age,
                    step=self._step,
                    last=False,
                )
        except KeyboardInterrupt:
            if self._frame is None:
                self._line.end()  # nobody has the message now, and shared memory cannot be read twice
            raise

    def _delivered(self) -> Frame | None:
        """Return the frame, and note that the consumer has it. None: it comes as a message, if at all.

        Whenever the loop ends the direct way of a step under way, the lease is begun again, its answer has come as a
        message, or nobody wants its frames any more.
        """
        with self._lock:
            if self._drawn is not None:
                if self._ended or self._frame is None:
                    return None
                self._asked.forget_after(self._step)
                self._made += 1
                self._bytes += self._frame.nbytes
                self._began = self._drawn = None
            return self._frame
