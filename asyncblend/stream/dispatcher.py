"""Dispatcher: leases go out to the Blenders, frames come in to the queue. Where book, hub, fleet and queue meet."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from ..config import StreamConfig
from ..errors import ConfigError, SampleError
from ..fleet.fleet import Fleet
from ..wire import payload
from ..wire.launch import Life
from .frame import Frame
from .hub import Hub
from .leases import LeaseBook
from .queue import FrameQueue
from .stats import StreamStats

_log = logging.getLogger("asyncblend")

__all__ = ["Book", "Dispatcher", "Drawn", "new_book"]


class Drawn(NamedTuple):
    """The params of one index, drawn once."""

    parts: list[Any]
    """As they travel."""
    values: Mapping[str, Any]
    """As Blender sees them."""


Book = LeaseBook[Life, Drawn]
_NONE = Drawn(payload.encode_values({}), MappingProxyType({}))


def new_book(config: StreamConfig, start: int, first_serial: int = 0) -> Book:
    """The book of one pass that begins at index `start`."""

    def draw(index: int) -> Drawn:
        if config.params is None:
            return _NONE
        values = config.params(index) if callable(config.params) else config.params
        try:
            tree, *arrays = payload.encode_values(values)
        except payload.Unsendable as error:
            raise ConfigError(f"params of index {index}: {error}") from None
        # A snapshot: the training loop may change its arrays, a lease given out again has its first params.
        parts = [tree, *(array.tobytes() for array in arrays)]
        return Drawn(parts, MappingProxyType(payload.decode_values(parts)))

    return LeaseBook(
        draw,
        places=config.queue_size,
        start=start,
        length=config.length,
        shard=config.shard,
        ordered=config.ordered,
        first_serial=first_serial,
    )


class Dispatcher:
    """Hears of everything (it is the hub's Receiver) and decides what is leased next. Never waits."""

    def __init__(self, config: StreamConfig, hub: Hub, fleet: Fleet, book: Book) -> None:
        self._config, self._hub, self._fleet = config, hub, fleet
        self._frames = dict.fromkeys(fleet.states, 0)
        self._last_lease: dict[int, int] = {}  # serial, by instance
        self._stale = self._duplicates = self._delivered = self._skipped = (
            0  # of earlier passes, and from no life at all
        )
        self.error: BaseException | None = None
        """Why no more leases go out in this pass."""
        self._end: BaseException | None = None  # the same, for all passes to come
        self._open(book)
        self.dispatch()

    def begin(self, book: Book) -> None:
        """A new pass. What is rendering or queued of the last one is dropped."""
        self.queue.close()
        self.queue.clear()  # a consumer that was woken for one of them must not take it for a frame of the new pass
        self._stale += self.book.stale
        self._duplicates += self.book.duplicates
        self._delivered += self.book.delivered
        self._skipped += self.book.skipped
        self._open(book)
        self.error = self._end
        if self.error is not None:
            self.queue.close(self.error)
        self.dispatch()

    def _open(self, book: Book) -> None:
        self.book = book
        self.queue: FrameQueue[Frame] = FrameQueue(self._config.queue_size)
        """Frames in the order in which they are to be taken."""
        self._deaths: dict[int, int] = {}  # Blenders that died at it, by index
        self._early: dict[int, Frame] = {}  # arrived before their turn, when the stream is ordered

    def take(self, frame: Frame) -> None:
        """The consumer has this frame."""
        self.book.take(frame.index)
        self.dispatch()

    def dispatch(self) -> None:
        """Lease all that may be leased now, always to whoever holds least; end the queue when all is delivered."""
        if self.error is not None:
            return
        if not self.book.may_lease:  # before all that costs more: it is so after most frames
            if self.book.done:
                self.queue.close()
            return
        lives = self._fleet.ready_lives()
        # One lease at a time would wake ZeroMQ's thread for each, which costs more than all else that a frame does:
        # who has work for a while gets several at once later.
        if not any(self.book.holding(life) <= self._config.prefetch // 2 for life in lives):
            return
        while lives:
            # Who holds least; among those, who has waited longest: with few places all have their turn.
            life = min(lives, key=lambda one: (self.book.holding(one), self._last_lease.get(one.instance, -1)))
            if self.book.holding(life) >= self._config.prefetch:
                return
            try:
                lease = self.book.lease(life)
            except BaseException as error:  # the user's params raised: whatever it is, it is the consumer's
                self._fail_pass(error)
                return
            if lease is None:
                return
            self._last_lease[life.instance] = lease.serial
            self._fleet.leased(life)
            if not self._send(life, lease.serial, lease.index, lease.params):
                # It is dying, or reconnecting: the lease is its own until then.
                lives.remove(life)

    def fail(self, error: BaseException) -> None:
        """The run cannot go on: no more leases; the consumer gets the frames that are there, then the error."""
        self._end = self._end or error
        self._fail_pass(error)

    def _fail_pass(self, error: BaseException) -> None:
        if self.error is None:
            self.error = error
            # If all has arrived, the consumer has no need of the fleet any more.
            self.queue.close(None if self.book.complete else error)

    @property
    def blender_version(self) -> str:
        """Of the Blenders, once one is ready; "" before, and where there is none."""
        return self._hub.blender

    @property
    def end(self) -> BaseException | None:
        """Why the run cannot go on: the first reason."""
        return self._end

    def stats(self) -> StreamStats:
        """A snapshot."""
        book = self.book
        return StreamStats(
            delivered=self._delivered + book.delivered,
            rendering=book.rendering,
            queued=book.waiting,
            restarts=self._fleet.restarts,
            recycled=self._fleet.recycled,
            duplicates=self._duplicates + book.duplicates,
            stale=self._stale + book.stale,
            bad_messages=self._hub.bad_messages,
            skipped=self._skipped + book.skipped,
            frames=dict(self._frames),
            state=self._fleet.states,
        )

    def _send(self, life: Life, serial: int, index: int, params: Drawn) -> bool:
        return self._hub.send_lease(life, serial, index, self.book.first_serial, params.parts)

    # -- from the fleet -----------------------------------------------------------------------------------------

    def life_over(self, life: Life) -> None:
        """Its leases go to others."""
        self._hub.forget(life)
        held = self.book.held(life)
        self.book.give_back(life)
        # Who was ended by us says nothing of its sample: closed, replaced, or started again with its packages.
        if held and self._fleet.states[life.instance] in ("backoff", "failed"):
            lease = held[0]  # the one that it was at: a Blender answers them in their order
            deaths = self._deaths[lease.index] = self._deaths.get(lease.index, 0) + 1
            if deaths >= self._config.restart.max_sample_deaths:
                text = (
                    f"sample {lease.index} killed its Blender {deaths} times, or something outside did (is memory short?); "
                    f"its params: {dict(lease.params.values)}"
                )
                self._bad_sample(lease.index, SampleError(text, index=lease.index))
        self.dispatch()

    # -- from the hub -------------------------------------------------------------------------------------------

    def knows(self, life: Life) -> bool:
        return self._fleet.is_current(life)

    def beat(self, life: Life, rss: int = 0) -> None:
        self._fleet.beat(life, rss)

    def ready(self, life: Life) -> None:
        self._fleet.ready(life)
        self.dispatch()

    def reconnected(self, life: Life, holding: Sequence[int]) -> None:
        for lease in self.book.held(life):
            if lease.serial not in holding:
                self._send(life, lease.serial, lease.index, lease.params)

    def frame(self, life: Life, serial: int, index: int, values: dict[str, Any]) -> None:
        lease = self.book.arrive(index, serial, life)
        self._fleet.answered(life, more=self.book.holding(life) > 0)
        if lease is not None:
            self._frames[life.instance] += 1
            self._early[index] = Frame(values, index=index, instance=life.instance, params=lease.params.values)
            self._let_out(index)
        self.dispatch()

    def sample_failed(self, life: Life, serial: int, index: int, error: str, traceback: str) -> None:
        counts = self.book.fail(index, serial, life)
        self._fleet.answered(life, more=self.book.holding(life) > 0)
        if counts:
            text = f"sample {index} failed in Blender {life.instance}: {error}\n\n{traceback}"
            self._bad_sample(index, SampleError(text, index=index, traceback=traceback))

    def _let_out(self, turn: int | None) -> None:
        """Queue this frame if it is there and its turn, and those that waited for it."""
        while turn in self._early and self.book.may_leave(turn):
            self.queue.put(self._early.pop(turn))
            turn = self.book.left(turn)

    def _bad_sample(self, index: int, error: SampleError) -> None:
        """A sample that cannot be made: the end of this pass, or one frame less, as the user chose."""
        if self._config.on_bad_sample == "raise":
            self._fail_pass(error)
            return
        _log.warning("Skipped a sample: %s", str(error).partition("\n")[0])
        self._let_out(self.book.skip(index))
        self.dispatch()

    def misbehaved(self, life: Life, how: str) -> None:
        self._fleet.expel(life, how)

    def dropped_frame(self) -> None:
        self._stale += 1
