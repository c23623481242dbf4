"""LeaseBook: each of its promises by itself. `test_leases_in_any_order` holds them together."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from asyncblend.config import StreamConfig
from asyncblend.errors import ConfigError
from asyncblend.stream.indices import own_indices
from asyncblend.stream.leases import Lease, LeaseBook

Book = LeaseBook[str]
ENDLESS = range(sys.maxsize)


class Draws:
    """Draws new params at each call, and remembers for which indices it was called."""

    def __init__(self) -> None:
        self.indices: list[int] = []
        self.error: Exception | None = None

    def __call__(self, index: int) -> str:
        if self.error is not None:
            raise self.error
        self.indices.append(index)
        return f"draw {len(self.indices)}"


def book_of(indices: Sequence[int] = ENDLESS, *, slots: int = 4, ordered: bool = False) -> Book:
    return LeaseBook(indices, Draws(), slots=slots, ordered=ordered)


def leased(book: Book, count: int | None = None) -> list[Lease[str]]:
    """Return so many leases, or all that there are."""
    leases: list[Lease[str]] = []
    while count is None or len(leases) < count:
        expected = book.may_lease
        lease = book.lease()
        assert (lease is not None) == expected
        if lease is None:
            assert count is None, "no lease"
            break
        leases.append(lease)
    return leases


def arrive(book: Book, *leases: Lease[str]) -> None:
    for lease in leases:
        book.arrive(lease)


def deliver(book: Book, count: int | None = None) -> list[int]:
    """Lease one position after another, and take each frame at once. Return the indices."""
    indices: list[int] = []
    while count is None or len(indices) < count:
        if (lease := book.lease()) is None:
            assert count is None, "no lease"
            break
        book.arrive(lease)
        assert book.release({lease.position: None}) == lease.position
        book.consume(lease.position)
        indices.append(lease.index)
    return indices


def counts_of(book: Book) -> tuple[Any, ...]:
    """Return all that can be seen of a book."""
    counts = (book.occupied, book.rendering, book.queued, book.delivered, book.skipped)
    return counts, (book.may_lease, book.has_returned, book.done, book.complete), book.state_dict()


# -- leasing -----------------------------------------------------------------------------------------------------


def test_fresh_indices_are_leased_in_order() -> None:
    """Each lease has the next index of the sequence, its params, and a serial of its own."""
    assert leased(book_of([7, 3, 7]), 3) == [
        Lease(0, 0, 7, "draw 1"),
        Lease(1, 1, 3, "draw 2"),
        Lease(2, 2, 7, "draw 3"),
    ]


def test_without_a_free_slot_there_is_no_lease() -> None:
    """A slot is occupied from the lease until the consumer has the frame, not only until it arrives."""
    book = book_of(slots=2)
    first, second = leased(book)
    arrive(book, first)
    assert book.lease() is None
    assert (book.rendering, book.queued, book.occupied) == (1, 1, 2)
    book.consume(first.position)
    assert [lease.index for lease in leased(book)] == [2]
    arrive(book, second)
    assert (book.rendering, book.queued, book.delivered) == (1, 1, 1)


def test_a_returned_index_is_leased_first() -> None:
    """It comes before any fresh index, the lowest first, with its first params but a new serial."""
    draws = Draws()
    book: Book = LeaseBook(range(10), draws, slots=6)
    zero, one, two, three = leased(book, 4)
    arrive(book, one)
    for lease in (two, three, zero):
        book.give_back(lease)
    assert (book.rendering, book.queued, book.has_returned) == (3, 1, True)
    again = leased(book, 4)
    assert [(lease.index, lease.params) for lease in again] == [
        (0, "draw 1"),
        (2, "draw 3"),
        (3, "draw 4"),
        (4, "draw 5"),
    ]
    assert [lease.serial for lease in again] == [4, 5, 6, 7]
    assert draws.indices == [0, 1, 2, 3, 4]
    assert not book.has_returned


def test_a_returned_index_keeps_its_slot() -> None:
    """It can be leased again though all slots are occupied, and no fresh index takes its slot."""
    book = book_of(slots=2)
    for lease in leased(book):
        book.give_back(lease)
    assert (book.occupied, book.rendering, book.may_lease) == (2, 2, True)
    assert [lease.index for lease in leased(book)] == [0, 1]


def test_params_need_not_be_comparable() -> None:
    """Returned leases are ordered by their position alone."""
    book: LeaseBook[object] = LeaseBook(range(9), lambda index: object(), slots=4)
    leases = [lease for _ in range(4) if (lease := book.lease())]
    for lease in reversed(leases):
        book.give_back(lease)
    again = [lease for _ in range(4) if (lease := book.lease())]
    assert [lease.params for lease in again] == [lease.params for lease in leases]


def test_a_flush_draws_new_params() -> None:
    """For the leases that it takes back, and for those that a crash gave back before; what has arrived stays."""
    draws = Draws()
    book: Book = LeaseBook(range(10), draws, slots=6)
    zero, one, two, three = leased(book, 4)
    arrive(book, one)
    book.give_back(two)
    assert book.flush([three]) == 2
    again = leased(book, 3)
    assert [(lease.index, lease.params) for lease in again] == [(2, "draw 5"), (3, "draw 6"), (4, "draw 7")]
    assert draws.indices == [0, 1, 2, 3, 2, 3, 4]
    book.give_back(again[0])
    assert leased(book, 1)[0].params == "draw 5"  # the new params are its first params now
    arrive(book, zero)
    assert book.queued == 2


def test_a_flush_of_nothing_changes_nothing() -> None:
    """Fresh indices have no params yet."""
    book = book_of()
    leased(book, 2)
    before = counts_of(book)
    assert book.flush([]) == 0
    assert counts_of(book) == before


def test_an_index_whose_draw_raises_is_leased_again() -> None:
    """The error comes through, no serial is lost, and the same index is drawn at the next lease."""
    draws = Draws()
    book: Book = LeaseBook(range(9), draws, slots=4)
    leased(book, 1)
    draws.error = ZeroDivisionError()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            book.lease()
    draws.error = None
    assert leased(book, 2) == [Lease(1, 1, 1, "draw 2"), Lease(2, 2, 2, "draw 3")]


# -- frames ------------------------------------------------------------------------------------------------------


def test_unordered_frames_are_released_as_they_come() -> None:
    """The first of the arrived frames goes to the consumer."""
    book = book_of()
    frames: dict[int, None] = {}
    assert book.release(frames) is None
    for lease in reversed(leased(book, 3)):
        arrive(book, lease)
        frames[lease.position] = None
    assert book.release(frames) == 2
    del frames[2]
    assert book.release(frames) == 1


def test_ordered_frames_are_released_in_the_order_of_the_sequence() -> None:
    """A frame waits for the earlier ones, whatever the indices are."""
    book = book_of([5, 1, 9], ordered=True)
    zero, one, two = leased(book, 3)
    frames: dict[int, None] = {}
    for lease in (two, one):
        arrive(book, lease)
        frames[lease.position] = None
        assert book.release(frames) is None
    arrive(book, zero)
    frames[0] = None
    assert [book.release(frames) for _ in range(3)] == [0, 1, 2]
    assert book.release({}) is None


def test_a_released_frame_keeps_its_slot_until_it_is_consumed() -> None:
    """The queue between the two is within the bound."""
    book = book_of(slots=1, ordered=True)
    (lease,) = leased(book)
    arrive(book, lease)
    assert book.release({0: None}) == 0
    assert book.lease() is None
    assert book.queued == 1
    book.consume(0)
    assert leased(book)[0].index == 1


def test_an_ordered_book_never_waits_for_a_slot() -> None:
    """All slots hold later frames when the earliest comes back: its slot is still its own."""
    book = book_of(slots=3, ordered=True)
    zero, one, two = leased(book)
    arrive(book, one, two)
    book.give_back(zero)
    (again,) = leased(book)
    assert again.position == zero.position == 0
    arrive(book, again)
    frames = dict.fromkeys((1, 2, 0))
    assert [book.release(frames) for _ in range(3)] == [0, 1, 2]


def test_a_failed_sample_keeps_its_slot_until_it_is_skipped() -> None:
    """It is not leased again; an ordered book goes on behind it once it is skipped."""
    book = book_of(slots=2, ordered=True)
    zero, one = leased(book)
    book.fail(zero)
    arrive(book, one)
    assert (book.occupied, book.rendering, book.queued) == (2, 0, 1)
    assert book.lease() is None
    assert book.release({1: None}) is None
    book.skip(0)
    assert (book.occupied, book.skipped) == (1, 1)
    assert book.release({1: None}) == 1
    assert [lease.index for lease in leased(book)] == [2]
    assert book.state_dict() == {"watermark": 1, "above": []}


def test_a_returned_sample_can_be_skipped() -> None:
    """Neither it nor its params come again; the others are still leased lowest first."""
    book = book_of(slots=8)
    leases = leased(book)
    for position in (0, 5, 1, 6, 7, 2, 3, 4):
        book.give_back(leases[position])
    book.skip(0)
    book.skip(3)
    assert [lease.index for lease in leased(book)] == [1, 2, 4, 5, 6, 7, 8, 9]
    assert (book.skipped, book.delivered) == (2, 0)


def test_an_index_that_occurs_twice_is_two_samples() -> None:
    """Each has params of its own, and is delivered, given back and skipped for itself."""
    book = book_of([3, 3, 3], ordered=True)
    one, two, three = leased(book)
    assert len({one.params, two.params, three.params}) == 3
    book.give_back(two)
    book.fail(one)
    book.skip(0)
    (again,) = leased(book)
    assert (again.position, again.params) == (1, two.params)
    arrive(book, three, again)
    frames = dict.fromkeys((2, 1))
    assert [book.release(frames) for _ in range(2)] == [1, 2]


# -- ends and shards ---------------------------------------------------------------------------------------------


def test_a_finite_book_is_done_when_all_is_consumed() -> None:
    """It is complete when all has arrived, and done when all is consumed; not when all is leased."""
    book = book_of(range(3))
    zero, one, two = leased(book)
    assert not book.complete
    arrive(book, zero, one)
    book.fail(two)
    assert not book.complete
    book.skip(2)
    assert (book.complete, book.done) == (True, False)
    book.consume(1)
    assert not book.done
    book.consume(0)
    assert book.done
    assert book.lease() is None


def test_a_returned_last_index_is_not_the_end() -> None:
    """The book is done only after the index is rendered by another Blender."""
    book = book_of([8])
    book.give_back(leased(book)[0])
    assert not book.complete
    assert deliver(book) == [8]
    assert book.done


def test_an_empty_book_is_done_at_once() -> None:
    """So is one whose positions have all been consumed before."""
    empty: list[Sequence[int]] = [[], range(0), range(5, 5), range(9, 2)]
    for indices in empty:
        book = book_of(indices)
        assert book.done
        assert book.complete
        assert book.lease() is None
    book = book_of(range(3))
    book.load_state_dict({"watermark": 3, "above": []})
    assert book.done


def test_the_indices_of_an_endless_range_need_no_memory() -> None:
    """A range up to 2**63 is leased, saved and resumed as a short one, from any start and with any step."""
    for indices in (ENDLESS, range(5, sys.maxsize, 3), range(sys.maxsize - 2, -1, -7)):
        book = book_of(indices)
        assert not book.done
        assert deliver(book, 3) == list(indices[:3])
        assert not book.complete
        book = book_of(indices, ordered=True)
        last = len(indices) - 1
        book.load_state_dict({"watermark": last - 2, "above": [last - 1]})
        assert deliver(book) == [indices[last - 2], indices[last]]
        assert book.done
        assert book.state_dict() == {"watermark": len(indices), "above": []}


def test_shards_partition_the_indices() -> None:
    """Each index of a stream belongs to exactly one shard."""
    for start, length, count in itertools.product((0, 1000), (0, 1, 5, 6, 7, 12), (1, 2, 3, 8)):
        shares: list[list[int]] = []
        for k in range(count):
            config = StreamConfig(script="scene.py", start=start, length=length, shard=(k, count))
            shares.append(deliver(book_of(own_indices(config))))
            assert shares[-1] == list(range(start + k, start + length, count))
        assert sorted(itertools.chain(*shares)) == list(range(start, start + length))


# -- state -------------------------------------------------------------------------------------------------------


def test_the_state_is_what_was_consumed() -> None:
    """A watermark and the positions above it; leased and arrived positions are not in it."""
    book = book_of(range(100, 150), slots=10)
    leases = leased(book, 5)
    arrive(book, *leases[1:])
    book.consume(2)
    book.consume(3)
    assert book.state_dict() == {"watermark": 0, "above": [2, 3]}
    arrive(book, leases[0])
    book.consume(0)
    assert book.state_dict() == {"watermark": 1, "above": [2, 3]}
    book.consume(1)
    assert book.state_dict() == {"watermark": 4, "above": []}


def test_the_state_is_a_snapshot_of_plain_data() -> None:
    """JSON takes it and gives it back the same; the book going on does not change it."""
    book = book_of(range(9))
    deliver(book, 3)
    state = book.state_dict()
    text = json.dumps(state)
    deliver(book, 3)
    assert json.dumps(state) == text
    assert json.loads(text) == state


def test_a_loaded_book_goes_on_where_the_state_was_saved() -> None:
    """The positions above the watermark do not come again, and are not counted as delivered."""
    for ordered in (False, True):
        book = book_of(range(10, 16), ordered=ordered)
        book.load_state_dict({"watermark": 1, "above": [2, 4]})
        assert book.delivered == 0
        assert deliver(book) == [11, 13, 15]
        assert (book.delivered, book.done) == (3, True)
        assert book.state_dict() == {"watermark": 6, "above": []}


def test_an_ordered_book_passes_over_what_was_consumed_before() -> None:
    """An earlier, unordered run may have delivered later positions: the order has gaps there."""
    book = book_of(range(8), ordered=True)
    book.load_state_dict({"watermark": 0, "above": [1, 2, 4]})
    arrive(book, *leased(book))
    frames = dict.fromkeys((3, 5, 0))
    assert [book.release(frames) for _ in range(3)] == [0, 3, 5]


def test_an_ordered_book_begins_what_comes_before_a_begun_episode() -> None:
    """An earlier, unordered run may have begun a later episode: it takes no slot that the next position needs."""
    book = book_of(range(3), slots=2, ordered=True)
    book.load_state_dict({"watermark": 0, "above": [], "steps": {"2": 4}})
    first, second = leased(book)
    assert (first.position, second.position) == (0, 1)
    assert book.grant() is None
    arrive(book, first, second)
    frames = dict.fromkeys((0, 1))
    for position in (0, 1):
        assert book.release(frames) == position
        book.consume(position)
    (third,) = leased(book)
    assert (third.position, book.first_step(third)) == (2, 4)
    arrive(book, third)
    assert book.release({2: None}) == 2
    book.consume(2)
    assert book.done


def test_a_flush_leaves_a_begun_episode_its_params() -> None:
    """Also one that a state says is begun, above positions that are not."""
    book = book_of(range(6))
    book.load_state_dict({"watermark": 0, "above": [], "steps": {"4": 2}})
    book.restore({2: "saved", 4: "saved"})
    book.flush([])
    assert book.drawn == {4: "saved"}


def test_a_broken_state_is_refused() -> None:
    """Whatever is wrong with it is a ConfigError that shows it, and the book is unchanged."""
    good = {"watermark": 2, "above": [4]}
    wrong: list[dict[str, Any]] = [
        *({"watermark": value} for value in (None, "x", -1, 7, 2.0, True, 4, 5)),
        *({"above": value} for value in (None, ["x"], 3, [2], [1], [6], [-1], [4.0], [[4]], [True])),
        {"watermark": ...},
        {"above": ...},
    ]
    for change in wrong:
        book = book_of(range(6))
        before = counts_of(book)
        state = {name: value for name, value in {**good, **change}.items() if value is not ...}
        with pytest.raises(ConfigError, match="not a saved state of these 6 indices") as caught:
            book.load_state_dict(state)
        assert repr(state) in str(caught.value)
        assert counts_of(book) == before
        assert deliver(book) == list(range(6))
