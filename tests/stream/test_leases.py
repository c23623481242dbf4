"""LeaseBook: bounded places, nothing lost, nothing twice, whoever dies whenever."""

from __future__ import annotations

import itertools
import json
from typing import Any

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

from asyncblend.errors import ConfigError
from asyncblend.stream.leases import Lease, LeaseBook

Book = LeaseBook[str, str]


def book_of(**options: Any) -> Book:
    return LeaseBook(lambda index: f"params of {index}", **{"places": 4, **options})


def leased(book: Book, life: str, count: int | None = None) -> list[Lease[str]]:
    """So many leases for this life, or all that there are."""
    leases: list[Lease[str]] = []
    while count is None or len(leases) < count:
        lease = book.lease(life)
        if lease is None:
            assert count is None, "no lease"
            break
        leases.append(lease)
    return leases


def arrive(book: Book, lease: Lease[str], life: str) -> None:
    assert book.arrive(lease.index, lease.serial, life) is lease


def let_out(book: Book, *indices: int) -> None:
    """Arrived frames leave for the consumer, as the dispatcher lets them."""
    for index in indices:
        assert book.may_leave(index)
        book.left(index)
        book.take(index)


def deliver(book: Book, count: int, life: str = "a") -> list[int]:
    """One lease after another, up to the consumer."""
    indices = []
    for _ in range(count):
        (lease,) = leased(book, life, 1)
        arrive(book, lease, life)
        let_out(book, lease.index)
        indices.append(lease.index)
    return indices


def look(book: Book) -> tuple[Any, ...]:
    """All that can be seen of a book."""
    lives = [(book.holding(life), book.held(life)) for life in "abc"]
    counts = (
        book.rendering,
        book.waiting,
        book.delivered,
        book.stale,
        book.duplicates,
        book.next_serial,
        book.done,
    )
    return *lives, counts, book.state_dict()


# -- leasing -----------------------------------------------------------------------------------------------------


def test_fresh_indices_go_out_in_order() -> None:
    """Each lease has the next index, its params, and a serial of its own."""
    assert leased(book_of(), "a", 3) == [
        Lease(0, 0, "params of 0"),
        Lease(1, 1, "params of 1"),
        Lease(2, 2, "params of 2"),
    ]


def test_no_place_no_lease() -> None:
    """A place is taken from the lease until the consumer has the frame, not only until it arrives."""
    book = book_of(places=2)
    first, second = leased(book, "a")
    assert book.lease("b") is None
    arrive(book, first, "a")
    assert book.lease("b") is None
    assert (book.rendering, book.waiting) == (1, 1)
    let_out(book, 0)
    assert [lease.index for lease in leased(book, "b")] == [2]
    arrive(book, second, "a")
    assert (book.rendering, book.waiting, book.delivered) == (1, 1, 1)


def test_a_life_holds_its_leases_until_they_arrive() -> None:
    """`holding` counts and `held` lists them, oldest first; `holds` asks for the very lease."""
    book = book_of()
    one, two = leased(book, "a", 2)
    (three,) = leased(book, "b", 1)
    assert (book.holding("a"), book.holding("b"), book.holding("c")) == (2, 1, 0)
    assert (book.held("a"), book.held("b"), book.held("c")) == ([one, two], [three], [])
    assert book.holds(one.index, one.serial, "a")
    assert not book.holds(one.index, one.serial, "b")
    assert not book.holds(one.index, two.serial, "a")
    assert not book.holds(two.index, one.serial, "a")
    assert not book.holds(99, one.serial, "a")
    arrive(book, one, "a")
    assert not book.holds(one.index, one.serial, "a")
    assert (book.holding("a"), book.held("a")) == (1, [two])


def test_held_leases_are_by_serial_not_by_index() -> None:
    """An index that came back later is held later."""
    book = book_of()
    (zero,) = leased(book, "a", 1)
    (one,) = leased(book, "b", 1)
    book.give_back("a")
    (again,) = leased(book, "b", 1)
    assert again.index == zero.index
    assert book.held("b") == [one, again]


