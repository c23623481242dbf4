"""BlenderMapDataset: a fleet as a map-style PyTorch dataset, which renders the samples that are asked for."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, SupportsIndex, Unpack

from torch.utils.data import Dataset, get_worker_info

from ..checks import check_names
from ..config import StreamConfig, StreamOptions, resolve
from ..errors import ConfigError
from ..stream.frame import Frame
from ..stream.indices import own_indices
from ..stream.stats import StreamStats
from ..stream.sync import SyncStream
from .carried import carried
from .items import Item, ItemOptions, as_item, distributed
from .share import OwnStream, check_not_copied, share_of


class BlenderMapDataset(Dataset[Any], contextlib.AbstractContextManager["BlenderMapDataset"]):
    """Random access: renders the samples that are asked for, when they are asked for.

        dataset = BlenderMapDataset(script="cube.py", length=1000)
        dataset[17]     # the sample 17, always the same
        loader = DataLoader(dataset, batch_size=32, sampler=WeightedRandomSampler(weights, 1000), num_workers=2)

    It is for samplers that choose what comes next, for `Subset`, for going through the hardest examples again, and for
    a look at a single sample. A BlenderDataset renders ahead, which is faster where any sample is welcome.

    `dataset[i]` is the sample of the i-th of the config's indices: of start + i without a `shard`, and of
    start + k + i * n with the shard (k, n). The ranks of torch.distributed have all the same samples, for a
    DistributedSampler to share out. A callable `params` is asked at each access.

    Items are dicts: what the script returned, with arrays as writable tensors that you own, and "index" (int), the
    sample's index. An episode is one item too, a clip of all its frames: its tensors have time as their first axis,
    T x H x W x C; one that ends with its first frame is that frame, H x W x C. The samples of a slice, of a list of
    indices and of a DataLoader's batch are rendered at the same time by all Blenders, and come in the order in which
    they were asked for.

    The first access starts the fleet, which stays warm until `close`, the end of a `with` block, garbage collection or
    exit. The instances of a rank are shared out among the workers of a DataLoader, so it may have as many workers as
    there are instances; give it `persistent_workers=True`, else its Blenders start anew in each epoch. While a worker
    renders a batch, training goes on with those before; without workers it waits for each one. With `fleet`, there may
    be any number of workers, and none starts a Blender.

    Args:
        config: The options. `ordered` has no meaning here, and samples cannot be skipped (`on_bad_sample`).
        transform: Called with each item, in the process that renders it. What it returns is the item.
        options: StreamConfig's fields. They override the config's.

    Raises:
        ConfigError: An option is wrong.
    """

    def __init__(
        self,
        config: StreamConfig | None = None,
        transform: Callable[[Item], Any] | None = None,
        **options: Unpack[StreamOptions],
    ) -> None:
        check_names("BlenderMapDataset", options, {"transform", *StreamOptions.__annotations__})
        self._transform = ItemOptions(transform=transform).transform
        self.config: StreamConfig = resolve(config, options)
        if self.config.on_bad_sample != "raise":
            raise ConfigError(
                f"on_bad_sample must be 'raise' in a BlenderMapDataset, because an index that is asked for cannot be "
                f"skipped; got {self.config.on_bad_sample!r}"
            )
        self._indices = own_indices(self.config)
        self._own = OwnStream()
        self._rank = 0  # in a spawned worker, which is not part of torch.distributed

    def __len__(self) -> int:
        """Return the number of samples.

        Raises:
            ConfigError: The config has no length.
        """
        if self.config.length is None:
            raise ConfigError(
                "a BlenderMapDataset without a length has no len(), no slices and no indices from its end; give it a "
                "length, or a sampler that needs none"
            )
        return len(self._indices)

    def __getitem__(self, index: SupportsIndex | slice | Sequence[SupportsIndex]) -> Any:
        """Render one sample, and return it as an item. For a slice or a list of indices, return a list of items.

        Args:
            index: From 0 on. Negative ones count from the end.

        Raises:
            IndexError: There is no such sample.
            SampleError: The script raised, or the sample killed its Blender too often.
            ConfigError: It is no index; there are more workers than Blenders; or the params are an iterator that has
                ended, or of which workers have copies.
            AsyncblendError: As entering a BlenderStream, or its `render`, raises.
        """
        if isinstance(index, slice):
            index = range(len(self))[index]
        if isinstance(index, Sequence):
            return self.__getitems__(index)
        return self._render([self._index_of(index)])[0]

    def __getitems__(self, indices: Iterable[SupportsIndex]) -> list[Any]:
        """Render several samples at the same time, and return their items in this order. DataLoaders call it.

        An index that occurs twice is rendered twice.

        Raises:
            IndexError, SampleError, ConfigError, AsyncblendError: As `dataset[i]` raises.
        """
        wanted = [self._index_of(index) for index in indices]
        return self._render(wanted) if wanted else []

    def __iter__(self) -> Iterator[Any]:
        """Yield the items of all samples in order, rendered ahead as the config's `queue_size` allows."""
        with self._rendering() as stream, stream.frames(self._indices, ordered=True) as frames:
            yield from self._items_of(frames.samples())

    def render(self, index: int, params: Mapping[str, Any] | None = None) -> Any:
        """Render one sample, and return it as an item: of an episode, all its frames.

        Args:
            index, params: As `BlenderStream.render` has them: the index is the sample's, as in its item.

        Raises:
            SampleError, ConfigError, AsyncblendError: As `dataset[i]` raises.
        """
        return self._render([index], params)[0]

    def stats(self) -> StreamStats | None:
        """Return the fleet's statistics, in the process that renders; None before the first access."""
        return self._own.stats()

    def close(self) -> None:
        """Stop the fleet, if this process has one. The next access starts another."""
        self._own.close()

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        check_not_copied(self.config.params)
        return {**self.__dict__, "_own": OwnStream(), "_rank": self._present_rank()}

    def _index_of(self, place: SupportsIndex) -> int:
        """Return the sample's index at this place of the dataset."""
        try:
            if isinstance(place, bool):
                raise TypeError  # of a mask, probably
            at = operator.index(place)
        except TypeError:
            raise ConfigError(
                f"an index must be a whole number, a slice or a list of them; got {place!r:.100}"
            ) from None
        if not -len(self) <= at if at < 0 else at >= len(self._indices):
            raise IndexError(f"there is no sample {at}: the dataset has {len(self._indices)}")
        return self._indices[at]

    @contextlib.contextmanager
    def _rendering(self) -> Iterator[SyncStream]:
        """Give the stream to render with. What goes wrong in the block leaves a worker as itself."""
        with carried():
            if get_worker_info() is not None:
                check_not_copied(self.config.params)
            share = share_of(self.config, self._present_rank())
            if share is None:
                raise ConfigError("this worker has no Blender to render with; use fewer workers, or more instances")
            yield self._own.of(share)

    def _present_rank(self) -> int:
        place = distributed()
        return self._rank if place is None else place[0]

    def _render(self, wanted: Sequence[int], params: Mapping[str, Any] | None = None) -> list[Any]:
        """Return the items of the samples of these indices."""
        with self._rendering() as stream, stream.frames(wanted, params=params, ordered=True) as frames:
            items = list(self._items_of(frames.samples()))
            if len(items) < len(wanted):
                raise ConfigError(
                    f"the iterator that gives the params has ended, after {len(items)} of the {len(wanted)} samples that "
                    f"were asked for; give an iterator that goes on, or a callable(index)"
                )
            return items

    def _items_of(self, samples: Iterable[Frame]) -> Iterator[Any]:
        for sample in samples:  # a generator: a StopIteration of the transform's must end no loop in silence
            item = as_item(sample)
            yield item if self._transform is None else self._transform(item)
