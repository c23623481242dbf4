"""Ring: memory that one Blender and the host share, so that large arrays need not be sent. Used by both sides.

    first page: one byte for each slot, not 0 while it is in use │ slot 0 │ slot 1 │ ...

Blender's side (`Slots`) takes a free slot, copies the arrays of a frame into it, and sends where they are. The host's
side (`Ring`) makes arrays that are views of the same memory. When the last view of a slot has been collected, the
slot's byte is set to 0, and Blender may use it again. So there are no messages about slots, and nobody waits for one:
while no slot is free, arrays go over the socket.

The memory has no name, so it cannot be left behind. It is sealed against resizing, because a process that shrinks a
file kills all processes that have mapped it. It is large and sparse: only pages that were written to take up memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

_PAGE = 4096
_SIZE = 1 << 30  # bytes; sparse
_SMALLEST = 1 << 13  # bytes; ZeroMQ collects smaller ones, so that several messages take one call of the system
_ALIGNED = 64  # bytes; a cache line, and enough for every vector instruction

_forks = 0  # how often this process was forked while arrays may have been in use
_launching = False
_process = os.getpid()  # kept, because os.getpid() for each frame costs more than the rest of this file


def _note_fork() -> None:
    global _forks
    if not _launching:
        _forks += 1


def _note_child() -> None:
    global _process
    _process = os.getpid()


os.register_at_fork(after_in_parent=_note_fork, after_in_child=_note_child)


@contextlib.contextmanager
def launching() -> Iterator[None]:
    """Promise that a process forked in this block runs another program at once, and uses no array. Do not await in it."""
    global _launching
    _launching = True
    try:
        yield
    finally:
        _launching = False


class Ring:
    """The host's side. `create` makes one.

    The memory stays mapped while an array of it exists, also after the Blender has ended and this object is gone.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor: int | None = descriptor
        """The memory's descriptor, for the Blender to inherit. None after `close_descriptor`."""
        self._map = mmap.mmap(descriptor, 0)
        self._held: set[int] = set()
        self.lost: int = 0
        """Bytes of slots that stay in use until the Blender ends, because a forked process may look at them.

        As much, or up to twice as much. Not counted are the few whose message was dropped unread, on a lost connection."""

    @classmethod
    def create(cls) -> Ring | None:
        """Return a new one, or None where it cannot be made: only Linux has memory without a name that can be sealed."""
        try:
            descriptor = os.memfd_create("asyncblend", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except (AttributeError, OSError):
            return None
        try:
            os.ftruncate(descriptor, _SIZE)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
            return cls(descriptor)
        except (OSError, ValueError):  # for instance, there is too little address space
            os.close(descriptor)
            return None

    def close_descriptor(self) -> None:
        """Close the descriptor, once the Blender has inherited it."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def hold(self, slot: int) -> np.ndarray[Any, Any]:
        """Return the whole memory as read-only bytes, and free the slot when this array and all views of it are gone.

        Raises:
            ValueError: There is no slot of that number, or it is held already: arrays of it must not change.
        """
        if not 0 <= slot < _PAGE:
            raise ValueError(f"no slot {slot}")
        if slot in self._held:
            raise ValueError(f"slot {slot} is in use")
        self._held.add(slot)
        # The base is the map and no array, because a view of a view would refer to the base alone.
        held = _Held((len(self._map),), np.uint8, self._map)
        held.flags.writeable = False
        held.ring, held.slot, held.process, held.forks = self, slot, _process, _forks
        return held

    def _let_go(self, slot: int) -> None:
        self._held.discard(slot)  # first, as Blender may use the slot again at once
        self._map[slot] = 0

    def _lose(self, slot: int) -> None:
        # A size that Blender may have written wrong. Two threads that add at once may lose one, which does no harm.
        self.lost += min(_PAGE << self._map[slot], _SIZE)


class _Held(np.ndarray[Any, Any]):
    """The memory, with one slot in use for as long as this array exists."""

    ring: Ring
    slot: int
    process: int
    forks: int

    def __del__(self) -> None:
        # Views that numpy makes have no such attributes. A forked process has a copy of this object, which must
        # neither free the slot nor see its contents change: after a fork the slot is in use until the Blender ends.
        if getattr(self, "process", None) == _process:
            if self.forks == _forks:
                self.ring._let_go(self.slot)
            else:
                self.ring._lose(self.slot)


class Slots:
    """Blender's side, which finds free slots and fills them."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._map = memory
        self._slots: list[tuple[int, int]] = []  # offset and size
        self._end = _PAGE

    @classmethod
    def inherit(cls, descriptor: int | None) -> Slots | None:
        """Return the slots of the host's ring, or None if there is none, or a wrapper script closed its descriptor."""
        if descriptor is None:
            return None
        try:
            if os.fstat(descriptor).st_size != _SIZE:
                return None  # the number belongs to another file now
        except OSError:
            return None
        try:
            return cls(mmap.mmap(descriptor, 0))
        except (OSError, ValueError):
            return None
        finally:
            os.close(descriptor)  # the map has its own copy, which processes that the script starts do not inherit

    def put(self, arrays: Sequence[np.ndarray[Any, Any]]) -> tuple[int, list[int | None]] | None:
        """Copy all large arrays among these C-contiguous ones into one slot.

        Returns:
            The slot, and for each array its offset in the memory, or None if it is small. None instead of both if no
            array is large or no slot is free.
        """
        total = 0
        within: list[int | None] = []  # offsets from the slot's start
        for array in arrays:
            if array.nbytes < _SMALLEST:
                within.append(None)
            else:
                within.append(total)
                total += -(-array.nbytes // _ALIGNED) * _ALIGNED
        if not total or (slot := self._free_slot(total)) is None:
            return None
        start, size = self._slots[slot]
        self._map[slot] = (size // _PAGE).bit_length()  # tells the host about how large the slot is
        offsets = [None if offset is None else start + offset for offset in within]
        for array, place in zip(arrays, offsets, strict=True):
            if place is not None:
                self._map[place : place + array.nbytes] = array.data  # its bytes, in half of the time that numpy takes
        return slot, offsets

    def free(self, slot: int) -> None:
        """Free a slot whose arrays are not sent after all."""
        self._map[slot] = 0

    def _free_slot(self, size: int) -> int | None:
        """Return the first free slot of about that size, whose pages exist already and may be in the cache."""
        count, slot = len(self._slots), -1
        while (slot := self._map.find(b"\0", slot + 1, count)) >= 0:
            if size <= self._slots[slot][1] <= 2 * size + _PAGE:
                return slot
        own = -(-size // _PAGE) * _PAGE
        if self._end + own > len(self._map) or count == _PAGE:
            if any(self._map[:count]) or _PAGE + own > len(self._map):
                return None
            # All slots are free, and none has this size: divide the memory anew.
            self._slots, self._end = [], _PAGE
        self._slots.append((self._end, own))
        self._end += own
        return len(self._slots) - 1