def test_what_a_dead_life_held_goes_out_first() -> None:
    """Before any fresh index, the lowest first, with the first params but a new serial."""
    drawn: list[int] = []

    def draw(index: int) -> str:
        drawn.append(index)
        return f"draw {len(drawn)}"

    book: Book = LeaseBook(draw, places=6)
    zero, one, two, three = leased(book, "a", 4)
    assert (zero.index, three.index) == (0, 3)
    arrive(book, one, "a")
    assert book.give_back("a") == 3
    assert (book.rendering, book.waiting, book.holding("a"), book.held("a")) == (3, 1, 0, [])
    again = leased(book, "b", 4)
    assert [lease.index for lease in again] == [0, 2, 3, 4]
    assert [lease.params for lease in again] == ["draw 1", "draw 3", "draw 4", "draw 5"]
    assert [lease.serial for lease in again] == [4, 5, 6, 7]
    assert drawn == [0, 1, 2, 3, 4]
    assert (two.params, again[1].params) == ("draw 3", "draw 3")


def test_a_returned_index_keeps_its_place() -> None:
    """It can go out again though all places are taken, and no fresh index takes its place."""
    book = book_of(places=2)
    leased(book, "a")
    book.give_back("a")
    assert book.rendering == 2
    assert [lease.index for lease in leased(book, "b")] == [0, 1]


def test_params_that_cannot_be_compared_go_back() -> None:
    """Returned leases are ordered by index alone."""
    book: LeaseBook[str, object] = LeaseBook(lambda index: object(), places=4)
    for _ in range(4):
        assert book.lease("a") is not None
    book.give_back("a")
    assert [lease.index for _ in range(4) if (lease := book.lease("b"))] == [0, 1, 2, 3]


def test_giving_back_nothing_is_harmless() -> None:
    """A life that held nothing, or is over already, changes nothing."""
    book = book_of()
    leased(book, "a", 2)
    before = look(book)
    assert book.give_back("b") == 0
    assert look(book) == before
    assert book.give_back("a") == 2
    assert book.give_back("a") == 0


def test_a_draw_that_raises_changes_nothing() -> None:
    """The same index is drawn again at the next lease, and no serial is lost."""
    fails = [True]

    def draw(index: int) -> str:
        if fails[0] and index == 1:
            raise ZeroDivisionError(index)
        return f"params of {index}"

    book: Book = LeaseBook(draw, places=4)
    leased(book, "a", 1)
    before = look(book)
    with pytest.raises(ZeroDivisionError):
        book.lease("a")
    assert look(book) == before
    fails[0] = False
    assert book.lease("b") == Lease(1, 1, "params of 1")


# -- frames ------------------------------------------------------------------------------------------------------


def test_a_frame_counts_only_for_its_very_lease() -> None:
    """Of another life, with another serial, of an index never leased: dropped, counted, and nothing changes."""
    book = book_of()
    lease, _ = leased(book, "a", 2)
    before = look(book)[:3]
    for index, serial, life in [
        (0, 0, "b"),
        (0, 1, "a"),
        (0, 99, "a"),
        (1, 0, "a"),
        (7, 0, "a"),
    ]:
        assert book.arrive(index, serial, life) is None
    assert look(book)[:3] == before
    assert (book.stale, book.duplicates, book.waiting) == (5, 0, 0)
    arrive(book, lease, "a")
    assert book.stale == 5


@pytest.mark.parametrize("index", [-1, 9, 10, 12, 99, 14])
def test_a_frame_of_no_own_index_is_no_duplicate(index: int) -> None:
    """Before the start, of another shard, or beyond the end: stale only, for it never arrived."""
    book = book_of(start=10, length=4, shard=(1, 2))
    deliver(book, 2)
    assert book.arrive(index, 0, "a") is None
    assert (book.stale, book.duplicates) == (1, 0)


