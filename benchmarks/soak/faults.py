"""The kinds of faults, and how long a Blender took to come back from one."""

from __future__ import annotations

import time
from typing import NamedTuple

__all__ = [
    "CLOSE",
    "ENDING",
    "FEW",
    "GARBAGE",
    "GARBLE",
    "HANG",
    "HOST",
    "KILL",
    "KINDS",
    "PAUSE",
    "REDIRECT",
    "SLOW",
    "STOP",
    "Recoveries",
]

KILL, STOP, HANG, CLOSE, GARBLE = "SIGKILL", "SIGSTOP", "stuck sample", "closed descriptors", "unreadable frames"
PAUSE, REDIRECT = "SIGSTOP, then SIGCONT", "redirected output"
GARBAGE, SLOW = "garbage", "slow consumer"
HOST, FEW = "killed host", "few descriptors"

ENDING = (KILL, STOP, HANG, CLOSE, GARBLE)
"""The kinds that end the life of a Blender of the stream."""
KINDS = (*ENDING, PAUSE, REDIRECT, GARBAGE, SLOW, HOST, FEW)


class _Hit(NamedTuple):
    """A fault that ended the life of a Blender."""

    at: float
    kind: str
    pid: int


class Recoveries:
    """Measures the time from a fault to the first frame of the instance's next life, at the consumer."""

    def __init__(self) -> None:
        self._open: dict[int, list[_Hit]] = {}  # by instance, oldest first
        self.seconds: dict[str, list[float]] = {kind: [] for kind in ENDING}
        self.hits = 0
        """Faults that ended a life."""
        self.hit_again = 0
        """Faults that were followed by another one before the instance came back. They are not timed."""

    @property
    def open(self) -> int:
        """The number of faults after which the instance has not come back yet."""
        return sum(map(len, self._open.values()))

    def hit(self, instance: int, kind: str, pid: int) -> None:
        """Note that a fault was injected."""
        self.hits += 1
        self._open.setdefault(instance, []).append(_Hit(time.monotonic(), kind, pid))

    def was_hit(self, instance: int, pid: int) -> bool:
        """Return whether this life had its fault already."""
        return any(hit.pid == pid for hit in self._open.get(instance, ()))

    def frame(self, instance: int, pid: int) -> None:
        """Note that a frame came from that process."""
        hits = self._open.get(instance)
        if not hits:
            return
        # A frame may have been on its way when its Blender was hit: it ends only the faults of the lives before.
        over = next((i for i, hit in enumerate(hits) if hit.pid == pid), len(hits))
        if over:
            last = hits[over - 1]
            self.seconds[last.kind].append(time.monotonic() - last.at)
            self.hit_again += over - 1
            del hits[:over]
