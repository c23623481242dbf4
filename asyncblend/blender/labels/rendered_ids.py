"""The ids of the objects in the image: of the last render, or else rendered for that alone."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np

from ..capture import object_ids as instances
from ..capture.render import render

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..capture.object_ids import LastMask

__all__ = ["hidden_from_renders", "rendered_ids"]


def rendered_ids() -> LastMask:
    """`instances.last()`, if it is still true; else that of a render with nothing but ids.

    That one is by Cycles whatever the scene's engine, with one sample in each pixel's centre, without motion blur and
    depth of field. All settings are as before afterwards.
    """
    import bpy

    last = instances.last()
    if last is not None and last.still_true():
        return last
    with _ids_only(bpy.context.scene, bpy.context.view_layer):
        render(("instance",), color="linear")  # no view transform for an image that nobody wants
    rendered = instances.last()
    assert rendered is not None
    return rendered


@contextlib.contextmanager
def _ids_only(scene: Any, view_layer: Any) -> Iterator[None]:
    """Settings for a fast render of ids."""
    cycles, blurred = scene.cycles, getattr(getattr(scene.camera, "data", None), "dof", None)
    wanted = [
        (scene.render, "engine", "CYCLES"),
        (scene.render, "use_motion_blur", False),
        (cycles, "samples", 1),
        (view_layer, "samples", 0),  # else they count instead of the scene's
        (cycles, "use_adaptive_sampling", False),
        (cycles, "use_denoising", False),
        (cycles, "pixel_filter_type", "BOX"),
        (cycles, "filter_width", 0.01),
        (cycles, "max_bounces", 0),
    ]
    if blurred is not None:
        wanted.append((blurred, "use_dof", False))
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in wanted]
    try:
        for owner, name, value in wanted:
            if getattr(owner, name) != value:  # a change makes Blender evaluate the scene anew
                setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            if getattr(owner, name) != value:
                setattr(owner, name, value)


def hidden_from_renders(view_layer: Any) -> set[str]:
    """The names of the view layer's objects that a render's camera does not see, by themselves or by their collections."""
    hidden = np.empty(len(view_layer.objects), bool)
    view_layer.objects.foreach_get("hide_render", hidden)
    found = {view_layer.objects[number].name for number in map(int, np.flatnonzero(hidden))}
    shown = _shown_by_collections(view_layer.layer_collection)
    return found | {obj.name for obj in view_layer.objects if obj.name not in shown}


def _shown_by_collections(layer_collection: Any) -> set[str]:
    """An object is seen if one of its collections is; one that is hidden, or indirect only, hides those in it."""
    if layer_collection.collection.hide_render or layer_collection.indirect_only:
        return set()
    found = set() if layer_collection.exclude else {obj.name for obj in layer_collection.collection.objects}
    for child in layer_collection.children:
        found |= _shown_by_collections(child)
    return found
