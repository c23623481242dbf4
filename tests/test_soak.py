"""The soak would notice what it looks for, and it finds nothing wrong in a few seconds of faults."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asyncblend as ab
from asyncblend.testing import fake_blender
from benchmarks.soak import scene
from benchmarks.soak.faults import ENDING, KILL, KINDS, STOP, Recoveries
from benchmarks.soak.hosts import DESCRIPTORS, Hosts
from benchmarks.soak.ledger import Counts, Ledger
from benchmarks.soak.memory import Trend

_ROOT = Path(__file__).parents[1]


def a_frame(index: int, **instead: Any) -> ab.Frame:
    """Return the frame that a Blender makes for seed 0, with these values instead of its own."""
    rng = np.random.default_rng([0, index])
    values = {
        "draw": rng.random(4),
        "noise": rng.integers(0, 256, 100_000, np.uint8),
        "image": np.full(scene.IMAGE, index, np.uint8),
        **scene.params(index),
    }
    return ab.Frame(values | instead, index=index, instance=0, params=scene.params(index))


@pytest.mark.parametrize(
    ("frames", "lost", "duplicates", "wrong"),
    [
        pytest.param([a_frame(3), a_frame(4), a_frame(5)], 0, 0, 0, id="all is well"),
        pytest.param([a_frame(5), a_frame(3)], 1, 0, 0, id="lost"),
        pytest.param([a_frame(3), a_frame(4), a_frame(4), a_frame(5)], 0, 1, 0, id="twice"),
        pytest.param([a_frame(3), a_frame(4), a_frame(5), a_frame(6)], 0, 0, 1, id="of another pass"),
        pytest.param([a_frame(3), a_frame(4, draw=np.zeros(4)), a_frame(5)], 0, 0, 1, id="content"),
        pytest.param([a_frame(3), a_frame(4, tag=0), a_frame(5)], 0, 0, 1, id="params"),
        pytest.param([a_frame(3, image=np.zeros((1, 1, 3)))], 2, 0, 1, id="shape"),
    ],
)
def test_the_ledger_notices(frames: list[ab.Frame], lost: int, duplicates: int, wrong: int) -> None:
    """The ledger counts frames that are missing, come twice, or are not what seed and index make of them."""
    ledger = Ledger(seed=0)
    ledger.begin(range(3, 6))
    for frame in frames:
        ledger.frame(frame)
    ledger.end()
    assert ledger.counts == Counts(len(frames), passes=1, lost=lost, duplicates=duplicates, wrong=wrong)
    assert bool(ledger.details) == (lost + duplicates + wrong > 0)


def test_an_image_must_be_the_same_in_the_pass_that_repeats() -> None:
    """The ledger counts an index whose image differs between two passes as wrong."""
    ledger = Ledger(seed=0)
    for image in (np.zeros(scene.IMAGE, np.uint8), np.ones(scene.IMAGE, np.uint8)):
        ledger.begin(range(1))
        ledger.frame(a_frame(0, image=image))
        ledger.end()
    assert ledger.counts == Counts(frames=2, passes=2, wrong=1)


def test_what_a_cancelled_pass_did_not_deliver_is_not_lost() -> None:
    """What came twice before it was cancelled counts all the same."""
    ledger = Ledger(seed=0)
    ledger.begin(range(3, 6))
    for index in (3, 5, 5):
        ledger.frame(a_frame(index))
    ledger.cancel()
    assert ledger.counts == Counts(frames=3, passes=1, cancelled=1, duplicates=1)
    assert ledger.details == ["pass 1, range(3, 6): index 5 came twice"]


def test_a_frame_of_another_consumer_is_wrong() -> None:
    """The params, and what Blender made with them, have the consumer's number."""
    ledgers = [Ledger(0, number) for number in (0, 1)]
    for ledger in ledgers:
        ledger.begin(range(1))
        ledger.frame(a_frame(0))
    assert [ledger.counts.wrong for ledger in ledgers] == [0, 1]
    assert Counts.total(ledger.counts for ledger in ledgers) == Counts(frames=2, passes=2, wrong=1)


