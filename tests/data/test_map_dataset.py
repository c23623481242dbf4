"""BlenderMapDataset: random access, batches, workers, and how long its fleet lives."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, Subset, WeightedRandomSampler

import asyncblend as ab
from asyncblend.scripts import script as packaged
from tests.waiting import gone, until

pytestmark = [
    # Python 3.12 and up advise against fork in a process with threads; torch against more workers than cores.
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]

Make = Callable[..., ab.BlenderMapDataset]

LIMIT = 60.0  # seconds; the bound of failure of every wait here
FAST = ab.RestartPolicy(backoff=0.01)
LEVEL = "def sample(task): return {'level': task.params['level']}"
FAILS = "def sample(task):\n    if task.index == 3: raise ValueError('no cube')\n    return {}"


class Count(Iterator[dict[str, int]]):
    """An iterator that can be pickled: the levels 0, 1, 2, ..."""

    def __init__(self) -> None:
        self.level = -1

    def __next__(self) -> dict[str, int]:
        self.level += 1
        return {"level": self.level}


@pytest.fixture
def make_map(make: Callable[..., ab.BlenderDataset]) -> Iterator[Make]:
    """Make a dataset of fakes, which is closed at the end: `make_map(body, transform=None, faults={}, **options)`."""
    made: list[ab.BlenderMapDataset] = []

    def make_map(*body: str, transform: Any = None, **options: Any) -> ab.BlenderMapDataset:
        made.append(ab.BlenderMapDataset(make(*body, **options).config, transform))
        return made[-1]

    yield make_map
    for dataset in made:
        dataset.close()


def indices(items: list[Any]) -> list[int]:
    """Return the indices of these items, in their order."""
    return [item["index"] for item in items]


def workers_gone(loader: Any) -> None:
    """End the workers of a loader that keeps them."""
    if loader._iterator is not None:
        loader._iterator._shutdown_workers()


# -- access --------------------------------------------------------------------------------------------------------


def test_one_sample(make_map: Make) -> None:
    """An item is a BlenderDataset's: writable tensors of one's own and an int index; the same bits each time."""
    dataset = make_map(length=20, seed=5)
    item = dataset[17]
    assert (type(item["index"]), item["index"]) == (int, 17)
    noise = item["noise"].tolist()
    item["noise"] += 1
    for same in (dataset[17], dataset[-3], dataset[np.int64(17)], dataset[torch.tensor(17)], dataset.render(17)):
        assert (same["index"], same["noise"].tolist()) == (17, noise)
    assert dataset[16]["noise"].tolist() != noise


def test_several_samples(make_map: Make) -> None:
    """Slices, lists and batches come in the order asked for, an index that occurs twice is there twice."""
    dataset = make_map(length=20)
    noise = {item["index"]: item["noise"].tolist() for item in dataset}
    for wanted, expected in (
        (slice(5, 9), [5, 6, 7, 8]),
        (slice(None, None, -6), [19, 13, 7, 1]),
        (slice(20, 30), []),
        ([9, 2, 9, -1], [9, 2, 9, 19]),
        ([], []),
    ):
        items = dataset[wanted]
        assert indices(items) == expected
        assert [item["noise"].tolist() for item in items] == [noise[index] for index in expected]
    many = [(7 * place) % 20 for place in range(100)]  # more than its slots
    assert indices(dataset.__getitems__(many)) == many
    assert indices(dataset.__getitems__(torch.tensor([4, 1]))) == [4, 1]
    first, second = dataset[[6, 6]]
    first["noise"] += 1
    assert second["noise"].tolist() == noise[6]


def test_the_end(make_map: Make) -> None:
    """There is an IndexError beyond both ends, and nothing is rendered for it; loops end with the last sample."""
    dataset = make_map(length=6)
    assert len(dataset) == 6
    for wanted in (6, -7, 10**30, [0, 6]):
        with pytest.raises(IndexError, match=r"there is no sample .*: the dataset has 6"):
            dataset[wanted]
    assert dataset.stats() is None
    assert indices(list(dataset)) == list(range(6))


def test_what_is_no_index(make_map: Make) -> None:
    """It is a ConfigError that shows it."""
    dataset = make_map(length=6)
    for wanted in ("a", 1.0, None, True, [0, "a"], [True, False], torch.tensor([1, 2])):
        with pytest.raises(ab.ConfigError, match="an index must be a whole number, a slice or a list of them; got"):
            dataset[wanted]  # type: ignore[index]
    assert dataset.stats() is None


def test_the_samples_of_a_batch_are_rendered_at_the_same_time(make_map: Make, tmp_path: Path) -> None:
    """Both Blenders are at a sample of one batch, each of which waits for the other."""
    body = f"""
