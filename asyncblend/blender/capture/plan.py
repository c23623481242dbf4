"""Decides whether an image can be read from Cycles' memory, or whether Blender has to write it to a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from .display import display_table

if TYPE_CHECKING:
    from .display import DisplayTable

_GREASE_PENCIL = {"GPENCIL", "GREASEPENCIL"}


class CapturePlan(NamedTuple):
    """How `render` gets an image."""

    compositor_off: bool  # whether the compositor has to be off, because it has no nodes
    passes_in_memory: bool = False  # whether the passes can be read from Cycles' memory
    image_in_memory: bool = False  # whether the pass Combined is what Blender would save, except for the view transform
    opaque: bool = False  # whether Blender's alpha is exactly 1 in every pixel for which an 8 bit file says 255
    reason: str = ""  # why the image has to come from a file; "" for an image from memory


def plan_capture(scene: Any) -> CapturePlan:
    """Return the cheapest plan that gives what Blender would save."""
    tree = compositor_tree(scene)
    compositing = tree is not None and len(tree.nodes) > 0
    off = tree is not None and not compositing
    if obstacle := passes_obstacle(scene):
        opaque = _alpha_is_exact(scene) and not _image_obstacle(scene, compositing)
        return CapturePlan(off, opaque=opaque, reason=obstacle)
    if obstacle := _image_obstacle(scene, compositing):
        return CapturePlan(off, passes_in_memory=True, reason=obstacle)
    return CapturePlan(off, passes_in_memory=True, image_in_memory=True)


def view_table(scene: Any, channels: str) -> tuple[DisplayTable | None, str]:
    """Return the view transform for an image in memory, or None and why Blender has to apply it.

    Call it after the render: what handlers and animation have made of the view settings is what Blender saves with.
    """
    view = scene.view_settings
    if view.use_curve_mapping and channels == "RGBA":
        return None, "the view's curves are applied while alpha is in the colours"
    if table := display_table():
        return table, ""
    return None, f"the view transform has too many edges for a table ({view.view_transform}, look {view.look})"


def passes_obstacle(scene: Any) -> str:
    """Return why the passes in Cycles' memory are not those of the whole frame, or ""."""
    render = scene.render
    if render.engine != "CYCLES":
        return f"the engine is {render.engine}"
    size = max(render.resolution_x, render.resolution_y) * render.resolution_percentage / 100
    tiled = scene.cycles.use_auto_tile and size > scene.cycles.tile_size
    obstacles = [
        (render.use_multiview, "render.use_multiview is on"),
        (render.use_border and not render.use_crop_to_border, "a border is rendered without cropping"),
        (tiled, "Cycles renders in tiles (cycles.use_auto_tile), and puts them together later"),
    ]
    return next((reason for obstacle, reason in obstacles if obstacle), "")


def _image_obstacle(scene: Any, compositing: bool) -> str:
    """Return why Blender would save another image than the one in Cycles' memory, or ""."""
    import bpy

    render = scene.render
    management = getattr(render.image_settings, "color_management", "FOLLOW_SCENE")
    pencils = any(getattr(bpy.data, name, ()) for name in ("grease_pencils", "grease_pencils_v3"))
    drawn = pencils and any(obj.type in _GREASE_PENCIL for obj in bpy.data.objects)
    obstacles = [
        (compositing, "the scene has compositor nodes"),
        (has_strips(scene), "the scene has sequencer strips"),
        (render.use_stamp, "render.use_stamp writes into the image"),
        (render.use_freestyle, "Freestyle draws into the image"),
        (len(scene.view_layers) > 1, "the scene has several view layers"),
        (management != "FOLLOW_SCENE", "image_settings.color_management is not FOLLOW_SCENE"),
        (drawn, "grease pencil is drawn into the image"),
    ]
    return next((reason for obstacle, reason in obstacles if obstacle), "")


def _alpha_is_exact(scene: Any) -> bool:
    """Whether an engine other than Cycles gives an alpha of exactly 1 wherever an 8 bit file would say 255.

    EEVEE does, because from Blender 4.2 on it makes 1 of what is above 0.995. Workbench does without anti-aliasing: it
    adds up samples in 16 bit floats, and the alpha of 5 opaque ones is 0.9985. In older Blenders a file with alpha saves
    no time.
    """
    import bpy

    render, display = scene.render, scene.display
    if bpy.app.version < (4, 2) or render.film_transparent or (render.use_border and not render.use_crop_to_border):
        return False
    if render.engine == "BLENDER_WORKBENCH":
        return display.render_aa == "OFF" and not display.shading.use_dof
    return render.engine in ("BLENDER_EEVEE_NEXT", "BLENDER_EEVEE")


def compositor_tree(scene: Any) -> Any:
    """Return the compositor's tree of nodes that Blender would run after a render, or None."""
    if not scene.render.use_compositing:
        return None
    if hasattr(scene, "compositing_node_group"):  # from Blender 5.0 on
        return scene.compositing_node_group
    return scene.node_tree if scene.use_nodes else None


def has_strips(scene: Any) -> bool:
    """Whether there are sequencer strips that Blender would show."""
    editor = scene.sequence_editor if scene.render.use_sequencer else None
    strips = "strips_all" if hasattr(editor, "strips_all") else "sequences_all"  # renamed in Blender 4.4
    return len(getattr(editor, strips, ())) > 0
