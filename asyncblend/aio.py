"""asyncio helpers: cleanup that finishes under cancellation or signals, and the choice of event loop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import zmq

__all__ = ["abandon_loop", "end_context", "finish", "loop_factory", "run_in_thread", "the_one_error"]

T = TypeVar("T")


async def finish(work: Awaitable[T]) -> T:
    """Run `work` to its end however often the caller is cancelled, then re-raise the cancellation.

    Only for cleanup that is known to end.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])  # does not cancel what it waits for
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled() and (failure := task.exception()) is not None:
            raise cancelled from failure
        raise cancelled
    return task.result()


def the_one_error(error: BaseException) -> BaseException:
    """The first real error of an ExceptionGroup, however deep; other exceptions as they are."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop's event loop where it is installed and would notice that processes end, else asyncio's own.

    torch's DataLoader with workers, and others, handle SIGCHLD, in place of uvloop's own handler.
    """
    if _somebody_handles_sigchld():
        return asyncio.new_event_loop
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def _somebody_handles_sigchld() -> bool:
    return hasattr(signal, "SIGCHLD") and callable(signal.getsignal(signal.SIGCHLD))


def end_context(context: zmq.Context[Any]) -> None:
    """Close all sockets of a ZeroMQ context at once, and end its threads.

    A signal during `zmq_ctx_term`, such as SIGCHLD of the Blenders that end just then, interrupts it. pyzmq takes that
    for done, and a thread and five descriptors stay for ever. So this thread hears of signals a moment later.
    """
    if not hasattr(signal, "pthread_sigmask"):
        context.destroy(linger=0)
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        context.destroy(linger=0)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_abandoned: list[asyncio.AbstractEventLoop] = []


def abandon_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Say that closing this loop would block for ever: a child process ended without its noticing.

    It happens to uvloop where somebody replaced its SIGCHLD handler, as torch's DataLoader with workers does: its
    handle of that process stays active, and its `close` waits for it. The loop is kept instead; that costs a few
    descriptors.
    """
    _abandoned.append(loop)


def run_in_thread(main: Coroutine[Any, Any, None]) -> None:
    """As `asyncio.run`, on our choice of loop, for a thread that is not the main one.

    It leaves the loop open if that was abandoned.
    """
    loop = loop_factory()()
    try:
        loop.run_until_complete(main)
    finally:
        try:
            loop.run_until_complete(_end_tasks())
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            if not any(loop is one for one in _abandoned):
                loop.close()


async def _end_tasks() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
