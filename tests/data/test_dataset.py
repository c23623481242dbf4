"""BlenderDataset under PyTorch's DataLoader: items, workers, epochs, errors, resuming, ranks."""

from __future__ import annotations

import gc
import json
import multiprocessing.util
import operator
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch.utils.data import DataLoader, get_worker_info

import asyncblend as ab
from asyncblend.cli.scripts import script as packaged
from asyncblend.testing import fake_blender

pytestmark = [
    # Python 3.12 and up advise against fork in a process with threads; torch against more workers than cores.
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]

Write = Callable[..., Path]
Make = Callable[..., ab.BlenderDataset]

LIMIT = 60.0  # seconds; the bound of failure of every wait here
FAST = ab.RestartPolicy(backoff=0.01)
ABOUT = """
import os, sys
def sample(task):
    return {
        "pid": os.getpid(), "host": os.getppid(), "instance": task.instance,
        "argv": sys.argv[1:], "noise": task.rng.random(3),
    }
"""


@pytest.fixture(scope="module", autouse=True)
def _multiprocessings_own_folder() -> None:
    """It is made once a process, so it must not be in a folder that goes with a test."""
    multiprocessing.util.get_temp_dir()


@pytest.fixture
def make(tmp_path: Path, write_script: Write) -> Iterator[Make]:
    """Make a dataset of fakes, which is closed at the end: `make(body, faults={}, **options)`."""
    made: list[ab.BlenderDataset] = []

    def make(body: str = ABOUT, faults: dict[str, Any] | None = None, **options: Any) -> ab.BlenderDataset:
        fake = fake_blender(tmp_path / f"fake{len(made)}", **(faults or {}))
        script = write_script(body, name=f"script{len(made)}.py")
        made.append(ab.BlenderDataset(**{"script": script, "blender": fake, "instances": 2, **options}))
        return made[-1]

    yield make
    for dataset in made:
        dataset.close()


class Loading:
    """A DataLoader over a dataset whose items stay apart; `with` ends its workers."""

    def __init__(self, dataset: ab.BlenderDataset, workers: int, start: str = "fork", **options: Any) -> None:
        if workers:
            options.update(multiprocessing_context=start, timeout=LIMIT)
        self._loader: Any = DataLoader(dataset, batch_size=None, num_workers=workers, **options)
        self._iterator: Any = None

    def __iter__(self) -> Iterator[Any]:
        self._iterator = iter(self._loader)
        return iter(self._iterator)

    def __enter__(self) -> Loading:
        return self

    def __exit__(self, *error: object) -> None:
        # When an exception's traceback holds the iterator, torch itself takes five seconds to end its workers.
        if hasattr(self._iterator, "_shutdown_workers"):
            self._iterator._shutdown_workers()


def items_of(dataset: ab.BlenderDataset, workers: int, start: str = "fork", **options: Any) -> list[Any]:
    with Loading(dataset, workers, start, **options) as loading:
        return list(loading)


def indices(items: list[Any]) -> list[int]:
    return sorted(item["index"] for item in items)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


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
    expected = {
        "flag": True,
        "count": 7,
        "real": 0.5,
        "numpy": 0.5,
        "text": "x",
        "none": None,
        "list": [1, [2.5]],
    }
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
def test_tensors_are_the_users_own(workers: int, make: Make) -> None:
    """Writing into one changes no other one of its item, of the others, or of a later epoch."""
    dataset = make(VALUES, length=4, instances=1)
    with Loading(dataset, workers, persistent_workers=workers > 0) as loading:
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
    """With ordered=True, in each epoch."""
    dataset = make(length=9, ordered=True)
    for epoch in range(2):
        dataset.set_epoch(epoch)
        assert [item["index"] for item in dataset] == list(range(9 * epoch, 9 * epoch + 9))


@pytest.mark.parametrize("workers", [0, 2])
def test_transform_makes_the_item(workers: int, make: Make) -> None:
    """It is called with each item in the process that iterates, and what it returns is the item."""

    def transform(item: dict[str, Any]) -> list[Any]:
        return [item["index"], item["host"] == os.getpid(), isinstance(item["noise"], torch.Tensor)]

    items = items_of(make(length=5, transform=transform), workers)
    assert sorted(items) == [[index, True, True] for index in range(5)]


