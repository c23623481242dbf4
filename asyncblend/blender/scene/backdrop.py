"""A picture behind everything: nodes in the scene's world that only the camera sees, and the pictures' memory."""

from __future__ import annotations

import functools
import os
from typing import Any

from ...errors import ConfigError
from .lens import frame_of

_KINDS = (".bmp", ".exr", ".hdr", ".jpeg", ".jpg", ".png", ".tga", ".tif", ".tiff", ".webp")
_KEPT = 256 * 1024  # KiB of pixels that stay in memory
_MARK = "asyncblend_backdrop"
_PICTURE, _MAPPING, _MIX = f"{_MARK}_picture", f"{_MARK}_mapping", f"{_MARK}_mix"


@functools.lru_cache(maxsize=64)
def pictures(folder: str) -> tuple[str, ...]:
    """Return the paths of the pictures in a folder, sorted by name: at least one. The folder is listed only once."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise ConfigError(f"cannot list the folder {folder!r}: {error.strerror}") from None
    found = tuple(os.path.join(folder, name) for name in names if name.lower().endswith(_KINDS))
    if not found:
        raise ConfigError(
            f"there is no picture in {folder!r}: it has {len(names)} entries, none of which ends in {', '.join(_KINDS)}"
        )
    return found


def show(scene: Any, path: str) -> None:
    """Let the camera see a picture wherever it sees no object. The picture is centred and covers the image."""
    if scene.render.engine == "BLENDER_WORKBENCH":
        raise ConfigError("Workbench does not draw the world, so no background: use Cycles or EEVEE")
    if scene.render.film_transparent:
        raise ConfigError(
            "a background is not seen through a transparent film: set scene.render.film_transparent = False"
        )
    image = loaded(path)
    nodes = _nodes(scene)
    nodes[_PICTURE].image = image

    frame, render = frame_of(scene.render), scene.render
    shape = (frame.full_width * render.pixel_aspect_x) / (frame.full_height * render.pixel_aspect_y)
    wider = image.size[0] / image.size[1] / shape
    parts = min(1.0, 1 / wider), min(1.0, wider)  # of the picture's width and height that are seen
    nodes[_MAPPING].inputs["Scale"].default_value = (*parts, 1)
    nodes[_MAPPING].inputs["Location"].default_value = (*((1 - part) / 2 for part in parts), 0)
    drop_oldest(scene)


def _our_images() -> list[Any]:
    """Return the pictures in memory, the least recently used first. Each one's mark is [time of use, KiB]."""
    import bpy

    return sorted((image for image in bpy.data.images if _MARK in image), key=lambda image: image[_MARK][0])


def loaded(path: str) -> Any:
    """Return the picture, marked as the most recently used one. It is loaded unless it is in memory."""
    import bpy

    ours = _our_images()
    now = ours[-1][_MARK][0] + 1 if ours else 1
    for image in ours:
        if image.filepath == path:
            image[_MARK] = [now, image[_MARK][1]]
            return image
    try:
        image = bpy.data.images.load(path)
    except RuntimeError as error:
        raise ConfigError(f"Blender cannot read the picture {path!r}: {str(error).strip()}") from None
    width, height = image.size  # reads the file
    if not width or not height:
        bpy.data.images.remove(image)
        raise ConfigError(f"Blender cannot read the picture {path!r}: it is broken, or of another kind")
    image[_MARK] = [now, 1 + width * height * (16 if image.is_float else 4) // 1024]
    return image


def drop_oldest(scene: Any) -> None:
    """Remove pictures until the rest fits into the memory for them; never what the scene's world shows."""
    import bpy

    ours = _our_images()
    size = sum(image[_MARK][1] for image in ours)
    shown = {getattr(node, "image", None) for node in scene.world.node_tree.nodes}
    for image in ours:
        if size <= _KEPT:
            break
        if image in shown:
            continue
        size -= image[_MARK][1]
        bpy.data.images.remove(image)


def _show_by_nodes(world: Any) -> None:
    """Let the world's nodes show the world's own colour."""
    import bpy

    if bpy.app.version < (5, 0):
        world.use_nodes = True
    for node in world.node_tree.nodes:
        if node.type == "BACKGROUND":
            node.inputs["Color"].default_value = (*world.color, 1)


def world_of(scene: Any) -> Any:
    """Return the scene's world, which has nodes then. It looks as before."""
    import bpy

    if scene.world is None:
        scene.world = bpy.data.worlds.new("World")
        scene.world.color = (0, 0, 0)  # as a scene without a world has it
        _show_by_nodes(scene.world)
    world = scene.world
    if bpy.app.version < (5, 0) and not world.use_nodes:  # later Blenders always use them, and warn of this switch
        _show_by_nodes(world)
    return world


def plain_surface(scene: Any, world: Any) -> Any:
    """Return the socket for what the world looks like and how it lights the scene, apart from our picture behind all."""
    if _MIX in world.node_tree.nodes:
        return world.node_tree.nodes[_MIX].inputs[1]
    output = world.node_tree.get_output_node("CYCLES" if scene.render.engine == "CYCLES" else "EEVEE")
    return (output or world.node_tree.nodes.new("ShaderNodeOutputWorld")).inputs["Surface"]


def _nodes(scene: Any) -> Any:
    """Return the nodes of the scene's world, with ours among them."""
    world = world_of(scene)
    nodes, link = world.node_tree.nodes, world.node_tree.links.new
    if _PICTURE in nodes and _MAPPING in nodes:
        return nodes

    surface = plain_surface(scene, world)
    own = surface.links[0].from_socket if surface.is_linked else None
    where, mapping = nodes.new("ShaderNodeTexCoord"), nodes.new("ShaderNodeMapping")
    picture, shine = nodes.new("ShaderNodeTexImage"), nodes.new("ShaderNodeBackground")
    path, mix = nodes.new("ShaderNodeLightPath"), nodes.new("ShaderNodeMixShader")
    mapping.name, picture.name, mix.name = _MAPPING, _PICTURE, _MIX
    picture.extension = "EXTEND"  # else opposite edges would blend into each other
    link(where.outputs["Window"], mapping.inputs["Vector"])
    link(mapping.outputs["Vector"], picture.inputs["Vector"])
    link(picture.outputs["Color"], shine.inputs["Color"])
    link(path.outputs["Is Camera Ray"], mix.inputs[0])
    if own is not None:
        link(own, mix.inputs[1])
    link(shine.outputs["Background"], mix.inputs[2])
    link(mix.outputs[0], surface)

    # With a picture in it, Cycles would make a map of all directions of the world for each frame, to find the bright
    # ones, although the picture lights nothing. A world of one colour needs no map. Measured on two cores, 640 x 480
    # and 2 samples: 245 ms a frame without the map, and 850 ms with it.
    one_colour = own is None or (own.node.type == "BACKGROUND" and not any(i.is_linked for i in own.node.inputs))
    if one_colour and hasattr(world, "cycles"):  # absent where the Cycles add-on is off
        world.cycles.sampling_method = "NONE"
    return nodes
