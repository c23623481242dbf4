"""Batches of streams and datasets: PyTorch's own, but that lists and ragged arrays come as a list, one per sample."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, default_collate

import asyncblend as ab
from asyncblend.stream.batch import Batch
from asyncblend.testing import fake_blender

Write = Callable[..., Path]

VALUES = """
def sample(task):
    i = task.index
    return {
        "image": task.rng.integers(0, 255, (40, 300, 3), np.uint8), "xy": np.full((8, 2), i, np.float32),
        "mask": task.rng.random((5, 6)) > 0.5, "scalar": np.array(i), "empty": np.zeros((0, 4)),
        "flag": i % 2 == 0, "count": i, "real": i / 3, "deep": {"a": np.arange(3) + i, "b": i / 2},
        "text": f"number {i}",
    }
"""


def same(one: Any, other: Any) -> bool:
    """Return whether two values are equal in type, dtype and value."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return bool(one == other)


@pytest.fixture
def options(tmp_path: Path, write_script: Write) -> dict[str, Any]:
    """Options of a stream of those values."""
    return {"script": write_script(VALUES), "blender": fake_blender(tmp_path / "fake"), "instances": 2, "length": 10}


@pytest.mark.parametrize("shared", [True, False])
async def test_a_stream_in_batches(shared: bool, options: dict[str, Any]) -> None:
    """Batches are as default_collate would stack the frames; the last one is shorter."""
    async with asyncio.timeout(60), ab.BlenderStream(**options, ordered=True, shared_memory=shared) as stream:
        batches = [batch async for batch in stream.batches(4)]
        frames = [frame async for frame in stream.frames()]
    assert [batch["index"].tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    items = [{**{k: v for k, v in frame.items() if k != "index"}, "index": frame.index} for frame in frames]
    for batch, start in zip(batches, (0, 4, 8), strict=True):
        assert isinstance(batch["image"], np.ndarray)
        assert batch["image"].flags.writeable
        wanted = default_collate(copied(items[start : start + 4]))
        assert same(tensors(batch), wanted)


def tensors(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, dict):
        return {name: tensors(item) for name, item in value.items()}
    return [tensors(item) for item in value] if isinstance(value, list) else value


def copied(value: Any) -> Any:
    """Return a copy whose arrays are writable, so that torch does not warn of them."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):
        return {name: copied(item) for name, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_in_batches(workers: int, options: dict[str, Any]) -> None:
    """A dataset's batches are as a DataLoader would make them of the same samples."""
    single = ab.BlenderDataset(**options)
    items = {item["index"]: item for item in DataLoader(single, batch_size=None)}
    single.close()
    dataset = ab.BlenderDataset(**options, batch_size=3)
    batches = list(DataLoader(dataset, batch_size=None, num_workers=workers))
    dataset.close()
    assert sorted(i for batch in batches for i in batch["index"].tolist()) == list(range(10))
    for batch in batches:
        assert same(batch, default_collate([items[i] for i in batch["index"].tolist()]))
        batch["image"][:] = 0
    assert len(dataset) == 4


def test_the_last_batch_may_be_left_out(options: dict[str, Any]) -> None:
    """`drop_last` leaves it out, as in a DataLoader."""
    dataset = ab.BlenderDataset(**options, batch_size=4, drop_last=True)
    assert len(dataset) == 2
    assert [len(batch["index"]) for batch in dataset] == [4, 4]
    dataset.close()


def test_no_batch_changes_when_later_ones_are_made(options: dict[str, Any]) -> None:
    """Each batch has memory of its own."""
    options["length"] = 200
    with_sums = []
    dataset = ab.BlenderDataset(**options, batch_size=5)
    for batch in dataset:
        with_sums.append((batch, batch["image"].to(torch.int64).sum().item()))
    dataset.close()
    assert len({batch["image"].data_ptr() for batch, _ in with_sums}) == 40
    assert all(batch["image"].to(torch.int64).sum().item() == total for batch, total in with_sums)


def test_a_saved_state_counts_whole_batches(options: dict[str, Any]) -> None:
    """A state has the samples of the batches that the loop got, and no others."""
    dataset = ab.BlenderDataset(**options, batch_size=3)
    iterator = iter(dataset)
    first = next(iterator)["index"].tolist() + next(iterator)["index"].tolist()
    state = dataset.state_dict()
    dataset.close()
    resumed = ab.BlenderDataset(**options, batch_size=3)
    resumed.load_state_dict(state)
    rest = [i for batch in resumed for i in batch["index"].tolist()]
    resumed.close()
    assert sorted(first + rest) == list(range(10))


def test_transform_gets_whole_batches(options: dict[str, Any]) -> None:
    """The item is what transform returns for a batch."""
    dataset = ab.BlenderDataset(**options, batch_size=5, transform=lambda batch: batch["image"].float().mean())
    assert [mean.shape for mean in dataset] == [(), ()]
    dataset.close()


def test_a_device_gets_the_tensors(options: dict[str, Any]) -> None:
    """`device` moves all tensors, also those in lists and dicts; other values stay."""
    dataset = ab.BlenderDataset(**options, batch_size=5, device="meta", ragged=("xy",))
    for batch in dataset:
        assert [one.device.type for one in batch["xy"]] == ["meta"] * 5
        assert batch["image"].device.type == batch["deep"]["b"].device.type == batch["index"].device.type == "meta"
        assert batch["text"][0].startswith("number")
    dataset.close()


def test_a_device_is_not_for_workers(options: dict[str, Any]) -> None:
    """Workers refuse `device`, because each would need a context on the GPU."""
    dataset = ab.BlenderDataset(**options, batch_size=5, device="meta")
    iterator: Any = iter(DataLoader(dataset, batch_size=None, num_workers=1))
    with pytest.raises(ab.ConfigError, match="num_workers=0"):
        next(iterator)
    iterator._shutdown_workers()  # else torch waits five seconds for a worker that the traceback keeps


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("options_", [{"pin_memory": True}, {"device": "cuda"}])
def test_on_a_gpu(options_: dict[str, Any], options: dict[str, Any]) -> None:
    """Page-locked memory and tensors on the device hold the same values."""
    single = ab.BlenderDataset(**options)
    items = {item["index"]: item for item in single}
    single.close()
    dataset = ab.BlenderDataset(**options, batch_size=3, **options_)
    for batch in dataset:
        assert batch["image"].is_pinned() if "pin_memory" in options_ else batch["image"].is_cuda
        indices = batch["index"].tolist()
        assert torch.equal(batch["image"].cpu(), torch.stack([items[i]["image"] for i in indices]))
    dataset.close()


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"a": np.zeros((2, 4))}, {"a": np.zeros(0)}, r"'a' is float64\[0\], there it is float64\[2, 4\]"),
        ({"a": np.zeros(3)}, {"a": np.zeros(3, np.float32)}, r"'a' is float32\[3\], there it is float64\[3\]"),
        ({"a": np.zeros(3)}, {"a": None}, "'a' is no array there but None"),
        ({"a": None}, {"a": np.zeros(3)}, "'a' is a ndarray, there it is none"),
        ({"a": 1}, {"b": 1}, r"the sample has \['b'\], there it has \['a'\]"),
        ({"a": {"b": [1, 2]}}, {"a": {"b": 1}}, r"'a'\['b'\] is no list but 1"),
        ({"a": {"b": 1}}, {"a": {"b": [1]}}, r"'a'\['b'\] is a list, there it is none"),
        ({"a": {"b": 1}}, {"a": {"c": 1}}, r"'a' has \['c'\], there it has \['b'\]"),
        ({"a": {}}, {"a": 7}, "'a' is no dict but 7"),
    ],
)
def test_samples_of_different_forms(first: dict[str, Any], second: dict[str, Any], message: str) -> None:
    """The error names the sample, the value and both forms."""
    batch = Batch(4)
    batch.add(first, 10)
    with pytest.raises(ab.SampleError, match=rf"sample 17 cannot be in one batch with sample 10: {message}") as caught:
        batch.add(second, 17)
    assert caught.value.index == 17


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([1, 2], np.array([1, 2])),
        ([1, 2.5], np.array([1, 2.5])),
        ([True, False], np.array([True, False])),
        ([1, True], [1, True]),
        ([1, None], [1, None]),
        (["a", "b"], ["a", "b"]),
        ([2**70, 1], [2**70, 1]),
        ([None, None], [None, None]),
    ],
)
def test_plain_values(values: list[Any], wanted: Any) -> None:
    """Numbers of one kind become an array; everything else becomes a list."""
    batch = Batch(2)
    for i, value in enumerate(values):
        batch.add({"a": value}, i)
    got = batch.finish()["a"]
    assert type(got) is type(wanted)
    assert np.array_equal(got, wanted) if isinstance(wanted, np.ndarray) else got == wanted
    if isinstance(wanted, np.ndarray):
        assert got.dtype == wanted.dtype