import os, threading
def sample(task):
    open(f"{tmp_path}/begun-{{task.index}}", "w").close()
    while not os.path.exists(f"{tmp_path}/begun-{{1 - task.index}}"): threading.Event().wait(0.002)
    return {{"instance": task.instance}}
"""
    dataset = make_map(body, length=2, prefetch=1)
    assert {item["instance"] for item in dataset[:]} == {0, 1}


def test_indices_of_start_and_shard(make_map: Make) -> None:
    """Place i has the i-th of the config's indices; `render` takes the sample's own index."""
    dataset = make_map(length=10, start=100, shard=(1, 3))
    assert len(dataset) == 3
    assert indices(dataset[:]) == [101, 104, 107]
    assert indices([dataset[-1], dataset.render(107), dataset.render(3)]) == [107, 107, 3]


def test_without_a_length(make_map: Make) -> None:
    """Any index is there, but there is no end to count from."""
    dataset = make_map()
    assert dataset[10**12]["index"] == 10**12
    for ask in (
        lambda: len(dataset),
        lambda: dataset[-1],
        lambda: dataset[2:4],
        lambda: DataLoader(dataset, shuffle=True),
    ):
        with pytest.raises(ab.ConfigError, match="give it a length"):
            ask()
    assert dataset.__getitems__([3, 5])[1]["index"] == 5


def test_params_are_drawn_at_each_access(make_map: Make) -> None:
    """A callable sees the sample's index each time; `render` takes params of the caller's."""
    level, asked = 0, []

    def params(index: int) -> dict[str, Any]:
        asked.append(index)
        return {"level": level}

    dataset = make_map(LEVEL, params=params, length=5, start=10)
    assert dataset[1]["level"] == 0
    level = 1
    assert dataset[1]["level"] == dataset[[1]][0]["level"] == 1
    assert dataset.render(11, {"level": "own"})["level"] == "own"
    assert asked == [11, 11, 11]


def test_an_episode_is_one_item(make_map: Make) -> None:
    """It is a clip of all its frames, in every way to ask for it, also if its Blender dies; a single frame is none."""
    body = """
def sample(task):
    if task.index == 3:
        return {"image": np.full((4, 6, 3), 30, np.uint8)}
    return ({"image": np.full((4, 6, 3), 10 * task.index + step, np.uint8)} for step in range(2 + task.index % 2))
