"""Ring: the shared memory of one Blender, in which large arrays travel to the host without a copy. Both sides.

    one page: a byte a slot, 1 while it is in use │ slot 0 │ slot 1 │ ...

Blender's side takes a free slot, copies the arrays of a frame into it, and sends where they are. The host's arrays are
views of the same memory; when the last view is gone, wherever that is, the slot's byte is 0 and Blender may use it
again. So there are no messages about slots, and nobody ever waits for one: without a free slot the arrays go over the
socket.

The memory has no name, so nothing can be left behind, and is sealed against resizing: a process that shrinks a file
kills all who have mapped it. It is large and sparse: pages are used only where something was written.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

_PAGE = 4096
_SIZE = 1 << 30  # bytes; sparse
_SMALLEST = 1 << 14  # bytes of an array that is worth it
_ALIGNED = 64  # bytes: a cache line, and more than any vector instruction asks for


_forks = 0  # of this process, while frames may have been held
_launching = False
_process = os.getpid()  # asking costs more than all else that is done for a frame here


def _note_fork() -> None:
    global _forks
    if not _launching:
        _forks += 1


def _note_child() -> None:
    global _process
    _process = os.getpid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_parent=_note_fork, after_in_child=_note_child)


@contextlib.contextmanager
def launching() -> Iterator[None]:
    """What forks in here runs another program at once, and sees no frame. Not across an await."""
    global _launching
    _launching = True
    try:
        yield
    finally:
        _launching = False


class Ring:
    """The host's side. Made by `create`.

    Its memory stays mapped for as long as an array of it lives, whatever becomes of the Blender or of this object.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor: int | None = descriptor
        """To be inherited by the Blender; then `close_descriptor`."""
        self._map = mmap.mmap(descriptor, 0)

    @classmethod
    def create(cls) -> Ring | None:
        """A new one; None where there can be none: only Linux has memory without a name that can be sealed."""
        try:
            import fcntl

            descriptor = os.memfd_create("asyncblend", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except (ImportError, AttributeError, OSError):
            return None
        try:
            os.ftruncate(descriptor, _SIZE)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
            return cls(descriptor)
        except (OSError, ValueError):  # no such address space, for instance
            os.close(descriptor)
            return None

    def close_descriptor(self) -> None:
        """It has been inherited."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def hold(self, slot: int) -> np.ndarray[Any, Any]:
        """All of the memory as read-only bytes. The slot is free when neither this nor a view of it is left.

        Raises:
            ValueError: there is no slot of that number.
        """
        if not 0 <= slot < _PAGE:
            raise ValueError(f"no slot {slot}")
        # Its base is no array: numpy would leave this one out of the chain of bases otherwise.
        held = _Held((len(self._map),), np.uint8, self._map)
        held.flags.writeable = False
        held.slot, held.process, held.forks = slot, _process, _forks
        return held


class _Held(np.ndarray[Any, Any]):
    slot: int
    process: int
    forks: int

    def __del__(self) -> None:
        # Arrays that numpy makes of this one have no slot. A forked process has copies of all objects: they free
        # nothing, and what they show must not change, so that such a slot is used until the Blender ends.
        if getattr(self, "process", None) == _process and self.forks == _forks:
            self.base[self.slot] = 0  # type: ignore[index]


class Slots:
    """Blender's side: finds slots, and fills them."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._map = memory
        self._slots: list[tuple[int, int]] = []  # offset and size
        self._end = _PAGE

    @classmethod
    def inherit(cls, descriptor: int | None) -> Slots | None:
        """The host's ring; None if there is none, or a wrapper script closed its descriptor."""
        if descriptor is None:
            return None
        try:
            if os.fstat(descriptor).st_size != _SIZE:
                return None  # another file has the number now
        except OSError:
            return None
        try:
            return cls(mmap.mmap(descriptor, 0))
        except (OSError, ValueError):
            return None
        finally:
            os.close(descriptor)  # the map keeps a copy, which what the script starts does not inherit

    def put(self, arrays: Sequence[np.ndarray[Any, Any]]) -> tuple[int, list[int | None]] | None:
        """Copy the large ones of C-contiguous arrays into one slot.

        Returns:
            The slot, and for each array its offset, None for one that is small. None: all are small, or no slot is
            free.
        """
        total = 0
        within: list[int | None] = []
        for array in arrays:
            if array.nbytes < _SMALLEST:
                within.append(None)
            else:
                within.append(total)
                total += -(-array.nbytes // _ALIGNED) * _ALIGNED
        if not total or (slot := self._free_slot(total)) is None:
            return None
        start = self._slots[slot][0]
        self._map[slot] = 1
        offsets = [None if offset is None else start + offset for offset in within]
        for array, place in zip(arrays, offsets, strict=True):
            if place is not None:
                np.copyto(np.ndarray(array.shape, array.dtype, self._map, place), array)
        return slot, offsets

    def free(self, slot: int) -> None:
        """It is not to be sent after all."""
        self._map[slot] = 0

    def _free_slot(self, size: int) -> int | None:
        """A slot of that size, the first one: its pages are there already, and with luck in the cache."""
        used = False
        for slot, (_, own) in enumerate(self._slots):
            if self._map[slot]:
                used = True
            elif size <= own <= 2 * size + _PAGE:
                return slot
        own = -(-size // _PAGE) * _PAGE
        if self._end + own > len(self._map) or len(self._slots) == _PAGE:
            if used or _PAGE + own > len(self._map):
                return None
            self._slots, self._end = [], _PAGE  # cut up for frames of other sizes, and all free: begin anew
        self._slots.append((self._end, own))
        self._end += own
        return len(self._slots) - 1
