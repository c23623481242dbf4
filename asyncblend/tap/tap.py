"""Tap: a consumer shows it every frame, and it keeps one only when somebody has asked for it."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import TypeVar

from ..stream.clips import Clip
from ..stream.frame import Frame
from ..stream.stats import StreamStats
from .moment import Doing, Line, Moment

FrameT = TypeVar("FrameT", bound=Frame)

_LINES = 500  # of the log that wait to be shown; older ones are counted


class Tap:
    """Where the frames of a stream can be seen. One thread shows them to it, and another one looks.

    Showing costs a tenth of a microsecond, or a few where a look was waiting. It never waits, and no frame is held
    longer than until the look that has taken it is over.

    Args:
        stats: Returns the stream's statistics, or None. Called by the thread that looks.
        queue_size: How many frames the stream's queue holds at most.
    """

    def __init__(self, stats: Callable[[], StreamStats | None] = lambda: None, queue_size: int = 0) -> None:
        self.came: int = 0
        """How many frames were shown to it. A clip counts as its frames."""
        self._stats, self._queue_size = stats, queue_size
        self._ended = False
        self._wishes: deque[SimpleQueue[Frame | None]] = deque(maxlen=1)  # that of the look that waits for a frame
        self._log = _Lines()
        # A handler of the root logger would be taken for the program's own: logging.basicConfig would do nothing.
        root = logging.getLogger()
        self._logger = root if root.handlers else logging.getLogger("asyncblend")
        self._logger.addHandler(self._log)

    def put(self, frame: Frame) -> None:
        """Show it a frame."""
        self.came += frame.length if isinstance(frame, Clip) else 1
        if self._wishes:
            self._fulfil(frame)

    def over(self, frames: Iterable[FrameT]) -> Iterator[FrameT]:
        """Yield these frames, each after it was shown."""
        for frame in frames:
            self.put(frame)
            yield frame

    def look(self, timeout: float) -> Moment:
        """Return the next frame that is shown, with what else there is to see; without a frame if none comes in time.

        Args:
            timeout: In seconds.
        """
        wish: SimpleQueue[Frame | None] = SimpleQueue()  # a frame that comes too late for this look ends with it
        self._wishes.append(wish)
        frame = None
        if not self._ended:
            with contextlib.suppress(Empty):
                frame = wish.get(timeout=timeout)
        self._wishes.clear()
        return self._moment(frame)

    def take(self, frame: Frame) -> Moment:
        """Return a frame with what else there is to see, for who looks at each frame and is its consumer too."""
        self.put(frame)
        return self._moment(frame)

    def end(self) -> None:
        """Let this and every further look return at once, and say that it is the end. May be called twice."""
        self._ended = True
        self._fulfil(None)
        self._logger.removeHandler(self._log)

    def _fulfil(self, frame: Frame | None) -> None:
        with contextlib.suppress(IndexError):  # the look is over
            self._wishes.pop().put(frame)

    def _moment(self, frame: Frame | None) -> Moment:
        stats = self._stats()
        doing = None if stats is None else Doing(stats.queued, self._queue_size, stats.state)
        return Moment(frame, self.came, doing, self._log.taken(), self._ended)


class _Lines(logging.Handler):
    """Keeps the last lines of the log until they are taken."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._kept: deque[Line] = deque(maxlen=_LINES)
        self._came = self._gone = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message of a record. Where the program handles no log, warnings are printed as without a view."""
        if logging.lastResort is not None and record.levelno >= logging.lastResort.level and self._is_alone(record):
            logging.lastResort.handle(record)
        try:
            self._kept.append(Line(record.levelname, self.format(record)))
            self._came += 1
        except Exception:
            self.handleError(record)  # as every handler of the standard library does

    def _is_alone(self, record: logging.LogRecord) -> bool:
        """Return whether nothing else handles a record; of several taps, one says so."""
        handlers: list[logging.Handler] = []
        logger: logging.Logger | None = logging.getLogger(record.name)
        while logger is not None:
            handlers += logger.handlers
            logger = logger.parent if logger.propagate else None
        return handlers[:1] == [self] and all(isinstance(one, _Lines) for one in handlers)

    def taken(self) -> list[Line]:
        """Return the lines since the last call, and how many are not among them."""
        with self.lock or threading.RLock():
            lines, lost = list(self._kept), self._came - self._gone - len(self._kept)
            self._kept.clear()
            self._gone = self._came
        return [Line("WARNING", f"{lost} earlier lines of the log were not shown"), *lines] if lost else lines
