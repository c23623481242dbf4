"""bl.load_model on real Blender: every format, files of many parts, what is left of an import, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.blender

Run = Callable[[str], Path]

# A bracket of a red base, 2 x 1 x 0.5, and a blue post on it, 1 x 1 x 1. The file has it off the origin, and its parts
# are parented, so that a part that lost its place or its parent's would be noticed.
EXPORT = """
import warnings
from asyncblend import blender as bl
from asyncblend.errors import ConfigError

def fresh():
    bpy.ops.wm.read_factory_settings()
    for obj in list(bpy.data.objects):
        bpy.data.objects.remove(obj)

def part(name, size, place, colour, parent=None):
    bpy.ops.mesh.primitive_cube_add(size=1)
    made = bpy.context.object
    made.name, made.location, made.scale = name, place, size
    bpy.ops.object.transform_apply(location=False, rotation=False, scale=True)
    paint = bpy.data.materials.new(name)
    if paint.node_tree is None:
        paint.use_nodes = True
    paint.node_tree.nodes["Principled BSDF"].inputs["Base Color"].default_value = (*colour, 1)
    made.data.materials.append(paint)
    if parent is not None:
        made.parent, made.location = parent, np.subtract(place, parent.location)
    return made

def bracket():
    fresh()
    base = part("Base", (2, 1, 0.5), (5, 3, 0), (1, 0, 0))
    part("Post", (1, 1, 1), (5, 3, 0.75), (0, 0, 1), base)
    bpy.ops.object.light_add()
    bpy.ops.object.camera_add()
    bpy.context.view_layer.update()

def operator(*names):
    for name in names:
        group, _, own = name.partition(".")
        found = getattr(getattr(bpy.ops, group), own)
        try:
            found.get_rna_type()
        except (KeyError, AttributeError):
            continue
        return found

def export(path, *names, **options):
    found = operator(*names)
    if found is not None:
        known = found.get_rna_type().properties.keys()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Blender's own add-ons are older than numpy 2.5
            found(filepath=str(path), **{name: value for name, value in options.items() if name in known})

def refused(*args, **options):
    try:
        bl.load_model(*args, **options)
    except ConfigError as error:
        return str(error)
    return None
"""

FORMATS = """
bracket()
export(OUT / "bracket.glb", "export_scene.gltf")
export(OUT / "bracket.gltf", "export_scene.gltf", export_format="GLTF_SEPARATE")
export(OUT / "bracket.obj", "wm.obj_export", "export_scene.obj")
export(OUT / "bracket.ply", "wm.ply_export", "export_mesh.ply")
export(OUT / "bracket.stl", "wm.stl_export", "export_mesh.stl")
export(OUT / "bracket.fbx", "export_scene.fbx")
for kind in ("usd", "usda", "usdc", "usdz"):
    export(OUT / f"bracket.{kind}", "wm.usd_export", merge_parent_xform=False)
bpy.ops.wm.save_as_mainfile(filepath=str(OUT / "bracket.blend"))
bpy.ops.wm.read_factory_settings()
scene, found = bpy.context.scene, {}
camera, world, numpys = scene.camera, scene.world, "bool" in vars(np)
for path in bl.model_files(OUT):
    before = set(bpy.data.user_map())
    obj = bl.load_model(path)
    points = np.array([vertex.co for vertex in obj.data.vertices])
    added = set(bpy.data.user_map()) - before
    colours = {}
    for polygon in obj.data.polygons:
        shader = obj.data.materials[polygon.material_index].node_tree.nodes["Principled BSDF"]
        name = str([round(value) for value in shader.inputs["Base Color"].default_value[:3]])
        colours.setdefault(name, []).append(polygon.center[2])
    outwards = [polygon.normal.dot(polygon.center) > 0 for polygon in obj.data.polygons if abs(polygon.center[2]) > 0.7]
    found[pathlib.Path(path).suffix[1:]] = {
        "name": obj.name.partition(".")[0], "low": points.min(axis=0).tolist(), "high": points.max(axis=0).tolist(),
        "corners": sorted({tuple(np.round(point, 4).tolist()) for point in points}),
        "keypoints": bl.surface_keypoints(obj, 4).tolist(),
        "added": sorted({type(each).__name__ for each in added}), "plain": obj.parent is None and list(obj.scale) == [1, 1, 1],
        "colours": {name: sum(heights) / len(heights) for name, heights in colours.items()}, "outwards": all(outwards),
        "kept": scene.camera == camera and scene.world == world and ("bool" in vars(np)) == numpys,
    }
    bpy.data.objects.remove(obj)
