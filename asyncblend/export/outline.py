"""outline_of: the outline of a mask as one polygon, with all its parts and holes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_Points = npt.NDArray[np.float64]

_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # how x and y change in the directions right, down, left and up


def outline_of(mask: npt.NDArray[np.bool_]) -> _Points:
    """Return the outline of a mask that is not empty as one polygon of N x 2 corners of pixels, x y.

    Parts that others divide, and holes, are joined by bridges of no width, which run forth and back along one line. By
    the even-odd rule, the polygon has exactly the centres of the mask's pixels inside. `cv2.fillPoly` fills by that rule,
    but draws the polygon's lines too, bridges among them, a pixel wide.
    """
    first, *others = sorted(_loops(mask), key=len, reverse=True)
    joined = first
    for loop in others:
        # Short bridges, but not the shortest ones: an object behind leaves has thousands of holes.
        at = ((joined - loop[0]) ** 2).sum(axis=1).argmin()
        begin = ((loop - joined[at]) ** 2).sum(axis=1).argmin()
        turned = np.roll(loop, -begin, axis=0)
        joined = np.concatenate([joined[: at + 1], turned, turned[:1], joined[at:]])
    return joined


def _loops(mask: npt.NDArray[np.bool_]) -> list[_Points]:
    """Return the closed lines between the mask and what is outside of it. The mask is to the right of each line."""
    padded = np.pad(mask, 1).astype(np.int8)
    across, down = np.diff(padded, axis=0)[:, 1:-1], np.diff(padded, axis=1)[1:-1]
    # Where a line goes right above a pixel, down to the right of one, left below one, and up to the left of one. It
    # begins at the corner that is so many steps to the right of, and below, the place in the array.
    borders = ((across == 1, 0, 0), (down == -1, 0, 0), (across == -1, 1, 0), (down == 1, 0, 1))
    leaving: dict[tuple[int, int], list[int]] = {}  # by corner the directions in which lines go on from there
    for direction, (border, right, below) in enumerate(borders):
        ys, xs = np.nonzero(border)
        for x, y in zip((xs + right).tolist(), (ys + below).tolist(), strict=True):
            leaving.setdefault((x, y), []).append(direction)
    loops = []
    while leaving:
        start = at = next(iter(leaving))
        heading, before, corners = leaving[at][0], -1, []
        while before < 0 or at != start:
            # Where two pixels touch with a corner alone, turning right keeps them apart.
            heading = next(turn % 4 for turn in (heading + 1, heading, heading + 3) if turn % 4 in leaving[at])
            leaving[at].remove(heading)
            if not leaving[at]:
                del leaving[at]
            if heading != before:
                corners.append(at)
            before = heading
            at = (at[0] + _STEPS[heading][0], at[1] + _STEPS[heading][1])
        loops.append(np.array(corners, np.float64))
    return loops
