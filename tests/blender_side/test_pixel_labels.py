"""The arithmetic of labels, without Blender, is checked against plain numpy, also for images of several blocks."""

from __future__ import annotations

import numpy as np
import pytest

from asyncblend.blender.capture.pixel_labels import PixelLabels, ray_lengths, rotated, unit_vectors

SIZES = [(1, 1), (3, 5), (480, 641), (1, 70_000), (70_000, 1), (0, 4)]


@pytest.mark.parametrize("size", SIZES)
def test_unit_vectors(size: tuple[int, int]) -> None:
    """The input has negative strides, as passes turned upside down have. A vector of length 0 stays 0."""
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(*size, 3)).astype(np.float32)[::-1]
    vectors[:1, :1] = 0
    background = rng.random(size) < 0.3
    before = vectors.copy()
    with np.errstate(invalid="ignore"):
        right = np.nan_to_num(vectors / np.linalg.norm(vectors, axis=2, keepdims=True))
    right[background] = 0
    found = unit_vectors(vectors, background)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, right, atol=1e-6)
    np.testing.assert_array_equal(vectors, before)


@pytest.mark.parametrize("size", SIZES)
def test_rotated(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(4)
    vectors = rng.normal(size=(*size, 3)).astype(np.float32)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    found = rotated(vectors, rotation)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, vectors @ rotation.T, atol=1e-5)


def test_ray_lengths() -> None:
    """The pixels are oblong, and the principal point is not in the image's centre."""
    K = np.array([[500.0, 0, 310.5], [0, 350.0, 260.25], [0, 0, 1]])
    found = ray_lengths(K, 640, 480)
    x, y = np.meshgrid(np.arange(640) + 0.5, np.arange(480) + 0.5)
    rays = np.stack([x, y, np.ones_like(x)], axis=2) @ np.linalg.inv(K).T
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.linalg.norm(rays, axis=2), rtol=1e-6)


class _NoCamera:
    """Flow and depth need no camera."""


def test_flow_has_its_signs_from_the_vector_pass() -> None:
    """In that pass y points up, and the next frame is subtracted from this one. The background does not flow."""
    vector = np.array([[[1, 2, 3, 4], [5, 6, 7, 8], [9, 9, 9, 9]]], np.float32)
    depth = np.array([[[2], [1e10], [0]]], np.float32)
    labels = PixelLabels({"vector": vector, "depth": depth}, 1e10, _NoCamera())  # type: ignore[arg-type]
    assert labels.flow_forward.tolist() == [[[-3, 4], [0, 0], [0, 0]]]
    assert labels.flow_backward.tolist() == [[[1, -2], [0, 0], [0, 0]]]
    assert labels.depth.tolist() == [[2, float("inf"), float("inf")]]
