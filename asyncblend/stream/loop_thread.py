"""LoopThread: a background thread that runs one coroutine on an event loop of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from ..aio import AtExit, run
from ..errors import StreamClosed

T = TypeVar("T")


class LoopThread:
    """Runs a coroutine in a background thread, until it ends or `close` cancels it. `close` is also called at exit.

    Args:
        main: Makes the coroutine.
        on_end: Called in the thread when the coroutine has ended, with its error; None if there is none.
    """

    def __init__(
        self, main: Callable[[], Coroutine[Any, Any, None]], on_end: Callable[[BaseException | None], None]
    ) -> None:
        self._main, self._on_end = main, on_end
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="asyncblend event loop", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._over = threading.Event()
        self.closing: bool = False  # Whether `close` was called

    @property
    def started(self) -> bool:
        """Whether `start` was called."""
        return self._thread.ident is not None

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def is_current(self) -> bool:
        """Whether the caller is in this thread."""
        return threading.current_thread() is self._thread  # not its number, which others get when it has ended

    def start(self) -> None:
        """Start the thread; once."""
        _running.add(self)
        self._thread.start()

    def post(self, function: Callable[..., object], *args: Any) -> None:
        """Let the thread call a function soon. Do nothing if its loop has ended, or not begun."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(function, *args)

    def call(self, function: Callable[[], T]) -> T:
        """Call a function in the thread, and return its result.

        Raises:
            StreamClosed: The loop has ended, or not begun.
        """
        if self.is_current:
            return function()
        done: concurrent.futures.Future[T] = concurrent.futures.Future()

        def set_result() -> None:
            try:
                done.set_result(function())
            except BaseException as error:
                done.set_exception(error)

        if self._loop is None:
            raise StreamClosed("the stream is not open")
        try:
            self._loop.call_soon_threadsafe(set_result)
        except RuntimeError:
            raise StreamClosed("the stream was closed") from None
        while True:
            try:
                return done.result(timeout=1)
            except concurrent.futures.TimeoutError:
                if done.done():  # at the last moment; or the function itself has raised it
                    return done.result()
                if not self.alive:
                    raise StreamClosed("the stream was closed meanwhile") from None

    def close(self) -> None:
        """Cancel the coroutine, and wait until the thread has ended. From any thread, also twice.

        From this thread itself (a garbage collection there) it does not wait. A KeyboardInterrupt while it waits
        cancels every task of the loop.
        """
        if self._pid != os.getpid():
            return  # a forked copy has no such thread
        self.closing = True
        if self._task is not None:
            self.post(self._task.cancel)
        if not self.started or self.is_current:
            return
        try:
            # Not join: interrupted, it takes a running thread for ended (until Python 3.13).
            self._over.wait()
        except BaseException:
            self.post(_cancel_all)
            self._over.wait()
            raise
        self._thread.join()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            run(self._begin())
        except asyncio.CancelledError:
            pass  # at the top of our own loop: close was called
        except BaseException as end:
            error = end
        self._on_end(error)
        self._over.set()

    async def _begin(self) -> None:
        self._task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        if not self.closing:  # else close was called before there was a task to cancel
            await self._main()


def _cancel_all() -> None:
    for task in asyncio.all_tasks():
        task.cancel()


_running = AtExit(LoopThread.close)