broken = {}
for kind in ("glb", "gltf", "obj", "ply", "stl", "fbx", "usdz", "blend"):
    (OUT / f"broken.{kind}").write_bytes(b"no model at all\\n" * 50)
    before = set(bpy.data.user_map())
    broken[kind] = refused(OUT / f"broken.{kind}"), len(set(bpy.data.user_map()) - before)
(OUT / "results.json").write_text(json.dumps({"found": found, "broken": broken, "usd": bool(operator("wm.usd_import"))}))
"""


@pytest.fixture(scope="module")
def formats(in_blender: Run) -> Any:
    """What each format gives of the same bracket, and what becomes of broken files."""
    return json.loads((in_blender(EXPORT + FORMATS) / "results.json").read_text())


def each_format(formats: Any) -> Any:
    """Return the formats that this Blender exports: all, or all but USD where it was built without it."""
    wanted = {"blend", "fbx", "glb", "gltf", "obj", "ply", "stl"}
    if formats["usd"]:
        wanted |= {"usd", "usda", "usdc", "usdz"}
    assert set(formats["found"]) == wanted
    return formats["found"].items()


@pytest.mark.slow
def test_every_format_gives_the_same_object(formats: Any, case: Any) -> None:
    """It has the bracket's corners in metres with z up, about its middle, as one object that is neither turned nor scaled."""
    box = np.array([*np.ndindex(2, 2, 2)])
    base = box * (2, 1, 0.5) + (-1, -0.5, -0.75)
    post = box * (1, 1, 1) + (-0.5, -0.5, -0.25)
    corners = sorted({tuple(map(float, corner)) for corner in (*base, *post)})
    for kind, found in each_format(formats):
        with case(kind):
            assert found["name"] == "bracket"
            assert found["plain"]
            assert found["outwards"]
            np.testing.assert_allclose(found["low"], (-1, -0.5, -0.75), atol=1e-5)
            np.testing.assert_allclose(found["high"], (1, 0.5, 0.75), atol=1e-5)
            np.testing.assert_allclose(found["corners"], corners, atol=1e-4)


def test_materials_come_along(formats: Any, case: Any) -> None:
    """The base is red and the post blue, in formats that have materials; else there is one of a plain grey."""
    for kind, found in each_format(formats):
        with case(kind):
            if kind in ("ply", "stl"):
                assert set(found["colours"]) == {"[1, 1, 1]"}
            else:
                assert set(found["colours"]) == {"[1, 0, 0]", "[0, 0, 1]"}
                assert found["colours"]["[1, 0, 0]"] < found["colours"]["[0, 0, 1]"]


def test_keypoints_are_the_same_from_every_format(formats: Any, case: Any) -> None:
    """The first keypoints are corners, in the same order, though each format stores its vertices in another one."""
    for kind, found in each_format(formats):
        with case(kind):
            np.testing.assert_allclose(found["keypoints"], formats["found"]["glb"]["keypoints"], atol=1e-4)


def test_nothing_else_is_left_of_an_import(formats: Any, case: Any) -> None:
    """There is the object with its mesh and materials: no light, camera, collection, world or library of the file."""
    for kind, found in each_format(formats):
        with case(kind):
            assert found["added"] == ["Material", "Mesh", "Object"]
            assert found["kept"]


