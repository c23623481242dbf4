"""Dispatcher: leases go out to the Blenders, frames come in to the passes. Where passes, hub and fleet meet."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ..config import StreamConfig
from ..errors import SampleError
from ..fleet.fleet import Fleet
from ..wire.launch import Life
from .frame import Frame
from .hub import Hub
from .leases import Lease
from .params import Drawn, Feeds
from .passes import Arrival, Guilt, Pass
from .stats import StreamStats

_REMEMBERED = 16  # answers of a life, by which an answer that is sent twice is known


class _Held(NamedTuple):
    """A lease and the pass that it is of."""

    source: Pass
    lease: Lease[Drawn]


class _Holding:
    """What one life holds."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.held: list[_Held] = []  # In the order in which the life renders them; it is at the first one
        self.answered: deque[tuple[int, int]] = deque(maxlen=_REMEMBERED)  # Pass and serial of its latest answers
        self.turn = -1  # When it was leased something last
        self.urgent = 0  # How many of `held` are of urgent passes
        self.alone = False  # Whether it holds a suspect, and must not get another lease
        self.unsent: set[tuple[int, int]] = (
            set()
        )  # Pass and serial of leases that it has not got, as it is not connected
        self.revoked = False  # Whether it may be at a sample that was taken back

    def add(self, one: _Held, *, alone: bool = False) -> None:
        self.alone = alone
        if not one.source.urgent:
            self.held.append(one)
            return
        # As the worker does: after what is being rendered and what else is urgent, before the rest.
        self.urgent += 1
        place = next((i for i, other in enumerate(self.held) if i and not other.source.urgent), len(self.held))
        self.held.insert(place, one)

    def pop(self, number: int, serial: int) -> _Held | None:
        """Remove the lease of this pass and serial, and return it. Return None if the life does not hold it."""
        for place, one in enumerate(self.held):
            if one.lease.serial == serial and one.source.number == number:
                del self.held[place]
                self.urgent -= one.source.urgent
                self.alone = False
                self.unsent.discard((number, serial))
                return one
        return None

    def blamed(self) -> Iterator[tuple[_Held, Guilt]]:
        """Yield what it holds, and how far each is to blame if its Blender crashes now."""
        sent = [(one.source.number, one.lease.serial) not in self.unsent for one in self.held]
        # The first one may have been finished, and its frame lost on the way out of the dying Blender.
        guilt: Guilt = "certain" if sum(sent) == 1 and not self.revoked else "likely"
        for one, was_sent in zip(self.held, sent, strict=True):
            yield one, guilt if was_sent else "none"
            guilt = "possible" if was_sent else guilt