def test_a_frame_sent_twice_is_a_duplicate() -> None:
    """Before it is taken and after, also above the watermark; duplicates are stale ones too."""
    book = book_of()
    zero, one = leased(book, "a", 2)
    arrive(book, one, "a")
    assert book.arrive(1, one.serial, "a") is None
    assert (book.stale, book.duplicates) == (1, 1)
    let_out(book, 1)
    assert book.arrive(1, one.serial, "a") is None
    arrive(book, zero, "a")
    let_out(book, 0)
    assert book.arrive(0, zero.serial, "a") is None
    assert book.arrive(1, one.serial, "a") is None
    assert (book.stale, book.duplicates, book.delivered, book.waiting) == (4, 4, 2, 0)


def test_a_late_frame_of_a_dead_life_is_stale() -> None:
    """While its index waits, while another renders it, and once that one's frame has come (then it is a duplicate)."""
    book = book_of()
    (old,) = leased(book, "a", 1)
    book.give_back("a")
    assert book.arrive(0, old.serial, "a") is None
    (new,) = leased(book, "b", 1)
    assert book.arrive(0, old.serial, "a") is None
    assert book.arrive(0, old.serial, "b") is None
    assert (book.stale, book.duplicates) == (3, 0)
    arrive(book, new, "b")
    assert book.arrive(0, old.serial, "a") is None
    assert (book.stale, book.duplicates) == (4, 1)


def test_the_same_index_leased_again_to_the_same_life_has_another_serial() -> None:
    """The frame of the first lease does not count for the second."""
    book = book_of()
    (old,) = leased(book, "a", 1)
    book.give_back("a")
    (new,) = leased(book, "a", 1)
    assert book.arrive(0, old.serial, "a") is None
    arrive(book, new, "a")


def test_an_arrived_frame_outlives_its_sender() -> None:
    """What has arrived is not given back."""
    book = book_of()
    one, _ = leased(book, "a", 2)
    arrive(book, one, "a")
    assert book.give_back("a") == 1
    assert [lease.index for lease in leased(book, "b", 2)] == [1, 2]


def test_a_later_pass_takes_no_frame_of_an_earlier_one() -> None:
    """It goes on with the serials, so an old frame of the same index and life is stale, and no duplicate."""
    first = book_of(length=4)
    old = leased(first, "a", 3)
    second = book_of(length=4, first_serial=first.next_serial)
    assert second.first_serial == 3
    new = leased(second, "a", 2)
    assert [lease.serial for lease in new] == [3, 4]
    assert second.arrive(0, old[0].serial, "a") is None
    arrive(second, new[0], "a")
    assert second.arrive(0, old[0].serial, "a") is None
    assert (second.stale, second.duplicates) == (2, 0)
    assert second.arrive(0, new[0].serial, "a") is None
    assert (second.stale, second.duplicates) == (3, 1)


# -- order -------------------------------------------------------------------------------------------------------


def test_unordered_frames_may_leave_as_they_come() -> None:
    """Any arrived frame has its turn, and none is next."""
    book = book_of()
    for lease in reversed(leased(book, "a", 3)):
        arrive(book, lease, "a")
        assert book.may_leave(lease.index)
        assert book.left(lease.index) is None
        book.take(lease.index)


def test_ordered_frames_leave_by_index() -> None:
    """A frame waits for the earlier ones; `left` names the next one's turn."""
    book = book_of(ordered=True, start=10)
    zero, one, two = leased(book, "a", 3)
    for lease in (two, one):
        arrive(book, lease, "a")
        assert not book.may_leave(lease.index)
    arrive(book, zero, "a")
    assert book.may_leave(10)
    assert [book.left(10), book.left(11), book.left(12)] == [11, 12, 13]
    assert not book.may_leave(12)
    assert book.may_leave(13)


def test_leaving_frees_no_place() -> None:
    """Only taking does: the queue between them is within the bound."""
    book = book_of(places=1, ordered=True)
    (lease,) = leased(book, "a")
    arrive(book, lease, "a")
    assert book.left(0) == 1
    assert book.lease("a") is None
    assert book.waiting == 1
    book.take(0)
    assert leased(book, "a")[0].index == 1


