"""A BlenderDataset that goes on from a saved state, and one that is shared out among ranks."""

from __future__ import annotations

import json
import operator
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

import asyncblend as ab

pytestmark = [
    # Python 3.12 and up advise against fork in a process with threads; torch against more workers than cores.
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]

Make = Callable[..., ab.BlenderDataset]

LIMIT = 60.0  # seconds; the bound of failure of every wait here


def indices(items: list[Any]) -> list[int]:
    return sorted(item["index"] for item in items)


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
    """The same dataset goes back to where it was, as often as is wanted."""
    dataset = make(length=10, queue_size=3)
    iterator = iter(dataset)
    before = [next(iterator)["index"] for _ in range(4)]
    state = dataset.state_dict()
    rest = [item["index"] for item in iterator]
    for _ in range(2):
        dataset.load_state_dict(state)
        assert sorted(item["index"] for item in dataset) == sorted(rest)
    assert sorted(before + rest) == list(range(10))


def test_a_state_saved_before_iterating_after_a_load(make: Make, load: Any) -> None:
    """A dataset that was not iterated since a load saves the state that it loaded."""
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
    """It says that nothing was consumed, whatever was consumed of the epoch before."""
    dataset = make(length=6)
    iterator = iter(dataset)
    next(iterator)
    dataset.set_epoch(1)
    resumed = make(length=6)
    resumed.load_state_dict(through_json(dataset.state_dict()))
    assert indices(list(resumed)) == list(range(6, 12))


@pytest.mark.parametrize("save_again", [False, True])
@pytest.mark.exhaustive
def test_another_epoch_after_a_load_is_complete(save_again: bool, make: Make) -> None:
    """A loaded state belongs to its epoch: `set_epoch` to another one drops the state."""
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
    """A training loop calls `set_epoch` in each epoch, the resumed one too."""
    dataset = make(length=6)
    iterator = iter(dataset)
    before = [next(iterator)["index"] for _ in range(2)]
    resumed = make(length=6)
    resumed.load_state_dict(dataset.state_dict())
    resumed.set_epoch(0)
    assert sorted(before + [item["index"] for item in resumed]) == list(range(6))


def test_a_complete_epoch_has_nothing_left(make: Make) -> None:
    """An epoch that is resumed at its end has no items; the next iteration is complete."""
    dataset = make(length=5)
    list(dataset)
    resumed = make(length=5)
    resumed.load_state_dict(dataset.state_dict())
    assert list(resumed) == []
    assert indices(list(resumed)) == list(range(5))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.exhaustive
def test_only_workers_know_what_they_delivered(workers: int, make: Make, load: Any) -> None:
    """While workers iterate over an epoch the training process has no state to save, rather than an empty one."""
    dataset = make(length=8)
    assert dataset.state_dict()["stream"]["watermark"] == 0
    with load(dataset, workers) as loading:
        for _ in loading:
            with pytest.raises(ab.ConfigError, match=r"StatefulDataLoader save the state, or .* num_workers=0"):
                dataset.state_dict()
    with pytest.raises(ab.ConfigError, match="only they know"):
        dataset.state_dict()
    dataset.set_epoch(1)
    assert dataset.state_dict()["epoch"] == 1
    dataset.set_epoch(0)
    next(iter(dataset))
    assert dataset.state_dict()["stream"]["watermark"] <= 1


def test_a_state_loaded_after_workers_iterated(make: Make, load: Any) -> None:
    """The process that loads a state knows it, whatever workers iterated over before."""
    dataset = make(length=4)
    state = through_json(dataset.state_dict())
    load(dataset, 1).items()
    dataset.load_state_dict(state)
    assert through_json(dataset.state_dict()) == state


def test_the_epoch_of_a_state_is_that_of_the_resumed_iteration(make: Make) -> None:
    """A trainer may set the epoch before it loads: the next iteration is the state's, those after it are the trainer's."""
    dataset = make(length=6)
    dataset.set_epoch(3)
    iterator = iter(dataset)
    before = [next(iterator)["index"] for _ in range(2)]
    state = through_json(dataset.state_dict())
    resumed = make(length=6)
    resumed.set_epoch(4)
    resumed.load_state_dict(state)
    iterator = iter(resumed)
    before += [next(iterator)["index"] for _ in range(2)]
    resumed.load_state_dict(through_json(resumed.state_dict()))
    assert sorted(before + [item["index"] for item in resumed]) == list(range(18, 24))
    assert indices(list(resumed)) == list(range(24, 30))


def test_a_state_belongs_to_the_iterator_that_is_made_next(make: Make) -> None:
    """Also if nobody takes anything from that, as a StatefulDataLoader does at an epoch's end."""
    dataset = make(length=3)
    list(dataset)
    resumed = make(length=3)
    resumed.load_state_dict(through_json(dataset.state_dict()))
    iter(resumed)
    assert indices(list(resumed)) == [0, 1, 2]


# -- ranks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2, 3])
@pytest.mark.exhaustive
def test_a_shard_of_the_config_is_shared_out(workers: int, make: Make, load: Any) -> None:
    """The shards have each sample once together, with any number of workers in each."""
    union = []
    for rank in range(2):
        dataset = make(length=15, shard=(rank, 2))
        got = indices(load(dataset, workers).items())
        assert workers or len(got) == len(dataset)
        union += got
    assert sorted(union) == list(range(15))


def test_workers_of_a_rank_take_the_pinned_shards(make: Make, load: Any) -> None:
    """Worker w of W in rank r of R is shard r * W + w of R * W."""
    for rank in range(2):
        transform = operator.itemgetter("host", "index")
        hosts: dict[int, set[int]] = {}
        for host, index in load(make(length=16, shard=(rank, 2), transform=transform), 2):
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


