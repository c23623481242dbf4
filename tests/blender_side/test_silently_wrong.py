"""What would be wrong without a word is right, or is a ConfigError: in the image, the labels, and where things are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from .conftest import NODES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.blender

CURVES = """
from asyncblend.blender.capture.display import display_table
from asyncblend.blender.capture.shown import shown

scene = bpy.context.scene
view = scene.view_settings
rng, results = np.random.default_rng(0), {}
colours = (2 ** rng.uniform(-6, 12, (640 * 8, 3))).astype(np.float32)
colours[::2, 1:] = 0.01  # saturated and bright, where looks desaturate
linear = np.ones((8, 640, 4), np.float32)
linear[..., :3] = colours.reshape(8, 640, 3)
view.use_curve_mapping = True
for transform, look in [("Standard", "None"), ("Standard", "High Contrast"), ("Filmic", "None"), ("Filmic", "High Contrast"),
                        ("AgX", "AgX - High Contrast")]:
    try:
        view.look, view.view_transform = "None", transform
        view.look = look
    except TypeError:  # this Blender has no such transform or look
        continue
    for exposure in (-3, -1, 0, 4):
        view.exposure = exposure
        if (table := display_table()) is not None:
            image = table.apply(linear)[::-1].reshape(-1, 3).astype(int)
            results[f"{transform}, {look}, {exposure}"] = int(np.abs(image - shown(scene, colours)).max())
view.look, view.view_transform, view.exposure = "None", "False Color", 4
results["False Color"] = display_table() is None
(OUT / "results.json").write_text(json.dumps(results))
"""


@pytest.mark.exhaustive
def test_the_views_curves_with_an_exposure(in_blender: Callable[[str], Path]) -> None:
    """Blender applies curves before the exposure, so both are in the table, and so must be all that they show."""
    results: dict[str, Any] = json.loads((in_blender(CURVES) / "results.json").read_text())
    assert results.pop("False Color") is True
    assert len(results) >= 12
    assert {name: off for name, off in results.items() if off > 1} == {}


LABELS = """
from asyncblend import ConfigError, blender as bl

scene, cube = bpy.context.scene, bpy.data.objects["Cube"]
scene.render.engine = "CYCLES"
scene.render.resolution_x, scene.render.resolution_y, scene.render.resolution_percentage = 48, 32, 100
scene.cycles.use_denoising, scene.cycles.samples = False, 8
results = {"errors": {}}

def error(name, call):
    try:
        call()
        results["errors"][name] = ""
    except Exception as error:
        results["errors"][name] = f"{type(error).__name__}: {error}"

whole = bl.render(("depth", "instance"))
results["names"] = sorted(bl.render(name for name in ("depth", "instance")))
error("passes", lambda: bl.render(None))

if hasattr(scene.cycles, "use_sample_subset"):
    scene.cycles.use_sample_subset = True
scene.cycles.sample_offset = 4
error("offset", lambda: bl.render(("instance",)))
error("own name", lambda: bl.render(("Depth",)))
results["image"] = list(bl.render()["image"].shape)
scene.cycles.sample_offset = 0

# A volume that nodes replace by a sphere.
volume = bpy.data.objects.new("Volume", bpy.data.volumes.new("Volume"))
scene.collection.objects.link(volume)
volume.location, volume.pass_index = (0, 0, 2.5), 1
tree, _, end = geometry_nodes("Sphere")
tree.links.new(tree.nodes.new("GeometryNodeMeshUVSphere").outputs[0], end)
volume.modifiers.new("Nodes", "NODES").node_group = tree
labels = bl.render(("depth", "instance"))
ids = {row["name"]: row["id"] for row in labels["instances"]}
seen = np.isfinite(labels["depth"])
results["volume"] = [int((labels["instance"] == ids.get(name, -1)).sum()) for name in ("Cube", "Volume")]
results["surface"], results["own index"] = int(seen.sum()), volume.pass_index
bpy.data.objects.remove(volume)

