"""The parts of a model: a mesh of each thing that renders show, and one object of them all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_WITH_MESH = ("MESH", "CURVE", "SURFACE", "FONT", "META")
# What a modifier has in the viewport, and what in renders.
_DETAILS = (
    ("show_viewport", "show_render"),
    ("levels", "render_levels"),
    ("steps", "render_steps"),
    ("viewport_resolution", "resolution"),
)
# The same of curves, surfaces and texts, where 0 in renders means "as in the viewport".
_RESOLUTIONS = (("resolution_u", "render_resolution_u"), ("resolution_v", "render_resolution_v"))


class _Part(NamedTuple):
    source: Any  # the object whose mesh it has, or, for a mesh that only nodes have made, the object with the nodes
    matrix: Any  # from the mesh's space to the world's
    is_copy: bool
    mesh: Any  # None: the object's own
    materials: dict[int, Any]  # by slot, those that are the object's rather than the mesh's

    def order(self) -> tuple[str, bool, list[float]]:
        return self.source.name, self.is_copy, [value for row in self.matrix for value in row]


def show_as_rendered(new: set[Any]) -> None:
    """Have the viewport, in which everything is evaluated, show what is new as renders would."""
    import bpy

    for each in new:
        if isinstance(each, (bpy.types.Object, bpy.types.Collection)):
            each.hide_viewport = each.hide_render
        if isinstance(each, bpy.types.Object):
            each.show_instancer_for_viewport = each.show_instancer_for_render
            for modifier in each.modifiers:
                _refine(modifier, _DETAILS)
        elif isinstance(each, bpy.types.MetaBall):
            each.resolution = each.render_resolution
        elif isinstance(each, bpy.types.Curve):
            # Each spline has a resolution of its own in the viewport, which takes that of the whole when it is set.
            _refine(each, [(shown, rendered) for shown, rendered in _RESOLUTIONS if getattr(each, rendered)])
        elif isinstance(each, bpy.types.ParticleSettings):
            each.display_percentage = 100
            children = "child_percent" if hasattr(each, "child_percent") else "child_nbr"  # renamed in Blender 4.0
            setattr(each, children, each.rendered_child_count)
        elif isinstance(each, bpy.types.GeometryNodeTree) and each.library is None:
            _answer_as_in_renders(each)


def _refine(owner: Any, details: Iterable[tuple[str, str]]) -> None:
    """Give the viewport the details that renders have, as far as the owner has such details."""
    for shown, rendered in details:
        if hasattr(owner, shown) and hasattr(owner, rendered):
            setattr(owner, shown, getattr(owner, rendered))


def _answer_as_in_renders(tree: Any) -> None:
    """Have nodes that ask whether this is the viewport be told that it is not."""
    for node in [node for node in tree.nodes if node.bl_idname == "GeometryNodeIsViewport"]:
        no = tree.nodes.new("FunctionNodeInputBool")
        no.boolean = False
        for link in list(node.outputs[0].links):
            tree.links.new(no.outputs[0], link.to_socket)


def meshes_shown(file: str, new: set[Any]) -> list[Any]:
    """Return a mesh for each thing with faces that the new objects show, in the world's space, in order of names."""
    import bpy

    depsgraph = bpy.context.evaluated_depsgraph_get()
    shown, any_shown = [], False
    for item in depsgraph.object_instances:  # an item is valid only until the next one
        if _is_shown(item, new):
            any_shown = True
            if item.object.type == "MESH":  # a curve, text or metaball is followed by an item with its mesh
                shown.append(_part(item, depsgraph))
    found = [mesh for part in sorted(shown, key=_Part.order) if len((mesh := _placed(part, depsgraph)).polygons)]
    if not found:
        why = "points or lines, but no faces" if any_shown else "no mesh"
        raise ConfigError(f"the model {file!r} has {why}, so there is nothing to render: save it with its surface")
    return found


def _is_shown(item: Any, new: set[Any]) -> bool:
    source, owner = item.object.original, (item.parent or item.object).original
    if owner not in new or owner.hide_render or item.object.type not in _WITH_MESH:
        return False
    # Nodes and particles also show copies of an object that is itself hidden.
    return bool(item.show_self) and (item.is_instance or not source.hide_render)


