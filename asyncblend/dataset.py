"""BlenderDataset: a fleet's frames as a PyTorch IterableDataset. The only module that imports torch."""

from __future__ import annotations

import dataclasses
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from .batch import Batch, Memory
from .bridge import Bridge, Frame, Pass, StreamStats
from .config import StreamConfig, check_whole, resolve
from .errors import ConfigError

__all__ = [
    "BlenderDataset",
    "DataLoader",
]  # torch's, for the command line, which must not import torch itself

_ENDLESS_EPOCH = 1 << 32  # indices between the epochs of an endless stream

Item = dict[str, Any]


class BlenderDataset(IterableDataset[Any]):
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
        super().__init__()
        self.config = resolve(config, options)
        if transform is not None and not callable(transform):
            raise ConfigError(f"transform must be callable; got {transform!r}")
        if batch_size is not None:
            check_whole("batch_size", batch_size, 1)
        for name, value in (
            ("drop_last", drop_last),
            ("pin_memory", pin_memory),
            ("device", device is not None),
        ):
            if value and batch_size is None:
                raise ConfigError(
                    f"{name} goes with batch_size; a DataLoader has the same option for its own batches"
                )
        self._transform = transform
        self._batch_size, self._drop_last = batch_size, drop_last
        self._device = None if device is None else torch.device(device)
        self._pinned = (pin_memory or self._device is not None) and torch.cuda.is_available()
        # In shared memory, so that set_epoch reaches workers that live on between epochs.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._rank: tuple[int, int] | None = None
        self._resume: tuple[int, Mapping[str, Any]] | None = None  # epoch, and where to go on in it
        self._bridge: Bridge | None = None
        self._bridge_epoch = 0  # of its present pass
        self._finalizer: weakref.finalize[Any, BlenderDataset] | None = None
        self._copying: torch.cuda.Stream | None = None

    def __len__(self) -> int:
        """Items of one epoch in this rank; exact without workers, or where ranks times workers divide the length.

        Raises:
            TypeError: the stream is endless.
        """
        if self.config.length is None:
            raise TypeError("an endless BlenderDataset has no len(); give it a length")
        rank, ranks = self._shard()
        samples = len(range(rank, self.config.length, ranks))
        if self._batch_size is None:
            return samples
        return samples // self._batch_size if self._drop_last else -(-samples // self._batch_size)

    def __iter__(self) -> Iterator[Any]:
        config = self._share()
        if config is None:
            return
        epoch = int(self._epoch)
        start = config.start + epoch * (_ENDLESS_EPOCH if config.length is None else config.length)
        state = self._resume[1] if self._resume is not None and self._resume[0] == epoch else None
        self._resume, self._bridge_epoch = None, epoch
        frames = self._begin(config, start, state)
        for item in (
            map(_item, frames) if self._batch_size is None else self._batches(frames, self._batch_size)
        ):
            yield item if self._transform is None else self._transform(item)

    def _batches(self, frames: Iterable[Frame], size: int) -> Iterator[Item]:
        if self._device is not None and self._device.type != "cpu" and get_worker_info() is not None:
            raise ConfigError(
                f"device={str(self._device)!r} is for num_workers=0: workers cannot share a GPU's memory"
            )
        # Workers hand their batches over in shared memory, which is not page-locked.
        empty = _pinned if self._pinned and get_worker_info() is None else _plain
        batch = Batch(size, empty)
        for frame in frames:
            batch.add(frame, frame.index)
            if batch.full:
                yield self._moved(batch.finish())
                batch = Batch(size, empty)
        if len(batch) and not self._drop_last:
            yield self._moved(batch.finish())

    def _moved(self, batch: Item) -> Item:
        """On the device; a copy to a GPU goes on while its main stream computes."""
        device = self._device
        if device is None:
            return batch
        if device.type != "cuda":
            return {name: _each_tensor(value, lambda one: one.to(device)) for name, value in batch.items()}
        if self._copying is None:
            self._copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        copying, main = self._copying, torch.cuda.current_stream(device)

        def move(tensor: torch.Tensor) -> torch.Tensor:
            moved = tensor.to(device, non_blocking=True)
            moved.record_stream(main)  # its memory is the copying stream's, which must not reuse it too early
            return moved

        with torch.cuda.stream(copying):
            on_device = {name: _each_tensor(value, move) for name, value in batch.items()}
        main.wait_stream(copying)
        return on_device

    def set_epoch(self, epoch: int) -> None:
        """From the next iteration on, render other samples: the indices are offset by `epoch` times the length.

        Raises:
            ConfigError: not a whole number from 0 on.
        """
        if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
            raise ConfigError(f"epoch must be a whole number, at least 0; got {epoch!r}")
        self._epoch.fill_(epoch)

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
        # A spawned worker is not part of torch.distributed: it takes the rank along.
        return {
            **self.__dict__,
            "_bridge": None,
            "_finalizer": None,
            "_copying": None,
            "_rank": self._distributed(),
        }

    def _begin(self, config: StreamConfig, start: int, state: Mapping[str, Any] | None) -> Pass:
        """A pass over this process's last fleet, if that is usable, else over a new one."""
        if self._bridge is not None and self._bridge.usable and self._bridge.config == config:
            return self._bridge.begin(start, state)
        self.close()
        self._bridge = Bridge(config)
        self._finalizer = weakref.finalize(self, self._bridge.close)
        return self._bridge.open(start, state)

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

    def _distributed(self) -> tuple[int, int]:
        """(rank, ranks)."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return self._rank or (0, 1)


def _item(frame: Frame) -> Item:
    return {**{name: _own(value) for name, value in frame.items()}, "index": frame.index}


def _own(value: Any) -> Any:
    """Arrays as tensors with memory of their own; the rest as it is."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, list):
        return [_own(item) for item in value]
    if isinstance(value, dict):
        return {name: _own(item) for name, item in value.items()}
    return value


def _plain(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Memory:
    array = np.empty(shape, dtype)
    return Memory(torch.from_numpy(array), array)


def _pinned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Memory:
    # From torch's own cache of such memory, which waits for copies that still read it.
    tensor = torch.empty(shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype, pin_memory=True)
    return Memory(tensor, tensor.numpy())


def _each_tensor(value: Any, move: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return move(value)
    if isinstance(value, dict):
        return {name: _each_tensor(item, move) for name, item in value.items()}
    if isinstance(value, list):
        return [_each_tensor(item, move) for item in value]
    return value