"""
    patient = ab.RestartPolicy(max_restarts=1000, backoff=0.001, max_backoff=0.001, max_sample_deaths=1000)
    dataset = make_map(body, length=4, restart=patient, faults={"crash_after": 7}, queue_size=2)
    whole = {0: [0, 1], 1: [10, 11, 12], 2: [20, 21], 3: 30}
    singly = [dataset[index] for index in range(4)]
    for items in (singly, dataset[:], list(dataset), [dataset.render(index) for index in range(4)], dataset[[2, 0, 2]]):
        for item in items:
            assert item["image"][..., 0, 0, 0].tolist() == whole[item["index"]]
    assert indices(dataset[[2, 0, 2]]) == [2, 0, 2]
    assert dataset.stats().restarts  # type: ignore[union-attr]
    for workers in (0, 1):
        loader: Any = DataLoader(dataset, batch_size=2, sampler=[0, 2], num_workers=workers, timeout=LIMIT * workers)
        (batch,) = loader
        assert batch["index"].tolist() == [0, 2]
        assert batch["image"].shape == (2, 2, 4, 6, 3)


def test_an_iterator_gives_params_until_it_ends(make_map: Make) -> None:
    """Then the error says how many samples had some, and no item is left out in silence."""
    dataset = make_map(LEVEL, params=iter([{"level": level} for level in range(4)]), length=9)
    assert sorted(item["level"] for item in dataset[[5, 8]]) == [0, 1]
    with pytest.raises(ab.ConfigError, match="params has ended, after 2 of the 3 samples that were asked for"):
        dataset[:3]
    with pytest.raises(ab.ConfigError, match="params has ended, after 0 of the 1"):
        dataset[0]
    assert dataset.render(0, {"level": 7})["level"] == 7


def test_transform_makes_the_item(make_map: Make) -> None:
    """What it raises is the user's, and ends neither a loop nor a loader in silence."""

    def transform(item: dict[str, Any]) -> Any:
        if item["index"] == 2:
            raise StopIteration
        if item["index"] == 3:
            raise IndexError("no box")
        return -item["index"]

    dataset = make_map(length=8, transform=transform)
    assert [dataset[1], *dataset[4:6], dataset.render(7)] == [-1, -4, -5, -7]
    for ask in (lambda: dataset[2], lambda: dataset[:3], lambda: list(DataLoader(dataset)), lambda: list(dataset)):
        with pytest.raises(RuntimeError, match="StopIteration"):
            ask()
    with pytest.raises(IndexError, match="no box"):
        list(dataset.__getitems__(range(3, 8)))
    with pytest.raises(IndexError, match="no box"):
        for item in make_map(length=8, start=3, transform=transform):
            assert item != -3


def test_wrong_options() -> None:
    """They are named; a sample that was asked for cannot be skipped."""
    for options, message in (
        ({"transfrom": None}, "did you mean 'transform'"),
        ({"transform": 5}, "transform must be callable"),
        ({"on_bad_sample": "skip"}, "an index that is asked for cannot be skipped; got 'skip'"),
        ({"instances": 0}, "instances must be"),
    ):
        with pytest.raises(ab.ConfigError, match=message):
            ab.BlenderMapDataset(**{"script": "cube.py", **options})  # type: ignore[arg-type]


# -- samplers and loaders --------------------------------------------------------------------------------------------


def test_samplers_of_torch(make_map: Make) -> None:
    """Weights, parts, ranks and ready-made batches choose what is rendered."""
    dataset = make_map(length=8)
    weights = [0.0] * 8
    weights[2] = weights[5] = 1.0
    loader: Any = DataLoader(dataset, batch_size=5, sampler=WeightedRandomSampler(weights, 10))
    assert set(torch.cat([batch["index"] for batch in loader]).tolist()) == {2, 5}
    assert Subset(dataset, [4, 0])[1]["index"] == 0
    assert [batch["index"].tolist() for batch in DataLoader(Subset(dataset, [4, 0, 6]), batch_size=2)] == [[4, 0], [6]]
    for rank in range(2):
        sampler: Any = DistributedSampler(dataset, num_replicas=2, rank=rank, shuffle=False)
        (batch,) = DataLoader(dataset, batch_size=4, sampler=sampler)
        assert batch["index"].tolist() == list(range(rank, 8, 2))
    lists: Any = DataLoader(dataset, batch_size=None, sampler=BatchSampler([3, 1, 2], 2, drop_last=False))
    assert [indices(batch) for batch in lists] == [[3, 1], [2]]


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.exhaustive)])
@pytest.mark.slow
def test_workers_share_the_blenders(start: str, make_map: Make) -> None:
    """Each has its own, numbered together; they stay warm while the workers live, and the samples are those of here."""
    dataset = make_map(length=12, instances=3, threads=2, script_args=[["a"], ["b"], ["c"]])
    here = {item["index"]: item["noise"].tolist() for item in dataset}
    loader: Any = DataLoader(
        dataset,
        batch_size=3,
        num_workers=2,
        persistent_workers=True,
        multiprocessing_context=start,
        timeout=LIMIT,
        collate_fn=list,
    )
    items: list[Any] = []
    for _ in range(2):
        batches = list(loader)
        assert [indices(batch) for batch in batches] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
        items += [item for batch in batches for item in batch]
    workers_gone(loader)
    assert all(item["noise"].tolist() == here[item["index"]] for item in items)
    owners = {(item["host"], item["instance"], *item["argv"], item["pid"]) for item in items}
    assert os.getpid() not in {host for host, *_ in owners}
    assert len({host for host, *_ in owners}) == 2
    assert {(number, args) for _, number, args, _ in owners} <= {(0, "a"), (1, "b"), (2, "c")}
    assert len({number for _, number, *_ in owners}) == len(owners)  # each is one Blender of one worker throughout
    until(lambda: all(gone(pid) for *_, pid in owners))


