"""What bl.load_model makes of a file's parts: each once, with its own materials, as renders show it, and nothing else changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import NODES

pytestmark = pytest.mark.blender

Run = Callable[[str], Path]

AROUND = 4  # how many faces a curve's bevel of resolution 0 has around it

# Each case is a collection of one file.
PARTS = (
    NODES
    + """
from asyncblend import blender as bl
from asyncblend.errors import ConfigError

bpy.ops.wm.read_factory_settings(use_empty=True)
data = bpy.data

def case(name, *made):
    own = data.collections.new(name)
    bpy.context.scene.collection.children.link(own)
    for one in made:
        for other in one.users_collection:
            other.objects.unlink(one)
        own.objects.link(one)

def added(operator, **options):
    operator(**options)
    return bpy.context.object

def cube(name, x=0, *materials):
    made = added(bpy.ops.mesh.primitive_cube_add, size=1, location=(x, 0, 0))
    made.name = name
    for material in materials:
        made.data.materials.append(material)
    return made

def scattered(name, kind, with_own=False, shown=None, as_instance=False):
    # A plane with what a node makes on each of its four corners.
    plane = added(bpy.ops.mesh.primitive_plane_add, size=8)
    tree, start, end = geometry_nodes(name)
    made, copies = tree.nodes.new(kind), tree.nodes.new("GeometryNodeInstanceOnPoints")
    if shown is not None:
        made.inputs["Object"].default_value, made.inputs["As Instance"].default_value = shown, as_instance
    tree.links.new(start, copies.inputs["Points"])
    tree.links.new(made.outputs["Mesh" if shown is None else "Geometry"], copies.inputs["Instance"])
    both = tree.nodes.new("GeometryNodeJoinGeometry")
    tree.links.new(copies.outputs[0], both.inputs[0])
    if with_own:
        tree.links.new(start, both.inputs[0])
    tree.links.new(both.outputs[0], end)
    plane.modifiers.new("Nodes", "NODES").node_group = tree
    return plane

red, blue = data.materials.new("Red"), data.materials.new("Blue")

text = added(bpy.ops.object.text_add)
text.data.body, text.data.extrude = "I", 0.1
case("text", text)
circle = added(bpy.ops.curve.primitive_bezier_circle_add)
circle.data.bevel_depth, circle.data.bevel_resolution = 0.1, 0
circle.data.resolution_u, circle.data.render_resolution_u = 2, 6
circle.data.splines[0].resolution_u = 1
case("curve", circle)
case("ball", added(bpy.ops.object.metaball_add))
settings = data.metaballs[0]

def faces_of_ball():
    depsgraph = bpy.context.evaluated_depsgraph_get()
    return len(bpy.context.object.evaluated_get(depsgraph).to_mesh().polygons)

settings.resolution = settings.render_resolution = 0.4
fine = faces_of_ball()
settings.resolution = 1
coarse = faces_of_ball()

case("made by nodes", scattered("A", "GeometryNodeMeshCube"))
case("made by nodes, and its own", scattered("B", "GeometryNodeMeshCube", with_own=True))
painted = scattered("D", "GeometryNodeMeshCube")
painted.data.materials.append(None)
painted.material_slots[0].link, painted.material_slots[0].material = "OBJECT", red
case("made by nodes, painted", painted)
hidden = cube("Hidden")
hidden.hide_render = True
hidden.shape_key_add(name="Basis")
hidden.shape_key_add(name="High").value = 1
for point in hidden.data.shape_keys.key_blocks["High"].data:
    point.co.z *= 3
split = hidden.modifiers.new("Split", "SUBSURF")
split.subdivision_type, split.render_levels = "SIMPLE", 1
case("hidden source", scattered("C", "GeometryNodeObjectInfo", shown=hidden), hidden)
case("hidden instance", scattered("E", "GeometryNodeObjectInfo", shown=hidden, as_instance=True))

