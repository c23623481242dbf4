"""Points: which values of an item are points in an image, as its "points" declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .colours import Array

ALWAYS = "xy"
"""The one name that need not be declared."""


class Points(NamedTuple):
    """The points of one name."""

    name: str
    image: str
    """Name of the image that they belong to. Empty: the one that all annotations are drawn on."""
    rows: Array
    """N x 3 float64: x, y in pixels, and the visibility: 2 visible, 1 occluded, 0 not to be drawn."""
    flagged: bool
    """Whether the array has a visibility."""


def points_in(item: Mapping[str, Any]) -> tuple[list[Points], bool]:
    """Return an item's points, and whether each name that it declares is there.

    "points" is a list of names, or a dict from a name to that of the image which the points belong to, or one name.
    Each array is ... x 2, x and y, or ... x 3 with a visibility of 0, 1 or 2 as keypoints have it. A declared name may be missing
    or have no such array; "points" itself is none then.
    """
    declared, known = item.get("points"), True
    if isinstance(declared, str):
        declared = [declared]
    images: dict[str, str] = {}
    if isinstance(declared, Mapping):
        images = {name: image for name, image in declared.items() if isinstance(name, str) and isinstance(image, str)}
        known = len(images) == len(declared)
    elif isinstance(declared, list | tuple):
        images = {name: "" for name in declared if isinstance(name, str)}
        known = len(images) == len(declared)
    elif declared is not None:
        known = False
    images.setdefault(ALWAYS, "")
    found = [Points(name, image, *rows) for name, image in images.items() if (rows := _rows(item.get(name)))]
    missing = images.keys() - {one.name for one in found} - {ALWAYS}
    return found, known and not missing


def _rows(value: Any) -> tuple[Array, bool] | None:
    """Return x, y and visibility of each point, and whether the array has the visibility."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub" or value.ndim < 2:
        return None
    if value.shape[-1] not in (2, 3):
        return None
    rows = value.reshape(-1, value.shape[-1]).astype(np.float64)
    if rows.shape[1] == 3:
        return (rows, True) if np.isin(rows[:, 2], (0, 1, 2)).all() else None
    return np.column_stack([rows, np.full(len(rows), 2.0)]), False
