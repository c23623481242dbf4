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
from ..stream.params import is_iterator, load_own_state, own_state
from ..stream.passes import own_indices
from ..stream.stats import StreamStats
from ..stream.sync import SyncFrames, SyncStream
from .items import ItemDataset, ItemKeywords, ItemOptions

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

    Items are dicts: what the script returned, with arrays as writable tensors that you own, "index" (int) and, where
    there are any, "params". Nothing is started before the first iteration. Without workers the fleet stays warm between iterations, until
    `close`, garbage collection or exit; with `persistent_workers=True` each worker's share does.

    Worker w of W in rank r of R has shard r * W + w of R * W, so ranks have equally many samples if R * W divides the
    length. The instances of a rank are shared out among its workers, and a worker without an instance gets no indices.
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
        options: StreamConfig's fields. They override the config's.

    Raises:
        ConfigError: An option is wrong.
    """

    def __init__(self, config: StreamConfig | None = None, **options: Unpack[_Options]) -> None:
        given: dict[str, Any] = dict(options)
        check_names("BlenderDataset", given, {*StreamOptions.__annotations__, *ItemKeywords.__annotations__})
        own = {name: given.pop(name) for name in ItemKeywords.__annotations__ if name in given}
        super().__init__(ItemOptions(**own))
        self.config = resolve(config, given)
        self._resume: tuple[int, Mapping[str, Any]] | None = None  # the epoch, and the state of its pass
        self._stream: SyncStream | None = None
        self._share_of_stream: _Share | None = None
        self._frames: SyncFrames | None = None  # the present or last iteration
        self._frames_epoch = 0
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

    def _iterate(self) -> Iterator[Any]:
        frames = self._begin()
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
        if get_worker_info() is not None or int(self._workers_epoch) >= 0:
            raise ConfigError(
                f"{what} is for num_workers=0: each worker of the DataLoader has a copy of the params, which cannot be "
                f"reached from here. Iterate with num_workers=0; or let params be a callable that reads shared memory, "
                f"such as torch.zeros(3).share_memory_(), and change that"
            )

    def _check_not_copied(self) -> None:
        """Raise ConfigError if a copy of the params would give the same again."""
        if is_iterator(self.config.params):
            raise ConfigError(
                "params are an iterator, of which each worker of the DataLoader would have a copy, and would render with "
                "the same params as the others; iterate with num_workers=0, or give a callable(index)"
            )

    def _begin(self, *, wait: bool = True) -> SyncFrames | None:
        """Begin an iteration, and return its frames; None if this process renders nothing.

        Args:
            wait: Whether to wait for the first Blender. Otherwise what goes wrong at the start is raised by the frames.
        """
        if get_worker_info() is not None:
            self._check_not_copied()
        share = self._share()
        if share is None:
            return None
        epoch, config = self._begun(), share.config
        start = config.start + epoch * (_ENDLESS_EPOCH if config.length is None else config.length)
        state = self._resume[1] if self._resume is not None and self._resume[0] == epoch else None
        self._resume = None
        stream = self._stream_for(share, wait=wait)
        if self._frames is not None:
            self._frames.close("another iteration over the same dataset has begun")
        self._frames, self._frames_epoch = stream.frames(own_indices(config, start), state=state), epoch
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

    def state_dict(self) -> dict[str, Any]:
        """Return which samples of this epoch have been taken, in the process that iterates.

        The params that other samples have already are part of it, and the params' own state, as StreamConfig says.

        Raises:
            ConfigError: That is not this process: a DataLoader's workers iterate over this epoch.
        """
        epoch = self._own_epoch()
        stream: dict[str, Any] = {}
        if self._resume is not None and self._resume[0] == epoch:
            stream = dict(self._resume[1])
        elif self._frames is not None and self._frames_epoch == epoch:
            stream = self._frames.state_dict()
        drawn = dict(stream.get("params", {}))
        # What was drawn belongs to the epoch's pass. The params' own state goes on from one epoch to the next.
        own = drawn.pop("state") if "state" in drawn else own_state(self.config.params)
        if drawn:
            stream["params"] = drawn
        return {"epoch": epoch, "stream": stream, **({} if own is None else {"params": own})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on where `state` was saved, in the process that iterates.

        Params with `load_state_dict` get their own state at once.

        Raises:
            ConfigError: It is no state, or the params cannot go on from it. If it is one of another stream, the
                iteration raises.
        """
        if not isinstance(state, Mapping) or state.keys() - {"params"} != {"epoch", "stream"}:
            raise ConfigError(f"not a saved state of a BlenderDataset: {state!r:.200}")
        self.set_epoch(state["epoch"])
        if "params" in state:
            load_own_state(self.config.params, state["params"])
        self._resume = (state["epoch"], state["stream"]) if state["stream"] else None

    def close(self) -> None:
        """Stop the fleet, if this process has one. Iterating again starts another."""
        if self._stream is not None:
            self._stream.close()
        if self._finalizer is not None:
            self._finalizer.detach()

    def __getstate__(self) -> dict[str, Any]:
        self._check_not_copied()
        own = {"_stream": None, "_share_of_stream": None, "_frames": None, "_finalizer": None}
        return {**super().__getstate__(), **own}

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