def test_what_transform_raises_is_the_users(make: Make) -> None:
    """As itself, after the good items; the fleet is well, and can be iterated again."""

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


def test_transform_must_be_callable() -> None:
    """An option that is wrong is named."""
    with pytest.raises(ab.ConfigError, match="transform must be callable"):
        ab.BlenderDataset(script="x.py", transform=3)  # type: ignore[arg-type]


# -- before the first iteration -----------------------------------------------------------------------------------


def test_it_takes_a_config_or_its_fields_or_both() -> None:
    """Options override the config; a wrong one is a ConfigError."""
    config = ab.StreamConfig(script="x.py", instances=3, length=5)
    assert ab.BlenderDataset(config).config == config
    assert ab.BlenderDataset(config, length=7).config.length == 7
    assert ab.BlenderDataset(script="x.py").config == ab.StreamConfig(script="x.py")
    with pytest.raises(ab.ConfigError, match="did you mean 'instances'"):
        ab.BlenderDataset(script="x.py", instance=2)
    with pytest.raises(ab.ConfigError, match="script"):
        ab.BlenderDataset()


def test_len_is_that_of_an_epoch(make: Make) -> None:
    """It counts the shard's samples; an endless dataset has none, and works under a DataLoader."""
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
        assert one.state_dict() == {"epoch": 0, "stream": {}}
        one.close()
        iter(one)
    assert not psutil.Process().children()
    assert indices(list(copy)) == [0, 1, 2, 3]
    copy.close()


def test_a_copy_has_a_fleet_of_its_own(make: Make) -> None:
    """A pickled copy of a dataset in use disturbs it in nothing."""
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
def test_each_index_comes_once_whatever_the_workers(workers: int, instances: int, start: str, make: Make) -> None:
    """None twice, none dropped, remainder included, two epochs; each worker has the pinned indices and instances."""
    args = [["--number", str(number)] for number in range(instances)]
    dataset = make(length=23, instances=instances, script_args=args)
    for _ in range(2 if start in ("", "fork") else 1):
        items = items_of(dataset, workers, start)
        assert indices(items) == list(range(23))
        check_shares(items, workers, instances, args)
        assert {item["host"] for item in items} != {os.getpid()} or workers == 0


def test_workers_take_the_indices_of_their_number(make: Make) -> None:
    """Worker w of W takes w, w + W, w + 2W, ..."""

    def transform(item: dict[str, Any]) -> list[int]:
        worker = get_worker_info()
        assert worker is not None
        return [worker.id, item["index"]]

    items = items_of(make(length=17, instances=3, transform=transform), 3)
    assert sorted(items) == sorted([index % 3, index] for index in range(17))


@pytest.mark.parametrize("length", [0, 1, 2])
def test_more_workers_than_samples(length: int, make: Make) -> None:
    """Those without a sample end at once."""
    assert indices(items_of(make(length=length, instances=3), 3)) == list(range(length))


def test_batches_of_workers_have_each_index_once(make: Make) -> None:
    """Batches are made in the workers, each with a remainder."""
    batches: list[Any] = list(DataLoader(make(length=23), batch_size=4, num_workers=2))
    assert sorted(index for batch in batches for index in batch["index"].tolist()) == list(range(23))
    assert sorted(len(batch["index"]) for batch in batches) == [3, 4, 4, 4, 4, 4]


def test_the_number_of_workers_changes_no_sample(make: Make) -> None:
    """A sample is a function of seed and index alone."""
    dataset = make(length=12, seed=5)
    noises = [{item["index"]: item["noise"].tolist() for item in items_of(dataset, workers)} for workers in (0, 2)]
    assert noises[0] == noises[1]


