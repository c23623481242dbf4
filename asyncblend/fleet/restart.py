"""RestartHistory: decides when an instance that crashed is started again. Pure: the caller has the clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ..config import RestartPolicy


class RestartHistory:
    """The crashes of one instance within the policy's window.

    Crashes with no answered sample between them are never forgotten: a sample that hangs takes longer than a window.
    """

    def __init__(self, policy: RestartPolicy, chance: Callable[[], float] = float) -> None:
        self._policy = policy
        self._chance = chance  # in [0, 1); float() is 0.0
        self._deaths: deque[float] = deque()
        self._answered = False

    def answered(self) -> None:
        """Note that it answered a lease, or made or replayed a step of its episode."""
        self._answered = True

    def died(self, now: float) -> float | None:
        """Note a crash at `now` (seconds, monotonic). Return the delay before the next start; None: it crashes too often."""
        while self._answered and self._deaths and now - self._deaths[0] > self._policy.window:
            self._deaths.popleft()
        self._answered = False
        self._deaths.append(now)
        count = len(self._deaths)
        if count > self._policy.max_restarts:
            return None
        delay = min(self._policy.backoff * 2.0 ** min(count - 1, 60), self._policy.max_backoff)
        return delay * (1 + self._policy.jitter * self._chance())