def test_ordered_never_waits_for_a_place() -> None:
    """All places hold later frames, and the holder of the earliest dies: its place went with the index."""
    book = book_of(places=3, ordered=True)
    (zero,) = leased(book, "a", 1)
    for lease in leased(book, "b"):
        arrive(book, lease, "b")
    book.give_back("a")
    (again,) = leased(book, "b")
    assert again.index == zero.index == 0
    arrive(book, again, "b")
    let_out(book, 0, 1, 2)


def test_ordered_shards_step_by_their_width() -> None:
    """The next turn is the shard's next index."""
    book = book_of(ordered=True, shard=(1, 3), start=100)
    one, four = leased(book, "a", 2)
    assert (one.index, four.index) == (101, 104)
    arrive(book, four, "a")
    assert not book.may_leave(104)
    arrive(book, one, "a")
    assert [book.left(101), book.left(104)] == [104, 107]


# -- ends and shards ---------------------------------------------------------------------------------------------


def test_a_finite_stream_is_done_when_all_is_taken() -> None:
    """Not when all is leased, not when all has arrived."""
    book = book_of(length=2)
    zero, one = leased(book, "a")
    assert book.lease("a") is None
    arrive(book, zero, "a")
    arrive(book, one, "a")
    let_out(book, 1)
    assert not book.done
    let_out(book, 0)
    assert book.done
    assert book.lease("a") is None


def test_a_returned_last_index_is_not_done() -> None:
    """The stream ends only after it is rendered by another."""
    book = book_of(length=1)
    leased(book, "a")
    book.give_back("a")
    assert not book.done
    assert deliver(book, 1, "b") == [0]
    assert book.done


@pytest.mark.parametrize(("length", "shard"), [(0, (0, 1)), (0, (1, 2)), (2, (2, 3)), (2, (5, 9))])
def test_an_empty_stream_is_done_at_once(length: int, shard: tuple[int, int]) -> None:
    """Of length 0, or a shard that owns nothing."""
    book = book_of(length=length, shard=shard)
    assert book.done
    assert book.lease("a") is None


def test_an_endless_stream_is_never_done() -> None:
    """Not at its start, and not between two frames."""
    book = book_of()
    assert not book.done
    deliver(book, 3)
    assert not book.done


@pytest.mark.parametrize("start", [0, 1000])
@pytest.mark.parametrize("length", [0, 1, 5, 6, 7, 12])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_shards_partition_the_indices(count: int, length: int, start: int) -> None:
    """Each index is of exactly one shard."""
    shares: list[list[int]] = []
    for k in range(count):
        book = book_of(shard=(k, count), length=length, start=start, places=100)
        shares.append([lease.index for lease in leased(book, "a")])
        assert shares[-1] == list(range(start + k, start + length, count))
    assert sorted(itertools.chain(*shares)) == list(range(start, start + length))


# -- state -------------------------------------------------------------------------------------------------------


def test_state_is_what_was_taken() -> None:
    """A watermark, and the exceptions above it; leased and arrived frames are not in it."""
    book = book_of(start=100, length=50, places=10)
    leases = leased(book, "a", 5)
    for lease in leases[1:]:
        arrive(book, lease, "a")
    let_out(book, 102, 103)
    assert book.state_dict() == {
        "start": 100,
        "length": 50,
        "shard": [0, 1],
        "watermark": 100,
        "above": [102, 103],
    }
    arrive(book, leases[0], "a")
    let_out(book, 100)
    assert book.state_dict() == {
        "start": 100,
        "length": 50,
        "shard": [0, 1],
        "watermark": 101,
        "above": [102, 103],
    }
    let_out(book, 101)
    assert book.state_dict() == {"start": 100, "length": 50, "shard": [0, 1], "watermark": 104, "above": []}


