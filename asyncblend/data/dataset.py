"""BlenderDataset: a fleet's frames as a PyTorch IterableDataset."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Unpack

from torch.utils.data import DataLoader, get_worker_info

from ..checks import check_names
from ..config import StreamConfig, StreamOptions, resolve
from ..errors import ConfigError
from ..recording.about import source
from ..stream.clips import Cut
from ..stream.frame import Frame
from ..stream.indices import own_indices
from ..stream.params import load_own_state, own_state
from ..stream.passes import Pass
from ..stream.stats import StreamStats
from ..stream.sync_frames import SyncFrames
from .items import BatchKeywords, Item, ItemDataset, ItemOptions
from .iteration import Iteration
from .share import OwnStream, Share, check_not_copied, share_of
from .states import check_state, check_stream

__all__ = ["BlenderDataset", "DataLoader"]  # torch's, for the command line, which does not import torch itself

_ENDLESS_EPOCH = 1 << 32  # indices between the epochs of an endless stream


class _Options(StreamOptions, BatchKeywords, total=False):
    """What a BlenderDataset takes by name only."""

    clip: int | None
    clip_stride: int


class BlenderDataset(ItemDataset):
    """Streams freshly rendered samples into a DataLoader.

        loader = DataLoader(BlenderDataset(script="cube.py", length=1000), batch_size=8, num_workers=2)

    Items are dicts: what the script returned, with arrays as writable tensors that you own, "index" (int) and, where
    there are any, "params". Nothing is started before the first iteration. Without workers the fleet stays warm between
    iterations, until `close`, garbage collection or exit; with `persistent_workers=True` each worker's share does.

    Let W be the number of workers that have a Blender: worker w of them, in rank r of R, has shard r * W + w of R * W,
    so ranks have equally many samples if R * W divides the length. The instances of a rank are shared out among its
    workers, and a worker beyond the number of instances has no Blender and gives no samples; those of a `fleet` are
    shared by all ranks and workers.
    A `shard` in the config stands for (r, R).

    Params that the training loop changes, `flush` and `feedback` are for `num_workers=0`: each worker has a copy of the
    params. A callable may read memory that is shared with the workers, such as `torch.zeros(3).share_memory_()`.

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

    _kind = "BlenderDataset"

    def __init__(
        self,
        config: StreamConfig | None = None,
        transform: Callable[[Item], Any] | None = None,
        batch_size: int | None = None,
        **options: Unpack[_Options],
    ) -> None:
        given: dict[str, Any] = dict(options)
        check_names("BlenderDataset", given, {"transform", "batch_size", *_Options.__annotations__})
        clip, stride = given.pop("clip", None), given.pop("clip_stride", 1)
        if clip is None and stride != 1:
            raise ConfigError(f"clip_stride goes with clip; got clip_stride={stride!r:.100} without it")
        self._cut = None if clip is None else Cut.checked(clip, stride, ("clip", "clip_stride"))
        own = {name: given.pop(name) for name in BatchKeywords.__annotations__ if name in given}
        super().__init__(ItemOptions(transform=transform, batch_size=batch_size, **own))
        self.config: StreamConfig = resolve(config, given)
        self._own = OwnStream()
        self._frames: SyncFrames | None = None  # the present or last iteration
        self._source: dict[str, Any] | None = None  # what the fleet's samples are a function of

    def __getitem__(self, index: Any) -> Any:
        """Raise ConfigError: a BlenderDataset is a stream. A BlenderMapDataset can be indexed."""
        raise ConfigError(
            f"a BlenderDataset is iterated, not indexed; got [{index!r:.80}]. One sample: `dataset.render(index)`; random "
            f"access: BlenderMapDataset"
        )

    def __len__(self) -> int:
        """Return the items of one epoch in this rank.

        It is exact without workers. With workers, each may make a short batch, or leave one out with `drop_last`: then
        it is exact if each worker's share of the samples is whole batches.

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

    def _iterate(self, iteration: Iteration) -> Iterator[Any]:
        frames = self._begin(iteration.epoch, iteration.state and iteration.state["stream"])
        iteration.progress = lambda: {"stream": frames and frames.state_dict()}
        if frames is None:
            return
        iteration.deliver = frames.hold()
        try:
            taken: Iterator[Frame] = frames if self._cut is None else frames.clips(*self._cut)
            tap = self._tap(self.config.queue_size)
            yield from self._items_of(taken if tap is None else tap.over(taken), iteration)
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
        """Give up what no Blender has begun of the present iteration, and draw its params anew. From any thread.

        Returns:
            The number of samples given up. Each of them is rendered later, with its new params.

        Raises:
            ConfigError: Workers iterate, and have copies of the params.
        """
        self._check_steerable("flush")
        return 0 if self._frames is None else self._frames.flush()

    def feedback(self, indices: Any, losses: Any) -> None:
        """Tell the params how hard samples were, so that they change what is rendered next. From any thread.

        Args:
            indices, losses: As `Curriculum.feedback` has them, or the `feedback` of your own params.

        Raises:
            ConfigError: The params have no `feedback`, or it finds an argument wrong; or workers iterate, and have
                copies of the params.
        """
        self._check_steerable("feedback")
        feedback = getattr(self.config.params, "feedback", None)
        if not callable(feedback):
            raise ConfigError(
                f"feedback needs params that have feedback(indices, losses), such as ab.Curriculum; these are "
                f"{self.config.params!r:.100}"
            )
        feedback(indices, losses)

    def _check_steerable(self, what: str) -> None:
        """Raise ConfigError if other processes draw the params."""
        if get_worker_info() is not None or self._epoch.has_workers:
            raise ConfigError(
                f"{what} is for num_workers=0: each worker of the DataLoader has a copy of the params, which cannot be "
                f"reached from here. Iterate with num_workers=0; or let params be a callable that reads shared memory, "
                f"such as torch.zeros(3).share_memory_(), and change that"
            )

    def _begin(self, epoch: int, state: Mapping[str, Any] | None, *, wait: bool = True) -> SyncFrames | None:
        """Begin an iteration, and return its frames; None if this process renders nothing.

        Args:
            epoch: Its epoch.
            state: Of the pass that it goes on with, or None.
            wait: Whether to wait for the first Blender. Otherwise what goes wrong at the start is raised by the frames.
        """
        if get_worker_info() is not None:
            check_not_copied(self.config.params)
        share = self._share()
        if share is None:
            return None
        if state is not None and "params" in state:  # `load_state_dict` has given the params their own state
            state = {**state, "params": {**state["params"], "state": None}}
        stream = self._own.of(share, wait=wait)
        if self._frames is not None:
            self._frames.close("another iteration over the same dataset has begun")
        self._frames = stream.frames(_indices(share.config, epoch), state=state)
        self._note_source()  # the files as the Blenders have read them, for the states
        return self._frames

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on where `state` was saved, in the process that iterates.

        That iteration is of the state's epoch. `set_epoch` to another one, after this, gives the state up. Params with
        `load_state_dict` get their own state at once.

        Raises:
            ConfigError: It is no state of a BlenderDataset, or it was saved of something else (options, script, rank or
                number of workers differ), or the params cannot go on from it.
        """
        super().load_state_dict(state)

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Let the params go on from their own state; also for a MixedDataset that this is a part of."""
        if (own := _params_of(state).get("state")) is None:
            return
        if self._frames is not None:
            self._frames.close("a state was loaded")
            self._frames.stats()  # returns when the pass has ended, which would draw from these params
        load_own_state(self.config.params, own)

    def _refreshed(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return a loaded state with the own state of the params as it is now, after feedback perhaps."""
        params = _params_of(state)
        if params.get("state") is None:
            return dict(state)
        own = own_state(self.config.params)
        return {**state, "stream": {**state["stream"], "params": {**params, "state": own}}}

    def stats(self) -> StreamStats | None:
        """Return the stream's statistics, in the process that iterates; None before the first iteration."""
        return self._own.stats()

    def close(self) -> None:
        """Stop the fleet, if this process has one. Iterating again starts another."""
        super().close()
        self._own.close()
        self._source = None

    def __getstate__(self) -> dict[str, Any]:
        check_not_copied(self.config.params)
        return {**super().__getstate__(), "_own": OwnStream(), "_frames": None, "_source": None}

    def _same(self) -> dict[str, Any]:
        same = super()._same()
        return {
            **same,
            "workers_with_blenders": self._workers_with_blenders(max(same["workers"], 1)),
            "start": self.config.start,
            "length": self.config.length,
            **(self._source or self._source_now()),
        }

    def _workers_with_blenders(self, workers: int) -> int:
        return workers if self.config.fleet is not None else min(workers, self.config.instances)

    def _note_source(self) -> None:
        if self._source is None:
            self._source = self._source_now()

    def _source_now(self) -> dict[str, Any]:
        """Return what the samples are a function of. A fleet that is not this program's must be asked."""
        if self.config.fleet is None:
            return source(self.config)
        share = self._share() or share_of(self.config, self._distributed()[0])
        assert share is not None, "each process has a share of such a fleet"
        self._source = self._own.of(share).source()
        return self._source

    def _untouched(self, epoch: int) -> dict[str, Any]:
        share = self._share()
        return {"stream": share and Pass(share.config, _indices(share.config, epoch)).state_dict()}

    def _check_state(self, state: Any) -> None:
        check_state(state, self._kind, {"stream"})
        check_stream(state)

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


def _params_of(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a state says of the params, or nothing."""
    found: Mapping[str, Any] = (state["stream"] or {}).get("params", {})
    return found


def _indices(config: StreamConfig, epoch: int) -> range:
    """Return the indices of an epoch."""
    return own_indices(config, config.start + epoch * (_ENDLESS_EPOCH if config.length is None else config.length))
