"""MixedDataset: live and recorded samples in a ratio, and training never waits for rendering."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch.utils.data import DataLoader

import asyncblend as ab
from asyncblend.testing import fake_blender

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]

LIMIT = 60.0  # seconds; the bound of failure of every wait here
SAMPLE = "def sample(task): return {'noise': task.rng.random(3), 'live': task.seed == 1}"


@pytest.fixture
def recorded(tmp_path: Path, write_script: Callable[..., Path]) -> Callable[..., ab.RecordedDataset]:
    """Ten recorded samples, of seed 0: `recorded(transform=...)`."""
    folder = tmp_path / "recording"

    def make(**options: Any) -> ab.RecordedDataset:
        if not folder.exists():
            fake = fake_blender(tmp_path / "recorded")
            stream = ab.BlenderStream(script=write_script(SAMPLE), blender=fake, instances=1, length=10)

            async def record() -> None:
                await stream.record(folder, shard_size=4)

            asyncio.run(record())
        return ab.RecordedDataset(folder, **options)

    return make


@pytest.fixture
def live(tmp_path: Path, write_script: Callable[..., Path]) -> Iterator[Callable[..., ab.BlenderDataset]]:
    """Live datasets of fakes, of seed 1: `live(faults={}, **options)`."""
    made: list[ab.BlenderDataset] = []

    def make(faults: dict[str, Any] | None = None, **options: Any) -> ab.BlenderDataset:
        fake = fake_blender(tmp_path / f"live{len(made)}", **(faults or {}))
        how = {"script": write_script(SAMPLE), "blender": fake, "instances": 1, "seed": 1, **options}
        made.append(ab.BlenderDataset(**how))
        return made[-1]

    yield make
    for dataset in made:
        dataset.close()


def kinds(items: Any) -> list[bool]:
    return [bool(item["live"]) for item in items]


def until_queued(dataset: ab.BlenderDataset) -> None:
    """Wait until all slots of the live part hold a frame that is ready."""
    while True:
        stats = dataset.stats()
        if stats is not None and stats.queued >= dataset.config.queue_size:
            return
        threading.Event().wait(0.002)


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (0.5, [False, True] * 6),
        (0.25, [False, False, False, True] * 3),
        (1.0, [True] * 12),
        (0.1, [False] * 9 + [True]),
        (0.3, [False, False, False, True, False, False, True, False, False, True] * 2),
        (0.75, [False, True, True, True] * 4),
        (0.9, [False, *[True] * 9] * 2),
    ],
)
@pytest.mark.exhaustive
def test_the_ratio_holds_while_live_ones_are_ready(
    ratio: float, expected: list[bool], live: Any, recorded: Any
) -> None:
    """It holds item by item."""
    own = live(queue_size=32)
    dataset = ab.MixedDataset(own, recorded(), ratio)
    iterator = iter(dataset)
    next(iterator)  # starts the fleet; a recorded one
    until_queued(own)
    if ratio == 1.0:
        assert kinds(itertools.islice(iterator, len(expected))) == expected
    else:
        assert kinds(itertools.islice(iterator, len(expected) - 1)) == expected[1:]
    counts = dataset.counts
    assert counts == {"live": sum(expected), "recorded": len(expected) - sum(expected) + (ratio == 1.0)}


class Ready:
    """An iteration of the live part that has a frame at every turn but the first `late` ones."""

    finished = False

    def __init__(self, late: int = 0) -> None:
        self._late = late

    def poll(self) -> ab.Frame | None:
        self._late -= 1
        return None if self._late >= 0 else ab.Frame({"live": True}, index=0, instance=0)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def hold(self) -> Callable[[], None]:
        return lambda: None

    def close(self) -> None:
        pass


@pytest.mark.parametrize("ratio", [0.3, 0.5, 2 / 3, 0.75, 0.9, 0.99])
@pytest.mark.exhaustive
def test_the_ratio_is_exact(ratio: float, live: Any, recorded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds at each item; of the live samples that were due but not ready, at most one is carried over."""
    own = live()
    monkeypatch.setattr(own, "_begin", lambda epoch, state, wait: Ready())
    mixed = kinds(itertools.islice(ab.MixedDataset(own, recorded(), ratio), 1000))
    assert [sum(mixed[:n]) for n in range(1001)] == [int(n * ratio + 1e-6) for n in range(1001)]
    monkeypatch.setattr(own, "_begin", lambda epoch, state, wait: Ready(late=30))
    mixed = kinds(itertools.islice(ab.MixedDataset(own, recorded(), ratio), 1000))
    late = mixed[mixed.index(True) :]
    assert abs(sum(late) - len(late) * ratio) <= 1 + 1e-6


