"""PNG files: Pillow reads what was written, to the bit."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from asyncblend.recording.png import png

SIDES = st.integers(1, 20)
GREY = st.tuples(st.sampled_from(["uint8", "uint16", "bool"]), st.tuples(SIDES, SIDES))
COLOUR = st.tuples(st.just("uint8"), st.tuples(SIDES, SIDES, st.sampled_from([3, 4])))
PIXELS = st.one_of(GREY, COLOUR).flatmap(lambda kind: hnp.arrays(*kind))


def read(data: bytes) -> np.ndarray[Any, Any]:
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        return np.array(image)


@given(pixels=PIXELS)
def test_pixels_come_back(pixels: np.ndarray[Any, Any]) -> None:
    """An image of any kind and size comes back, with 255 for what is set in a mask."""
    found = read(png(pixels))
    expected = np.where(pixels, 255, 0).astype(np.uint8) if pixels.dtype == bool else pixels
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", [(480, 640), (480, 640, 3), (480, 640, 4)])
def test_noise_and_order_in_memory(shape: tuple[int, ...]) -> None:
    """Noise, which deflate cannot shrink, comes back, and so does an image whose rows are not one after another."""
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    for pixels in (noise, noise[::-2, 5:-1:3], np.asfortranarray(noise)):
        np.testing.assert_array_equal(read(png(pixels)), pixels)


def test_it_is_as_small_as_pillow_makes_it() -> None:
    """A picture with noise takes at most a tenth more than with Pillow's own compression."""
    y, x = np.mgrid[-1:1:480j, -1:1:640j]
    noise = np.random.default_rng(0).integers(0, 8, (480, 640, 3))
    picture = (np.hypot(x, y)[..., None] * [90, 120, 150] + noise).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    assert len(png(picture)) < 1.1 * len(buffer.getvalue())
