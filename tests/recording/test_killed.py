"""Killing with SIGKILL at any moment: whole shards stay readable, and the next run completes the recording."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset  # noqa: F401  # imported before the forks, which all need it

import asyncblend as ab
from asyncblend.recording import Recording, is_recording, read
from asyncblend.recording.writer import ShardSize, Writer
from asyncblend.testing import fake_blender

from .conftest import ABOUT, files_of, values_of

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")

FORK: Any = multiprocessing.get_context("fork")
COUNT = 10
CALLS = ("open", "write", "fsync", "replace", "unlink", "close", "ftruncate")


def in_a_fork(work: Callable[[], None]) -> int:
    """Run `work` in a fork and return its exit status. A negative one is the signal that killed it."""
    process = FORK.Process(target=work)
    process.start()
    process.join(60)
    status = process.exitcode
    process.kill()
    process.join()
    assert status is not None, "it did not end"
    return int(status)


def write_all(folder: Path) -> None:
    writer = Writer(folder, ABOUT, ShardSize(4))
    writer.open()
    for index in range(COUNT):
        writer.add(index, files_of(index))
    writer.close()


def kill_at(moment: int) -> None:
    """Have this process killed by SIGKILL before its `moment`-th system call from now that changes a file."""
    calls = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        return call

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))


def whole(folder: Path) -> list[int]:
    """Return the indices of the samples that can be read, after checking their content."""
    if not is_recording(folder):
        return []
    found = []
    for sample in read(folder):
        expected = values_of(sample.index)
        np.testing.assert_array_equal(sample["image"], expected["image"])
        np.testing.assert_array_equal(sample["depth"], expected["depth"])
        found.append(sample.index)
    return found


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_writer_killed_at_any_of_its_calls(tmp_path: Path) -> None:
    """Whichever system call is a writer's last, whole shards can be read, and the next writer adds what is missing."""
    ends = []
    for moment in range(1, 200):
        folder = tmp_path / str(moment)

        def work(folder: Path = folder, moment: int = moment) -> None:
            kill_at(moment)
            write_all(folder)

        status = in_a_fork(work)
        ends.append(len(found := whole(folder)))
        assert found == list(range(len(found)))
        if status == 0:
            break
        assert status == -signal.SIGKILL
        assert in_a_fork(lambda folder=folder: write_all(folder)) == 0  # type: ignore[misc]
        assert whole(folder) == list(range(COUNT))
        assert {path.suffix for path in folder.iterdir()} == {".tar", ".json", ""}
    assert ends == sorted(ends)
    assert set(ends) == {0, 4, 8, 10}
    assert len(ends) > 20


@pytest.mark.slow
def test_a_recording_killed_again_and_again(tmp_path: Path, write_script: Callable[..., Path]) -> None:
    """When the host dies at random moments, together with its Blenders, each sample is recorded once in the end."""
    folder = tmp_path / "recording"
    fake = fake_blender(tmp_path / "fake")
    script = write_script("def sample(task): return {'image': task.rng.integers(0, 256, (6, 8, 3), np.uint8)}")

    (tmp_path / "temporary").mkdir()

    def record() -> None:
        # A host that is killed after its Blenders have ended leaves its run's folder. This test is not about that.
        tempfile.tempdir = str(tmp_path / "temporary")
        stream = ab.BlenderStream(script=script, blender=fake, instances=2, seed=5, length=600)
        asyncio.run(_record(stream, folder))

    rng, kills, before = np.random.default_rng(0), 0, 0
    for _ in range(100):
        process = FORK.Process(target=record)
        process.start()
        # Kill it a little after there are a few more shards, so that it is anywhere in the next one.
        more = before + int(rng.integers(1, 12))
        while process.is_alive() and len(list(folder.glob("*.tar"))) < more:
            threading.Event().wait(0.001)
        process.join(float(rng.uniform(0, 0.02)))
        done = process.exitcode == 0
        process.kill()
        process.join()
        if done:
            break
        kills += 1
        recorded = Recording(folder).indices.tolist() if is_recording(folder) else []
        assert len(set(recorded)) == len(recorded)
        before = len(list(folder.glob("*.tar")))
    else:
        pytest.fail("it never came to its end")
    assert kills >= 1
    assert [sample.index for sample in read(folder)] == list(range(600))
    for sample in read(folder):
        expected = np.random.default_rng([5, sample.index]).integers(0, 256, (6, 8, 3), np.uint8)
        np.testing.assert_array_equal(sample["image"], expected)


async def _record(stream: ab.BlenderStream, folder: Path) -> None:
    await stream.record(folder, shard_size=6)
