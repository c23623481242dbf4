"""BlenderDataset: a fleet's frames as a PyTorch IterableDataset."""

from __future__ import annotations

import dataclasses
import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, get_worker_info

from ..config import StreamConfig, resolve
from ..errors import ConfigError
from ..stream.bridge import Bridge, Pass, StreamStats
from .items import Item, ItemDataset

__all__ = [
    "BlenderDataset",
    "DataLoader",
]  # torch's, for the command line, which must not import torch itself

_ENDLESS_EPOCH = 1 << 32  # indices between the epochs of an endless stream


class BlenderDataset(ItemDataset):
    """Streams freshly rendered samples into a DataLoader.

        loader = DataLoader(BlenderDataset(script="cube.py", length=1000), batch_size=8, num_workers=2)

    Items are dicts: what the script returned, arrays as writable tensors that are yours, plus "index" (int).
    Nothing is started before the first iteration. Without workers the fleet stays warm between iterations, until
    `close`, garbage collection or exit; with `persistent_workers=True` each worker's share does.

    Worker w of W in rank r of R takes shard r * W + w of R * W, so ranks have equally many samples where R * W divides
    the length. The instances of a rank are shared out among its
    workers, and a worker with no instance gets no indices. A `shard` in the config stands for (r, R).

    With `batch_size`, items are whole batches, for a DataLoader that makes none: each array is copied once, from the
    memory that Blender wrote it to into the batch's tensor.

        loader = DataLoader(BlenderDataset(script="cube.py", length=1000, batch_size=8), batch_size=None)

    Args:
        config: the options.
        transform: called with each item, in the process that iterates; what it returns is the item.
        batch_size: samples in an item. Numbers are stacked too; strings and None come as lists. The last batch of
            each worker is shorter. None: an item is one sample.
        drop_last: leave shorter batches out.
        pin_memory: build batches in page-locked memory, from which copies to a GPU are fast and need not be waited
            for. Without a GPU, and in workers, it does nothing.
        device: where the batches' tensors are to be, such as "cuda". The copy goes on while the GPU still computes
            the step before. Not with workers.
        options: StreamConfig's fields; they override the config's.

    Raises:
        ConfigError: an option is wrong.
    """

    def __init__(
        self,
        config: StreamConfig | None = None,
        *,
        transform: Callable[[Item], Any] | None = None,
        batch_size: int | None = None,
        drop_last: bool = False,
        pin_memory: bool = False,
        device: torch.device | str | int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            transform=transform,
            batch_size=batch_size,
            drop_last=drop_last,
            pin_memory=pin_memory,
            device=device,
        )
        self.config = resolve(config, options)
        self._resume: tuple[int, Mapping[str, Any]] | None = None  # epoch, and where to go on in it
        self._bridge: Bridge | None = None
        self._bridge_epoch = 0  # of its present pass
        self._finalizer: weakref.finalize[Any, BlenderDataset] | None = None

    def __len__(self) -> int:
        """Items of one epoch in this rank; exact without workers, or where ranks times workers divide the length.

        Raises:
            TypeError: the stream is endless.
        """
        if self.config.length is None:
            raise TypeError("an endless BlenderDataset has no len(); give it a length")
        rank, ranks = self._shard()
        return self._length(len(range(rank, self.config.length, ranks)))

    def __iter__(self) -> Iterator[Any]:
        frames = self.begin()
        if frames is not None:
            yield from self.items_of(frames)

    def begin(self, *, wait: bool = True) -> Pass | None:
        """Begin an iteration, for who takes the frames themselves. None: this process renders nothing.

        Args:
            wait: until the first Blender is ready. Else what goes wrong at the start is raised by the pass, or by
                another `begin`.
        """
        config = self._share()
        if config is None:
            return None
        epoch = int(self._epoch)
        start = config.start + epoch * (_ENDLESS_EPOCH if config.length is None else config.length)
        state = self._resume[1] if self._resume is not None and self._resume[0] == epoch else None
        self._resume, self._bridge_epoch = None, epoch
        # Over this process's last fleet, if that is usable, else over a new one.
        if self._bridge is not None and self._bridge.usable and self._bridge.config == config:
            return self._bridge.begin(start, state, wait=wait)
        self.close()
        self._bridge = Bridge(config)
        self._finalizer = weakref.finalize(self, self._bridge.close)
        return self._bridge.open(start, state, wait=wait)

    def set_epoch(self, epoch: int) -> None:
        """From the next iteration on, render other samples: the indices are offset by `epoch` times the length.

        Raises:
            ConfigError: not a whole number from 0 on.
        """
        super().set_epoch(epoch)

    def stats(self) -> StreamStats | None:
        """The stream's statistics, in the process that iterates; None before the first iteration."""
        return None if self._bridge is None else self._bridge.stats()

    def state_dict(self) -> dict[str, Any]:
        """Which samples of this epoch have been taken, in the process that iterates."""
        epoch = int(self._epoch)
        if self._resume is not None and self._resume[0] == epoch:
            return {"epoch": epoch, "stream": self._resume[1]}
        begun = self._bridge is not None and self._bridge_epoch == epoch
        return {"epoch": epoch, "stream": self._bridge.state_dict() if self._bridge and begun else {}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on where `state` was saved, in the process that iterates.

        Raises:
            ConfigError: not a state; one of another stream is found out by the iteration.
        """
        if not isinstance(state, Mapping) or state.keys() != {"epoch", "stream"}:
            raise ConfigError(f"not a saved state of a BlenderDataset: {state!r:.200}")
        self.set_epoch(state["epoch"])
        self._resume = (state["epoch"], state["stream"]) if state["stream"] else None

    def close(self) -> None:
        """Stop the fleet, if this process has one. Iterating again starts another."""
        if self._bridge is not None:
            self._bridge.close()
        if self._finalizer is not None:
            self._finalizer.detach()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_bridge": None, "_finalizer": None}

    def _share(self) -> StreamConfig | None:
        """What this process renders, or None for nothing."""
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
        # Instances are numbered through all ranks, which render together.
        this_rank = self._distributed()[0]
        return dataclasses.replace(
            config,
            instances=count,
            first_instance=config.first_instance + this_rank * config.instances + before,
            shard=shard,
            script_args=args,
            threads=config.threads_each(),  # the cores are shared out among all workers' instances
        )

    def _shard(self) -> tuple[int, int]:
        return self.config.shard if self.config.shard != (0, 1) else self._distributed()
