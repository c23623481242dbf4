"""Compares each frame with what it must be. Losses and duplicates are counted here, not taken from the stream."""

from __future__ import annotations

import zlib

import asyncblend as ab

from .scene import IMAGE, is_right

__all__ = ["Ledger"]

_DETAILS = 10  # what goes wrong after these is only counted


class Ledger:
    """What the consumer received, and what it should have received."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._pass = range(0)
        self._missing: set[int] = set()
        self._images: dict[int, int] = {}  # checksums by index, of this pass and of the pass that it repeats
        self.delivered = self.lost = self.duplicates = self.wrong = self.passes = 0
        self.details: list[str] = []
        """Sentences about the first things that went wrong."""

    def begin(self, indices: range) -> None:
        """Begin a pass that must deliver these indices."""
        if indices != self._pass:
            self._images.clear()
        self._pass, self._missing = indices, set(indices)
        self.passes += 1

    def frame(self, frame: ab.Frame) -> None:
        """Check a frame that the consumer received."""
        self.delivered += 1
        index = frame.index
        if index in self._missing:
            self._missing.remove(index)
        elif index in self._pass:
            self.duplicates += 1
            self._detail(f"index {index} came twice")
        else:
            self._wrong(f"index {index} is not of this pass, {self._pass}")
        if not is_right(frame, self._seed):
            self._wrong(f"index {index} has wrong content")
        if (image := frame.get("image")) is not None:
            checksum = zlib.crc32(image.tobytes())
            if image.shape != IMAGE or self._images.setdefault(index, checksum) != checksum:
                self._wrong(f"index {index} has another image than when it was rendered before")

    def end(self) -> None:
        """Note that the pass has ended by itself, so that what is missing now is lost."""
        self.lost += len(self._missing)
        if self._missing:
            self._detail(f"lost of {self._pass}: {sorted(self._missing)[:10]}")

    def _wrong(self, detail: str) -> None:
        self.wrong += 1
        self._detail(detail)

    def _detail(self, detail: str) -> None:
        if len(self.details) < _DETAILS:
            self.details.append(detail)
