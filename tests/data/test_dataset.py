"""BlenderDataset under PyTorch's DataLoader: items, workers, epochs."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import torch
from torch.utils.data import DataLoader, get_worker_info

import asyncblend as ab
from asyncblend.scripts import script as packaged

pytestmark = [
    # Python 3.12 and up advise against fork in a process with threads; torch against more workers than cores.
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]

Make = Callable[..., ab.BlenderDataset]


def indices(items: list[Any]) -> list[int]:
    return sorted(item["index"] for item in items)


# -- items --------------------------------------------------------------------------------------------------------

VALUES = """
ZEROS = np.zeros(3, np.float32)
def sample(task):
    return {
        "a": ZEROS, "again": ZEROS, "deep": {"list": [ZEROS, {"b": ZEROS}, "x"]}, "scalar": np.array(5),
        "empty": np.zeros((0, 4)), "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "image": np.arange(24, dtype=np.uint8).reshape(2, 4, 3)[:, ::-1], "big_endian": np.arange(3, dtype=">i4"),
        "flag": True, "count": 7, "real": 0.5, "numpy": np.float32(0.5), "text": "x", "none": None, "list": [1, [2.5]],
    }
"""


def test_arrays_become_tensors_and_the_rest_stays(make: Make) -> None:
    """Nested arrays too; numbers, strings, None and lists stay Python's; the index is an int."""
    (item,) = make(VALUES, length=1)
    assert type(item) is dict
    assert (type(item["index"]), item["index"]) == (int, 0)
    expected = {"flag": True, "count": 7, "real": 0.5, "numpy": 0.5, "text": "x", "none": None, "list": [1, [2.5]]}
    assert {name: item[name] for name in expected} == expected
    assert [type(item[name]) for name in ("flag", "count", "real", "text")] == [bool, int, float, str]
    tensors = {name: value for name, value in item.items() if isinstance(value, torch.Tensor)}
    assert {name: (value.dtype, tuple(value.shape)) for name, value in tensors.items()} == {
        "a": (torch.float32, (3,)),
        "again": (torch.float32, (3,)),
        "scalar": (torch.int64, ()),
        "empty": (torch.float64, (0, 4)),
        "fortran": (torch.int64, (2, 3)),
        "image": (torch.uint8, (2, 4, 3)),
        "big_endian": (torch.int32, (3,)),
    }
    assert item["image"][0, 0].tolist() == [9, 10, 11]
    assert item["fortran"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert item["big_endian"].tolist() == [0, 1, 2]
    one, two, text = item["deep"]["list"]
    assert one.tolist() == two["b"].tolist() == [0, 0, 0]
    assert text == "x"


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.exhaustive
def test_tensors_are_the_users_own(workers: int, make: Make, load: Any) -> None:
    """Writing into one changes no other one of its item, of the others, or of a later epoch."""
    dataset = make(VALUES, length=4, instances=1)
    with load(dataset, workers, persistent_workers=workers > 0) as loading:
        for _ in range(2):
            for item in loading:
                own = [item["a"], item["again"], item["deep"]["list"][0], item["deep"]["list"][1]["b"]]
                assert not any(tensor.any() for tensor in own)
                assert item["image"].sum() == sum(range(24))
                for number, tensor in enumerate(own, 1):
                    tensor += number
                item["image"].zero_()
                assert [tensor[0].item() for tensor in own] == [1, 2, 3, 4]


def test_batches_are_torchs_own(make: Make) -> None:
    """The default collation stacks tensors and numbers; the last batch is the remainder."""
    dataset = make("def sample(task): return {'x': np.full(2, task.index), 'name': str(task.index)}", length=10)
    batches: list[Any] = list(DataLoader(dataset, batch_size=4, num_workers=0))
    assert [len(batch["index"]) for batch in batches] == [4, 4, 2]
    for batch in batches:
        assert batch["index"].dtype == torch.int64
        assert batch["x"].tolist() == [[index, index] for index in batch["index"].tolist()]
        assert batch["name"] == [str(index) for index in batch["index"].tolist()]


def test_ordered_items_come_by_index(make: Make) -> None:
    """With ordered=True, the items of each epoch come by index."""
    dataset = make(length=9, ordered=True)
    for epoch in range(2):
        dataset.set_epoch(epoch)
        assert [item["index"] for item in dataset] == list(range(9 * epoch, 9 * epoch + 9))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.exhaustive
def test_transform_makes_the_item(workers: int, make: Make, load: Any) -> None:
    """It is called with each item in the process that iterates, and what it returns is the item."""

    def transform(item: dict[str, Any]) -> list[Any]:
        return [item["index"], item["host"] == os.getpid(), isinstance(item["noise"], torch.Tensor)]

    items = load(make(length=5, transform=transform), workers).items()
    assert sorted(items) == [[index, True, True] for index in range(5)]


def test_what_transform_raises_is_the_users(make: Make) -> None:
    """The user's own exception comes after the good items; the dataset can be iterated again, on the same fleet."""

    def transform(item: dict[str, Any]) -> dict[str, Any]:
        if item["index"] == 3:
            raise LookupError("no label")
        return item

    dataset = make(length=6, ordered=True, transform=transform)
    pids = []
    for _ in range(2):
        seen = []
        with pytest.raises(LookupError, match="no label"):
            for item in dataset:
                seen.append(item["index"])
                pids.append(item["pid"])
        assert seen == [0, 1, 2]
    assert len(set(pids)) <= 2


def test_a_transform_cannot_end_an_iteration_in_silence(make: Make) -> None:
    """A StopIteration out of `transform` is an error, as in any generator, and not the end of the samples."""

    def transform(item: dict[str, Any]) -> dict[str, Any]:
        return next(iter(()))

    with pytest.raises(RuntimeError, match="StopIteration"):
        list(make(length=3, transform=transform))


def test_transform_must_be_callable() -> None:
    """The error names the option."""
    with pytest.raises(ab.ConfigError, match="transform must be callable"):
        ab.BlenderDataset(script="x.py", transform=3)  # type: ignore[arg-type]


# -- before the first iteration -----------------------------------------------------------------------------------


def test_it_takes_a_config_or_its_fields_or_both() -> None:
    """Options override the config, and a wrong option is a ConfigError."""
    config = ab.StreamConfig(script="x.py", instances=3, length=5)
    assert ab.BlenderDataset(config).config == config
    assert ab.BlenderDataset(config, length=7).config.length == 7
    assert ab.BlenderDataset(script="x.py").config == ab.StreamConfig(script="x.py")
    with pytest.raises(ab.ConfigError, match="did you mean 'instances'"):
        ab.BlenderDataset(script="x.py", instance=2)  # type: ignore[call-arg]
    with pytest.raises(ab.ConfigError, match="script"):
        ab.BlenderDataset()


def test_len_is_that_of_an_epoch(make: Make) -> None:
    """`len` counts the samples of the shard; an endless dataset has no `len`, and works under a DataLoader."""
    assert len(make(length=11)) == 11
    assert len(make(length=0)) == 0
    assert [len(make(length=11, shard=(k, 3))) for k in range(3)] == [4, 4, 3]
    endless = make()
    with pytest.raises(TypeError, match="endless"):
        len(endless)
    batches: Any = iter(DataLoader(endless, batch_size=3))
    assert [len(next(batches)["index"]) for _ in range(4)] == [3] * 4


def test_nothing_starts_before_the_first_iteration(make: Make) -> None:
    """Neither making, copying, asking for length, state or statistics, nor closing starts a Blender."""
    dataset = make(length=4)
    copy = pickle.loads(pickle.dumps(dataset))
    for one in (dataset, copy):
        assert len(one) == 4
        assert one.stats() is None
        assert one.state_dict()["stream"]["watermark"] == 0
        one.close()
        iter(one)
    assert not psutil.Process().children()
    assert indices(list(copy)) == [0, 1, 2, 3]
    copy.close()


def test_a_copy_has_a_fleet_of_its_own(make: Make) -> None:
    """A pickled copy of a dataset in use does not disturb it."""
    dataset = make(length=6, instances=1)
    iterator = iter(dataset)
    first = next(iterator)
    copy = pickle.loads(pickle.dumps(dataset))
    others = list(copy)
    copy.close()
    mine = [first, *iterator]
    assert indices(mine) == indices(others) == list(range(6))
    assert {item["pid"] for item in mine}.isdisjoint(item["pid"] for item in others)


# -- workers ------------------------------------------------------------------------------------------------------


def check_shares(items: list[Any], workers: int, instances: int, args: list[list[str]]) -> None:
    """Each instance has one number, its own arguments, and belongs to one worker, whose indices are the pinned ones."""
    active = max(1, min(workers, instances))
    hosts: dict[int, set[int]] = {}  # the remainders of the indices of each process with a fleet
    owner: dict[int, tuple[int, int]] = {}
    for item in items:
        assert item["argv"] == args[item["instance"]]
        hosts.setdefault(item["host"], set()).add(item["index"] % active)
        assert owner.setdefault(item["instance"], (item["host"], item["pid"])) == (item["host"], item["pid"])
    assert sorted(hosts.values(), key=sorted) == [{remainder} for remainder in range(active)]
    # Instances are shared out in turn: the first of them to the first worker.
    shares = [instances // active + (number < instances % active) for number in range(active)]
    starts = [sum(shares[:number]) for number in range(active)]
    for instance, (host, _) in owner.items():
        (worker,) = hosts[host]
        assert starts[worker] <= instance < starts[worker] + shares[worker]


@pytest.mark.parametrize(
    ("workers", "instances", "start"),
    [
        (0, 2, ""),
        (1, 2, "fork"),
        (2, 2, "fork"),
        (2, 3, "fork"),
        (3, 2, "fork"),
        (3, 1, "fork"),
        (2, 3, "spawn"),
        (3, 2, "spawn"),
        (3, 2, "forkserver"),
    ],
)
@pytest.mark.exhaustive
@pytest.mark.slow
def test_each_index_comes_once_whatever_the_workers(
    workers: int, instances: int, start: str, make: Make, load: Any
) -> None:
    """No index is repeated or dropped, in two epochs; each worker has its own indices and instances."""
    args = [["--number", str(number)] for number in range(instances)]
    dataset = make(length=23, instances=instances, script_args=args)
    for _ in range(2 if start in ("", "fork") else 1):
        items = load(dataset, workers, start).items()
        assert indices(items) == list(range(23))
        check_shares(items, workers, instances, args)
        assert {item["host"] for item in items} != {os.getpid()} or workers == 0


def test_workers_take_the_indices_of_their_number(make: Make, load: Any) -> None:
    """Worker w of W has the indices w, w + W, w + 2W, ..."""

    def transform(item: dict[str, Any]) -> list[int]:
        worker = get_worker_info()
        assert worker is not None
        return [worker.id, item["index"]]

    items = load(make(length=17, instances=3, transform=transform), 3).items()
    assert sorted(items) == sorted([index % 3, index] for index in range(17))


@pytest.mark.parametrize("length", [0, 1, 2])
def test_more_workers_than_samples(length: int, make: Make, load: Any) -> None:
    """Workers without a sample end at once."""
    assert indices(load(make(length=length, instances=3), 3).items()) == list(range(length))


def test_batches_of_workers_have_each_index_once(make: Make) -> None:
    """Batches are made in the workers, each with a remainder."""
    batches: list[Any] = list(DataLoader(make(length=23), batch_size=4, num_workers=2))
    assert sorted(index for batch in batches for index in batch["index"].tolist()) == list(range(23))
    assert sorted(len(batch["index"]) for batch in batches) == [3, 4, 4, 4, 4, 4]


@pytest.mark.exhaustive
def test_the_number_of_workers_changes_no_sample(make: Make, load: Any) -> None:
    """A sample is a function of seed and index alone."""
    dataset = make(length=12, seed=5)
    noises = [{item["index"]: item["noise"].tolist() for item in load(dataset, workers).items()} for workers in (0, 2)]
    assert noises[0] == noises[1]


def test_pixels_are_the_same_with_and_without_workers(bpy_kind: Any, load: Any) -> None:
    """On the bpy module, each index comes once, with images that are equal to the bit."""
    dataset = ab.BlenderDataset(
        script=packaged("cube.py"),
        script_args=["--width", "48", "--height", "32", "--samples", "1"],
        blender=bpy_kind.blender,
        instances=2,
        length=7,
    )
    runs = []
    for workers in (0, 2):
        items = load(dataset, workers).items()
        dataset.close()
        assert indices(items) == list(range(7))
        assert all((item["image"].shape, item["image"].dtype) == ((32, 48, 3), torch.uint8) for item in items)
        runs.append({item["index"]: (item["image"].numpy().tobytes(), item["xy"].tolist()) for item in items})
    assert runs[0] == runs[1]
    assert len({image for image, _ in runs[0].values()}) == 7


# -- epochs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workers", "instances", "start", "persistent"),
    [(0, 2, "", False), (2, 2, "fork", False), (2, 2, "fork", True), (3, 2, "fork", True), (1, 2, "spawn", True)],
)
def test_epochs(workers: int, instances: int, start: str, persistent: bool, make: Make, load: Any) -> None:
    """Each epoch has the indices that set_epoch says, also in persistent workers, whose fleet stays warm."""
    dataset = make(length=9, instances=instances)
    epochs: list[list[Any]] = []
    with load(dataset, workers, start, persistent_workers=persistent) as loading:
        for epoch in (0, 0, 1, 5, 0):
            if epochs:
                dataset.set_epoch(epoch)
            items = list(loading)
            assert indices(items) == list(range(9 * epoch, 9 * epoch + 9))
            epochs.append(items)
    noises = [{item["index"]: item["noise"].tolist() for item in items} for items in epochs]
    assert noises[0] == noises[1] == noises[4]
    assert not {str(noise) for noise in noises[0].values()} & {str(noise) for noise in noises[2].values()}
    pids = {item["pid"] for items in epochs for item in items}
    assert len(pids) <= instances if persistent or not workers else len(pids) > instances


def test_epochs_of_an_endless_dataset(make: Make) -> None:
    """Epochs of an endless dataset share no index."""
    dataset = make(ordered=True)
    first = [item["index"] for item, _ in zip(dataset, range(5), strict=False)]
    dataset.set_epoch(1)
    second = [item["index"] for item, _ in zip(dataset, range(5), strict=False)]
    assert first == list(range(5))
    assert second == list(range(second[0], second[0] + 5))
    assert second[0] > 1 << 30


def test_epochs_count_from_the_start(make: Make) -> None:
    """With the option `start`, the first epoch begins there."""
    dataset = make(length=4, start=10)
    assert indices(list(dataset)) == [10, 11, 12, 13]
    dataset.set_epoch(2)
    assert indices(list(dataset)) == [18, 19, 20, 21]


@pytest.mark.parametrize("epoch", [-1, 1.0, True, "1", None])
def test_a_wrong_epoch_is_refused(epoch: Any, make: Make) -> None:
    """An epoch must be a whole number from 0 on."""
    with pytest.raises(ab.ConfigError, match="epoch"):
        make().set_epoch(epoch)