def test_a_recovery_ends_with_a_frame_of_the_next_life() -> None:
    """A late frame of the life that was hit ends no recovery, and of several faults only the last is timed."""
    recoveries = Recoveries()
    recoveries.hit(0, STOP, 10)
    recoveries.frame(0, 10)
    recoveries.frame(1, 11)
    assert recoveries.open == 1
    recoveries.hit(0, KILL, 12)
    assert recoveries.was_hit(0, 12)
    recoveries.frame(0, 13)
    assert (recoveries.open, recoveries.hit_again) == (0, 1)
    assert {kind: len(seconds) for kind, seconds in recoveries.seconds.items() if seconds} == {KILL: 1}


def test_memory_that_grows_is_not_flat() -> None:
    """Memory may grow in the first quarter, in which everything warms up, but not later."""
    assert Trend.of([0.0, *[100.0] * 7]).flat
    assert not Trend.of([100.0 + 10 * i for i in range(8)]).flat


async def test_what_is_wrong_with_another_host_is_a_problem(tmp_path: Path) -> None:
    """It gets no frames, neither before it is killed nor with few descriptors. Nothing of it is left."""
    script = tmp_path / "scene.py"
    script.write_text("raise ArithmeticError")
    hosts = Hosts(
        ab.StreamConfig(script=script, blender=fake_blender(tmp_path / "fake")), tmp_path / "hosts", patience=60
    )
    await hosts.kill(random.Random(0), killed=pytest.fail)
    rng = random.Random(next(seed for seed in range(100) if random.Random(seed).randint(*DESCRIPTORS) > 120))
    await hosts.starve(rng)
    killed, starved = hosts.problems
    assert killed.startswith("a killed host: no frame came: ")
    assert starved.startswith("a host with 12")
    assert all("ArithmeticError" in problem for problem in hosts.problems)
    assert (hosts.gone, hosts.served, hosts.refused) == ([], 0, 0)
    assert not any(hosts.folder.glob("*/tmp/*"))


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_short_soak_loses_nothing(tmp_path: Path) -> None:
    """Each kind of fault happens, however short it is; every figure that must be 0 is 0; and there are plot and table."""
    figures = tmp_path / "soak.json"
    command = [sys.executable, "-m", "benchmarks", "soak", "--minutes", "0.1", "--chaos"]
    done = subprocess.run(
        [*command, "--json", str(figures), "--out", str(tmp_path)],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(figures.read_text(encoding="utf-8"))
    assert found["frames"] > 0
    assert found["lost"] == found["duplicates"] == found["wrong"] == found["not_recovered"] == 0
    assert list(found["faults"]) == list(KINDS)
    assert all(found["faults"].values()), found["faults"]
    assert found["lives_ended"] == sum(found["faults"][kind] for kind in ENDING) <= found["restarts"]
    assert found["bad_messages"] > 16  # of the Blender that was expelled for them
    assert sum(found["few_descriptors"].values()) == found["faults"]["few descriptors"]
    assert found["gone_seconds"]["count"] == found["faults"]["killed host"]
    assert list(found["consumers"]) == ["quick", "slow", "cancelled"]
    assert all(own["frames"] > 0 and own["passes"] > 0 for own in found["consumers"].values())
    assert found["consumers"]["cancelled"]["cancelled"] > 0
    for name in ("frames", "passes", "cancelled", "lost", "duplicates", "wrong"):
        assert found[name] == sum(own[name] for own in found["consumers"].values())
    assert found["left"] == found["problems"] == []
    assert (found["fleet"], found["kind"], found["version"], found["instances"]) == ("3 fakes", "fake", None, 3)
    heading, rule, *lines = found["markdown"]
    assert (heading, rule) == ("| fleet | 3 fakes |", "|---|---|")
    assert f"| frames | {found['frames']:,} |" in lines
    assert all(f"| faults: {kind} | {count} |" in lines for kind, count in found["faults"].items())
    assert (tmp_path / "soak.png").stat().st_size > 0