def test_pixels_are_the_same_with_and_without_workers(bpy_kind: Any) -> None:
    """On the bpy module: each index once, with bit-identical images."""
    dataset = ab.BlenderDataset(
        script=packaged("cube.py"),
        script_args=["--width", "48", "--height", "32", "--samples", "1"],
        blender=bpy_kind.blender,
        instances=2,
        length=7,
    )
    runs = []
    for workers in (0, 2):
        items = items_of(dataset, workers)
        dataset.close()
        assert indices(items) == list(range(7))
        assert all((item["image"].shape, item["image"].dtype) == ((32, 48, 3), torch.uint8) for item in items)
        runs.append({item["index"]: (item["image"].numpy().tobytes(), item["xy"].tolist()) for item in items})
    assert runs[0] == runs[1]
    assert len({image for image, _ in runs[0].values()}) == 7


# -- epochs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workers", "instances", "start", "persistent"),
    [
        (0, 2, "", False),
        (2, 2, "fork", False),
        (2, 2, "fork", True),
        (3, 2, "fork", True),
        (1, 2, "spawn", True),
    ],
)
def test_epochs(workers: int, instances: int, start: str, persistent: bool, make: Make) -> None:
    """Each has the same indices, or those that set_epoch offsets; it reaches persistent workers, whose fleet is warm."""
    dataset = make(length=9, instances=instances)
    epochs: list[list[Any]] = []
    with Loading(dataset, workers, start, persistent_workers=persistent) as loading:
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
    """They share no index."""
    dataset = make(ordered=True)
    first = [item["index"] for item, _ in zip(dataset, range(5), strict=False)]
    dataset.set_epoch(1)
    second = [item["index"] for item, _ in zip(dataset, range(5), strict=False)]
    assert first == list(range(5))
    assert second == list(range(second[0], second[0] + 5))
    assert second[0] > 1 << 30


def test_epochs_count_from_the_start(make: Make) -> None:
    """With the option `start`, the indices are offset from there."""
    dataset = make(length=4, start=10)
    assert indices(list(dataset)) == [10, 11, 12, 13]
    dataset.set_epoch(2)
    assert indices(list(dataset)) == [18, 19, 20, 21]


@pytest.mark.parametrize("epoch", [-1, 1.0, True, "1", None])
def test_a_wrong_epoch_is_refused(epoch: Any, make: Make) -> None:
    """It must be a whole number from 0 on."""
    with pytest.raises(ab.ConfigError, match="epoch"):
        make().set_epoch(epoch)


# -- the fleet between iterations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["break", "exception", "generator"])
def test_the_fleet_stays_warm_however_an_iteration_ends(how: str, make: Make) -> None:
    """The next one begins anew, complete, on the same Blenders, until close; then on new ones."""
    dataset = make(length=40, queue_size=4, instances=1)
    pids = set()

    def use() -> None:
        for item in dataset:
            pids.add(item["pid"])
            if how == "exception":
                raise ArithmeticError
            break

    for _ in range(3):
        if how == "exception":
            with pytest.raises(ArithmeticError):
                use()
        elif how == "generator":
            iterator: Any = iter(dataset)
            next(iterator)
            iterator.close()
        else:
            use()
    items = list(dataset)
    assert indices(items) == list(range(40))
    pids.update(item["pid"] for item in items)
    (pid,) = pids
    assert not gone(pid)
    dataset.close()
    assert gone(pid)
    dataset.close()
    items = list(dataset)
    assert indices(items) == list(range(40))
    assert items[0]["pid"] != pid


def test_a_second_iteration_ends_the_first(make: Make) -> None:
    """One dataset, one pass: the older one raises StreamClosed and steals nothing of the newer one."""
    dataset = make(length=12, queue_size=4)
    first, second = iter(dataset), iter(dataset)
    next(first)
    taken = [next(second)]
    with pytest.raises(ab.StreamClosed, match="another iteration"):
        list(first)
    assert indices(taken + list(second)) == list(range(12))


