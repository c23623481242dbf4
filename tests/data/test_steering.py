"""Params in items and batches, and steering a dataset from the training loop: flush, feedback, iterators, state."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, default_collate

import asyncblend as ab

pytestmark = [pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")]

Make = Callable[..., ab.BlenderDataset]
LEVEL = "def sample(task): return {'level': task.params.get('level', -1)}"
BINS: dict[str, list[Any]] = {"level": [0, 1, 2, 3]}


def forms(index: int) -> dict[str, Any]:
    """Params of each form, for indices up to 3; all of one form after that."""
    same = {"level": index, "xy": np.full(2, index, np.float32), "in": {"range": (index, index + 1)}}
    others: list[dict[str, Any]] = [{}, {"level": index}, {"level": "three"}, {"level": 2, "xy": np.zeros(3)}]
    return others[index] if index < 4 else same


# -- params in items -----------------------------------------------------------------------------------------------


def test_items_and_batches_carry_their_params(make: Make) -> None:
    """Items have them as tensors; batches by the rule for all values; what has none has no such name."""
    dataset = make(LEVEL, params=forms, start=4, length=4, ordered=True)
    items = list(dataset)
    assert [item["params"]["xy"].tolist() for item in items] == [[index] * 2 for index in range(4, 8)]
    items[0]["params"]["xy"] += 1  # its memory is the user's own
    for batch in (
        next(iter(make(LEVEL, params=forms, start=4, length=4, ordered=True, batch_size=4))),
        ab.collate(items[:0] + list(make(LEVEL, params=forms, start=4, length=4, ordered=True))),
    ):
        assert batch["params"]["level"].tolist() == [4, 5, 6, 7]
        assert batch["params"]["xy"].shape == (4, 2)
        assert batch["params"]["in"]["range"] == [[4, 5], [5, 6], [6, 7], [7, 8]]
    (batch,) = DataLoader(make(LEVEL, params=forms, start=4, length=4, ordered=True), batch_size=4)
    assert batch["params"]["level"].tolist() == [4, 5, 6, 7]
    assert all("params" not in item for item in make(LEVEL, length=2))
    rendered = make(LEVEL, length=2).render(1, {"level": 5})
    assert rendered == {"level": 5, "index": 1, "params": {"level": 5}}


def test_flipped_arrays_are_collated() -> None:
    """A transform's flip is a view with negative strides."""
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    batch = ab.collate([{"image": image[:, ::-1]}, {"image": image[::-1]}])
    np.testing.assert_array_equal(batch["image"].numpy(), [image[:, ::-1], image[::-1]])


def test_params_of_different_forms_come_as_a_list(make: Make) -> None:
    """A batch of them is no error, and so it is where `ragged` names them."""
    expected = [
        "{}",
        "{'level': 1}",
        "{'level': 'three'}",
        "{'level': 2, 'xy': tensor([0., 0., 0.], dtype=torch.float64)}",
    ]
    options: dict[str, Any] = {"params": forms, "length": 4, "ordered": True}
    batch = next(iter(make("def sample(task): return {'x': task.index}", batch_size=4, **options)))
    assert [str(one) for one in batch["params"]] == expected
    batch = ab.collate(list(make("def sample(task): return {'x': task.index}", **options)))
    assert [str(one) for one in batch["params"]] == expected
    assert batch["x"].tolist() == [0, 1, 2, 3]
    same = make(LEVEL, batch_size=2, ragged=("params",), params={"level": 1}, length=2)
    assert next(iter(same))["params"] == [{"level": 1}] * 2


async def test_batches_of_a_stream_have_them_too(make: Make) -> None:
    """As numpy's arrays."""
    config = make(LEVEL, params=forms, start=4, length=4, ordered=True).config
    async with ab.BlenderStream(config) as stream:
        async for batch in stream.batches(4):
            np.testing.assert_array_equal(batch["params"]["xy"], [[4, 4], [5, 5], [6, 6], [7, 7]])