repainted = cube("Repainted", 0, blue)
repainted.material_slots[0].link, repainted.material_slots[0].material = "OBJECT", red
case("object's materials", repainted, cube("Painted", 2, blue))
case("unpainted", cube("A painted", 0, red), cube("B unpainted", 2))
case("unpainted first", cube("C unpainted", 0), cube("D painted", 2, red))

screw = data.objects.new("Screw", data.meshes.new("Screw"))
screw.data.from_pydata([(1, 0, 0), (1, 0, 1)], [(0, 1)], [])
turned = screw.modifiers.new("Turned", "SCREW")
turned.steps, turned.render_steps = 3, 8
case("screw", screw)

asked = cube("Asked")
tree, start, end = geometry_nodes("Asks")
switch = tree.nodes.new("GeometryNodeSwitch")
switch.input_type = "GEOMETRY"
inputs = {socket.name: socket for socket in switch.inputs if socket.enabled}
tree.links.new(tree.nodes.new("GeometryNodeIsViewport").outputs[0], inputs["Switch"])
tree.links.new(start, inputs["False"])
tree.links.new(next(socket for socket in switch.outputs if socket.enabled), end)
asked.modifiers.new("Asks", "NODES").node_group = tree
case("asks for the viewport", asked)

ground = added(bpy.ops.mesh.primitive_plane_add, size=8)
ground.modifiers.new("Hair", "PARTICLE_SYSTEM")
hair = ground.particle_systems[0].settings
hair.type, hair.count, hair.render_type, hair.instance_object = "HAIR", 10, "OBJECT", cube("Tuft")
hair.display_percentage, hair.use_modifier_stack = 30, False
hair.child_type, hair.rendered_child_count = "SIMPLE", 3
setattr(hair, "child_percent" if hasattr(hair, "child_percent") else "child_nbr", 1)
ground.show_instancer_for_render = False
case("hair", ground)
data.collections.new("Apart").objects.link(hair.instance_object)
bpy.context.scene.collection.objects.unlink(hair.instance_object)

file = OUT / "parts.blend"
bpy.ops.wm.save_as_mainfile(filepath=str(file))
try:
    bl.load_model(file)
except ConfigError as error:
    itself = str(error)
names = [each.name for each in bpy.context.scene.collection.children]
bpy.ops.wm.read_factory_settings(use_empty=True)
results = {"itself": itself, "names": names, "fine": fine, "coarse": coarse}
for name in names:
    before = set(bpy.data.user_map())
    made = bl.load_model(f"{file}/Collection/{name}")
    materials = made.data.materials
    results[name] = {
        "faces": len(made.data.polygons),
        "centres": len({tuple(np.round(face.center, 3).tolist()) for face in made.data.polygons}),
        "height": made.dimensions.z,
        "left": sorted({type(each).__name__ for each in set(bpy.data.user_map()) - before}),
        "materials": sorted(
            {(face.center.x > 0, (materials[face.material_index] or made).name.partition(".")[0]) for face in made.data.polygons}
        ),
    }
    bpy.data.objects.remove(made)
(OUT / "results.json").write_text(json.dumps(results))
"""
)


@pytest.fixture(scope="module")
def parts(in_blender: Run) -> Any:
    """What is loaded of each collection."""
    return json.loads((in_blender(PARTS) / "results.json").read_text())


@pytest.mark.slow
def test_curves_and_texts_are_loaded_once(parts: Any, case: Any) -> None:
    """No face is there twice, at the same place."""
    for name in ("text", "curve", "ball", "screw"):
        with case(name):
            assert parts[name]["faces"] == parts[name]["centres"]


def test_meshes_that_only_nodes_make(parts: Any) -> None:
    """The four copies are of the nodes' cube; the plane itself is there only where the nodes keep it."""
    assert parts["made by nodes"]["faces"] == 4 * 6
    assert parts["made by nodes, and its own"]["faces"] == 4 * 6 + 1
    assert parts["made by nodes, painted"]["faces"] == 4 * 6
    assert {name for _, name in parts["made by nodes, painted"]["materials"]} == {"Red"}


