"""RecordedDataset: a recording in place of a live stream."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from ..config import check_whole
from ..errors import ConfigError
from ..recording import Recording
from ..stream.bridge import Frame, StreamStats
from .items import Item, ItemDataset

__all__ = ["RecordedDataset"]

_SHUFFLED_TOGETHER = 8  # shards


class RecordedDataset(ItemDataset):
    """A recording as a dataset: the items that BlenderDataset gave or would give, without a Blender.

        loader = DataLoader(RecordedDataset("cubes"), batch_size=8, num_workers=2)

    Items come in order of index; those of images recorded as JPEG have what JPEG left of them. Rank r of R takes each
    R-th sample from the r-th on, and its workers share those in the same way.

    Args:
        folder: of the recording, which must be there. What is recorded into it later is not seen.
        transform, batch_size, drop_last, pin_memory, device: as BlenderDataset has them.
        shuffle: in another order in each epoch. Samples of eight shards are mixed at a time, and the shards are in a
            random order.
        seed: of the shuffling.

    Raises:
        ConfigError: an option is wrong.
        RecordingError: there is no recording, or a shard is missing or damaged.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        transform: Callable[[Item], Any] | None = None,
        shuffle: bool = False,
        seed: int = 0,
        batch_size: int | None = None,
        drop_last: bool = False,
        pin_memory: bool = False,
        device: torch.device | str | int | None = None,
    ) -> None:
        super().__init__(
            transform=transform,
            batch_size=batch_size,
            drop_last=drop_last,
            pin_memory=pin_memory,
            device=device,
        )
        if not isinstance(shuffle, bool):
            raise ConfigError(f"shuffle must be a bool; got {shuffle!r}")
        check_whole("seed", seed, 0)
        self._shuffle, self._seed = shuffle, seed
        self._recording = Recording(folder)
        self._resume: tuple[int, int] | None = None  # epoch, and samples of it to leave out
        self._progress = (0, 0)  # epoch, and samples of it that were given

    @property
    def about(self) -> Mapping[str, Any]:
        """What made the recording: seed, script, params, versions and more."""
        return self._recording.about

    def __len__(self) -> int:
        """Items of one epoch in this rank. Of batches, where workers make more than one short one, it is a little less."""
        rank, ranks = self._distributed()
        return self._length(len(range(rank, len(self._recording), ranks)))

    def __iter__(self) -> Iterator[Any]:
        epoch = int(self._epoch)
        done = self._resume[1] if self._resume is not None and self._resume[0] == epoch else 0
        self._resume = None
        return self.items_of(self._share(epoch, done))

    def samples(self, epoch: int, share: tuple[int, int], *, repetition: int = 0) -> Iterator[Frame]:
        """The samples of an epoch, as the stream gave them.

        Args:
            share: (k, n): each n-th one from the k-th on.
            repetition: another order of the same epoch.
        """
        for position in self._order(epoch, repetition)[share[0] :: share[1]]:
            sample = self._recording[position]
            yield Frame(sample.returned, index=sample.index, instance=sample.instance, params=sample.params)

    def again_and_again(self, epoch: int, share: tuple[int, int]) -> Iterator[Frame]:
        """The same without an end. If the share is of no sample, it is another one's."""
        k, n = share
        for repetition in itertools.count():
            yield from self.samples(epoch, (k % min(n, len(self._recording)), n), repetition=repetition)

    def set_epoch(self, epoch: int) -> None:
        """From the next iteration on, shuffle as for this epoch. Without `shuffle` it changes nothing.

        Raises:
            ConfigError: not a whole number from 0 on.
        """
        super().set_epoch(epoch)

    def stats(self) -> StreamStats | None:
        """None: there is no stream. For scripts that ask a BlenderDataset."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """How many samples of this epoch have been given, in the process that iterates."""
        epoch = int(self._epoch)
        state = self._progress if self._resume is None else self._resume
        return {"epoch": epoch, "given": state[1] if state[0] == epoch else 0}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on where `state` was saved, in the process that iterates.

        Raises:
            ConfigError: not a state.
        """
        if not isinstance(state, Mapping) or state.keys() != {"epoch", "given"}:
            raise ConfigError(f"not a saved state of a RecordedDataset: {state!r:.200}")
        check_whole("given", state["given"], 0)
        self.set_epoch(state["epoch"])
        self._resume = (state["epoch"], state["given"])

    def close(self) -> None:
        """Nothing is open. For scripts that close a BlenderDataset."""

    def _share(self, epoch: int, done: int) -> Iterator[Frame]:
        """What this process gives, but for so many that are done."""
        k, n = self._place()
        self._progress = (epoch, done)
        for frame in self.samples(epoch, (k + done * n, n)):
            self._progress = (epoch, self._progress[1] + 1)
            yield frame

    def _order(self, epoch: int, repetition: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Positions in the recording."""
        shards = self._recording.shards
        if not self._shuffle:
            return np.arange(len(shards))
        rng = np.random.default_rng([self._seed, epoch, repetition])
        turn = rng.permutation(shards.max() + 1)[shards] // _SHUFFLED_TOGETHER
        order: np.ndarray[Any, np.dtype[np.int64]] = np.lexsort((rng.random(len(shards)), turn))
        return order
