"""FrameQueue: arrived frames, between the dispatcher and a consumer."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)


class EndOfStream(Exception):
    """The queue is closed and empty. Never leaves the package."""


class NotInTime(TimeoutError):
    """A call has waited for as long as it may. Errors of a Blender and of params may be TimeoutErrors, but not this one."""


class Sink(Protocol[T_contra]):
    """Takes over what comes into a queue, in the event loop's thread."""

    def put(self, item: T_contra, /) -> None:
        """Take an item."""

    def end(self, error: BaseException | None, /) -> None:
        """Learn that the queue was closed, and with which error."""


class FrameQueue(Generic[T]):
    """A bounded FIFO between tasks of one event loop.

    `put` never waits: each item has a slot already (a lease), so too many items are a bug. `get` is atomic with regard
    to cancellation: it returns an item or leaves the queue unchanged. After `close`, queued items are still returned,
    then the error or EndOfStream is raised.
    """

    def __init__(self, maxsize: int) -> None:
        self._maxsize = maxsize
        self._items: deque[T] = deque()
        self._getters: deque[asyncio.Future[None]] = deque()
        self._closed = False
        self._error: BaseException | None = None
        self._sink: Sink[T] | None = None

    def hand_to(self, sink: Sink[T] | None) -> None:
        """Give each item, and the end, to a sink as soon as it is there, and nothing to `get`. None: keep them again.

        No task has to wake up for that, which would take longer than all else that is done with a small frame here.
        """
        self._sink = sink
        if sink is not None:
            while self._items:
                sink.put(self._items.popleft())
            if self._closed:
                sink.end(self._error)

    def put(self, item: T) -> None:
        """Append an item. After `close` it is dropped."""
        if self._closed:
            return
        if self._sink is not None:
            self._sink.put(item)
            return
        assert len(self._items) < self._maxsize, "a frame without a slot"
        self._items.append(item)
        self._wake_one()

    @property
    def ready(self) -> bool:
        """Whether `get` would not wait."""
        return bool(self._items) or self._closed

    def get_nowait(self) -> T | None:
        """Remove and return the first item. None: there is none yet, or no more will come."""
        return self._items.popleft() if self._items else None

    async def get(self) -> T:
        """Remove and return the first item, and wait for one if there is none.

        Raises:
            EndOfStream: The queue was closed, and all items are gone.
            BaseException: The error that `close` was given, once all items are gone.
        """
        while not self._items and not self._closed:
            getter = asyncio.get_running_loop().create_future()
            self._getters.append(getter)
            try:
                await getter
            except asyncio.CancelledError:
                if getter in self._getters:
                    self._getters.remove(getter)
                elif not getter.cancelled():
                    self._wake_one()  # this task was woken and cancelled at once: another one must not sleep on
                raise
        if self._items:
            return self._items.popleft()
        raise self._error or EndOfStream

    def clear(self) -> None:
        """Drop what is queued."""
        self._items.clear()

    def close(self, error: BaseException | None = None) -> None:
        """Accept no more items. Only the first call counts."""
        if not self._closed:
            self._closed, self._error = True, error
            for getter in self._getters:
                if not getter.done():
                    getter.set_result(None)
            self._getters.clear()
            if self._sink is not None:
                self._sink.end(error)

    def _wake_one(self) -> None:
        while self._getters:
            getter = self._getters.popleft()
            if not getter.done():
                getter.set_result(None)
                return
