"""Bridge: a BlenderStream in a background thread with its own event loop, for code that is not asynchronous.

    training thread                          event-loop thread
    Pass.get() <- SimpleQueue <------------- pump <- BlenderStream.receive()
               -> taken frames, a batch at a time -> BlenderStream.take()

A frame keeps its place until the training thread has it, so the stream's bound holds across the threads. A
SimpleQueue hands over in about 8 us; a coroutine submitted to the loop for each frame would take 40.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from ..aio import run_in_thread
from ..config import StreamConfig
from ..errors import StreamClosed
from .frame import Frame
from .queue import EndOfStream
from .stats import StreamStats
from .stream import BlenderStream

__all__ = ["Bridge", "Frame", "Pass", "StreamStats"]

T = TypeVar("T")


class _End:
    """Last item of a pass: no more frames, or why not."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Pass:
    """One pass over the stream, taken by one thread. Made by `Bridge.begin`."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._items: SimpleQueue[Frame | _End] = SimpleQueue()
        self._ended = False
        self._dropped = False

    def get(self, timeout: float | None = None) -> Frame:
        """The next frame; wait for it at most `timeout` seconds (None: for ever).

        Raises:
            EndOfStream: all of a finite stream has been delivered.
            TimeoutError: none came in time.
            StreamClosed: another pass has begun, or the bridge was closed.
            AsyncblendError: why there are no more frames, after all good ones.
        """
        self._bridge.check_process()
        try:
            item = self._items.get(timeout=timeout)
        except Empty:
            raise TimeoutError(f"no frame came within {timeout:g} s") from None
        return self._taken(item)

    def poll(self) -> Frame | None:
        """The next frame if it is here already, else None. Raises what `get` does."""
        self._bridge.check_process()
        try:
            item = self._items.get_nowait()
        except Empty:
            return None
        return self._taken(item)

    def _taken(self, item: Frame | _End) -> Frame:
        if self._dropped and not isinstance(item, _End):
            raise StreamClosed("the stream was closed")  # a frame that nobody would count as taken
        if isinstance(item, _End):
            self._items.put(item)  # for the next call
            raise item.error or EndOfStream
        self._bridge.took(self, item)
        return item

    def __iter__(self) -> Iterator[Frame]:
        while True:
            try:
                frame = self.get()
            except EndOfStream:
                return
            yield frame

    @property
    def ended(self) -> bool:
        """No more frames will come."""
        return self._ended

    def put(self, frame: Frame) -> None:
        """From the event-loop thread."""
        self._items.put(frame)

    def drop(self) -> None:
        """From any thread: give no more frames, also none of those that are here already."""
        self._dropped = True
        with contextlib.suppress(Empty):
            while True:
                if isinstance(item := self._items.get_nowait(), _End):
                    self._items.put(item)
                    return

    def end(self, error: BaseException | None) -> None:
        """From the event-loop thread: no more frames. Only the first end counts."""
        if not self._ended:
            self._ended = True
            self._items.put(_End(error))


class Bridge:
    """Owns the thread, the loop and the stream. `open` for the first pass, `begin` for each other one, `close`.

    For the process that opened it only, and, `close` apart, for one thread.
    """

    def __init__(self, config: StreamConfig) -> None:
        self.config = config
        self._pid = os.getpid()
        self._started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._looping = threading.Event()  # from when there is a loop
        self._thread = threading.Thread(target=self._run, name="asyncblend event loop", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main_task: asyncio.Task[None] | None = None
        self._closing = False
        self._over = threading.Event()
        self._stream = BlenderStream(config)
        self._pass: Pass | None = None
        self._feeding: asyncio.Future[None] | None = None
        self._taken: deque[tuple[Pass, Frame]] = deque()
        self._told = False  # whether the loop will look at what was taken

    @property
    def usable(self) -> bool:
        """Open, of this process, and with nothing that ended its fleet."""
        return self._pid == os.getpid() and self._thread.is_alive() and not self._stream.broken

    def open(self, start: int | None = None, state: Mapping[str, Any] | None = None, *, wait: bool = True) -> Pass:
        """Start the thread and the fleet, and the first pass; return when the first Blender is ready.

        Args:
            wait: False: return at once; what entering a BlenderStream would raise, the pass raises.

        Raises:
            AsyncblendError: as entering a BlenderStream does.
        """
        self._stream.rewind(start, state)
        self._pass = Pass(self)
        _close_at_exit(self)
        self._thread.start()
        if not wait:
            return self._pass
        try:
            self._started.result()
        except BaseException:
            self.close()
            raise
        return self._pass

    def begin(self, start: int | None = None, state: Mapping[str, Any] | None = None, *, wait: bool = True) -> Pass:
        """Begin another pass, at index `start` or where `state` was saved. The last one ends with StreamClosed.

        Args:
            wait: for the first Blender, if none is ready yet. False: as `open` has it.

        Raises:
            ConfigError: the state does not fit.
            StreamClosed: the bridge was closed.
            AsyncblendError: the fleet could not start.
        """
        self.check_process()
        if wait:
            self._started.result()
        else:
            self._looping.wait()
        try:
            return self._call(lambda: self._begin(start, state))
        except StreamClosed:
            self._started.result()  # if the start has failed, it says why
            raise

    def stats(self) -> StreamStats:
        """A snapshot. Also after the end."""
        return self._call_or_now(self._stream.stats)

    def state_dict(self) -> dict[str, Any]:
        """Which indices the training thread has taken in this pass."""

        def state() -> dict[str, Any]:
            self._note_taken()
            return self._stream.state_dict()

        return self._call_or_now(state)

    def close(self) -> None:
        """Stop the fleet and the thread; returns when nothing is left. From any thread, also twice.

        From the event loop's own thread (a garbage collection there) it only begins to. A KeyboardInterrupt meanwhile
        kills the Blenders at once.
        """
        if self._pid != os.getpid():
            return  # a forked copy: nothing here is ours
        self._closing = True
        if self._pass is not None:
            self._pass.drop()
        loop, main = self._loop, self._main_task
        if loop is not None and main is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(main.cancel)
        if self._thread.ident is None or threading.current_thread() is self._thread:
            return
        try:
            # Not join: interrupted, it takes a running thread for ended (until Python 3.13).
            self._over.wait()
        except BaseException:
            if loop is not None:
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(_cancel_all)
            self._over.wait()
            raise
        self._thread.join()

    def check_process(self) -> None:
        """
        Raises:
            StreamClosed: this is a forked copy.
        """
        if self._pid != os.getpid():
            raise StreamClosed(
                "this stream belongs to another process, from which this one was forked; make a new one here"
            )

    def took(self, source: Pass, frame: Frame) -> None:
        """From the training thread: it has this frame of `source`."""
        self._taken.append((source, frame))
        if not self._told:
            self._told = True
            assert self._loop is not None
            with contextlib.suppress(RuntimeError):  # the loop has ended; its last frames may still be taken
                self._loop.call_soon_threadsafe(self._note_taken)

    # -- in the event-loop thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            run_in_thread(self._main())
        except asyncio.CancelledError:
            pass  # at the top of our own loop: close was called
        except BaseException as end:
            error = end
        cause = StreamClosed("the stream was closed")
        cause.__cause__ = error
        if not self._started.done():
            self._started.set_exception(error or cause)
        if self._pass is not None:
            self._pass.end(error if error is not None and isinstance(error, Exception) else cause)
        self._looping.set()  # nobody need wait for it
        self._over.set()

    async def _main(self) -> None:
        self._loop, self._main_task = asyncio.get_running_loop(), asyncio.current_task()
        self._looping.set()
        if self._closing:
            return  # before there was a loop to tell
        async with self._stream:
            assert self._pass is not None
            self._start_feeding(self._pass)
            self._started.set_result(None)
            try:
                await asyncio.Event().wait()  # until close cancels this task
            finally:
                self._stop_feeding()  # that the queue is closed is no end of the stream; `_run` says why it ends

    def _begin(self, start: int | None, state: Mapping[str, Any] | None) -> Pass:
        self._note_taken()
        started = self._started.done()
        # While the stream starts, only a start that has failed closes it: `_run` ends the pass, and says why.
        with contextlib.nullcontext() if started else contextlib.suppress(StreamClosed):
            self._stream.rewind(start, state)
        self._stop_feeding()  # else it might go on with the new pass's queue
        if self._pass is not None:
            if not self._pass.ended:
                self._pass.drop()  # what is left of it will be rendered again; a complete pass keeps its last frames
            self._pass.end(StreamClosed("another iteration over the same stream has begun"))
        self._pass = Pass(self)
        if started:  # else `_main` does, once it is
            self._start_feeding(self._pass)
        return self._pass

    def _stop_feeding(self) -> None:
        if self._feeding is not None:
            self._feeding.cancel()

    def _start_feeding(self, target: Pass) -> None:
        self._feeding = asyncio.ensure_future(self._feed(target))  # ends with its queue, or with its pass

    async def _feed(self, target: Pass) -> None:
        try:
            while True:
                target.put(await self._stream.receive())
        except EndOfStream:
            target.end(None)
        except asyncio.CancelledError:
            raise  # its pass has ended, or the loop does and `_run` says why
        except BaseException as error:
            target.end(error)

    def _note_taken(self) -> None:
        self._told = False
        while self._taken:
            source, frame = self._taken.popleft()
            if source is self._pass:
                with contextlib.suppress(StreamClosed):
                    self._stream.take(frame)

    # -- across ---------------------------------------------------------------------------------------------------

    def _call(self, function: Callable[[], T]) -> T:
        """Run `function` in the event-loop thread."""
        done: concurrent.futures.Future[T] = concurrent.futures.Future()

        def call() -> None:
            try:
                done.set_result(function())
            except BaseException as error:
                done.set_exception(error)

        if self._loop is None:
            raise StreamClosed("the stream is not open")
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:
            raise StreamClosed("the stream has been closed") from None
        while True:
            try:
                return done.result(timeout=1)
            except concurrent.futures.TimeoutError:
                if done.done():
                    raise
                if not self._thread.is_alive():
                    raise StreamClosed("the stream was closed meanwhile") from None

    def _call_or_now(self, function: Callable[[], T]) -> T:
        """The same while the thread runs; afterwards nothing changes any more, and any thread may look."""
        if self._pid != os.getpid():
            return function()  # a forked copy, whose loop is the parent's
        try:
            return self._call(function)
        except StreamClosed:
            return function()


def _cancel_all() -> None:
    for task in asyncio.all_tasks():
        task.cancel()


_opened: weakref.WeakSet[Bridge] = weakref.WeakSet()
_registered = False


def _close_at_exit(bridge: Bridge) -> None:
    # atexit comes too late for a thread that uses executors, and never in a DataLoader's workers; this hook of
    # the threading module runs first, and in both. concurrent.futures uses it likewise.
    global _registered
    _opened.add(bridge)
    if not _registered:
        _registered = True
        threading._register_atexit(_close_all)  # type: ignore[attr-defined]


def _close_all() -> None:
    for bridge in list(_opened):
        bridge.close()
