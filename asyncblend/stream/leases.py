"""LeaseBook: who holds which sample index. Pure: no I/O, no clock, no asyncio.

An index goes through
    fresh -> leased -> arrived -> taken
and back from leased to "returned" when its holder dies. Leased, returned and arrived indices each occupy one of
`places`; a place is free again when the consumer has taken the frame. Everything else follows from this: bounded
memory, backpressure (no place, no lease), no loss (a returned index goes out again before any fresh one) and no
doubles (a frame counts only from the life that holds that very lease now).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ..errors import ConfigError

__all__ = ["Lease", "LeaseBook"]

Life = TypeVar("Life")
Params = TypeVar("Params")


@dataclass(frozen=True)
class Lease(Generic[Params]):
    """Leave to render one index."""

    serial: int
    """Number of this lease; never used twice by one LeaseBook or its successors."""
    index: int
    params: Params
    """Drawn when the index was first leased; a lease given out again has the same."""


class LeaseBook(Generic[Life, Params]):
    """Hands out the indices of one pass over the stream, each until its frame is taken.

    Args:
        draw: gives the params of a fresh index at the moment of its lease. If it raises, nothing has changed.
        places: how many indices may be leased, returned or arrived at once.
        start, length, shard: the indices are `start + i` for i = k, k + n, k + 2n, ... below `length` (None: endless).
        ordered: release arrived indices in ascending order only.
        first_serial: serial of the first lease. A later pass over the same Blenders goes on where the last one ended,
            so that a frame of the earlier pass never counts for this one.
    """

    def __init__(
        self,
        draw: Callable[[int], Params],
        *,
        places: int,
        start: int = 0,
        length: int | None = None,
        shard: tuple[int, int] = (0, 1),
        ordered: bool = False,
        first_serial: int = 0,
    ) -> None:
        self._draw = draw
        self._places = places
        self._start, self._length, self._shard = start, length, shard
        self._ordered = ordered
        self.first_serial = self.next_serial = first_serial
        self._fresh = shard[0]  # next position (index - start) that was never leased
        self._returned: list[tuple[int, Params]] = []  # heap by position; params never compare: positions differ
        self._leased: dict[int, tuple[Life, Lease[Params]]] = {}  # by position
        self._holding: dict[Life, int] = {}  # how many of them each life has
        self._arrived: set[int] = set()
        self._failed: set[int] = set()
        self._release = shard[0]  # ordered: the next position to let out
        self._watermark = shard[0]  # every own position below it is taken
        self._above: set[int] = set()  # taken positions above it
        self.delivered = 0
        self.skipped = 0
        self.stale = 0
        self.duplicates = 0

    # -- leasing ---------------------------------------------------------------------------------------------

    def lease(self, life: Life) -> Lease[Params] | None:
        """A lease for this life: a returned index, the lowest first, else a fresh one. None: no place, or no index."""
        if self._returned:
            position, params = heapq.heappop(self._returned)
        elif self._occupied() < self._places and self._owned(self._fresh):
            position = self._fresh
            params = self._draw(self._start + position)
            self._fresh = self._skip_taken(position + self._shard[1])
        else:
            return None
        lease = Lease(self.next_serial, self._start + position, params)
        self.next_serial += 1
        self._leased[position] = (life, lease)
        self._holding[life] = self.holding(life) + 1
        return lease

    @property
    def may_lease(self) -> bool:
        """Whether `lease` would give one."""
        return bool(self._returned) or (self._occupied() < self._places and self._owned(self._fresh))

    def holding(self, life: Life) -> int:
        """How many leases this life has."""
        return self._holding.get(life, 0)

    def held(self, life: Life) -> list[Lease[Params]]:
        """The leases of this life, oldest first."""
        return sorted((lease for owner, lease in self._leased.values() if owner == life), key=lambda own: own.serial)

    def give_back(self, life: Life) -> int:
        """This life is over: its leases go out again before any fresh index. Returns how many."""
        held = self.held(life)
        for lease in held:
            position = lease.index - self._start
            del self._leased[position]
            heapq.heappush(self._returned, (position, lease.params))
        self._holding.pop(life, None)
        return len(held)

    def skip(self, index: int) -> int | None:
        """Give up an index that was given back, or failed. `ordered`: the index whose turn is next, else None."""
        position = index - self._start
        self._failed.discard(position)
        self._returned = [entry for entry in self._returned if entry[0] != position]
        heapq.heapify(self._returned)
        self.skipped += 1
        self._settle(position)
        if self._ordered and position == self._release:
            return self.left(index)
        return None

    # -- frames ----------------------------------------------------------------------------------------------

    def holds(self, index: int, serial: int, life: Life) -> bool:
        """Whether this life has this very lease now."""
        owner, lease = self._leased.get(index - self._start, (None, None))
        return lease is not None and owner == life and lease.serial == serial

    def arrive(self, index: int, serial: int, life: Life) -> Lease[Params] | None:
        """A frame came. Its lease if it counts; None if this life does not hold this lease now: drop it, it is counted."""
        position = index - self._start
        if not self.holds(index, serial, life):
            self.stale += 1
            # Its serial is of this pass and its index has arrived before: the same sample was sent twice.
            if serial >= self.first_serial and (position in self._arrived or self._taken(position)):
                self.duplicates += 1
            return None
        _, lease = self._leased.pop(position)
        self._holding[life] -= 1
        self._arrived.add(position)
        return lease

    def fail(self, index: int, serial: int, life: Life) -> bool:
        """Its sample could not be made: whether the answer counts. The index keeps its place, and is not leased again."""
        if not self.holds(index, serial, life):
            return False
        position = index - self._start
        del self._leased[position]
        self._holding[life] -= 1
        self._failed.add(position)
        return True

    def may_leave(self, index: int) -> bool:
        """Whether this arrived frame is the consumer's turn: always, unless `ordered` and an earlier one is missing."""
        return not self._ordered or index - self._start == self._release

    def left(self, index: int) -> int | None:
        """This arrived frame was let out to the consumer. `ordered`: the index whose turn is next, else None."""
        if not self._ordered:
            return None
        self._release = self._skip_taken(index - self._start + self._shard[1])
        return self._start + self._release

    def take(self, index: int) -> None:
        """The consumer has this frame: it is delivered, and its place is free."""
        position = index - self._start
        self._arrived.remove(position)
        self.delivered += 1
        self._settle(position)

    def _settle(self, position: int) -> None:
        self._above.add(position)
        while self._watermark in self._above:
            self._above.remove(self._watermark)
            self._watermark += self._shard[1]

    # -- state -----------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Every index of a finite stream has been taken."""
        return not self._occupied() and not self._owned(self._fresh)

    @property
    def complete(self) -> bool:
        """Every index of a finite stream has arrived."""
        return not (self._leased or self._returned or self._failed) and not self._owned(self._fresh)

    @property
    def rendering(self) -> int:
        """Indices leased, or waiting to be leased again."""
        return len(self._leased) + len(self._returned)

    @property
    def waiting(self) -> int:
        """Indices arrived and not taken."""
        return len(self._arrived)

    def state_dict(self) -> dict[str, Any]:
        """The indices taken so far, as JSON would have it: all own ones below `watermark`, and those in `above`."""
        return {
            "start": self._start,
            "length": self._length,
            "shard": list(self._shard),
            "watermark": self._start + self._watermark,
            "above": sorted(self._start + position for position in self._above),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was saved. Only before the first lease.

        Raises:
            ConfigError: the state is of a stream with another start, length or shard, or no state at all.
        """
        own = self.state_dict()
        if not isinstance(state, Mapping):
            raise ConfigError(f"not a saved state: {state!r}")
        for name in ("start", "length", "shard"):
            if state.get(name) != own[name]:
                raise ConfigError(f"the saved state has {name}={state.get(name)!r}, this stream has {own[name]!r}")
        try:
            watermark = int(state["watermark"]) - self._start
            above = {int(index) - self._start for index in state["above"]}
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"not a saved state: {state!r}") from error
        k, n = self._shard
        if any(position < k or (position - k) % n or not self._owned(position) for position in above) or (
            watermark < k or (watermark - k) % n or any(position < watermark for position in above)
        ):
            raise ConfigError(f"not a saved state of this shard: {state!r}")
        self._watermark, self._above = watermark, above
        self._fresh = self._release = self._skip_taken(self._watermark)

    def leave_out(self, indices: Iterable[int]) -> None:
        """Go on without these, which were taken elsewhere; those that are not our own do not matter. Only before the
        first lease.
        """
        k, n = self._shard
        for position in (index - self._start for index in indices):
            if position >= k and (position - k) % n == 0 and self._owned(position) and not self._taken(position):
                self._settle(position)
        self._fresh = self._release = self._skip_taken(self._watermark)

    # -- helpers ---------------------------------------------------------------------------------------------

    def _occupied(self) -> int:
        return len(self._leased) + len(self._returned) + len(self._arrived) + len(self._failed)

    def _owned(self, position: int) -> bool:
        return self._length is None or position < self._length

    def _taken(self, position: int) -> bool:
        below = position in range(self._shard[0], self._watermark, self._shard[1])
        return below or position in self._above

    def _skip_taken(self, position: int) -> int:
        while position in self._above:
            position += self._shard[1]
        return position
