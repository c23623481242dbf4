"""Items: what the datasets have in common. Frames as items or batches of tensors; states, ranks and workers."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict

import numpy as np
import torch
import torch.distributed
from torch.utils.data import IterableDataset, get_worker_info

from ..checks import check_whole, options_checked
from ..errors import ConfigError
from ..ports import VIEW
from ..stream.batch import Batch, Memory, check_ragged, mapped
from ..stream.frame import Frame, with_params
from ..stream.stats import StreamStats
from ..tap.tap import Tap
from .accelerated import check_not_shared_again
from .carried import carried
from .iteration import Epoch, Iteration
from .states import check_epoch, check_same, saved, warn_of_changes
from .viewed import Viewed

Item = dict[str, Any]


class BatchKeywords(TypedDict, total=False):
    """ItemOptions' fields that a BlenderDataset takes by their names only."""

    ragged: Collection[str]
    drop_last: bool
    pin_memory: bool
    device: torch.device | str | int | None


class ItemKeywords(BatchKeywords, total=False):
    """ItemOptions' fields as keywords of the datasets."""

    transform: Callable[[Item], Any] | None
    batch_size: int | None


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
        for name in ("drop_last", "pin_memory"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be True or False; got {getattr(self, name)!r:.80}")
        if self.device is not None:
            try:
                torch.device(self.device)
            except (RuntimeError, TypeError, ValueError) as error:
                raise ConfigError(
                    f"device must be one of torch's, such as 'cuda' or 'cpu'; got {self.device!r:.80}: {error}"
                ) from error
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
    """A dataset that yields frames as items, or in whole batches, and goes on from a saved state.

    A kind of dataset has `_iterate`, and for its states `_kind`, `_same`, `_untouched` and `_check_state`.
    """

    _kind: ClassVar[str]
    """What a state calls this kind of dataset."""

    def __init__(self, options: ItemOptions) -> None:
        super().__init__()
        self._items = options
        self._device = None if options.device is None else torch.device(options.device)
        self._pinned = (options.pin_memory or self._device is not None) and torch.cuda.is_available()
        self._epoch = Epoch()
        self._loaded: Mapping[str, Any] | None = None  # a state that the next iterator goes on from
        self._present: Iteration | None = None  # of the iterator that was made last
        self._rank: tuple[int, int] | None = None
        self._copying: torch.cuda.Stream | None = None
        self._viewed: Viewed | None = None

    def __iter__(self) -> Iterator[Any]:
        # A loaded state belongs to the iterator that is made next, also if nobody takes anything from it: that is how
        # a StatefulDataLoader passes over the end of an epoch.
        iteration = self._present = Iteration(self._loaded)
        self._loaded = None
        return self._from(iteration)

    def _from(self, iteration: Iteration) -> Iterator[Any]:
        with carried():
            if iteration.state is not None:  # it was loaded before the DataLoader made workers of this process
                check_same(iteration.state["of"], self._same(), self._kind)
            iteration.begin(self._epoch)
            yield from self._iterate(iteration)

    def _iterate(self, iteration: Iteration) -> Iterator[Any]:
        """Yield the items of an iteration that has just begun, and set its `progress` and `deliver`."""
        raise NotImplementedError

    def view(self, port: int = VIEW) -> None:
        """Let the frames of the iterations that begin from now on be seen by `asyncblend view --attach PORT`.

        The training never waits for it: a look takes the newest frame, and the others are counted as not shown. While
        nobody looks, nothing is copied or sent. What is seen are the frames as Blender made them, before `transform`,
        with the stream's statistics and this process's log. In a DataLoader with workers they are those of worker 0,
        and with several ranks those of rank 0.

        The process that iterates listens on 127.0.0.1, until `close`, garbage collection or exit. Each user of this
        machine can look. A training process that has iterated the dataset itself keeps the port from the workers of a
        DataLoader until it calls `close`. Workers end with their epoch; who looks then waits for those of the next one.

        Args:
            port: Of this machine.

        Raises:
            ConfigError: It is no port, or another program listens on it.
        """
        if self._viewed is not None:
            self._viewed.close()
        self._viewed = Viewed(port)
        weakref.finalize(self, self._viewed.close)

    def _tap(self, queue_size: int = 0) -> Tap | None:
        """Return what the frames of an iteration are to be shown to; None if they are not viewed, or not in this process.

        Args:
            queue_size: Of the stream, if there is one.
        """
        worker = get_worker_info()
        if self._viewed is None or self._distributed()[0] > 0 or (worker is not None and worker.id > 0):
            return None
        own = weakref.ref(self)  # nothing of the view keeps the dataset alive

        def stats() -> StreamStats | None:
            dataset = own()
            return None if dataset is None else dataset.stats()

        return self._viewed.tap(stats, queue_size, last=worker is None)

    def stats(self) -> StreamStats | None:
        """Return the statistics of the stream behind the items, if there is one."""
        raise NotImplementedError

    def close(self) -> None:
        """Close what the dataset holds."""
        if self._viewed is not None:
            self._viewed.close()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the iterations that begin from now on. It is 0 before.

        In another epoch a BlenderDataset renders other samples: their indices are offset by `epoch` times the length. A
        RecordedDataset with `shuffle` has another order.

        Raises:
            ConfigError: It is not a whole number from 0 on; or the loader is one that accelerate has prepared for
                several ranks in a way that would lose samples.
        """
        check_epoch("epoch", epoch)
        check_not_shared_again(self, sharded=self._shard()[1] > 1)
        self._epoch.set(epoch)
        if self._loaded is not None and self._loaded["epoch"] != epoch:
            self._loaded = None

    def state_dict(self) -> dict[str, Any]:
        """Return which samples of this epoch have been taken, in the process that iterates, as data that JSON can hold.

        Raises:
            ConfigError: That is not this process: a DataLoader's workers iterate over this epoch.
        """
        if self._epoch.is_workers:
            raise ConfigError(
                "the workers of a DataLoader iterate over this epoch, and only they know what they have delivered; "
                "let torchdata's StatefulDataLoader save the state, or iterate with num_workers=0"
            )
        if self._loaded is not None:
            return self._refreshed(self._loaded)
        present = self._present
        if present is not None and present.progress is None and present.state is not None:
            return self._refreshed(present.state)
        if present is None or present.progress is None or present.is_over(self._epoch):
            epoch = self._epoch.number
            return saved(self._kind, self._same(), epoch, self._untouched(epoch))
        return saved(self._kind, self._same(), present.epoch, present.progress())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on where `state` was saved, in the process that iterates.

        That iteration is of the state's epoch. `set_epoch` to another one, after this, gives the state up.

        Raises:
            ConfigError: It is no state of this kind of dataset, or it was saved of something else (options, rank or
                number of workers differ). What the state says of the stream is checked by the iteration.
        """
        with carried():
            self._check_state(state)
            same = self._same()
            check_same(state["of"], same, self._kind)
            warn_of_changes(state["of"], same)
            self._restore(state)
            self._epoch.load(state["epoch"])
            self._loaded = dict(state)

    def _same(self) -> dict[str, Any]:
        """Return what must be the same where a state is loaded, as data that JSON can hold."""
        worker = get_worker_info()
        w, workers = (0, 0) if worker is None else (worker.id, worker.num_workers)
        rank, ranks = self._shard()
        return {"workers": workers, "worker": w, "ranks": ranks, "rank": rank}

    def _untouched(self, epoch: int) -> dict[str, Any]:
        """Return what a state says of an iteration of which nothing has been taken."""
        raise NotImplementedError

    def _check_state(self, state: Any) -> None:
        """Check that something is a state of this kind of dataset, by its form alone."""
        raise NotImplementedError

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Set back what a loaded state sets back at once. It raises ConfigError, and changes nothing, if it cannot."""

    def _refreshed(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return a state that was loaded, with what has changed since though nothing has been taken."""
        return dict(state)

    def _item_of(self, frame: Frame) -> Any:
        """Return one frame as an item, transformed."""
        return self._transformed(as_item(frame))

    def _items_of(self, frames: Iterable[Frame], iteration: Iteration) -> Iterator[Any]:
        """Yield the frames of an iteration as items, or as batches; transformed."""
        size = self._items.batch_size
        for item in map(as_item, frames) if size is None else self._batches(frames, size):
            item = self._transformed(item)  # not by `map`, which takes a StopIteration of the transform's for the end
            iteration.deliver()  # an error before it, or a Ctrl-C, loses no sample of a half-built batch
            yield item
        iteration.deliver()  # what `drop_last` leaves out

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
        return {**self.__dict__, "_present": None, "_copying": None, "_rank": self._distributed()}

    def _place(self) -> tuple[int, int]:
        """Return (k, n): this process takes the samples k, k + n, k + 2n, ... of a recording. Ranks have equally many."""
        worker = get_worker_info()
        w, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        rank, ranks = self._distributed()
        return rank + ranks * w, ranks * workers

    def _shard(self) -> tuple[int, int]:
        """Return (r, R): this process and its workers take the samples of rank r of R."""
        return self._distributed()

    def _distributed(self) -> tuple[int, int]:
        """Return the rank of this process, and the number of ranks."""
        return distributed() or self._rank or (0, 1)


def distributed() -> tuple[int, int] | None:
    """Return the rank of this process in torch.distributed, and the number of ranks; None where that does not run."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return None


def as_item(frame: Frame) -> Item:
    """Return a frame as an item: its values, with arrays as tensors that have memory of their own, and "index"."""
    return {**as_tensors(with_params(frame)), "index": frame.index}


def as_tensors(value: Any) -> Any:
    """Return a value with arrays as tensors that have memory of their own."""
    return mapped(value, (np.ndarray, np.generic), _tensor)


def _tensor(array: Any) -> torch.Tensor:
    array = np.asarray(array)
    # A live frame is read-only, and a flipped image has strides that torch does not take.
    usable = array.flags.writeable and all(stride >= 0 for stride in array.strides)
    return torch.from_numpy(array if usable else array.copy())


def in_torch(shape: tuple[int, ...], like: np.ndarray[Any, Any]) -> Memory:
    """Return the memory of a new tensor."""
    array = np.empty(shape, like.dtype)
    return Memory(torch.from_numpy(array), array)


def _pinned(shape: tuple[int, ...], like: np.ndarray[Any, Any]) -> Memory:
    # From torch's own cache of such memory, which waits for copies that still read it.
    tensor = torch.empty(shape, dtype=torch.from_numpy(np.empty(0, like.dtype)).dtype, pin_memory=True)
    return Memory(tensor, tensor.numpy())
