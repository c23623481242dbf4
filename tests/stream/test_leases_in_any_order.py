"""LeaseBook: bounded slots, nothing lost, nothing twice, in any order of events."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from asyncblend.stream.leases import Lease, LeaseBook


class Draws:
    """Draws new params at each call, and remembers for which indices it was called."""

    def __init__(self) -> None:
        self.indices: list[int] = []
        self.fails = False

    def __call__(self, index: int) -> str:
        if self.fails:
            raise ZeroDivisionError
        self.indices.append(index)
        return f"draw {len(self.indices)}"


class AnySchedule(RuleBasedStateMachine):
    """Leases arrive, fail, are given back, flushed and skipped in any order; the run is saved and resumed."""

    @initialize(
        slots=st.integers(1, 5),
        indices=st.one_of(
            st.lists(st.integers(0, 6), max_size=12),
            st.builds(range, st.integers(0, 5), st.integers(0, 20), st.integers(1, 3)),
            st.builds(range, st.integers(0, 5), st.just(sys.maxsize), st.integers(1, 3)),
        ),
        ordered=st.booleans(),
    )
    def begin(self, slots: int, indices: Sequence[int], ordered: bool) -> None:
        self.slots, self.indices, self.ordered = slots, indices, ordered
        self.endless = len(indices) > 1000
        self.settled: list[int] = []  # positions that were consumed or skipped, ever
        self.new_book()

    def new_book(self) -> None:
        self.draws = Draws()
        self.book: LeaseBook[str] = LeaseBook(self.indices, self.draws, slots=self.slots, ordered=self.ordered)
        self.serial = -1
        self.held: dict[int, Lease[str]] = {}  # by position
        self.returned: set[int] = set()
        self.failed: set[int] = set()
        self.params: dict[int, str | None] = {}  # of positions that were leased; None: flushed
        self.early: dict[int, None] = {}  # arrived, not released yet
        self.queue: list[int] = []  # released, not consumed yet
        self.released: list[int] = []
        self.consumed = self.skipped = 0
        self.settled_before = set(self.settled)

    @property
    def occupied(self) -> int:
        return len(self.held) + len(self.returned) + len(self.failed) + len(self.early) + len(self.queue)

    def next_position(self) -> int | None:
        """Return what a lease must give now, by the documentation."""
        if self.returned:
            return min(self.returned)
        if self.occupied == self.slots:
            return None
        gone = {*self.settled, *self.params}
        return next((p for p in range(len(self.indices)) if p not in gone), None)

    @rule()
    def lease(self) -> None:
        expected = self.next_position()
        assert self.book.may_lease == (expected is not None)
        drawn = len(self.draws.indices)
        lease = self.book.lease()
        if lease is None:
            assert expected is None
            return
        assert (lease.position, lease.index) == (expected, self.indices[lease.position])
        assert lease.serial > self.serial
        if (first := self.params.get(lease.position)) is not None:
            assert lease.params == first, "a sample has new params without a flush"
        else:
            assert self.draws.indices[drawn:] == [lease.index]
            assert lease.params == f"draw {drawn + 1}"
        self.serial, self.params[lease.position] = lease.serial, lease.params
        self.returned.discard(lease.position)
        self.held[lease.position] = lease

    @rule()
    def lease_while_the_draw_fails(self) -> None:
        position = self.next_position()
        if position is None or self.params.get(position) is not None:
            return
        self.draws.fails = True
        with pytest.raises(ZeroDivisionError):
            self.book.lease()
        self.draws.fails = False
        self.params.setdefault(position, None)
        self.returned.add(position)

    def draw_held(self, data: st.DataObject) -> Lease[str]:
        return self.held.pop(data.draw(st.sampled_from(sorted(self.held))))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        self.arrived(self.draw_held(data))

    def arrived(self, lease: Lease[str]) -> None:
        self.book.arrive(lease)
        self.early[lease.position] = None
        self.release()

    def release(self) -> None:
        while (position := self.book.release(self.early)) is not None:
            del self.early[position]
            self.queue.append(position)
            self.released.append(position)
        assert self.ordered or not self.early

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        lease = self.draw_held(data)
        self.book.give_back(lease)
        self.returned.add(lease.position)

    @rule(data=st.data())
    def flush(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sets(st.sampled_from(sorted(self.held)))) if self.held else set()
        count = self.book.flush([self.held.pop(position) for position in chosen])
        self.returned |= chosen
        assert count == len(self.returned)
        self.params.update(dict.fromkeys(self.returned))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        lease = self.draw_held(data)
        self.book.fail(lease)
        self.failed.add(lease.position)

    @precondition(lambda self: self.failed | self.returned)
    @rule(data=st.data())
    def skip(self, data: st.DataObject) -> None:
        self.skipped_one(data.draw(st.sampled_from(sorted(self.failed | self.returned))))

    def skipped_one(self, position: int) -> None:
        self.book.skip(position)
        self.failed.discard(position)
        self.returned.discard(position)
        self.settled.append(position)
        self.skipped += 1
        self.release()

    @precondition(lambda self: self.queue)
    @rule()
    def consume(self) -> None:
        position = self.queue.pop(0)
        self.book.consume(position)
        self.settled.append(position)
        self.consumed += 1

    @rule(ordered=st.booleans())
    def resume(self, ordered: bool) -> None:
        """Save, and go on later in a new book, perhaps in the other order."""
        self.ordered = ordered
        state = json.loads(json.dumps(self.book.state_dict()))
        self.new_book()
        self.book.load_state_dict(state)
        assert self.book.state_dict() == state

    @invariant()
    def the_book_agrees(self) -> None:
        book = self.book
        assert book.occupied == self.occupied <= self.slots
        assert book.rendering == len(self.held) + len(self.returned)
        assert book.queued == len(self.early) + len(self.queue)
        assert book.has_returned == bool(self.returned)
        assert (book.delivered, book.skipped) == (self.consumed, self.skipped)

    @invariant()
    def nothing_comes_twice(self) -> None:
        assert len(self.settled) == len(set(self.settled))
        assert len(self.released) == len(set(self.released))
        arrived = {*self.settled, *self.early, *self.queue}
        assert self.book.complete == (len(arrived) == len(self.indices))
        assert self.book.done == (len(self.settled) == len(self.indices))

    @invariant()
    def the_order_is_kept(self) -> None:
        if self.ordered:
            assert self.released == sorted(self.released)
            gone = {*self.released, *self.settled}
            assert not self.released or gone >= set(range(self.released[-1])), "released before an earlier position"

    @invariant()
    def the_state_is_what_was_settled(self) -> None:
        state = self.book.state_dict()
        below, above = range(state["watermark"]), state["above"]
        assert sorted([*below, *above]) == sorted(self.settled)

    def teardown(self) -> None:
        """Whatever has happened, all that is left is delivered if every lease is answered from now on."""
        if not hasattr(self, "book"):
            return
        goal = len(self.settled) + 10 if self.endless else len(self.indices)
        while len(self.settled) < goal:
            for position in sorted(self.failed):
                self.skipped_one(position)
            while self.next_position() is not None:
                self.lease()
            assert self.held or self.queue or len(self.settled) >= goal, "a deadlock"
            for position in sorted(self.held, reverse=True):
                self.arrived(self.held.pop(position))
            while self.queue:
                self.consume()
            self.the_book_agrees()
            self.nothing_comes_twice()
            self.the_order_is_kept()
            self.the_state_is_what_was_settled()
        assert self.endless or sorted(self.settled) == list(range(len(self.indices)))


def test_any_schedule_keeps_the_promises() -> None:
    """Bounded slots, each position once, returned first, first params, order, resuming, and no deadlock."""
    own = settings(max_examples=3 * settings().max_examples, stateful_step_count=40)
    run_state_machine_as_test(AnySchedule, settings=own)