@pytest.mark.exhaustive
@pytest.mark.slow
def test_ranks_share_the_indices_out(make: Make, tmp_path: Path) -> None:
    """Two processes of torch.distributed have all samples together, with and without workers, and number their instances together."""
    config = make().config
    (tmp_path / "rank.py").write_text(RANK)
    arguments = [str(tmp_path / "store"), str(config.script), str(config.blender)]
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


# -- what is not delivered ------------------------------------------------------------------------------------------

RAISES = """
import os
def sample(task):
    if task.index == 5 and not os.path.exists(__file__ + ".mended"): raise ValueError("not yet")
    return {"noise": task.rng.random(3)}
"""


@pytest.mark.parametrize("batch_size", [4, None])
def test_an_error_in_mid_batch_loses_nothing(batch_size: int | None, make: Make) -> None:
    """The samples of a batch that was not finished come again when the script is mended."""
    options = {"length": 12, "ordered": True, "batch_size": batch_size, "instances": 1}
    dataset, before = make(RAISES, **options), list[int]()
    with pytest.raises(ab.SampleError, match="not yet"):
        for item in dataset:
            before += [item["index"]] if batch_size is None else item["index"].tolist()
    state = through_json(dataset.state_dict())
    again = make(RAISES, **options)
    Path(f"{again.config.script}.mended").touch()
    again.load_state_dict(state)
    after = [index for item in again for index in ([item["index"]] if batch_size is None else item["index"].tolist())]
    assert before == list(range(4 if batch_size else 5))
    assert before + after == list(range(12))


@pytest.mark.exhaustive
def test_an_error_of_the_transform_loses_nothing(make: Make) -> None:
    """The item that it was given comes again, also a batch of parts of episodes."""
    body = "def sample(task):\n    for t in range(3): yield {'t': t}"
    for batch_size in (None, 2):
        seen = list[Any]()

        def transform(item: Any, seen: list[Any] = seen) -> Any:
            if len(seen) == 2:
                raise ArithmeticError
            seen.append(item)
            return item

        options: dict[str, Any] = {"length": 4, "ordered": True, "batch_size": batch_size}
        dataset = make(body, transform=transform, **options)
        with pytest.raises(ArithmeticError):
            list(dataset)
        state = through_json(dataset.state_dict())
        again = make(body, **options)
        again.load_state_dict(state)
        steps = [(item["index"], item["t"]) for item in (*seen, *again)]
        if batch_size:
            steps = [pair for index, t in steps for pair in zip(index.tolist(), t.tolist(), strict=True)]
        assert steps == [(index, t) for index in range(4) for t in range(3)]


def test_what_drop_last_leaves_out_is_delivered(make: Make) -> None:
    """The state after an epoch says that nothing is left."""
    dataset = make(length=5, batch_size=2, drop_last=True)
    assert len(list(dataset)) == 2
    assert dataset.state_dict()["stream"]["watermark"] == 5


# -- params with a state of their own -------------------------------------------------------------------------------


class Counting:
    """Params that count how often they are drawn."""

    def __init__(self) -> None:
        self.drawn = 0

    def __call__(self, index: int) -> dict[str, int]:
        self.drawn += 1
        return {"drawn": self.drawn}

    def state_dict(self) -> dict[str, int]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.drawn = state["drawn"]


def test_a_load_ends_what_draws_from_the_params(make: Make) -> None:
    """An iteration that goes on would change what was set back."""
    params = Counting()
    dataset = make(length=1000, params=params, queue_size=4)
    iterator = iter(dataset)
    first = next(iterator)
    state = through_json(dataset.state_dict())
    for _ in range(20):
        next(iterator)
    dataset.load_state_dict(state)
    drawn = params.drawn
    assert drawn == state["stream"]["params"]["state"]["drawn"]
    with pytest.raises(ab.StreamClosed, match="a state was loaded"):
        for _ in range(10):
            next(iterator)
    assert params.drawn == drawn
    resumed = sorted(item["params"]["drawn"] for _, item in zip(range(30), dataset, strict=False))
    assert first["params"]["drawn"] not in resumed
    assert len(set(resumed)) == 30


def test_a_state_that_is_refused_changes_nothing(make: Make) -> None:
    """The dataset iterates as if it had not been loaded."""
    dataset = make(length=6, params=ab.Curriculum({"level": [1, 2]}), instances=1)
    iterator = iter(dataset)
    next(iterator)
    state = through_json(dataset.state_dict())
    other = make(length=6, params=ab.Curriculum({"level": [3, 4]}), instances=1)
    with pytest.raises(ab.ConfigError, match="a Curriculum with the bins"):
        other.load_state_dict(state)
    for stream in ("x", [1], 5, {"params": 3}):
        with pytest.raises(ab.ConfigError, match="not a saved state of a BlenderDataset"):
            other.load_state_dict({**state, "stream": stream})
    assert indices(list(other)) == list(range(6))


def test_feedback_after_a_load_is_saved(make: Make) -> None:
    """Also before anything is taken."""
    dataset = make(length=6, params=ab.Curriculum({"level": [1, 2]}))
    iterator = iter(dataset)
    item = next(iterator)
    state = through_json(dataset.state_dict())
    curriculum = ab.Curriculum({"level": [1, 2]})
    other = make(length=6, params=curriculum)
    other.load_state_dict(state)
    other.feedback(item["index"], 3.0)
    assert other.state_dict()["stream"]["params"]["state"] == curriculum.state_dict()
    again = iter(other)
    other.feedback(item["index"], 4.0)
    assert other.state_dict()["stream"]["params"]["state"] == curriculum.state_dict()
    del again
