"""PassStats and StreamStats: snapshots of what a pass, and the whole fleet, did and is doing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PassStats:
    """Counts of one pass; `rendering` and `queued` are of this moment."""

    delivered: int
    """Frames that the consumer has taken."""
    rendering: int
    """Samples that a Blender holds, or that wait for another one after a crash."""
    queued: int
    """Frames that have arrived and wait for the consumer."""
    skipped: int
    """Samples given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamStats(PassStats):
    """Counts of all passes since the stream was entered; `rendering`, `queued` and `state` are of this moment."""

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
