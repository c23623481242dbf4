"""View transforms that mix the channels, such as AgX and Filmic, as planes in cells of colours. Blender gives the points.

Such a transform is smooth nearly everywhere, so it is nearly flat where little of it is seen. Each channel is cut into 96
parts, in which the display changes by about as much. That gives 96**3 cells, in each of which the display's R, G and B
are planes. Cells are fitted when an image first needs them. Where a plane is off by too much, as on an edge of
Blender's own table, the cell is left out, and Blender shows its colours one by one.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable

    Show = Callable[..., npt.NDArray[Any]]

_DROPPED = 14  # low bits of a float32 that are ignored. 9 bits of the mantissa stay.
_STEP_BITS = 5
_STEPS = 1 << _STEP_BITS  # of a cell along each channel
_CELL_SHIFT = 3 * _STEP_BITS  # from a colour's code to the number of its cell
_SIDE = 4  # cells of a block along each channel; the planes of a block are fitted together
_BLOCK_SHIFT = _CELL_SHIFT + 6  # from a colour's code to the number of its block
_BLOCKS = 24  # along each channel
_CELLS = _SIDE * _BLOCKS
_ALL = _CELLS**3
_AT_ONCE = 256  # blocks, whose points take some 10 MB
_EXACT = 0.5  # of 1/255: how far a cell's points may be from its plane
_STEEP = 8  # display values by which a cell may grow along a channel: a steeper one may have edges between its points
_CORNERS = np.arange(2 * _SIDE + 1) / 2  # of a block's cells along a channel, and their middles
_QUARTERS = np.arange(2 * _SIDE) / 2 + 0.25  # the points between these
_UNEVEN = -1  # instead of the colour of a cell that is not flat enough; a colour is above 0

_SMALLEST, _OCTAVES, _PARTS = 2.0**-14, 28, 4  # colours are told apart from 2**-14 to 2**14, in quarters of octaves
_STEEPEST = 2000  # AgX and Filmic with all their looks have 500 to 800; False Color has 50,000


class ColourTable:
    """A view transform that mixes the channels.

    The upper 18 bits of a float32 (sign, exponent and nine bits of the mantissa) tell at which of 32 steps in which of the
    96 cells of its channel it is. A cell of the table is four numbers: the colour at its first step, and how much it grows
    by a step in R, in G and in B. A colour is three display values in one number, with 16 bits each, so that they are
    multiplied together. An image of 640 x 480 takes 2.5 ms, and a block of cells 0.4 ms, once.

    What a colour is shown as does not depend on what was asked for before. Of 37 million random colours none was off by
    more than 1/255 with AgX; with a gamma of 2.2 as well, 13 of 34 million were off by 2/255.

    Args:
        show: Returns the N x 3 display values of N x 3 scene-linear colours, in 8 or 16 bits.
        ends: As from `_find_ends`.
    """

    def __init__(self, show: Show, ends: npt.NDArray[np.float64]) -> None:
        self._show = show
        self._ends = ends
        self._codes = _codes(ends)
        self._table = np.zeros((_ALL + 1, 4), np.int64)  # block by block: only what is fitted takes memory
        self._table[_ALL, 0] = _UNEVEN  # for colours that are in no cell: below 0, infinite, or not a number
        self._fitted = np.zeros(_BLOCKS**3, bool)

    def write(self, linear: npt.NDArray[np.float32], image: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_] | None:
        """Write the display values of H x W x 4 scene-linear pixels into the first three channels of an image.

        Returns:
            H x W, true for pixels that Blender has to show itself; None if there are none.
        """
        upper = linear.view(np.uint32) >> _DROPPED
        codes = self._codes[0].take(upper[..., 0])
        codes += self._codes[1].take(upper[..., 1])
        codes += self._codes[2].take(upper[..., 2])
        colours = self._colours(codes)
        uneven = None
        if colours.min() <= 0:
            if not colours.all():
                self._fit(codes)
                colours = self._colours(codes)
            uneven = colours < 0
        values = colours.view(np.uint8).reshape(*colours.shape, 8)
        for channel in range(3):
            image[..., channel] = values[..., 2 * channel + 1]
        return uneven if uneven is not None and uneven.any() else None

    def _colours(self, codes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return one number for each pixel: R, G and B in 16 bits each; 0 without a plane yet, negative for uneven."""
        rows = self._table.view("V32")[:, 0]  # numpy takes items of 32 bytes several times faster than rows of four
        cells = rows.take(codes >> _CELL_SHIFT, mode="clip").view(np.int64).reshape(*codes.shape, 4)
        last = _STEPS - 1
        colours = (codes & last) * cells[..., 1]
        colours += cells[..., 0]
        colours += (codes >> _STEP_BITS & last) * cells[..., 2]
        colours += (codes >> 2 * _STEP_BITS & last) * cells[..., 3]
        return colours

    def _fit(self, codes: npt.NDArray[np.int64]) -> None:
        """Have all blocks that hold one of the colours in the table."""
        wanted = np.zeros(_BLOCKS**3 + 1, bool)
        wanted[np.minimum(codes >> _BLOCK_SHIFT, _BLOCKS**3)] = True
        blocks = np.flatnonzero(wanted[:-1] & ~self._fitted)
        table = self._table[:_ALL].reshape(_BLOCKS**3, _SIDE**3, 4)
        for start in range(0, len(blocks), _AT_ONCE):
            some = blocks[start : start + _AT_ONCE]
            planes = _planes(self._points(some, _CORNERS), self._points(some, _QUARTERS))
            table[some] = planes.reshape(len(some), _SIDE**3, 4)
            self._fitted[some] = True

    def _points(self, blocks: npt.NDArray[np.intp], along: npt.NDArray[np.float64]) -> npt.NDArray[np.uint16]:
        """Return how Blender shows points of the blocks: N x S x S x S x 3, in 1/65535.

        `along` are the S places of the points along each channel, in cells. The axes of the points are B, G and R.
        """
        side = len(along)
        colours = np.empty((len(blocks), side, side, side, 3), np.float32)
        for channel in range(3):
            first = blocks // _BLOCKS**channel % _BLOCKS * _SIDE
            values = _value(np.interp(first[:, None] + along, self._ends, np.arange(len(self._ends))))
            shape = [len(blocks), 1, 1, 1]
            shape[3 - channel] = side
            colours[..., channel] = values.reshape(shape)
        return self._show(colours.reshape(-1, 3), 16).reshape(colours.shape)