def test_training_never_waits(live: Any, recorded: Any) -> None:
    """While Blenders never are ready, or never end a sample, recorded samples come, again and again."""
    for faults in ({"never_ready": True}, {"hang_after": 0}):
        own = live(faults)
        dataset = ab.MixedDataset(own, recorded(), 0.9)
        items = list(itertools.islice(dataset, 35))
        assert kinds(items) == [False] * 35
        assert [item["index"] for item in items] == [*range(10)] * 3 + [*range(5)]
        assert dataset.counts == {"live": 0, "recorded": 35}
        dataset.close()


def test_the_next_epochs_do_not_wait_either(
    live: Any, recorded: Any, tmp_path: Path, write_script: Callable[..., Path]
) -> None:
    """Epochs pass while the Blenders still start; once they are ready, they render the epoch of that moment."""
    gate = tmp_path / "gate"
    wait = f"import os, threading\nwhile not os.path.exists({str(gate)!r}): threading.Event().wait(0.005)\n"
    script = write_script(wait + SAMPLE, name="late.py")
    own = live(script=script, length=20, queue_size=32, timeouts=ab.Timeouts(start=LIMIT))
    dataset = ab.MixedDataset(own, recorded(), 0.5, length=20)
    for epoch in range(3):
        dataset.set_epoch(epoch)
        assert kinds(dataset) == [False] * 20
    dataset.set_epoch(3)
    iterator = iter(dataset)
    next(iterator)
    gate.touch()
    while (stats := own.stats()) is None or stats.queued < 20:
        threading.Event().wait(0.002)
    items = list(iterator)
    assert sorted(item["index"] for item in items if item["live"]) == list(range(60, 60 + sum(kinds(items))))
    assert 1 <= sum(kinds(items)) <= 10


def test_what_did_not_come_is_not_made_up_for(live: Any, recorded: Any) -> None:
    """After a long wait for the Blenders the ratio is as ever, but for one live sample."""
    own = live(queue_size=16)
    iterator = iter(ab.MixedDataset(own, recorded(), 0.5))
    for _ in range(20):
        next(iterator)
    until_queued(own)
    assert kinds(itertools.islice(iterator, 9))[1:] in ([False, True] * 4, [True, False] * 4)


def test_an_iteration_ends_with_the_last_live_one(live: Any, recorded: Any) -> None:
    """All live samples come, each once."""
    dataset = ab.MixedDataset(live(length=20), recorded(), 0.5)
    items = list(dataset)
    assert sorted(item["index"] for item in items if item["live"]) == list(range(20))
    assert dataset.counts == {"live": 20, "recorded": len(items) - 20}
    assert len(items) >= 39
    with pytest.raises(TypeError, match="no len"):
        len(dataset)


@pytest.mark.parametrize("length", [0, 1, 7, 50])
def test_an_iteration_of_a_length(length: int, live: Any, recorded: Any) -> None:
    """It has `length` items, live or not; when the live ones have ended, recorded ones go on."""
    dataset = ab.MixedDataset(live(length=10), recorded(), 0.5, length=length)
    assert len(dataset) == length
    for epoch in range(2):
        dataset.set_epoch(epoch)
        items = list(dataset)
        assert len(items) == length
        own = [item["index"] for item in items if item["live"]]
        assert set(own) <= set(range(10 * epoch, 10 * epoch + 10))
        assert len(own) == len(set(own)) <= (length + 1) // 2
    assert sum(dataset.counts.values()) == 2 * length


def test_an_endless_stream_has_no_end(live: Any, recorded: Any) -> None:
    """Live samples keep coming."""
    seen: set[int] = set()
    for item in ab.MixedDataset(live(), recorded(), 0.5):
        if item["live"]:
            seen.add(item["index"])
        if len(seen) == 50:
            break
    assert seen == set(range(50))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.exhaustive
def test_workers_share_both(workers: int, live: Any, recorded: Any) -> None:
    """Each live sample comes once; the training process sees what the workers count."""
    dataset = ab.MixedDataset(live(length=12, instances=2), recorded(), 0.5)
    loader: Any = DataLoader(dataset, batch_size=None, num_workers=workers, timeout=LIMIT)
    items = list(loader)
    assert sorted(item["index"] for item in items if item["live"]) == list(range(12))
    assert {item["index"] for item in items if not item["live"]} <= set(range(10))
    assert dataset.counts == {"live": 12, "recorded": len(items) - 12}


