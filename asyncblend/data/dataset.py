"""BlenderDataset: a fleet's frames as a PyTorch IterableDataset."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Unpack

from torch.utils.data import DataLoader

from ..config import StreamConfig, StreamOptions, check_names, resolve
from ..errors import ConfigError
from ..stream.clips import Cut
from ..stream.passes import own_indices
from ..stream.stats import StreamStats
from ..stream.sync import SyncFrames
from .items import ItemDataset, ItemKeywords, ItemOptions
from .share import OwnStream, Share, share_of

__all__ = ["BlenderDataset", "DataLoader"]  # torch's, for the command line, which does not import torch itself

_ENDLESS_EPOCH = 1 << 32  # indices between the epochs of an endless stream


class _Options(StreamOptions, ItemKeywords, total=False):
    """All keywords of a BlenderDataset."""

    clip: int | None
    clip_stride: int


class BlenderDataset(ItemDataset):
    """Streams freshly rendered samples into a DataLoader.

        loader = DataLoader(BlenderDataset(script="cube.py", length=1000), batch_size=8, num_workers=2)

    Items are dicts: what the script returned, with arrays as writable tensors that you own, and "index" (int).
    Nothing is started before the first iteration. Without workers the fleet stays warm between iterations, until
    `close`, garbage collection or exit; with `persistent_workers=True` each worker's share does.

    Worker w of W in rank r of R has shard r * W + w of R * W, so ranks have equally many samples if R * W divides the
    length. The instances of a rank are shared out among its workers, and a worker without an instance gets no indices.
    A `shard` in the config stands for (r, R).

    With `batch_size`, items are whole batches, for a DataLoader that makes none. Each array is copied once, from the
    memory that Blender wrote it to into the batch's tensor:

        loader = DataLoader(BlenderDataset(script="cube.py", length=1000, batch_size=8), batch_size=None)

    Args:
        config: The options.
        transform: Called with each item, in the process that iterates. What it returns is the item.
        batch_size: Samples in an item, batched as `collate` does. The last batch of each worker may be shorter. None:
            an item is one sample.
        ragged: Names whose values come as a list in each batch, and are never stacked, as `collate` has it.
        drop_last: Leave out shorter batches.
        pin_memory: Build batches in page-locked memory, from which copies to a GPU are fast. Without a GPU, and in
            workers, it does nothing.
        device: Where the tensors of batches go, such as "cuda". Not with workers.
        clip: Frames of an episode in each item: its tensors have time as their first axis, T x H x W x C, after the
            batch axis if there is one. None: each frame of an episode is an item.
        clip_stride: Steps of the episode from one frame of a clip to the next. Clips do not overlap.
        options: StreamConfig's fields. They override the config's.

    Raises:
        ConfigError: An option is wrong.
    """

    def __init__(self, config: StreamConfig | None = None, **options: Unpack[_Options]) -> None:
        given: dict[str, Any] = dict(options)
        check_names("BlenderDataset", given, {*_Options.__annotations__})
        clip, stride = given.pop("clip", None), given.pop("clip_stride", 1)
        self._cut = None if clip is None else Cut.checked(clip, stride)
        own = {name: given.pop(name) for name in ItemKeywords.__annotations__ if name in given}
        super().__init__(ItemOptions(**own))
        self.config = resolve(config, given)
        self._resume: tuple[int, Mapping[str, Any]] | None = None  # the epoch, and the state of its pass
        self._own = OwnStream()
        self._frames: SyncFrames | None = None  # the present or last iteration
        self._frames_epoch = 0

    def __len__(self) -> int:
        """Return the items of one epoch in this rank; exact without workers, or if ranks times workers divide the length.

        Each sample counts as one item, also where it is an episode of several frames.

        Raises:
            TypeError: The stream is endless, or cut into clips: how many an episode has is known when it is rendered.
        """
        if self._cut is not None:
            raise TypeError(
                "a BlenderDataset of clips has no len(): how many an episode has is known when it is rendered"
            )
        if self.config.length is None:
            raise TypeError("an endless BlenderDataset has no len(); give it a length")
        rank, ranks = self._shard()
        return self._length(len(range(rank, self.config.length, ranks)))

    def _iterate(self) -> Iterator[Any]:
        frames = self._begin()
        if frames is None:
            return
        try:
            yield from self._items_of(frames if self._cut is None else frames.clips(*self._cut))
        finally:
            frames.close()  # a loop that is left early must not keep Blenders rendering for it

    def render(self, index: int, params: Mapping[str, Any] | None = None) -> Any:
        """Render one sample now, and return it as an item, transformed. Starts the fleet if there is none.

        It may be called at any time, also while this dataset is iterated. With `batch_size`, the item has no batch axis.

        Args:
            index, params: As `BlenderStream.render` has them.

        Raises:
            ConfigError: An argument is wrong, or this worker has no Blender.
            AsyncblendError: As entering a BlenderStream, or its `render`, raises.
        """
        share = self._share()
        if share is None:
            raise ConfigError("this worker has no Blender to render with; use fewer workers, or more instances")
        return self._item_of(self._own.of(share).render(index, params))

    def flush(self) -> int:
        """Give up what no Blender has begun of the present iteration, as `BlenderStream.flush` does; not in workers."""
        return 0 if self._frames is None else self._frames.flush()

    def _begin(self, *, wait: bool = True) -> SyncFrames | None:
        """Begin an iteration, and return its frames; None if this process renders nothing.

        Args:
            wait: Whether to wait for the first Blender. Otherwise what goes wrong at the start is raised by the frames.
        """
        share = self._share()
        if share is None:
            return None
        epoch, config = self._begun(), share.config
        start = config.start + epoch * (_ENDLESS_EPOCH if config.length is None else config.length)
        state = self._resume[1] if self._resume is not None and self._resume[0] == epoch else None
        self._resume = None
        stream = self._own.of(share, wait=wait)
        if self._frames is not None:
            self._frames.close("another iteration over the same dataset has begun")
        self._frames, self._frames_epoch = stream.frames(own_indices(config, start), state=state), epoch
        return self._frames

    def stats(self) -> StreamStats | None:
        """Return the stream's statistics, in the process that iterates; None before the first iteration."""
        return self._own.stats()

    def state_dict(self) -> dict[str, Any]:
        """Return which samples of this epoch have been taken, in the process that iterates.

        Raises:
            ConfigError: That is not this process: a DataLoader's workers iterate over this epoch.
        """
        epoch = self._own_epoch()
        if self._resume is not None and self._resume[0] == epoch:
            return {"epoch": epoch, "stream": self._resume[1]}
        begun = self._frames is not None and self._frames_epoch == epoch
        return {"epoch": epoch, "stream": self._frames.state_dict() if self._frames and begun else {}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on where `state` was saved, in the process that iterates.

        Raises:
            ConfigError: It is no state. If it is one of another stream, the iteration raises.
        """
        if not isinstance(state, Mapping) or state.keys() != {"epoch", "stream"}:
            raise ConfigError(f"not a saved state of a BlenderDataset: {state!r:.200}")
        self.set_epoch(state["epoch"])
        self._resume = (state["epoch"], state["stream"]) if state["stream"] else None

    def close(self) -> None:
        """Stop the fleet, if this process has one. Iterating again starts another."""
        self._own.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_own": OwnStream(), "_frames": None}

    def _share(self) -> Share | None:
        """Return what this process renders, or None for nothing."""
        share = share_of(self.config, self._distributed()[0])
        if share is None:
            return None
        rank, ranks = self._shard()
        k, n = rank * share.workers + share.worker, ranks * share.workers
        if self.config.length is not None and k >= self.config.length:
            return None
        return share._replace(config=dataclasses.replace(share.config, shard=(k, n)))

    def _shard(self) -> tuple[int, int]:
        return self.config.shard or self._distributed()