def test_a_worker_without_a_blender_says_so(make_map: Make, load: Any) -> None:
    """There are more workers than instances."""
    with (
        load(make_map(length=4, instances=1), 2) as loading,
        pytest.raises(ab.ConfigError, match="has no Blender to render with; use fewer workers, or more instances"),
    ):
        list(loading)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_an_iterator_is_refused_with_workers(start: str, make_map: Make, load: Any) -> None:
    """Each would have a copy, and give the same params as the others."""
    dataset = make_map(LEVEL, params=Count(), length=4)
    with pytest.raises(ab.ConfigError, match=r"params are an iterator, of which each worker .* would have a copy"):
        load(dataset, 2, start).items()


# -- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.exhaustive
def test_a_sample_error_reaches_the_loop_as_itself(batch_size: int | None, workers: int, make_map: Make) -> None:
    """It comes after the good samples, with its index and Blender's traceback, from a worker too."""
    dataset = make_map(FAILS, length=6)
    loader: Any = DataLoader(dataset, batch_size=batch_size, num_workers=workers, timeout=LIMIT * workers)
    iterator = iter(loader)
    seen = [next(iterator)["index"] for _ in range(3 if batch_size is None else 1)]
    with pytest.raises(ab.SampleError, match="no cube") as caught:
        next(iterator)
    if workers:
        iterator._shutdown_workers()
    assert caught.type is ab.SampleError
    assert len(seen) == (3 if batch_size is None else 1)
    assert caught.value.index == 3
    assert "raise ValueError('no cube')" in caught.value.traceback
    assert "Original Traceback" not in str(caught.value)


def test_an_error_leaves_the_fleet(make_map: Make) -> None:
    """The next access is served by the same Blenders."""
    dataset = make_map("import os\n" + FAILS.replace("return {}", "return {'pid': os.getpid()}"), length=6, instances=1)
    pid = dataset[0]["pid"]
    for wanted in (3, [1, 2, 3, 4], slice(None)):
        with pytest.raises(ab.SampleError, match="no cube"):
            dataset[wanted]
        assert dataset[0]["pid"] == pid


def test_a_failed_start_is_told_each_time(make_map: Make) -> None:
    """A Blender that does not start is named by each access, and nothing is left."""
    for options, error in (
        ({"faults": {"exit_at_start": 9}}, ab.InstanceExited),
        ({"blender": "/nowhere/blender"}, ab.BlenderNotFound),
        ({"script": "nowhere.py"}, ab.ConfigError),
    ):
        dataset = make_map(length=3, **options)
        for wanted in (0, slice(2)):
            with pytest.raises(error):
                dataset[wanted]


def test_what_params_raise_is_the_users(make_map: Make) -> None:
    """The user's own exception is raised by the access."""

    def params(index: int) -> dict[str, Any]:
        if index == 2:
            raise LookupError("no level")
        return {}

    dataset = make_map(params=params, length=4)
    for wanted in (2, slice(None)):
        with pytest.raises(LookupError, match="no level"):
            dataset[wanted]
    assert dataset[1]["index"] == 1


def test_a_blender_killed_in_a_batch_is_replaced(make_map: Make, tmp_path: Path) -> None:
    """The batch is complete and in order all the same."""
    body = f"""
import os
def sample(task):
    if task.index == 5 and not os.path.exists("{tmp_path}/died"):
        open("{tmp_path}/died", "w").close()
        os.kill(os.getpid(), {int(signal.SIGKILL)})
    return {{}}
"""
    dataset = make_map(body, length=20, restart=FAST)
    assert indices(dataset[:]) == list(range(20))
    assert dataset.stats().restarts == 1  # type: ignore[union-attr]