def test_steering_the_live_part_of_workers_is_refused(live: Any, recorded: Any) -> None:
    """Its params are theirs, and a change in the training process would be lost without a word."""
    part = live(length=12, instances=1, params=ab.Curriculum({"far": [1, 2]}))
    loader: Any = DataLoader(ab.MixedDataset(part, recorded(), 0.5), batch_size=None, num_workers=1, timeout=LIMIT)
    items = iter(loader)
    next(items)
    with pytest.raises(ab.ConfigError, match="workers"):
        part.flush()
    with pytest.raises(ab.ConfigError, match="workers"):
        part.feedback([0], [1.0])
    del items


@pytest.mark.exhaustive
def test_a_worker_without_a_blender_gives_recorded_ones(live: Any, recorded: Any) -> None:
    """With a length, all workers together have that many items; without one, such a worker has none."""
    dataset = ab.MixedDataset(live(instances=1), recorded(), 0.5, length=30)
    loader: Any = DataLoader(dataset, batch_size=None, num_workers=3, timeout=LIMIT)
    items = list(loader)
    assert len(items) == len(loader) == 30
    without = ab.MixedDataset(live(instances=1, length=6), recorded(), 0.5)
    loader = DataLoader(without, batch_size=None, num_workers=2, timeout=LIMIT)
    assert sorted(item["index"] for item in loader if item["live"]) == list(range(6))


