"""Items: what the datasets have in common. Frames as items or batches of tensors; epochs, ranks and workers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch
import torch.distributed
from torch.utils.data import IterableDataset, get_worker_info

from ..config import check_whole, options_checked
from ..errors import ConfigError
from ..stream.batch import Batch, Memory, check_ragged, mapped
from ..stream.frame import Frame, with_params
from .carried import carried

Item = dict[str, Any]


class ItemKeywords(TypedDict, total=False):
    """ItemOptions' fields as keywords of the datasets."""

    transform: Callable[[Item], Any] | None
    batch_size: int | None
    ragged: Collection[str]
    drop_last: bool
    pin_memory: bool
    device: torch.device | str | int | None


@options_checked
@dataclass(frozen=True, slots=True, kw_only=True)
class ItemOptions:
    """How a dataset makes items of frames.

    Raises:
        ConfigError: An option is wrong.
    """

    transform: Callable[[Item], Any] | None = None
    """Called with each item, in the process that iterates. What it returns is the item."""

    batch_size: int | None = None
    """Samples in an item, batched as `collate` does. The last batch of each worker may be shorter. None: an item is one
    sample."""

    ragged: Collection[str] = ()
    """Names whose values come as a list in each batch, and are never stacked."""

    drop_last: bool = False
    """Leave out shorter batches."""

    pin_memory: bool = False
    """Build batches in page-locked memory, from which copies to a GPU are fast and need not be waited for. Without a
    GPU, and in workers, it does nothing."""

    device: torch.device | str | int | None = None
    """Where the tensors of batches go, such as "cuda". The copy goes on while the GPU still computes the step before.
    Not with workers."""

    def __post_init__(self) -> None:
        if self.transform is not None and not callable(self.transform):
            raise ConfigError(f"transform must be callable; got {self.transform!r}")
        if self.batch_size is not None:
            check_whole("batch_size", self.batch_size, 1)
            check_ragged(self.ragged)
            return
        if self.ragged:
            raise ConfigError("ragged goes with batch_size; for a DataLoader's own batches it is an option of collate")
        for name in ("drop_last", "pin_memory", "device"):
            if getattr(self, name) not in (False, None):
                raise ConfigError(f"{name} goes with batch_size; a DataLoader has the same option for its own batches")


