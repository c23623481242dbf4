"""Dispatcher: leases go out to the Blenders, frames come in to the passes. Where passes, hub and fleet meet."""

from __future__ import annotations

import itertools
import time
from collections.abc import MutableMapping, Sequence
from typing import Any

from ..config import StreamConfig
from ..errors import InstanceError, ProtocolError, SampleError
from ..wire.launch import Life
from ..wire.line import Line
from ..wire.protocol import WHOLE, Name, Request, Step
from .direct import Direct
from .directs import Directs
from .ends import Blenders, Sender
from .episode_pass import EpisodePass
from .frame import Frame
from .holding import Held, Holding, load, urgent_load
from .idleness import Idleness
from .leases import Lease
from .params import Drawn, Feeds
from .passes import Arrival, Pass
from .stats import StreamStats
from .totals import Totals


class Dispatcher:
    """Decides what is leased next and to which Blender, and hands each frame to its pass. Never waits.

    The hub tells it what came over the wire, the fleet which Blenders serve, the consumers what they took. All of its
    passes share the Blenders: the one with the largest share of free slots is served next, so a slow consumer, whose
    slots are full, never holds up another.
    """

    def __init__(self, config: StreamConfig, hub: Sender, fleet: Blenders, lines: MutableMapping[Life, Line]) -> None:
        self.end_error: BaseException | None = None  # Why the run cannot go on: the first reason
        self._config, self._hub, self._fleet = config, hub, Idleness(fleet, time.monotonic)
        self._totals = Totals(self._fleet, hub)
        self.feeds: Feeds = Feeds(self.dispatch, config.params)
        self._passes: list[Pass] = []
        self._served: dict[int, int] = {}  # by pass: the turn in which it was leased from last
        self._episodes: dict[Name, tuple[Holding, Held]] = {}  # by pass and position: those that have begun
        self._numbers = itertools.count()
        self._turns = itertools.count()
        self._dispatching = self._again = False
        self._in_turn = self._due = False  # whether more is to be told; whether to dispatch after that
        self._sated = False  # whether a free slot changes nothing: all Blenders have work for a while
        self._holdings: dict[Life, Holding] = {}
        self._directs = Directs(self._fleet, lines, self._totals.frames)

    # -- for the consumers ----------------------------------------------------------------------------------------

    def begin(self, source: Pass) -> None:
        """Serve another pass, until `end`."""
        source.number = next(self._numbers)
        self._passes.append(source)
        self._served[source.number] = -1
        self._totals.time.begin(source.timing)
        source.params.begin(self.feeds)
        if self.end_error is not None:
            source.fail(self.end_error)
        self.dispatch()

    def consume(self, source: Pass, arrival: Arrival) -> None:
        """Note that the consumer has this frame: its slot is free for another."""
        source.consume(arrival)
        if not self._sated or source.urgent:
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
        self._directs.end(source)
        source.end(error)
        self._totals.end(source)
        self._revoke(source)
        self._close_episodes(source)
        self.dispatch()

    @property
    def renders_ahead(self) -> bool:
        """Whether anything was rendered ahead lately. A stepped episode and its Blender wait for each other by nature."""
        return self._totals.rendered_ahead(self._passes)

    def close(self, error: BaseException) -> None:
        """End all passes with this error, and accept no more."""
        self.end_error = self.end_error or error
        for source in list(self._passes):
            self.end(source, error)
        self._totals.time.close()

    def fail(self, error: BaseException) -> None:
        """Lease no more, because the run cannot go on. Consumers get the frames that are there, then the error."""
        self.end_error = self.end_error or error
        self._directs.end_all()
        for source in self._passes:
            source.fail(error)

    def stats(self) -> StreamStats:
        """Return a snapshot of the counters of all passes and the fleet, and of what was timed."""
        return self._totals.stats(self._passes, self._directs.played)

    # -- leases out -----------------------------------------------------------------------------------------------

    def begin_turn(self) -> None:
        """Lease nothing until `end_turn`: all that is told meanwhile has come at once, and leases go out together."""
        self._in_turn = True

    def end_turn(self) -> None:
        """Lease what may be leased after all that was told."""
        self._in_turn = False
        if self._due:
            self._due = False
            self.dispatch()

    def dispatch(self) -> None:
        """Lease all that may be leased now, always to the Blender that holds least."""
        self._sated = False
        if self._in_turn:
            self._due = True
            return
        for source in self._passes:
            self._grant_steps(source)
        wanting = [source for source in self._passes if source.may_lease]
        if not wanting:  # before all that costs more: it is so after most frames
            self._suspend_stalled()
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
                self._suspend_stalled(wanting)
                self._sated = not self._episodes
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
            self._send_leases()
        self._suspend_stalled([source for source in self._passes if source.may_lease])

    def ask(self, source: EpisodePass, drawn: Drawn) -> None:
        """Make the next step of an episode, with these params. A path shorter than `dispatch`."""
        self._directs.end(source)  # these params do not fit there
        source.ask(drawn)
        self._grant_steps(source)
        if source.may_lease:  # the Blender that held it is gone
            self.dispatch()

    def _grant_steps(self, source: Pass) -> None:
        """Let open episodes of a pass go on, as far as it has free slots."""
        while (position := source.grant()) is not None:
            holding, one = self._episodes[source.number, position]
            self._fleet.goes_on(holding.life)
            self._send_step(holding.life, one, source.book.allowed(one.lease) - 1)

    def _suspend_stalled(self, wanting: Sequence[Pass] = ()) -> None:
        """Take back episodes whose consumers have left them no free slot, if they hold up others.

        They are replayed when there is a slot again. Without it a consumer that stands still would keep a Blender from
        other passes; and a consumer that wants frames in order, from the earlier sample that it waits for.

        Args:
            wanting: Passes that may lease, and for which there was no Blender.
        """
        for holding, one in list(self._episodes.values()):
            if holding.episode is not one or holding.closing or not one.source.stalls(one.lease):
                continue
            waiting = [(other.source, other.lease.position) for other in holding.held[1:]]
            waiting += [(source, source.book.next_position) for source in wanting]
            if any(source is not one.source or position < one.lease.position for source, position in waiting):
                self._close_episode(holding)
                one.source.give_back(one.lease)

    def _lease_to(self, ready: list[Holding], wanting: list[Pass], most: int) -> int:
        """Lease until these Blenders have enough, these passes want no more, or `most` are leased. Return how many."""
        count = 0
        while ready and wanting and count < most:
            source = wanting[0] if len(wanting) == 1 else min(wanting, key=self._rank)
            # Which of several samples crashed a Blender cannot be known, so a suspect is leased alone. So is an episode
            # on demand, which would hold up for as long as its consumer likes what is leased beside it.
            alone = source.next_is_suspect or source.on_demand
            by_load = urgent_load if source.urgent and not alone else load
            holding = ready[0] if len(ready) == 1 else min(ready, key=by_load)
            if alone and holding.held:
                # This Blender gets nothing more until it has answered what it holds.
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
            one = Held(source, lease)
            holding.add(one, alone=alone)
            holding.turn = self._served[source.number] = next(self._turns)
            if len(holding.held) == 1:  # else it is at work, or its episode waits for a consumer
                self._fleet.leased(holding.life)
            if not self._send(holding.life, one):
                # It is dying, or reconnecting: the lease is its own until then.
                holding.unsent.add(one.name)
                ready.remove(holding)
            elif alone:
                ready.remove(holding)
            if not source.may_lease:
                wanting.remove(source)
        return count

    def _holding(self, life: Life) -> Holding:
        holding = self._holdings.get(life)
        if holding is None:
            holding = self._holdings[life] = Holding(life)
        return holding

    def _rank(self, source: Pass) -> tuple[bool, bool, float, int]:
        """Urgent passes come first, then those with a crashed sample, then those with the largest share of free slots."""
        return (not source.urgent, not source.book.has_returned, -source.free, self._served[source.number])

    def _send(self, life: Life, one: Held) -> bool:
        """Send a lease with the next `_send_leases`, also one whose first steps have arrived before."""
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

    def _send_leases(self) -> None:
        """Send all leases: a life gets those of one dispatch in as few messages as it takes."""
        for life, names in self._hub.send_leases():
            if (holding := self._holdings.get(life)) is not None:
                holding.unsent.update(name for name in names if holding.find(name) is not None)

    def _send_step(self, life: Life, one: Held, step: int) -> bool:
        """Let an episode make a step. Return False if its life is not connected; then all is sent when it comes back."""
        drawn = one.source.params_of_step(step)
        assert drawn is not None or not one.source.on_demand, "a step that was asked for, whose params are forgotten"
        return self._hub.send_step(life, *one.name, step, () if drawn is None else drawn.parts)

    def _give_up(self, source: Pass) -> int:
        """Let no Blender begin what it holds of a pass. Return how many samples wait to be leased again."""
        if source.error is not None:
            self._close_episodes(source)
        return source.book.flush(self._revoke(source))

    def _revoke(self, source: Pass) -> list[Lease[Drawn]]:
        """Take back the leases of a pass that no Blender has begun, as far as can be known here."""
        revoked = []
        for life, holding in self._holdings.items():
            if own := [one for one in holding.held[1:] if one.source is source]:
                holding.revoked = True
                for one in own:
                    self._let_go(holding, one)
                self._hub.send_revoke(life, source.number, [one.lease.serial for one in own])
                revoked += [one.lease for one in own]
        return revoked

    def _close_episodes(self, source: Pass) -> None:
        """Let no Blender go on with an episode of a pass that needs no more frames."""
        for holding, one in list(self._episodes.values()):
            if one.source is source and holding.episode is one and not holding.closing:
                self._close_episode(holding)

    def _keep_or_lose(self, holding: Holding, one: Held, *, is_open: bool) -> None:
        """Decide what becomes of an episode that cannot be replayed, when its life has come back on another connection.

        Args:
            is_open: Whether the life still has it open.
        """
        if is_open and not one.source.book.awaits(one.lease):
            return  # all of its frames have come, and its next step is not asked for: nothing was lost
        if not is_open:
            self._answer(holding, one.name)  # it has ended, and said so on the old connection
        one.source.give_back(one.lease)
        self._give_up(one.source)  # which closes it

    def _begin_again(self, holding: Holding, one: Held, *, is_open: bool, has: bool) -> None:
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
        sent = (has and not one.steps_beside) or self._send(holding.life, one)
        (holding.unsent.discard if sent else holding.unsent.add)(one.name)
        self._send_leases()
        self._fleet.goes_on(holding.life)  # if it waited for its consumer before, it has something to do now

    def _close_episode(self, holding: Holding) -> None:
        """Ask a life to close its episode. It holds the lease until it has said so."""
        assert holding.episode is not None, "an episode that has begun"
        self._directs.end(holding.episode.source)
        holding.closing = True
        number, serial = holding.episode.name
        self._fleet.goes_on(holding.life)  # it owes an answer
        self._hub.send_revoke(holding.life, number, [serial])

    # -- from the fleet -------------------------------------------------------------------------------------------

    def life_over(self, life: Life, why: InstanceError | None = None) -> None:
        """Give the leases of a life that has ended to others. `why`: how it ended."""
        holding = self._holdings.pop(life, None)
        self._fleet.gone(life)
        # A Blender that was closed, replaced, or started again with its packages says nothing of its sample.
        crashed = self._fleet.states[life.instance] in ("backoff", "failed")
        if holding is not None:
            for one in holding.held:
                self._directs.end(one.source)
            blamed = list(holding.blamed())
            for one in list(holding.held):
                self._let_go(holding, one)
            for one, guilt in blamed:
                one.source.give_back(one.lease, guilt if crashed else "none", why)
                if one.source.error is not None:
                    self._give_up(one.source)
        self.dispatch()

    # -- from the hub ---------------------------------------------------------------------------------------------

    def reconnected(
        self, life: Life, holding: Sequence[Sequence[int]], opened: Sequence[Sequence[int]], *, by_line: bool = False
    ) -> None:
        """Send a life, which came back on another connection, the leases that it does not have.

        Args:
            holding: Names of the leases that it has not begun.
            opened: Names of the episodes that it has begun. They are sent again, as steps and frames may be lost; those
                that can no longer be replayed are lost, unless they need no more than their next step.
            by_line: Whether the latest frame of the one that is open went over the line, where nothing is lost.
        """
        has, begun = ({tuple(one) for one in names} for names in (holding, opened))
        own = self._holding(life)
        for one in list(own.held):
            if own.is_closing(one.name):
                if one.name not in begun:
                    self._answer(own, one.name)  # it has closed it, and said so on the old connection
            elif self._episodes.get((one.source.number, one.lease.position)) and one.source.stalls(one.lease):
                self._let_go(own, one)  # a lease would allow a step that has no slot
                one.source.give_back(one.lease)
            elif one.name not in begun or not self._goes_on_directly(one, by_line=by_line):
                self._begin_again(own, one, is_open=one.name in begun, has=one.name in has)
        for number, serial in opened:
            if own.is_closing((number, serial)) or own.find((number, serial)) is None:
                self._hub.send_revoke(life, number, [serial])

    def frame(
        self,
        life: Life,
        number: int,
        serial: int,
        index: int,
        values: dict[str, Any],
        step: Step = WHOLE,
        made_by: int | None = None,
    ) -> None:
        """Hand a frame to its pass, if the sender holds that lease now.

        Args:
            life: Who sent it.
            number, serial: Name the lease: its pass, and its serial in that.
            index: The sample's.
            values: What the frame carries.
            step: Which frame of its sample it is.
            made_by: Number of the Blender, where the life is no Blender's own. None: that of the life.
        """
        name = number, serial
        if (direct := self._directs.find(name)) is not None and direct.has_step(step.number):
            self._totals.stale += 1  # it was made once more, because a connection was lost
            return
        holding = self._by_message(life, number, serial)
        dropped = holding.is_closing(name)
        one = holding.find(name)
        if one is not None and not dropped and not one.expects(step.number):
            self._totals.stale += 1
            return
        one = self._answer(holding, name) if step.last else self._go_on(holding, name)
        if one is None:
            return
        instance = life.instance if made_by is None else made_by
        self._totals.frames[instance] += 1
        source, lease = one.source, one.lease
        if dropped or source.ended:
            self._totals.stale += 1
        else:
            params = (source.params_of_step(step.number) or lease.params).values
            frame = Frame(
                values,
                index=lease.index,
                instance=instance,
                params=params,
                params_age=source.age(lease),
                step=step.number,
                last=step.last,
                spent=step.spent,
            )
            self._totals.time.frame(source.timing, step.spent)
            if step.line and not step.last:
                self._directs.begin(life, one, step.number)  # before the consumer can see the frame
            source.arrive(lease, frame, step.fingerprint)
        self._after_step(holding, one)

    def replayed(self, life: Life, number: int, serial: int) -> None:
        """Note that a Blender makes progress with an episode whose steps the consumer has already."""
        if self._directs.find((number, serial)) is not None:
            return  # a connection was lost before it was played directly; its next step comes over the line
        holding = self._holding(life)
        if (one := self._go_on(holding, (number, serial))) is not None:
            self._after_step(holding, one)

    def over(self, life: Life, number: int, serial: int) -> None:
        """Note that a Blender has closed an episode, because it was asked to or because no step is left."""
        holding = self._by_message(life, number, serial)
        if holding.find((number, serial)) is None:
            return  # it was taken back before it was known to be an episode
        taken_back = holding.is_closing((number, serial))
        one = self._answer(holding, (number, serial))
        if one is not None:
            if not taken_back:
                one.source.over(one.lease)
            self.dispatch()

    def sample_failed(self, life: Life, number: int, serial: int, index: int, error: str, traceback: str) -> None:
        """Tell a pass that its sample raised, if the sender holds that lease now."""
        text = f"sample {index} failed in Blender {life.instance}: {error}\n\n{traceback}".rstrip()
        self.bad_sample(life, number, serial, SampleError(text, index=index, traceback=traceback))

    def bad_sample(self, life: Life, number: int, serial: int, error: SampleError) -> None:
        """Tell a pass why its sample cannot be made, if the sender holds that lease now."""
        holding = self._by_message(life, number, serial)
        taken_back = holding.is_closing((number, serial))
        one = self._answer(holding, (number, serial))
        if one is not None:
            if not taken_back:
                one.source.sample_failed(one.lease, error)
                if one.source.error is not None:
                    self._give_up(one.source)
            self.dispatch()

    def unreadable(self, life: Life, number: int, serial: int, *, last: bool = True) -> None:
        """Lease a sample again whose frame came, but could not be read."""
        name = number, serial
        holding = self._by_message(life, number, serial)
        taken_back = holding.is_closing(name)
        one = self._answer(holding, name) if last else self._go_on(holding, name)
        if one is not None:
            if not taken_back:
                if not last:
                    self._close_episode(holding)
                one.source.give_back(one.lease)
            self.dispatch()

    def line_broken(self, direct: Direct, error: Exception) -> None:
        """Go on with messages where an episode was played over a line, because that is broken."""
        one = self._directs.played_by(direct)
        if one is None:
            return  # its Blender has died, or the episode has ended
        if isinstance(error, ProtocolError):
            self._hub.count_bad_line(direct.life, error)
        self._directs.give_up(direct.life)
        self._begin_again(self._holding(direct.life), one, is_open=True, has=False)

    def watch(self) -> None:
        """Tell the fleet which steps its Blenders are making over lines."""
        self._directs.watch()

    def dropped_frame(self) -> None:
        """Count a frame from a connection that belongs to no life."""
        self._totals.stale += 1

    def _by_message(self, life: Life, number: int, serial: int) -> Holding:
        """Return what a life holds that answers a lease by a message. If it was played directly, that ends."""
        holding = self._holding(life)
        if (one := holding.find((number, serial))) is not None:
            self._directs.end(one.source)
        return holding

    def _goes_on_directly(self, one: Held, *, by_line: bool) -> bool:
        """Whether a lease is played over a line, so that nothing of it was lost with a connection."""
        direct = self._directs.find(one.name)
        return direct is not None and (by_line or not direct.played.asked)

    def _answer(self, holding: Holding, name: Name) -> Held | None:
        """Take the lease that a life answered from it. Return None, and count, if it does not hold that lease.

        Then nothing may be leased that might not be before. Params that flush at each call would answer each frame of a
        lease that was revoked too late with many more such leases, for ever.
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

    def _go_on(self, holding: Holding, name: Name) -> Held | None:
        """Return the lease of which a life has made a step that is not the last one, as `_answer` does, and keep it."""
        one = holding.find(name)
        if one is None:
            self._hub.send_revoke(holding.life, name[0], [name[1]])  # it was begun before it was taken back
            return self._answer(holding, name)
        if holding.episode not in (None, one):
            raise ProtocolError(f"a frame of lease {name[1]}, while another episode is open")
        if holding.episode is None:
            holding.open_episode(one)
            self._episodes[one.source.number, one.lease.position] = holding, one
        self._fleet.answered(holding.life, more=True)
        return one

    def _after_step(self, holding: Holding, one: Held) -> None:
        """Do what a step makes possible: the next one, or to close an episode that nobody needs."""
        if holding.episode is not one:
            self.dispatch()
            return
        if not holding.closing and (one.source.ended or one.source.error is not None):
            self._close_episode(holding)
        if not one.source.on_demand:  # else nothing is possible until it is asked for
            self.dispatch()
        if holding.episode is one and not holding.closing and not one.source.book.awaits(one.lease):
            self._fleet.working_since(holding.life, None)

    def _let_go(self, holding: Holding, one: Held) -> None:
        """Note that a life holds this lease no more."""
        self._sated = False
        holding.pop(one)
        name = one.source.number, one.lease.position
        if self._episodes and name in self._episodes and self._episodes[name][0] is holding:
            del self._episodes[name]