def test_a_dropped_dataset_ends_its_fleet(make: Make, write_script: Write, tmp_path: Path) -> None:
    """Garbage collection does, also while an iterator that is dropped with it is in mid-epoch."""
    fake = fake_blender(tmp_path / "fake")
    dataset = ab.BlenderDataset(script=write_script(ABOUT), blender=fake, instances=1)
    iterator = iter(DataLoader(dataset, batch_size=2))
    (pid, _) = next(iterator)["pid"].tolist()
    del dataset
    gc.collect()
    assert not gone(pid)  # the iterator has it still
    assert len(next(iterator)["index"]) == 2
    del iterator
    gc.collect()
    assert gone(pid)


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("how", ["break", "exception"])
def test_leaving_an_epoch_of_workers(how: str, persistent: bool, make: Make) -> None:
    """No Blender outlives the loader's iterator; persistent workers give the next epoch complete."""
    dataset = make(length=30, queue_size=4)
    pids = []
    with Loading(dataset, 2, persistent_workers=persistent) as loading:
        try:
            for item in loading:
                pids.append(item["pid"])
                if len(pids) == 3:
                    if how == "exception":
                        raise ArithmeticError
                    break
        except ArithmeticError:
            pass
        items = list(loading)
        assert indices(items) == list(range(30))
        pids += [item["pid"] for item in items]
        assert len(set(pids)) <= 2 or not persistent
    assert all(gone(pid) for pid in pids)


def test_stats_of_the_process_that_iterates(make: Make) -> None:
    """They are the stream's, also after close."""
    dataset = make(length=8)
    list(dataset)
    for _ in range(2):
        stats = dataset.stats()
        assert stats is not None
        assert (stats.delivered, stats.restarts, stats.queued) == (8, 0, 0)
        dataset.close()


# -- errors -------------------------------------------------------------------------------------------------------

FAILS = "def sample(task):\n    if task.index == 3: raise ValueError('no cube')\n    return {}"
# A Blender that dies takes what has not left it along: it waits until the good samples have arrived.
CRASHES = """
import os, threading
def sample(task):
    if task.index == 2:
        while not os.path.exists(os.path.join(os.path.dirname(__file__), "gate")): threading.Event().wait(0.005)
        os._exit(4)
    return {}
"""
ERRORS: list[Any] = [
    pytest.param(ab.SampleError, "no cube", 3, {"body": FAILS}, id="sample"),
    pytest.param(ab.InstanceExited, "status 9", 0, {"faults": {"exit_at_start": 9}}, id="exit"),
    pytest.param(ab.InstanceExited, "no scene", 0, {"body": "raise OSError('no scene')"}, id="script"),
    pytest.param(
        ab.StartTimeout,
        r"did not call serve within 0\.3 s",
        0,
        {"faults": {"never_ready": True}, "timeouts": ab.Timeouts(start=0.3)},
        id="start",
    ),
    pytest.param(
        ab.CrashLoop,
        "status 4",
        2,
        {"body": CRASHES, "restart": ab.RestartPolicy(max_restarts=0)},
        id="crash",
    ),
    pytest.param(
        ab.CrashLoop,
        r"made no frame for 0\.3 s",
        2,
        {
            "faults": {"hang_after": 2},
            "timeouts": ab.Timeouts(frame=0.3),
            "restart": ab.RestartPolicy(max_restarts=0),
        },
        id="hang",
    ),
    pytest.param(ab.BlenderNotFound, "does not exist", 0, {"blender": "/nowhere/blender"}, id="blender"),
    pytest.param(ab.ConfigError, "missing.py", 0, {"script": "missing.py"}, id="config"),
]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("error", "message", "good", "options"), ERRORS)
def test_an_error_reaches_the_loop_as_itself(
    error: type[Exception],
    message: str,
    good: int,
    options: dict[str, Any],
    workers: int,
    make: Make,
    tmp_path: Path,
) -> None:
    """After the good samples; with its data from this process, with its own type and message from a worker."""
    dataset = make(**{"instances": 1, "ordered": True, "length": 10, **options})
    seen = []
    with Loading(dataset, workers) as loading, pytest.raises(error, match=message) as caught:
        for item in loading:
            seen.append(item["index"])
            if len(seen) == good:
                (tmp_path / "gate").touch()
    assert caught.type is error
    assert seen == list(range(good))
    if workers:
        return
    if isinstance(caught.value, ab.SampleError):
        assert caught.value.index == 3
        assert "no cube" in caught.value.traceback
    if isinstance(caught.value, ab.InstanceError):
        assert caught.value.instance == 0
    if isinstance(caught.value, ab.InstanceExited):
        assert caught.value.returncode in (1, 9)
        assert ("no scene" if caught.value.returncode == 1 else "exits at its start") in caught.value.log_tail
    if isinstance(caught.value, ab.CrashLoop):
        kind = ab.FrameTimeout if "no frame" in message else ab.InstanceExited
        assert type(caught.value.__cause__) is kind


