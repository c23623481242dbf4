"""RecordedDataset: a recording in place of a live stream."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from typing import Any, Unpack

import numpy as np

from ..config import check_names, check_whole
from ..errors import ConfigError
from ..recording import Recording
from ..stream.frame import Frame
from .items import ItemDataset, ItemKeywords, ItemOptions

_SHUFFLED_TOGETHER = 8  # shards


class RecordedDataset(ItemDataset):
    """A recording as a dataset: the items that a BlenderDataset gave or would give, without a Blender.

        loader = DataLoader(RecordedDataset("cubes"), batch_size=8, num_workers=2)

    Items come in the order of their indices. Images that were recorded as JPEG are what JPEG left of them. Rank r of R
    has the samples r, r + R, r + 2R, ..., and its workers share them in the same way.

    Args:
        folder: The recording, which must be there. What is recorded into it later is not seen.
        shuffle: Whether each epoch has another order. The shards come in a random order, and the samples of eight
            shards at a time are mixed.
        seed: Of the shuffling.
        items: `transform`, `batch_size`, `ragged`, `drop_last`, `pin_memory` and `device`, as BlenderDataset has them.

    Raises:
        ConfigError: An option is wrong.
        RecordingError: There is no recording, or a shard is missing or damaged.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, shuffle: bool = False, seed: int = 0, **items: Unpack[ItemKeywords]
    ) -> None:
        check_names("RecordedDataset", items, {"shuffle", "seed", *ItemKeywords.__annotations__})
        super().__init__(ItemOptions(**items))
        if not isinstance(shuffle, bool):
            raise ConfigError(f"shuffle must be a bool; got {shuffle!r}")
        check_whole("seed", seed, 0)
        self._shuffle, self._seed = shuffle, seed
        self._recording = Recording(folder)
        self._resume: Mapping[str, Any] | None = None  # a state that the next iteration goes on from
        self._progress = (0, 0)  # the epoch, and how many of its samples were given

    @property
    def about(self) -> Mapping[str, Any]:
        """What made the recording: seed, script, params, versions and more."""
        return self._recording.about

    def __len__(self) -> int:
        """Return the items of one epoch in this rank. If several workers make short batches, there are a few more."""
        rank, ranks = self._distributed()
        return self._length(len(range(rank, len(self._recording), ranks)))

    def __getitem__(self, index: Any) -> Any:
        """Raise ConfigError: a recording is read in order, which is what makes its items a stream."""
        raise ConfigError(
            f"a RecordedDataset is iterated, not indexed; got [{index!r:.80}]. Items: `for item in recorded:`, or the "
            f"first one, `next(iter(recorded))`"
        )

    def _iterate(self) -> Iterator[Any]:
        epoch = self._begun()
        resume, self._resume = self._resume, None
        done = 0
        if resume is not None and resume["epoch"] == epoch:
            done = resume["given"]
            if done and resume["share"] != (own := list(self._place())):
                raise ConfigError(
                    f"the saved state is of the share {resume['share']} of the recording, this process has {own}; "
                    f"resume with as many ranks and workers as before, where the state was saved"
                )
        return self._items_of(self._share(epoch, done))

    def stats(self) -> None:
        """Return None: there is no stream. For scripts that ask a BlenderDataset."""

    def state_dict(self) -> dict[str, Any]:
        """Return how many samples of this epoch have been given, in the process that iterates.

        Raises:
            ConfigError: That is not this process: a DataLoader's workers iterate over this epoch.
        """
        epoch = self._own_epoch()
        if self._resume is not None and self._resume["epoch"] == epoch:
            return dict(self._resume)
        given = self._progress[1] if self._resume is None and self._progress[0] == epoch else 0
        return {"epoch": epoch, "given": given, "share": list(self._place())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on where `state` was saved, in the process that iterates.

        Raises:
            ConfigError: It is no state. If it is one of another number of ranks or workers, the iteration raises.
        """
        if not isinstance(state, Mapping) or state.keys() != {"epoch", "given", "share"}:
            raise ConfigError(f"not a saved state of a RecordedDataset: {state!r:.200}")
        check_whole("given", state["given"], 0)
        self.set_epoch(state["epoch"])
        self._resume = dict(state)

    def close(self) -> None:
        """Do nothing: nothing is open. For scripts that close a BlenderDataset."""

    def _cycle(self, epoch: int, share: tuple[int, int]) -> Iterator[Frame]:
        """Yield the samples of a share again and again. A share without samples gives those of another one."""
        k, n = share
        for repetition in itertools.count():
            yield from self._samples(epoch, (k % min(n, len(self._recording)), n), repetition)

    def _share(self, epoch: int, done: int) -> Iterator[Frame]:
        """Yield what this process gives of an epoch, without the first `done` samples."""
        k, n = self._place()
        self._progress = (epoch, done)
        for frame in self._samples(epoch, (k + done * n, n)):
            self._progress = (epoch, self._progress[1] + 1)
            yield frame

    def _samples(self, epoch: int, share: tuple[int, int], repetition: int = 0) -> Iterator[Frame]:
        """Yield the samples k, k + n, k + 2n, ... of an epoch, as the stream gave them."""
        for position in self._order(epoch, repetition)[share[0] :: share[1]]:
            sample = self._recording[position]
            yield Frame(sample.returned, index=sample.index, instance=sample.instance, params=sample.params)

    def _order(self, epoch: int, repetition: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return positions in the recording. Each repetition of an epoch is shuffled in another way."""
        shards = self._recording.shards
        if not self._shuffle:
            return np.arange(len(shards))
        rng = np.random.default_rng([self._seed, epoch, repetition])
        turn = rng.permutation(shards.max() + 1)[shards] // _SHUFFLED_TOGETHER
        order: np.ndarray[Any, np.dtype[np.int64]] = np.lexsort((rng.random(len(shards)), turn))
        return order
