"""StatefulDataLoader of torchdata: a training that stops anywhere and goes on in another process, exactly."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import asyncblend as ab
from asyncblend.scripts import script as packaged
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
SPAWN = {"multiprocessing_context": "spawn"}
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


def check(
    make: Make, kind: str, options: dict[str, Any], loader: dict[str, Any], stops: Any, *, sets_epoch: bool = True
) -> None:
    """Check for each of some stops that each sample comes once, before or after it, with its content."""

    def training() -> Training:
        return Training(make(transform=paired, **options), sets_epoch=sets_epoch, **loader)

    for stop, before, after, whole in run_and_resume(training, stops):
        if kind == "mixed":  # recorded samples come as they are needed
            before, after, whole = ([one for one in samples if one[1][1] >= 0] for samples in (before, after, whole))
        assert sorted(before + after) == sorted(whole), f"stopped at step {stop}"
        second = 0 if kind == "recorded" or not sets_epoch else LENGTH
        assert sorted(index for index, _ in whole) == sorted([*range(LENGTH), *range(second, second + LENGTH)])


def some(steps: int) -> list[int]:
    """Stop in the first epoch, with its last batch, after it, and in the second one."""
    return [1, steps // 2 - 2, steps // 2 - 1, steps - 3]


def each(steps: int) -> list[int]:
    """Stop everywhere."""
    return list(range(steps))


@pytest.mark.parametrize(
    ("kind", "options", "loader"),
    [
        pytest.param("live", {"batch_size": 4}, {"batch_size": None}, marks=pytest.mark.exhaustive),
        ("live", {}, {"batch_size": 4, "num_workers": 2}),
        pytest.param("mixed", {}, {"batch_size": 4, "num_workers": 1}, marks=pytest.mark.exhaustive),
    ],
)
@pytest.mark.slow
def test_each_sample_comes_once(
    kind: str, options: dict[str, Any], loader: dict[str, Any], makers: dict[str, Make]
) -> None:
    """What came before a stop and what came after it are the samples of both epochs, each with its content."""
    check(makers[kind], kind, options, loader, some)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("kind", "workers", "sets_epoch", "batched", "persistent"),
    [
        *((kind, 0, batched, batched, False) for kind in ("live", "recorded", "mixed") for batched in (True, False)),
        ("live", 1, True, True, True),
        ("live", 3, False, True, False),
        ("recorded", 2, True, False, True),
        ("mixed", 2, False, True, False),
    ],
)
@pytest.mark.slow
def test_each_sample_comes_once_wherever_it_stops(
    sets_epoch: bool, batched: bool, persistent: bool, workers: int, kind: str, makers: dict[str, Make]
) -> None:
    """After every batch, or some where it takes long; with and without set_epoch, with batches of the dataset and the loader."""
    options = {"batch_size": 4} if batched else {}
    loader = {"batch_size": None if batched else 4, "num_workers": workers}
    if workers:
        loader["persistent_workers"] = persistent
    check(makers[kind], kind, options, loader, some if workers or kind == "mixed" else each, sets_epoch=sets_epoch)


@pytest.mark.exhaustive
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.slow
def test_spawned_workers(workers: int, makers: dict[str, Make]) -> None:
    """They get what is saved by pickle, and not by being copies of this process."""
    check(makers["live"], "live", {}, {"batch_size": 4, "num_workers": workers, **SPAWN}, some)


@pytest.mark.parametrize(("kind", "workers"), [("recorded", 2), ("live", 2)])
@pytest.mark.exhaustive
@pytest.mark.slow
def test_snapshots_every_few_steps(kind: str, workers: int, makers: dict[str, Make]) -> None:
    """Torchdata then repeats the steps since the last snapshot, so the order must be the same: live ones are ordered."""
    options = {"ordered": True} if kind == "live" else {}
    loader = {"batch_size": 2, "num_workers": workers, "snapshot_every_n_steps": 3}
    check(makers[kind], kind, options, loader, each if kind == "recorded" else some)


@pytest.mark.parametrize("kind", ["live", "recorded", "mixed"])
@pytest.mark.parametrize(("before", "now"), [(1, 2), (2, 1)])
@pytest.mark.exhaustive
@pytest.mark.slow
def test_another_number_of_workers_is_refused(before: int, now: int, kind: str, makers: dict[str, Make]) -> None:
    """The error has both numbers, and is the dataset's own, with no traceback of the worker in it."""
    with contextlib.closing(Training(makers[kind](transform=paired), batch_size=4, num_workers=before)) as training:
        _, checkpoint = next(training.run())
    with contextlib.closing(Training(makers[kind](transform=paired), batch_size=4, num_workers=now)) as training:
        message = (
            rf"^the saved state has workers={before}, and this \w+ has {now}; resume with the num_workers that was"
        )
        with pytest.raises(ab.ConfigError, match=message) as caught:
            next(training.run(checkpoint))
        caught.value.__traceback__ = None  # it holds torchdata's iterator, which would take seconds to end its workers


