"""MixedDataset: live samples and recorded ones, so that training never waits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Unpack

import torch
from torch.utils.data import get_worker_info

from ..checks import check_names, check_whole
from ..errors import ConfigError
from ..stream.frame import Frame
from ..stream.stats import StreamStats
from .dataset import BlenderDataset
from .items import ItemDataset, ItemKeywords, ItemOptions
from .iteration import Iteration
from .recorded import RecordedDataset
from .states import check_state, check_stream

_WORKERS = 1024  # that have a row of counts of their own


class MixedDataset(ItemDataset):
    """Live samples and recorded ones, so that training never waits for rendering.

        dataset = MixedDataset(BlenderDataset(script="cube.py", length=1000), RecordedDataset("cubes"), ratio=0.5)

    A share of `ratio` of the items is live, as long as there is a live one when its turn comes. Otherwise a recorded
    one takes its place, also while the Blenders start. `counts` tells how many there were of each. The recording is
    repeated as often as needed.

    An iteration ends with the last live sample; how many recorded ones came with them depends on how fast they were.
    With `length` it ends after that many, live or not: then `len()` is known, and ranks have equally many. Ranks and
    workers share both parts as each would by itself. A worker without a Blender gives recorded samples only, and
    without `length` none at all. Items have "params" only if both parts were given some, because PyTorch's own collate
    function needs the same names in all items of a batch. A recorded sample may have the index of a live one: if the live
    params get feedback, record with another `start`, and leave recorded samples out of the feedback.

    Args:
        live: What is rendered. It stays yours, but `close` closes it.
        recorded: What is there already.
        ratio: The share of live samples, over 0 and at most 1.
        length: Samples of an epoch, of all ranks and workers together. None: until the live ones end.
        items: `transform`, `batch_size`, `ragged`, `drop_last`, `pin_memory` and `device`, as BlenderDataset has them. The two
            parts have their own transforms, and with `batch_size` none; their batches cannot be mixed.

    Raises:
        ConfigError: An option is wrong.
    """

    _kind = "MixedDataset"

    def __init__(
        self,
        live: BlenderDataset,
        recorded: RecordedDataset,
        ratio: float = 0.5,
        *,
        length: int | None = None,
        **items: Unpack[ItemKeywords],
    ) -> None:
        check_names("MixedDataset", items, {"ratio", "length", *ItemKeywords.__annotations__})
        super().__init__(ItemOptions(**items))
        _check_parts(live, recorded, batched=self._items.batch_size is not None)
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio <= 1:
            raise ConfigError(f"ratio must be a number over 0 and at most 1; got {ratio!r}")
        if length is not None:
            check_whole("length", length, 0)
        self._has_params = live.config.params is not None and recorded.about.get("params") is not None
        self._live, self._recorded, self._ratio, self._samples = live, recorded, float(ratio), length
        # A row for each worker, in shared memory: the training process sees what they count.
        self._counts = torch.zeros((_WORKERS, 2), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    @property
    def counts(self) -> dict[str, int]:
        """Samples of all workers so far, "live" and "recorded". Workers run ahead of the training loop."""
        live, recorded = self._counts.sum(dim=0).tolist()
        return {"live": live, "recorded": recorded}

    def __len__(self) -> int:
        """Return the items of one epoch in this rank. With workers it is exact as a RecordedDataset's is.

        Raises:
            TypeError: No `length` was given.
        """
        if self._samples is None:
            raise TypeError("a MixedDataset has no len() without a length")
        rank, ranks = self._distributed()
        return self._length(len(range(rank, self._samples, ranks)))

    def _iterate(self, iteration: Iteration) -> Iterator[Any]:
        if self._items.batch_size is not None:
            return self._items_of((frame for _, frame in self._mixed(iteration)), iteration)
        return self._single(iteration)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of both parts, from the next iteration on.

        Raises:
            ConfigError: It is not a whole number from 0 on.
        """
        super().set_epoch(epoch)
        self._live.set_epoch(epoch)
        self._recorded.set_epoch(epoch)

    def stats(self) -> StreamStats | None:
        """Return the statistics of the live part, in the process that iterates; None before the first iteration."""
        return self._live.stats()

    def close(self) -> None:
        """Stop the fleet, if this process has one. Iterating again starts another."""
        super().close()
        self._live.close()

    def _single(self, iteration: Iteration) -> Iterator[Any]:
        """Yield items, each transformed as its part says, and then as this dataset does."""
        for part, frame in self._mixed(iteration):
            item = self._transformed(part._item_of(frame))
            iteration.deliver()
            yield item

    def _mixed(self, iteration: Iteration) -> Iterator[tuple[ItemDataset, Frame]]:
        """Yield each frame and the part that it is of."""
        k, n = self._place()
        saved = self._untouched(iteration.epoch) if iteration.state is None else iteration.state
        given, of_recorded, due = delivered = saved["given"], saved["recorded"], saved["due"]
        left = None if self._samples is None else len(range(k, self._samples, n)) - given
        self._live._epoch.begin()  # its `flush` and `feedback` must know of workers
        worker = get_worker_info()
        counts = self._counts[0 if worker is None else worker.id % _WORKERS]
        frames = live = self._live._begin(iteration.epoch, saved["stream"], wait=False) if left != 0 else None
        recorded = self._recorded._cycle(iteration.epoch, (k, n), of_recorded)
        iteration.progress = lambda: {
            "stream": saved["stream"] if frames is None else frames.state_dict(),
            **dict(zip(("given", "recorded", "due"), delivered, strict=True)),
        }
        of_live = iteration.deliver if frames is None else frames.hold()

        def deliver() -> None:
            nonlocal delivered
            delivered = given, of_recorded, due
            of_live()

        iteration.deliver, tap = deliver, self._tap(self._live.config.queue_size)
        try:
            while left != 0 and (live is not None or left is not None):
                due = min(due, 1.0) + self._ratio  # carry over at most one live sample that was due but not ready
                frame = live.poll() if live is not None and due > 1.0 - 1e-9 else None
                if live is not None and live.finished:
                    live = None
                    continue
                part: ItemDataset = self._recorded
                if frame is None:
                    frame = next(recorded)
                    counts[1] += 1
                    of_recorded += 1
                else:
                    due, part = due - 1.0, self._live
                    counts[0] += 1
                given += 1
                left = None if left is None else left - 1
                if not self._has_params:
                    frame.params = {}
                if tap is not None:
                    tap.put(frame)
                yield part, frame
        finally:
            if live is not None:
                live.close()

    def _same(self) -> dict[str, Any]:
        parts = {"live": self._live._same(), "recorded": self._recorded._same()}
        return {**super()._same(), "ratio": self._ratio, "length": self._samples, **parts}

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._live._restore(state)

    def _refreshed(self, state: Mapping[str, Any]) -> dict[str, Any]:
        return self._live._refreshed(state)

    def _untouched(self, epoch: int) -> dict[str, Any]:
        return {**self._live._untouched(epoch), "given": 0, "recorded": 0, "due": 0.0}

    def _check_state(self, state: Any) -> None:
        check_state(state, self._kind, {"stream", "given", "recorded", "due"})
        check_stream(state)
        for name in ("given", "recorded"):
            check_whole(f"the saved number {name}", state[name], 0)
        if not isinstance(state["due"], float):
            raise ConfigError(f"not a saved state of a MixedDataset: {state!r:.200}")


def _check_parts(live: object, recorded: object, *, batched: bool) -> None:
    for name, part, kind in (("live", live, BlenderDataset), ("recorded", recorded, RecordedDataset)):
        if not isinstance(part, kind):
            raise ConfigError(f"{name} must be a {kind.__name__}; got {part!r:.100}")
        if part._items.batch_size is not None:
            raise ConfigError(f"{name} has a batch_size: give it to the MixedDataset, which mixes samples")
        if isinstance(part, BlenderDataset) and part._cut is not None:
            raise ConfigError(f"{name} gives clips, which cannot be mixed with single frames; leave out its `clip`")
        if batched and part._items.transform is not None:
            raise ConfigError(
                f"{name} has a transform, whose items cannot be batched here; with batch_size, give the transform to "
                f"the MixedDataset, and it gets the batches"
            )
