"""The objects that the camera does not see wherever they are, and whose copies it may see nevertheless."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from .as_rendered import Evaluation


class Unseen(NamedTuple):
    """Objects of the view layer that the camera does not see, as sets that may overlap."""

    hidden: set[Any]  # from renders, because of themselves or of their collections
    unshown: set[Any]  # instancers, emitters and what they copy, where only copies are rendered, but rays meet all
    others: set[Any]  # not visible to cameras, or copied to their parent's vertices or faces and shown only there

    def __contains__(self, obj: object) -> bool:
        return obj in self.hidden or obj in self.unshown or obj in self.others

    def has(self, obj: Any, instancer: Any = None) -> bool:
        """Whether the camera does not see this object, or this copy of it by an instancer."""
        if instancer is not None:
            return not (obj.visible_camera and instancer.visible_camera)
        return obj in self


def unseen_in(view_layer: Any, scene: Evaluation) -> Unseen:
    """Return the objects of a view layer that the camera does not see.

    A holdout is none of them: it covers pixels, although no label shows it there.
    """
    objects = view_layer.objects
    copied = {obj for obj in objects if _is_copied_to_parts(obj)}
    others = {obj for obj in objects if not obj.visible_camera} | copied
    return Unseen(_hidden_from_renders(view_layer), _unshown(objects, scene) | _without_twin(copied, scene), others)


def _hidden_from_renders(view_layer: Any) -> set[Any]:
    shown = _shown_by_collections(view_layer.layer_collection)
    return {obj for obj in view_layer.objects if obj.hide_render or obj not in shown}


def _shown_by_collections(layer_collection: Any) -> set[Any]:
    """Return the objects in a collection that is shown. One that is hidden, or indirect only, hides those in it."""
    if layer_collection.collection.hide_render or layer_collection.indirect_only:
        return set()
    found = set() if layer_collection.exclude else set(layer_collection.collection.objects)
    for child in layer_collection.children:
        found |= _shown_by_collections(child)
    return found


def _unshown(objects: Any, scene: Evaluation) -> set[Any]:
    """Return the objects that show copies, and not themselves: "Show Instancer", or "Show Emitter", is off."""
    asked = [obj for obj in objects if not obj.show_instancer_for_render]
    found = {obj for obj in asked if obj.is_instancer or len(obj.particle_systems)}
    by_nodes = {obj for obj in asked if any(modifier.type == "NODES" for modifier in obj.modifiers)}
    if by_nodes - found:  # only the evaluated scene tells whether the nodes make copies
        instances = (item for item in scene.depsgraph.object_instances if item.is_instance)
        found |= by_nodes & {item.parent.original for item in instances}
    return found


def _without_twin(objects: set[Any], scene: Evaluation) -> set[Any]:
    """Return those of which no copy is where the object itself is, so that a ray which meets one there may pass."""
    found = set(objects)
    for item in scene.depsgraph.object_instances if found else ():
        source = item.object.original
        if item.is_instance and source in found and same_matrix(item.matrix_world, scene.matrix(source)):
            found.remove(source)
    return found


def same_matrix(one: Any, other: Any) -> bool:
    """Whether two matrices are the same but for rounding."""
    return bool(np.allclose(np.array(one), np.array(other), rtol=1e-5, atol=1e-6))


def _is_copied_to_parts(obj: Any) -> bool:
    return obj.parent is not None and obj.parent.instance_type in ("VERTS", "FACES")