def test_state_of_a_shard_steps_by_its_width() -> None:
    """The watermark is one of the shard's own indices."""
    book = book_of(shard=(1, 3), places=10)
    leases = leased(book, "a", 3)
    for lease in leases:
        arrive(book, lease, "a")
    let_out(book, 7)
    assert (book.state_dict()["watermark"], book.state_dict()["above"]) == (1, [7])
    let_out(book, 1, 4)
    assert (book.state_dict()["watermark"], book.state_dict()["above"]) == (10, [])


def test_state_is_a_snapshot_of_plain_data() -> None:
    """JSON takes it and gives it back the same; the book going on does not change it."""
    book = book_of(length=9)
    deliver(book, 3)
    state = book.state_dict()
    text = json.dumps(state)
    deliver(book, 3)
    assert json.dumps(state) == text
    assert json.loads(text) == state


@pytest.mark.parametrize("ordered", [False, True])
def test_a_loaded_book_goes_on_where_the_state_was_saved(ordered: bool) -> None:
    """The exceptions above the watermark do not come again, wherever they lie."""
    book = book_of(start=10, length=6)
    book.load_state_dict({"start": 10, "length": 6, "shard": [0, 1], "watermark": 11, "above": [12, 14]})
    assert [lease.index for lease in leased(book, "a")] == [11, 13, 15]
    book = book_of(start=10, length=6, ordered=ordered)
    book.load_state_dict({"start": 10, "length": 6, "shard": [0, 1], "watermark": 11, "above": [11, 12, 15]})
    assert deliver(book, 2) == [13, 14]
    assert book.done
    assert book.state_dict()["watermark"] == 16


def test_an_ordered_book_skips_what_was_taken_before() -> None:
    """The turn goes from one missing index to the next, over those that an earlier, unordered run delivered."""
    book = book_of(length=8, ordered=True)
    book.load_state_dict({"start": 0, "length": 8, "shard": [0, 1], "watermark": 0, "above": [1, 2, 4]})
    for lease in leased(book, "a"):
        arrive(book, lease, "a")
    assert [book.may_leave(index) for index in (0, 3)] == [True, False]
    assert [book.left(0), book.left(3), book.left(5)] == [3, 5, 6]


def test_loaded_frames_are_not_counted_as_delivered() -> None:
    """`delivered` is of this run."""
    book = book_of(length=6)
    book.load_state_dict({"start": 0, "length": 6, "shard": [0, 1], "watermark": 3, "above": [4]})
    assert book.delivered == 0
    assert deliver(book, 2) == [3, 5]
    assert book.delivered == 2


@pytest.mark.parametrize(
    ("name", "value"), [("start", 1), ("length", 7), ("length", None), ("shard", [1, 2]), ("shard", None)]
)
def test_a_state_of_another_stream_is_refused(name: str, value: Any) -> None:
    """The error names what differs, and both values; the book is unchanged."""
    book = book_of(length=6)
    before = look(book)
    with pytest.raises(ConfigError, match=name) as caught:
        book.load_state_dict({**book.state_dict(), "watermark": 2, name: value})
    assert repr(value) in str(caught.value)
    assert repr(book.state_dict()[name]) in str(caught.value)
    assert look(book) == before


@pytest.mark.parametrize(
    "change", [{"watermark": None}, {"watermark": "x"}, {"above": None}, {"above": ["x"]}, {"above": 3}]
)
def test_a_broken_state_is_refused(change: dict[str, Any]) -> None:
    """Whatever is wrong with it is a ConfigError."""
    book = book_of(length=6)
    with pytest.raises(ConfigError, match="not a saved state"):
        book.load_state_dict({**book.state_dict(), **change})
    for missing in ("watermark", "above", "start"):
        with pytest.raises(ConfigError):
            book.load_state_dict({k: v for k, v in book.state_dict().items() if k != missing})
    with pytest.raises(ConfigError):
        book.load_state_dict({})


# -- all of it, in any order -------------------------------------------------------------------------------------


