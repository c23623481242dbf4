"""Which pixels a mesh covers, whatever is in front of it: pure arithmetic, no bpy.

A pixel is covered when its centre lies in a triangle of the mesh. Along a row of pixels, the number of triangles that
cover a centre changes by one at each crossing with an edge of a triangle: it goes up where the row enters that triangle,
and down where it leaves. At an edge between two triangles that both face the camera, or both face away from it, the row
leaves one and enters the other, so the number stays the same. What remains are the edges of the outline: some hundred of
ten thousand. Their crossings, sorted, are the spans of covered pixels. Both triangles at an edge get the same numbers
for its crossings, so no pixel between them is missed, and the result is exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterator

_Floats = npt.NDArray[np.float64]
_Indices = npt.NDArray[np.integer[Any]]

_CROSSINGS = 1 << 20  # about so many crossings are in memory at once, which takes some 50 MB


class Edges(NamedTuple):
    """The edges of triangles, each once. They stay valid when points move, as long as the triangles are the same."""

    ends: _Indices  # E x 2 indices of points
    of_triangles: _Indices  # 3 M: the indices of the edges 0-1, 1-2 and 2-0 of each triangle
    direction: _Floats  # M x 3: 1 where the triangle runs from the first end of its edge to the second, else -1


class Spans(NamedTuple):
    """Covered pixels: the columns from `start` up to, but without, `stop` in each of these rows. Spans do not overlap."""

    row: _Indices
    start: _Indices
    stop: _Indices

    @property
    def pixels(self) -> int:
        """The number of covered pixels."""
        return int((self.stop - self.start).sum())

    def mask(self, left: int, top: int, width: int, height: int) -> npt.NDArray[np.bool_]:
        """Return which pixels of a part of the window are covered, height x width. It begins at `left` and `top`."""
        inside = (self.row >= top) & (self.row < top + height)
        row = self.row[inside] - top
        start, stop = (np.clip(at[inside] - left, 0, width) for at in (self.start, self.stop))
        changes = np.zeros((height, width + 1), np.int8)
        np.add.at(changes, (row, start), 1)
        np.add.at(changes, (row, stop), -1)
        covered: npt.NDArray[np.bool_] = np.cumsum(changes, axis=1, dtype=np.int8)[:, :width] > 0
        return covered


def edges_of(triangles: _Indices) -> Edges:
    """Return the edges of M x 3 triangles. This takes longer than all other steps: keep them while triangles stay."""
    a = triangles.ravel().astype(np.int64)
    b = np.roll(triangles, -1, axis=1).ravel().astype(np.int64)
    size = int(triangles.max(initial=0)) + 1
    keys, of_triangles = np.unique(np.minimum(a, b) * size + np.maximum(a, b), return_inverse=True)
    direction = np.where(a < b, 1.0, -1.0).reshape(-1, 3)
    # The input is flat, because numpy 2.0.0 gives the inverse the shape of the input, and all others a flat one.
    return Edges(np.stack(np.divmod(keys, size), axis=1), of_triangles, direction)


def spans_of(xy: _Floats, triangles: _Indices, edges: Edges, window: tuple[int, int, int, int]) -> Spans:
    """Return which pixels of a window the triangles cover.

    Args:
        xy: N x 2 pixel coordinates, y down; (0, 0) is the outer corner of a pixel whose centre is (0.5, 0.5). Those of
            the triangles must be finite.
        triangles: M x 3 indices into xy, of any orientation: both sides count.
        edges: The edges of the triangles.
        window: left, top, width and height in whole pixels. Only what lies inside counts. It may begin at negative
            coordinates.

    Returns:
        Spans in coordinates of the window, in order of row and column. A centre that lies exactly on an edge belongs
        to what is to the right of the edge, or below it.
    """
    left, top, width, height = window
    ends, gain = _outline(xy, triangles, edges)
    x, y = xy[:, 0] - left, xy[:, 1] - top
    ya, yb = y[ends[:, 0]], y[ends[:, 1]]
    down = ya < yb
    # From here on, a is the upper end. Where that reverses an edge, its gain changes its sign.
    a, b = np.where(down, ends[:, 0], ends[:, 1]), np.where(down, ends[:, 1], ends[:, 0])
    gain = np.where(down, -gain, gain)
    first, stop = _first_centre(np.minimum(ya, yb), height), _first_centre(np.maximum(ya, yb), height)
    some = np.flatnonzero(first < stop)
    a, b = a[some], b[some]
    slope = (x[b] - x[a]) / (y[b] - y[a])
    bands = _crossings(x[a], y[a], slope, first[some], stop[some], gain[some], height)
    found = [Spans(*_covered(*crossings, width)) for crossings in bands]
    return Spans(*map(np.concatenate, zip(*found, strict=True)))


def _outline(xy: _Floats, triangles: _Indices, edges: Edges) -> tuple[_Indices, _Floats]:
    """Return the edges at which the number of covering triangles changes, and by how much, from one side to the other."""
    x0, x1, x2 = xy[:, 0][triangles.T]
    y0, y1, y2 = xy[:, 1][triangles.T]
    facing = np.sign((x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0))
    weights = (edges.direction * facing[:, None]).ravel()
    gain: npt.NDArray[Any] = np.bincount(edges.of_triangles, weights, len(edges.ends))
    seen = np.flatnonzero(gain)
    return edges.ends[seen], gain[seen]


def _first_centre(at: _Floats, size: int) -> _Indices:
    """Return the first row, or column, of pixels whose centres are at or behind a place; `size` if there is none."""
    found: _Indices = np.ceil(np.clip(at, 0, size + 1) - 0.5).astype(np.intp)
    return np.minimum(found, size, out=found)


def _crossings(
    x: _Floats, y: _Floats, slope: _Floats, first: _Indices, stop: _Indices, gain: _Floats, height: int
) -> Iterator[tuple[_Indices, _Floats, _Floats]]:
    """Yield row, x and gain of each crossing, in bands of rows from top to bottom, unsorted within a band.

    An edge has its upper end at (x, y), goes `slope` to the right in each row, and crosses the rows from `first` up to,
    but without, `stop`. Its `gain` is how the number of covering triangles changes there from left to right.
    """
    total = int((stop - first).sum())
    step = max(1, height * _CROSSINGS // max(total, 1))
    for top in range(0, height, step):
        begin = np.maximum(first, top)
        rows = np.maximum(np.minimum(stop, top + step) - begin, 0)
        of = np.repeat(np.arange(len(rows)), rows)
        row = np.arange(len(of)) + (begin - np.cumsum(rows) + rows)[of]
        yield row, x[of] + (row + 0.5 - y[of]) * slope[of], gain[of]


def _covered(row: _Indices, x: _Floats, gain: _Floats, width: int) -> tuple[_Indices, _Indices, _Indices]:
    """Return row, start and stop of the covered spans between crossings."""
    column = _first_centre(x, width)
    key = row * (width + 1) + column
    order = np.argsort(key, kind="stable")
    row, column = row[order], column[order]
    # The gains of a row add up to zero, so one sum can run through all rows.
    covering = np.cumsum(gain[order])[:-1]
    full = np.flatnonzero((covering > 0) & (column[:-1] < column[1:]))
    return row[full], column[full], column[full + 1]


def clip_near(points: _Floats, triangles: _Indices, near: float) -> tuple[_Floats, _Indices]:
    """Return the part of a mesh that lies in front of the camera, with z > `near`, up to rounding on that plane.

    Args:
        points: N x 3, in camera space with z along the axis of view.
        triangles: M x 3 indices of points.
        near: The distance of the plane along z, in the units of the points.

    Returns:
        Points and triangles: all given points, followed by new ones on the plane, and one or two triangles in place of
        each that crosses the plane.
    """
    inside = points[:, 2] > near
    if inside.all():
        return points, triangles
    count = inside[triangles].sum(axis=1)
    whole = triangles[count == 3]
    # Rotate each crossed triangle so that the corner which is alone on its side of the plane comes first.
    crossed = triangles[(count == 1) | (count == 2)]
    alone = count[(count == 1) | (count == 2)] == 1  # whether that corner is the one inside
    first = (inside[crossed] == alone[:, None]).argmax(axis=1)
    a, b, c = crossed[np.arange(len(crossed))[:, None], (first[:, None] + np.arange(3)) % 3].T
    ab = len(points) + np.arange(len(crossed))
    ac = ab + len(crossed)
    pieces = [
        np.stack([a, ab, ac], axis=1)[alone],
        np.stack([ab, b, c], axis=1)[~alone],
        np.stack([ab, c, ac], axis=1)[~alone],
    ]
    new = [_on_plane(points[a], points[other], near) for other in (b, c)]
    return np.concatenate([points, *new]), np.concatenate([whole, *pieces])


def _on_plane(start: _Floats, end: _Floats, near: float) -> _Floats:
    """Return where edges cross the plane z = near, with the same rounding whichever end is called the start."""
    swap = start[:, 2:] > end[:, 2:]
    low, high = np.where(swap, end, start), np.where(swap, start, end)
    found: _Floats = low + (near - low[:, 2:]) / (high[:, 2:] - low[:, 2:]) * (high - low)
    found[:, 2] = near
    return found
