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
        self.life, self.name = life, name
        self.made = 0
        self.began: float | None = None
        """When the step was sent whose frame has not come, by time.monotonic. None: there is none."""
        self._line, self._index, self._age, self._asked = line, index, age, asked
        self._step = first
        self._drawn: Drawn | None = None  # the params of the step whose frame has not come
        self._came: LineMessage | None = None  # its answer, kept until it is a frame: Ctrl-C may come in between
        self._first_consumed = self._ended = False
        # Whoever has it may say whether the direct way goes on. It is never held while waiting.
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Note that the consumer has the frame that it began with. False: it has ended, and the book notes that."""
        with self._lock:
            self._first_consumed = not self._ended
            return self._first_consumed

    def send(self, drawn: Drawn) -> bool:
        """Ask for the next step. False: it has ended, or these params do not fit; then a message must ask for it."""
        with self._lock:
            message = pack(self.name, self._step + 1, drawn.parts)
            if self._ended or message is None:
                return False
            self._step, self._drawn = self._asked.remember(drawn), drawn
            self.began = time.monotonic()
            try:
                self._line.send(message)
            except KeyboardInterrupt:  # perhaps it is not sent; a step that comes twice is made once
                self._line.send(message)
                raise
            return True

    def receive(self, timeout: float | None) -> Frame | None:
        """Return the frame of the step that was asked for. None: it comes as a message, or the loop knows why not.

        Raises:
            TimeoutError: It did not come within so many seconds.
            LineBroken, ProtocolError: Nothing more comes over the line, or nothing that can be read.
        """
        limit = None if timeout is None else time.monotonic() + timeout
        self._line.reading = True  # before the look at whether it has ended: who begins another way looks at this
        try:
            while not self._ended and self._drawn is not None:
                if self._came is None:
                    self._came = self._line.receive(wait=limit is None)
                if self._came is None:
                    if limit is not None:
                        self._wait(limit)
                elif self._came.name != self.name or self._came.step != self._step:
                    self._came = None  # of an episode that was given up
                else:
                    return self._frame(self._came, self._drawn) if self._came.parts else None
            return None
        finally:
            self._line.reading = False

    def _wait(self, limit: float) -> None:
        left = limit - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._line.wait(min(left, _TICK))

    def end(self) -> Played:
        """From now on neither send nor receive, and have the Blender listen to messages. Return what was played."""
        with self._lock:
            self._ended = True
            self._line.send(gone_on(self.name, self._step))
            return Played(self.made, self._first_consumed, self._drawn is not None)

    def _frame(self, message: LineMessage, drawn: Drawn) -> Frame | None:
        """Return the frame. None: the loop has ended the direct way meanwhile, and the frame comes once more.

        Whenever it does that to a step under way, the lease is begun again, or nobody wants its frames any more.
        """
        values = payload.decode_values(message.parts, self._line.hold)
        frame = Frame(
            values,
            index=self._index,
            instance=self.life.instance,
            params=drawn.values,
            params_age=self._age,
            step=self._step,
            last=False,
        )
        with self._lock:
            if self._ended:
                return None
            self._asked.forget_after(self._step)
            self.made += 1
            self.began = self._drawn = self._came = None
            return frame
