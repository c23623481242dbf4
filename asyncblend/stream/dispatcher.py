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
from ..wire.protocol import WHOLE, Step
from .direct import Direct
from .directs import Directs
from .ends import Blenders, Sender
from .episode_pass import EpisodePass
from .frame import Frame
from .holding import Held, Holding, load, urgent_load
from .holdings import Holdings
from .idleness import Idleness
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
        self._numbers = itertools.count()
        self._turns = itertools.count()
        self._dispatching = self._again = False
        self._in_turn = self._due = False  # whether more is to be told; whether to dispatch after that
        # Whether a free slot changes nothing: all Blenders have work for a while. Never while an episode has begun, so
        # what takes back a begun episode need not look at it.
        self._sated = False
        self._directs = Directs(self._fleet, lines, self._totals.frames)
        self._holdings = Holdings(hub, self._fleet, self._directs, self._totals)

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
        count = self._holdings.give_up(source)
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
        self._holdings.revoke(source)
        self._holdings.close_episodes(source)
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
            self._holdings.grant_steps(source)
        wanting = [source for source in self._passes if source.may_lease]
        if not wanting:  # before all that costs more: it is so after most frames
            self._holdings.suspend_stalled()
            return
        if self._dispatching:  # the user's params called `flush`, or began a pass
            self._again = True
            return
        holdings = [self._holdings.of(life) for life in self._fleet.ready_lives()]
        ready = [holding for holding in holdings if not holding.alone]
        # Each lease on its own wakes ZeroMQ's thread, which costs more than all else that a frame does: a Blender
        # that has work for a while gets several at once later.
        for holding in ready:
            if len(holding.held) <= self._config.prefetch // 2:
                break
        else:
            if not any(source.urgent for source in wanting):
                self._holdings.suspend_stalled(wanting)
                self._sated = not self._holdings.has_episodes
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
            self._holdings.send_leases()
        self._holdings.suspend_stalled([source for source in self._passes if source.may_lease])

    def ask(self, source: EpisodePass, drawn: Drawn) -> None:
        """Make the next step of an episode, with these params. A path shorter than `dispatch`."""
        self._directs.end(source)  # these params do not fit there
        source.ask(drawn)
        self._holdings.grant_steps(source)
        if source.may_lease:  # the Blender that held it is gone
            self.dispatch()

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
            holding.turn = self._served[source.number] = next(self._turns)
            sent = self._holdings.lease(holding, Held(source, lease), alone=alone)
            if not sent or alone:  # it is dying or reconnecting, or gets nothing beside this one
                ready.remove(holding)
            if not source.may_lease:
                wanting.remove(source)
        return count

    def _rank(self, source: Pass) -> tuple[bool, bool, float, int]:
        """Urgent passes come first, then those with a crashed sample, then those with the largest share of free slots."""
        return (not source.urgent, not source.book.has_returned, -source.free, self._served[source.number])

    # -- from the fleet -------------------------------------------------------------------------------------------

    def life_over(self, life: Life, why: InstanceError | None = None) -> None:
        """Give the leases of a life that has ended to others. `why`: how it ended."""
        self._fleet.gone(life)
        # A Blender that was closed, replaced, or started again with its packages says nothing of its sample.
        crashed = self._fleet.states[life.instance] in ("backoff", "failed")
        self._holdings.lose(life, crashed=crashed, why=why)
        self.dispatch()

    # -- from the hub ---------------------------------------------------------------------------------------------

    def reconnected(
        self, life: Life, unbegun: Sequence[Sequence[int]], opened: Sequence[Sequence[int]], *, by_line: bool = False
    ) -> None:
        """Send a life, which came back on another connection, the leases that it does not have.

        Args:
            unbegun: Names of the leases that it has not begun.
            opened: Names of the episodes that it has begun. They are sent again, as steps and frames may be lost; those
                that can no longer be replayed are lost, unless they need no more than their next step.
            by_line: Whether the latest frame of the one that is open went over the line, where nothing is lost.
        """
        self._holdings.reconnected(life, unbegun, opened, by_line=by_line)

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
        holding = self._holdings.heard_from(life, name)
        dropped = holding.is_closing(name)
        one = holding.find(name)
        if one is not None and not dropped and not one.expects(step.number):
            self._totals.stale += 1
            return
        one = self._holdings.answer(holding, name) if step.last else self._holdings.go_on(holding, name)
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
        holding = self._holdings.of(life)
        if (one := self._holdings.go_on(holding, (number, serial))) is not None:
            self._after_step(holding, one)

    def over(self, life: Life, number: int, serial: int) -> None:
        """Note that a Blender has closed an episode, because it was asked to or because no step is left."""
        holding = self._holdings.heard_from(life, (number, serial))
        if holding.find((number, serial)) is None:
            return  # it was taken back before it was known to be an episode
        taken_back = holding.is_closing((number, serial))
        one = self._holdings.answer(holding, (number, serial))
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
        holding = self._holdings.heard_from(life, (number, serial))
        taken_back = holding.is_closing((number, serial))
        one = self._holdings.answer(holding, (number, serial))
        if one is not None:
            if not taken_back:
                one.source.sample_failed(one.lease, error)
                if one.source.error is not None:
                    self._holdings.give_up(one.source)
            self.dispatch()

    def unreadable(self, life: Life, number: int, serial: int, *, last: bool = True) -> None:
        """Lease a sample again whose frame came, but could not be read."""
        name = number, serial
        holding = self._holdings.heard_from(life, name)
        taken_back = holding.is_closing(name)
        one = self._holdings.answer(holding, name) if last else self._holdings.go_on(holding, name)
        if one is not None:
            if not taken_back:
                if not last:
                    self._holdings.close_episode(holding)
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
        self._holdings.begin_again(self._holdings.of(direct.life), one, is_open=True, has=False)

    def watch(self) -> None:
        """Tell the fleet which steps its Blenders are making over lines."""
        self._directs.watch()

    def dropped_frame(self) -> None:
        """Count a frame from a connection that belongs to no life."""
        self._totals.stale += 1

    def _after_step(self, holding: Holding, one: Held) -> None:
        """Do what a step makes possible: the next one, or to close an episode that nobody needs."""
        if holding.episode is not one:
            self.dispatch()
            return
        if not holding.closing and (one.source.ended or one.source.error is not None):
            self._holdings.close_episode(holding)
        if not one.source.on_demand:  # else nothing is possible until it is asked for
            self.dispatch()
        if holding.episode is one and not holding.closing and not one.source.book.awaits(one.lease):
            self._fleet.working_since(holding.life, None)
