"""Iteration: how far one iterator over a dataset has come, and in which epoch. What a saved state is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.data import get_worker_info


class Epoch:
    """A dataset's epoch, in memory that it shares with its copies in a DataLoader's workers.

    So setting it reaches workers that live on between epochs, and the training process learns that workers iterate.
    """

    def __init__(self) -> None:
        # The epoch, how often it was set, and the epoch that workers iterate over, or -1.
        self._shared = torch.tensor([0, 0, -1]).share_memory_()  # type: ignore[no-untyped-call]

    @property
    def number(self) -> int:
        """The epoch of the iterations that begin now."""
        return int(self._shared[0])

    def set(self, number: int) -> None:
        """Set the epoch, as the user says."""
        self._shared[0] = number
        self._shared[1] += 1

    def load(self, number: int) -> None:
        """Take the epoch of a saved state, also for the iterations after the resumed one, unless the user has set one."""
        if not self._shared[1]:
            self._shared[0] = number
        if get_worker_info() is None:
            self._shared[2] = -1

    def begin(self) -> None:
        """Note that an iteration begins in this process."""
        self._shared[2] = -1 if get_worker_info() is None else self._shared[0]

    @property
    def has_workers(self) -> bool:
        """Whether workers have iterated last."""
        return bool(self._shared[2] >= 0)

    @property
    def is_workers(self) -> bool:
        """Whether this is the training process, and workers iterate over this epoch."""
        return get_worker_info() is None and bool(self._shared[2] == self._shared[0])

    @property
    def times_set(self) -> int:
        """How often the user has set the epoch."""
        return int(self._shared[1])


class Iteration:
    """One iterator over a dataset.

    Args:
        state: The saved state that it goes on from, or None.
    """

    def __init__(self, state: Mapping[str, Any] | None) -> None:
        self.state = state
        self.epoch: int = 0
        self.progress: Callable[[], dict[str, Any]] | None = None
        """Returns what has been delivered, once something may have been."""
        self.deliver: Callable[[], object] = lambda: None
        """Lets what was taken count as delivered: its item is about to be yielded."""
        self._epoch_set = 0

    def begin(self, epoch: Epoch) -> None:
        """Note in which epoch it is: that of its state, else the dataset's."""
        self.epoch = epoch.number if self.state is None else self.state["epoch"]
        self._epoch_set = epoch.times_set
        epoch.begin()

    def is_over(self, epoch: Epoch) -> bool:
        """Return whether the user has set another epoch since it began."""
        return epoch.times_set != self._epoch_set and epoch.number != self.epoch
