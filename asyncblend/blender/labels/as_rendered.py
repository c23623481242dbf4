"""The scene as a render evaluates it, where that differs from what Blender's viewport has.

Modifiers, simplification, curves, metaballs and particles have settings for renders and others for the viewport. Python
gets the viewport's evaluation from Blender whenever it asks, but a render's only inside a render engine. So an engine
that draws nothing asks for it: that takes the time of the evaluation, and 2 ms.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from ..capture.settings import changed
from ..scene.placing import evaluated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_T = TypeVar("_T")

_ENGINE = "ASYNCBLEND_NOTHING"
# What a modifier calls its detail in the viewport and in a render.
_DETAILS = [
    ("levels", "render_levels"),
    ("viewport_resolution", "resolution"),
    ("steps", "render_steps"),
    ("show_viewport", "show_render"),
]
# The same of the data of curves, texts and surfaces, where 0 in a render means "as in the viewport". In the viewport each
# spline has its own; in a render all have that of the data.
_RESOLUTIONS = [("resolution_u", "render_resolution_u"), ("resolution_v", "render_resolution_v")]
_SIMPLIFICATIONS = [
    ("simplify_subdivision", "simplify_subdivision_render"),
    ("simplify_child_particles", "simplify_child_particles_render"),
]


class Evaluation(NamedTuple):
    """The scene as it is evaluated for labels."""

    depsgraph: Any  # of a render, or the viewport's, where the two do not differ
    viewport: Any  # it has what is hidden from renders, too

    @property
    def of_render(self) -> bool:
        return self.depsgraph is not self.viewport

    def holding(self, obj: Any) -> Any:
        """Return the depsgraph that has the object: it may be hidden from renders."""
        return self.depsgraph if obj.evaluated_get(self.depsgraph).is_evaluated else self.viewport

    def evaluated(self, obj: Any) -> Any:
        """Return the object with constraints, parents and drivers applied; RuntimeError if Blender does not update it."""
        return evaluated(obj, self.holding(obj))

    def matrix(self, obj: Any) -> npt.NDArray[np.float64]:
        """Return the 4 x 4 matrix from the object's space to the world."""
        return np.array(self.evaluated(obj).matrix_world, dtype=np.float64)


def render_differs(scene: Any) -> bool:
    """Whether an object of the file may have another shape in a render than in the viewport, or only there a shape."""
    import bpy

    if scene.render.use_simplify and _differs(scene.render, _SIMPLIFICATIONS):
        return True
    if _hiding_differs():
        return True
    if any(_particles_differ(settings) for settings in bpy.data.particles):
        return True
    if any(data.resolution != data.render_resolution for data in bpy.data.metaballs):
        return True
    if any(_resolution_differs(data) for data in bpy.data.curves):
        return True
    if any(node.bl_idname == "GeometryNodeIsViewport" for tree in bpy.data.node_groups for node in tree.nodes):
        return True
    return any(_differs(modifier, _DETAILS) for obj in bpy.data.objects for modifier in obj.modifiers)


def _differs(owner: Any, pairs: list[tuple[str, str]]) -> bool:
    return any(
        getattr(owner, one, None) != getattr(owner, other, None) for one, other in pairs if hasattr(owner, other)
    )


def _hiding_differs() -> bool:
    """Whether renders show what the viewport hides, or hide what it shows a copy of.

    An object itself that only renders hide needs no other evaluation, and is common in scenes that hide at random.
    """
    import bpy

    both = (*bpy.data.objects, *bpy.data.collections)
    if any(found.hide_viewport and not found.hide_render for found in both):
        return True
    from_renders = {found for found in both if found.hide_render and not found.hide_viewport}
    return bool(from_renders) and not from_renders.isdisjoint(_in_instanced_collections())


def _in_instanced_collections() -> set[Any]:
    """Return the collections that objects, particles or nodes may show copies of, with all that is in them."""
    import bpy

    users = bpy.data.user_map(key_types={"COLLECTION"}, value_types={"OBJECT", "NODETREE", "PARTICLE"})
    used = [collection for collection, by in users.items() if by]
    within = [found for collection in used for found in (*collection.children_recursive, *collection.all_objects)]
    return {*used, *within}


def _resolution_differs(data: Any) -> bool:
    return any(
        getattr(data, other) != getattr(owner, one)
        for one, other in _RESOLUTIONS
        if getattr(data, other) != 0
        for owner in (data, *data.splines)
    )


def _particles_differ(settings: Any) -> bool:
    shown = "child_percent" if hasattr(settings, "child_percent") else "child_nbr"  # renamed in Blender 4.0
    children = settings.child_type != "NONE" and getattr(settings, shown) != settings.rendered_child_count
    not_shown = settings.display_method == "NONE" and settings.render_type != "NONE"
    amount = settings.display_percentage != 100 or settings.display_step != settings.render_step
    return bool(children or not_shown or amount)


def with_render_depsgraph(function: Callable[[Any], _T]) -> _T:
    """Return function(depsgraph) with the current view layer's depsgraph of a render, which exists only meanwhile.

    No handler of the user is called, because it could change the scene a second time. All settings are put back.
    Blender's "Render Result" is empty afterwards.

    Raises:
        RuntimeError: Blender cannot render.
        Exception: What the function raises.
    """
    import bpy

    layer, results, errors = bpy.context.view_layer.name, [], []

    def render(_self: Any, depsgraph: Any) -> None:
        if depsgraph.view_layer.name != layer:
            return
        try:
            results.append(function(depsgraph))
        except BaseException as error:  # Blender would only print it
            errors.append(error)

    # A class statement would not do: without bpy this file can be imported, and the class must be gone at Blender's exit.
    engine = type(_ENGINE, (bpy.types.RenderEngine,), {"bl_idname": _ENGINE, "bl_label": _ENGINE, "render": render})
    options = bpy.context.scene.render
    off = ["use_compositing", "use_sequencer", "use_multiview", "use_freestyle", "use_persistent_data"]
    bpy.utils.register_class(engine)
    try:
        with (
            _no_handlers(),
            _some_camera(bpy.context.scene),
            changed([(options, "engine", _ENGINE), *((options, name, False) for name in off)]),
        ):
            bpy.ops.render.render(write_still=False)
    finally:
        bpy.utils.unregister_class(engine)  # the bpy module would hang at exit with an engine in Python
    if errors:
        raise errors[0]
    if not results:
        raise RuntimeError(
            f"Blender did not evaluate the view layer {layer!r} for a render: is its use for renders off?"
        )
    return results[0]


@contextlib.contextmanager
def _some_camera(scene: Any) -> Iterator[None]:
    """Have the scene a camera within the `with` block: without one Blender does not render, not even nothing."""
    import bpy

    if scene.camera is not None:
        yield
        return
    data = bpy.data.cameras.new(_ENGINE)
    camera = bpy.data.objects.new(_ENGINE, data)
    scene.camera = camera
    try:
        yield
    finally:
        scene.camera = None
        bpy.data.objects.remove(camera)
        bpy.data.cameras.remove(data)


@contextlib.contextmanager
def _no_handlers() -> Iterator[None]:
    """Have no handler of renders, frames and updates called within the `with` block."""
    import bpy

    handlers = bpy.app.handlers
    names = [name for name in dir(handlers) if name.startswith(("render_", "frame_change_", "depsgraph_update_"))]
    before = {name: list(getattr(handlers, name)) for name in names}
    try:
        for name in names:
            getattr(handlers, name).clear()
        yield
    finally:
        for name, functions in before.items():
            getattr(handlers, name)[:] = functions