@pytest.mark.parametrize(("before", "now", "missing"), [(0, 1, "_snapshot"), (1, 0, "_num_yielded")])
def test_workers_or_none_is_told_by_torchdata(before: int, now: int, missing: str, makers: dict[str, Make]) -> None:
    """It asks no dataset before, so the error is its own, as the README says."""
    with contextlib.closing(Training(makers["recorded"](transform=paired), num_workers=before)) as training:
        _, checkpoint = next(training.run())
    with (
        contextlib.closing(Training(makers["recorded"](transform=paired), num_workers=now)) as training,
        pytest.raises(AssertionError, match=f"State doesn't contain key '{missing}'"),
    ):
        next(training.run(checkpoint))


TRAINER = """
import hashlib, json, os, signal, sys
from pathlib import Path
from torchdata.stateful_dataloader import StatefulDataLoader
import asyncblend as ab

if __name__ == "__main__":
    script, blender, workers, file = sys.argv[1:]
    dataset = ab.BlenderDataset(
        script=script, script_args=["--width", "48", "--height", "32", "--samples", "1"], blender=blender, instances=2,
        length=6,
    )
    loader = StatefulDataLoader(dataset, batch_size=2, num_workers=int(workers))
    epoch, seen, steps = 0, [], 0
    if os.path.exists(file):
        saved = json.loads(Path(file).read_text())
        epoch, seen = saved["epoch"], saved["seen"]
        loader.load_state_dict(saved["loader"])
    for epoch in range(epoch, 2):
        dataset.set_epoch(epoch)
        for batch in loader:
            images = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in batch["image"]]
            seen += zip(batch["index"].tolist(), images)
            saved = {"epoch": epoch, "seen": seen, "loader": loader.state_dict()}
            Path(file).write_text(json.dumps(saved))
            steps += 1
            if steps == int(os.environ.get("STEPS", -1)):
                os.kill(os.getpid(), signal.SIGKILL)
    dataset.close()
"""


@pytest.mark.slow
@pytest.mark.blender
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.exhaustive
def test_a_killed_training_goes_on_in_another_process(
    workers: int, bpy_kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Blender: after two SIGKILLs the pixels are those of a training that nobody killed."""
    trainer = tmp_path / "trainer.py"
    trainer.write_text(TRAINER)

    def run(file: str, steps: int | None = None) -> int:
        monkeypatch.setenv("STEPS", str(steps or -1))
        arguments = [packaged("cube.py"), bpy_kind.blender, workers, tmp_path / file]
        done = subprocess.run(
            [sys.executable, "-W", "ignore", trainer, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=4 * LIMIT,
            check=False,
        )
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        return done.returncode

    def seen(file: str) -> Any:
        return sorted(json.loads((tmp_path / file).read_text())["seen"])

    assert [run("killed", 2), run("killed", 2), run("killed")] == [-signal.SIGKILL, -signal.SIGKILL, 0]
    assert run("whole") == 0
    assert seen("killed") == seen("whole")
    assert [index for index, _ in seen("whole")] == list(range(12))
