"""RecordedDataset: the items of the live dataset, without a Blender."""

from __future__ import annotations

import asyncio
import math
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch.utils.data import DataLoader

import asyncblend as ab
from asyncblend.recording import Recording
from asyncblend.testing import fake_blender

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]

SAMPLE = """
def sample(task):
    rng = task.rng
    return {
        "image": rng.integers(0, 256, (6, 8, 3), np.uint8), "alpha": rng.integers(0, 256, (6, 8, 4), np.uint8),
        "depth": rng.random((6, 8)).astype(np.float32), "ids": rng.integers(-9, 9, (6, 8), np.int32),
        "flag": task.index % 2 == 0, "count": 7, "real": 0.5, "far": float("inf"), "text": f"sample {task.index}",
        "none": None, "list": [1, [2.5, "x"]], "scalar": np.array(5), "empty": np.zeros((0, 4)),
        "deep": {"a.b": [rng.random(2), {"c/d": rng.random(3) > 0.5}]}, "Image": rng.random(2),
    }
"""


@pytest.fixture
def live(tmp_path: Path, write_script: Callable[..., Path]) -> Iterator[Callable[..., ab.BlenderDataset]]:
    """Make live datasets of fakes."""
    made: list[ab.BlenderDataset] = []
    fake = fake_blender(tmp_path / "fake")

    def make(**options: Any) -> ab.BlenderDataset:
        script = write_script(SAMPLE)
        made.append(
            ab.BlenderDataset(**{"script": script, "blender": fake, "instances": 1, "ordered": True, **options})
        )
        return made[-1]

    yield make
    for dataset in made:
        dataset.close()


@pytest.fixture
def recording(tmp_path: Path, live: Callable[..., ab.BlenderDataset]) -> Callable[..., Path]:
    """Record some samples of the same stream: `recording(20, shard_size=4)`."""

    def record(length: int, **options: Any) -> Path:
        stream = ab.BlenderStream(live().config, length=length)

        async def run() -> None:
            await stream.record(tmp_path / "recording", **options)

        asyncio.run(run())
        return tmp_path / "recording"

    return record


def same(one: Any, other: Any) -> bool:
    """Return whether two values are equal in type, dtype, shape and every bit."""
    if isinstance(one, torch.Tensor):
        return (one.dtype, one.shape) == (other.dtype, other.shape) and torch.equal(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other)


def indices(items: Any) -> list[int]:
    return [item["index"] for item in items]


def test_items_are_those_of_the_live_dataset(live: Any, recording: Any) -> None:
    """They are equal to the bit, and of the same types; arrays are writable tensors."""
    expected = list(live(length=10))
    items = list(ab.RecordedDataset(recording(10, shard_size=3)))
    assert len(items) == 10
    assert all(map(same, items, expected))
    assert [list(item) for item in items] == [list(item) for item in expected]
    assert items[3]["far"] == math.inf
    items[3]["image"].zero_()
    items[3]["deep"]["a.b"][0] += 1


def test_it_is_iterated_and_not_indexed(recording: Any) -> None:
    """An index is an error that says what to do instead."""
    recorded = ab.RecordedDataset(recording(10))
    with pytest.raises(ab.ConfigError, match=r"iterated, not indexed; got \[0\]\. .*`next\(iter\(recorded\)\)`"):
        recorded[0]
    assert next(iter(recorded))["index"] == 0


@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_are_those_of_the_live_dataset(drop_last: bool, live: Any, recording: Any) -> None:
    """So are batches, those of `batch_size` and those that a DataLoader makes."""
    how: dict[str, Any] = {"batch_size": 4, "drop_last": drop_last}
    expected = list(live(length=10, **how))
    dataset = ab.RecordedDataset(recording(10), **how)
    batches = list(dataset)
    assert len(batches) == len(dataset) == (2 if drop_last else 3)
    assert all(map(same, batches, expected))
    assert batches[0]["image"].shape == (4, 6, 8, 3)

    def without_none(item: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in item.items() if name != "none"}

    loaders = [
        DataLoader(dataset, batch_size=4)
        for dataset in (
            live(length=10, transform=without_none),
            ab.RecordedDataset(recording(10), transform=without_none),
        )
    ]
    assert all(map(same, *map(list, loaders)))


