"""Instance: the state machine of one Blender through all its lives. Pure: the caller has the clock.

new ──▶ starting ──▶ idle ◀──▶ ready          idle waits for a lease, ready has one
            │          │         │
            ▼          ▼         ▼
         stopping: asked to end, or killed     (or it crashes, from any of these)
            │
            ▼
starting ◀── backoff, after a crash | stopped, if it was replaced or closed | failed: it is not started again
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from ..config import StreamConfig
from ..wire.launch import Life
from .liveness import Liveness
from .restart import RestartHistory

State = Literal["new", "starting", "ready", "idle", "backoff", "stopping", "stopped", "failed"]

Cause = Literal["crash", "fatal", "needs_packages"]
"""Why a life ended: a crash, which may not happen again; something that will, or that the user wanted; or packages that
are being installed."""

_PATIENCE = 2  # stop timeouts that a replaced Blender has: nobody waits for it
_MOST_LOST = 1 << 28  # bytes; a quarter of what it shares with the host
_ALIVE: tuple[State, ...] = ("starting", "ready", "idle", "stopping")


class Instance:
    """Decides about one instance. All times are seconds of one monotonic clock; only its present life may be reported.

    Args:
        number: The instance's.
        config: Has the timeouts, the restart policy and the limits of a life.
        chance: Returns random numbers in [0, 1), for the jitter.
    """

    def __init__(self, number: int, config: StreamConfig, chance: Callable[[], float] = float) -> None:
        self.number = number
        self.state: State = "new"
        self.life: Life = Life(number, -1)  # The present life, or the last one
        self.restarts: int = 0  # Lives begun because the one before crashed
        self.recycled: int = 0  # Lives begun because the one before had served its time
        self.condemned: str | None = None
        """Why this life must be killed: the budget that it overran ("start", "beat", "frame", "stop"), or what else it did."""
        self._config = config
        self._history = RestartHistory(config.restart, chance)
        self._liveness = Liveness(config.timeouts, 0.0)
        self._frames = self._rss = self._lost = 0
        self._retired: float | None = None  # when this life was retired, later when it was free to end

    @property
    def alive(self) -> bool:
        """Whether it has a process."""
        return self.state in _ALIVE

    @property
    def serves(self) -> bool:
        """Whether it may be given leases."""
        return self.state in ("ready", "idle") and self._retired is None

    @property
    def served(self) -> bool:
        """Whether this life has called serve, and can be asked to end."""
        return self._liveness.ready

    # -- from one life to the next --------------------------------------------------------------------------------

    def start(self, now: float) -> Life:
        """Begin the next life."""
        assert self.state in ("new", "backoff", "stopped"), self.state
        self.state = "starting"
        self.life = Life(self.number, self.life.epoch + 1)
        self.condemned = self._retired = None
        self._frames = self._rss = self._lost = 0
        self._liveness = Liveness(self._config.timeouts, now)
        return self.life

    def launched(self, now: float) -> None:
        """Note that its process runs now: it may have waited for a machine."""
        self._liveness.started_at(now)

    def stopping(self) -> None:
        """Note that its process is being ended."""
        self.state = "stopping"

    def ended(self, now: float, cause: Cause = "crash") -> float | None:
        """Note that this life is over. Return the seconds until the next one starts, or None if there will be none."""
        assert self.alive, self.state
        if self.replaced:
            self.state = "stopped"
            self.recycled += 1
            return 0.0
        if cause == "needs_packages":
            self.state = "stopped"
            return 0.0
        delay = self._history.died(now) if cause == "crash" else None
        self.state = "failed" if delay is None else "backoff"
        self.restarts += delay is not None
        return delay

    def close(self) -> None:
        """Note that the run is over, and this life with it."""
        if self.state != "failed":
            self.state = "stopped"

    # -- what a life does -----------------------------------------------------------------------------------------

    def beat(self, now: float, rss: int, lost: int = 0) -> None:
        """Note a sign of life.

        Args:
            rss: Its resident memory in bytes, 0 for unknown.
            lost: Bytes of the memory it shares with the host that can be used again only when it has ended.
        """
        self._liveness.beat_at(now)
        self._rss = rss or self._rss
        self._lost = max(self._lost, lost)  # a HELLO does not say

    def ready(self, now: float) -> None:
        """Note that it serves."""
        if self.state == "starting":
            self._liveness.ready_at(now)
            self.state = "idle"

    def leased(self, now: float) -> None:
        """Note that it was given a lease."""
        assert self.serves, self.state
        self._liveness.leased_at(now)
        self.state = "ready"

    def working_since(self, began: float | None) -> None:
        """Note when it began the step that it is at. None: it can go on with what it holds only when `goes_on` is called."""
        self._liveness.working_since(began)

    def goes_on(self, now: float) -> None:
        """Note that it may go on with what it holds. A life that is retired may, too."""
        self._liveness.leased_at(now)

    def answered(self, now: float, *, more: bool, count: int = 1) -> None:
        """Note that it answered a lease, or made or replayed a step of its episode.

        Each counts towards `max_frames_per_instance`.

        Args:
            more: Whether it holds a lease now: another one, or still that of the episode.
            count: How many steps it has made since this was called last.
        """
        self._frames += count
        self._history.answered()
        self._liveness.answered_at(now, more=more)
        if self.state == "ready" and not more:
            self.state = "idle"
            self._leave_if_free(now)

    # -- what must be done about it -------------------------------------------------------------------------------

    def stalled(self, gap: float) -> None:
        """Leave out `gap` seconds in which the host itself stood still."""
        self._liveness.stalled(gap)
        if self._retired is not None:
            self._retired += gap

    def overdue(self, now: float) -> bool:
        """Return whether a budget has just been overrun. Then it must be killed; `condemned` says why."""
        if not self.alive or self.condemned is not None:
            return False
        budget = self._liveness.overdue(now)
        if budget is None and self._retired is not None and self.leaving:
            # It has answered all that it held and was asked to end, but goes on.
            budget = "stop" if now - self._retired > _PATIENCE * self._config.timeouts.stop else None
        return budget is not None and self.condemn(budget)

    def condemn(self, why: str) -> bool:
        """Note why it is killed. Return False if it is not alive, or condemned already."""
        if not self.alive or self.condemned is not None:
            return False
        self.condemned = why
        self.state = "stopping"
        return True

    @property
    def worn(self) -> bool:
        """Whether this life has reached its limit of frames or memory, or has lost too much shared memory."""
        config = self._config
        frames = config.max_frames_per_instance is not None and self._frames >= config.max_frames_per_instance
        memory = config.max_rss is not None and self._rss > config.max_rss
        return self.serves and self._frames > 0 and (frames or memory or self._lost > _MOST_LOST)

    def retire(self, now: float) -> None:
        """Give it no more leases. When it has answered those that it holds, it ends, and the next life begins."""
        self._retired = now
        self._leave_if_free(now)

    def _leave_if_free(self, now: float) -> None:
        if self._retired is not None and self.state == "idle":
            self.state, self._retired = "stopping", now

    @property
    def being_replaced(self) -> bool:
        """Whether this life is retired, or replaces one and does not serve yet."""
        return self.alive and (self._retired is not None or (self.life.epoch > 0 and not self.served))

    @property
    def leaving(self) -> bool:
        """Whether it is retired and holds nothing, so that it must be asked to end, again and again if need be."""
        return self._retired is not None and self.state == "stopping" and self.condemned is None

    @property
    def replaced(self) -> bool:
        """Whether a life that has ended did so because it was retired."""
        return self._retired is not None and self.condemned in (None, "stop")
