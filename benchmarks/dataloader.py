"""`python -m benchmarks dataloader`: images into a training step."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from asyncblend.testing import fake_blender

from .measuring import Effort, Timed, Way, in_turn, timed
from .peers.arrays import Spec, script
from .report import Metric, Report
from .streams import PATIENT, written

__all__ = ["batches", "measure"]

_SPEC: Spec = {"image": ("uint8", (480, 640, 3))}
_BATCH, _INSTANCES = 8, 2
_METHOD = (
    "640x480 RGB images of two fake Blenders, batches of 8, and a training step that only sums (eight bytes at a time, on one core). *DataLoader*: its "
    "collate_fn stacks the samples of a `BlenderDataset`; *own batches*: `BlenderDataset(batch_size=8)`, whose batches "
    "are built where they stay. *in memory (limit)*: a DataLoader over samples that are there already."
)


def measure(how: Effort) -> Report:
    """Count images per second into a training step that only sums batches of 8, without workers and with two.

    The limit is a DataLoader over images that are in memory.
    """
    metrics = [
        Metric("images/s", lambda timed: timed.rate),
        Metric("ms/batch", lambda timed: 1000 * _BATCH / timed.rate, 2),
        Metric("host CPU µs/image", lambda timed: timed.cpu_each),
    ]
    report = Report(
        "dataloader", "DataLoader: images into a training step", _METHOD, metrics, "DataLoader", own=["own batches"]
    )
    for workers in (2,) if how.quick else (0, 2):
        case = f"num_workers={workers}"
        how.say(case)
        with _ways(workers) as ways:
            report.add(case, in_turn(ways, how))
    return report


@contextlib.contextmanager
def _ways(workers: int) -> Iterator[Mapping[str, Way]]:
    from asyncblend.data.dataset import BlenderDataset

    with tempfile.TemporaryDirectory(prefix="benchmark-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        options: dict[str, Any] = {
            "script": written(folder, "images.py", script(_SPEC)),
            "blender": fake_blender(folder / "fake"),
            "instances": _INSTANCES,
            "timeouts": PATIENT,
        }
        single, batched = BlenderDataset(**options), BlenderDataset(**options, batch_size=_BATCH)
        for dataset in (single, batched):
            stack.callback(dataset.close)
        yield {
            "DataLoader": stack.enter_context(batches(single, _BATCH, workers)),
            "own batches": stack.enter_context(batches(batched, None, workers)),
            "in memory (limit)": stack.enter_context(batches(_in_memory(), _BATCH, workers)),
        }


def _in_memory() -> Any:
    import torch

    sample = torch.randint(256, _SPEC["image"][1], dtype=torch.uint8)
    return _Same({"image": sample})


class _Same:
    """A dataset that gives the same sample for every index."""

    def __init__(self, sample: dict[str, Any]) -> None:
        self._sample = sample

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self._sample, "index": index}


@contextlib.contextmanager
def batches(dataset: Any, batch_size: int | None, workers: int) -> Iterator[Way]:
    """Open a DataLoader, and give a way that feeds its batches into a training step.

    Args:
        batch_size: None if the dataset makes the batches itself.
    """
    import torch
    from torch.utils.data import DataLoader, SequentialSampler

    torch.set_num_threads(1)  # on all cores, the sum would wait for those that the Blenders use
    warnings.filterwarnings(
        "ignore", message="This DataLoader will create"
    )  # the question says how many workers there are
    sampler = None if not isinstance(dataset, _Same) else SequentialSampler(dataset)
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=workers, sampler=sampler)
    iterator: Any = iter(loader)

    def step() -> int:
        images = next(iterator)["image"]
        images.flatten().view(torch.int64).sum()  # summed one by one, the bytes would take longer than all the rest
        return len(images)

    def way(seconds: float) -> Timed:
        for _ in range(2 + 4 * workers):  # these were made ahead
            step()
        return timed(step, seconds)

    try:
        yield way
    finally:
        if workers:
            iterator._shutdown_workers()
