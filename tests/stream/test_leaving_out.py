"""LeaseBook.leave_out: a pass without what is there already."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from asyncblend.stream.leases import LeaseBook

Book = LeaseBook[str, None]


def book_of(**options: Any) -> Book:
    return LeaseBook(lambda index: None, **{"places": 4, **options})


def rest_of(book: Book) -> list[int]:
    """What it leases until it is done, each taken at once."""
    found = []
    while (lease := book.lease("a")) is not None:
        assert book.arrive(lease.index, lease.serial, "a") is lease
        assert book.may_leave(lease.index)
        book.left(lease.index)
        book.take(lease.index)
        found.append(lease.index)
    assert book.done
    return found


SHARDS = st.integers(1, 4).flatmap(lambda n: st.tuples(st.integers(0, n - 1), st.just(n)))


@given(
    there=st.sets(st.integers(0, 60)),
    start=st.integers(0, 20),
    length=st.integers(0, 30),
    shard=SHARDS,
    ordered=st.booleans(),
)
def test_the_rest_is_leased_and_nothing_else(
    there: set[int], start: int, length: int, shard: tuple[int, int], ordered: bool
) -> None:
    """Each own index that is not there, once, in order; what is of others, or beyond the length, does not matter."""
    own = range(start, start + length)[shard[0] :: shard[1]]
    book = book_of(start=start, length=length, shard=shard, ordered=ordered)
    book.leave_out(there)
    assert rest_of(book) == [index for index in own if index not in there]
    assert book.delivered == sum(index not in there for index in own)


@given(there=st.sets(st.integers(0, 30)), start=st.integers(0, 5), shard=SHARDS)
def test_it_is_as_if_they_had_been_taken(there: set[int], start: int, shard: tuple[int, int]) -> None:
    """The state is that of a book which a saved state with them was loaded into; also of an endless stream."""
    for length in (None, 20):
        one, other = (book_of(start=start, length=length, shard=shard) for _ in range(2))
        one.leave_out(there)
        other.load_state_dict(one.state_dict())
        assert other.state_dict() == one.state_dict()
        if length is not None:
            assert rest_of(one) == rest_of(other)
