"""Decides whether an image can be read from Cycles' memory, or whether Blender has to write it to a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from .display import display_table

if TYPE_CHECKING:
    from .display import DisplayTable

__all__ = ["CapturePlan", "passes_obstacle", "plan_capture"]

_GREASE_PENCIL = {"GPENCIL", "GREASEPENCIL"}


class CapturePlan(NamedTuple):
    """How `render` gets an image."""

    compositing: bool
    """Whether Blender has to run the compositor."""
    sequencing: bool
    """Whether Blender has to run the sequencer."""
    passes_in_memory: bool = False
    """Whether the passes can be read from Cycles' memory."""
    image_in_memory: bool = False
    """Whether the pass Combined is what Blender would save, except for the view transform."""
    table: DisplayTable | None = None
    """The view transform of a display image from memory."""
    reason: str = ""
    """Why the image has to come from a file; "" for an image from memory."""


def plan_capture(scene: Any, color: str, channels: str) -> CapturePlan:
    """Return the cheapest plan that gives what Blender would save. For the arguments see `render`."""
    steps = _has_compositor(scene), _has_strips(scene)
    if obstacle := passes_obstacle(scene):
        return CapturePlan(*steps, reason=obstacle)
    if obstacle := _image_obstacle(scene, *steps):
        return CapturePlan(*steps, passes_in_memory=True, reason=obstacle)
    plan = CapturePlan(*steps, passes_in_memory=True, image_in_memory=True)
    if color == "linear":
        return plan
    view = scene.view_settings
    if view.use_curve_mapping and channels == "RGBA":
        return plan._replace(reason="the view's curves are applied while alpha is in the colours")
    table = display_table(scene)
    if table is None:
        mixing = f"the view transform mixes the channels ({view.view_transform}, look {view.look})"
        return plan._replace(reason=mixing)
    return plan._replace(table=table)


def passes_obstacle(scene: Any) -> str:
    """Return why the passes in Cycles' memory are not those of the whole frame, or ""."""
    render = scene.render
    if render.engine != "CYCLES":
        return f"the engine is {render.engine}"
    if render.use_multiview:
        return "render.use_multiview is on"
    if render.use_border and not render.use_crop_to_border:
        return "a border is rendered without cropping"
    scale = render.resolution_percentage / 100
    size = max(render.resolution_x, render.resolution_y) * scale
    if scene.cycles.use_auto_tile and size > scene.cycles.tile_size:
        return "Cycles renders in tiles (cycles.use_auto_tile), and puts them together later"
    return ""


def _image_obstacle(scene: Any, compositing: bool, sequencing: bool) -> str:
    """Return why Blender would save another image than the one in Cycles' memory, or ""."""
    import bpy

    render = scene.render
    if compositing:
        return "the scene has compositor nodes"
    if sequencing:
        return "the scene has sequencer strips"
    if render.use_stamp:
        return "render.use_stamp writes into the image"
    if render.use_freestyle:
        return "Freestyle draws into the image"
    if len(scene.view_layers) > 1:
        return "the scene has several view layers"
    if getattr(render.image_settings, "color_management", "FOLLOW_SCENE") != "FOLLOW_SCENE":
        return "image_settings.color_management is not FOLLOW_SCENE"
    pencils = (getattr(bpy.data, name, ()) for name in ("grease_pencils", "grease_pencils_v3"))
    if any(pencils) and any(obj.type in _GREASE_PENCIL for obj in bpy.data.objects):
        return "grease pencil is drawn into the image"
    return ""


def _has_compositor(scene: Any) -> bool:
    """Whether there are compositor nodes that Blender would run."""
    if not scene.render.use_compositing:
        return False
    import bpy

    if bpy.app.version >= (5, 0):
        tree = scene.compositing_node_group
    elif scene.use_nodes:
        tree = scene.node_tree
    else:
        return False
    return tree is not None and len(tree.nodes) > 0


def _has_strips(scene: Any) -> bool:
    """Whether there are sequencer strips that Blender would show."""
    editor = scene.sequence_editor
    if editor is None or not scene.render.use_sequencer:
        return False
    strips = editor.strips_all if hasattr(editor, "strips_all") else editor.sequences_all  # "strips" from 4.4 on
    return len(strips) > 0
