"""What processes take, read from /proc. Where the system has none, nothing is known."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

from ...config import cores

_PROC = Path("/proc")
_GROUP = Path("/sys/fs/cgroup")


class Used:
    """The processor time that is taken from now on."""

    def __init__(self) -> None:
        self._began, self._own, self._all = time.perf_counter(), time.process_time(), _busy()
        self._sessions = sessions()

    def shares(self) -> tuple[float | None, float]:
        """Return what this program and its Blenders took, and what all others did, as shares of the cores, from 0 to 1.

        The first is None, and the second 0, if it is unknown.
        """
        passed, now, every = time.perf_counter() - self._began, sessions(), _busy()
        if not now or not passed:
            return None, 0.0
        took = time.process_time() - self._own + sum(now[one] - self._sessions.get(one, 0.0) for one in now)
        rest = 0.0 if every is None or self._all is None else max(0.0, every - self._all - took)
        return took / (passed * cores()), rest / (passed * (os.cpu_count() or 1))


def sessions() -> dict[int, float]:
    """Return the sessions that this process's own children lead, and the seconds of processor time of each.

    Each Blender leads one. What it started itself belongs to it.
    """
    found: dict[int, float] = {}
    led: set[int] = set()
    for pid in _pids():
        with contextlib.suppress(OSError, ValueError, IndexError):  # it has ended meanwhile
            # The name of the program, in brackets, may have spaces and brackets in it.
            fields = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
            parent, session, user, system = (int(fields[i]) for i in (1, 3, 11, 12))
            found[session] = found.get(session, 0.0) + (user + system) / os.sysconf("SC_CLK_TCK")
            if parent == os.getpid() and session == pid:
                led.add(session)
    return {session: found[session] for session in led}


def _busy() -> float | None:
    """Return the seconds of processor time that all programs of this machine have taken, on all cores. None: unknown."""
    try:
        fields = [int(field) for field in (_PROC / "stat").read_text().splitlines()[0].split()[1:]]
    except (OSError, ValueError, IndexError):
        return None
    # Those of guests are in `user` already. What another virtual machine took of these cores counts, too.
    user, nice, system, _idle, _waiting, interrupts, soft, stolen = fields[:8]
    return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")


def memory(of: Iterable[int]) -> float:
    """Return the bytes of memory of all processes of some sessions. What several processes share is divided among them."""
    wanted, total = set(of), 0.0
    for pid in _pids():
        with contextlib.suppress(OSError, ValueError):
            if os.getsid(pid) in wanted:
                for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        total += 1024 * int(line.split()[1])
    return total


def available(proc: Path = _PROC, group: Path = _GROUP) -> float | None:
    """Return how many bytes of memory can still be used, by this machine and by this container. None: unknown.

    Args:
        proc, group: Where the system tells of its memory, and of that of the container.
    """
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        free = 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit, which reads "max"
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        kept = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free = min(free, limit - used + int(kept.get("inactive_file", 0)))  # of which files are kept in memory
    return free


def _pids() -> list[int]:
    try:
        return [int(name) for name in os.listdir(_PROC) if name.isdigit()]
    except OSError:
        return []