@pytest.mark.parametrize("workers", [0, 1])
def test_what_params_raise_reaches_the_loop(workers: int, make: Make) -> None:
    """The user's own exception, after the good samples."""

    def params(index: int) -> dict[str, Any]:
        if index == 2:
            raise LookupError("no curriculum")
        return {}

    seen = []
    with (
        Loading(make(params=params, instances=1, prefetch=1), workers) as loading,
        pytest.raises(LookupError, match="no curriculum"),
    ):
        for item in loading:
            seen.append(item["index"])
    assert seen == [0, 1]


def test_an_error_of_one_pass_leaves_the_fleet(make: Make) -> None:
    """After a SampleError the next iteration runs on the same Blenders."""
    dataset = make(
        "import os\ndef sample(task):\n    if task.index == 3: raise ValueError\n    return {'pid': os.getpid()}",
        instances=1,
        length=6,
    )
    pids = set()
    with pytest.raises(ab.SampleError):
        for item in dataset:
            pids.add(item["pid"])
    dataset.set_epoch(1)
    items = list(dataset)
    assert indices(items) == list(range(6, 12))
    assert {item["pid"] for item in items} == pids


def test_iterating_after_a_crash_loop_starts_another_fleet(make: Make, tmp_path: Path) -> None:
    """A fleet that is lost is not the end of the dataset."""
    mended = tmp_path / "mended"
    body = f"""
import os
def sample(task):
    if task.index == 2 and not os.path.exists({str(mended)!r}): os._exit(3)
    return {{}}
"""
    dataset = make(body, instances=1, length=6, restart=ab.RestartPolicy(max_restarts=0))
    with pytest.raises(ab.CrashLoop):
        list(dataset)
    mended.touch()
    assert indices(list(dataset)) == list(range(6))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_blender_killed_in_mid_epoch_is_replaced(workers: int, make: Make) -> None:
    """Each index still comes once."""
    dataset = make(length=40, queue_size=4, restart=FAST)
    with Loading(dataset, workers) as loading:
        iterator = iter(loading)
        first = next(iterator)
        os.kill(first["pid"], signal.SIGKILL)
        assert indices([first, *iterator]) == list(range(40))


def test_a_killed_worker_is_torchs_error(make: Make) -> None:
    """torch says so, and the worker's Blenders end with it."""
    # No arrays: torch fetches their memory from the worker.
    body = "import os\ndef sample(task): return {'pid': os.getpid(), 'host': os.getppid()}"
    with Loading(make(body), 2) as loading:
        iterator = iter(loading)
        items = [next(iterator) for _ in range(4)]
        pids = {item["pid"]: item["host"] for item in items}
        dead = items[0]["host"]
        os.kill(dead, signal.SIGKILL)
        with pytest.raises(RuntimeError, match=r"killed by signal|exited unexpectedly"):
            while True:
                next(iterator)
        orphans = [psutil.Process(pid) for pid, host in pids.items() if host == dead and psutil.pid_exists(pid)]
        assert not psutil.wait_procs(orphans, timeout=5)[1]
    assert all(gone(pid) for pid in pids)


# -- resuming -----------------------------------------------------------------------------------------------------


def through_json(state: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(state))  # type: ignore[no-any-return]


def test_a_saved_epoch_goes_on_where_it_was(make: Make) -> None:
    """Each index of the epoch comes once, before the save or after the load; the next epoch is complete."""
    dataset = make(length=20, seed=3)
    dataset.set_epoch(2)
    loader: Any = DataLoader(dataset, batch_size=4)
    before = []
    for number, batch in enumerate(loader, 1):
        before += batch["index"].tolist()
        if number == 3:
            break
    state = through_json(dataset.state_dict())
    resumed = make(length=20, seed=3)
    resumed.load_state_dict(state)
    after = [item["index"] for item in resumed]
    assert len(before) == 12
    assert sorted(before + after) == list(range(40, 60))
    assert indices(list(resumed)) == list(range(40, 60))
    resumed.set_epoch(3)
    assert indices(list(resumed)) == list(range(60, 80))