def fill_colour_table(show: Show) -> ColourTable | None:
    """Return the table of a view transform, or None if it has too many edges for one. It takes some 5 ms."""
    ends = _find_ends(show)
    return None if ends is None else ColourTable(show, ends)


def _find_ends(show: Show) -> npt.NDArray[np.float64] | None:
    """Return at which cell each quarter of an octave begins, so that the display changes by as much in all cells.

    How much it changes is the most that is seen in any of 64 surroundings, which are the two other channels.
    """
    rng = np.random.default_rng(0)
    around = 2 ** rng.uniform(-14, 10, (3, 64, 1, 3))
    around[rng.random(around.shape) < 0.15] = 0
    values = _value(np.arange(_PARTS * (_OCTAVES + 1) + 1.0))
    colours = np.empty((3, 64, len(values), 3), np.float32)
    colours[:] = around
    for channel in range(3):
        colours[channel, ..., channel] = values
    seen = show(colours.reshape(-1, 3)).reshape(colours.shape).astype(np.int16)
    change = np.abs(np.diff(seen, axis=2)).max(axis=(0, 1, 3))
    if change.sum() > _STEEPEST:
        return None
    # The power gives more cells to where little changes: there 8 bits tell the changes only roughly.
    ends: npt.NDArray[np.float64] = np.concatenate([[0.0], (change**0.7 + 0.01).cumsum()])
    ends *= _CELLS / ends[-1]
    return ends


