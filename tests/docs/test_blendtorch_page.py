"""What the page for users of blendtorch shows is run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asyncblend as ab
from tests.docs.running import run_block

pytestmark = [pytest.mark.blender, pytest.mark.slow]


@pytest.mark.exhaustive
def test_the_origins_outline(folder: Path, size: tuple[int, int]) -> None:
    """Ten batches of four come through the origin's names."""
    lines = run_block(folder, "bt.Receiver").splitlines()
    assert len(lines) == 10
    start = f"torch.Size([4, {size[1]}, {size[0]}, 3]) torch.Size([4, 8, 2]) tensor(["
    assert all(line.startswith(start) for line in lines)


@pytest.mark.exhaustive
def test_the_origins_streaming_dataset(folder: Path, size: tuple[int, int]) -> None:
    """Two workers give sixteen transformed items in batches of four."""
    assert (
        run_block(folder, "def item_transform").splitlines()
        == [f"torch.Size([4, {size[1]}, {size[0]}, 3]) torch.Size([4, 8, 2])"] * 4
    )


@pytest.mark.exhaustive
def test_the_origins_file_dataset(folder: Path, size: tuple[int, int]) -> None:
    """Eight samples are recorded, and come in another order."""
    lines = run_block(folder, "def record").splitlines()
    indices = [int(i) for line in lines for i in re.findall(r"\d+", line.partition("]")[0])]
    assert sorted(indices) == list(range(8)) != indices
    assert all(line.endswith(f"torch.Size([4, {size[1]}, {size[0]}, 3])") for line in lines)


@pytest.mark.exhaustive
def test_the_origins_duplex_channel_and_animation(folder: Path) -> None:
    """Six episodes of five frames come, those begun later from higher up, and then one that was asked for.

    Its cube falls, and a second run gives the same pixels.
    """
    *lines, nearest = run_block(folder, "# one question").splitlines()
    found = [line.split(maxsplit=2) for line in lines]
    assert sorted(int(index) for index, *_ in found) == list(range(6))
    heights = [float(height) for _, height, _ in found]
    assert heights[0] == 0 < max(heights)  # the last to come may have been begun first, by a slow Blender
    assert all(shape == "(5, 48, 64)" for *_, shape in found)
    assert 5 < float(nearest) < 12

    first: list[dict[str, Any]] = []
    again: list[dict[str, Any]] = []
    for episodes, order in ((first, (0, 1)), (again, (1, 0))):
        with ab.BlenderStream(script=folder / "animated.py", instances=1).sync() as stream:
            episodes += [dict(stream.render(index)) for index in order]
    for one, other in zip(first, reversed(again), strict=True):
        for name in ("image", "depth", "normal"):
            np.testing.assert_array_equal(one[name], other[name])
        low = [np.argwhere(np.isfinite(depth))[:, 0].mean() for depth in one["depth"]]
        assert low[0] < low[2] < low[4]
