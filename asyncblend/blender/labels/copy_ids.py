"""Which pixels show which of several copies of an object: a mask by object becomes a mask by copy.

Blender's passes tell objects apart, but not the copies of one. Where a pixel's surface is in the world is known from its
depth, and of all copies it is the one that has a surface there. For most pixels the boxes around the copies decide that;
where boxes overlap, it is the copy with the nearest surface.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

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
    boxes = _boxes(copies, view)

    near_pixels, near_copies = [np.empty(0, np.intp)], [np.empty(0, np.intp)]
    for number, box in enumerate(boxes):
        rows, columns = box.window
        candidates = where[rows, columns].ravel()
        candidates = candidates[candidates >= 0]
        if not len(candidates):
            continue  # most of very many copies cannot be seen
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


class _Box(NamedTuple):
    """The box around a copy's mesh, along its own axes."""

    mesh: Mesh
    low: _Floats
    high: _Floats
    matrix: _Floats  # 4 x 4, from the mesh's space to the camera's
    inverse: _Floats  # 3 x 3
    scale: float  # the largest one of the matrix
    window: tuple[slice, slice]  # rows and columns of the image that hold the box

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


def _boxes(copies: Sequence[Occurrence], view: View) -> list[_Box]:
    """Return the boxes of B copies. The arithmetic is done for all of them at once, as there may be very many."""
    bounds = {id(copy.mesh): copy.mesh for copy in copies}
    limits = {key: (mesh.points.min(axis=0), mesh.points.max(axis=0)) for key, mesh in bounds.items()}
    low, high = (np.array([limits[id(copy.mesh)][side] for copy in copies]) for side in (0, 1))
    matrices = view.world_to_camera @ np.array([copy.matrix for copy in copies])
    turned = matrices[:, :3, :3]
    inverses, scales = np.linalg.pinv(turned), np.linalg.norm(turned, 2, axis=(1, 2))  # a copy may be flat

    corners = low[:, None] + (high - low)[:, None] * _CORNERS  # B x 8 x 3
    corners = corners @ turned.transpose(0, 2, 1) + matrices[:, None, :3, 3]
    with np.errstate(invalid="ignore"):  # corners behind the camera are NaN
        xy = view.pixels(corners.reshape(-1, 3)).reshape(-1, 8, 2)
        first = np.maximum(xy.min(axis=1) - _SLACK, 0)
        last = np.maximum(xy.max(axis=1) + _SLACK + 1, 0)
    # Of a box that reaches behind the camera it is not known where in the image it ends.
    everywhere = (corners[..., 2] <= view.near).any(axis=1) & bool(view.perspective)
    first[everywhere] = last[everywhere] = 0
    windows = [
        (slice(None), slice(None)) if whole else (slice(top, bottom), slice(left, right))
        for whole, (left, top), (right, bottom) in zip(
            everywhere.tolist(), first.astype(int).tolist(), last.astype(int).tolist(), strict=True
        )
    ]
    meshes = [copy.mesh for copy in copies]
    parts = zip(meshes, low, high, matrices, inverses, scales.tolist(), windows, strict=True)
    return [_Box(*part) for part in parts]


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
        found[mine] = [tree.find_nearest(point)[3] * box.scale for point in local]
    return found


def _lists(mesh: Mesh) -> tuple[list[list[float]], list[list[int]]]:
    return mesh.points.tolist(), mesh.triangles.tolist()


def _batches(indices: _Indices) -> Iterator[_Indices]:
    for start in range(0, len(indices), _BATCH):
        yield indices[start : start + _BATCH]
