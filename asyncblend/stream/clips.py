"""Whole episodes, and clips of them, out of the frames of a pass. The same code with asyncio and without.

A frame is consumed when it is taken, so that its slot is free for the next one; but an episode is given out only when
its last frame has come. What was taken and not given out counts as not delivered in the pass's state: an episode that
is half collected when a program ends is rendered again from its beginning.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from ..checks import check_whole
from ..errors import ConfigError
from .batch import Batch
from .frame import Frame
from .passes import Arrival, Pass


class Clip(Frame):
    """Frames of one episode side by side: a Frame whose arrays have time as their first axis, T x H x W x C.

    Its values are what `collate` makes of the frames' values, in writable arrays of its own. `index`, `instance`,
    `params`, `params_age` and `step` are those of its first frame; `last` tells whether it ends its episode.
    """

    __slots__ = ("length", "stride")

    def __init__(self, frames: Sequence[Frame], stride: int) -> None:
        batch = Batch(len(frames))
        for frame in frames:
            batch.add(frame, frame.index, frame.step)
        first = frames[0]
        super().__init__(
            batch.values(),
            index=first.index,
            instance=first.instance,
            params=first.params,
            params_age=first.params_age,
            step=first.step,
            last=frames[-1].last,
        )
        self.length: int = len(frames)
        """The number of frames, T."""
        self.stride: int = stride
        """Steps from one frame to the next."""

    def __repr__(self) -> str:
        return f"<Clip of {self.length} frames from step {self.step} of {self.index}: {', '.join(self)}>"

    def __reduce__(self) -> tuple[Any, ...]:
        slots = {name: getattr(self, name) for name in (*Frame.__slots__, *Clip.__slots__)}
        return _remake, ({**slots, "_values": dict(self), "params": dict(self.params)},)


def _remake(slots: dict[str, Any]) -> Clip:
    clip = Clip.__new__(Clip)
    for name, value in slots.items():
        setattr(clip, name, value)
    return clip


class Cut(NamedTuple):
    """How clips are cut out of episodes: one after another, none overlapping. What is left at the end is too short."""

    length: int
    stride: int = 1

    @classmethod
    def checked(cls, length: int, stride: int, names: tuple[str, str] = ("length", "stride")) -> Cut:
        """Return it, or raise ConfigError. `names` are those of the options that say it."""
        for name, value in zip(names, (length, stride), strict=True):
            check_whole(name, value, 1)
        return cls(length, stride)

    @property
    def span(self) -> int:
        """The number of steps from the first frame of a clip to its last one, both included."""
        return (self.length - 1) * self.stride + 1

    def check(self, frames: Sequence[Frame]) -> None:
        """Raise ConfigError if an episode is shorter than a clip.

        Args:
            frames: The last ones of the episode.
        """
        steps = frames[-1].step + 1
        if steps < self.span:
            raise ConfigError(
                f"a clip of {self.length} frames with stride {self.stride} spans {self.span} steps, but episode "
                f"{frames[0].index} has only {steps}; ask for shorter clips, or let the script yield more frames"
            )


class Pending:
    """Frames that a consumer has taken, and that count as delivered when it says so.

    Args:
        source: Their pass.
        at_once: Whether they count when they are taken.
    """

    def __init__(self, source: Pass, *, at_once: bool = True) -> None:
        self._source, self._at_once = source, at_once
        self._due: list[Callable[[], None]] = []  # what lets the state say that they were delivered

    def take(self, arrival: Arrival) -> None:
        """Note, before it is consumed, that a frame was taken to be delivered by itself."""
        if not self._at_once:
            self._source.withhold(arrival.position, arrival.frame.step)
            self.settle(partial(self._source.release, arrival.position))

    def settle(self, action: Callable[[], None]) -> None:
        """Let the state say something when all that was taken is delivered."""
        if self._at_once:
            action()
        else:
            self._due.append(action)

    def deliver(self) -> None:
        """Let all that was taken count as delivered."""
        due, self._due = self._due, []
        for action in due:
            action()


class Collector:
    """Puts the frames of a pass together to episodes, and cuts these into clips. A pass has one.

    Args:
        source: The pass.
        pending: What it gives out becomes part of this.
    """

    def __init__(self, source: Pass, pending: Pending) -> None:
        self._source, self._pending = source, pending
        self._begun: dict[int, list[Frame]] = {}  # by position
        self._whole: deque[tuple[int, list[Frame]]] = deque()  # complete episodes, or what clips have left of them

    def take(self, arrival: Arrival) -> None:
        """Note, before it is consumed, that a frame is going to be collected."""
        self._source.withhold(arrival.position, arrival.frame.step)

    def add(self, arrival: Arrival) -> None:
        """Add a frame that was taken."""
        position, frame = arrival
        for given_up in [one for one in self._begun if not self._source.withholds(one)]:
            del self._begun[given_up]  # a bad sample that was skipped
        if not self._source.withholds(position):
            return  # what had arrived of it before it was skipped
        frames = self._begun.setdefault(position, [])
        frames.append(frame)
        if frame.last:
            self._whole.append((position, self._begun.pop(position)))

    def episode(self) -> list[Frame] | None:
        """Return the next episode that is whole, or None if there is none yet.

        Raises:
            ConfigError: Its first frames were delivered before, one by one or in clips.
        """
        if not self._whole:
            return None
        position, frames = self._whole[0]
        if frames[0].step > 0:
            raise ConfigError(
                f"episode {frames[0].index} begins at step {frames[0].step}, because the ones before were delivered one "
                f"by one or in clips, perhaps before the state was saved; go on in the same way, or begin anew"
            )
        self._whole.popleft()
        self._pending.settle(partial(self._source.release, position))
        return frames

    def sample(self) -> Frame | None:
        """Return the next sample that is whole: a frame, or a clip of all its frames. Raises as `episode` does."""
        if (frames := self.episode()) is None:
            return None
        return frames[0] if len(frames) == 1 else Clip(frames, 1)

    def clip(self, cut: Cut) -> Clip | None:
        """Return the next clip of the episodes that are whole, or None if there is none yet.

        Raises:
            ConfigError: The next episode is shorter than a clip.
        """
        while self._whole:
            cut.check(self._whole[0][1])
            position, frames = self._whole.popleft()
            now, left = frames[: cut.span], frames[cut.span :]
            if len(left) >= cut.span:
                self._whole.appendleft((position, left))
                self._pending.settle(partial(self._source.withhold_from, position, left[0].step))
            else:
                self._pending.settle(partial(self._source.release, position))
            if len(now) == cut.span:
                return Clip(now[:: cut.stride], cut.stride)
        return None
