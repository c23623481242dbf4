"""PassStats and StreamStats: snapshots of what a pass, and the whole fleet, did and is doing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from .timing import Spread

STATES = ("new", "starting", "ready", "idle", "backoff", "stopping", "stopped", "failed")
"""All that an instance can be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassStats:
    """Counts of one pass, and how long things took; `rendering` and `queued` are of this moment.

    What was timed is of the latest minute, from the first frame of the stream on, as its start says nothing of its
    speed. After the end it is of the last minute. Two snapshots are equal if their counts are.
    """

    delivered: int
    """Frames that the consumer has taken."""
    rendering: int
    """Samples that a Blender holds, or that wait for another one after a crash."""
    queued: int
    """Frames that have arrived and wait for the consumer."""
    skipped: int
    """Samples given up."""
    bytes: int = field(default=0, compare=False)
    """Bytes of the arrays that the consumer has taken."""
    window: float = field(default=0.0, compare=False)
    """Seconds that all that follows is of: at most 60, and 0 before the first frame."""
    rate: float = field(default=0.0, compare=False)
    """Frames that the consumer has taken, per second."""
    occupancy: float = field(default=0.0, compare=False)
    """How full the queue was, in the mean over time. 0: training waits for rendering. 1: rendering waits for training."""
    waiting: float = field(default=0.0, compare=False)
    """The share of the time, from 0 to 1, in which the consumer waited for a frame."""
    seconds_waited: Spread = field(default=Spread(), compare=False)
    """How long the consumer waited for each frame: mean, median and 90th percentile. Many a wait is of no time at all."""
    seconds_sample: Spread = field(default=Spread(), compare=False)
    """How long the script's sample function took for each frame. Steps of an episode that came over a line, past the event
    loop, are left out, here and below."""
    seconds_render: Spread = field(default=Spread(), compare=False)
    """Of that, how long Blender rendered, for the frames that called `bl.render`."""
    seconds_capture: Spread = field(default=Spread(), compare=False)
    """Of that, the rest of `bl.render` for the same frames: reading, view transform, labels and files."""

    def as_dict(self, prefix: str = "asyncblend/") -> dict[str, float]:
        """Return all numbers by name, flat, as TensorBoard and Weights & Biases take them:

            for name, value in dataset.stats().as_dict().items():
                writer.add_scalar(name, value, step)      # torch.utils.tensorboard
            wandb.log(dataset.stats().as_dict(), step=step)

        A `Spread` is three numbers, such as "asyncblend/seconds_waited/median"; what is known by instance has the
        number of the instance, such as "asyncblend/frames/0"; and "asyncblend/state/ready" is how many instances are so.

        Args:
            prefix: What all names begin with.
        """
        numbers: dict[str, float] = {}
        for one in fields(self):
            name, value = f"{prefix}{one.name}", getattr(self, one.name)
            if isinstance(value, Spread):
                value = value._asdict()
            elif one.name == "state":
                value = dict.fromkeys(STATES, 0) | Counter(value.values())
            if isinstance(value, Mapping):
                numbers |= {f"{name}/{key}": number for key, number in value.items()}
            else:
                numbers[name] = value
        return numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamStats(PassStats):
    """The same of all passes since the stream was entered, and of the fleet; `state` is of this moment."""

    restarts: int
    """Blenders started again after a crash."""
    recycled: int
    """Blenders replaced on purpose, after `max_frames_per_instance` or `max_rss`, or with much shared memory lost to forks."""
    duplicates: int
    """Frames dropped because the same Blender had sent them already. They are among the stale ones too."""
    stale: int
    """Frames dropped because their sender did not hold that lease any more, or because their pass had ended."""
    bad_messages: int
    """Messages dropped because they could not be read, or because their sender had sent too many such."""
    refused: int
    """How often a peer was turned away, because it did not show the run's token or, with a cluster, the keys of a present
    Blender: connections in their handshake, and messages of a Blender that is over."""
    frames: Mapping[int, int]
    """By instance: frames that arrived from it."""
    state: Mapping[int, str]
    """By instance: new, starting, ready (has leases), idle (waits for one), backoff, stopping, stopped or failed."""
    instance_restarts: Mapping[int, int] = field(default_factory=dict)
    """By instance: how often its Blender was started again after a crash."""
    idle: float = field(default=0.0, compare=False)
    """The share of their time, from 0 to 1, in which Blenders that serve had no lease."""
    seconds_idle: Spread = field(default=Spread(), compare=False)
    """How long a Blender without any lease waited until it got one."""