def test_the_name_is_reserved(make: Make) -> None:
    """A script that returns a value of this name is told so, as it is for `index`."""
    for name in ("params", "index"):
        body = f"def sample(task): return {{'x': 1, {name!r}: 2}}"
        with pytest.raises(ab.SampleError, match=f"value '{name}' is reserved: the frame's own {name} has this name"):
            next(iter(make(body)))


def test_mixed_items_have_params_only_if_both_parts_have(make: Make, tmp_path: Path) -> None:
    """PyTorch's own collate function can batch them either way."""
    for recorded_with, live_with, found in (({"level": 1}, {"level": 2}, {1, 2}), (None, {"level": 2}, set())):
        folder = tmp_path / f"recording-{recorded_with is None}"

        async def record(config: ab.StreamConfig, folder: Path = folder) -> None:
            await ab.BlenderStream(config).record(folder)

        asyncio.run(record(make(LEVEL, length=6, params=recorded_with).config))
        recorded = ab.RecordedDataset(folder)
        assert all(item.get("params") == recorded_with for item in recorded)
        items = list(ab.MixedDataset(make(LEVEL, params=live_with), recorded, length=20))
        assert {item["params"]["level"] for item in items if "params" in item} <= found
        assert {"params" in item for item in items} == {bool(found)}
        default_collate(items)


# -- steering ------------------------------------------------------------------------------------------------------


def test_feedback_changes_what_is_rendered_next(make: Make) -> None:
    """In a training loop, and from another thread; a flush gives up what was drawn before."""
    curriculum = ab.Curriculum(BINS, floor=0.0, temperature=0.01)
    dataset = make(LEVEL, params=curriculum, length=None, queue_size=4)
    iterator = iter(dataset)
    seen = []
    for _ in range(60):
        item = next(iterator)
        thread = threading.Thread(target=dataset.feedback, args=(item["index"], float(item["level"] == 2)))
        thread.start()
        thread.join()
        seen.append(item["params"]["level"])
    assert set(seen) == {0, 1, 2, 3}
    assert seen[-8:] == [2] * 8
    assert curriculum.weights()["level"][2] > 0.99
    assert dataset.flush() >= 0


def test_params_without_feedback_are_named(make: Make) -> None:
    """The error says what has it; what a Curriculum finds wrong is its own error."""
    with pytest.raises(
        ab.ConfigError, match=r"feedback needs params that have feedback\(.* ab.Curriculum; these are {}"
    ):
        make(LEVEL, params={}).feedback([0], [1.0])
    with pytest.raises(ab.ConfigError, match="sample 7 was not drawn from this Curriculum"):
        make(LEVEL, params=ab.Curriculum(BINS)).feedback([7], [1.0])


def test_iterators_of_both_kinds_steer_a_dataset(make: Make) -> None:
    """An asynchronous one is awaited in the stream's thread, which the training loop need not know."""
    levels = [5]

    def plain() -> Iterator[dict[str, int]]:
        while True:
            yield {"level": levels[0]}

    async def awaited() -> Any:
        for params in plain():
            await asyncio.sleep(0)
            yield params

    for params in (plain(), awaited()):
        levels[0] = 5
        dataset = make(LEVEL, params=params, length=8, instances=1, queue_size=1)
        iterator = iter(dataset)
        assert next(iterator)["level"] == 5
        levels[0] = 6
        assert [item["level"] for item in iterator][2:] == [6] * 5  # two were drawn already, at most