class AnySchedule(RuleBasedStateMachine):
    """Lives take leases, send frames late or twice or never, and die; the consumer takes; the run is resumed."""

    LIVES = tuple("abcd")

    @initialize(
        places=st.integers(1, 5),
        start=st.sampled_from([0, 3]),
        length=st.one_of(st.none(), st.integers(0, 12)),
        shard=st.sampled_from([(0, 1), (0, 2), (1, 2), (2, 3)]),
        ordered=st.booleans(),
    )
    def begin(self, places: int, start: int, length: int | None, shard: tuple[int, int], ordered: bool) -> None:
        self.options: dict[str, Any] = {"places": places, "start": start, "length": length, "shard": shard}
        self.ordered = self.options["ordered"] = ordered
        self.places = places
        end = 1000 if length is None else length
        self.owned = range(start + shard[0], start + end, shard[1])
        self.endless = length is None
        self.taken: list[int] = []  # ever
        self.sent: list[tuple[int, int, str]] = []  # everything that was ever leased: (index, serial, life)
        self.serials = -1
        self.draw_fails = False
        self.new_book(first_serial=0)

    def new_book(self, first_serial: int) -> None:
        self.book: Book = LeaseBook(self.draw, first_serial=first_serial, **self.options)
        self.first_serial = first_serial
        self.holders: dict[int, tuple[int, str]] = {}  # index: (serial, life)
        self.returned: set[int] = set()
        self.params: dict[int, str] = {}
        self.early: set[int] = set()  # arrived, not let out yet
        self.queue: list[int] = []  # let out, not taken yet
        self.stale = self.duplicates = 0
        self.taken_before = len(self.taken)
        self.let_out: list[int] = []

    def draw(self, index: int) -> str:
        if self.draw_fails:
            raise ZeroDivisionError
        assert index not in self.params, "drawn twice"
        self.params[index] = f"{self.first_serial}/{index}"
        return self.params[index]

    @property
    def occupied(self) -> int:
        return len(self.holders) + len(self.returned) + len(self.early) + len(self.queue)

    def next_index(self) -> int | None:
        """What a lease must give now, by the documentation."""
        if self.returned:
            return min(self.returned)
        if self.occupied == self.places:
            return None
        gone = {*self.taken, *self.params}
        return next((index for index in self.owned if index not in gone), None)

    @rule(life=st.sampled_from(LIVES))
    def take_lease(self, life: str) -> None:
        expected = self.next_index()
        lease = self.book.lease(life)
        assert (lease and lease.index) == expected
        if lease is not None:
            assert lease.serial > self.serials
            self.serials = lease.serial
            assert lease.params == self.params[lease.index]
            self.returned.discard(lease.index)
            self.holders[lease.index] = (lease.serial, life)
            self.sent.append((lease.index, lease.serial, life))

    @rule(life=st.sampled_from(LIVES))
    def take_lease_while_the_draw_fails(self, life: str) -> None:
        if self.returned or self.next_index() is None:
            return
        self.draw_fails = True
        before = look(self.book)
        with pytest.raises(ZeroDivisionError):
            self.book.lease(life)
        assert look(self.book) == before
        self.draw_fails = False

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def frame(self, data: st.DataObject) -> None:
        """Any frame that was ever to be made: in time, late, twice, or of a life that is over."""
        index, serial, life = data.draw(st.sampled_from(self.sent))
        self.receive(index, serial, life)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def frame_in_time(self, data: st.DataObject) -> None:
        index = data.draw(st.sampled_from(sorted(self.holders)))
        self.receive(index, *self.holders[index])

    @rule(index=st.integers(0, 15), serial=st.integers(0, 20), life=st.sampled_from(LIVES))
    def any_claim(self, index: int, serial: int, life: str) -> None:
        self.receive(index, serial, life)

    def receive(self, index: int, serial: int, life: str) -> None:
        counts = self.holders.get(index) == (serial, life)
        assert self.book.holds(index, serial, life) == counts
        lease = self.book.arrive(index, serial, life)
        if counts:
            assert lease is not None
            assert (lease.index, lease.serial, lease.params) == (index, serial, self.params[index])
            del self.holders[index]
            self.early.add(index)
            self.release(index)
        else:
            assert lease is None
            self.stale += 1
            if index in self.owned and serial >= self.first_serial and index in {*self.early, *self.queue, *self.taken}:
                self.duplicates += 1

    def release(self, index: int) -> None:
        """As the dispatcher does."""
        turn: int | None = index
        while turn in self.early and self.book.may_leave(turn):
            self.early.remove(turn)
            self.queue.append(turn)
            self.let_out.append(turn)
            turn = self.book.left(turn)

    @precondition(lambda self: self.queue)
    @rule()
    def consume(self) -> None:
        index = self.queue.pop(0)
        self.book.take(index)
        self.taken.append(index)

    @rule(life=st.sampled_from(LIVES))
    def die(self, life: str) -> None:
        lost = {index for index, (_, holder) in self.holders.items() if holder == life}
        assert self.book.give_back(life) == len(lost)
        self.returned |= lost
        for index in lost:
            del self.holders[index]

    @rule(ordered=st.booleans())
    def resume(self, ordered: bool) -> None:
        """The host saves, ends, and starts again later, perhaps in the other order, with the serials going on."""
        self.ordered = self.options["ordered"] = ordered
        state = json.loads(json.dumps(self.book.state_dict()))
        self.new_book(first_serial=self.book.next_serial)
        self.book.load_state_dict(state)
        assert self.book.state_dict() == state

    @invariant()
    def the_book_agrees(self) -> None:
        book = self.book
        assert book.rendering + book.waiting <= self.places
        assert book.rendering == len(self.holders) + len(self.returned)
        assert book.waiting == len(self.early) + len(self.queue)
        assert (book.stale, book.duplicates) == (self.stale, self.duplicates)
        assert book.delivered == len(self.taken) - self.taken_before
        for life in self.LIVES:
            own = sorted((serial, index) for index, (serial, holder) in self.holders.items() if holder == life)
            assert [(lease.serial, lease.index) for lease in book.held(life)] == own
            assert book.holding(life) == len(own)

    @invariant()
    def nothing_is_taken_twice(self) -> None:
        assert len(self.taken) == len(set(self.taken))
        assert set(self.taken) <= set(self.owned)
        assert self.book.done == (not self.endless and len(self.taken) == len(self.owned))

    @invariant()
    def the_order_is_kept(self) -> None:
        if self.ordered:
            gone = set(self.taken[: self.taken_before])
            left = (index for index in self.owned if index not in gone)
            assert self.let_out == list(itertools.islice(left, len(self.let_out)))

    @invariant()
    def the_state_is_what_was_taken(self) -> None:
        state = self.book.state_dict()
        below = {index for index in self.owned if index < state["watermark"]}
        assert below | set(state["above"]) == set(self.taken)
        assert not below & set(state["above"])

    def teardown(self) -> None:
        """From any point, everything that is left is delivered by one life that lives on."""
        if not hasattr(self, "book"):
            return
        goal = len(self.taken) + 10 if self.endless else len(self.owned)
        while len(self.taken) < goal:
            for life in self.LIVES[1:]:
                self.die(life)
            while self.next_index() is not None:
                self.take_lease("a")
            assert self.holders or self.queue, "a deadlock"
            for index, (serial, life) in sorted(self.holders.items(), reverse=True):
                self.receive(index, serial, life)
            while self.queue:
                self.consume()
            self.the_book_agrees()
        self.nothing_is_taken_twice()
        self.the_order_is_kept()
        if not self.endless:
            assert sorted(self.taken) == list(self.owned)


def test_any_schedule_keeps_the_promises() -> None:
    """Bounded places, each index once, returned first, stale dropped, order kept, resumable, and no deadlock."""
    run_state_machine_as_test(
        AnySchedule,
        settings=settings(stateful_step_count=40),
    )
