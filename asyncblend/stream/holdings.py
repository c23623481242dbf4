"""Holdings: what all Blenders of a run hold, what they are told of it, and what becomes of it when one dies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..errors import InstanceError, ProtocolError
from ..wire.launch import Life
from ..wire.protocol import Name
from ..wire.request import Request
from .directs import Directs
from .ends import Blenders, Sender
from .holding import Held, Holding
from .leases import Lease
from .params import Drawn
from .passes import Pass
from .totals import Totals


class Holdings:
    """Keeps what each life holds, and sends what changes it. Whom to lease what is the dispatcher's to decide.

    What takes leases from a life does not dispatch, though others may have them now: that is left to the caller.

    Args:
        hub: Sends to the Blenders.
        fleet: Is told when a Blender begins to work, and when it has answered.
        directs: The episodes that are played over lines. Whatever else is done with one of those ends that first.
        totals: Counts answers that nobody waits for.
    """

    def __init__(self, hub: Sender, fleet: Blenders, directs: Directs, totals: Totals) -> None:
        self._hub, self._fleet, self._directs, self._totals = hub, fleet, directs, totals
        self._by_life: dict[Life, Holding] = {}
        self._episodes: dict[Name, tuple[Holding, Held]] = {}  # by pass and position: those that have begun

    def of(self, life: Life) -> Holding:
        """Return what a life holds."""
        holding = self._by_life.get(life)
        if holding is None:
            holding = self._by_life[life] = Holding(life)
        return holding

    @property
    def has_episodes(self) -> bool:
        """Whether an episode has begun and is not over."""
        return bool(self._episodes)

    def _at_work(self) -> Iterator[tuple[Holding, Held]]:
        """Yield each episode that has begun, was not taken back, and is what its Blender is at."""
        for holding, one in list(self._episodes.values()):
            if holding.episode is one and not holding.closing:
                yield holding, one

    # -- leases out -----------------------------------------------------------------------------------------------

    def lease(self, holding: Holding, one: Held, *, alone: bool) -> bool:
        """Let a life hold this lease, and send it with the next `send_leases`.

        Args:
            alone: Whether the life must not get another one beside it.

        Returns:
            Whether the life is connected. If not, it holds the lease until it comes back, or is over.
        """
        holding.add(one, alone=alone)
        if len(holding.held) == 1:  # else it is at work, or its episode waits for a consumer
            self._fleet.leased(holding.life)
        sent = self._add(holding.life, one)
        if not sent:
            holding.unsent.add(one.name)
        return sent

    def send_leases(self) -> None:
        """Send all leases: a life gets those of one dispatch in as few messages as it takes."""
        for life, names in self._hub.send_leases():
            if (holding := self._by_life.get(life)) is not None:
                holding.unsent.update(name for name in names if holding.find(name) is not None)

    def grant_steps(self, source: Pass) -> None:
        """Let open episodes of a pass go on, as far as it has free slots."""
        while (position := source.grant()) is not None:
            holding, one = self._episodes[source.number, position]
            self._fleet.goes_on(holding.life)
            self._send_step(holding.life, one, source.book.allowed(one.lease) - 1)

    def _add(self, life: Life, one: Held) -> bool:
        """Send a lease with the next `send_leases`, also one whose first steps have arrived before."""
        source, lease = one.source, one.lease
        first, granted = source.book.expected(lease)
        request = Request(one.name, lease.index, lease.params.parts, source.urgent)
        if source.on_demand or first or granted > 1:
            request.first, request.on_demand = first, source.on_demand
            request.fingerprint, request.line = source.fingerprint(lease), self._directs.may_begin(life, source)
            sent = self._hub.add_lease(life, request)
            for step in one.steps_beside:
                sent = sent and self._send_step(life, one, step)
            return sent
        return self._hub.add_lease(life, request)

    def _send_step(self, life: Life, one: Held, step: int) -> bool:
        """Let an episode make a step. Return False if its life is not connected; then all is sent when it comes back."""
        drawn = one.source.params_of_step(step)
        assert drawn is not None or not one.source.on_demand, "a step that was asked for, whose params are forgotten"
        return self._hub.send_step(life, *one.name, step, () if drawn is None else drawn.parts)

    # -- leases back ----------------------------------------------------------------------------------------------

    def revoke(self, source: Pass) -> list[Lease[Drawn]]:
        """Take back the leases of a pass that no Blender has begun, as far as can be known here."""
        revoked = []
        for life, holding in self._by_life.items():
            if own := [one for one in holding.held[1:] if one.source is source]:
                holding.revoked = True
                for one in own:
                    self._let_go(holding, one)
                self._hub.send_revoke(life, source.number, [one.lease.serial for one in own])
                revoked += [one.lease for one in own]
        return revoked

    def give_up(self, source: Pass) -> int:
        """Let no Blender begin what it holds of a pass. Return how many samples wait to be leased again."""
        if source.error is not None:
            self.close_episodes(source)
        return source.book.flush(self.revoke(source))

    def close_episodes(self, source: Pass) -> None:
        """Let no Blender go on with an episode of a pass that needs no more frames."""
        for holding, one in self._at_work():
            if one.source is source:
                self.close_episode(holding)

    def close_episode(self, holding: Holding) -> None:
        """Ask a life to close its episode. It holds the lease until it has said so."""
        assert holding.episode is not None, "an episode that has begun"
        self._directs.end(holding.episode.source)
        holding.closing = True
        number, serial = holding.episode.name
        self._fleet.goes_on(holding.life)  # it owes an answer
        self._hub.send_revoke(holding.life, number, [serial])

    def suspend_stalled(self, wanting: Sequence[Pass] = ()) -> None:
        """Take back episodes whose consumers have left them no free slot, if they hold up others.

        They are replayed when there is a slot again. Without it a consumer that stands still would keep a Blender from
        other passes; and a consumer that wants frames in order, from the earlier sample that it waits for.

        Args:
            wanting: Passes that may lease, and for which there was no Blender.
        """
        for holding, one in self._at_work():
            if not one.source.stalls(one.lease):
                continue
            waiting = [(other.source, other.lease.position) for other in holding.held[1:]]
            waiting += [(source, source.book.next_position) for source in wanting]
            if any(source is not one.source or position < one.lease.position for source, position in waiting):
                self.close_episode(holding)
                one.source.give_back(one.lease)

    def lose(self, life: Life, *, crashed: bool, why: InstanceError | None) -> None:
        """Give the leases of a life that has ended back to their passes.

        Args:
            crashed: Whether it ended by itself, so that one of its samples may be to blame.
            why: How it ended.
        """
        holding = self._by_life.pop(life, None)
        if holding is None:
            return
        for one in holding.held:
            self._directs.end(one.source)
        blamed = list(holding.blamed())
        for one in list(holding.held):
            self._let_go(holding, one)
        for one, guilt in blamed:
            one.source.give_back(one.lease, guilt if crashed else "none", why)
            if one.source.error is not None:
                self.give_up(one.source)

    def _let_go(self, holding: Holding, one: Held) -> None:
        """Note that a life holds this lease no more."""
        holding.pop(one)
        name = one.source.number, one.lease.position
        if self._episodes and name in self._episodes and self._episodes[name][0] is holding:
            del self._episodes[name]

    # -- a connection that was lost -------------------------------------------------------------------------------

    def reconnected(
        self, life: Life, unbegun: Sequence[Sequence[int]], opened: Sequence[Sequence[int]], *, by_line: bool
    ) -> None:
        """Send a life the leases that it does not have; see `Dispatcher.reconnected`."""
        has, begun = ({tuple(one) for one in names} for names in (unbegun, opened))
        holding = self.of(life)
        for one in list(holding.held):
            if holding.is_closing(one.name):
                if one.name not in begun:
                    self.answer(holding, one.name)  # it has closed it, and said so on the old connection
            elif self._episodes.get((one.source.number, one.lease.position)) and one.source.stalls(one.lease):
                self._let_go(holding, one)  # a lease would allow a step that has no slot
                one.source.give_back(one.lease)
            elif one.name not in begun or not self._goes_on_directly(one, by_line=by_line):
                self.begin_again(holding, one, is_open=one.name in begun, has=one.name in has)
        for number, serial in opened:
            if holding.is_closing((number, serial)) or holding.find((number, serial)) is None:
                self._hub.send_revoke(life, number, [serial])

    def begin_again(self, holding: Holding, one: Held, *, is_open: bool, has: bool) -> None:
        """Have a life begin a lease again, as what it has sent or got of it may be lost, and replay its steps.

        Args:
            is_open: Whether it is an episode that the life has open.
            has: Whether the life has it, and has not begun it.
        """
        self._directs.end(one.source)
        if not one.can_be_replayed:
            self._keep_or_lose(holding, one, is_open=is_open)
            return
        if one is holding.episode:
            holding.episode = None  # it begins anew, perhaps after what it holds besides
        # One that it has may count as not sent, if others were to be sent with it and the connection was lost meanwhile.
        sent = (has and not one.steps_beside) or self._add(holding.life, one)
        (holding.unsent.discard if sent else holding.unsent.add)(one.name)
        self.send_leases()
        self._fleet.goes_on(holding.life)  # if it waited for its consumer before, it has something to do now

    def _keep_or_lose(self, holding: Holding, one: Held, *, is_open: bool) -> None:
        """Decide what becomes of an episode that cannot be replayed, when its life has come back on another connection.

        Args:
            is_open: Whether the life still has it open.
        """
        if is_open and not one.source.book.awaits(one.lease):
            return  # all of its frames have come, and its next step is not asked for: nothing was lost
        if not is_open:
            self.answer(holding, one.name)  # it has ended, and said so on the old connection
        one.source.give_back(one.lease)
        self.give_up(one.source)  # which closes it

    def _goes_on_directly(self, one: Held, *, by_line: bool) -> bool:
        """Whether a lease is played over a line, so that nothing of it was lost with a connection."""
        direct = self._directs.find(one.name)
        return direct is not None and (by_line or not direct.played.asked)

    # -- answers --------------------------------------------------------------------------------------------------

    def heard_from(self, life: Life, name: Name) -> Holding:
        """Return what a life holds that has answered this lease by a message. If steps of it went over a line, that ends."""
        holding = self.of(life)
        if (one := holding.find(name)) is not None:
            self._directs.end(one.source)
        return holding

    def answer(self, holding: Holding, name: Name) -> Held | None:
        """Take the lease that a life has answered from it, and return it.

        None: the life does not hold it, which is counted. Do not dispatch then: params that flush at each call would answer
        each frame of a lease that was revoked too late with many more such leases, for ever.
        """
        one = holding.find(name)
        if one is None:
            self._totals.stale += 1
            self._totals.duplicates += name in holding.answered
        else:
            self._let_go(holding, one)
            holding.answered.append(name)
        self._fleet.answered(holding.life, more=bool(holding.held))
        return one

    def go_on(self, holding: Holding, name: Name) -> Held | None:
        """Return the lease of which a life has made a step that is not the last one, as `answer` does, and keep it."""
        one = holding.find(name)
        if one is None:
            self._hub.send_revoke(holding.life, name[0], [name[1]])  # it was begun before it was taken back
            return self.answer(holding, name)
        if holding.episode not in (None, one):
            raise ProtocolError(f"a frame of lease {name[1]}, while another episode is open")
        if holding.episode is None:
            holding.open_episode(one)
            self._episodes[one.source.number, one.lease.position] = holding, one
        self._fleet.answered(holding.life, more=True)
        return one