# -- workers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.exhaustive
def test_steering_is_refused_with_workers(workers: int, make: Make, load: Any) -> None:
    """Each has a copy of the params; the error says what to do. Afterwards this process may iterate again."""
    dataset = make(LEVEL, params=ab.Curriculum(BINS), length=8)
    advice = r"is for num_workers=0: each worker .*torch.zeros\(3\).share_memory_\(\)"
    with load(dataset, workers) as loading:
        for item in loading:
            with pytest.raises(ab.ConfigError, match=f"feedback {advice}"):
                dataset.feedback(item["index"], 1.0)
            with pytest.raises(ab.ConfigError, match=f"flush {advice}"):
                dataset.flush()
    for item in dataset:
        dataset.feedback(item["index"], 1.0)
    dataset.flush()

    def steer(item: Any) -> Any:
        return steered.feedback(item["index"], 1.0) if steered is not None else item

    steered = make(LEVEL, params=ab.Curriculum(BINS), length=8, transform=steer)
    with pytest.raises(ab.ConfigError, match=f"feedback {advice}"):
        load(steered, workers).items()


class Shared:
    """Reads its level from memory that is shared with the training process."""

    def __init__(self) -> None:
        self.level = torch.zeros(1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def __call__(self, index: int) -> dict[str, int]:
        return {"level": int(self.level)}


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_callable_may_read_shared_memory(start: str, make: Make, load: Any) -> None:
    """So a training loop can change params with workers too."""
    params = Shared()
    dataset = make(LEVEL, params=params, length=40, queue_size=2)
    with load(dataset, 2, start, prefetch_factor=1) as loading:
        iterator = iter(loading)
        assert next(iterator)["level"] == 0
        params.level.fill_(7)
        assert [item["level"] for item in iterator][-8:] == [7] * 8


def test_an_iterator_is_refused_with_workers(make: Make, load: Any) -> None:
    """Each would begin at the same place; as a fork it is refused when it iterates, otherwise when it is copied."""
    for start in ("fork", "spawn"):
        dataset = make(LEVEL, params=iter([{"level": 1}]), length=8)
        with pytest.raises(ab.ConfigError, match=r"params are an iterator, of which each worker .* would have a copy"):
            load(dataset, 2, start).items()


# -- state ---------------------------------------------------------------------------------------------------------


def test_a_resumed_dataset_goes_on_with_its_curriculum(make: Make) -> None:
    """Samples in flight keep their bins, feedback on them is known, and the weights are there at once."""

    def begin() -> tuple[ab.Curriculum, ab.BlenderDataset]:
        curriculum = ab.Curriculum(BINS, temperature=0.1)
        return curriculum, make(LEVEL, params=curriculum, length=30, ordered=True, queue_size=8)

    def train(dataset: ab.BlenderDataset, iterator: Any, steps: int) -> list[int]:
        levels = []
        for _ in range(steps):
            item = next(iterator)
            dataset.feedback(item["index"], float(item["level"]))
            levels.append(item["level"])
        return levels

    curriculum, dataset = begin()
    iterator = iter(dataset)
    train(dataset, iterator, 10)
    state = json.loads(json.dumps(dataset.state_dict()))
    leased = {one["position"]: one["tree"]["values"]["level"] for one in state["stream"]["params"]["drawn"]}
    rest = train(dataset, iterator, len(leased))

    other, resumed = begin()
    resumed.load_state_dict(state)
    assert other.state_dict() == state["stream"]["params"]["state"]
    assert resumed.state_dict() == state  # also before it is iterated
    assert train(resumed, iter(resumed), len(leased)) == rest == [leased[position] for position in sorted(leased)]
    assert other.weights() == curriculum.weights()


def test_params_keep_their_state_from_one_epoch_to_the_next(make: Make) -> None:
    """A state that is saved between two epochs has it."""
    curriculum = ab.Curriculum(BINS)
    dataset = make(LEVEL, params=curriculum, length=6)
    for item in dataset:
        dataset.feedback(item["index"], item["level"])
    dataset.set_epoch(1)
    state = json.loads(json.dumps(dataset.state_dict()))
    other = ab.Curriculum(BINS)
    resumed = make(LEVEL, params=other, length=6)
    resumed.load_state_dict(state)
    assert other.weights() == curriculum.weights()
    assert [item["index"] for item in resumed] != []
    with pytest.raises(ab.ConfigError, match="these params have no load_state_dict"):
        make(LEVEL, params={"level": 1}, length=6).load_state_dict(state)
