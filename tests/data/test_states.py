"""Saved states of datasets: plain data, and refused where they do not fit."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed

import asyncblend as ab
from asyncblend.testing import fake_blender

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]

Make = Callable[..., Any]
SAMPLE = "def sample(task): return {'x': task.rng.random(3)}"


@pytest.fixture
def recording(tmp_path: Path, write_script: Callable[..., Path]) -> Callable[..., Path]:
    """Record ten samples: `recording("name", seed=0)`."""

    def record(name: str, **options: Any) -> Path:
        fake = fake_blender(tmp_path / "recorded")
        how = {"length": 10, "instances": 1, "script": write_script(SAMPLE, name="recorded.py"), **options}

        async def run() -> None:
            await ab.BlenderStream(blender=fake, **how).record(tmp_path / name, shard_size=4)

        asyncio.run(run())
        return tmp_path / name

    return record


@pytest.fixture
def makers(make: Make, recording: Callable[..., Path]) -> dict[str, Make]:
    """Make each kind of dataset: `makers["mixed"](ratio=0.5, live={}, recorded={})`."""
    folder = recording("recording")

    def mixed(ratio: float = 0.5, live: Any = (), recorded: Any = (), **options: Any) -> ab.MixedDataset:
        parts = (make(SAMPLE, **{"length": 12, **dict(live)}), ab.RecordedDataset(folder, **dict(recorded)))
        return ab.MixedDataset(*parts, ratio, **options)

    return {
        "live": lambda **options: make(SAMPLE, **{"length": 12, **options}),
        "recorded": lambda **options: ab.RecordedDataset(**{"folder": folder, **options}),
        "mixed": mixed,
    }


def saved(dataset: Any, taken: int = 2) -> dict[str, Any]:
    iterator = iter(dataset)
    for _ in range(taken):
        next(iterator)
    iterator.close()
    state: dict[str, Any] = dataset.state_dict()
    plain = json.loads(json.dumps(state))
    assert plain == state  # no tuples, no numbers as keys
    return plain  # type: ignore[no-any-return]


def test_what_does_not_fit_is_refused_with_both_values(
    makers: dict[str, Make], recording: Any, tmp_path: Path, write_script: Any
) -> None:
    """The error says what to do, and comes when the state is loaded, before a Blender starts."""
    states = {kind: saved(make()) for kind, make in makers.items()}
    other = write_script(SAMPLE, name="other.py")
    longer = recording("longer", length=11)
    again = recording("again", seed=1)
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("live", {"seed": 1}, "has seed=0, and this BlenderDataset has 1; resume with the same value, or begin"),
        ("live", {"length": 13}, "has length=12, and this BlenderDataset has 13"),
        ("live", {"length": None}, "has length=12, and this BlenderDataset has None"),
        ("live", {"start": 5}, "has start=0, and this BlenderDataset has 5"),
        ("live", {"shard": (0, 2)}, "has ranks=1, and this BlenderDataset has 2; resume with as many ranks"),
        ("live", {"script": other}, r"has script='script\.py', and this BlenderDataset has 'other\.py'"),
        ("live", {"script_args": ["-x"]}, r"has script_args=\[\], and this BlenderDataset has \['-x'\]"),
        ("recorded", {"shuffle": True}, "has shuffle=False, and this RecordedDataset has True"),
        ("recorded", {"seed": 3}, "has seed=0, and this RecordedDataset has 3"),
        ("recorded", {"folder": longer}, r"has recording\.samples=10, and this RecordedDataset has 11"),
        ("recorded", {"folder": again}, r"has recording\.seed=0, and this RecordedDataset has 1"),
        ("mixed", {"ratio": 0.25}, r"has ratio=0\.5, and this MixedDataset has 0\.25"),
        ("mixed", {"length": 9}, "has length=None, and this MixedDataset has 9"),
        ("mixed", {"live": {"seed": 2}}, r"has live\.seed=0, and this MixedDataset has 2"),
        ("mixed", {"recorded": {"shuffle": True}}, r"has recorded\.shuffle=False, and this MixedDataset has True"),
    ]
    for kind, options, message in cases:
        dataset = makers[kind](**options)
        with pytest.raises(ab.ConfigError, match=message):
            dataset.load_state_dict(states[kind])
        assert dataset.stats() is None
    for kind, make in makers.items():
        wrong = {"live": "recorded", "recorded": "mixed", "mixed": "live"}[kind]
        for state, message in (
            (states[wrong], f"the saved state is of a {states[wrong]['dataset']}, and this is a"),
            ({**states[kind], "format": 2}, "has format 2, and this asyncblend reads format 1; load it with"),
            ({"epoch": 0, "stream": {}}, "saved by an earlier asyncblend"),
            ({"_snapshot": {}}, "that of a StatefulDataLoader, whose own load_state_dict takes it"),
            ({**states[kind], "epoch": -1}, "epoch must be a whole number"),
            ({**states[kind], "more": 1}, "not a saved state of a"),
            ({**states[kind], "of": None}, "not a saved state of a"),
            ({}, "not a saved state of a"),
            (None, "not a saved state of a"),
            (5, "not a saved state of a"),
        ):
            with pytest.raises(ab.ConfigError, match=message):
                make().load_state_dict(state)
    for kind, name, value in (("recorded", "given", -1), ("mixed", "given", True), ("mixed", "due", "x")):
        with pytest.raises(ab.ConfigError):
            makers[kind]().load_state_dict({**states[kind], name: value})
    damaged = makers["live"]()
    damaged.load_state_dict({**states["live"], "stream": {**states["live"]["stream"], "watermark": 13}})
    with pytest.raises(ab.ConfigError, match="not a saved state of these 12 indices"):
        list(damaged)


def test_the_same_elsewhere_is_accepted(makers: dict[str, Make], recording: Any, tmp_path: Path) -> None:
    """Neither folders nor what changes no sample count: other processes, batches and queues."""
    folder = (tmp_path / "recording").rename(tmp_path / "moved")
    state = saved(makers["recorded"](folder=folder))
    moved = makers["recorded"](folder=folder.rename(tmp_path / "elsewhere"), batch_size=3)
    moved.load_state_dict(state)
    assert [index for batch in moved for index in batch["index"].tolist()] == list(range(2, 10))
    state = saved(makers["live"](instances=1))
    live = makers["live"](instances=2, queue_size=3, batch_size=5, ordered=True)  # another folder, too
    live.load_state_dict(state)
    assert sum(len(batch["index"]) for batch in live) == 10


@pytest.mark.parametrize("kind", ["live", "mixed"])
def test_a_changed_script_is_told(kind: str, makers: dict[str, Make], caplog: pytest.LogCaptureFixture) -> None:
    """It is a warning: a mended script is often why a training is resumed."""
    state = saved(makers[kind]())
    with caplog.at_level(logging.WARNING, logger="asyncblend"):
        same = makers[kind]()
        same.load_state_dict(state)
        assert not caplog.records
        part = makers[kind]()
        script = Path((part if kind == "live" else part._live).config.script)
        script.write_text(script.read_text() + "# mended\n")
        part.load_state_dict(state)
    (record,) = caplog.records
    assert record.getMessage().startswith("The script script.py has been changed since the state was saved")


@pytest.mark.parametrize("kind", ["live", "recorded", "mixed"])
def test_a_plain_dataloader_with_workers(kind: str, makers: dict[str, Make], load: Any) -> None:
    """It cannot resume: the state of one process is none of its workers', and theirs is not known here."""
    dataset = makers[kind]()
    dataset.load_state_dict(saved(makers[kind]()))
    message = r"has workers=0, and this \w+ has 2; .* StatefulDataLoader"
    with load(dataset, 2) as loading, pytest.raises(ab.ConfigError, match=message) as caught:
        list(loading)
    assert "Traceback" not in str(caught.value)
    fresh = makers[kind]()
    with load(fresh, 1) as loading:
        next(iter(loading))
        with pytest.raises(ab.ConfigError, match="StatefulDataLoader save the state"):
            fresh.state_dict()


def test_a_state_of_another_rank_is_refused(makers: dict[str, Make], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank has its own share, so that a checkpoint that only rank 0 saved is not enough."""
    states = {kind: saved(make()) for kind, make in makers.items()}
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    of_rank_0 = {kind: saved(make()) for kind, make in makers.items()}
    for kind, make in makers.items():
        with pytest.raises(ab.ConfigError, match=r"has ranks=1, and this \w+ has 2; resume with as many ranks"):
            make().load_state_dict(states[kind])
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    for kind, make in makers.items():
        with pytest.raises(ab.ConfigError, match=r"has rank=0, and this \w+ has 1; .*give each rank the state"):
            make().load_state_dict(of_rank_0[kind])
