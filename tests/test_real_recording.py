"""A real Blender's samples on the disk: what is read is what was rendered."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import asyncblend as ab
from asyncblend.recording import Recording
from asyncblend.scripts import script

pytestmark = pytest.mark.blender


def same(one: Any, other: Any) -> bool:
    return bool(torch.equal(one, other) and one.dtype == other.dtype if isinstance(one, torch.Tensor) else one == other)


@pytest.mark.slow
def test_recorded_items_are_the_live_ones(real: Any, tmp_path: Path) -> None:
    """A recording of cube.py that was interrupted equals the live items to the bit, and names its version of Blender."""
    config = ab.StreamConfig(
        script=script("cube.py"),
        script_args=["--width", "96", "--height", "64"],
        blender=real.blender,
        instances=2,
        seed=3,
        length=8,
    )

    async def interrupted() -> None:
        async with ab.BlenderStream(config) as stream:
            async for _ in stream.record(tmp_path, shard_size=3):
                if stream.stats().delivered == 4:
                    break

    async def finished() -> int:
        stream = ab.BlenderStream(config)
        count = await stream.record(tmp_path, shard_size=3)
        assert stream.stats().delivered == 4
        return count

    asyncio.run(interrupted())
    assert asyncio.run(finished()) == 8
    live = ab.BlenderDataset(config, ordered=True)
    try:
        expected = list(live)
    finally:
        live.close()
    recorded = ab.RecordedDataset(tmp_path)
    items = list(recorded)
    assert [item["index"] for item in items] == list(range(8))
    for item, own in zip(items, expected, strict=True):
        assert item.keys() == own.keys()
        assert all(same(item[name], own[name]) for name in own)
    (batch,) = DataLoader(recorded, batch_size=8)
    assert batch["image"].shape == (8, 64, 96, 3)
    assert Recording(tmp_path).about["blender"].startswith(real.version)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_no_other_blender_goes_on_with_a_recording(tmp_path: Path) -> None:
    """The module's recording is not continued by the executable, nor the other way round: their versions differ."""
    executable = shutil.which("blender") or pytest.skip("there is no Blender executable here")
    for name, one, other in (("module", "bpy", executable), ("executable", executable, "bpy")):
        config = ab.StreamConfig(script=script("cube.py"), script_args=["--width", "16", "--height", "16"], length=4)

        async def record(blender: str, length: int, config: ab.StreamConfig = config, name: str = name) -> int:
            return await ab.BlenderStream(config, blender=blender, instances=1).record(tmp_path / name, length=length)

        assert asyncio.run(record(one, 2)) == 2
        with pytest.raises(
            ab.ConfigError, match=r"has a recording of Blender \d.*, and this is \d.*, whose pixels differ"
        ):
            asyncio.run(record(other, 4))
        assert asyncio.run(record(one, 4)) == 4
