"""Whole episodes, and clips of them, out of the frames of a pass. The same code with asyncio and without.

A frame is consumed when it is taken, so that its slot is free for the next one; but an episode is given out only when
its last frame has come. What was taken and not given out counts as not delivered in the pass's state: an episode that
is half collected when a program ends is rendered again from its beginning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ..config import check_whole
from ..errors import ConfigError
from .batch import Batch
from .frame import Frame
from .passes import Arrival, Pass


class Clip(Frame):
    """Frames of one episode side by side: a Frame whose arrays have time as their first axis, T x H x W x C.

    Its values are what `collate` makes of the frames' values, in writable arrays of its own. `index`, `instance`,
    `params` and `step` are those of its first frame; `last` tells whether it ends its episode.
    """

    __slots__ = ("length", "stride")

    def __init__(self, frames: Sequence[Frame], stride: int) -> None:
        batch = Batch(len(frames))
        for frame in frames:
            batch.add(frame, frame.index)
        values = batch.finish()
        del values["index"]
        first = frames[0]
        super().__init__(
            values,
            index=first.index,
            instance=first.instance,
            params=first.params,
            step=first.step,
            last=frames[-1].last,
        )
        self.length = len(frames)
        """The number of frames, T."""
        self.stride = stride
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


def whole_sample(episode: Sequence[Frame]) -> Frame:
    """Return an episode as one sample: its frame, or a clip of all its frames."""
    return episode[0] if len(episode) == 1 else Clip(episode, 1)


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

    def count(self, frames: Sequence[Frame]) -> int:
        """Return how many clips an episode has.

        Raises:
            ConfigError: It is shorter than a clip.
        """
        if len(frames) < self.span:
            raise ConfigError(
                f"a clip of {self.length} frames with stride {self.stride} spans {self.span} steps, but episode "
                f"{frames[0].index} has only {len(frames)}; ask for shorter clips, or let the script yield more frames"
            )
        return len(frames) // self.span

    def clip(self, frames: Sequence[Frame], number: int) -> Clip:
        """Return a clip of an episode."""
        start = number * self.span
        return Clip(frames[start : start + self.span : self.stride], self.stride)


class Collector:
    """Puts the frames of a pass together to episodes. One consumer has it."""

    def __init__(self, source: Pass) -> None:
        self._source = source
        self._begun: dict[int, list[Frame]] = {}  # by position

    def take(self, arrival: Arrival) -> None:
        """Note, before it is consumed, that a frame is going to be collected."""
        self._source.withhold(arrival.position)

    def add(self, arrival: Arrival) -> tuple[int, list[Frame]] | None:
        """Add a frame. Return the position and the frames of its episode if that is whole now.

        Raises:
            ConfigError: The first frames of the episode were delivered before a state was saved that this pass began
                with.
        """
        position, frame = arrival
        for given_up in [one for one in self._begun if not self._source.withholds(one)]:
            del self._begun[given_up]  # a bad sample that was skipped
        frames = self._begun.setdefault(position, [])
        if frame.step != len(frames):
            raise ConfigError(
                f"episode {frame.index} begins at step {frame.step}, because the ones before were delivered one by one "
                f"before the state was saved; go on frame by frame, or begin anew"
            )
        frames.append(frame)
        return (position, self._begun.pop(position)) if frame.last else None

    def episodes(self, arrival: Arrival) -> Iterator[list[Frame]]:
        """Add a frame, and yield its episode if that is whole now."""
        if (whole := self.add(arrival)) is not None:
            self._source.release(whole[0])
            yield whole[1]

    def samples(self, arrival: Arrival) -> Iterator[Frame]:
        """Add a frame, and yield its sample if that is whole now: the frame, or a clip of all its frames."""
        for frames in self.episodes(arrival):
            yield whole_sample(frames)

    def clips(self, arrival: Arrival, cut: Cut) -> Iterator[Clip]:
        """Add a frame, and yield the clips of its episode if that is whole now."""
        if (whole := self.add(arrival)) is not None:
            position, frames = whole
            count = cut.count(frames)
            for number in range(self._source.clips_given(position), count):
                clip = cut.clip(frames, number)
                if number + 1 == count:
                    self._source.release(position)
                else:
                    self._source.withhold(position, clips=number + 1)
                yield clip