layer = scene.view_layers[0]
layer.name = "x" * 63
scene.render.engine = "BLENDER_WORKBENCH"
error("long name", lambda: results.update(deep=bool(np.isfinite(bl.render(("depth",))["depth"]).any())))
scene.render.engine = "CYCLES"
layer.use = False
error("layer", lambda: bl.render(("depth",)))
layer.use, layer.name = True, "ViewLayer"
scene.render.engine = "BLENDER_WORKBENCH"
import addon_utils
addon_utils.disable("cycles")
results["no cycles"] = bool(np.isfinite(bl.render(("depth",))["depth"]).any())
addon_utils.enable("cycles")
scene.render.engine = "CYCLES"
scene.cycles.use_denoising, scene.cycles.samples = False, 8
results["same"] = bool((bl.render(("depth",))["depth"] == whole["depth"]).all())
(OUT / "results.json").write_text(json.dumps(results))
"""


def test_labels_that_would_be_empty(in_blender: Callable[[str], Path]) -> None:
    """A sample that has the labels is left out, an iterator names them, nodes make a surface of a volume."""
    results = json.loads((in_blender(NODES + LABELS) / "results.json").read_text())
    assert results["names"] == ["depth", "image", "instance", "instances"]
    errors = results["errors"]
    assert errors["passes"].startswith("ConfigError: passes must be a sequence of names")
    for name, label in (("offset", "instance"), ("own name", "Depth")):
        assert f"ConfigError: pass '{label}': Cycles writes it with the first sample" in errors[name]
        assert "sample_offset = 4 leaves out: set it to 0" in errors[name]
    assert results["image"] == [32, 48, 3]
    assert min(results["volume"]) > 20
    assert sum(results["volume"]) == results["surface"]
    assert results["own index"] == 1
    # From Blender 5.0 on names are not cut.
    assert results.get("deep") is True or "shorten it to 40 bytes" in errors["long name"]
    assert "is not rendered: set its `use` to True" in errors["layer"]
    assert results["no cycles"] is True
    assert results["same"] is True


PLACES = """
from asyncblend import ConfigError, blender as bl

scene, data = bpy.context.scene, bpy.data
cube, lamp, eye = data.objects["Cube"], data.objects["Light"], scene.camera
results = {}

def error(name, call):
    try:
        call()
        results[name] = ""
    except Exception as error:
        results[name] = f"{type(error).__name__}: {error}"

def camera():
    bl.randomise.camera_on_shell(np.random.default_rng(0), (0, 0, 0), radius=(6, 8))

def pose():
    bl.randomise.pose(cube, np.random.default_rng(0))

def light(**options):
    bl.randomise.light(lamp, np.random.default_rng(0), **options)

for name, call in (("camera", camera), ("pose", pose), ("light", light)):
    error(f"{name}, free", call)
other = data.objects.new("Other", None)
scene.collection.objects.link(other)
other.location = 1, 2, 3
for name, obj, call in (("camera", eye, camera), ("pose", cube, pose), ("light", lamp, light)):
    held = obj.constraints.new("COPY_LOCATION")
    held.target = other
    error(f"{name}, held", call)
    held.mute = True
    error(f"{name}, muted", call)
    obj.constraints.remove(held)
    obj.keyframe_insert("location", frame=1)
    error(f"{name}, keyframes", call)
    obj.animation_data_clear()
    obj.driver_add("location", 2)
    error(f"{name}, driver", call)
    obj.animation_data_clear()
    obj.keyframe_insert("scale", frame=1)  # which nobody sets
    error(f"{name}, scale", call)
    obj.animation_data_clear()
rig = data.objects.new("Rig", None)
scene.collection.objects.link(rig)
rig.location, rig.rotation_euler = (3, 1, 2), (1, 2, 3)
for name, obj, call in (("camera", eye, camera), ("pose", cube, pose), ("light", lamp, light)):
    obj.parent = rig
    held = obj.constraints.new("LIMIT_ROTATION")
    held.mute = True
    error(f"{name}, parent and muted", call)
    obj.constraints.remove(held)
    held = obj.constraints.new("COPY_ROTATION")
    held.target = other
    error(f"{name}, turned", call)
    obj.constraints.remove(held)
    obj.parent = None
middle = data.objects.new("Middle", None)
scene.collection.objects.link(middle)
eye.parent = rig
track = eye.constraints.new("TRACK_TO")
track.target, track.track_axis, track.up_axis = middle, "TRACK_NEGATIVE_Z", "UP_Y"
error("camera, tracks its target", camera)
eye.constraints.remove(track)
eye.parent = None
cube.keyframe_insert("location", frame=1)
strip = cube.animation_data.nla_tracks.new().strips.new("Strip", 1, cube.animation_data.action)
cube.animation_data.action = None
error("pose, strip", pose)
cube.animation_data.nla_tracks[0].mute = True
error("pose, muted track", pose)
cube.animation_data.nla_tracks[0].mute = False
cube.animation_data.use_nla = False
error("pose, no strips", pose)
cube.animation_data_clear()
lamp.data.keyframe_insert("energy", frame=1)
error("energy, keyframes", light)
lamp.data.animation_data_clear()
error("energy, none", lambda: light(energy=()))
error("energy, zero", lambda: light(energy=0))
error("energy, array", lambda: light(energy=np.array([10.0, 20.0])))
for value in (None, "0.1", [0.1]):
    error(f"margin {value}", lambda: bl.randomise.pose(cube, np.random.default_rng(0), margin=value))