# -- what is ragged ------------------------------------------------------------------------------------------------

OBJECTS = """
def sample(task):
    n = (2, 0, 2, 2, 3, 1)[task.index]
    return {
        "image": np.full((6, 8, 3), task.index, np.uint8), "corners": np.full((8, 2), task.index, np.float32),
        "bbox": np.full((n, 4), task.index, np.float32), "name": [f"cube {i}" for i in range(n)],
        "points": [np.full(2, i) for i in range(n)], "deep": {"class_id": np.arange(n)},
    }
"""
"""Scenes of a varying number of objects. The third and the fourth happen to have two each."""
COUNTS = (2, 0, 2, 2, 3, 1)
BATCHES = ([0, 1], [2, 3], [4, 5])


@pytest.fixture
def objects(tmp_path: Path, write_script: Write) -> dict[str, Any]:
    """Options of a stream of those scenes, in their order."""
    blender = fake_blender(tmp_path / "fake")
    return {"script": write_script(OBJECTS), "blender": blender, "instances": 1, "length": 6, "ordered": True}


def check_objects(batch: dict[str, Any], number: int, *, ragged: bool) -> None:
    """Check the batch of that number: what always has one shape is stacked, and `[i]` is what sample i has."""
    indices = BATCHES[number]
    array = type(batch["image"])
    assert batch["image"].shape == (2, 6, 8, 3)
    assert batch["corners"].shape == (2, 8, 2)
    assert isinstance(batch["bbox"], list) == (ragged or number != 1)
    assert isinstance(batch["deep"]["class_id"], list) == (number != 1)
    assert isinstance(batch["name"], list)
    for i, index in enumerate(indices):
        count = COUNTS[index]
        assert (batch["image"][i] == index).all()
        assert isinstance(batch["bbox"][i], array)
        assert tuple(batch["bbox"][i].shape) == (count, 4)
        assert (batch["bbox"][i] == index).all()
        assert batch["deep"]["class_id"][i].tolist() == list(range(count))
        assert batch["name"][i] == [f"cube {one}" for one in range(count)]
        assert [type(point) for point in batch["points"][i]] == [array] * count
        batch["bbox"][i][:] = 7  # it is nobody else's


