"""Colours of labels: they can be told apart, and mean what their documentation says."""

from __future__ import annotations

import colorsys
import math
from typing import Any

import numpy as np
import pytest

from asyncblend.pictures import colours
from asyncblend.pictures.colours import NOTHING, colour_of, depth_picture, flow_picture, normal_picture


def lightness(pictures: Any) -> Any:
    """Return CIE L* of sRGB colours, computed from its definition."""
    encoded = np.asarray(pictures, float) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    luminance = linear @ (0.2126, 0.7152, 0.0722)
    return np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)


@pytest.mark.parametrize("of", [colour_of, colours.class_colour_of])
def test_ids_have_colours_of_their_own(of: Any) -> None:
    """The colours of forty ids differ from each other and from NOTHING, the first clearly. An id keeps its colour."""
    all_of_them = np.array([of(number) for number in range(41)], int)
    assert of(0) == NOTHING
    apart = np.abs(all_of_them[:, None] - all_of_them[None]).sum(axis=2) + 1000 * np.eye(41, dtype=int)
    assert apart.min() >= 12
    assert apart[:9, :9].min() > 50
    assert [of(number) for number in range(41)] == [tuple(colour) for colour in all_of_them.tolist()]


def test_an_id_picture_has_the_colour_of_each_id() -> None:
    """Each pixel has the colour of its id, also if ids are far apart."""
    ids = np.array([[0, 3], [32767, 3]], np.int32)
    picture = colours.id_picture(ids)
    assert picture.dtype == np.uint8
    assert picture.tolist() == [[list(NOTHING), list(colour_of(3))], [list(colour_of(32767)), list(colour_of(3))]]


def test_the_ramp_darkens_evenly() -> None:
    """The colours darken from near to far in steps that look equal, and use most of the range of lightness."""
    steps = np.diff(lightness(colours.ramp()))
    assert (steps < 0).all()
    assert np.abs(steps - steps.mean()).max() < 0.6
    assert -steps.sum() > 70


def test_depth_goes_from_the_nearest_to_the_farthest_finite_value() -> None:
    """Infinities and NaN do not change the scale, and have the colour NOTHING."""
    depth = np.array([[2.0, 4.0, 3.0], [np.inf, np.nan, -np.inf]], np.float32)
    assert colours.depth_scale(depth) == (2.0, 4.0, False)
    picture = depth_picture(depth)
    assert picture[0].tolist() == colours.ramp()[[0, 255, 128]].tolist()
    assert (picture[1] == NOTHING).all()


def test_a_wide_range_of_depths_has_a_logarithmic_scale() -> None:
    """A floor up to the horizon leaves enough colours for near objects."""
    depth = np.geomspace(1, 100, 256, dtype=np.float32)[None]
    scale = colours.depth_scale(depth)
    assert scale is not None
    assert scale.logarithmic
    assert scale.at(0.5) == pytest.approx(10, rel=1e-3)
    np.testing.assert_array_equal(depth_picture(depth)[0], colours.ramp())


@pytest.mark.parametrize(
    ("near", "far", "middle"),
    [(-1.7e308, 1.7e308, 0), (5e-324, 1.7e308, 3e-8), (0, 1.7e308, 8.5e307), (0, 1e-323, 5e-324)],
)
def test_the_extremes_of_floats_have_a_scale(near: float, far: float, middle: float) -> None:
    """Neither a difference nor a ratio past the range of float64 spoils the picture, or warns."""
    scale = colours.depth_scale(np.array([near, far]))
    assert scale is not None
    assert scale.at(0.5) == pytest.approx(middle, rel=0.1)
    assert scale.position(np.array([near, middle, far])) == pytest.approx([0, 0.5, 1], abs=0.01)


@pytest.mark.parametrize("value", [np.inf, 3.0, 0.0, -1.0])
def test_depth_of_one_value(value: float) -> None:
    """A depth of one value has no scale to divide by."""
    picture = depth_picture(np.full((2, 2), value, np.float32))
    assert (picture == (NOTHING if math.isinf(value) else colours.ramp()[0])).all()


def test_normals_are_half_of_one_more() -> None:
    """x is red, y green, z blue, and no surface is grey."""
    normals = np.array([[(1, 0, 0), (0, -1, 0), (0, 0, 1), (0, 0, 0)]], np.float32)
    assert normal_picture(normals)[0].tolist() == [[255, 128, 128], [128, 0, 128], [128, 128, 255], [128, 128, 128]]
    unusual = np.array([[[np.nan, np.inf, -np.inf]]], np.float32)
    assert normal_picture(unusual)[0].tolist() == [[128, 255, 0]]


def hue_of(x: float, y: float) -> float:
    red, green, blue = flow_picture(np.array([[[x, y]]], np.float32), 1.0)[0, 0] / 255
    return 360 * colorsys.rgb_to_hsv(red, green, blue)[0]


@pytest.mark.parametrize(
    ("place", "hue"), [(0, 0), (15, 60), (21, 120), (25, 180), (36, 240), (49, 300), (7.5, 30), (42.5, 270)]
)
def test_directions_have_the_hues_of_the_wheel(place: float, hue: float) -> None:
    """The published wheel has 55 positions, clockwise from the right: red, yellow, green, cyan, blue, magenta."""
    angle = place / 55 * 2 * math.pi
    assert hue_of(math.cos(angle), math.sin(angle)) == pytest.approx(hue, abs=1.5)


def test_flow_is_white_at_rest_and_fuller_the_longer() -> None:
    """Saturation is linear up to the longest vector, longer ones are darker, and NaN is no motion."""
    right = flow_picture(np.array([[(0, 0), (5, 0), (10, 0), (20, 0), (np.nan, 3), (np.inf, 0)]], np.float32), 10)
    assert right[0, :4].tolist() == [[255] * 3, [255, 128, 128], [255, 0, 0], [191, 0, 0]]
    assert (right[0, 4] > 150).all()
    assert right[0, 5].tolist() == [255] * 3
    flow = np.array([[(3, 4), (0, 0)]], np.float32)
    assert colours.flow_longest(flow) == 5
    np.testing.assert_array_equal(flow_picture(flow), flow_picture(flow, 5.0))
    assert (flow_picture(np.zeros((2, 2, 2), np.float32)) == 255).all()


def test_the_wheel_shows_each_vector_from_its_centre() -> None:
    """Right is red, and outside the wheel is white."""
    wheel = colours.wheel_picture(101)
    assert wheel[50, 50].tolist() == [255] * 3
    assert wheel[0, 0].tolist() == [255] * 3
    assert wheel[50, 99].tolist() == flow_picture(np.array([[[98 / 101, 0]]], np.float32), 1.0)[0, 0].tolist()


def test_text_on_a_colour_is_legible() -> None:
    """Dark colours get white text."""
    for number in range(1, 41):
        colour = colour_of(number)
        ink = [int(colours.hint_of(colour)[i : i + 2], 16) for i in (1, 3, 5)]
        assert abs(lightness(ink) - lightness(colour)) > 35
