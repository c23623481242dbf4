"""Helpers for asyncio: cleanup that is finished despite cancellation or signals, and the choice of event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import threading
import warnings
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    import zmq

T = TypeVar("T")


async def finish(work: Awaitable[T]) -> T:
    """Run an awaitable to its end, however often the caller is cancelled, and return its result.

    Use it only for cleanup that is known to end. The work itself is cancelled when somebody cancels every task of the
    event loop, but not before it has begun.

    Raises:
        CancelledError: The caller was cancelled, or the work was. Raised when the work has ended.
    """
    begun = False

    async def run() -> T:
        nonlocal begun
        begun = True
        return await work

    task = asyncio.ensure_future(run())
    cancelled: asyncio.CancelledError | None = None
    while not (begun and task.done()):
        if task.done():
            task = asyncio.ensure_future(run())
        try:
            await asyncio.wait([task])  # does not cancel the task
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled() and (failure := task.exception()) is not None:
            raise cancelled from failure
        raise cancelled
    return task.result()


def the_one_error(error: BaseException) -> BaseException:
    """Return the first real error of an exception group, however deeply nested; return any other exception itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return the factory of uvloop's event loop where it would notice that processes end, else of asyncio's own.

    torch's DataLoader with workers, and others, handle SIGCHLD, in place of uvloop's own handler.
    """
    if callable(signal.getsignal(signal.SIGCHLD)):
        return asyncio.new_event_loop
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def close_in_silence(loop: asyncio.AbstractEventLoop) -> None:
    """Let this loop ignore ResourceWarning while it is closed, because it has missed the exit of a child process.

    uvloop does, where its SIGCHLD handler was replaced. Its `close` warns of that process, and where warnings are errors
    it then leaves the process's handle open and waits for it forever.
    """

    def close() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            type(loop).close(loop)

    loop.close = close  # type: ignore[method-assign]


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a new event loop of `loop_factory`, as `asyncio.run` does, in any thread."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(main)


class AtExit(Generic[T]):
    """Ends at the interpreter's exit what lives then.

    atexit comes too late for a thread that uses executors, and never in a DataLoader's workers. This hook of the
    threading module runs first, and in both. concurrent.futures uses it likewise.

    Args:
        end: Called with each one.
    """

    def __init__(self, end: Callable[[T], object]) -> None:
        self._end, self._live, self._registered = end, weakref.WeakSet[T](), False

    def add(self, one: T) -> None:
        """Let `one` be ended at the exit, unless it is collected before. Nothing keeps it alive."""
        self._live.add(one)
        if not self._registered:
            self._registered = True
            threading._register_atexit(self._end_all)  # type: ignore[attr-defined]

    def living(self) -> list[T]:
        """Return what was added and is not collected."""
        return list(self._live)

    def _end_all(self) -> None:
        errors: list[BaseException] = []
        for one in self.living():
            try:
                self._end(one)
            except BaseException as error:  # the others must end all the same
                errors.append(error)
        if errors:
            raise errors[0]


def separate_after_fork(loop: asyncio.AbstractEventLoop) -> None:
    """Give a forked copy of an event loop an epoll of its own.

    It shares its parent's: a descriptor that the copy stops to watch, at the latest when it is closed, the parent would
    watch no more either, and wait for it forever.
    """
    watching: Any = getattr(loop, "_get_backend_id", None) or getattr(loop, "_selector", None)  # uvloop's, asyncio's
    shared = watching() if callable(watching) else getattr(watching, "fileno", lambda: -1)()
    if shared < 0 or not hasattr(select, "epoll"):  # it is closed, or no other system's is inherited
        return
    with select.epoll() as own:
        with contextlib.suppress(OSError), open(f"/proc/self/fdinfo/{shared}", encoding="ascii") as about:
            for line in about:
                if line.startswith("tfd:"):
                    _, descriptor, _, events = line.split()[:4]
                    with contextlib.suppress(OSError):  # one that is closed, while its file lives on elsewhere
                        own.register(int(descriptor), int(events, 16))
        os.dup2(own.fileno(), shared, inheritable=False)


def end_context(context: zmq.Context[Any], *sockets: zmq.Socket[Any]) -> None:
    """Close all sockets of a ZeroMQ context and end its threads, without waiting for messages that are still unsent.

    A signal that arrives during `zmq_ctx_term` interrupts it. pyzmq then takes the context for closed, and a thread and
    five descriptors are never freed. So this thread's signals are held back meanwhile.

    Args:
        sockets: Its sockets, for a finalizer, which thereby keeps them: a context has only weak references to them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        context.destroy(linger=0)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def apart(function: Callable[[], T]) -> asyncio.Future[T]:
    """Call a function that may block, in a thread of its own. The exit of the program does not wait for it."""
    loop = asyncio.get_running_loop()
    called: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: Exception | None) -> None:
        if called.done():  # cancelled
            return
        if error is None:
            called.set_result(result)  # type: ignore[arg-type]
        else:
            called.set_exception(error)

    def call() -> None:
        result, error = None, None
        try:
            result = function()
        except Exception as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=call, name="asyncblend waits", daemon=True).start()
    return called