def test_broken_files_are_refused(formats: Any, case: Any) -> None:
    """The error names the file, and nothing of it stays."""
    for kind, (message, left) in formats["broken"].items():
        with case(kind):
            assert message is not None
            assert f"broken.{kind}" in message
            assert "\n" not in message
            assert left == 0
    if not formats["usd"]:
        assert "no importer for USDZ" in formats["broken"]["usdz"][0]
        assert "save the model as GLB" in formats["broken"]["usdz"][0]


PARTS = """
import bmesh
bracket()
mug = bpy.data.collections.new("Mug")
bpy.context.scene.collection.children.link(mug)
mirrored = part("Mirrored", (0.2, 0.2, 1), (0, 0, 0), (0, 1, 0))
mirrored.scale = (-1, 1, 1)
mirrored.modifiers.new("Array", "ARRAY").count = 3
mug.objects.link(mirrored)
unseen = part("Unseen", (9, 9, 9), (0, 0, 0), (0, 1, 0))
unseen.hide_render = True
closed, inside = bpy.data.collections.new("Closed"), bpy.data.collections.new("Inside")
bpy.context.scene.collection.children.link(closed)
closed.children.link(inside)
closed.hide_render = True
hidden_too = part("Hidden too", (9, 9, 9), (0, 0, 0), (0, 1, 0))
for collection in hidden_too.users_collection:
    collection.objects.unlink(hidden_too)
inside.objects.link(hidden_too)
only_renders = bpy.data.collections.new("Only renders")
bpy.context.scene.collection.children.link(only_renders)
ball = part("Ball", (1, 1, 1), (0, 0, 0), (0, 1, 0))
only_renders.objects.link(ball)
rounded, twice = ball.modifiers.new("Rounded", "SUBSURF"), ball.modifiers.new("Twice", "ARRAY")
rounded.levels, rounded.render_levels, twice.show_render = 0, 2, False
ball.hide_viewport = only_renders.hide_viewport = True
empty = bpy.data.objects.new("Copies", None)
empty.instance_type, empty.instance_collection, empty.location = "COLLECTION", mug, (0, 2, 0)
mug_too = bpy.data.collections.new("Two mugs")
bpy.context.scene.collection.children.link(mug_too)
mug_too.objects.link(empty)
mug_too.objects.link(mirrored)
points = bpy.data.objects.new("Points", bpy.data.meshes.new("Points"))
points.data.from_pydata([(0, 0, 0), (1, 0, 0)], [(0, 1)], [])
lines = bpy.data.collections.new("Lines")
bpy.context.scene.collection.children.link(lines)
lines.objects.link(points)
flat = bpy.data.objects.new("Flat", bpy.data.meshes.new("Flat"))
flat.data.from_pydata([(0, 0, 0)] * 3, [], [(0, 1, 2)])
nothing = bpy.data.collections.new("Nothing")
bpy.context.scene.collection.children.link(nothing)
nothing.objects.link(flat)
file = OUT / "parts.blend"
bpy.ops.wm.save_as_mainfile(filepath=str(file))
bpy.ops.wm.read_factory_settings()

def about(obj):
    solid = bmesh.new()
    solid.from_mesh(obj.data)
    return {"name": obj.name, "dimensions": list(obj.dimensions), "polygons": len(obj.data.polygons),
            "volume": solid.calc_volume(signed=True)}

results = {
    "all": about(bl.load_model(file)),
    "mug": about(bl.load_model(f"{file}/Collection/Mug", size=0.5)),
    "two": about(bl.load_model(f"{file}/Collection/Two mugs", unit=0.01, name="Pair")),
    "only renders": about(bl.load_model(f"{file}/Collection/Only renders")),
    "closed": about(bl.load_model(f"{file}/Collection/Closed")),
    "refused": {
        "no such collection": refused(f"{file}/Collection/Cup"),
        "lines": refused(f"{file}/Collection/Lines"),
        "no extent": refused(f"{file}/Collection/Nothing"),
        "missing": refused(OUT / "missing.glb"),
        "kind": refused(OUT / "script.py"),
        "size": refused(file, size=0),
        "unit": refused(file, unit=-1),
    },
}
try:
    (OUT / "empty" / "folder.obj").mkdir(parents=True)
    (OUT / "empty" / "._mug.glb").write_bytes(b"of macOS")
    bl.model_files(OUT / "empty")
except ConfigError as error:
    results["refused"]["folder"] = str(error)
(OUT / "cloud.ply").write_text("ply\\nformat ascii 1.0\\nelement vertex 1\\nproperty float x\\nproperty float y\\nproperty float z\\nend_header\\n0 0 0\\n")
results["refused"]["cloud"] = refused(OUT / "cloud.ply")
(OUT / "painted.ply").write_text('''ply
format ascii 1.0
element vertex 3
property float x
property float y
property float z
property uchar red
property uchar green
property uchar blue
property uchar alpha
element face 1
property list uchar int vertex_indices
end_header
0 0 0 255 0 0 255
1 0 0 255 0 0 255
0 1 0 255 0 0 255
3 0 1 2
''')
painted = bl.load_model(OUT / "painted.ply")
results["painted"] = painted.data.materials[0].node_tree.nodes["Principled BSDF"].inputs["Base Color"].is_linked
(OUT / "results.json").write_text(json.dumps(results))
"""


