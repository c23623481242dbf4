"""Holding: what one life of a Blender holds, as the dispatcher knows it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from ..errors import ProtocolError
from ..wire.launch import Life
from ..wire.protocol import Name
from .leases import Lease
from .params import Drawn
from .passes import Guilt, Pass

_REMEMBERED = 16  # answers of a life, by which an answer that is sent twice is known


class Held:
    """A lease and the pass that it is of."""

    __slots__ = ("lease", "name", "source")

    def __init__(self, source: Pass, lease: Lease[Drawn]) -> None:
        self.source: Pass = source
        self.lease: Lease[Drawn] = lease
        self.name: Name = (source.number, lease.serial)

    def expects(self, step: int) -> bool:
        """Tell whether this is the next step of the lease, or of one that nobody can say anything about.

        Raises:
            ProtocolError: It is a step that was not granted.
        """
        if self.source.ended:
            return True  # it is dropped
        first, granted = self.source.book.expected(self.lease)
        if step > first or step >= granted:
            raise ProtocolError(f"a frame of step {step}, where step {first} of {granted} was expected")
        return step == first

    @property
    def can_be_replayed(self) -> bool:
        """Whether a life can make all steps of the lease again: those on demand only as long as their params are kept."""
        source = self.source
        return not source.on_demand or all(source.params_of_step(step) is not None for step in self.steps_beside)

    @property
    def steps_beside(self) -> range:
        """The steps that a life may make of the lease besides those that the LEASE itself allows."""
        first, granted = self.source.book.expected(self.lease)
        return range(1 if self.source.on_demand else first + 1, granted)


class Holding:
    """What one life holds."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.held: list[Held] = []  # In the order in which the life renders them; it is at the first one
        self._by_name: dict[Name, Held] = {}
        self.answered: deque[Name] = deque(maxlen=_REMEMBERED)  # Its latest answers
        self.turn = -1  # When it was leased something last
        self.urgent: int = 0  # How many of `held` are of urgent passes
        self.alone: bool = False  # Whether it holds a suspect, and must not get another lease
        self.unsent: set[Name] = set()  # Leases that it has not got, as it is not connected
        self.revoked = False  # Whether it may be at a sample that was taken back
        self.episode: Held | None = None  # The first one, if frames of it have come and others will
        self.closing: bool = False  # Whether that episode was taken back, and is held only until the life has closed it

    def add(self, one: Held, *, alone: bool = False) -> None:
        self.alone = alone
        self._by_name[one.name] = one
        if not one.source.urgent:
            self.held.append(one)
            return
        # As the worker does: after what is being rendered and what else is urgent, before the rest.
        self.urgent += 1
        place = next((i for i, other in enumerate(self.held) if i and not other.source.urgent), len(self.held))
        self.held.insert(place, one)

    def find(self, name: Name) -> Held | None:
        """Return the lease of this name, or None if the life does not hold it."""
        return self._by_name.get(name)

    def pop(self, one: Held) -> None:
        """Remove a lease that the life holds."""
        self.held.remove(one)
        del self._by_name[one.name]
        self.urgent -= one.source.urgent
        self.alone = False
        self.unsent.discard(one.name)
        if one is self.episode:
            self.episode, self.closing = None, False

    def is_closing(self, name: Name) -> bool:
        """Whether this is the episode that was taken back. What the life says of it counts no more."""
        return self.closing and self.episode is not None and self.episode.name == name

    def open_episode(self, one: Held) -> None:
        """Note that this lease is an episode that has begun, which a message that was on its way may have put off."""
        self.episode = one
        self.held.remove(one)
        self.held.insert(0, one)

    def blamed(self) -> Iterator[tuple[Held, Guilt]]:
        """Yield what it holds, and how far each is to blame if its Blender crashes now."""
        sent = [one.name not in self.unsent for one in self.held]
        # The first one may have been finished, and its frame lost on the way out of the dying Blender.
        guilt: Guilt = "certain" if sum(sent) == 1 and not self.revoked else "likely"
        for one, was_sent in zip(self.held, sent, strict=True):
            if not (one is self.episode and self.closing):
                yield one, guilt if was_sent else "none"
            guilt = "possible" if was_sent else guilt


def load(holding: Holding) -> tuple[int, int]:
    """Rank Blenders by what they hold; among equals by who has waited longest, so that all have their turn."""
    return (len(holding.held), holding.turn)


def urgent_load(holding: Holding) -> tuple[int, int, int]:
    return (holding.urgent, len(holding.held), holding.turn)
