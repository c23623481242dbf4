"""The whole way with real Blenders, on a cluster of two nodes that may have different ones."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asyncblend as ab

from .conftest import Cluster

pytest.importorskip("ray.data", reason='pip install ".[ray]"')
pytestmark = [
    pytest.mark.blender,
    pytest.mark.exhaustive,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]
ROOT = Path(__file__).parents[2]

CUBE = """
import bpy
scene = bpy.context.scene
scene.render.resolution_x, scene.render.resolution_y, scene.render.resolution_percentage = 64, 48, 100
scene.cycles.samples, scene.cycles.use_denoising, scene.render.engine = 1, False, "CYCLES"
cube = bpy.data.objects["Cube"]

def sample(task):
    cube.rotation_euler = task.rng.uniform(0, 6, 3)
    cube.location.x = task.params["x"]
    return {**bl.render(), "threads": scene.render.threads, "version": bpy.app.version_string}
"""

TOGETHER = """
import pathlib, time
import bpy

marks = pathlib.Path(r"{folder}")
(marks / bpy.app.version_string).touch()

def sample(task):
    while len(list(marks.iterdir())) < 2:
        time.sleep(0.01)
    time.sleep(0.4)  # so that the other node gets a batch before this one has made all of them
    return {{"version": bpy.app.version_string}}
"""
"""No sample ends before two versions of Blender run, and all of them take some seconds from then on."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that renders nothing, a node that finds the bpy module, and one that finds Debian's Blender."""
    executable = shutil.which("blender") or "blender"
    made = Cluster(
        {"num_cpus": 2, "env_vars": {"ASYNCBLEND_BLENDER": "bpy"}},
        {"num_cpus": 2, "env_vars": {"ASYNCBLEND_BLENDER": executable}},
    )
    yield made
    made.end()


def config_of(script: Path, **options: Any) -> ab.StreamConfig:
    """Return a config for a few small pictures."""
    return ab.StreamConfig(script=script, params=lambda index: {"x": index / 8}, length=24, seed=5, **options)


def test_rows_are_what_one_machine_renders(cluster: Cluster, real: Any, write_script: Callable[..., Path]) -> None:
    """Two actors of two Blenders each give the pixels of one fleet."""
    import asyncblend.ray

    config = config_of(write_script(CUBE), blender=real.blender)
    rows = asyncblend.ray.dataset(config, batch_size=4, actors=2, instances_per_actor=2, num_cpus=2).take_all()
    assert sorted(row["index"] for row in rows) == list(range(24))
    found = {row["index"]: row for row in rows}
    with ab.BlenderStream(config, instances=2, threads=2).sync() as stream:
        for frame in stream:
            np.testing.assert_array_equal(found[frame.index]["image"], frame["image"], strict=True)
            assert found[frame.index]["params"] == frame.params
    assert {row["threads"] for row in rows} == {1}


@pytest.fixture
def together(executable: Any, bpy_kind: Any, tmp_path: Path, write_script: Callable[..., Path]) -> ab.StreamConfig:
    """A config that each node renders with its own Blender."""
    (tmp_path / "marks").mkdir()
    return config_of(write_script(TOGETHER.format(folder=tmp_path / "marks")))


def test_blenders_may_be_mixed(cluster: Cluster, together: ab.StreamConfig) -> None:
    """Who says so gets rows of both."""
    import asyncblend.ray

    rows = asyncblend.ray.dataset(together, batch_size=2, actors=2, num_cpus=2, mixed_blenders=True).take_all()
    assert sorted(row["index"] for row in rows) == list(range(24))
    assert len({row["version"] for row in rows}) == 2


def test_a_warm_fleet_renders_what_ones_own_does(
    cluster: Cluster, real: Any, write_script: Callable[..., Path]
) -> None:
    """Samples with params, and cubes that fall for some frames: the same pixels, from the Blender that is named."""
    import asyncblend.ray

    falls = ROOT / "blender_scripts" / "falling_cubes.py"
    small = ("--width", "64", "--height", "48", "--samples", "1", "--cubes", "3", "--frames", "5")
    shared: dict[str, Any] = {"instances": 2, "blender": real.blender, "seed": 5, "threads": 1}
    params = {"x": 0.25}
    for script, arguments in ((write_script(CUBE), ()), (falls, small)):
        config = ab.StreamConfig(script=script, script_args=arguments, **shared)
        with ab.BlenderStream(config, params=params, length=3).sync() as stream:
            wanted = {(frame.index, frame.step): frame for frame in stream}
        asyncblend.ray.start(config, name="real", num_cpus=2)
        try:
            with ab.BlenderStream(fleet="real", params=params, length=3).sync() as stream:
                found = {(frame.index, frame.step): frame for frame in stream}
                assert stream.blender_version
        finally:
            asyncblend.ray.stop("real")
        assert found.keys() == wanted.keys()
        for name, frame in wanted.items():
            assert found[name].keys() == frame.keys()
            np.testing.assert_array_equal(found[name]["image"], frame["image"], strict=True)


@pytest.mark.timeout(600)
def test_the_example_trains(bpy_kind: Any, cluster: Cluster, tmp_path: Path) -> None:
    """Two workers train for two epochs on rows that the cluster renders, and the network is kept."""
    example = [sys.executable, "examples/ray_train.py", "--blender", "bpy", "--out", str(tmp_path), "--cpus", "0.5"]
    done = subprocess.run(
        [*example, "--samples", "160", "--address", cluster.address],
        cwd=ROOT, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "of the 80 rows of one worker" in done.stdout
    assert list(tmp_path.rglob("network.pt"))


def test_different_blenders_are_refused(cluster: Cluster, together: ab.StreamConfig) -> None:
    """The message names both nodes and versions."""
    import asyncblend.ray

    with pytest.raises(ab.ConfigError, match=r"has Blender .*, but node .* has .*, and their pixels differ"):
        asyncblend.ray.dataset(together, batch_size=2, actors=2, num_cpus=2).take_all()
