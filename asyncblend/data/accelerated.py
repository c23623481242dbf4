"""accelerate, the library: whether its loader shares out among ranks what a dataset has shared out already."""

from __future__ import annotations

import sys
from typing import Any

from ..errors import ConfigError

_INSTEAD = (
    "Leave the loader out of `accelerator.prepare(...)`: each rank then has its own share, and saves the state of its "
    "own loader"
)


def check_not_shared_again(dataset: object, *, sharded: bool) -> None:
    """Check that the loader of a dataset is none of accelerate's that shares its samples out once more.

    accelerate is not imported here: where it is not, no loader is its own. Its loaders set the epoch when they begin an
    iteration, in every rank and in the process that has the workers. That is the moment to call this.

    Args:
        dataset: The dataset whose epoch is set.
        sharded: Whether this process has only a share of the samples, because of its rank.

    Raises:
        ConfigError: It is, so samples would be lost.
    """
    state, loading = sys.modules.get("accelerate.state"), sys.modules.get("accelerate.data_loader")
    if state is None or loading is None:
        return
    for loader in state.GradientState().dataloader_references:
        given: Any = getattr(loader, "dataset", None)
        if type(loader) is loading.DataLoaderDispatcher and given is dataset:
            if sharded:
                raise ConfigError(
                    f"accelerate would give all ranks the batches of rank 0, which has only its own share of the "
                    f"samples. {_INSTEAD}. Or let a BlenderDataset in rank 0 render for all: `shard=(0, 1)`"
                )
            if loader.use_stateful_dataloader and loader.state.num_processes > 1:
                raise ConfigError(
                    f"accelerate takes batches for all ranks from rank 0 before it gives them out, so its state of this "
                    f"loader would lose some. {_INSTEAD}"
                )
        if type(given) is loading.IterableDatasetShard and given.dataset is dataset:
            raise ConfigError(
                f"accelerate, with dispatch_batches=False, would drop in each rank what it takes for the samples of the "
                f"others; but no rank has the samples of the others in the same order. {_INSTEAD}"
            )