def test_a_state_is_loaded_into_a_warm_fleet(make: Make) -> None:
    """The same dataset goes back to where it was, as often as wanted."""
    dataset = make(length=10, queue_size=3)
    iterator = iter(dataset)
    before = [next(iterator)["index"] for _ in range(4)]
    state = dataset.state_dict()
    rest = [item["index"] for item in iterator]
    for _ in range(2):
        dataset.load_state_dict(state)
        assert sorted(item["index"] for item in dataset) == sorted(rest)
    assert sorted(before + rest) == list(range(10))


def test_a_state_saved_before_iterating_after_a_load(make: Make) -> None:
    """It is the one that was loaded."""
    dataset = make(length=10)
    iterator = iter(dataset)
    before = [next(iterator)["index"] for _ in range(3)]
    state = through_json(dataset.state_dict())
    second = make(length=10)
    second.load_state_dict(state)
    assert through_json(second.state_dict()) == state
    third = make(length=10)
    third.load_state_dict(second.state_dict())
    assert sorted(before + [item["index"] for item in third]) == list(range(10))


def test_a_state_saved_after_set_epoch_is_of_the_new_epoch(make: Make) -> None:
    """Nothing of it has been taken, whatever was taken of the last one."""
    dataset = make(length=6)
    iterator = iter(dataset)
    next(iterator)
    dataset.set_epoch(1)
    resumed = make(length=6)
    resumed.load_state_dict(through_json(dataset.state_dict()))
    assert indices(list(resumed)) == list(range(6, 12))


@pytest.mark.parametrize("save_again", [False, True])
def test_another_epoch_after_a_load_is_complete(save_again: bool, make: Make) -> None:
    """A loaded state is of its epoch only: set_epoch of another one leaves it behind."""
    dataset = make(length=6)
    iterator = iter(dataset)
    next(iterator)
    resumed = make(length=6)
    resumed.load_state_dict(dataset.state_dict())
    resumed.set_epoch(1)
    if save_again:
        state = resumed.state_dict()
        resumed = make(length=6)
        resumed.load_state_dict(state)
    assert indices(list(resumed)) == list(range(6, 12))


def test_set_epoch_of_the_loaded_epoch_keeps_the_state(make: Make) -> None:
    """A training loop calls it in each epoch, the resumed one too."""
    dataset = make(length=6)
    iterator = iter(dataset)
    before = [next(iterator)["index"] for _ in range(2)]
    resumed = make(length=6)
    resumed.load_state_dict(dataset.state_dict())
    resumed.set_epoch(0)
    assert sorted(before + [item["index"] for item in resumed]) == list(range(6))


def test_a_complete_epoch_has_nothing_left(make: Make) -> None:
    """Resumed at its end, it gives nothing; the next one is complete."""
    dataset = make(length=5)
    list(dataset)
    resumed = make(length=5)
    resumed.load_state_dict(dataset.state_dict())
    assert list(resumed) == []
    assert indices(list(resumed)) == list(range(5))


def test_a_state_of_another_stream_is_refused(make: Make) -> None:
    """Seed, length and shard must be the same."""
    dataset = make(length=5)
    next(iter(dataset))
    for options in ({"seed": 1}, {"length": 6}, {"shard": (0, 2)}):
        other = make(**{"length": 5, **options})
        other.load_state_dict(dataset.state_dict())
        with pytest.raises(ab.ConfigError, match=next(iter(options))):
            list(other)


# -- ranks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_a_shard_of_the_config_is_shared_out(workers: int, make: Make) -> None:
    """The union over the shards is exact, with any number of workers in each."""
    union = []
    for rank in range(2):
        dataset = make(length=15, shard=(rank, 2))
        got = indices(items_of(dataset, workers))
        assert workers or len(got) == len(dataset)
        union += got
    assert sorted(union) == list(range(15))


