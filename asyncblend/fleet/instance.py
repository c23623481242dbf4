"""Instance: one Blender's place in the fleet through all its lives, as a state machine. Pure: the caller has the clock.

new ──▶ starting ──▶ idle ◀──▶ ready          idle waits for a lease, ready has one
            │          │         │
            ▼          ▼         ▼
         stopping: asked to end, or killed     (or it just dies, from any of these)
            │
            ▼
starting ◀── backoff | stopped, and then starting again (replaced), or not | failed: not started again
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from ..config import StreamConfig
from ..wire.launch import Life
from .liveness import Liveness
from .restart import RestartHistory

__all__ = ["Cause", "Instance", "State"]

State = Literal["new", "starting", "ready", "idle", "backoff", "stopping", "stopped", "failed"]

Cause = Literal["death", "hopeless", "blameless"]
"""Of the end of a life: one that may heal, one that cannot, or one that is mended already and counts for nothing."""

_PATIENCE = 2  # times the stop timeout, for one that is replaced: nobody waits for it
_ALIVE: tuple[State, ...] = ("starting", "ready", "idle", "stopping")


class Instance:
    """All times are seconds of one monotonic clock. What comes of a life that is over must not be told.

    Args:
        number: of the instance.
        config: whose timeouts, restart policy and limits of a life hold.
        chance: gives random numbers in [0, 1), for the jitter.
    """

    def __init__(self, number: int, config: StreamConfig, chance: Callable[[], float] = float) -> None:
        self.number = number
        self.state: State = "new"
        self.life = Life(number, -1)
        """The present life, or the last one."""
        self.restarts = 0
        """Lives begun because the one before had died."""
        self.recycled = 0
        """Lives begun because the one before had served its time."""
        self.condemned: str | None = None
        """Why this life must be killed: the budget that it overran, or what else it did."""
        self._config = config
        self._history = RestartHistory(config.restart, chance)
        self._liveness = Liveness(config.timeouts, 0.0)
        self._frames = self._rss = 0
        self._retired: float | None = None  # when it was decided to replace this life, then when it was free to go

    @property
    def alive(self) -> bool:
        """It has a process."""
        return self.state in _ALIVE

    @property
    def serves(self) -> bool:
        """It may be given leases."""
        return self.state in ("ready", "idle") and self._retired is None

    @property
    def served(self) -> bool:
        """This life has called serve: it can be asked to end."""
        return self._liveness.ready

    # -- from one life to the next --------------------------------------------------------------------------------

    def start(self, now: float) -> Life:
        """Begin the next life."""
        assert self.state in ("new", "backoff", "stopped"), self.state
        self.state = "starting"
        self.life = Life(self.number, self.life.epoch + 1)
        self.condemned = self._retired = None
        self._frames = self._rss = 0
        self._liveness = Liveness(self._config.timeouts, now)
        return self.life

    def stopping(self) -> None:
        """Its process is being ended."""
        self.state = "stopping"

    def ended(self, now: float, cause: Cause = "death") -> float | None:
        """This life is over. Seconds until the next one is to start; None: there will be none."""
        assert self.alive, self.state
        if self.replaced:
            self.state = "stopped"
            self.recycled += 1
            return 0.0
        if cause == "blameless":
            self.state = "stopped"
            return 0.0
        delay = self._history.died(now) if cause == "death" else None
        self.state = "failed" if delay is None else "backoff"
        self.restarts += delay is not None
        return delay

    def close(self) -> None:
        """The run is over, and so is this life."""
        if self.state != "failed":
            self.state = "stopped"

    # -- what a life does -----------------------------------------------------------------------------------------

    def beat(self, now: float, rss: int) -> None:
        """A sign of life came; `rss`: its resident memory in bytes, 0 for unknown."""
        self._liveness.beat_at(now)
        self._rss = rss or self._rss

    def ready(self, now: float) -> None:
        """It serves."""
        if self.state == "starting":
            self._liveness.ready_at(now)
            self.state = "idle"

    def leased(self, now: float) -> None:
        """It was given a lease."""
        assert self.serves, self.state
        self._liveness.leased_at(now)
        self.state = "ready"

    def answered(self, now: float, *, more: bool) -> None:
        """It answered a lease; `more`: it holds another."""
        self._frames += 1
        self._history.answered()
        self._liveness.answered_at(now, more=more)
        if self.state == "ready" and not more:
            self.state = "idle"
            self._leave_if_free(now)

    # -- what must be done about it -------------------------------------------------------------------------------

    def stalled(self, gap: float) -> None:
        """The host itself stood still for `gap` seconds: they do not count."""
        self._liveness.stalled(gap)
        if self._retired is not None:
            self._retired += gap

    def overdue(self, now: float) -> bool:
        """Whether a budget has just been overrun. Then kill it: it is stopping, and `condemned` says why."""
        if not self.alive or self.condemned is not None:
            return False
        budget = self._liveness.overdue(now)
        if budget is None and self._retired is not None and self.leaving:
            # It has answered what it held, was asked to end, and does not.
            budget = "stop" if now - self._retired > _PATIENCE * self._config.timeouts.stop else None
        return budget is not None and self.condemn(budget)

    def condemn(self, why: str) -> bool:
        """Let it be killed, for a budget or another reason. False: it is not alive, or condemned already."""
        if not self.alive or self.condemned is not None:
            return False
        self.condemned = why
        self.state = "stopping"
        return True

    @property
    def worn(self) -> bool:
        """Whether this life has served its time: so many frames, or so much memory."""
        config = self._config
        frames = config.max_frames_per_instance is not None and self._frames >= config.max_frames_per_instance
        memory = config.max_rss is not None and self._rss > config.max_rss
        return self.serves and self._frames > 0 and (frames or memory)

    def retire(self, now: float) -> None:
        """No more leases: once it has answered those that it holds, it is to end, and the next life begins."""
        self._retired = now
        self._leave_if_free(now)

    def _leave_if_free(self, now: float) -> None:
        if self._retired is not None and self.state == "idle":
            self.state, self._retired = "stopping", now

    @property
    def being_replaced(self) -> bool:
        """This life is retired, or is itself a later one that does not serve yet."""
        return self.alive and (self._retired is not None or (self.life.epoch > 0 and not self.served))

    @property
    def leaving(self) -> bool:
        """It is retired and holds nothing: ask it to end, and again if it does not."""
        return self._retired is not None and self.state == "stopping" and self.condemned is None

    @property
    def replaced(self) -> bool:
        """This life ended, if it has ended, because it was retired."""
        return self._retired is not None and self.condemned in (None, "stop")
