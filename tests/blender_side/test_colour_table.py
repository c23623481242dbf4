"""The table of view transforms that mix the channels: it is near to Blender, and does not depend on what it has seen."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from asyncblend.blender.capture.colour_table import ColourTable, fill_colour_table
from asyncblend.blender.capture.display import DisplayTable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BLENDER = """
from asyncblend.blender.capture.display import display_table
from asyncblend.blender.capture.shown import shown

scene = bpy.context.scene
view = scene.view_settings
results, rng = {}, np.random.default_rng(0)
count = 640 * 6
random = 2 ** rng.uniform(-12, 6, (count, 3))
random[rng.random(random.shape) < 0.1] = 0
near = 2 ** rng.uniform(-10, 5, (count, 1)) * 2 ** rng.normal(0, 1, (count, 3))
grey = np.repeat(2 ** rng.uniform(-12, 6, (count, 1)), 3, axis=1)
below = rng.uniform(-0.3, 1.5, (count, 3))
special = rng.choice([np.inf, -np.inf, np.nan, 1e30, -1e-30, 0.0, 0.5], (count, 3))
colours = np.concatenate([random, near, grey, below, special]).astype(np.float32)
linear = np.ones((len(colours) // 640, 640, 4), np.float32)
linear[..., :3] = colours.reshape(-1, 640, 3)
for transform, look in [("AgX", "None"), ("AgX", "AgX - Very High Contrast"), ("AgX", "AgX - Punchy"),
                        ("Filmic", "None"), ("Filmic", "High Contrast"), ("Khronos PBR Neutral", "None"),
                        ("Khronos PBR Neutral", "Very Low Contrast")]:
    try:
        view.look, view.view_transform, view.gamma = "None", transform, 1.0
        view.look = look
    except TypeError:  # this Blender has no such transform or look
        continue
    for gamma, exposure in [(1, 0), (1.3, -0.7)] if look == "None" else [(1, 0)]:
        view.gamma, view.exposure = gamma, exposure
        image = display_table().apply(linear)[::-1].reshape(-1, 3).astype(int)
        scaled = colours * np.float32(2.0**exposure)
        off = np.abs(image - shown(scene, scaled)).max(axis=1)
        results[f"{transform}, {look}, {gamma}"] = [int(part.max()) for part in off.reshape(5, -1)]
if hasattr(bpy.data, "colorspace"):
    view.look, view.view_transform, view.gamma, view.exposure = "None", "AgX", 1, 0
    display_table().apply(linear[:6])  # so there is a table for the primaries of before
    bpy.ops.wm.set_working_color_space(working_space="Linear Rec.2020")
    image = display_table().apply(linear[:6])[::-1].reshape(-1, 3).astype(int)
    results["AgX, Rec.2020"] = [int(np.abs(image - shown(scene, random.astype(np.float32))).max())]
(OUT / "results.json").write_text(json.dumps(results))
"""


@pytest.mark.blender
@pytest.mark.exhaustive
@pytest.mark.slow
def test_blender_shows_the_same(in_blender: Callable[[str], Path]) -> None:
    """Random, near grey, grey, partly negative and special colours are within 1/255, also with other primaries."""
    results: dict[str, Any] = json.loads((in_blender(BLENDER) / "results.json").read_text())
    assert len(results) >= 3
    assert {name: off for name, off in results.items() if max(off) > 1} == {}


def mixed(colours: npt.NDArray[np.float32], bits: int = 8) -> npt.NDArray[Any]:
    """Show colours less saturated and with a curve; blue has an edge where red is 1."""
    with np.errstate(invalid="ignore"):
        known = np.nan_to_num(colours.astype(np.float64).clip(0, 1e6))
    values = known @ np.array([[0.8, 0.1, 0.1], [0.15, 0.7, 0.1], [0.05, 0.2, 0.8]])
    values /= values + 0.2
    values[:, 2] *= np.where(known[:, 0] > 1, 0.5, 1)
    shown: npt.NDArray[Any] = values * (2**bits - 1) + 0.5
    return shown.astype(np.uint8 if bits == 8 else np.uint16)


def table() -> ColourTable:
    found = fill_colour_table(mixed)
    assert found is not None
    return found


def pixels(seed: int, rows: int = 40) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    linear = np.ones((rows, 50, 4), np.float32)
    linear[..., :3] = 2 ** rng.uniform(-10, 4, (rows, 50, 3))
    linear[0, :5, :3] = [[0, 0, 0], [-1, 0.5, 0.5], [np.inf, 1, 1], [np.nan, 0, 0], [1e-30, 1e30, 1e-30]]
    return linear


def shown(linear: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = mixed(linear[..., :3].reshape(-1, 3)).reshape(*linear.shape[:2], 3)
    return values[::-1]


def test_colours_are_near_also_on_an_edge() -> None:
    linear = pixels(0)
    linear[1:9, :, 0] = np.linspace(0.98, 1.02, 400, dtype=np.float32).reshape(8, 50)
    image = DisplayTable(table(), mixed).apply(linear)
    assert np.abs(image.astype(int) - shown(linear)).max() <= 1


@pytest.mark.exhaustive
def test_few_colours_are_shown_one_by_one() -> None:
    asked = []

    def counted(colours: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        asked.append(len(colours))
        return mixed(colours)

    DisplayTable(table(), counted).apply(pixels(0, rows=400))
    assert sum(asked) < 0.1 * 400 * 50
    assert len(asked) == 1


def test_an_image_does_not_depend_on_those_before() -> None:
    """It is the same as the first image of a table, after others, and one pixel at a time."""
    one, other = DisplayTable(table(), mixed), DisplayTable(table(), mixed)
    linear, before = pixels(1), pixels(2)
    first = one.apply(linear)
    other.apply(before)
    np.testing.assert_array_equal(other.apply(linear), first)
    np.testing.assert_array_equal(one.apply(linear), first)
    alone = DisplayTable(table(), mixed)
    for row, column in [(0, 0), (0, 4), (7, 3), (30, 49)]:
        pixel = np.ascontiguousarray(linear[row : row + 1, column : column + 1])
        np.testing.assert_array_equal(alone.apply(pixel)[0, 0], first[::-1][row, column])


def test_too_many_edges_are_no_table() -> None:
    def stripes(colours: npt.NDArray[np.float32], bits: int = 8) -> npt.NDArray[Any]:
        assert bits == 8
        values: npt.NDArray[Any] = np.log2(colours + 1e-6).sum(axis=1, keepdims=True) * [40, 90, 130] % 256
        return values.astype(np.uint8)

    assert fill_colour_table(stripes) is None
