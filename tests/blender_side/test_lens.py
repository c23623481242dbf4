"""The arithmetic of a camera, without Blender."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from asyncblend import ConfigError
from asyncblend.blender.scene.lens import (
    Frame,
    checked_intrinsics,
    extrinsics,
    frame_of,
    lens_settings,
    to_camera,
    to_pixels,
)

GOOD = [[500.0, 0.0, 320.0], [0.0, 500.0, 240.0], [0.0, 0.0, 1.0]]


def changed(row: int, column: int, value: float) -> list[list[float]]:
    matrix = [list(line) for line in GOOD]
    matrix[row][column] = value
    return matrix


@pytest.mark.parametrize(
    ("K", "message"),
    [
        ("K", "3 x 3 matrix of numbers, got 'K'"),
        (None, "3 x 3 matrix of"),
        ([[1, 0, 0], [0, 1, 0]], r"the shape \(2, 3\)"),
        (changed(0, 2, float("nan")), "finite"),
        (changed(1, 1, 0), "must be positive, got 500.0 and 0.0"),
        (changed(0, 0, -500), "must be positive, got -500.0"),
        (changed(0, 1, 3), r"no skew: K\[0, 1\]"),
        (changed(1, 0, -1), r"no skew: K\[0, 1\]"),
        (changed(2, 2, 2), r"divide K by K\[2, 2\]"),
        (changed(1, 1, 2), "at most 200 times as wide"),
    ],
)
def test_intrinsics_that_no_camera_of_blender_has(K: Any, message: str) -> None:
    """They raise a ConfigError that says what is wrong."""
    with pytest.raises(ConfigError, match=message):
        checked_intrinsics(K)


def test_skew_of_rounding_is_none() -> None:
    """A skew as small as calibrations leave by rounding is accepted."""
    assert checked_intrinsics(changed(0, 1, 1e-9))[0, 1] == 1e-9


@pytest.mark.parametrize(
    ("fit", "fx", "fy", "expected"),
    [
        # A sensor of 36 mm for 640 pixels, or for 480: f / 36 mm = fx / pixels.
        ("AUTO", 640, 640, ((1, 1), (0, 0), 36, 36, 1)),
        ("HORIZONTAL", 320, 320, ((1, 1), (0, 0), 18, 36, 2)),
        ("VERTICAL", 480, 480, ((1, 1), (0, 0), 36, 36, 1)),
        # Pixels twice as high: the image is 640 x 960 in widths of a pixel, and the longer side is the other one.
        ("AUTO", 960, 480, ((1, 2), (0, 0), 36, 36, 1)),
        # 0.9 mm would be too short for Blender.
        ("AUTO", 16, 16, ((1, 1), (0, 0), 1, 40, 40)),
    ],
)
def test_settings_by_hand(fit: str, fx: float, fy: float, expected: tuple[Any, ...]) -> None:
    """Simple cases give what is calculated by hand."""
    K = np.array([[fx, 0, 320], [0, fy, 240], [0, 0, 1.0]])
    found: tuple[Any, ...] = lens_settings(K, Frame(640, 480, 0, 0, 640, 480), fit, 36.0)
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, wanted)


def test_shift_by_hand() -> None:
    """Blender's shifts move the sensor, so the image's content moves the other way, in parts of the fitted side."""
    K = np.array([[640, 0, 320 - 64], [0, 640, 240 - 32], [0, 0, 1.0]])
    frame = Frame(640, 480, 0, 0, 640, 480)
    np.testing.assert_allclose(lens_settings(K, frame, "AUTO", 36.0).shift, (0.1, -0.05))
    cropped = frame._replace(left=64, top=32)
    np.testing.assert_allclose(lens_settings(K, cropped, "AUTO", 36.0).shift, (0, 0), atol=1e-12)


def test_frames_are_rounded_as_blender_does() -> None:
    """Sizes are those that Blender renders: rounded down for the percentage, and each border rounded by itself."""
    render = SimpleNamespace(
        resolution_x=64,
        resolution_y=48,
        resolution_percentage=100,
        use_border=True,
        use_crop_to_border=True,
        border_min_x=0.13,
        border_max_x=0.71,
        border_min_y=0.2,
        border_max_y=0.77,
    )
    assert frame_of(render) == (64, 48, 8, 12, 37, 27)
    render.use_crop_to_border = False
    assert frame_of(render) == (64, 48, 0, 0, 64, 48)
    render.resolution_percentage = 33
    assert frame_of(render) == (21, 15, 0, 0, 21, 15)


@pytest.mark.parametrize("perspective", [True, False])
def test_what_has_no_place_is_nan(perspective: bool) -> None:
    """Depths that are not finite, and points not in front of a perspective camera, give NaN without a warning."""
    K = np.array(GOOD)
    points = to_camera(K, np.full((3, 2), 320.0), np.array([np.inf, np.nan, 2]), perspective)
    assert np.isnan(points).all(axis=1).tolist() == [True, True, False]
    pixels = to_pixels(K, np.array([[1.0, 1, 0], [1, 1, -1], [0, 0, 5], [np.nan, 0, 1]]), perspective)
    assert np.isnan(pixels[:3]).tolist() == [[perspective] * 2] * 2 + [[False] * 2]
    assert pixels[2].tolist() == [320, 240]
    assert np.isnan(pixels[3, 0])


def test_extrinsics_are_the_inverse_of_the_cameras_matrix() -> None:
    """Also of one with shear, as a parent with an uneven scale gives it."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        place = np.eye(4)
        place[:3] = rng.normal(size=(3, 4))
        expected = np.diag([1.0, -1, -1, 1]) @ np.linalg.inv(place)
        np.testing.assert_allclose(extrinsics(place), expected, rtol=1e-9, atol=1e-9)


def test_a_flat_camera_is_named() -> None:
    """A scale of 0 is no division by zero."""
    place = np.eye(4)
    place[0, 0] = 0
    with pytest.raises(ConfigError, match="set its scale to 1"):
        extrinsics(place)
