"""Items: what the datasets have in common. Frames as items or batches of tensors; epochs, ranks and workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch.utils.data import IterableDataset, get_worker_info

from ..config import check_whole
from ..errors import ConfigError
from ..stream.batch import Batch, Memory
from ..stream.frame import Frame

__all__ = ["Item", "ItemDataset"]

Item = dict[str, Any]


class ItemDataset(IterableDataset[Any]):
    """A dataset that gives frames as items, or in whole batches.

    Args:
        transform: called with each item, in the process that iterates; what it returns is the item.
        batch_size, drop_last, pin_memory, device: as BlenderDataset has them.

    Raises:
        ConfigError: an option is wrong.
    """

    def __init__(
        self,
        *,
        transform: Callable[[Item], Any] | None,
        batch_size: int | None,
        drop_last: bool,
        pin_memory: bool,
        device: torch.device | str | int | None,
    ) -> None:
        super().__init__()
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
                raise ConfigError(f"{name} goes with batch_size; a DataLoader has the same option for its own batches")
        self._transform = transform
        self._batch_size, self._drop_last = batch_size, drop_last
        self._device = None if device is None else torch.device(device)
        self._pinned = (pin_memory or self._device is not None) and torch.cuda.is_available()
        # In shared memory, so that set_epoch reaches workers that live on between epochs.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._rank: tuple[int, int] | None = None
        self._copying: torch.cuda.Stream | None = None

    def set_epoch(self, epoch: int) -> None:
        """From the next iteration on, this is the epoch; 0 before.

        Raises:
            ConfigError: not a whole number from 0 on.
        """
        if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
            raise ConfigError(f"epoch must be a whole number, at least 0; got {epoch!r}")
        self._epoch.fill_(epoch)

    @property
    def batched(self) -> bool:
        """Whether its items are batches."""
        return self._batch_size is not None

    @property
    def transformed(self) -> bool:
        """Whether its items go through a transform."""
        return self._transform is not None

    def item_of(self, frame: Frame) -> Any:
        """One frame as an item, transformed."""
        return self._transformed(_item(frame))

    def items_of(self, frames: Iterable[Frame]) -> Iterator[Any]:
        """Frames as items, or as batches; transformed."""
        made = map(_item, frames) if self._batch_size is None else self._batches(frames, self._batch_size)
        return map(self._transformed, made)

    def _transformed(self, item: Item) -> Any:
        return item if self._transform is None else self._transform(item)

    def _length(self, samples: int) -> int:
        """How many items so many samples make."""
        if self._batch_size is None:
            return samples
        return samples // self._batch_size if self._drop_last else -(-samples // self._batch_size)

    def _batches(self, frames: Iterable[Frame], size: int) -> Iterator[Item]:
        if self._device is not None and self._device.type != "cpu" and get_worker_info() is not None:
            raise ConfigError(f"device={str(self._device)!r} is for num_workers=0: workers cannot share a GPU's memory")
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

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker is not part of torch.distributed: it takes the rank along.
        return {**self.__dict__, "_copying": None, "_rank": self._distributed()}

    def _place(self) -> tuple[int, int]:
        """(k, n): of what is there already, this process takes each n-th one from the k-th on. Equally many a rank."""
        worker = get_worker_info()
        w, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        rank, ranks = self._distributed()
        return rank + ranks * w, ranks * workers

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
        return torch.from_numpy(value if value.flags.writeable else value.copy())  # those of a stream are not
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
