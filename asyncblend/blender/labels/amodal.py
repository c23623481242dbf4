"""Whole silhouettes: what of an object would be seen if nothing were in front of it, also outside the image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .meshes import edges_for
from .silhouette import Spans, edges_of, spans_of

if TYPE_CHECKING:
    from ..scene.lens import View
    from .keypoints import Annotated
    from .unseen import Unseen

_Ids = npt.NDArray[np.integer[Any]]


def fractions_of(visible: npt.NDArray[np.int64], each: list[Annotated], view: View) -> npt.NDArray[np.float32]:
    """Return which share of its silhouette is visible of each of N objects, N float32.

    Args:
        visible: How many pixels are visible of each.
    """
    found = np.zeros(len(each), np.float32)
    for number in np.flatnonzero(visible):  # an object that cannot be seen needs no silhouette
        found[number] = visible[number] / max(_spans(each[number], view).pixels, visible[number])
    return found


def silhouettes_of(
    each: list[Annotated], mask: _Ids, visible: npt.NDArray[np.int64], view: View, unseen: Unseen
) -> dict[str, npt.NDArray[Any]]:
    """Return the labels that `annotate` has with `silhouettes`. `mask` and `visible` are the pixels that are visible."""
    width, height = view.frame.width, view.frame.height
    whole = np.zeros((len(each), height, width), bool)
    boxes, pixels = np.zeros((len(each), 4), np.float32), np.zeros(len(each), np.int32)
    for number, one in enumerate(each):
        if unseen.has(one.obj, one.instancer):
            continue
        spans, seen, corners = _spans(one, view), mask == one.entry.id, []
        if spans.pixels:
            covered = [[spans.start.min(), spans.row.min()], [spans.stop.max(), spans.row.max() + 1]]
            corners.append(np.array(covered) - (width, height))
        # A render samples each pixel at a random place, and so shows some beyond the silhouette's outline.
        if visible[number]:
            y, x = np.nonzero(seen)
            corners.append(np.array([[x.min(), y.min()], [x.max() + 1, y.max() + 1]]))
        if corners:
            low, high = np.min(corners, axis=0)[0], np.max(corners, axis=0)[1]
            boxes[number] = *low, *(high - low)
        whole[number] = spans.mask(width, height, width, height) | seen
        pixels[number] = max(spans.pixels, visible[number])
    return {"silhouette": whole, "silhouette_bbox": boxes, "silhouette_pixels": pixels}


def _spans(one: Annotated, view: View) -> Spans:
    """Return the silhouette in an image extended to three times its width and height, as in BOP."""
    width, height = view.frame.width, view.frame.height
    xy, triangles, clipped, *_ = one.appearance
    edges = edges_of(triangles) if clipped else edges_for(one.name, one.mesh.triangles)
    return spans_of(xy, triangles, edges, (-width, -height, 3 * width, 3 * height))
