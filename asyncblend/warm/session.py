"""Session: a program's connection to a cluster of Ray, as long as it lasts."""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
from typing import Any

import ray

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


def _wait_at_exit() -> None:
    end = time.monotonic() + _PATIENCE
    for thread in list(_ending):
        thread.join(max(0.0, end - time.monotonic()))


atexit.register(_wait_at_exit)  # after Ray's own, so it is called before that
