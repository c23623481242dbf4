"""Pass: one consumer's way through a sequence of indices. It knows neither Blenders nor sockets."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from ..checks import check_whole
from ..config import Params, StreamConfig, check_params
from ..errors import ConfigError, InstanceError, SampleError
from .frame import Frame
from .indices import Indices, checked_indices, described, own_indices
from .leases import Lease, LeaseBook
from .params import Drawn, EndOfParams, ParamsSource
from .queue import FrameQueue
from .stats import PassStats
from .timing import Timing, summary

_log = logging.getLogger("asyncblend")

Guilt = Literal["none", "possible", "likely", "certain"]
"""Whether a sample crashed its Blender.

`certain`: the Blender held no other. `likely`: it is the first of those that it held. `possible`: it is another of those.
`none`: nothing of it was begun, or its Blender did not crash.
"""


class Arrival(NamedTuple):
    """A frame and the slot that it occupies."""

    position: int
    frame: Frame


_FLOW = (StopIteration, StopAsyncIteration, GeneratorExit, asyncio.CancelledError)
"""What params may not raise as itself: the consumer's loop would end in silence, or its task seem cancelled (PEP 479)."""


class Pass:
    """What belongs to one consumer alone: its leases, its queue, its order, its crashes, its error and its counters.

    A fleet outlives its passes, and several may run at once; the dispatcher shares the Blenders out among them.

    Args:
        config: Options of the stream; they hold where the pass has none of its own.
        indices: The samples to render, any sequence or array of whole numbers from 0 on. None: the config's own.
        params: As in StreamConfig. None: the config's.
        ordered: Whether frames come in the order of `indices`. None: as the config says.
        queue_size: Frames of this pass that may be rendering, in flight and queued at once. None: the config's.
        urgent: Whether its samples are rendered before those of other passes, also on a Blender that holds some.
        on_bad_sample: As in StreamConfig. None: the config's.
        state: From `state_dict` of a pass over the same indices; the samples consumed then are excluded, and those that
            had params then get the same ones.

    Raises:
        ConfigError: An argument is wrong, or the state does not fit.
    """

    on_demand = False
    """Whether the steps of an episode after the first are made only when its consumer asks for them."""

    def __init__(
        self,
        config: StreamConfig,
        indices: Indices | None = None,
        *,
        params: Params | None = None,
        ordered: bool | None = None,
        queue_size: int | None = None,
        urgent: bool = False,
        on_bad_sample: Literal["raise", "skip"] | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self._seed = config.seed if config.script else None  # None: the fleet's, which is not known yet
        self._indices = own_indices(config) if indices is None else checked_indices(indices)
        self.params: ParamsSource = ParamsSource(config.params if params is None else check_params(params))
        self._skips = (on_bad_sample or config.on_bad_sample) == "skip"
        self._max_deaths = config.restart.max_sample_deaths
        if ordered is not None and not isinstance(ordered, bool):
            raise ConfigError(f"ordered must be a bool; got {ordered!r}")
        if queue_size is not None:
            check_whole("queue_size", queue_size, 1)
        self.urgent = urgent
        self.number = -1  # Names the pass on the wire; given by the dispatcher
        self.book: LeaseBook[Drawn] = LeaseBook(
            self._indices,
            self._draw,
            slots=config.queue_size if queue_size is None else queue_size,
            ordered=config.ordered if ordered is None else ordered,
            on_demand=self.on_demand,
        )
        self._fingerprints: dict[int, list[Any]] = {}  # by position, of the first frame of an episode
        self._withheld_params: dict[int, Drawn] = {}  # by position
        self._withheld: dict[int, int] = {}  # by position: the first step that counts as not delivered
        self._skipped: set[int] = set()  # positions of bad samples of which frames are still to be consumed
        if state is not None:
            self._load(state)
        self.queue: FrameQueue[Arrival] = FrameQueue(self.book.slots)
        """Frames in the order in which the consumer gets them."""
        self.timing: Timing = Timing(self.book.slots)
        self.bytes: int = 0
        """Those of the arrays that the consumer has taken."""
        self.error: BaseException | None = None  # Why no more samples are leased
        self._last: BaseException | None = None  # What the consumer gets once all that is leased has arrived
        self._ended = False
        self._early: dict[int, deque[Frame]] = {}  # by position: arrived frames that are not released yet
        self._deaths: dict[int, int] = {}  # by position: Blenders that crashed, probably while they rendered it
        self._suspects: set[int] = set()  # positions that a Blender held when it crashed
        if self.book.done:
            self.queue.close()

    @classmethod
    def single(cls, config: StreamConfig, index: int, params: Mapping[str, Any] | None) -> Pass:
        """Return the pass of one sample that is wanted now."""
        return cls(config, [index], params=params, queue_size=1, urgent=True, on_bad_sample="raise")

    # -- for the dispatcher -------------------------------------------------------------------------------------

    @property
    def may_lease(self) -> bool:
        """Whether a sample may be leased now."""
        return self.error is None and not self._ended and self.book.may_lease

    @property
    def has_params(self) -> bool:
        """Whether the next sample has its params, or can get them now. If not, they are awaited from now on."""
        return not self.params.awaited or self.book.next_is_drawn or self.params.ready()

    def age(self, lease: Lease[Drawn]) -> int:
        """Return how many other leases were granted since the params of this one were drawn."""
        return self.book.granted - lease.params.granted - 1

    @property
    def ended(self) -> bool:
        """Whether it was given up: what still arrives is dropped."""
        return self._ended

    @property
    def free(self) -> float:
        """The share of its slots that are free, from 0 to 1."""
        return 1 - self.book.occupied / self.book.slots

    def grant(self) -> int | None:
        """Let an open episode make its next step, if there is one that waits for that and a free slot.

        Returns:
            The episode's position, or None.
        """
        return None if self.error is not None or self._ended else self.book.grant()

    def stalls(self, lease: Lease[Drawn]) -> bool:
        """Whether an open episode waits for a slot, which only this pass's consumer can free."""
        return not self.on_demand and not self.book.awaits(lease)

    def params_of_step(self, step: int) -> Drawn | None:
        """Return what the host sends for a step of an episode. None: the params of its lease hold for all of its steps."""
        return None

    def fingerprint(self, lease: Lease[Drawn]) -> list[Any]:
        """Return what the first frame of an episode looked like, by which Blender knows whether it can be replayed."""
        return self._fingerprints.get(lease.position, [])

    def arrive(self, lease: Lease[Drawn], frame: Frame, fingerprint: Sequence[Any] = ()) -> bool:
        """Queue a frame, and those that waited for it. Return False if the pass has ended: the frame is dropped.

        Args:
            fingerprint: Of the first frame of an episode.
        """
        if self._ended:
            return False
        if fingerprint:
            self._fingerprints.setdefault(lease.position, list(fingerprint))
        self.book.arrive(lease, last=frame.last)
        if frame.last and self._suspects:
            self._suspects.discard(lease.position)
        self._early.setdefault(lease.position, deque()).append(frame)
        self._let_out()
        self._close_if_over()
        return True

    def over(self, lease: Lease[Drawn]) -> None:
        """Note that an episode has ended of which more frames were expected."""
        if not self._ended:
            self.book.finish(lease)
            self._let_out()
            self._close_if_over()

    def sample_failed(self, lease: Lease[Drawn], error: SampleError) -> None:
        """End the pass with the error of a sample that raised, or skip the sample, as the user chose."""
        if not self._ended:
            self.book.fail(lease)
            self._bad_sample(lease.position, error)

    @property
    def next_is_suspect(self) -> bool:
        """Whether the next sample to lease may have crashed a Blender. It must be alone in its next one."""
        return bool(self._suspects) and self.book.next_returned in self._suspects

    def give_back(self, lease: Lease[Drawn], guilt: Guilt = "none", why: InstanceError | None = None) -> None:
        """Take back a lease whose Blender is gone, or whose frame cannot be read.

        Args:
            guilt: Whether its sample crashed the Blender.
            why: How the Blender ended.
        """
        if self._ended:
            return
        self.book.give_back(lease)
        if guilt == "none":
            return
        self._suspects.add(lease.position)
        if guilt == "possible":
            return
        if guilt == "certain" or lease.position not in self._deaths:  # a likely one counts once
            self._deaths[lease.position] = self._deaths.get(lease.position, 0) + 1
        deaths = self._deaths[lease.position]
        if deaths >= self._max_deaths and guilt == "certain":
            text = f"sample {lease.index} killed its Blender {deaths} times; its params: {dict(lease.params.values)}"
            error = SampleError(text if why is None else f"{text}. The last time: {why}", index=lease.index)
            error.__cause__ = why
            self._bad_sample(lease.position, error)

    def fail(self, error: BaseException) -> None:
        """Lease no more. The consumer gets the frames that are there, then the error, unless all have arrived."""
        if self.error is None:
            self.error = error
            self.queue.close(None if self.book.complete else error)

    def finish(self, error: BaseException) -> None:
        """Draw no more params, because they raised or have ended. The consumer gets all frames leased before."""
        if isinstance(error, EndOfParams) and not self.urgent:
            self.book.stop_drawing(failed=False)
            self._let_out()
            self._close_if_over()
            return
        if isinstance(error, EndOfParams):
            error = ConfigError("the iterator that gives the params has ended; give this sample its own: params={...}")
        if isinstance(error, _FLOW):
            told = RuntimeError(f"params raised {type(error).__name__}")
            told.__cause__ = error
            error = told
        if self._last is None:
            self._last = error
        self.book.stop_drawing()
        self._close_if_over()

    def end(self, error: BaseException | None = None) -> None:
        """Give up everything: what is queued, and what will still arrive. A waiting consumer gets the error."""
        self._ended = True
        self.params.end()
        self.queue.close(error)
        self.queue.clear()
        self._early.clear()

    def consume(self, arrival: Arrival) -> None:
        """Note that the consumer has this frame, and close the queue after the last one."""
        if not self._ended:
            position = arrival.position
            self.book.consume(position)
            self.timing.queued(-1, time.monotonic())
            self.bytes += arrival.frame.nbytes
            if position in self._skipped:
                self.release(position)  # who collects its episode has begun to withhold it again
            if position not in self.book.drawn:  # no more of it will come
                self._skipped.discard(position)
                if position not in self._withheld:
                    self._fingerprints.pop(position, None)
            self._close_if_over()

    def _bad_sample(self, position: int, error: SampleError) -> None:
        if not self._skips:
            self.fail(error)
            return
        _log.warning("Skipped a sample: %s", str(error).partition("\n")[0])
        self._skipped.add(position)
        self.book.skip(position)
        self.release(position)
        if position not in self.book.drawn:
            self._skipped.discard(position)
        self._let_out()
        self._close_if_over()

    def _close_if_over(self) -> None:
        if self._last is not None and not self.book.unfinished:
            self.fail(self._last)
        elif self.book.done:
            self.queue.close()

    def _let_out(self) -> None:
        while self._early and (position := self.book.release(self._early)) is not None:
            frames = self._early[position]
            self.queue.put(Arrival(position, frames.popleft()))
            self.timing.queued(1, time.monotonic())
            if not frames:
                del self._early[position]

    def _draw(self, index: int) -> Drawn:
        return self.params.draw(index, self.book.granted)

    # -- for its consumer ---------------------------------------------------------------------------------------

    def withhold(self, position: int, step: int) -> None:
        """Let the state say that of a sample only the steps before this one were delivered, until `release`.

        Call it before the frame of that step is consumed. Only the first call for a sample counts.
        """
        self._withheld.setdefault(position, step)
        self._withheld_params[position] = self.book.drawn[position]

    def withhold_from(self, position: int, step: int) -> None:
        """Let the state say so of another step, of a sample that is withheld."""
        self._withheld[position] = step

    def withholds(self, position: int) -> bool:
        """Whether `withhold` was called for a sample, and it was neither released nor skipped since."""
        return position in self._withheld

    def release(self, position: int) -> None:
        """Let the state say of a sample what was consumed."""
        self._withheld.pop(position, None)
        self._withheld_params.pop(position, None)
        if position not in self.book.drawn:
            self._fingerprints.pop(position, None)

    def stats(self) -> PassStats:
        """Return a snapshot of the counters, and of what was timed."""
        timing = self.timing
        return PassStats(**self.counts(), **summary([timing], timing.started, timing.at(time.monotonic())))

    def counts(self) -> dict[str, Any]:
        """Return the counters alone, by the fields of `PassStats`."""
        book = self.book
        return {
            "delivered": book.delivered,
            "rendering": 0 if self._ended else book.rendering,
            "queued": 0 if self._ended else book.queued,
            "skipped": book.skipped,
            "bytes": self.bytes,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return which samples have been consumed, as plain data that JSON can hold.

        Where there are params, they are part of it: their own state, if they have `state_dict`, and what was drawn for
        samples that are not consumed.

        Raises:
            ConfigError: JSON cannot hold the params' own state.
        """
        withheld = dict(self._withheld)
        state = {"seed": self._seed, "indices": described(self._indices), **self.book.state_dict(withheld)}
        if "steps" in state:
            state["fingerprints"] = {position: self._fingerprints.get(int(position), []) for position in state["steps"]}
        params = self.params.state_dict({**self.book.drawn, **self._withheld_params}, self.book.granted)
        return state if params is None else {**state, "params": params}

    def know_seed(self, seed: int) -> None:
        """Note the seed, which a pass over a fleet does not know before it is attached to.

        Raises:
            ConfigError: The loaded state is one of another seed.
        """
        if self._seed not in (None, seed):
            raise ConfigError(f"the saved state has seed={self._seed!r}, this stream has {seed!r}")
        self._seed = seed

    def _load(self, state: Mapping[str, Any]) -> None:
        if not isinstance(state, Mapping) or "indices" not in state:
            raise ConfigError(f"not a saved state of a stream: {state!r:.200}")
        own = {"seed": self._seed, "indices": described(self._indices)}
        if self._seed is None:
            self._seed = own["seed"] = state.get("seed")
        elif state.get("seed", self._seed) is None:
            del own["seed"]  # it was saved before the fleet, whose seed it is, was known
        for name, value in own.items():
            if state.get(name) != value:
                raise ConfigError(f"the saved state has {name}={state.get(name)!r}, this stream has {value!r}")
        self.book.load_state_dict(state)
        fingerprints = state.get("fingerprints", {})
        good = isinstance(fingerprints, dict) and fingerprints.keys() <= state.get("steps", {}).keys()
        if not good or not all(isinstance(one, list) for one in fingerprints.values()):
            raise ConfigError(f"not a saved state of a stream: {state!r:.200}")
        self._fingerprints = {int(position): one for position, one in fingerprints.items()}
        if "params" in state:
            self.book.restore(self.params.load_state_dict(state["params"]))
