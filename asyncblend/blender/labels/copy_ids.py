"""Which pixels show which of several copies of an object: a mask by object becomes a mask by copy.

Blender's passes tell objects apart, but not the copies of one. Where a pixel's surface is in the world is known from its
depth, and of all copies it is the one that has a surface there. For most pixels the boxes around the copies decide that;
where boxes overlap, it is the copy with the nearest surface.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..scene.lens import View, to_camera, transformed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .meshes import Mesh
    from .occurrences import Occurrence

_Floats = npt.NDArray[np.float64]
_Indices = npt.NDArray[np.integer[Any]]

_SLACK = 2.0  # by how many pixels a surface may be off: a sample lies anywhere in its pixel
_CORNERS = np.array([*np.ndindex(2, 2, 2)])
_BATCH = 1 << 16


def told_apart(pixels: _Indices, depth: npt.NDArray[Any], copies: Sequence[Occurrence], view: View) -> _Indices:
    """Return for each pixel which of the copies it shows, as an index into them.

    What a surface is not exactly where its mesh is, as with displacement and motion blur, is taken for the nearest copy.

    Args:
        pixels: P indices into the flat image, of all that shows one of the copies.
        depth: H x W, along the camera's axis.
        copies: At least two.
    """
    row, column = np.divmod(pixels, view.frame.width)
    z = depth.ravel()[pixels].astype(np.float64)
    z[~np.isfinite(z)] = np.nan  # of another engine, which shows no surface there
    points = to_camera(view.K, np.column_stack([column, row]) + 0.5, z, view.perspective)
    slack = _SLACK / view.K[0, 0] * (z if view.perspective else np.ones_like(z))
    where = np.full(depth.shape, -1, np.intp)
    where.ravel()[pixels] = np.arange(len(pixels))
    boxes = [_Box(copy, view) for copy in copies]

    near_pixels, near_copies = [], []
    for number, box in enumerate(boxes):
        rows, columns = box.window
        candidates = where[rows, columns].ravel()
        candidates = candidates[candidates >= 0]
        close = candidates[box.distances(points[candidates]) <= slack[candidates]]
        near_pixels.append(close)
        near_copies.append(np.full(len(close), number))
    pixel, copy = np.concatenate(near_pixels), np.concatenate(near_copies)
    found = np.full(len(pixels), -1, np.intp)
    count = np.bincount(pixel, minlength=len(pixels))
    found[pixel] = copy
    several = count[pixel] > 1
    if several.any():
        pairs = pixel[several], copy[several]
        gaps = _gaps(points, *pairs, boxes)
        # The last assignment to a pixel counts: that of its nearest copy, and of equal ones that of the first.
        order = np.lexsort((-pairs[1], -gaps))
        found[pairs[0][order]] = pairs[1][order]
    lost = np.flatnonzero(count == 0)
    seen = np.isfinite(z[lost])
    for some in _batches(lost[seen]):  # displaced, or blurred by motion: what is nearest
        found[some] = np.argmin([box.distances(points[some]) for box in boxes], axis=0)
    for some in _batches(lost[~seen]):
        found[some] = np.argmin([box.pixels_away(row[some], column[some]) for box in boxes], axis=0)
    return found


class _Box:
    """The box around a copy's mesh, along its own axes."""

    def __init__(self, copy: Occurrence, view: View) -> None:
        self.mesh = copy.mesh
        self.low, self.high = copy.mesh.points.min(axis=0), copy.mesh.points.max(axis=0)
        self.matrix = view.world_to_camera @ copy.matrix
        self.inverse: _Floats = np.linalg.pinv(self.matrix[:3, :3])  # a copy may be flat
        self.window = self._window(view)

    def _window(self, view: View) -> tuple[slice, slice]:
        """Return rows and columns of the image that hold the box."""
        corners = transformed(self.matrix, self.low + (self.high - self.low) * _CORNERS)
        if view.perspective and (corners[:, 2] <= view.near).any():
            return slice(None), slice(None)
        xy = view.pixels(corners)
        left, top = np.maximum(xy.min(axis=0) - _SLACK, 0).astype(int)
        right, bottom = np.maximum(xy.max(axis=0) + _SLACK + 1, 0).astype(int)
        return slice(top, bottom), slice(left, right)

    def pixels_away(self, rows: _Indices, columns: _Indices) -> _Floats:
        """Return how far pixels are from what holds the box in the image: 0 inside."""
        gaps = [np.zeros(len(rows))]
        for place, window in ((rows, self.window[0]), (columns, self.window[1])):
            if window.stop is not None:
                gaps.append(np.maximum(np.maximum(window.start - place, place - window.stop + 1), 0).astype(np.float64))
        away: _Floats = np.linalg.norm(gaps, axis=0)
        return away

    def local(self, points: _Floats) -> _Floats:
        found: _Floats = (points - self.matrix[:3, 3]) @ self.inverse.T
        return found

    def distances(self, points: _Floats) -> _Floats:
        """Return how far points in camera space are from the box: 0 inside."""
        local = self.local(points)
        nearest = transformed(self.matrix, np.clip(local, self.low, self.high))
        distance: _Floats = np.linalg.norm(points - nearest, axis=1)
        distance[((local >= self.low) & (local <= self.high)).all(axis=1)] = 0
        return distance


def _gaps(points: _Floats, pixel: _Indices, copy: _Indices, boxes: Sequence[_Box]) -> _Floats:
    """Return how far the points of pixels are from the surfaces of copies."""
    from mathutils.bvhtree import BVHTree

    trees: dict[int, Any] = {}
    found = np.empty(len(pixel))
    numbers, starts = np.unique(copy, return_index=True)  # `copy` is in order
    for number, mine in zip(numbers, np.split(np.arange(len(pixel)), starts[1:]), strict=True):
        box = boxes[number]
        tree = trees.get(id(box.mesh))
        if tree is None:
            tree = trees[id(box.mesh)] = BVHTree.FromPolygons(*_lists(box.mesh))
        local = box.local(points[pixel[mine]]).tolist()
        # The surface that is seen is at about 0 in any unit, so that one scale for all directions will do.
        scale = np.linalg.norm(box.matrix[:3, :3], 2)
        found[mine] = [tree.find_nearest(point)[3] * scale for point in local]
    return found


def _lists(mesh: Mesh) -> tuple[list[list[float]], list[list[int]]]:
    return mesh.points.tolist(), mesh.triangles.tolist()


def _batches(indices: _Indices) -> Iterator[_Indices]:
    for start in range(0, len(indices), _BATCH):
        yield indices[start : start + _BATCH]
