"""RecordedDataset: a recording in place of a live stream."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from typing import Any, Unpack

import numpy as np

from ..checks import check_names, check_whole
from ..errors import ConfigError
from ..recording import Recording
from ..stream.frame import Frame
from .items import ItemDataset, ItemKeywords, ItemOptions
from .iteration import Iteration
from .states import check_state

_SHUFFLED_TOGETHER = 8  # shards


class RecordedDataset(ItemDataset):
    """A recording as a dataset: the items that a BlenderDataset gave or would give, without a Blender.

        loader = DataLoader(RecordedDataset("cubes"), batch_size=8, num_workers=2)

    Items come in the order of their indices. Images that were recorded as JPEG are what JPEG left of them. Rank r of R
    has the samples r, r + R, r + 2R, ..., and its workers share them in the same way.

    Args:
        folder: The recording, which must be there: a folder, or its URL in an object store, such as
            "s3://bucket/cubes", which fsspec reads with its own settings. What is recorded into it later is not seen.
        shuffle: Whether each epoch has another order. The shards come in a random order, and the samples of eight
            shards at a time are mixed.
        seed: Of the shuffling.
        items: `transform`, `batch_size`, `ragged`, `drop_last`, `pin_memory` and `device`, as BlenderDataset has them.

    Raises:
        ConfigError: An option is wrong.
        RecordingError: There is no recording, or a shard is missing or damaged.
    """

    _kind = "RecordedDataset"

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

    @property
    def about(self) -> Mapping[str, Any]:
        """What made the recording: seed, script, params, versions and more."""
        return self._recording.about

    def __len__(self) -> int:
        """Return the items of one epoch in this rank.

        It is exact without workers. With workers, each may make a short batch, or leave one out with `drop_last`: then
        it is exact if each worker's share of the samples is whole batches.
        """
        rank, ranks = self._distributed()
        return self._length(len(range(rank, len(self._recording), ranks)))

    def __getitem__(self, index: Any) -> Any:
        """Raise ConfigError: a recording is read in order, which is what makes its items a stream."""
        raise ConfigError(
            f"a RecordedDataset is iterated, not indexed; got [{index!r:.80}]. Items: `for item in recorded:`, or the "
            f"first one, `next(iter(recorded))`"
        )

    def _iterate(self, iteration: Iteration) -> Iterator[Any]:
        frames, tap = self._share(iteration), self._tap()
        return self._items_of(frames if tap is None else tap.over(frames), iteration)

    def stats(self) -> None:
        """Return None: there is no stream. For scripts that ask a BlenderDataset."""

    def close(self) -> None:
        """End the view, if there is one. Nothing else is open."""
        super().close()

    def _share(self, iteration: Iteration) -> Iterator[Frame]:
        """Yield what this process gives of an epoch, from the state of the iteration on."""
        k, n = self._place()
        taken = given = 0 if iteration.state is None else iteration.state["given"]

        def deliver() -> None:
            nonlocal given
            given = taken

        iteration.progress, iteration.deliver = lambda: {"given": given}, deliver
        for frame in self._samples(iteration.epoch, (k + given * n, n)):
            taken += 1
            yield frame

    def _cycle(self, epoch: int, share: tuple[int, int], given: int) -> Iterator[Frame]:
        """Yield the samples of a share again and again, without the first `given`.

        A share without samples gives those of another one.
        """
        k, n = share[0] % min(share[1], len(self._recording)), share[1]
        whole, given = divmod(given, len(range(k, len(self._recording), n)))
        for repetition in itertools.count(whole):
            yield from self._samples(epoch, (k + given * n, n), repetition)
            given = 0

    def _samples(self, epoch: int, share: tuple[int, int], repetition: int = 0) -> Iterator[Frame]:
        """Yield the samples k, k + n, k + 2n, ... of an epoch, as the stream gave them."""
        for sample in self._recording.at(self._order(epoch, repetition)[share[0] :: share[1]]):
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

    def _same(self) -> dict[str, Any]:
        about = {name: self.about.get(name) for name in ("script", "seed")}
        recording = {"samples": len(self._recording), **about, "checksum": self._recording.checksum}
        return {**super()._same(), "recording": recording, "shuffle": self._shuffle, "seed": self._seed}

    def _untouched(self, epoch: int) -> dict[str, Any]:
        return {"given": 0}

    def _check_state(self, state: Any) -> None:
        check_state(state, self._kind, {"given"})
        check_whole("what was given", state["given"], 0)
