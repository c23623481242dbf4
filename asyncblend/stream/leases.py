"""LeaseBook: which positions of a sequence of indices are leased, arrived and consumed. Pure: no I/O, no clock.

A position goes through
    fresh -> leased -> arrived -> consumed
and back from leased to returned when its lease is given up. A leased, returned or failed position occupies one of
`slots`, and so does each frame that has arrived; a slot is free again when the consumer has taken the frame. Everything
else follows from this: bounded memory, backpressure (no slot, no lease), no loss (a returned position is leased again
before any fresh one) and no repetition (a frame arrives once).

An episode is a position with several frames, its steps. Its lease lasts until the last one, and each step after the
first must be granted a slot of its own. Free slots go to open episodes before fresh positions, and to the lowest
position first: so that, in order or not, the episode that the consumer waits for is never held up by a later one.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ..errors import ConfigError

Params = TypeVar("Params")

_AHEAD = 2  # steps that are granted before they are needed, so that Blender waits for no message


@dataclass(slots=True)  # not frozen, which takes thrice as long to make
class Lease(Generic[Params]):
    """Permission to render one index. Held by one life at a time."""

    serial: int  # Number of this lease; one book never uses it twice
    position: int  # Place in the sequence of indices
    index: int  # The sample's index
    params: Params  # Drawn at the index's first lease. A lease that replaces a crashed one has the same


class _Steps:
    """How far the frames of a begun position are. Each count is of steps, from the first one on."""

    __slots__ = ("arrived", "consumed", "granted", "over", "released")

    def __init__(self) -> None:
        self.granted = 1  # have a slot, or had one
        self.arrived = 0
        self.released = 0  # were given to the consumer's queue
        self.consumed = 0
        self.over = False  # no more will arrive

    @property
    def awaited(self) -> int:
        """The number of slots that it occupies for steps that have not arrived."""
        return self.granted - self.arrived


class LeaseBook(Generic[Params]):
    """Leases the indices of a sequence, each until its last frame is consumed.

    Args:
        indices: The sequence. An index that occurs twice is two samples.
        draw: Returns the params of an index at the moment of its lease. If it raises, the index is leased again later,
            unless `stop_drawing` is called.
        slots: How many may be occupied at once.
        ordered: Whether arrived frames are released in the sequence's order only.
        on_demand: Whether the steps of an episode after the first are granted only when `ask` is called.
    """

    def __init__(
        self,
        indices: Sequence[int],
        draw: Callable[[int], Params],
        *,
        slots: int,
        ordered: bool = False,
        on_demand: bool = False,
    ) -> None:
        self.slots = slots
        self.occupied: int = 0  # The number of occupied slots
        self.delivered: int = 0  # Frames consumed
        self.skipped: int = 0  # Samples given up
        self._indices, self._count, self._draw = indices, len(indices), draw
        self._ordered, self._on_demand = ordered, on_demand
        self._next_serial = 0
        self._fresh = 0  # the next position that was never leased
        self._steps: dict[int, _Steps] = {}  # of positions that were leased and are not settled
        self._leased: set[int] = set()
        self._returned: list[int] = []  # a heap of positions that have a slot
        self._orphans: set[int] = set()  # begun episodes that nobody holds and that have no slot
        self._hungry: set[int] = set()  # begun episodes that want a slot
        self._failed: set[int] = set()
        self._params: dict[int, Params] = {}  # of every position that was drawn and is not settled
        self._undrawn: set[int] = set()  # positions that are passed over, as there are no params for them
        self._queued = 0
        self._release = 0  # the next position to release, when ordered
        self._watermark = 0  # every position below it is consumed
        self._above: set[int] = set()  # consumed positions above the watermark

    # -- leasing ---------------------------------------------------------------------------------------------

    @property
    def may_lease(self) -> bool:
        """Whether `lease` would return a lease."""
        if (self._returned or self._hungry) and self.next_returned is not None:
            return True
        return self._next_hungry() is None and self.occupied < self.slots and self._fresh < self._count

    @property
    def has_returned(self) -> bool:
        """Whether a lease was given up and its index waits to be leased again."""
        return bool(self._returned or self._orphans)

    @property
    def next_returned(self) -> int | None:
        """The position that is leased next, if that was given up before."""
        position = self._returned[0] if self._returned else None
        hungry = self._next_hungry()
        if hungry is not None and hungry in self._orphans and (position is None or hungry < position):
            return hungry
        return position

    @property
    def next_position(self) -> int:
        """The position that is leased next, if there is a slot and a position for it."""
        returned = self.next_returned
        return self._fresh if returned is None else returned

    @property
    def next_is_drawn(self) -> bool:
        """Whether the position that is leased next has its params already."""
        return self.next_position in self._params

    @property
    def granted(self) -> int:
        """The number of leases so far."""
        return self._next_serial

    def lease(self) -> Lease[Params] | None:
        """Lease the lowest returned position, else the next fresh one. Return None without a slot or a position."""
        if not self.may_lease:
            return None
        if (returned := self.next_returned) is None:
            position = self._fresh
            self._fresh = self._first_fresh(position + 1)
            self._steps[position] = _Steps()
            self.occupied += 1
        elif (position := returned) in self._orphans:
            self._orphans.remove(position)
            self._grant(position)
            self._hungry.discard(position)  # until a step of it arrives
        else:
            heapq.heappop(self._returned)
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

    def first_step(self, lease: Lease[Params]) -> int:
        """Return the first step of a lease that has not arrived. The ones before it need not be sent again."""
        return self._steps[lease.position].arrived

    def allowed(self, lease: Lease[Params]) -> int:
        """Return how many steps of a lease may be made, those before `first_step` included."""
        return self._steps[lease.position].granted

    def expected(self, lease: Lease[Params]) -> tuple[int, int]:
        """Return the step of a lease that comes next, and how many may be made: `first_step` and `allowed`."""
        steps = self._steps[lease.position]
        return steps.arrived, steps.granted

    def awaits(self, lease: Lease[Params]) -> bool:
        """Whether a step of a lease is granted and has not arrived."""
        return self._steps[lease.position].awaited > 0

    def grant(self) -> int | None:
        """Give a free slot to the lowest position that wants one for its next step. Return the position.

        None: there is no free slot, or none such; or the lowest one must be leased first.
        """
        position = self._next_hungry()
        if position is None or position in self._orphans:
            return None
        self._grant(position)
        return position

    def ask(self, position: int) -> None:
        """Want the next step of an episode whose steps are made on demand. It is granted when there is a slot."""
        if position in self._steps:
            self._hungry.add(position)

    def give_back(self, lease: Lease[Params]) -> None:
        """Take back a lease whose Blender crashed: its index is leased again first, with the same params."""
        self._return(lease.position)

    def flush(self, leases: Sequence[Lease[Params]]) -> int:
        """Take back these leases and draw new params for them, and for all that were given back or restored before.

        Episodes of which a frame has arrived keep theirs.

        Returns:
            The number of samples that will get new params.
        """
        for lease in leases:
            self._return(lease.position)
        unbegun = [position for position in self._returned if not self._steps[position].arrived]
        for position in (*unbegun, *(one for one in self._params if one >= self._fresh and one not in self._steps)):
            self._params.pop(position, None)
        return len(unbegun)

    def stop_drawing(self, *, failed: bool = True) -> None:
        """Lease only what has params already.

        Args:
            failed: Whether the other samples that were begun count as failed. Otherwise they are passed over, as if the
                sequence had ended before them.
        """
        undrawn = {position for position in (*self._returned, *self._orphans) if position not in self._params}
        self._returned = sorted(set(self._returned) - undrawn)  # a sorted list is a heap
        self._orphans -= undrawn
        self._hungry -= undrawn
        if failed:
            self._failed |= undrawn
        else:
            self._undrawn |= undrawn
            for position in undrawn:
                self._keep_slots(self._steps.pop(position), 0)
        self._count = max(self._fresh, max(self._params, default=-1) + 1)  # what was restored has params
        self._undrawn.update(
            one for one in range(self._fresh, self._count) if one not in self._params and one not in self._steps
        )
        self._fresh = self._first_fresh(self._fresh)

    def _next_hungry(self) -> int | None:
        """Return the begun episode that gets the next free slot. None: there is no free slot, or a fresh position gets it."""
        if not self._hungry or self.occupied >= self.slots:
            return None
        position = min(self._hungry)
        # A state of a pass that was not ordered may have begun it before positions that the consumer gets first now.
        return None if self._ordered and self._fresh < min(position, self._count) else position

    def _grant(self, position: int) -> None:
        steps = self._steps[position]
        steps.granted += 1
        self.occupied += 1
        if self._on_demand or steps.awaited >= _AHEAD:
            self._hungry.discard(position)

    def _return(self, position: int) -> None:
        """Take back a lease, and the slots of its steps but one."""
        self._leased.remove(position)
        steps = self._steps[position]
        if steps.awaited:
            self._hungry.discard(position)
            self._keep_slots(steps, 1)
            heapq.heappush(self._returned, position)
        else:
            self._orphans.add(position)
            if not self._on_demand:
                self._hungry.add(position)

    def _keep_slots(self, steps: _Steps, count: int) -> None:
        self.occupied -= steps.awaited - count
        steps.granted = steps.arrived + count

    def advance(self, lease: Lease[Params], made: int, *, first_consumed: bool, asked: bool) -> None:
        """Note steps of an episode on demand that went past this book, after one that has arrived.

        Args:
            made: So many have arrived and were consumed.
            first_consumed: Whether the one that had arrived was consumed.
            asked: Whether one more was granted.
        """
        steps = self._steps[lease.position]
        consumed = made + first_consumed
        steps.granted += made + asked
        steps.arrived += made
        steps.released += made
        steps.consumed += consumed
        self.delivered += consumed
        self._queued += made - consumed
        self.occupied += made + asked - consumed

    # -- frames ----------------------------------------------------------------------------------------------

    def arrive(self, lease: Lease[Params], *, last: bool = True) -> None:
        """Note that the next frame of a lease came, and whether it is the last one."""
        position = lease.position
        steps = self._steps[position]
        steps.arrived += 1
        self._queued += 1
        if last:
            self._leased.remove(position)
            self._end(position)
        elif not self._on_demand and steps.awaited < _AHEAD:
            self._hungry.add(position)

    def fail(self, lease: Lease[Params]) -> None:
        """Note that the sample of a lease raised. It keeps its slot and is not leased again; `skip` gives it up."""
        self._leased.remove(lease.position)
        self._hungry.discard(lease.position)
        self._failed.add(lease.position)

    def skip(self, position: int) -> None:
        """Give up a position that was given back or has failed. What has arrived of it stays."""
        self._failed.discard(position)
        self._orphans.discard(position)
        if position in self._returned:
            self._returned.remove(position)
            heapq.heapify(self._returned)
        self.skipped += 1
        self._end(position)

    def finish(self, lease: Lease[Params]) -> None:
        """Note that no more frames of an episode will come."""
        self._leased.remove(lease.position)
        self._end(lease.position)

    def release(self, frames: Mapping[int, object]) -> int | None:
        """Return the position among these, of which frames have arrived, whose next frame goes to the consumer now.

        None: there is none.
        """
        if not self._ordered:
            position = next(iter(frames), None)
        else:
            position = self._release = self._first_unreleased(self._release)
        if position not in frames or position is None:
            return None
        self._steps[position].released += 1
        return position

    def consume(self, position: int) -> None:
        """Note that the consumer has the next frame of this position: its slot is free."""
        self._steps[position].consumed += 1
        self._queued -= 1
        self.delivered += 1
        self.occupied -= 1
        self._settle_if_over(position)

    def _end(self, position: int) -> None:
        """Expect no more steps of a position."""
        steps = self._steps[position]
        steps.over = True
        self._hungry.discard(position)
        if steps.granted > steps.arrived:
            self._keep_slots(steps, 0)
        self._settle_if_over(position)

    def _settle_if_over(self, position: int) -> None:
        steps = self._steps[position]
        if not steps.over or steps.consumed < steps.arrived:
            return
        del self._steps[position]
        self._params.pop(position, None)
        self._above.add(position)
        while self._watermark in self._above:
            self._above.remove(self._watermark)
            self._watermark += 1

    def _first_fresh(self, position: int) -> int:
        position = max(position, self._watermark)
        while position in self._above or position in self._undrawn or position in self._steps:
            position += 1
        return position

    def _first_unreleased(self, position: int) -> int:
        position = max(position, self._watermark)
        while (position in self._above or position in self._undrawn) or (
            (steps := self._steps.get(position)) is not None and steps.over and steps.released == steps.arrived
        ):
            position += 1
        return position

    # -- state -----------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether every position has been consumed or skipped."""
        return self._fresh >= self._count and not self._steps

    @property
    def complete(self) -> bool:
        """Whether every position has arrived, or was skipped."""
        return self._fresh >= self._count and not (self.unfinished or self._failed)

    @property
    def unfinished(self) -> bool:
        """Whether a position is leased, or waits to be leased again."""
        return bool(self._leased or self._returned or self._orphans)

    @property
    def rendering(self) -> int:
        """Slots of frames that are rendering, or will be rendered again."""
        return self.occupied - self._queued - sum(self._steps[position].awaited for position in self._failed)

    @property
    def queued(self) -> int:
        """Frames that have arrived and are not consumed."""
        return self._queued

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

    def state_dict(self, withheld: Mapping[int, int] | None = None) -> dict[str, Any]:
        """Return what was consumed, as plain data: all positions below `watermark`, those in `above`, and some steps.

        `steps` has, by position, how many frames of a begun episode were consumed; it is left out if there are none.

        Args:
            withheld: Positions of which only so many steps are to count as consumed.
        """
        withheld = withheld or {}
        consumed = {**{one: own.consumed for one, own in self._steps.items()}, **withheld}
        steps = {str(one): count for one, count in sorted(consumed.items()) if count}
        watermark, above = min((self._watermark, *withheld)), self._above
        if withheld:
            above = above.union(range(watermark, self._watermark)).difference(withheld)
        return {"watermark": watermark, "above": sorted(above)} | ({"steps": steps} if steps else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Exclude what was consumed when `state` was saved. Only before the first lease.

        Raises:
            ConfigError: It is no state, or not one of a sequence of this length.
        """
        try:
            watermark, above = state["watermark"], set(state["above"])
            steps = {int(position): count for position, count in state.get("steps", {}).items()}
            good = all(type(number) is int for number in (watermark, *above, *steps.values()))
        except (KeyError, TypeError, ValueError, AttributeError):
            good = False
        if good:
            good = 0 <= watermark <= self._count and all(watermark < position < self._count for position in above)
        if good:
            open_ones = range(watermark, self._count)
            good = all(
                position in open_ones and position not in above and count > 0 for position, count in steps.items()
            )
        if not good:
            raise ConfigError(f"not a saved state of these {self._count} indices: {state!r:.200}")
        self._watermark, self._above = watermark, above
        for position, count in steps.items():
            own = self._steps[position] = _Steps()
            own.granted = own.arrived = own.released = own.consumed = count
            self._orphans.add(position)
            self._hungry.add(position)
        self._fresh = self._first_fresh(watermark)
        self._release = self._first_unreleased(watermark)