class Dispatcher:
    """Decides what is leased next and to which Blender, and hands each frame to its pass. Never waits.

    The hub tells it what came over the wire, the fleet which Blenders serve, the consumers what they took. All of its
    passes share the Blenders: the one with the largest share of free slots is served next, so a slow consumer, whose
    slots are full, never holds up another.
    """

    def __init__(self, config: StreamConfig, hub: Hub, fleet: Fleet) -> None:
        self.end_error: BaseException | None = None  # Why the run cannot go on: the first reason
        self._config, self._hub, self._fleet = config, hub, fleet
        self.feeds = Feeds(self.dispatch, config.params)
        self._passes: list[Pass] = []
        self._served: dict[int, int] = {}  # by pass: the turn in which it was leased from last
        self._numbers = itertools.count()
        self._turns = itertools.count()
        self._dispatching = self._again = False
        self._holdings: dict[Life, _Holding] = {}
        self._frames = dict.fromkeys(fleet.states, 0)
        self._stale = self._duplicates = 0
        self._delivered = self._skipped = 0  # of passes that have ended

    # -- for the consumers ----------------------------------------------------------------------------------------

    def begin(self, source: Pass) -> None:
        """Serve another pass, until `end`."""
        source.number = next(self._numbers)
        self._passes.append(source)
        self._served[source.number] = -1
        source.params.begin(self.feeds)
        if self.end_error is not None:
            source.fail(self.end_error)
        self.dispatch()

    def consume(self, source: Pass, arrival: Arrival) -> None:
        """Note that the consumer has this frame: its slot is free for another."""
        source.consume(arrival)
        self.dispatch()

    def flush(self, source: Pass) -> int:
        """Give up the samples of a pass that no Blender has begun, and lease them again with new params.

        Returns:
            The number of samples given up.
        """
        if source not in self._passes:  # it is not begun, or has ended
            return 0
        source.params.flush()
        count = self._give_up(source)
        self.dispatch()
        return count

    def end(self, source: Pass, error: BaseException | None = None) -> None:
        """Serve this pass no more. What is rendering or queued of it is dropped. May be called twice."""
        if source not in self._passes:
            return
        self._passes.remove(source)
        del self._served[source.number]
        self._delivered += source.book.delivered
        self._skipped += source.book.skipped
        source.end(error)
        self._revoke(source)
        self.dispatch()

    def close(self, error: BaseException) -> None:
        """End all passes with this error, and accept no more."""
        self.end_error = self.end_error or error
        for source in list(self._passes):
            self.end(source, error)

    def fail(self, error: BaseException) -> None:
        """Lease no more, because the run cannot go on. Consumers get the frames that are there, then the error."""
        self.end_error = self.end_error or error
        for source in self._passes:
            source.fail(error)

    def stats(self) -> StreamStats:
        """Return a snapshot of the counters of all passes and the fleet."""
        each = [source.stats() for source in self._passes]
        return StreamStats(
            delivered=self._delivered + sum(one.delivered for one in each),
            rendering=sum(one.rendering for one in each),
            queued=sum(one.queued for one in each),
            skipped=self._skipped + sum(one.skipped for one in each),
            restarts=self._fleet.restarts,
            recycled=self._fleet.recycled,
            duplicates=self._duplicates,
            stale=self._stale,
            bad_messages=self._hub.bad_messages,
            refused=self._hub.refused,
            frames=dict(self._frames),
            state=self._fleet.states,
        )

    # -- leases out -----------------------------------------------------------------------------------------------

    def dispatch(self) -> None:
        """Lease all that may be leased now, always to the Blender that holds least."""
        wanting = [source for source in self._passes if source.may_lease]
        if not wanting:  # before all that costs more: it is so after most frames
            return
        if self._dispatching:  # the user's params called `flush`, or began a pass
            self._again = True
            return
        holdings = [self._holdings.get(life) or self._holding(life) for life in self._fleet.ready_lives()]
        ready = [holding for holding in holdings if not holding.alone]
        # Each lease on its own wakes ZeroMQ's thread, which costs more than all else that a frame does: a Blender
        # that has work for a while gets several at once later.
        for holding in ready:
            if len(holding.held) <= self._config.prefetch // 2:
                break
        else:
            if not any(source.urgent for source in wanting):
                return
        # Twice what they can hold, urgent samples included. Params that flush at each call would lease for ever.
        most = 2 * self._config.prefetch * len(ready)
        self._dispatching = True
        try:
            while wanting and most > 0:
                self._again = False
                most -= self._lease_to(ready, wanting, most)
                wanting = [source for source in self._passes if source.may_lease] if self._again else []
        finally:
            self._dispatching = False

    def _lease_to(self, ready: list[_Holding], wanting: list[Pass], most: int) -> int:
        """Lease until these Blenders have enough, these passes want no more, or `most` are leased. Return how many."""
        count = 0
        while ready and wanting and count < most:
            source = wanting[0] if len(wanting) == 1 else min(wanting, key=self._rank)
            suspect = source.next_is_suspect
            by_load = _urgent_load if source.urgent and not suspect else _load
            holding = ready[0] if len(ready) == 1 else min(ready, key=by_load)
            if suspect and holding.held:
                # Which of several samples crashed a Blender cannot be known, so a suspect is leased alone: this Blender
                # gets nothing more until it has answered what it holds.
                ready.remove(holding)
                wanting.remove(source)
                continue
            if (holding.urgent if source.urgent else len(holding.held)) >= self._config.prefetch:
                break
            if not source.has_params:  # they are awaited, and dispatch is called when they have come
                wanting.remove(source)
                continue
            try:
                lease = source.book.lease()
            except BaseException as error:  # the user's params raised: whatever it is, it is the consumer's
                source.finish(error)
                if not source.may_lease:
                    wanting.remove(source)
                continue
            assert lease is not None, "a pass that may lease"
            count += 1
            holding.add(_Held(source, lease), alone=suspect)
            holding.turn = self._served[source.number] = next(self._turns)
            self._fleet.leased(holding.life)
            if not self._send(holding.life, source, lease):
                # It is dying, or reconnecting: the lease is its own until then.
                holding.unsent.add((source.number, lease.serial))
                ready.remove(holding)
            elif suspect:
                ready.remove(holding)
            if not source.may_lease:
                wanting.remove(source)
        return count

    def _holding(self, life: Life) -> _Holding:
        holding = self._holdings.get(life)
        if holding is None:
            holding = self._holdings[life] = _Holding(life)
        return holding

    def _rank(self, source: Pass) -> tuple[bool, bool, float, int]:
        """Urgent passes come first, then those with a crashed sample, then those with the largest share of free slots."""
        return (not source.urgent, not source.book.has_returned, -source.free, self._served[source.number])

    def _send(self, life: Life, source: Pass, lease: Lease[Drawn]) -> bool:
        return self._hub.send_lease(
            life, source.number, lease.serial, lease.index, lease.params.parts, urgent=source.urgent
        )

    def _give_up(self, source: Pass) -> int:
        """Let no Blender begin what it holds of a pass. Return how many samples wait to be leased again."""
        return source.book.flush(self._revoke(source))

    def _revoke(self, source: Pass) -> list[Lease[Drawn]]:
        """Take back the leases of a pass that no Blender has begun, as far as can be known here."""
        revoked = []
        for life, holding in self._holdings.items():
            if own := [one for one in holding.held[1:] if one.source is source]:
                holding.revoked = True
                for one in own:
                    holding.pop(source.number, one.lease.serial)
                self._hub.send_revoke(life, source.number, [one.lease.serial for one in own])
                revoked += [one.lease for one in own]
        return revoked

    # -- from the fleet -------------------------------------------------------------------------------------------

    def life_over(self, life: Life) -> None:
        """Give the leases of a life that has ended to others."""
        holding = self._holdings.pop(life, None)
        # A Blender that was closed, replaced, or started again with its packages says nothing of its sample.
        crashed = self._fleet.states[life.instance] in ("backoff", "failed")
        for one, guilt in holding.blamed() if holding is not None else ():
            one.source.give_back(one.lease, guilt if crashed else "none")
            if one.source.error is not None:
                self._give_up(one.source)
        self.dispatch()

    # -- from the hub ---------------------------------------------------------------------------------------------

    def reconnected(self, life: Life, holding: Sequence[Sequence[int]]) -> None:
        """Send a life, which came back on another connection, the leases that it does not have."""
        has = {tuple(one) for one in holding}
        own = self._holding(life)
        for source, lease in own.held:
            if (source.number, lease.serial) not in has and self._send(life, source, lease):
                own.unsent.discard((source.number, lease.serial))

    def frame(self, life: Life, number: int, serial: int, index: int, values: dict[str, Any]) -> None:
        """Hand a frame to its pass, if the sender holds that lease now."""
        one = self._answer(life, number, serial)
        if one is not None:
            self._frames[life.instance] += 1
            frame = Frame(
                values,
                index=one.lease.index,
                instance=life.instance,
                params=one.lease.params.values,
                params_age=one.source.age(one.lease),
            )
            self._stale += not one.source.arrive(one.lease, frame)
            self.dispatch()

    def sample_failed(self, life: Life, number: int, serial: int, index: int, error: str, traceback: str) -> None:
        """Tell a pass that its sample raised, if the sender holds that lease now."""
        one = self._answer(life, number, serial)
        if one is not None:
            text = f"sample {index} failed in Blender {life.instance}: {error}\n\n{traceback}".rstrip()
            one.source.sample_failed(one.lease, SampleError(text, index=index, traceback=traceback))
            if one.source.error is not None:
                self._give_up(one.source)
            self.dispatch()

    def unreadable(self, life: Life, number: int, serial: int) -> None:
        """Lease a sample again whose frame came, but could not be read."""
        one = self._answer(life, number, serial)
        if one is not None:
            one.source.give_back(one.lease)
            self.dispatch()

    def dropped_frame(self) -> None:
        """Count a frame from a connection that belongs to no life."""
        self._stale += 1

    def _answer(self, life: Life, number: int, serial: int) -> _Held | None:
        """Take the lease that a life answered from it. Return None, and count, if it does not hold that lease.

        Then nothing may be leased that might not be before. Params that flush at each call would answer each frame of a
        lease that was revoked too late with many more such leases, for ever.
        """
        holding = self._holding(life)
        one = holding.pop(number, serial)
        if one is None:
            self._stale += 1
            self._duplicates += (number, serial) in holding.answered
        else:
            holding.answered.append((number, serial))
        self._fleet.answered(life, more=bool(holding.held))
        return one


def _load(holding: _Holding) -> tuple[int, int]:
    """Rank Blenders by what they hold; among equals by who has waited longest, so that all have their turn."""
    return (len(holding.held), holding.turn)


def _urgent_load(holding: _Holding) -> tuple[int, int, int]:
    return (holding.urgent, len(holding.held), holding.turn)