def test_jpeg_differs_in_pixels_alone(live: Any, recording: Any) -> None:
    """Only the pixels of what is named image differ; dtypes, shapes and labels do not."""
    for item, expected in zip(ab.RecordedDataset(recording(3, image_format="jpeg")), live(length=3), strict=True):
        assert item["image"].shape == expected["image"].shape
        assert not torch.equal(item["image"], expected["image"])
        assert all(same(item[name], expected[name]) for name in expected if name != "image")


@pytest.mark.parametrize(
    ("workers", "start"),
    [(1, "fork"), (2, "fork"), (3, "fork"), pytest.param(2, "spawn", marks=pytest.mark.exhaustive)],
)
@pytest.mark.slow
def test_workers_share_the_samples(workers: int, start: str, recording: Any) -> None:
    """Each sample comes once and in order, with more shards than workers and with fewer."""
    for shard_size in (2, 100):
        dataset = ab.RecordedDataset(recording(11, shard_size=shard_size))
        loader: Any = DataLoader(dataset, batch_size=None, num_workers=workers, multiprocessing_context=start)
        assert indices(loader) == list(range(11))
        loader = DataLoader(
            ab.RecordedDataset(recording(11), batch_size=2), batch_size=None, num_workers=workers,
            multiprocessing_context=start,
        )  # fmt: skip
        assert sorted(index for batch in loader for index in batch["index"].tolist()) == list(range(11))


