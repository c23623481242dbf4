"""StatefulDataLoader of torchdata: a training that stops anywhere and goes on in another process, exactly."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import asyncblend as ab
from asyncblend.testing import fake_blender

torchdata = pytest.importorskip(
    "torchdata.stateful_dataloader", reason='needs torchdata: pip install "asyncblend[stateful]"'
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),  # torchdata calls it
]

Make = Callable[..., Any]
Samples = list[tuple[int, Any]]  # index and content
LIMIT = 60.0  # seconds; the bound of failure of every wait here
LENGTH = 14
SAMPLE = """
def sample(task):
    return {"noise": task.rng.random(3), "level": task.params.get("level", -1.0)}
"""


def level(index: int) -> dict[str, float]:
    """Return the params of a sample."""
    return {"level": index / 4}


def paired(item: dict[str, Any]) -> tuple[Any, Any]:
    """Return an item or a batch as a pair: a transform, and what a spawned worker can be sent."""
    return item["index"], (item["noise"], item["level"])


@pytest.fixture
def recording(tmp_path: Path, write_script: Callable[..., Path]) -> Path:
    """Record the samples 0 to 13."""
    stream = ab.BlenderStream(
        script=write_script(SAMPLE), blender=fake_blender(tmp_path / "recorded"), instances=1, length=LENGTH
    )

    async def record() -> None:
        await stream.record(tmp_path / "recording", shard_size=4)

    asyncio.run(record())
    return tmp_path / "recording"


@pytest.fixture
def makers(make: Make, recording: Path) -> dict[str, Make]:
    """Make each kind of dataset."""

    def live(**options: Any) -> ab.BlenderDataset:
        dataset: ab.BlenderDataset = make(SAMPLE, **{"length": LENGTH, "seed": 3, "params": level, **options})
        return dataset

    def mixed(**options: Any) -> ab.MixedDataset:
        parts = (live(instances=options.pop("instances", 2)), ab.RecordedDataset(recording))
        return ab.MixedDataset(*parts, 0.5, **options)

    return {"live": live, "recorded": lambda **options: ab.RecordedDataset(recording, **options), "mixed": mixed}


class Training:
    """Two epochs over a StatefulDataLoader, with the loop that the README shows.

    Args:
        dataset: What is loaded.
        sets_epoch: Whether the loop sets the epoch.
        options: Of the loader.
    """

    def __init__(self, dataset: Any, *, sets_epoch: bool = True, **options: Any) -> None:
        if options.get("num_workers"):
            options = {"multiprocessing_context": "fork", "timeout": LIMIT, **options}
        self._dataset, self._sets_epoch = dataset, sets_epoch
        self._loader = torchdata.StatefulDataLoader(dataset, **options)

    def run(self, checkpoint: dict[str, Any] | None = None) -> Iterator[tuple[Samples, dict[str, Any]]]:
        """Yield the samples of each step, and the state after it; none after an epoch. From a checkpoint on."""
        begin = 0
        if checkpoint is not None:
            begin = checkpoint["epoch"]
            self._loader.load_state_dict(checkpoint["loader"])
        for epoch in range(begin, 2):
            if self._sets_epoch:
                self._dataset.set_epoch(epoch)
            for index, content in self._loader:
                yield self._samples(index, content), self._checkpoint(epoch)
            yield [], self._checkpoint(epoch + 1)

    def close(self) -> None:
        """End the workers."""
        iterator = self._loader._iterator
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()
        self._dataset.close()

    def _checkpoint(self, epoch: int) -> dict[str, Any]:
        state = {"epoch": epoch, "loader": self._loader.state_dict()}
        plain: dict[str, Any] = json.loads(json.dumps(state))
        assert plain == state
        return plain

    @staticmethod
    def _samples(index: Any, content: Any) -> Samples:
        if isinstance(index, int):
            return [(index, [content[0].tolist(), float(content[1])])]
        columns = zip(index.tolist(), content[0].tolist(), content[1].tolist(), strict=True)
        return [(index, [noise, level]) for index, noise, level in columns]


def run_and_resume(
    make: Callable[[], Training], stops: Callable[[int], list[int]]
) -> Iterator[tuple[int, Samples, Samples, Samples]]:
    """Yield, for each of some steps, the samples to there, those of a resumed training, and those of a whole one."""
    with contextlib.closing(make()) as training:
        steps = list(training.run())
    whole = [one for samples, _ in steps for one in samples]
    for stop in stops(len(steps)):
        before = [one for samples, _ in steps[: stop + 1] for one in samples]
        with contextlib.closing(make()) as training:
            yield stop, before, [one for samples, _ in training.run(steps[stop][1]) for one in samples], whole


def some(steps: int) -> list[int]:
    """Stop in the first epoch, with its last batch, after it, and in the second one."""
    return [1, steps // 2 - 2, steps // 2 - 1, steps - 3]


def each(steps: int) -> list[int]:
    """Stop everywhere."""
    return list(range(steps))


FORK = {"multiprocessing_context": "fork"}
SPAWN = {"multiprocessing_context": "spawn"}


def cases(name: str) -> list[Any]:
    """Return kinds of datasets, their options and the loader's: a few for each run, and all combinations."""
    few: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("live", {"batch_size": 4}, {"batch_size": None}),
        ("live", {}, {"batch_size": 4, "num_workers": 2}),
        ("mixed", {}, {"batch_size": 4, "num_workers": 1}),
    ]
    return [pytest.param(*case, id=f"{name}-{number}") for number, case in enumerate(few)]


@pytest.mark.parametrize(("kind", "options", "loader"), cases("few"))
def test_each_sample_comes_once(
    kind: str, options: dict[str, Any], loader: dict[str, Any], makers: dict[str, Make]
) -> None:
    """What came before a stop and what came after it are the samples of both epochs, each with its content."""
    check(makers[kind], kind, options, loader, some)


def check(
    make: Make, kind: str, options: dict[str, Any], loader: dict[str, Any], stops: Any, sets_epoch: bool = True
) -> None:
    def training() -> Training:
        return Training(make(transform=paired, **options), sets_epoch=sets_epoch, **loader)

    for stop, before, after, whole in run_and_resume(training, stops):
        if kind == "mixed":
            before, after, whole = ([one for one in samples if one[1][1] >= 0] for samples in (before, after, whole))
        assert sorted(before + after) == sorted(whole), f"stopped at step {stop}"
        second = 0 if kind == "recorded" or not sets_epoch else LENGTH
        assert sorted(index for index, _ in whole) == sorted([*range(LENGTH), *range(second, second + LENGTH)])


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["live", "recorded", "mixed"])
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("sets_epoch", "batched", "persistent"), [(True, False, False), (False, True, False), (True, True, True)]
)
def test_each_sample_comes_once_wherever_it_stops(
    sets_epoch: bool, batched: bool, persistent: bool, workers: int, kind: str, makers: dict[str, Make]
) -> None:
    """After every batch, with and without set_epoch, with batches of the dataset and of the loader."""
    options = {"batch_size": 4} if batched else {}
    loader = {"batch_size": None if batched else 4, "num_workers": workers}
    if workers:
        loader["persistent_workers"] = persistent
    check(makers[kind], kind, options, loader, each, sets_epoch)
