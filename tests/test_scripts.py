"""The scenes that come with asyncblend: what they give, and that a sample depends on its index alone."""

from __future__ import annotations

import asyncio
import colorsys
import itertools
import os
import signal
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
@pytest.mark.parametrize("name", ["shapes.py", "supershape.py", "pointer.py", "painted_cube.py"])
@pytest.mark.exhaustive
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
@pytest.mark.exhaustive
async def test_the_corners_of_the_painted_cube_are_told_apart_by_the_colours(real: Any) -> None:
    """The faces around a visible corner have other colours than those around the others."""
    for frame in await frames("painted_cube.py", real, 1):
        image, mask, corners = frame["image"], frame["instance"] == frame["id"][0], frame["keypoints"][0]
        assert 3 <= (corners[:, 2] == 2).sum() <= 7
        size = frame["bbox"][0, 2:].max()
        assert ((frame["bbox3d"][0].max(axis=0) - frame["bbox3d"][0].min(axis=0)) > 2).all()
        hues = [colorsys.rgb_to_hsv(*pixel)[0] for pixel in image[mask][:, :3] / 255]
        assert len(np.flatnonzero(np.histogram(hues, bins=12, range=(0, 1))[0] > 0.02 * mask.sum())) >= 2
        for x, y, visible in corners:
            if visible == 2:  # the cube's pixels begin there
                rows, columns = np.nonzero(mask)
                assert np.hypot(columns + 0.5 - x, rows + 0.5 - y).min() < max(1.5, 0.05 * size)


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


async def cubes(real: Any, **options: Any) -> dict[int, list[ab.Frame]]:
    """Return three episodes of falling cubes, with their frames in the order in which they came."""
    args = (*SMALL, "--frames", "6")
    config = ab.StreamConfig(
        script=script("falling_cubes.py"), script_args=args, blender=real.blender, seed=3, length=3, **options
    )
    found: dict[int, list[ab.Frame]] = {}
    async with asyncio.timeout(110), ab.BlenderStream(config) as stream:
        async for frame in stream:
            found.setdefault(frame.index, []).append(frame)
            if options.get("instances") == 1 and (frame.index, frame.step) == (1, 2):
                child: Any = stream._run._fleet._children[0]
                os.kill(child.pid, signal.SIGKILL)
    return found


@pytest.mark.slow
@pytest.mark.exhaustive
async def test_cubes_fall(real: Any) -> None:
    """Every frame comes once. The cubes fall freely at first, for none overlaps another, and none through the floor.

    Ids, boxes and flow agree from frame to frame. A Blender that is killed in the middle changes nothing.
    """
    found = await cubes(real, instances=2)
    again = await cubes(real, instances=1, queue_size=2)
    assert sorted(found) == sorted(again) == [0, 1, 2]
    for index, episode in found.items():
        assert [(frame.step, frame.last) for frame in episode] == [(step, step == 5) for step in range(6)]
        for one, other in zip(episode, again[index], strict=True):
            for key in SAME:
                assert key not in one or np.array_equal(one[key], other[key]), (index, one.step, key)
        heights = [frame["bbox3d"][:, :, 2] for frame in episode]
        assert heights[-1].mean() < heights[0].mean()
        assert min(height.min() for height in heights) > -0.1
        paths = np.stack([frame["bbox3d"].mean(axis=1) for frame in episode])
        first_move = np.diff(paths[:2], axis=0)[0]
        np.testing.assert_allclose(first_move, np.broadcast_to(first_move.mean(axis=0), first_move.shape), atol=2e-3)
        for frame in episode:
            np.testing.assert_array_equal(frame["id"], episode[0]["id"])
            assert (frame["flow_backward"][frame["instance"] == 0] == 0).all()
            # The boxes of the masks must lie within those of the meshes, which are read after the render.
            for (x, y, width, height), loose in zip(frame["bbox"], frame["bbox_loose"], strict=True):
                if width:
                    assert x > loose[0] - 1.5
                    assert y > loose[1] - 1.5
                    assert x + width < loose[0] + loose[2] + 1.5
                    assert y + height < loose[1] + loose[3] + 1.5
        for before, after in itertools.pairwise(episode):
            flows_to_the_same_object(before, after)


def flows_to_the_same_object(before: ab.Frame, after: ab.Frame) -> None:
    """Check that the flow leads from each cube's pixels to pixels of the same cube, but where something covers it."""
    rows, columns = np.nonzero(np.isin(before["instance"], before["id"]))
    x, y = (before["flow_forward"][rows, columns] + np.stack((columns, rows), 1) + 0.5).T
    height, width = before["instance"].shape
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    own = before["instance"][rows, columns][inside]
    then = after["instance"][y[inside].astype(int), x[inside].astype(int)]
    assert inside.any()
    assert (own == then).mean() > 0.85


@pytest.mark.slow
@pytest.mark.exhaustive
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


def test_an_unknown_script_is_told_which_there_are() -> None:
    """The modules that scripts import are none."""
    with pytest.raises(ab.ConfigError, match=r"has no script 'cub\.py'; it has: .*cube\.py.*model\.py") as caught:
        script("cub.py")
    assert not any(name in str(caught.value) for name in ("model_options", "model_scene", "cartpole_scene"))