@pytest.mark.parametrize("workers", [0, 1])
def test_ranks_have_equally_many_of_a_length(
    workers: int, live: Any, recorded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rank has the same number of items, so that they end together."""
    dataset = ab.MixedDataset(live(length=100), recorded(), 0.5, length=12)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        loader: Any = DataLoader(dataset, batch_size=None, num_workers=workers, timeout=LIMIT if workers else 0)
        assert len(list(loader)) == len(dataset) == 4


def test_batches_mix_samples(live: Any, recorded: Any) -> None:
    """Both kinds are in one batch, and the transform gets whole batches."""
    own = live(queue_size=16)
    dataset = ab.MixedDataset(own, recorded(), 0.5, batch_size=8, length=24, transform=lambda batch: batch["live"])
    assert len(dataset) == 3
    iterator = iter(dataset)
    next(iterator)
    until_queued(own)
    assert next(iterator).sum() in (4, 5)
    assert next(iterator).shape == (8,)


def test_each_part_has_its_own_transform(live: Any, recorded: Any) -> None:
    """The mix has one more, which gets what they made."""
    dataset = ab.MixedDataset(
        live(length=3, transform=lambda item: ("live", item["index"])),
        recorded(transform=lambda item: ("recorded", item["index"])),
        0.5,
        transform=lambda item: [item],
    )
    items = [item for (item,) in dataset]
    assert {kind for kind, _ in items} == {"live", "recorded"}


@pytest.mark.exhaustive
def test_errors_of_the_live_part_come_through(live: Any, recorded: Any) -> None:
    """Errors at its start come too, although nobody waits for the start."""
    once = ab.RestartPolicy(max_restarts=0)
    for faults, error in (
        ({"exit_at_start": 3}, ab.InstanceExited),
        ({"never_ready": True}, ab.StartTimeout),
        ({"crash_after": 2}, ab.CrashLoop),
    ):
        own = live(faults, timeouts=ab.Timeouts(start=0.5 if "never_ready" in faults else LIMIT), restart=once)
        with pytest.raises(error):
            for _ in ab.MixedDataset(own, recorded()):
                pass
    with pytest.raises(ab.ConfigError, match="does not exist"):
        for _ in ab.MixedDataset(live(script="nowhere.py"), recorded()):
            pass


def test_closing_and_going_on(live: Any, recorded: Any) -> None:
    """Closing stops the fleet, also while it starts; iterating again starts another."""
    dataset = ab.MixedDataset(live(length=30), recorded(), 0.5)
    for taken in (1, 20):
        list(itertools.islice(dataset, taken))
        dataset.close()
    stats = dataset.stats()
    assert stats is not None
    assert "ready" not in stats.state.values()
    assert sum(kinds(dataset)) == 30


def test_an_iteration_begun_again_while_the_fleet_starts(live: Any, recorded: Any) -> None:
    """Each iteration has all live samples."""
    dataset = ab.MixedDataset(live(length=10), recorded(), 0.5)
    for _ in range(3):
        next(iter(dataset))
    assert sorted(item["index"] for item in dataset if item["live"]) == list(range(10))


@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.parametrize("ready", [True, False])
def test_it_goes_on_from_a_state(ready: bool, batch_size: int | None, live: Any, recorded: Any) -> None:
    """Each live sample comes once, the recorded ones go on in their order, and the ratio counts on."""

    def make() -> tuple[ab.BlenderDataset, ab.MixedDataset]:
        own = live(length=20, queue_size=32)
        return own, ab.MixedDataset(own, recorded(transform=None), 0.3, batch_size=batch_size)

    def samples(items: Any) -> list[tuple[bool, int]]:
        if batch_size is None:
            return [(item["live"], item["index"]) for item in items]
        return [pair for item in items for pair in zip(item["live"].tolist(), item["index"].tolist(), strict=True)]

    for taken in (0, 1, 5, 20):
        own, first = make()
        iterator: Any = iter(first)
        before = samples(itertools.islice(iterator, min(taken, 1)))
        if taken and ready:
            while (stats := own.stats()) is None or stats.queued + stats.delivered < 20:
                threading.Event().wait(0.002)
        before += samples(itertools.islice(iterator, max(taken - 1, 0)))
        state = json.loads(json.dumps(first.state_dict()))
        assert state["given"] == len(before) == taken * (batch_size or 1)
        iterator.close()
        own, resumed = make()
        resumed.load_state_dict(state)
        after = samples(resumed)
        assert sorted(index for is_live, index in before + after if is_live) == list(range(20))
        of_recording = [index for is_live, index in before + after if not is_live]
        assert of_recording == [index % 10 for index in range(len(of_recording))]
        for dataset in (first, resumed):
            dataset.close()


def test_the_ratio_goes_on_from_a_state(live: Any, recorded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed mix is the mix that it would have been."""
    own = live(length=1000)
    monkeypatch.setattr(own, "_begin", lambda epoch, state, wait: Ready())
    for taken in range(1, 25):
        first = ab.MixedDataset(own, recorded(), 0.3, length=50)
        iterator = iter(first)
        before = kinds(itertools.islice(iterator, taken))
        second = ab.MixedDataset(own, recorded(), 0.3, length=50)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        mixed = before + kinds(second)
        assert [sum(mixed[:n]) for n in range(51)] == [int(n * 0.3 + 1e-6) for n in range(51)]


def test_wrong_parts_are_told(live: Any, recorded: Any) -> None:
    """The error says what is wrong, and what to do."""
    for parts, options, message in (
        ((recorded(), recorded()), {}, "live must be a BlenderDataset"),
        ((live(), live()), {}, "recorded must be a RecordedDataset"),
        ((live(batch_size=2), recorded()), {}, "live has a batch_size: give it to the MixedDataset"),
        ((live(), recorded(batch_size=2)), {}, "recorded has a batch_size"),
        ((live(transform=str), recorded()), {"batch_size": 2}, "live has a transform"),
        ((live(), recorded()), {"ratio": 0}, "ratio must be"),
        ((live(), recorded()), {"ratio": 1.5}, "ratio must be"),
        ((live(), recorded()), {"ratio": True}, "ratio must be"),
        ((live(), recorded()), {"length": -1}, "length must be"),
    ):
        with pytest.raises(ab.ConfigError, match=message):
            ab.MixedDataset(*parts, **options)


def test_the_params_of_the_live_part_are_set_back(live: Any, recorded: Any) -> None:
    """A Curriculum goes on with the losses that it had."""

    def make() -> tuple[ab.Curriculum, ab.MixedDataset]:
        curriculum = ab.Curriculum({"level": [0, 1, 2, 3]})
        return curriculum, ab.MixedDataset(live(params=curriculum, length=8), recorded(), 1.0)

    curriculum, mixed = make()
    item = next(item for item in mixed if item["live"])
    curriculum.feedback(item["index"], 5.0)
    state = json.loads(json.dumps(mixed.state_dict()))
    other, resumed = make()
    resumed.load_state_dict(state)
    assert other.state_dict() == curriculum.state_dict()
    assert sum(other.state_dict()["counts"]["level"]) == 1
    other.feedback(item["index"], 9.0)
    assert resumed.state_dict()["stream"]["params"]["state"] == other.state_dict()
    list(resumed)
    assert other.state_dict()["counts"] != curriculum.state_dict()["counts"]


def test_a_half_built_batch_counts_for_neither_part(live: Any, recorded: Any) -> None:
    """What it took of both is taken again."""
    seen = list[int]()

    def note(batch: dict[str, Any]) -> dict[str, Any]:
        if len(seen) > 5:
            raise ArithmeticError
        seen.extend(batch["index"][batch["live"]].tolist())
        return batch

    mixed = ab.MixedDataset(live(length=20), recorded(), 0.5, batch_size=4, transform=note)
    given = 0
    with pytest.raises(ArithmeticError):
        for batch in mixed:
            given += len(batch["index"])
    state = json.loads(json.dumps(mixed.state_dict()))
    assert state["given"] == given
    again = ab.MixedDataset(live(length=20), recorded(), 0.5, batch_size=4)
    again.load_state_dict(state)
    after = [index for batch in again for index in batch["index"][batch["live"]].tolist()]
    assert sorted(seen + after) == list(range(20))
