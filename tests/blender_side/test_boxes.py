"""Boxes around masks are checked against the plain definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from asyncblend.blender import box_of
from asyncblend.blender.labels.boxes import boxes_of
from asyncblend.errors import ConfigError


@given(
    arrays(np.int32, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 6)), st.integers(0, 7)
)
def test_all_boxes_are_those_of_the_single_masks(instances: npt.NDArray[np.int32], highest: int) -> None:
    boxes, pixels = boxes_of(instances, highest)
    assert boxes.shape == (highest, 4)
    assert boxes.dtype == np.float32
    for number in range(1, highest + 1):
        mask = instances == number
        assert pixels[number - 1] == mask.sum()
        y, x = np.nonzero(mask)
        if len(x):
            truth = [x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()]
            assert boxes[number - 1].tolist() == box_of(mask).tolist() == truth
        else:
            assert boxes[number - 1].tolist() == [0, 0, 0, 0]


def test_a_box_holds_its_pixels_whole() -> None:
    mask = np.zeros((4, 6), bool)
    mask[0, 0] = True
    assert box_of(mask).tolist() == [0, 0, 1, 1]
    mask[3, 5] = True
    assert box_of(mask).tolist() == [0, 0, 6, 4]
    assert box_of(mask).dtype == np.float32


@pytest.mark.parametrize(
    ("mask", "part"),
    [
        (np.zeros((4, 6), bool), "the mask of 4 x 6 is empty"),
        (np.ones((4, 6, 1)), r"got shape \(4, 6, 1\)"),
        ("mask", r"got shape \(\)"),
    ],
)
def test_says_what_is_wrong_with_a_mask(mask: Any, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        box_of(mask)
