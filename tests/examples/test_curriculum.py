"""The example of a curriculum: what it trains and shows on real renders, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import asyncblend as ab
from examples import curriculum as example

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.blender
@pytest.mark.exhaustive
def test_what_is_hard_is_rendered_more_often(bpy_kind: object) -> None:
    """The network learns, and from the full range come more samples than from any narrow one."""
    config = ab.StreamConfig(script=example.SCRIPT, instances=2, blender="bpy")
    held_out = example.held_out_samples(config, 160)
    assert sorted(map(tuple, held_out["params"]["turn"])) == sorted(example.TURNS * 20)
    weights = ab.Curriculum({"turn": example.TURNS}, floor=0.2, temperature=0.02)
    dataset = ab.BlenderDataset(config, length=2400, params=weights, batch_size=example.BATCH)
    looks = list(example.train(dataset, weights, held_out, 0, 25))
    dataset.close()
    assert [look.samples for look in looks] == list(range(400, 2401, 400))
    assert looks[-1].loss < 0.4 * looks[0].loss
    shares = np.mean([look.weights for look in looks], axis=0)
    assert shares.argmax() == 7
    assert shares[7] > 0.25


def test_the_goal_is_reached_where_the_mean_stays_below() -> None:
    """A curve that rises again has not reached it."""
    looks = [
        [example.Look(16 * k, loss, []) for k, loss in enumerate(losses, 1)] for losses in ((4, 1, 4, 1), (1, 1, 1, 1))
    ]
    np.testing.assert_allclose(example.mean_loss(looks), [2, 1, 2, 1])
    assert [example.reached(looks, goal) for goal in (2, 1.5, 0.5)] == [16, 64, None]


def test_the_table_says_what_is_counted() -> None:
    """Its last column is about coming to the goal and staying there, and tells the goal."""
    looks = [[example.Look(16 * k, loss, []) for k, loss in enumerate((4, 1, 2, 2), 1)]]
    columns = example.table({"all ranges alike": looks}, 2.0).columns
    assert [column.header for column in columns][1:] == [
        *("held-out loss, mean", "its runs", "comes to 2.000 and stays there after")
    ]
    assert list(columns[-1].cells) == ["32 samples"]


@pytest.mark.slow
@pytest.mark.blender
@pytest.mark.exhaustive
def test_the_whole_program(bpy_kind: object, tmp_path: Path) -> None:
    """It trains both kinds, tells what they came to, and draws a chart."""
    out = tmp_path / "new" / "chart.png"
    small = ("--samples", "320", "--held-out", "16", "--runs", "2", "--blender", "bpy", "--out", str(out))
    command = [sys.executable, "examples/curriculum.py", *small]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    assert "all ranges alike  0." in done.stdout
    assert "curriculum        0." in done.stdout
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.exhaustive
@pytest.mark.slow
def test_too_few_samples_are_refused() -> None:
    """The message has the numbers that are needed."""
    command = [sys.executable, "examples/curriculum.py", "--samples", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2
    assert "at least 16 samples" in done.stderr
