"""The scenes that come with asyncblend: what they give, and that a sample depends on its index alone."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

import asyncblend as ab
from asyncblend.scripts import script

SMALL = ("--width", "160", "--height", "120", "--samples", "1")
SAME = ("depth", "instance", "semantic", "bbox", "visible_fraction", "keypoints", "frame")
"""The values that are the same to the bit. Colours and normals are not: where a ray meets the edge between two triangles,
Cycles takes either, which differs from process to process."""


async def frames(name: str, real: Any, instances: int, **options: Any) -> list[ab.Frame]:
    """Return the first frames of one of the scenes, in order."""
    config = ab.StreamConfig(
        script=script(name),
        script_args=SMALL,
        blender=real.blender,
        instances=instances,
        length=4,
        ordered=True,
        seed=3,
    )
    async with asyncio.timeout(110), ab.BlenderStream(config, **options) as stream:
        return [frame async for frame in stream]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shapes.py", "falling_cubes.py", "supershape.py"])
async def test_a_sample_is_a_function_of_its_index(name: str, real: Any) -> None:
    """A sample is the same whichever instance makes it, and whatever that instance rendered or simulated before."""
    one, two = await frames(name, real, 1), await frames(name, real, 2)
    assert len(one) == len(two) == 4
    for before, after in zip(one, two, strict=True):
        apart = np.abs(before["image"].astype(int) - after["image"])
        assert apart.max() <= 1
        assert (apart > 0).mean() < 1e-3
        for key in SAME:
            assert (key in before) == (key in after)
            assert key not in before or np.array_equal(before[key], after[key]), (before.index, key)
    assert len({frame["image"].tobytes() for frame in one}) == 4


@pytest.mark.slow
async def test_shapes_have_all_labels(real: Any) -> None:
    """There are twelve objects of six classes, and boxes, fractions and classes agree with the masks."""
    for frame in await frames("shapes.py", real, 1):
        mask = frame["instance"]
        assert mask.shape == frame["semantic"].shape == frame["depth"].shape == (120, 160)
        assert frame["normal"].shape == frame["albedo"].shape == (120, 160, 3)
        assert sorted(frame["class_id"].tolist()) == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
        assert frame["keypoints"].shape == (12, 8, 3)
        assert len(frame["instances"]) == 12 + 14 + 1  # with the clutter and the floor
        for row in range(12):
            own = mask == frame["id"][row]
            assert (frame["semantic"][own] == frame["class_id"][row]).all()
            assert (frame["visible_fraction"][row] > 0) == own.any()
            if own.any():
                x, y, width, height = frame["bbox"][row].astype(int)
                assert own[y : y + height, x : x + width].sum() == own.sum()
                assert own[y].any() or own[y : y + height].any()
        assert np.isfinite(frame["depth"][mask > 0]).all()


@pytest.mark.slow
async def test_cubes_fall(real: Any) -> None:
    """The cubes are the lower the later the frame is, and none falls through the floor."""
    found = await frames("falling_cubes.py", real, 2, length=8)
    heights = {frame["frame"]: frame["bbox3d"][:, :, 2] for frame in found}
    first, last = min(heights), max(heights)
    assert first < last
    assert heights[last].mean() < heights[first].mean()
    assert min(height.min() for height in heights.values()) > -0.1
    for frame in found:
        assert (frame["flow_backward"][frame["instance"] == 0] == 0).all()
        # The boxes of the masks must lie within those of the meshes, which are read after the render.
        for (x, y, width, height), loose in zip(frame["bbox"], frame["bbox_loose"], strict=True):
            if width:
                assert x > loose[0] - 1.5
                assert y > loose[1] - 1.5
                assert x + width < loose[0] + loose[2] + 1.5
                assert y + height < loose[1] + loose[3] + 1.5


@pytest.mark.slow
async def test_supershapes_follow_their_params(real: Any) -> None:
    """The shape, its size, its hue and the view are as the params say, whatever was rendered before."""
    ball: dict[str, Any] = {"shape": ((4, 1, 1, 2, 2, 2),) * 2, "size": 1.0, "hue": 0.0, "view": (0.0, 0.4)}
    others: dict[str, dict[str, Any]] = {
        "wide": {"shape": ((4, 1.5, 1.5, 2, 2, 2), (4, 1, 1, 2, 2, 2))},
        "small": {"size": 0.5},
        "green": {"hue": 1 / 3},
        "behind": {"view": (3.0, 0.4)},
    }
    config = ab.StreamConfig(
        script=script("supershape.py"), script_args=SMALL, blender=real.blender, instances=1, seed=3
    )
    async with asyncio.timeout(110), ab.BlenderStream(config) as stream:
        first = await stream.render(0, ball)
        found = {name: await stream.render(0, {**ball, **change}) for name, change in others.items()}
        again = await stream.render(0, ball)

    def extent(frame: ab.Frame) -> Any:
        return np.ptp(frame["bbox3d"][0], axis=0)

    assert extent(first) == pytest.approx(2, abs=1e-2)
    assert extent(found["wide"]) == pytest.approx([3, 3, 2], abs=2e-2)
    assert extent(found["small"]) == pytest.approx(1, abs=1e-2)
    assert np.array_equal(first["image"], again["image"])
    assert np.array_equal(first["instance"], found["green"]["instance"])
    for hue, frame in ((0, first), (1, found["green"])):
        assert frame["image"][frame["instance"] == frame["id"][0]].mean(axis=0).argmax() == hue
    assert not np.array_equal(first["image"], found["behind"]["image"])
    assert first["class_name"] == ["supershape"]
