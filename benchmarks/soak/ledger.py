"""Compares each frame with what it must be. Losses and duplicates are counted here, not taken from the stream."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import NamedTuple

import asyncblend as ab

from .scene import IMAGE, is_right

__all__ = ["Counts", "Ledger"]

_DETAILS = 10  # what goes wrong after these is only counted


class Counts(NamedTuple):
    """What was counted of one consumer, or of all of them."""

    frames: int = 0
    """Frames that were delivered."""
    passes: int = 0
    cancelled: int = 0
    """Passes that the consumer gave up before their end."""
    lost: int = 0
    duplicates: int = 0
    wrong: int = 0

    @classmethod
    def total(cls, counts: Iterable[Counts]) -> Counts:
        """Return the sum of several counts."""
        return cls(*map(sum, zip(*counts, strict=True)))


class Ledger:
    """What one consumer received, and what it should have received.

    Args:
        seed: The stream's.
        consumer: The consumer's number, which is in the params of its samples.
    """

    def __init__(self, seed: int, consumer: int = 0) -> None:
        self._seed, self._consumer = seed, consumer
        self._pass = range(0)
        self._missing: set[int] = set()
        self._images: dict[int, int] = {}  # checksums by index, of this pass and of the pass that it repeats
        self.counts = Counts()
        self.details: list[str] = []
        """Sentences about the first things that went wrong."""

    def begin(self, indices: range) -> None:
        """Begin a pass that must deliver these indices."""
        if indices != self._pass:
            self._images.clear()
        self._pass, self._missing = indices, set(indices)
        self._count("passes")

    def frame(self, frame: ab.Frame) -> None:
        """Check a frame that the consumer received."""
        self._count("frames")
        index = frame.index
        if index in self._missing:
            self._missing.remove(index)
        elif index in self._pass:
            self._count("duplicates")
            self._detail(f"index {index} came twice")
        else:
            self._wrong(f"index {index} is not of this pass")
        if not is_right(frame, self._seed, self._consumer):
            self._wrong(f"index {index} has wrong content")
        if (image := frame.get("image")) is not None:
            checksum = zlib.crc32(image.tobytes())
            if image.shape != IMAGE or self._images.setdefault(index, checksum) != checksum:
                self._wrong(f"index {index} has another image than when it was rendered before")

    def end(self) -> None:
        """Note that the pass has ended by itself, so that what is missing now is lost."""
        if self._missing:
            self._count("lost", len(self._missing))
            self._detail(f"lost {sorted(self._missing)[:10]}")

    def cancel(self) -> None:
        """Note that the consumer has given up the pass, so that what is missing is not lost."""
        self._count("cancelled")

    def _count(self, name: str, more: int = 1) -> None:
        self.counts = self.counts._replace(**{name: getattr(self.counts, name) + more})

    def _wrong(self, detail: str) -> None:
        self._count("wrong")
        self._detail(detail)

    def _detail(self, detail: str) -> None:
        if len(self.details) < _DETAILS:
            self.details.append(f"pass {self.counts.passes}, {self._pass}: {detail}")