def test_hidden_objects_that_nodes_and_particles_copy(parts: Any, case: Any) -> None:
    """They have their modifiers and the shapes of their shape keys, once; all hairs of renders are there."""
    for name in ("hidden source", "hidden instance"):
        with case(name):
            assert parts[name]["faces"] == 4 * 6 * 4
            assert parts[name]["height"] == pytest.approx(3)
    assert parts["hair"]["faces"] == 10 * 3 * 6


def test_materials_of_objects_and_of_none(parts: Any) -> None:
    """An object's own material comes before its mesh's, and a part without one takes none of another part."""
    assert parts["object's materials"]["materials"] == [[False, "Red"], [True, "Blue"]]
    assert parts["unpainted"]["materials"] == [[False, "Red"], [True, "unpainted"]]
    assert parts["unpainted first"]["materials"] == [[False, "unpainted first"], [True, "Red"]]


def test_details_are_those_of_renders(parts: Any) -> None:
    """Screws, curves, metaballs and nodes have other settings for the viewport."""
    assert parts["screw"]["faces"] == 8
    assert parts["curve"]["faces"] == 4 * 6 * AROUND
    assert parts["ball"]["faces"] == parts["fine"] != parts["coarse"]
    assert parts["asks for the viewport"]["faces"] == 6


def test_nothing_of_the_parts_is_left(parts: Any, case: Any) -> None:
    """There is the object, its mesh and its materials."""
    for name in parts["names"]:
        with case(name):
            assert set(parts[name]["left"]) <= {"Material", "Mesh", "Object"}


def test_the_open_file_is_refused(parts: Any) -> None:
    """Blender cannot load from the file that is its scene: 3.4 crashed."""
    assert "is the open scene itself" in parts["itself"]


SETTINGS = """
import warnings
from asyncblend import blender as bl

def about(scene):
    layer = bpy.context.view_layer
    return [scene.frame_start, scene.frame_end, scene.render.fps, scene.render.fps_base,
            layer.objects.active.name, sorted(each.name for each in layer.objects.selected)]

bpy.ops.wm.read_factory_settings()
scene = bpy.context.scene
scene.frame_start, scene.frame_end, scene.render.fps, scene.render.fps_base = 5, 77, 30, 1.5
bpy.context.object.keyframe_insert("location", frame=1)
for kind, names in {
    "fbx": ["export_scene.fbx"], "glb": ["export_scene.gltf"], "obj": ["wm.obj_export", "export_scene.obj"],
    "usdc": ["wm.usd_export"], "blend": ["wm.save_as_mainfile"],
}.items():
    for name in names:
        group, _, own = name.partition(".")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # Blender's own add-ons are older than numpy 2.5
                getattr(getattr(bpy.ops, group), own)(filepath=str(OUT / f"moved.{kind}"))
            break
        except AttributeError:  # this Blender has no such operator
            pass
bpy.ops.wm.read_factory_settings()
scene = bpy.context.scene
for name in ("Cube", "Light"):
    bpy.data.objects[name].select_set(True)
bpy.context.view_layer.objects.active = bpy.data.objects["Light"]
results = {"before": about(scene), "after": {}}
for path in bl.model_files(OUT):
    bl.load_model(path)
    results["after"][pathlib.Path(path).suffix] = about(scene)
(OUT / "results.json").write_text(json.dumps(results))
"""


@pytest.mark.slow
def test_the_scene_keeps_its_settings_and_selection(in_blender: Run, case: Any) -> None:
    """Importers take over a file's frame rate and range of frames, and select what they make."""
    found = json.loads((in_blender(SETTINGS) / "results.json").read_text())
    assert {".blend", ".fbx", ".glb", ".obj"} <= set(found["after"])
    for kind, after in found["after"].items():
        with case(kind):
            assert after == found["before"]
