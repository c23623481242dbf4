"""A picture all around the scene that lights it: nodes in the scene's world."""

from __future__ import annotations

from typing import Any

from ...errors import ConfigError
from .backdrop import drop_oldest, loaded, plain_surface, world_of

_MARK = "asyncblend_sky"
_PICTURE, _MAPPING, _SHINE = f"{_MARK}_picture", f"{_MARK}_mapping", f"{_MARK}_shine"
_MAP = 256  # pixels: enough to find the bright parts of a sky, and fast to make for each frame


def light_by(scene: Any, path: str, angle: float, strength: float) -> None:
    """Light the scene by a picture of all directions, turned around the vertical axis by an angle in radians."""
    if scene.render.engine == "BLENDER_WORKBENCH":
        raise ConfigError("Workbench is not lit by the world, so a sky has no effect: use Cycles or EEVEE")
    image = loaded(path)
    nodes = _nodes(scene)
    nodes[_PICTURE].image = image
    nodes[_MAPPING].inputs["Rotation"].default_value = (0, 0, angle)
    nodes[_SHINE].inputs["Strength"].default_value = strength
    drop_oldest(scene)


def _nodes(scene: Any) -> Any:
    """Return the nodes of the scene's world, with ours among them in the place of what lit the scene before."""
    world = world_of(scene)
    nodes, link = world.node_tree.nodes, world.node_tree.links.new
    if all(name in nodes for name in (_PICTURE, _MAPPING, _SHINE)):
        return nodes
    where, mapping = nodes.new("ShaderNodeTexCoord"), nodes.new("ShaderNodeMapping")
    picture, shine = nodes.new("ShaderNodeTexEnvironment"), nodes.new("ShaderNodeBackground")
    mapping.name, picture.name, shine.name = _MAPPING, _PICTURE, _SHINE
    link(where.outputs["Generated"], mapping.inputs["Vector"])
    link(mapping.outputs["Vector"], picture.inputs["Vector"])
    link(picture.outputs["Color"], shine.inputs["Color"])
    link(shine.outputs["Background"], plain_surface(scene, world))
    if hasattr(world, "cycles"):  # absent where the Cycles add-on is off
        world.cycles.sampling_method, world.cycles.sample_map_resolution = "MANUAL", _MAP
    return nodes
