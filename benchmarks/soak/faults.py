"""The kinds of faults, and how long a Blender took to come back from one."""

from __future__ import annotations

import time
from typing import NamedTuple

__all__ = ["GARBAGE", "KILL", "KINDS", "SLOW", "STOP", "Recoveries"]

KILL, STOP, GARBAGE, SLOW = "SIGKILL", "SIGSTOP", "garbage", "slow consumer"
KINDS = (KILL, STOP, GARBAGE, SLOW)


class _Hit(NamedTuple):
    """A fault that ended the life of a Blender."""

    at: float
    kind: str
    pid: int


class Recoveries:
    """From the fault to the next frame, at the consumer, of that instance's next life."""

    def __init__(self) -> None:
        self._open: dict[int, list[_Hit]] = {}  # by instance, oldest first
        self.seconds: dict[str, list[float]] = {KILL: [], STOP: []}
        self.hit_again = 0
        """Faults whose instance had the next one before it was back: they say nothing of how long it takes."""

    @property
    def open(self) -> int:
        """Faults whose instance has not come back."""
        return sum(map(len, self._open.values()))

    def hit(self, instance: int, kind: str, pid: int) -> None:
        """A fault was injected."""
        self._open.setdefault(instance, []).append(_Hit(time.monotonic(), kind, pid))

    def was_hit(self, instance: int, pid: int) -> bool:
        """Whether this life has its fault already."""
        return any(hit.pid == pid for hit in self._open.get(instance, ()))

    def frame(self, instance: int, pid: int) -> None:
        """A frame came from that process."""
        hits = self._open.get(instance)
        if not hits:
            return
        # A frame that was on its way when its own Blender was hit tells only of the faults before.
        over = next((i for i, hit in enumerate(hits) if hit.pid == pid), len(hits))
        if over:
            last = hits[over - 1]
            self.seconds[last.kind].append(time.monotonic() - last.at)
            self.hit_again += over - 1
            del hits[:over]
