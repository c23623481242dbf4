"""BlenderDataset: a fleet's frames as a PyTorch IterableDataset."""

from __future__ import annotations

import dataclasses
import os
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Unpack

from torch.utils.data import DataLoader, get_worker_info

from ..config import StreamConfig, StreamOptions, check_names, resolve
from ..errors import ConfigError
from ..recording.about import source
from ..stream.passes import Pass, own_indices
from ..stream.stats import StreamStats
from ..stream.sync import SyncFrames, SyncStream
from .items import ItemDataset, ItemKeywords, ItemOptions
from .iteration import Iteration
from .states import check_state

__all__ = ["BlenderDataset", "DataLoader"]  # torch's, for the command line, which does not import torch itself

_ENDLESS_EPOCH = 1 << 32  # indices between the epochs of an endless stream


class _Options(StreamOptions, ItemKeywords, total=False):
    """All keywords of a BlenderDataset."""


class _Share(NamedTuple):
    """What one process renders of a dataset."""

    config: StreamConfig
    first_instance: int
    """Instances are numbered through all ranks and workers, which render together."""


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
        options: StreamConfig's fields. They override the config's.

    Raises:
        ConfigError: An option is wrong.
    """

    _kind = "BlenderDataset"

    def __init__(self, config: StreamConfig | None = None, **options: Unpack[_Options]) -> None:
        given: dict[str, Any] = dict(options)
        check_names("BlenderDataset", given, {*StreamOptions.__annotations__, *ItemKeywords.__annotations__})
        own = {name: given.pop(name) for name in ItemKeywords.__annotations__ if name in given}
        super().__init__(ItemOptions(**own))
        self.config = resolve(config, given)
        self._stream: SyncStream | None = None
        self._share_of_stream: _Share | None = None
        self._frames: SyncFrames | None = None  # the present or last iteration
        self._source: dict[str, Any] | None = None  # what the fleet's samples are a function of
        self._finalizer: weakref.finalize[Any, BlenderDataset] | None = None

    def __len__(self) -> int:
        """Return the items of one epoch in this rank; exact without workers, or if ranks times workers divide the length.

        Raises:
            TypeError: The stream is endless.
        """
        if self.config.length is None:
            raise TypeError("an endless BlenderDataset has no len(); give it a length")
        rank, ranks = self._shard()
        return self._length(len(range(rank, self.config.length, ranks)))

    def _iterate(self, iteration: Iteration) -> Iterator[Any]:
        frames = self._begin(iteration.epoch, iteration.state and iteration.state["stream"])
        iteration.progress = lambda: {"stream": frames and frames.state_dict()}
        if frames is None:
            return
        try:
            yield from self._items_of(frames)
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
        return self._item_of(self._stream_for(share).render(index, params))

    def flush(self) -> int:
        """Give up what no Blender has begun of the present iteration, as `BlenderStream.flush` does; not in workers."""
        return 0 if self._frames is None else self._frames.flush()

    def _begin(self, epoch: int, state: Mapping[str, Any] | None, *, wait: bool = True) -> SyncFrames | None:
        """Begin an iteration, and return its frames; None if this process renders nothing.

        Args:
            epoch: Its epoch.
            state: Of the pass that it goes on with, or None.
            wait: Whether to wait for the first Blender. Otherwise what goes wrong at the start is raised by the frames.
        """
        share = self._share()
        if share is None:
            return None
        stream = self._stream_for(share, wait=wait)
        if self._frames is not None:
            self._frames.close("another iteration over the same dataset has begun")
        self._frames = stream.frames(_indices(share.config, epoch), state=state)
        self._source = self._source or source(self.config)  # the files as the Blenders have read them, for the states
        return self._frames

    def _stream_for(self, share: _Share, *, wait: bool = True) -> SyncStream:
        """Return this process's fleet if that is usable, else a new one."""
        if self._stream is not None and self._stream.usable and self._share_of_stream == share:
            if wait:
                self._stream.wait_ready()
            return self._stream
        self.close()
        self._frames = None
        stream = SyncStream(share.config, first_instance=share.first_instance)
        self._stream, self._share_of_stream = stream, share
        self._finalizer = weakref.finalize(self, stream.close)
        stream.start(wait=wait)
        return stream

    def stats(self) -> StreamStats | None:
        """Return the stream's statistics, in the process that iterates; None before the first iteration."""
        return None if self._stream is None else self._stream.stats()

    def close(self) -> None:
        """Stop the fleet, if this process has one. Iterating again starts another."""
        if self._stream is not None:
            self._stream.close()
        if self._finalizer is not None:
            self._finalizer.detach()
        self._source = None

    def __getstate__(self) -> dict[str, Any]:
        own = ("_stream", "_share_of_stream", "_frames", "_finalizer", "_source")
        return {**super().__getstate__(), **dict.fromkeys(own)}

    def _same(self) -> dict[str, Any]:
        same = super()._same()
        return {
            **same,
            "workers_with_blenders": min(max(same["workers"], 1), self.config.instances),
            "start": self.config.start,
            "length": self.config.length,
            **(self._source or source(self.config)),
        }

    def _untouched(self, epoch: int) -> dict[str, Any]:
        share = self._share()
        return {"stream": share and Pass(share.config, _indices(share.config, epoch)).state_dict()}

    def _check_state(self, state: Any) -> None:
        check_state(state, self._kind, {"stream"})

    def _share(self) -> _Share | None:
        """Return what this process renders, or None for nothing."""
        config = self.config
        worker = get_worker_info()
        w, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        active = min(workers, config.instances)
        if w >= active:
            return None
        rank, ranks = self._shard()
        shard = (rank * active + w, ranks * active)
        if config.length is not None and shard[0] >= config.length:
            return None
        each, more = divmod(config.instances, active)
        count, before = each + (w < more), w * each + min(w, more)
        args = config.script_args
        if args and not isinstance(args[0], str | os.PathLike):
            args = args[before : before + count]
        own = dataclasses.replace(
            config,
            instances=count,
            shard=shard,
            script_args=args,
            threads=config.threads_each(),  # the cores are shared out among all workers' instances
        )
        return _Share(own, self._distributed()[0] * config.instances + before)

    def _shard(self) -> tuple[int, int]:
        return self.config.shard or self._distributed()


def _indices(config: StreamConfig, epoch: int) -> range:
    """Return the indices of an epoch."""
    return own_indices(config, config.start + epoch * (_ENDLESS_EPOCH if config.length is None else config.length))
