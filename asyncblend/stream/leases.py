"""LeaseBook: which positions of a sequence of indices are leased, arrived and consumed. Pure: no I/O, no clock.

A position goes through
    fresh -> leased -> arrived -> consumed
and back from leased to returned when its lease is given up. Leased, returned, arrived and failed positions each occupy
one of `slots`; a slot is free again when the consumer has taken the frame. Everything else follows from this: bounded
memory, backpressure (no slot, no lease), no loss (a returned position is leased again before any fresh one) and no
repetition (a position arrives once).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ..errors import ConfigError

Params = TypeVar("Params")


@dataclass(frozen=True, slots=True)
class Lease(Generic[Params]):
    """Permission to render one index. Held by one life at a time."""

    serial: int  # Number of this lease; one book never uses it twice
    position: int  # Place in the sequence of indices
    index: int  # The sample's index
    params: Params  # Drawn at the index's first lease. A lease that replaces a crashed one has the same


class LeaseBook(Generic[Params]):
    """Leases the indices of a sequence, each until its frame is consumed.

    Args:
        indices: The sequence. An index that occurs twice is two samples.
        draw: Returns the params of an index at the moment of its lease. If it raises, the index is leased again later,
            unless `stop_drawing` is called.
        slots: How many positions may be leased, returned, arrived or failed at once.
        ordered: Whether arrived frames are released in the sequence's order only.
    """

    def __init__(
        self, indices: Sequence[int], draw: Callable[[int], Params], *, slots: int, ordered: bool = False
    ) -> None:
        self.slots = slots
        self.occupied = 0  # The number of occupied slots
        self.delivered = 0  # Frames consumed
        self.skipped = 0  # Samples given up
        self._indices, self._count, self._draw, self._ordered = indices, len(indices), draw, ordered
        self._next_serial = 0
        self._fresh = 0  # the next position that was never leased
        self._returned: list[int] = []  # a heap of positions
        self._params: dict[int, Params] = {}  # of every position that was drawn and is not settled
        self._undrawn: set[int] = set()  # positions that are passed over, as there are no params for them
        self._leased: set[int] = set()
        self._arrived: set[int] = set()
        self._failed: set[int] = set()
        self._release = 0  # the next position to release, when ordered
        self._watermark = 0  # every position below it is consumed
        self._above: set[int] = set()  # consumed positions above the watermark

    # -- leasing ---------------------------------------------------------------------------------------------

    @property
    def may_lease(self) -> bool:
        """Whether `lease` would return a lease."""
        return bool(self._returned) or (self._fresh < self._count and self.occupied < self.slots)

    @property
    def has_returned(self) -> bool:
        """Whether a lease was given up and its index waits to be leased again."""
        return bool(self._returned)

    @property
    def next_returned(self) -> int | None:
        """The position that is leased next, if that was given up before."""
        return self._returned[0] if self._returned else None

    @property
    def next_is_drawn(self) -> bool:
        """Whether the position that is leased next has its params already."""
        return (self._returned[0] if self._returned else self._fresh) in self._params

    @property
    def granted(self) -> int:
        """The number of leases so far."""
        return self._next_serial

    def lease(self) -> Lease[Params] | None:
        """Lease the lowest returned position, else the next fresh one. Return None without a slot or a position."""
        if not self.may_lease:
            return None
        if self._returned:
            position = heapq.heappop(self._returned)
        else:
            position = self._fresh
            self._fresh = self._first_unconsumed(position + 1)
            self.occupied += 1
        index = self._indices[position]
        self._leased.add(position)  # before `draw`, which is the user's code and may come back here
        try:
            if position not in self._params:
                self._params[position] = self._draw(index)
        except BaseException:
            self._return(position)
            raise
        lease = Lease(self._next_serial, position, index, self._params[position])
        self._next_serial += 1
        return lease

    def give_back(self, lease: Lease[Params]) -> None:
        """Take back a lease whose Blender crashed: its index is leased again first, with the same params."""
        self._return(lease.position)

    def flush(self, leases: Sequence[Lease[Params]]) -> int:
        """Take back these leases and draw new params for them, and for all that were given back or restored before.

        Returns:
            The number of samples that will get new params.
        """
        for lease in leases:
            self._return(lease.position)
        for position in (*self._returned, *(drawn for drawn in self._params if drawn >= self._fresh)):
            self._params.pop(position, None)
        return len(self._returned)

    def stop_drawing(self, *, failed: bool = True) -> None:
        """Lease only what has params already.

        Args:
            failed: Whether the other samples that were begun count as failed. Otherwise they are passed over, as if the
                sequence had ended before them.
        """
        undrawn = {position for position in self._returned if position not in self._params}
        self._returned = sorted(set(self._returned) - undrawn)  # a sorted list is a heap
        if failed:
            self._failed |= undrawn
        else:
            self._undrawn |= undrawn
            self.occupied -= len(undrawn)
        self._count = max(self._fresh, max(self._params, default=-1) + 1)  # what was restored has params
        self._undrawn.update(one for one in range(self._fresh, self._count) if one not in self._params)
        self._fresh = self._first_unconsumed(self._fresh)

    def _return(self, position: int) -> None:
        self._leased.remove(position)
        heapq.heappush(self._returned, position)

    # -- frames ----------------------------------------------------------------------------------------------

    def arrive(self, lease: Lease[Params]) -> None:
        """Note that the frame of a lease came."""
        self._leased.remove(lease.position)
        self._arrived.add(lease.position)

    def fail(self, lease: Lease[Params]) -> None:
        """Note that the sample of a lease raised. It keeps its slot and is not leased again; `skip` gives it up."""
        self._leased.remove(lease.position)
        self._failed.add(lease.position)

    def skip(self, position: int) -> None:
        """Give up a position that was given back or has failed."""
        self._failed.discard(position)
        if position in self._returned:
            self._returned.remove(position)
            heapq.heapify(self._returned)
        self.skipped += 1
        self._settle(position)

    def release(self, frames: Mapping[int, object]) -> int | None:
        """Return the position among these arrived frames that may go to the consumer now, or None."""
        if not self._ordered:
            return next(iter(frames), None)
        self._release = self._first_unconsumed(self._release)
        if self._release not in frames:
            return None
        self._release += 1
        return self._release - 1

    def consume(self, position: int) -> None:
        """Note that the consumer has this frame: its slot is free."""
        self._arrived.remove(position)
        self.delivered += 1
        self._settle(position)

    def _settle(self, position: int) -> None:
        self.occupied -= 1
        self._params.pop(position, None)
        self._above.add(position)
        while self._watermark in self._above:
            self._above.remove(self._watermark)
            self._watermark += 1

    def _first_unconsumed(self, position: int) -> int:
        position = max(position, self._watermark)
        while position in self._above or position in self._undrawn:
            position += 1
        return position

    # -- state -----------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether every position has been consumed or skipped."""
        return self._fresh >= self._count and not self.occupied

    @property
    def complete(self) -> bool:
        """Whether every position has arrived, or was skipped."""
        return self._fresh >= self._count and not (self._leased or self._returned or self._failed)

    @property
    def rendering(self) -> int:
        """Positions that are leased, or wait to be leased again."""
        return len(self._leased) + len(self._returned)

    @property
    def queued(self) -> int:
        """Positions that have arrived and are not consumed."""
        return len(self._arrived)

    @property
    def drawn(self) -> Mapping[int, Params]:
        """The params of every position that was drawn and is neither consumed nor skipped."""
        return self._params

    def restore(self, drawn: Mapping[int, Params]) -> None:
        """Let these positions be leased with params that were drawn before `state_dict`. After `load_state_dict`.

        Raises:
            ConfigError: One is no position of these indices, or is consumed.
        """
        for position in drawn:
            if not self._watermark <= position < self._count or position in self._above:
                raise ConfigError(f"the saved state has params of position {position}, which is not among the rest")
        self._params.update(drawn)

    def state_dict(self) -> dict[str, Any]:
        """Return the consumed positions as plain data: all below `watermark`, and those in `above`."""
        return {"watermark": self._watermark, "above": sorted(self._above)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Exclude the positions that were consumed when `state` was saved. Only before the first lease.

        Raises:
            ConfigError: It is no state, or not one of a sequence of this length.
        """
        try:
            watermark, above = state["watermark"], set(state["above"])
            good = all(type(position) is int for position in (watermark, *above))
        except (KeyError, TypeError):
            good = False
        if not good or not 0 <= watermark <= self._count:
            raise ConfigError(f"not a saved state of these {self._count} indices: {state!r:.200}")
        if any(not watermark < position < self._count for position in above):
            raise ConfigError(f"not a saved state of these {self._count} indices: {state!r:.200}")
        self._watermark, self._above = watermark, above
        self._fresh = self._release = self._first_unconsumed(watermark)
