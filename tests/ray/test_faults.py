"""Actors, Blenders and nodes that die: each row comes once, with the pixels of a stream on one machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import asyncblend as ab
from asyncblend.testing import fake_blender

from .conftest import Cluster, until

pytest.importorskip("ray.data", reason='pip install ".[ray]"')
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]

LENGTH = 480
HELD = """
import pathlib, time
HERE = pathlib.Path(r"{folder}")

def sample(task):
    while task.index >= 96 and not (HERE / "go").exists():
        time.sleep(0.01)
    n = int(task.rng.integers(0, 4))
    return {{"image": task.rng.integers(0, 256, (24, 32, 3), np.uint8), "bbox": task.rng.random((n, 4))}}
"""
"""Most of the samples wait for a file, so that whatever dies before it is there has rows still to make. There are more of
them than two actors take up at once: of a third one that finds none left, Ray would make an end."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that renders nothing, and two nodes."""
    made = Cluster({"num_cpus": 1}, {"num_cpus": 1})
    yield made
    made.end()


@pytest.fixture
def config(tmp_path: Path, write_script: Callable[..., Path]) -> ab.StreamConfig:
    """A script whose samples wait for the file `go`."""
    script = write_script(HELD.format(folder=tmp_path))
    return ab.StreamConfig(script=script, blender=fake_blender(tmp_path / "fake"), seed=3, length=LENGTH)


def check(rows: list[dict[str, object]], config: ab.StreamConfig) -> None:
    """Compare rows with the frames of one fleet on this machine."""
    assert sorted(row["index"] for row in rows) == list(range(LENGTH))  # type: ignore[type-var]
    by_index = {row["index"]: row for row in rows}
    with ab.BlenderStream(config, instances=2).sync() as stream:
        for frame in stream:
            for name, array in frame.items():
                found = by_index[frame.index][name]
                np.testing.assert_array_equal(found, array, strict=True)  # type: ignore[arg-type]


@pytest.mark.timeout(600)
@pytest.mark.exhaustive
def test_an_actor_a_blender_and_a_node_die(cluster: Cluster, config: ab.StreamConfig, tmp_path: Path) -> None:
    """All in one execution, each in the middle of its batches."""
    import asyncblend.ray

    node = cluster.add(num_cpus=1)
    rows = iter(asyncblend.ray.dataset(config, batch_size=16, actors=3).iter_rows())
    found = [next(rows)]
    until(lambda: len(cluster.blenders()) == 3)
    blender = cluster.blenders()[0]
    actor = blender.ppid()
    os.kill(actor, signal.SIGKILL)
    until(lambda: not blender.is_running())
    next(other for other in cluster.blenders() if other.ppid() != actor).kill()
    cluster.remove(node)
    (tmp_path / "go").touch()
    check([*found, *rows], config)
