"""Occlusion: which objects the camera can see, and which points have a surface before them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_TOLERANCE = 1e-4
"""A hit that is nearer to a point than this part of their distance from the camera does not hide it: it is the surface
that the point lies on. That is 1 mm at 10 m."""


def is_occluded(
    start: npt.NDArray[np.float64],
    direction: npt.NDArray[np.float64],
    length: float,
    owner: Any,
    margin: float,
    hidden: set[str],
    depsgraph: Any,
) -> bool:
    """Whether there is a surface between a point and the camera, on a ray of that length in world space.

    A point may lie up to `margin`, in Blender units along the ray, below the surface of its `owner`. Rays pass through
    the `hidden` objects, and through those that the camera does not see.
    """
    import bpy
    from mathutils import Vector

    begin, along = Vector(start), Vector(direction)
    tolerance = _TOLERANCE * length
    travelled, end = 0.0, length - tolerance
    while travelled < end:
        at = begin + along * travelled
        hit, place, _, _, obj, _ = bpy.context.scene.ray_cast(depsgraph, at, along, distance=end - travelled)
        if not hit:
            return False
        travelled += (place - at).length
        on_owner = obj == owner and end - travelled <= margin
        if not on_owner and obj.name not in hidden and obj.visible_camera:
            return True
        travelled += tolerance  # continue behind the surface that was hit
    return False


def hidden_from_renders(view_layer: Any) -> set[str]:
    """Return the names of the view layer's objects that are not rendered, because of themselves or their collections."""
    shown = _shown_by_collections(view_layer.layer_collection)
    return {obj.name for obj in view_layer.objects if obj.hide_render or obj.name not in shown}


def _shown_by_collections(layer_collection: Any) -> set[str]:
    """Return the objects in a collection that is shown. One that is hidden, or indirect only, hides those in it."""
    if layer_collection.collection.hide_render or layer_collection.indirect_only:
        return set()
    found = set() if layer_collection.exclude else {obj.name for obj in layer_collection.collection.objects}
    for child in layer_collection.children:
        found |= _shown_by_collections(child)
    return found
