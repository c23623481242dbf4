"""Told: what a warm fleet and the programs that are attached to it tell each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..config import StreamConfig
from ..errors import SampleError
from ..wire.protocol import Spent


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetStatus:
    """How a fleet that stays warm is, at this moment."""

    name: str
    node: str
    """Address of the node that it runs on; "" if it does not answer."""
    blender: str
    """Blender's version; "" where there is none."""
    programs: int
    """How many are attached: each stream, rank and worker of a DataLoader counts as one."""
    frames: int
    """Frames that its Blenders have made, for all programs."""
    restarts: int
    """Blenders started again after a crash."""
    instance_restarts: Mapping[int, int]
    """The same by instance."""
    recycled: int
    """Blenders replaced on purpose."""
    state: Mapping[int, str]
    """By instance: as `StreamStats.state` has it."""
    error: Exception | None
    """Why it cannot go on, if it has failed. It keeps its name, so that this can be learned, until it is stopped."""

    @classmethod
    def silent(cls, name: str) -> FleetStatus:
        """Return that of a fleet that does not answer."""
        return cls(
            name=name, node="", blender="", programs=0, frames=0, restarts=0, instance_restarts={}, recycled=0, state={},
            error=None,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """What a program learns of a fleet when it attaches."""

    version: int
    """Of the protocol, as `wire.protocol.VERSION` is here."""
    config: StreamConfig
    """The fleet's. Its paths are those of the machine where it was started."""
    source: Mapping[str, Any]
    """What its samples are a function of, as `recording.about.source` describes it."""
    status: FleetStatus


class Made(NamedTuple):
    """A frame, the answer to a lease or to a further step of an episode."""

    sample: int
    values: dict[str, Any]
    instance: int
    step: int
    last: bool
    fingerprint: Sequence[Any]
    spent: Spent | None


class Bad(NamedTuple):
    """The sample cannot be made."""

    error: SampleError


class Over(NamedTuple):
    """No more is made of the sample: its episode has ended before this step, or it was taken back."""


class Gone(NamedTuple):
    """There is nothing to be said: the lease was taken back, or its last frame answered it."""


class Ended(NamedTuple):
    """The fleet makes nothing any more."""

    error: Exception


class Answer(NamedTuple):
    """What a call about a lease returns. Ray may deliver answers in another order than that in which they were given."""

    turn: int | None
    """Its number among the answers of one place, from 0 on: they are heard in that order. None: at any time."""
    what: Made | Bad | Over | Gone | Ended
