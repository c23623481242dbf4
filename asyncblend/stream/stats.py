"""StreamStats: a snapshot of what a stream did and is doing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["StreamStats"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamStats:
    """Counts since the stream was entered; `rendering`, `queued` and `state` are of this moment."""

    delivered: int
    """Frames that the consumer has taken."""
    rendering: int
    """Indices out at a Blender, or waiting to go out again after one died."""
    queued: int
    """Frames that have arrived and wait for the consumer."""
    restarts: int
    """Blenders started again."""
    recycled: int
    """Blenders replaced on purpose, after `max_frames_per_instance` or `max_rss`."""
    duplicates: int
    """Frames dropped because their sample had arrived already (they are among the stale ones too)."""
    stale: int
    """Frames dropped because their sender did not hold that lease any more."""
    bad_messages: int
    """Messages dropped because they could not be read, or because their sender had sent too many such."""
    skipped: int
    """Samples given up."""
    frames: Mapping[int, int]
    """By instance: frames that arrived from it."""
    state: Mapping[int, str]
    """By instance: new, starting, ready (has leases), idle (waits for one), backoff, stopping, stopped or failed."""