@pytest.mark.parametrize("ragged", [(), ("bbox",)])
@pytest.mark.parametrize("how", ["dataset", "workers", "collate", "collate in workers", "stream"])
@pytest.mark.exhaustive
def test_a_varying_number_of_objects(ragged: tuple[str, ...], how: str, objects: dict[str, Any]) -> None:
    """Ragged arrays are lists and all others are stacked, by one rule however batches are made."""

    async def of_a_stream() -> list[dict[str, Any]]:
        async with asyncio.timeout(60), ab.BlenderStream(**objects) as stream:
            return [batch async for batch in stream.batches(2, ragged=ragged)]

    workers = 1 if "workers" in how else 0
    if how == "stream":
        batches: list[Any] = asyncio.run(of_a_stream())
    elif "collate" in how:
        dataset = ab.BlenderDataset(**objects)
        collate = functools.partial(ab.collate, ragged=ragged) if ragged else ab.collate
        batches = list(DataLoader(dataset, batch_size=2, num_workers=workers, collate_fn=collate))
        dataset.close()
    else:
        dataset = ab.BlenderDataset(**objects, batch_size=2, ragged=ragged)
        batches = list(DataLoader(dataset, batch_size=None, num_workers=workers))
        dataset.close()
    assert [batch["index"].tolist() for batch in batches] == list(BATCHES)
    for number, batch in enumerate(batches):
        check_objects(batch, number, ragged=bool(ragged))