def test_more_workers_than_samples(recording: Any) -> None:
    """Workers without a sample end at once."""
    loader: Any = DataLoader(ab.RecordedDataset(recording(2)), batch_size=None, num_workers=4)
    assert indices(loader) == [0, 1]


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_share_the_samples(workers: int, recording: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sample comes in one rank, and `len` counts those of its rank."""
    dataset = ab.RecordedDataset(recording(10, shard_size=3))
    found = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        loader: Any = DataLoader(dataset, batch_size=None, num_workers=workers)
        own = indices(loader)
        if workers == 0:
            assert own == list(range(rank, 10, 3))
        assert len(own) == len(dataset)
        found += own
    assert sorted(found) == list(range(10))


def test_shuffling_is_a_matter_of_seed_and_epoch(recording: Any) -> None:
    """Each order has all samples once; the same seed and epoch give the same order."""
    folder = recording(30, shard_size=2)

    def order(seed: int, epoch: int) -> list[int]:
        dataset = ab.RecordedDataset(folder, shuffle=True, seed=seed)
        dataset.set_epoch(epoch)
        return indices(dataset)

    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(one) == list(range(30)) for one in orders)
    assert len({tuple(one) for one in orders}) == 4
    assert order(0, 1) == orders[1]
    assert list(range(30)) not in orders
    plain = ab.RecordedDataset(folder)
    plain.set_epoch(7)
    assert indices(plain) == list(range(30))


def test_shuffling_reads_few_shards_at_a_time(recording: Any) -> None:
    """Samples of eight shards are mixed, then those of the next eight."""
    folder = recording(40, shard_size=2)
    shard_of = Recording(folder).shards
    order = [int(shard_of[index]) for index in indices(ab.RecordedDataset(folder, shuffle=True))]
    for first in range(0, 32, 16):
        assert len(set(order[first : first + 16])) == 8
    assert any(a != b for a, b in zip(order[::2], order[1::2], strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_share_a_shuffled_epoch(workers: int, recording: Any) -> None:
    """Workers share a shuffled epoch out, also those that live on between epochs."""
    dataset = ab.RecordedDataset(recording(12, shard_size=5), shuffle=True)
    loader: Any = DataLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=workers > 0)
    orders = []
    for epoch in range(3):
        dataset.set_epoch(epoch)
        orders.append(indices(loader))
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert len(set(map(tuple, orders))) == 3


def test_a_transform_makes_the_item(recording: Any) -> None:
    """The transform gets each sample, or with `batch_size` each batch."""
    folder = recording(5)
    assert list(ab.RecordedDataset(folder, transform=operator_index)) == [0, 1, 2, 3, 4]
    batches = list(ab.RecordedDataset(folder, transform=operator_index, batch_size=3))
    assert [batch.tolist() for batch in batches] == [[0, 1, 2], [3, 4]]


def operator_index(item: dict[str, Any]) -> Any:
    return item["index"]


def test_an_iteration_can_be_gone_on_with(recording: Any) -> None:
    """Another dataset goes on from a saved state, shuffled or not, in the epoch of that state alone."""
    folder = recording(10)
    for shuffle in (False, True):
        first = ab.RecordedDataset(folder, shuffle=shuffle)
        first.set_epoch(2)
        iterator = iter(first)
        begun = indices(next(iterator) for _ in range(4))
        state = pickle.loads(pickle.dumps(first.state_dict()))
        second = ab.RecordedDataset(folder, shuffle=shuffle)
        second.load_state_dict(state)
        assert second.state_dict() == state
        assert (state["epoch"], state["given"]) == (2, 4)
        rest = indices(second)
        assert sorted(begun + rest) == list(range(10))
        assert indices(second) == begun + rest  # the next iteration is whole again
        assert second.state_dict() == {**state, "given": 10}
        second.set_epoch(3)
        assert second.state_dict() == {**state, "epoch": 3, "given": 0}


def test_a_state_of_another_share_is_refused(recording: Any, load: Any) -> None:
    """What one process was given is not taken for what each of two workers was given."""
    first = ab.RecordedDataset(recording(10))
    iterator = iter(first)
    next(iterator)
    second = ab.RecordedDataset(recording(10))
    second.load_state_dict(first.state_dict())
    refused = r"workers=0, and this RecordedDataset has 2; .* StatefulDataLoader alone"
    with load(second, 2) as loading, pytest.raises(ab.ConfigError, match=refused):
        list(loading)


def test_only_workers_know_what_they_gave(recording: Any) -> None:
    """While workers iterate over an epoch the training process has no state to save; of the next epoch it has."""
    dataset = ab.RecordedDataset(recording(6))
    for _ in DataLoader(dataset, batch_size=None, num_workers=1, timeout=60):
        with pytest.raises(ab.ConfigError, match="only they know what they have delivered"):
            dataset.state_dict()
    dataset.set_epoch(1)
    assert (dataset.state_dict()["epoch"], dataset.state_dict()["given"]) == (1, 0)
    dataset.set_epoch(0)
    next(iter(dataset))
    assert dataset.state_dict()["given"] == 1


def test_a_script_that_knows_the_live_one_changes_one_line(recording: Any) -> None:
    """A RecordedDataset has all that a BlenderDataset has, but for what needs a Blender."""
    dataset = ab.RecordedDataset(recording(3))
    public = {name for name in dir(ab.BlenderDataset) if not name.startswith("_")}
    assert public - {name for name in dir(dataset) if not name.startswith("_")} == {"feedback", "flush", "render"}
    assert dataset.stats() is None  # type: ignore[func-returns-value]
    assert dataset.about["seed"] == 0
    dataset.close()
    assert indices(dataset) == [0, 1, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_is_told_where_it_is_found(workers: int, recording: Any) -> None:
    """The error names the shard that is gone or cut off, also from a worker."""
    folder = recording(12, shard_size=4)
    dataset = ab.RecordedDataset(folder)
    os.truncate(folder / "shard-000001.tar", 5000)
    iterator: Any = iter(DataLoader(dataset, batch_size=None, num_workers=workers))
    with pytest.raises(ab.RecordingError, match=r"shard-000001\.tar is damaged"):
        list(iterator)
    if workers:
        iterator._shutdown_workers()  # torch itself takes seconds while the error holds it
    with pytest.raises(ab.RecordingError, match=r"shard-000001\.tar is cut off") as caught:
        ab.RecordedDataset(folder)
    assert caught.value.path == str(folder / "shard-000001.tar")
    (folder / "shard-000001.tar").unlink()
    with pytest.raises(ab.RecordingError, match=r"shard-000001\.tar is missing"):
        ab.RecordedDataset(folder)


def test_wrong_options_are_told(recording: Any, tmp_path: Path) -> None:
    """Wrong options are ConfigErrors, and a folder that cannot be read is a RecordingError."""
    folder = recording(1)
    for options, message in (
        ({"shuffle": 1}, "shuffle must be a bool"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"transform": 3}, "transform must be callable"),
        ({"drop_last": True}, "drop_last goes with batch_size"),
    ):
        with pytest.raises(ab.ConfigError, match=message):
            ab.RecordedDataset(folder, **options)
    with pytest.raises(ab.RecordingError, match=r"cannot read the folder .*nowhere: No such file"):
        ab.RecordedDataset(tmp_path / "nowhere")
