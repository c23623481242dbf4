"""The fit of scene parameters: its steps on functions that are known, and on pictures that Blender renders."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import asyncblend as ab
from examples import fit_parameters as example
from examples.fit_parameters import Array, Normal, centred, distances, ranked

ROOT = Path(__file__).parents[2]


def vectors_of(normal: Normal, rng: np.random.Generator, count: int) -> Array:
    half = rng.standard_normal((count // 2, len(normal.mean)))
    return normal.at(np.concatenate((half, -half)))


def test_steps_find_the_best_of_a_function() -> None:
    """The mean comes to the top of a hill that is a hundred times as steep one way as the other, and the spread falls."""
    rng, normal, top, steep = (
        np.random.default_rng(0),
        Normal(np.zeros(3), np.eye(3)),
        np.array([1.0, -2, 3]),
        [100, 1, 10],
    )
    for _ in range(150):
        vectors = vectors_of(normal, rng, 24)
        rewards = -(((vectors - top) ** 2) * steep).sum(axis=1)
        normal = normal.step(vectors, ranked(rewards, np.full(24, 1 / 24)), (1.0, 0.3))
    assert np.abs(normal.mean - top).max() < 1e-2
    assert normal.spread.max() < 1e-2


@pytest.mark.parametrize("advantages", [centred, ranked])
def test_what_another_distribution_drew_is_weighted(advantages: Callable[[Array, Array], Array]) -> None:
    """With the ratio of densities, samples of an earlier distribution lead to the same step as those of the present."""
    rng, now, then = np.random.default_rng(1), Normal(np.zeros(2), np.eye(2)), Normal(np.full(2, 0.4), 1.2 * np.eye(2))

    def stepped(source: Normal, weighted: bool) -> Array:
        vectors = source.at(rng.standard_normal((40_000, 2)))
        weights = np.exp(now.log_density(vectors) - source.log_density(vectors) if weighted else np.zeros(40_000))
        rewards = -((vectors - 3) ** 2).sum(axis=1)
        return now.step(vectors, advantages(rewards, weights / weights.sum()), (1.0, 0.1)).mean

    assert np.abs(stepped(now, True) - stepped(then, True)).max() < 0.05
    assert np.abs(stepped(now, True) - stepped(then, False)).max() > 0.1


def test_the_reward_finds_the_spread_too() -> None:
    """Where targets vary, the fit finds their mean and how much they vary."""
    rng, target = np.random.default_rng(2), Normal(np.array([1.0, -1.0]), np.diag([0.5, 0.2]))
    goals, normal = target.at(rng.standard_normal((200, 2))), Normal(np.zeros(2), np.eye(2))
    for _ in range(200):
        vectors = vectors_of(normal, rng, 64)
        rewards = distances(vectors, vectors).sum(axis=1) / 63 - distances(vectors, goals).mean(axis=1)
        normal = normal.step(vectors, centred(rewards, np.full(64, 1 / 64)), (0.4, 0.15))
    assert np.abs(normal.mean - target.mean).max() < 0.15
    assert np.abs(np.log(normal.spread / target.spread)).max() < 0.3


def test_the_twelve_numbers_come_back() -> None:
    """The numbers that are normally distributed are one to one with those of the superformulas."""
    problem = example.supershape()
    for normal, shape in ((problem.start, example.BALL), (problem.target, example.STAR)):
        assert np.allclose(problem.values(normal.mean[None])[0], np.ravel(shape))
    assert len(problem.names) == 12


@pytest.mark.slow
@pytest.mark.blender
@pytest.mark.exhaustive
async def test_renders_become_like_the_targets(bpy_kind: object) -> None:
    """After a few steps on Blender's renders, size and hue are closer to the targets, and so are the pictures."""
    problem, said = example.colour(), list[int]()
    async with ab.BlenderStream(script=example.SCRIPT, script_args=example.SMALL, blender="bpy", instances=2) as stream:
        run = await example.fit(stream, problem, 0, 15, lambda run, samples: said.append(len(run.errors)))
    assert said == list(range(1, 16))
    goal = example.described(problem, problem.target)[0]
    first, last = (np.abs(example.described(problem, run.path[at])[0] - goal) for at in (0, -1))
    assert (last < 0.6 * first).all()
    assert run.errors[-1] - run.floor < 0.5 * (run.errors[0] - run.floor)


@pytest.mark.slow
@pytest.mark.blender
@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["colour", "supershape"])
def test_the_whole_program(name: str, tmp_path: Path) -> None:
    """It finds the parameters, tells them in a table, and draws a chart."""
    command = [sys.executable, "examples/fit_parameters.py", name, "--blender", "bpy", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1700, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    start, floor, end = map(float, re.findall(r"^ *pixel error +(\S+) +(\S+) +(\S+)", done.stdout, re.MULTILINE)[0])
    assert end - floor < 0.2 * (start - floor), done.stdout