class ItemDataset(IterableDataset[Any]):
    """A dataset that yields frames as items, or in whole batches."""

    def __init__(self, options: ItemOptions) -> None:
        super().__init__()
        self._items = options
        self._device = None if options.device is None else torch.device(options.device)
        self._pinned = (options.pin_memory or self._device is not None) and torch.cuda.is_available()
        # In shared memory, so that set_epoch reaches workers that live on between epochs.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._workers_epoch = torch.full((), -1).share_memory_()  # type: ignore[no-untyped-call]  # as they say
        self._rank: tuple[int, int] | None = None
        self._copying: torch.cuda.Stream | None = None

    def __iter__(self) -> Iterator[Any]:
        return self._iterate() if get_worker_info() is None else carried(self._iterate)

    def _iterate(self) -> Iterator[Any]:
        """Begin an iteration in this process."""
        raise NotImplementedError

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the iterations that begin from now on. It is 0 before.

        In another epoch a BlenderDataset renders other samples: their indices are offset by `epoch` times the length. A
        RecordedDataset with `shuffle` has another order.

        Raises:
            ConfigError: It is not a whole number from 0 on.
        """
        if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
            raise ConfigError(f"epoch must be a whole number, at least 0; got {epoch!r}")
        self._epoch.fill_(epoch)

    def _begun(self) -> int:
        """Note that an iteration begins in this process, and return its epoch."""
        epoch = int(self._epoch)
        self._workers_epoch.fill_(-1 if get_worker_info() is None else epoch)
        return epoch

    def _own_epoch(self) -> int:
        """Return the present epoch, of which this process knows what was taken.

        Raises:
            ConfigError: Workers iterate over it.
        """
        epoch = int(self._epoch)
        if get_worker_info() is None and epoch == int(self._workers_epoch):
            raise ConfigError(
                "the workers of a DataLoader iterate over this epoch, and only they know what they have delivered; "
                "let torchdata's StatefulDataLoader save the state, or iterate with num_workers=0"
            )
        return epoch

    def _item_of(self, frame: Frame) -> Any:
        """Return one frame as an item, transformed."""
        return self._transformed(_item(frame))

    def _items_of(self, frames: Iterable[Frame]) -> Iterator[Any]:
        """Yield frames as items, or as batches; transformed."""
        size = self._items.batch_size
        for item in map(_item, frames) if size is None else self._batches(frames, size):
            yield self._transformed(item)  # not `map`, which takes a StopIteration of the transform's for the end

    def _transformed(self, item: Item) -> Any:
        return item if self._items.transform is None else self._items.transform(item)

    def _length(self, samples: int) -> int:
        """Return how many items that many samples make."""
        size = self._items.batch_size
        if size is None:
            return samples
        return samples // size if self._items.drop_last else -(-samples // size)

    def _batches(self, frames: Iterable[Frame], size: int) -> Iterator[Item]:
        if self._device is not None and self._device.type != "cpu" and get_worker_info() is not None:
            raise ConfigError(f"device={str(self._device)!r} is for num_workers=0: workers cannot share a GPU's memory")
        # Workers hand their batches over in shared memory, which is not page-locked.
        empty = _pinned if self._pinned and get_worker_info() is None else in_torch
        batch = Batch(size, empty, ragged=self._items.ragged)
        for frame in frames:
            batch.add(with_params(frame), frame.index)
            if batch.full:
                yield self._moved(batch.finish())
                batch = Batch(size, empty, ragged=self._items.ragged)
        if len(batch) and not self._items.drop_last:
            yield self._moved(batch.finish())

    def _moved(self, batch: Item) -> Item:
        """Return the batch on the device. A copy to a GPU goes on while its main stream computes."""
        device = self._device
        if device is None:
            return batch
        if device.type != "cuda":
            return mapped(batch, torch.Tensor, lambda one: one.to(device))  # type: ignore[no-any-return]
        if self._copying is None:
            self._copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        copying, main = self._copying, torch.cuda.current_stream(device)

        def move(tensor: torch.Tensor) -> torch.Tensor:
            moved = tensor.to(device, non_blocking=True)
            moved.record_stream(main)  # the copying stream owns its memory, and must not reuse it too early
            return moved

        with torch.cuda.stream(copying):
            on_device: Item = mapped(batch, torch.Tensor, move)
        main.wait_stream(copying)
        return on_device

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker is not part of torch.distributed: it takes the rank along.
        return {**self.__dict__, "_copying": None, "_rank": self._distributed()}

    def _place(self) -> tuple[int, int]:
        """Return (k, n): this process takes the samples k, k + n, k + 2n, ... of a recording. Ranks have equally many."""
        worker = get_worker_info()
        w, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        rank, ranks = self._distributed()
        return rank + ranks * w, ranks * workers

    def _distributed(self) -> tuple[int, int]:
        """Return the rank of this process, and the number of ranks."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return self._rank or (0, 1)


def _item(frame: Frame) -> Item:
    return {**as_tensors(with_params(frame)), "index": frame.index}


def as_tensors(value: Any) -> Any:
    """Return a value with arrays as tensors that have memory of their own."""
    return mapped(value, (np.ndarray, np.generic), _tensor)


def _tensor(array: Any) -> torch.Tensor:
    array = np.asarray(array)
    return torch.from_numpy(array if array.flags.writeable else array.copy())  # a live frame is read-only


def in_torch(shape: tuple[int, ...], like: np.ndarray[Any, Any]) -> Memory:
    """Return the memory of a new tensor."""
    array = np.empty(shape, like.dtype)
    return Memory(torch.from_numpy(array), array)


def _pinned(shape: tuple[int, ...], like: np.ndarray[Any, Any]) -> Memory:
    # From torch's own cache of such memory, which waits for copies that still read it.
    tensor = torch.empty(shape, dtype=torch.from_numpy(np.empty(0, like.dtype)).dtype, pin_memory=True)
    return Memory(tensor, tensor.numpy())
