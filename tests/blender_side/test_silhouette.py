"""Silhouettes are checked against a point-in-triangle test of every pixel, and clipped meshes against rays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from asyncblend.blender.labels import silhouette
from asyncblend.blender.labels.silhouette import Spans, clip_near, edges_of, spans_of

_Floats = npt.NDArray[np.float64]
_Bools = npt.NDArray[np.bool_]

WINDOW = (-7, -5, 32, 25)  # left, top, width, height


def covered(xy: _Floats, triangles: npt.NDArray[Any], window: tuple[int, int, int, int] = WINDOW) -> _Bools:
    spans = spans_of(xy, triangles, edges_of(triangles), window)
    mask = mask_of(spans, *window[2:])
    assert spans.pixels == mask.sum()
    return mask


def mask_of(spans: Spans, width: int, height: int) -> _Bools:
    """Return the spans as a height x width array."""
    mask = np.zeros((height, width), bool)
    for row, start, stop in zip(*spans, strict=True):
        assert not mask[row, start:stop].any()  # no pixel is in two spans
        mask[row, start:stop] = True
    return mask


def centres(window: tuple[int, int, int, int]) -> _Floats:
    """Return the centres of all pixels: height x width x 2."""
    left, top, width, height = window
    x, y = np.meshgrid(left + np.arange(width) + 0.5, top + np.arange(height) + 0.5)
    return np.stack([x, y], axis=-1)


def by_point_in_triangle(xy: _Floats, triangles: npt.NDArray[Any]) -> tuple[_Bools, _Bools]:
    """Return which pixels are covered, and in which rounding decides, because an edge is near their centre."""
    p = centres(WINDOW)
    inside, close = np.zeros(p.shape[:2], bool), np.zeros(p.shape[:2], bool)
    for a, b, c in xy[triangles]:
        sides = []
        for start, end in ((a, b), (b, c), (c, a)):
            d = end - start
            side = d[0] * (p[..., 1] - start[1]) - d[1] * (p[..., 0] - start[0])
            close |= abs(side) <= 1e-6 * max(np.hypot(*d), 1e-6)
            sides.append(side)
        inside |= np.all([side > 0 for side in sides], axis=0) | np.all([side < 0 for side in sides], axis=0)
    return inside, close


@st.composite
def meshes(draw: st.DrawFn, dimensions: int) -> tuple[_Floats, npt.NDArray[Any]]:
    """Draw points, some of them outside the window, and triangles that share them, some of them degenerate."""
    count = draw(st.integers(1, 9))
    points = draw(arrays(np.float64, (count, dimensions), elements=st.floats(-25, 45, width=32)))
    triangles = draw(arrays(np.int32, (draw(st.integers(0, 14)), 3), elements=st.integers(0, count - 1)))
    return points, triangles


@given(meshes(2))
def test_covers_the_centres_that_lie_in_a_triangle(mesh: tuple[_Floats, npt.NDArray[Any]]) -> None:
    truth, close = by_point_in_triangle(*mesh)
    np.testing.assert_array_equal(covered(*mesh) | close, truth | close)


@given(st.tuples(*[st.integers(-20, 60)] * 6))
def test_no_pixel_between_triangles_is_missed(numbers: tuple[int, ...]) -> None:
    """Four triangles meet at a point in a rectangle. All their corners are centres or outer corners of pixels."""
    (x0, x1), (y0, y1) = sorted(numbers[0:2]), sorted(numbers[2:4])
    x, y = np.clip(numbers[4], x0, x1), np.clip(numbers[5], y0, y1)
    xy = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x, y)]) / 2
    mask = covered(xy, np.array([(0, 1, 4), (2, 1, 4), (2, 3, 4), (3, 0, 4)]))
    p = centres(WINDOW) * 2
    np.testing.assert_array_equal(mask, ((p >= (x0, y0)) & (p < (x1, y1))).all(axis=-1))


def test_many_crossings_are_done_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """This bounds the memory. The result is the same."""
    rng = np.random.default_rng(1)
    xy, triangles = rng.uniform(-20, 40, (30, 2)), rng.integers(0, 30, (12, 3))
    whole = spans_of(xy, triangles, edges_of(triangles), WINDOW)
    monkeypatch.setattr(silhouette, "_CROSSINGS", 10)
    banded = spans_of(xy, triangles, edges_of(triangles), WINDOW)
    assert len(whole.row) > 20
    for one, other in zip(whole, banded, strict=True):
        np.testing.assert_array_equal(one, other)


def test_nothing_covers_nothing() -> None:
    assert not covered(np.zeros((0, 2)), np.zeros((0, 3), np.int32)).any()
    assert not covered(np.full((3, 2), 1000.0), np.array([(0, 1, 2)])).any()


def seen_by_rays(points: _Floats, triangles: npt.NDArray[Any], near: float) -> tuple[_Bools, _Bools]:
    """Return the same by rays through the pixels' centres, for a pinhole camera with a focal length of 10 pixels."""
    p = centres(WINDOW) / 10
    rays = np.concatenate([p, np.ones((*p.shape[:2], 1))], axis=-1)
    hit, close = np.zeros(p.shape[:2], bool), np.zeros(p.shape[:2], bool)
    for a, b, c in points[triangles]:
        planes = [np.cross(b, c), np.cross(c, a), np.cross(a, b)]  # each through the camera and an edge
        volume = a @ planes[0]
        if abs(volume) < 1e-6:
            continue
        weights = np.stack([rays @ plane for plane in planes], axis=-1) / volume
        total = weights.sum(axis=-1)
        with np.errstate(divide="ignore"):
            z = 1 / total
        size = max(abs(plane).max() for plane in planes) / abs(volume)
        close |= (abs(weights) < 1e-6 * size).any(axis=-1) | (abs(z - near) < 1e-5 * (1 + near))
        hit |= (weights > 0).all(axis=-1) & (z > near)
    return hit, close


@given(meshes(3), st.floats(0.125, 20, width=32))
def test_what_is_left_of_a_clipped_mesh_is_what_rays_hit(mesh: tuple[_Floats, npt.NDArray[Any]], near: float) -> None:
    points, triangles = clip_near(*mesh, near)
    assert (points[: len(mesh[0])] == mesh[0]).all()
    assert (points[triangles][..., 2] >= near).all()
    sound = [i for i, t in enumerate(points[mesh[1]]) if abs(np.linalg.det(t)) > 1e-6] if len(mesh[1]) else []
    truth, close = seen_by_rays(mesh[0], mesh[1][sound], near)
    points, triangles = clip_near(mesh[0], mesh[1][sound], near)
    xy = points[:, :2] / np.maximum(points[:, 2:], near) * 10  # points behind the plane are in no triangle
    np.testing.assert_array_equal(covered(xy, triangles) | close, truth | close)


def test_a_mesh_before_the_plane_stays_as_it_is() -> None:
    points, triangles = np.array([(0.0, 0, 2), (1, 0, 2), (0, 1, 3)]), np.array([(0, 1, 2)])
    assert clip_near(points, triangles, 1.0) == (points, triangles)
    assert len(clip_near(points, triangles, 4.0)[1]) == 0
