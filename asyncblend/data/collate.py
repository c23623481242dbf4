"""collate: items to a batch, by the same rule as `batch_size` and `batches`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from ..stream.batch import Batch, Memory, check_ragged
from .items import as_tensors, in_torch


def collate(samples: Sequence[Any], *, ragged: Collection[str] = ()) -> Any:
    """Make a batch of items whose arrays may differ in shape, such as the boxes of a varying number of objects:

        loader = DataLoader(dataset, batch_size=8, collate_fn=ab.collate)

    `batch[name][i]` is always what item `i` has. What `batch[name]` is, depends on its values alone:

    - Arrays and tensors are stacked, if their shapes agree in this batch; otherwise they come as a list of tensors. So
      what always has one shape is always stacked, such as images.
    - Numbers become a tensor of bool, int64 or float64.
    - Dicts are batched key by key, and tuples position by position.
    - Lists come as a list of them, because their lengths may vary. (PyTorch's own function turns them on their side.)
    - Strings and None come as a list of them.
    - "params", if they are a dict, are batched as one. If the forms of the items' params differ, they come as a list of
      dicts, with {} for an item without.
    - What `ragged` names always comes as a list, also in a batch where all shapes happen to agree. A dict that it names
      comes as a list of dicts, as torchvision's detectors take their targets:

          loader = DataLoader(dataset, batch_size=8, collate_fn=functools.partial(ab.collate, ragged=("bbox", "class_id")))

    `torch.nn.utils.rnn.pad_sequence(batch["bbox"], batch_first=True)` pads a list of tensors to one.

    Args:
        samples: The items: dicts, or whatever a `transform` makes of them.
        ragged: Names in the items whose values are never stacked.

    Raises:
        SampleError: The items differ in their names, in the dtype or rank of an array, or in the kind of a value.
        ConfigError: `ragged` has a name that the items have not.
    """
    batch = Batch(len(samples), _empty, ragged=check_ragged(ragged), arrays=torch.Tensor)
    for place, sample in enumerate(samples):
        index = sample.get("index") if isinstance(sample, Mapping) else None
        batch.add(as_tensors(sample), index if isinstance(index, int) else place)
    return batch.values()


def _empty(shape: tuple[int, ...], like: Any) -> Memory:
    if not isinstance(like, torch.Tensor):
        return in_torch(shape, like)
    tensor = like.new_empty(shape)
    return Memory(tensor, tensor)