def test_workers_of_a_rank_take_the_pinned_shards(make: Make) -> None:
    """Worker w of W in rank r of R is shard r * W + w of R * W."""
    for rank in range(2):
        transform = operator.itemgetter("host", "index")
        hosts: dict[int, set[int]] = {}
        for host, index in items_of(make(length=16, shard=(rank, 2), transform=transform), 2):
            hosts.setdefault(host, set()).add(index % 4)
        assert sorted(hosts.values(), key=sorted) == [{2 * rank}, {2 * rank + 1}]


RANK = """
import json, sys, warnings
import torch.distributed as dist
from torch.utils.data import DataLoader
import asyncblend as ab

if __name__ == "__main__":
    rank, store, script, fake = sys.argv[1:]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=2)
    told = []
    for workers, start in ((0, None), (2, "fork"), (1, "spawn")):
        dataset = ab.BlenderDataset(script=script, blender=fake, instances=2, length=21)
        loader = DataLoader(dataset, batch_size=None, num_workers=workers, multiprocessing_context=start)
        told.append([[item["index"], item["instance"]] for item in loader])
        dataset.close()
        if workers == 0:
            assert len(dataset) == len(told[0])
    dist.barrier()
    dist.destroy_process_group()
    print(json.dumps(told))
"""


def test_ranks_share_the_indices_out(write_script: Write, tmp_path: Path) -> None:
    """Two processes of torch.distributed, with and without workers: the union is exact, instance numbers differ."""
    (tmp_path / "rank.py").write_text(RANK)
    arguments = [
        str(tmp_path / "store"),
        str(write_script(ABOUT)),
        str(fake_blender(tmp_path / "fake")),
    ]
    ranks = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "rank.py"), str(rank), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [rank.communicate(timeout=LIMIT) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    told = [json.loads(output) for output, _ in outputs]
    for of_both in zip(*told, strict=True):
        assert sorted(index for own in of_both for index, _ in own) == list(range(21))
        for number, own in enumerate(of_both):
            assert {instance // 2 for _, instance in own} == {number}
    assert [sorted(index for index, _ in own) for own in (told[0][0], told[1][0])] == [
        list(range(0, 21, 2)),
        list(range(1, 21, 2)),
    ]


# -- a fleet here, workers beside it ------------------------------------------------------------------------------

BESIDE = """
import asyncio, os, signal, sys
import uvloop
from torch.utils.data import DataLoader
import asyncblend as ab

if __name__ == "__main__":
    script, fake = sys.argv[1:]
    policy = ab.RestartPolicy(backoff=0.01)
    dataset = ab.BlenderDataset(script=script, blender=fake, instances=1, length=40, queue_size=4, restart=policy)
    items = iter(dataset)
    first = next(items)
    assert isinstance(dataset._bridge._loop, uvloop.Loop)

    handler = signal.getsignal(signal.SIGCHLD)
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork")
    beside = list(loader)
    assert signal.getsignal(signal.SIGCHLD) != handler  # what uvloop misses exits after
    assert sorted(item["index"] for item in beside) == list(range(40)), beside
    assert first["pid"] not in {item["pid"] for item in beside}

    os.kill(first["pid"], signal.SIGKILL)
    rest = list(items)
    assert sorted(item["index"] for item in [first, *rest]) == list(range(40))
    assert {item["pid"] for item in rest} != {first["pid"]}
    assert dataset.stats().restarts == 1
    dataset.close()
    print("done")
"""


def test_a_fleet_beside_workers_notices_a_death(write_script: Write, tmp_path: Path) -> None:
    """On uvloop, with torch's SIGCHLD handler in place: the dead Blender is replaced, and nothing is left unclosed."""
    pytest.importorskip("uvloop")
    (tmp_path / "beside.py").write_text(BESIDE)
    done = subprocess.run(
        [
            sys.executable,
            *("-W", "default::ResourceWarning"),
            str(tmp_path / "beside.py"),
            str(write_script(ABOUT)),
            str(fake_blender(tmp_path / "fake")),
        ],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert "ResourceWarning" not in done.stderr
