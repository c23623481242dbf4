"""A sample is a function of (seed, index)."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from asyncblend.blender.serving.seeding import seed_everything
from asyncblend.blender.serving.task import make_task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(autouse=True)
def unseeded() -> Iterator[None]:
    """Restore the global generators for the tests that follow."""
    python, legacy = random.getstate(), np.random.get_state()
    yield
    random.setstate(python)
    np.random.set_state(legacy)


def draws() -> tuple[float, float]:
    return random.random(), float(np.random.random())


def test_a_task_has_the_generator_that_the_design_promises() -> None:
    expected = np.random.default_rng([5, 17]).random(4)
    task = make_task(index=17, seed=5, instance=0, params={})
    np.testing.assert_array_equal(task.rng.random(4), expected)
    assert (task.rng.random(4) != expected).all()  # it is one generator, which goes on


def test_same_seed_and_index_give_the_same_global_draws() -> None:
    seed_everything(5, 17)
    first = draws()
    draws()
    seed_everything(5, 17)
    assert draws() == first


def test_each_seed_and_index_give_their_own_draws() -> None:
    seen: set[float] = set()
    for seed, index in [(0, 0), (0, 1), (1, 0), (1, 1), (2**40, 2**40)]:
        seed_everything(seed, index)
        seen.update(draws())
    assert len(seen) == 10


@pytest.mark.parametrize(("seed", "index"), [(-1, 0), (0, -1)])
def test_refuses_negative_numbers(seed: int, index: int) -> None:
    with pytest.raises(ValueError, match="non-negative"):
        seed_everything(seed, index)


def test_does_not_import_bpy() -> None:
    code = "import sys; from asyncblend.blender.serving.seeding import seed_everything as s; s(0, 0); sys.exit('bpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=Path(__file__).parents[2])


SCRIPT = """
from asyncblend.blender import render
from asyncblend.blender.serving.seeding import seed_everything
from mathutils import noise

scene = bpy.context.scene
other = bpy.data.scenes.new("Other")
scene.render.engine = "CYCLES"
scene.render.resolution_x, scene.render.resolution_y = 64, 48
scene.cycles.samples, scene.cycles.use_denoising = 1, False
scene.world.node_tree.nodes["Background"].inputs["Color"].default_value = (0.5, 0.5, 0.5, 1)
scene.render.use_persistent_data = True

seeds, noises = [], []
for index in (1, 2, 1):
    seed_everything(0, index)
    seeds.append([scene.cycles.seed, other.cycles.seed])
    noises.append(noise.random())
    np.save(OUT / f"{len(seeds)}.npy", render()["image"])
(OUT / "results.json").write_text(json.dumps({"seeds": seeds, "noises": noises}))
"""


@pytest.mark.blender
def test_seeds_cycles_and_mathutils_also_with_persistent_data(in_blender: Callable[[str], Path]) -> None:
    out = in_blender(SCRIPT)
    results = json.loads((out / "results.json").read_text())
    (first, second, again), (one, two, three) = results["seeds"], results["noises"]
    assert first == again != second
    assert first[0] == first[1]
    assert one == three != two
    images = [np.load(out / f"{n}.npy") for n in (1, 2, 3)]
    np.testing.assert_array_equal(images[0], images[2])
    assert (images[0] != images[1]).any()