class Pair(NamedTuple):
    """An item of a transform's."""

    image: Any
    target: Any


def test_collate_takes_what_a_transform_makes() -> None:
    """Tuples are batched position by position, and named tuples stay such; tensors, arrays and numbers are stacked."""
    items = [
        (torch.full((2,), i), {"boxes": torch.zeros(i, 4), "n": i}, np.float32(i), i / 2, "x", None) for i in range(3)
    ]
    image, target, scalar, number, text, none = ab.collate(items)
    assert same(image, torch.tensor([[0, 0], [1, 1], [2, 2]]))
    assert [tuple(boxes.shape) for boxes in target["boxes"]] == [(0, 4), (1, 4), (2, 4)]
    assert same(target["n"], torch.tensor([0, 1, 2]))
    assert same(scalar, torch.tensor([0.0, 1.0, 2.0]))
    assert same(number, torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    assert (text, none) == (["x"] * 3, [None] * 3)
    pair = ab.collate([Pair(torch.zeros(2), [1]), Pair(torch.ones(2), [2, 3])])
    assert isinstance(pair, Pair)
    assert pair.target == [[1], [2, 3]]
    assert same(ab.collate([torch.zeros(2), torch.ones(2)]), torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    assert same(ab.collate([torch.zeros(2, dtype=torch.bfloat16)] * 2), torch.zeros(2, 2, dtype=torch.bfloat16))
    assert same(ab.collate([1, 2]), torch.tensor([1, 2]))


def test_collate_makes_targets_as_torchvision_takes_them() -> None:
    """A dict that `ragged` names comes as a list of dicts, one for each image."""
    items = [{"image": torch.zeros(3, 4, 4), "target": {"boxes": torch.zeros(i, 4)}, "index": i} for i in range(3)]
    batch = ab.collate(items, ragged=["target"])
    assert batch["image"].shape == (3, 3, 4, 4)
    assert [list(target) for target in batch["target"]] == [["boxes"]] * 3
    assert [len(target["boxes"]) for target in batch["target"]] == [0, 1, 2]


def test_ragged_values_may_be_anything() -> None:
    """What `ragged` names may differ in its kind; a name that is not there is told, and so is a wrong option."""
    batch = Batch(3, ragged=["a"])
    for index, value in enumerate((np.zeros(2), None, {"b": [1]})):
        batch.add({"a": value, "c": 1}, index)
    first, *others = batch.finish()["a"]
    assert (first == 0).all()
    assert others == [None, {"b": [1]}]
    with pytest.raises(
        ab.ConfigError, match=r"ragged has \['boxs'\], which the samples have not; they have \['boxes'\]"
    ):
        ab.collate([{"boxes": 1}], ragged=["boxs"])
    for wrong in ("bbox", [3]):
        with pytest.raises(ab.ConfigError, match="ragged must be names"):
            ab.collate([{"bbox": 1}], ragged=wrong)  # type: ignore[arg-type]
        with pytest.raises(ab.ConfigError, match="ragged must be names"):
            ab.BlenderDataset(script="x.py", batch_size=2, ragged=wrong)  # type: ignore[arg-type]
    with pytest.raises(ab.ConfigError, match=r"ragged goes with batch_size; .* an option of collate"):
        ab.BlenderDataset(script="x.py", ragged=("bbox",))


def test_collate_names_what_differs() -> None:
    """The error has the item's own index, the path and both forms."""
    items = [{"index": 7, "x": (torch.zeros(2), 1)}, {"index": 9, "x": (torch.zeros(2, 2), 1)}]
    with pytest.raises(
        ab.SampleError, match=r"sample 9 cannot be in one batch with sample 7: 'x'\[0\] is torch.float32\[2, 2\]"
    ) as caught:
        ab.collate(items)
    assert caught.value.index == 9
    with pytest.raises(
        ab.SampleError, match="sample 1 cannot be in one batch with sample 0: the sample is no tuple of 2"
    ):
        ab.collate([(1, 2), (1, 2, 3)])
