"""The environment that the fleet starts a Blender in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import asyncblend as ab
from asyncblend.stream.frames import Frames
from asyncblend.stream.passes import Pass
from asyncblend.stream.run import Run
from asyncblend.testing import fake_blender

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

NAMES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_CONF", "OPENBLAS_NUM_THREADS")
BODY = f"""
import os

def sample(task):
    return {{name: os.environ.get(name) for name in {NAMES}}}
"""


async def test_blenders_keep_their_memory_unless_the_user_says_otherwise(
    write_script: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The allocators' settings reach the process, and settings of the user are not changed."""
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.setenv("MALLOC_CONF", "tcache:true")
    blender = str(fake_blender(tmp_path / "fake"))
    async with ab.BlenderStream(script=str(write_script(BODY)), blender=blender, instances=1, length=1) as stream:
        frames = [frame async for frame in stream]
    assert int(frames[0]["MALLOC_MMAP_THRESHOLD_"]) == 32 << 20
    assert int(frames[0]["MALLOC_TRIM_THRESHOLD_"]) >= 1 << 30
    assert frames[0]["OPENBLAS_NUM_THREADS"] == "1"
    assert frames[0]["MALLOC_CONF"] == "tcache:true"


async def test_numbers_that_begin_elsewhere_choose_the_same_arguments(
    write_script: Callable[..., Path], tmp_path: Path
) -> None:
    """An instance of a run that numbers from 4 on has the arguments of its place, and its GPU by its number."""
    script = write_script("""
import os, sys
def sample(task):
    return {"about": [task.instance, sys.argv[1:], os.environ["CUDA_VISIBLE_DEVICES"]]}
""")
    blender = fake_blender(tmp_path / "fake")
    config = ab.StreamConfig(script=script, script_args=[["a"]], blender=blender, instances=1, length=1, gpus=[0, 1, 2])
    run = Run(config, first_instance=4)
    await run.begin()
    try:
        (frame,) = [frame async for frame in Frames(run, Pass(config))]
    finally:
        await run.aclose()
    assert frame["about"] == [4, ["a"], "1"]
    assert frame.instance == 4
    assert run.stats().frames == {4: 1}
