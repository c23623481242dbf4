"""Session: a program's connection to a cluster of Ray, used from an event loop that must never stand still."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import ray

T = TypeVar("T")
_PATIENCE = 1.0  # seconds that the exit of the program waits for actors to be ended

_ending: set[threading.Thread] = set()


class Session:
    """The connection that this program has now. A call after its end would start another Ray."""

    def __init__(self) -> None:
        self._job = ray.get_runtime_context().get_job_id()

    @property
    def lasts(self) -> bool:
        """Whether the program is still connected."""
        return ray.is_initialized() and bool(ray.get_runtime_context().get_job_id() == self._job)

    def end(self, actor: Any) -> None:
        """End an actor. That may hang where a network is cut, so nobody waits for it, but for a moment at the exit."""
        _ending.difference_update([thread for thread in _ending if not thread.is_alive()])
        thread = threading.Thread(target=self._end, args=(actor,), name="asyncblend ends an actor", daemon=True)
        _ending.add(thread)
        thread.start()

    def _end(self, actor: Any) -> None:
        with contextlib.suppress(Exception):  # it has ended, or the program has left the cluster, which ends it
            if self.lasts:
                ray.kill(actor)


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

    threading.Thread(target=call, name="asyncblend calls Ray", daemon=True).start()
    return called


def _wait_at_exit() -> None:
    end = time.monotonic() + _PATIENCE
    for thread in list(_ending):
        thread.join(max(0.0, end - time.monotonic()))


atexit.register(_wait_at_exit)  # after Ray's own, so it is called before that