# -- the life of the fleet -------------------------------------------------------------------------------------------


def test_the_fleet_is_lazy_and_warm(make_map: Make) -> None:
    """The first access starts it, later ones have the same Blenders; `with` and `close` end it, and it may start again."""
    dataset = make_map(length=9, instances=1)
    with dataset as entered:
        assert entered is dataset
        assert dataset.stats() is None
        pids = {item["pid"] for item in [dataset[0], *dataset[:], *dataset]}
        (pid,) = pids
        assert not gone(pid)
    assert gone(pid)
    stats = dataset.stats()
    assert stats is not None
    assert stats.delivered == 19
    assert dataset[0]["pid"] != pid
    dataset.close()
    dataset.close()


def test_a_dropped_dataset_ends_its_fleet(make_map: Make) -> None:
    """Garbage collection ends it; a loop over it keeps it."""
    dataset = ab.BlenderMapDataset(make_map(length=9, instances=1).config)
    loop = iter(dataset)
    pid = next(loop)["pid"]
    del dataset
    gc.collect()
    assert next(loop)["pid"] == pid
    del loop
    gc.collect()
    assert gone(pid)


def test_copies_have_fleets_of_their_own(make_map: Make) -> None:
    """A pickled copy of a dataset in use begins anew."""
    dataset = make_map(length=3, instances=1)
    pid = dataset[0]["pid"]
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.stats() is None
    assert copy[0]["pid"] != pid
    copy.close()
    assert dataset[0]["pid"] == pid


def test_threads_share_one_fleet(make_map: Make) -> None:
    """Several threads that begin at once start it once."""
    dataset = make_map(length=40)
    with ThreadPoolExecutor(8) as pool:
        items = list(pool.map(dataset.__getitem__, range(40)))
    assert indices(items) == list(range(40))
    assert len({item["pid"] for item in items}) <= 2


AT_EXIT = """
import sys
from torch.utils.data import DataLoader
import asyncblend as ab

if __name__ == "__main__":
    script, fake = sys.argv[1:]
    dataset = ab.BlenderMapDataset(script=script, blender=fake, instances=2, length=6)
    pids = {dataset[0]["pid"]}
    loader = DataLoader(dataset, 2, num_workers=2, persistent_workers=True, multiprocessing_context="fork")
    pids.update(pid for batch in loader for pid in batch["pid"].tolist())
    print(*pids, flush=True)
    sys.exit(3)
"""


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_fleets_end_at_the_exit(make_map: Make, tmp_path: Path) -> None:
    """A program that closes nothing ends, and leaves no Blender of its own or of its workers."""
    config = make_map().config
    (tmp_path / "program.py").write_text(AT_EXIT)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py"), str(config.script), str(config.blender)],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 3
    until(lambda: all(gone(pid) for pid in pids))


# -- real Blenders ---------------------------------------------------------------------------------------------------


@pytest.mark.every_kind
@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_samples_are_those_of_the_stream(kind: Any, write_script: Callable[..., Path]) -> None:
    """Single samples, batches and workers give the same bits as a BlenderDataset of the same config."""
    fake = "def sample(task): return {'image': task.rng.integers(0, 255, (4, 6, 3)).astype(np.uint8)}"
    config = ab.StreamConfig(
        script=packaged("cube.py") if kind.real else write_script(fake),
        script_args=["--width", "48", "--height", "32"],
        blender=kind.blender,
        instances=2,
        length=5,
        seed=3,
    )
    stream = ab.BlenderDataset(config)
    images = {item["index"]: item["image"] for item in stream}
    stream.close()
    with ab.BlenderMapDataset(config) as dataset:
        for item in [*dataset[[4, 0, 4]], dataset[-3], dataset[2]]:
            assert torch.equal(item["image"], images[item["index"]])
        loader: Any = DataLoader(
            dataset, batch_size=2, num_workers=1, timeout=2 * LIMIT, multiprocessing_context="fork"
        )
        for batch in loader:
            assert torch.equal(batch["image"], torch.stack([images[index] for index in batch["index"].tolist()]))
