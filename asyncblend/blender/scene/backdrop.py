"""A picture behind everything: nodes in the scene's world that only the camera sees, and the pictures' memory."""

from __future__ import annotations

import functools
import os
from typing import Any

from ...errors import ConfigError
from .lens import frame_of

__all__ = ["pictures", "show"]

_KINDS = (".bmp", ".exr", ".hdr", ".jpeg", ".jpg", ".png", ".tga", ".tif", ".tiff", ".webp")
_KEPT = 256 * 1024  # KiB of pixels
_MARK = "asyncblend_backdrop"
_PICTURE, _MAPPING = f"{_MARK}_picture", f"{_MARK}_mapping"


@functools.lru_cache(maxsize=64)
def pictures(folder: str) -> tuple[str, ...]:
    """The paths of the pictures in a folder, sorted by name. Looks once.

    Raises:
        ConfigError: there is no such folder, or no picture in it.
    """
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
    """Have the camera see that picture where there is nothing else. It covers the image, its middle in the middle.

    Raises:
        ConfigError: it is no picture, or would not be seen.
    """
    if scene.render.engine == "BLENDER_WORKBENCH":
        raise ConfigError("Workbench does not draw the world, so no background: use Cycles or EEVEE")
    if scene.render.film_transparent:
        raise ConfigError(
            "a background is not seen through a transparent film: set scene.render.film_transparent = False"
        )
    image = _loaded(path)
    nodes = _nodes(scene)
    nodes[_PICTURE].image = image

    frame, render = frame_of(scene.render), scene.render
    shape = (frame.full_width * render.pixel_aspect_x) / (frame.full_height * render.pixel_aspect_y)
    wider = image.size[0] / image.size[1] / shape
    parts = min(1.0, 1 / wider), min(1.0, wider)  # of the picture's width and height that are seen
    nodes[_MAPPING].inputs["Scale"].default_value = (*parts, 1)
    nodes[_MAPPING].inputs["Location"].default_value = (*((1 - part) / 2 for part in parts), 0)
    _forget_oldest()


def _loaded(path: str) -> Any:
    """The picture, marked as the one that was used last: [when, KiB]."""
    import bpy

    ours = {image.filepath: image for image in bpy.data.images if _MARK in image}
    latest = max((image[_MARK][0] for image in ours.values()), default=0)
    image = ours.get(path)
    if image is not None:
        image[_MARK] = [latest + 1, image[_MARK][1]]
        return image
    try:
        image = bpy.data.images.load(path)
    except RuntimeError as error:
        raise ConfigError(f"Blender cannot read the picture {path!r}: {str(error).strip()}") from None
    width, height = image.size  # reads it
    if not width or not height:
        bpy.data.images.remove(image)
        raise ConfigError(f"Blender cannot read the picture {path!r}: it is broken, or of another kind")
    image[_MARK] = [latest + 1, 1 + width * height * (16 if image.is_float else 4) // 1024]
    return image


def _forget_oldest() -> None:
    import bpy

    ours = sorted((image for image in bpy.data.images if _MARK in image), key=lambda image: image[_MARK][0])
    size = sum(image[_MARK][1] for image in ours)
    for image in ours[:-1]:  # the last one is in use
        if size <= _KEPT:
            break
        size -= image[_MARK][1]
        bpy.data.images.remove(image)


def _nodes(scene: Any) -> Any:
    """The nodes of the scene's world, with ours among them."""
    import bpy

    if scene.world is None:
        scene.world = bpy.data.worlds.new("World")
        scene.world.color = (0, 0, 0)  # what there is without a world
    world = scene.world
    if not world.use_nodes:
        world.use_nodes = True
        for node in world.node_tree.nodes:
            if node.type == "BACKGROUND":
                node.inputs["Color"].default_value = (*world.color, 1)
    nodes, link = world.node_tree.nodes, world.node_tree.links.new
    if _PICTURE in nodes and _MAPPING in nodes:
        return nodes

    output = world.node_tree.get_output_node("CYCLES" if scene.render.engine == "CYCLES" else "EEVEE")
    if output is None:
        output = nodes.new("ShaderNodeOutputWorld")
    own = output.inputs["Surface"].links[0].from_socket if output.inputs["Surface"].is_linked else None
    where, mapping = nodes.new("ShaderNodeTexCoord"), nodes.new("ShaderNodeMapping")
    picture, shine = nodes.new("ShaderNodeTexImage"), nodes.new("ShaderNodeBackground")
    path, mix = nodes.new("ShaderNodeLightPath"), nodes.new("ShaderNodeMixShader")
    mapping.name, picture.name = _MAPPING, _PICTURE
    picture.extension = "EXTEND"  # else its opposite edges would run into each other
    link(where.outputs["Window"], mapping.inputs["Vector"])
    link(mapping.outputs["Vector"], picture.inputs["Vector"])
    link(picture.outputs["Color"], shine.inputs["Color"])
    link(path.outputs["Is Camera Ray"], mix.inputs[0])
    if own is not None:
        link(own, mix.inputs[1])
    link(shine.outputs["Background"], mix.inputs[2])
    link(mix.outputs[0], output.inputs["Surface"])
    _sample_as_before(world, own)
    return nodes


def _sample_as_before(world: Any, own: Any) -> None:
    """Have Cycles sample a world of one colour as it did before there was a picture in it.

    It would make a map of all directions for each frame now, to find the bright ones, for what does not shine at all.
    Measured on two cores, 640 x 480 and 2 samples: 245 ms a frame without the map, and 850 ms with it.
    """
    even = own is None or (own.node.type == "BACKGROUND" and not any(i.is_linked for i in own.node.inputs))
    if even and hasattr(world, "cycles"):  # absent where the Cycles add-on is off
        world.cycles.sampling_method = "NONE"