@pytest.mark.slow
def test_parts_and_collections_of_a_blend_file(in_blender: Run) -> None:
    """A file's rendered objects, or one collection, with modifiers and instances; and what cannot be a model says why."""
    found = json.loads((in_blender(EXPORT + PARTS) / "results.json").read_text())
    assert found["mug"]["name"] == "Mug"
    assert found["mug"]["polygons"] == 3 * 6
    assert max(found["mug"]["dimensions"]) == pytest.approx(0.5)
    assert found["mug"]["volume"] == pytest.approx(
        3 * 0.2 * 0.2 * 1 * 0.5**3, rel=1e-3
    )  # not inside out, though mirrored
    assert found["two"]["name"] == "Pair"
    assert found["two"]["polygons"] == 2 * 3 * 6
    np.testing.assert_allclose(found["two"]["dimensions"], (0.006, 0.022, 0.01), rtol=1e-4)
    assert max(found["all"]["dimensions"]) < 9  # what renders hide is left out
    assert found["all"]["polygons"] == 2 * 6 + 2 * 3 * 6 + 6 * 4**2 + 1  # what only the viewport hides is not
    assert found["only renders"]["polygons"] == 6 * 4**2
    assert found["closed"]["polygons"] == 6
    assert found["painted"]
    why = found["refused"]
    assert "there is no collection 'Cup'" in why["no such collection"]
    assert "'Mug'" in why["no such collection"]
    assert "no faces" in why["lines"]
    assert "no extent" in why["no extent"]
    assert "there is no model" in why["missing"]
    assert "missing.glb" in why["missing"]
    assert "there is no model" in why["kind"] or ".glb" in why["kind"]
    assert "size must be a length in metres, more than 0; got 0" in why["size"]
    assert "unit must be" in why["unit"]
    assert "there is no model in the folder" in why["folder"]
    assert "no faces" in why["cloud"]