def _part(item: Any, depsgraph: Any) -> _Part:
    import bpy

    current, source = item.object, item.object.original
    is_own = current.data.as_pointer() == source.evaluated_get(depsgraph).data.as_pointer()
    materials = {
        index: slot.material and slot.material.original
        for index, slot in enumerate(current.material_slots)
        if slot.link == "OBJECT"
    }
    mesh = None if is_own else bpy.data.meshes.new_from_object(current)
    return _Part(source, item.matrix_world.copy(), item.is_instance, mesh, materials)


def _placed(part: _Part, depsgraph: Any) -> Any:
    """Return the part's mesh in the world's space, with its materials."""
    import bpy

    mesh = part.mesh or bpy.data.meshes.new_from_object(
        part.source.evaluated_get(depsgraph), preserve_all_data_layers=True, depsgraph=depsgraph
    )
    for index, material in part.materials.items():
        if index < len(mesh.materials):
            mesh.materials[index] = material
    mesh.transform(part.matrix)
    if part.matrix.determinant() < 0:  # a mirrored part would have its faces inside out
        mesh.flip_normals()
    return mesh


def joined(meshes: list[Any], name: str) -> Any:
    """Return one object of all meshes, in the scene's own collection."""
    import bpy

    parts = [bpy.data.objects.new("Part", mesh) for mesh in meshes]
    for part in parts:
        bpy.context.scene.collection.objects.link(part)
        if not len(part.data.materials):  # else Blender 3.4 would give it a material of another part
            part.data.materials.append(None)
    first = parts[0]
    smooth = any(getattr(mesh, "use_auto_smooth", False) for mesh in meshes)
    if len(parts) > 1:
        coordinates = _shared_coordinates(meshes)
        bpy.context.view_layer.update()
        with bpy.context.temp_override(
            active_object=first, object=first, selected_objects=parts, selected_editable_objects=parts
        ):
            bpy.ops.object.join()
        if coordinates:
            first.data.uv_layers[coordinates].active_render = True  # the first part may have had none
    if smooth:  # up to Blender 4.0 a file's own normals are used only with this setting
        first.data.use_auto_smooth = True
    if not any(first.data.materials):
        first.data.materials.clear()
        first.data.materials.append(_plain(first.data))
    first.name = first.data.name = name
    return first


def _shared_coordinates(meshes: list[Any]) -> str:
    """Give the texture coordinates that render one name in all parts, so that they stay one when the parts are joined.

    Returns the name, or "" if there are none. Nodes that name them are changed, too.
    """
    layers = [(mesh, layer) for mesh in meshes for layer in mesh.uv_layers]
    rendered = [(mesh, layer.name) for mesh, layer in layers if layer.active_render]
    names = {name for _, name in rendered}
    if len(names) < 2:
        return next(iter(names), "")
    others = {layer.name for _, layer in layers if not layer.active_render}
    shared = "UVMap"
    while shared in others:
        shared += "_"
    for mesh, name in rendered:
        mesh.uv_layers[name].name = shared
        for node in _nodes([material.node_tree for material in mesh.materials if material is not None]):
            for attribute in ("uv_map", "attribute_name"):
                if getattr(node, attribute, None) == name:
                    setattr(node, attribute, shared)
    return shared


def _nodes(trees: list[Any]) -> Iterator[Any]:
    """Yield all nodes of the trees, and of the groups in them."""
    seen, left = set[Any](), [*trees]
    while left:
        if (tree := left.pop()) is not None and tree not in seen:
            seen.add(tree)
            yield from tree.nodes
            left += [getattr(node, "node_tree", None) for node in tree.nodes]


def _plain(mesh: Any) -> Any:
    """Return a material for a mesh that came without one: grey, or of the colours of its vertices."""
    import bpy

    made = bpy.data.materials.new("Plain")
    if made.node_tree is None:  # from Blender 5.0 on, it is there from the beginning
        made.use_nodes = True
    shader = next(node for node in made.node_tree.nodes if node.type == "BSDF_PRINCIPLED")
    shader.inputs["Base Color"].default_value = (0.6, 0.6, 0.6, 1)
    if len(mesh.color_attributes):
        colours = made.node_tree.nodes.new("ShaderNodeVertexColor")
        colours.layer_name = mesh.color_attributes[0].name
        made.node_tree.links.new(colours.outputs["Color"], shader.inputs["Base Color"])
    return made