def _codes(ends: npt.NDArray[np.float64]) -> list[npt.NDArray[np.int64]]:
    """Return what each channel adds to a colour's code, by the upper 18 bits of a float.

    The code's lower 15 bits are the steps of B, G and R, and the upper ones are the number of the cell, block by block. It
    is beyond the last cell for a colour that is in none: below 0, infinite, or not a number.
    """
    lowest = np.arange(1 << (32 - _DROPPED), dtype=np.uint32) << _DROPPED
    values = (lowest | 1 << (_DROPPED - 1)).view(np.float32)  # the middle of the floats that share these bits
    with np.errstate(invalid="ignore"):
        outside = ~np.isfinite(values) | (values < -(2.0**-20))
    inside = np.where(outside, np.float32(0), values.clip(0, None))
    along = (np.interp(_place(inside), np.arange(len(ends)), ends) * _STEPS).astype(np.int64)
    cells, steps = np.divmod(np.minimum(along, _CELLS * _STEPS - 1), _STEPS)
    codes = []
    for channel in range(3):
        number = cells // _SIDE * _BLOCKS**channel * _SIDE**3 + cells % _SIDE * _SIDE**channel
        codes.append(np.where(outside, _ALL << _CELL_SHIFT, number << _CELL_SHIFT | steps << _STEP_BITS * channel))
    return codes


def _planes(corners: npt.NDArray[np.uint16], quarters: npt.NDArray[np.uint16]) -> npt.NDArray[np.int64]:
    """Return the planes of cells: N x 4 x 4 x 4 x 4 numbers, as ColourTable holds them.

    A plane has the mean slopes of its cell's 27 corners and middles. It is as near as it can then be to these and to the
    eight points between them, which tell of an edge that runs between middle and corner. All numbers are halves of whole
    ones, so the sums are the same with any N.
    """
    seen, places = _cells(corners, (-1.0, 0.0, 1.0))
    between, inner = _cells(quarters, (-0.5, 0.5))
    shape = seen.shape[1:]
    seen, between = seen.reshape(len(places), -1), between.reshape(len(inner), -1)
    slopes = places.T @ seen  # nine times what the colour grows by along a cell
    rest = np.concatenate([18 * seen - places @ slopes, 18 * between - inner @ slopes])
    low, high = rest.min(axis=0), rest.max(axis=0)

    unit = 256 / 257  # from 1/65535 to 1/256 of a display value, which is the unit of the table
    growth = np.rint(slopes[::-1] * (unit / 9 / _STEPS)).astype(np.int64)
    # Half a display value is added, so that the upper eight bits are the nearest value.
    first = np.rint((low + high) * (unit / 36) + 128).astype(np.int64) - growth.sum(axis=0) * (_STEPS - 1) // 2
    smallest = first + (_STEPS - 1) * np.minimum(growth, 0).sum(axis=0)
    largest = first + (_STEPS - 1) * np.maximum(growth, 0).sum(axis=0)
    moved = np.maximum(largest - 0xFFFF, 0) + np.minimum(smallest, 0)  # else a value would run over into the next one
    off = (high - low) * (unit / 36) + np.abs(moved)
    uneven = (off > _EXACT * 256) | (np.abs(growth).max(axis=0) > _STEEP * 256 / _STEPS)

    values = np.stack([first - moved, *growth]).reshape(4, *shape)
    planes = np.moveaxis(values[..., 0] + (values[..., 1] << 16) + (values[..., 2] << 32), 0, -1)
    planes[..., 0] += 1 << 48  # above 0 also for black
    planes[uneven.reshape(shape).any(axis=-1)] = _UNEVEN, 0, 0, 0
    return planes


def _cells(
    points: npt.NDArray[np.uint16], along: tuple[float, ...]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the points of blocks cell by cell, P x N x 4 x 4 x 4 x 3, and where the P are in a cell: P x 3.

    The places, and `along` for one channel, are half cells from the middle.
    """
    first = [slice(i, i + 2 * _SIDE - 1, 2) for i in range(len(along))]
    seen = np.stack([points[:, b, g, r] for b, g, r in itertools.product(first, repeat=3)])
    return seen.astype(np.float64), np.array(list(itertools.product(along, repeat=3)))


def _value(place: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
    """Return the value at a place on the scale: quarters of octaves, after four equal steps from 0 to the smallest."""
    return np.where(place < _PARTS, place / _PARTS, 2.0 ** (place / _PARTS - 1)) * _SMALLEST


def _place(value: npt.NDArray[np.float32]) -> npt.NDArray[np.floating[Any]]:
    """Return the place of a value on the scale; the reverse of `_value`."""
    size = value.astype(np.float64) / _SMALLEST
    return np.where(size < 1, size, np.log2(np.maximum(size, 1)) + 1) * float(_PARTS)