TEXTURED = """
def textured(name, place, *layers):
    made = part(name, (1, 1, 1), place, (1, 1, 1))
    made.data.uv_layers[0].name = layers[0]
    for layer in layers[1:]:
        made.data.uv_layers.new(name=layer)
    chosen = made.data.uv_layers[layers[-1]]
    chosen.active_render = True
    for corner in chosen.data:
        corner.uv = (place[0] / 10, 0.25)
    nodes, link = made.data.materials[0].node_tree.nodes, made.data.materials[0].node_tree.links.new
    where, picture = nodes.new("ShaderNodeUVMap"), nodes.new("ShaderNodeTexImage")
    where.uv_map, picture.image = layers[-1], bpy.data.images.new(name, 8, 8)
    link(where.outputs[0], picture.inputs[0])
    link(picture.outputs["Color"], nodes["Principled BSDF"].inputs["Base Color"])
    return made

def read_back(path):
    obj, found = bl.load_model(path), []
    for polygon in obj.data.polygons:
        tree = obj.data.materials[polygon.material_index].node_tree
        own = [node.uv_map for node in tree.nodes if node.type == "UVMAP"]
        layer = obj.data.uv_layers[own[0]] if own else next(one for one in obj.data.uv_layers if one.active_render)
        left = polygon.center[0] < 0
        found += [[left, *layer.data[corner].uv] for corner in polygon.loop_indices]
    return [list(one) for one in {tuple(round(value, 3) for value in one) for one in found}]

results = {}
for kind, parts in {
    "one": [("A", (5, 0, 0), "Unwrapped", "Baked")],
    "one name": [("A", (2, 0, 0), "st"), ("B", (6, 0, 0), "st")],
    "two names": [("A", (2, 0, 0), "Unwrapped", "Baked"), ("B", (6, 0, 0), "UVMap", "st")],
}.items():
    fresh()
    for one in parts:
        textured(*one)
    for suffix in ("blend", "glb", "usdc"):
        path = OUT / f"{kind}.{suffix}"
        if suffix == "blend":
            bpy.ops.wm.save_as_mainfile(filepath=str(path))
        elif suffix == "glb" or kind == "one name":  # the USD exporter itself loses the names of several
            export(path, {"glb": "export_scene.gltf", "usdc": "wm.usd_export"}[suffix])
for kind in ("one", "one name", "two names"):
    for suffix in ("blend", "glb", "usdc"):
        if (OUT / f"{kind}.{suffix}").exists():
            bpy.ops.wm.read_factory_settings()
            results[f"{kind}.{suffix}"] = read_back(OUT / f"{kind}.{suffix}")
(OUT / "results.json").write_text(json.dumps(results))
"""


@pytest.mark.slow
def test_textures_keep_their_coordinates(in_blender: Run, case: Any) -> None:
    """Each part has those that its material names or renders, whatever the parts of a file call them."""
    found = json.loads((in_blender(EXPORT + TEXTURED) / "results.json").read_text())
    assert {"one.blend", "one.glb", "one name.blend", "two names.blend", "two names.glb"} <= set(found)
    for name, read in found.items():
        with case(name):
            coordinates = {tuple(uv) for _, *uv in read}
            if name.startswith("one."):
                assert coordinates == {(0.5, 0.25)}
            else:
                assert sorted(read) == [[False, 0.6, 0.25], [True, 0.2, 0.25]]


UNITS = """
bracket()
export(OUT / "bracket.glb", "export_scene.gltf")
export(OUT / "bracket.stl", "wm.stl_export", "export_mesh.stl")
bpy.ops.wm.read_factory_settings()
found = {kind: list(bl.load_model(OUT / f"bracket.{kind}", unit=0.001).dimensions) for kind in ("glb", "stl")}
(OUT / "results.json").write_text(json.dumps(found))
"""


@pytest.mark.slow
def test_the_unit_is_of_files_that_have_none(in_blender: Run) -> None:
    """A GLB file is in metres, so that it can be beside an STL file in millimetres."""
    found = json.loads((in_blender(EXPORT + UNITS) / "results.json").read_text())
    np.testing.assert_allclose(found["glb"], (2, 1, 1.5), rtol=1e-4)
    np.testing.assert_allclose(found["stl"], (0.002, 0.001, 0.0015), rtol=1e-4)