error("rng", lambda: bl.randomise.pose(cube, 42))
error("folder", lambda: bl.randomise.background(None, np.random.default_rng(0)))
(OUT / "results.json").write_text(json.dumps(results))
"""


def test_a_random_place_that_would_not_stay(in_blender: Callable[[str], Path]) -> None:
    """Keyframes, drivers and constraints would put an object back as soon as it is rendered."""
    results: dict[str, str] = json.loads((in_blender(PLACES) / "results.json").read_text())
    for name in ("camera", "pose", "light"):
        for free in ("free", "muted", "scale"):
            assert results[f"{name}, {free}"] == ""
        for way in ("keyframes", "driver"):
            assert "has an animated or driven location, which would put it back" in results[f"{name}, {way}"]
        assert "does not stay as it is put: a constraint holds it" in results[f"{name}, held"]
        assert results[f"{name}, parent and muted"] == ""
        assert "ConfigError: " in results[f"{name}, turned"]
    assert results["camera, tracks its target"] == results["pose, muted track"] == results["pose, no strips"] == ""
    assert "has an animated or driven location" in results["pose, strip"]
    assert "has an animated or driven energy" in results["energy, keyframes"]
    assert results["energy, array"] == ""
    wrong = {
        name: text for name, text in results.items() if name.startswith(("margin", "energy, none", "energy, zero"))
    }
    assert len(wrong) == 5
    assert all(text.startswith("ConfigError: ") for text in wrong.values())
    assert "ConfigError: rng must be a generator of numpy" in results["rng"]
    assert "ConfigError: folder must be the path of a folder" in results["folder"]


UNITS = """
import warnings
from asyncblend import blender as bl

scene = bpy.context.scene
cube = bpy.data.objects["Cube"]
for obj in bpy.data.objects:
    obj.select_set(obj == cube)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Blender's own exporters use what numpy deprecates
    bpy.ops.export_scene.gltf(filepath=str(OUT / "cube.glb"), use_selection=True)
    bpy.ops.export_scene.fbx(filepath=str(OUT / "cube.fbx"), use_selection=True)
(OUT / "part.obj").write_text("v 0 0 0\\nv 100 0 0\\nv 0 100 0\\nv 0 0 100\\nf 1 3 2\\nf 1 2 4\\nf 1 4 3\\nf 2 3 4\\n")
results = {}
for metres in (1.0, 0.01):
    scene.unit_settings.system, scene.unit_settings.scale_length = "METRIC", metres
    for name, options in (("cube.glb", {}), ("cube.fbx", {}), ("cube.glb", {"size": 0.5}), ("part.obj", {"unit": 0.001})):
        made = bl.load_model(OUT / name, **options)
        results[f"{metres}, {name}, {options}"] = max(made.dimensions) * metres
        bpy.data.objects.remove(made)
    results[f"kept {metres}"] = abs(scene.unit_settings.scale_length - metres) < 1e-6
scene.unit_settings.system = "NONE"  # the scale is not used then
made = bl.load_model(OUT / "cube.fbx")
results["none"] = max(made.dimensions)
bpy.data.objects.remove(made)
error = ""
try:
    bl.load_model(OUT / "cube.glb", size=True)
except ValueError as caught:
    error = str(caught)
made = bl.load_model(OUT / "cube.glb", size=np.float32(0.5))
(OUT / "results.json").write_text(json.dumps({"sizes": results, "error": error}))
"""


@pytest.mark.exhaustive
def test_metres_are_metres_in_scenes_with_a_unit_scale(in_blender: Callable[[str], Path]) -> None:
    """A model is as large whichever file it comes from. Some importers heed the scene's scale, some do not."""
    results = json.loads((in_blender(UNITS) / "results.json").read_text())
    sizes = results["sizes"]
    assert sizes.pop("kept 1.0") is sizes.pop("kept 0.01") is True
    assert sizes.pop("none") == pytest.approx(2.0)
    wanted = {
        "cube.glb, {}": 2.0,
        "cube.fbx, {}": 2.0,
        "cube.glb, {'size': 0.5}": 0.5,
        "part.obj, {'unit': 0.001}": 0.1,
    }
    for name, size in sizes.items():
        assert size == pytest.approx(wanted[name.partition(", ")[2]], rel=1e-4), name
    assert len(sizes) == 8
    assert "size must be a length in metres" in results["error"]
