"""Object ids: their table, which surfaces share an id, and that `pass_index` is put back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.blender

SCRIPT = """
from asyncblend import blender as bl
from asyncblend.blender.capture import object_ids

scene, layer, data = bpy.context.scene, bpy.context.view_layer, bpy.data
options = scene.render
options.engine = "CYCLES"
options.resolution_x, options.resolution_y = 96, 64
scene.cycles.samples, scene.cycles.use_denoising = 1, False
scene.view_settings.view_transform = "Standard"
cube, camera = data.objects["Cube"], scene.camera
cube.location, camera.location, camera.rotation_euler = (0, 0, 0), (0, 0, 20), (0, 0, 0)
mesh = cube.data
results = {"errors": {}}

def add(name, what, place, collection=None):
    obj = data.objects.new(name, what)
    (collection or scene.collection).objects.link(obj)
    obj.location = place
    return obj

def at(found, *points):
    '''The names of what is seen at these places of the plane z = 0.'''
    names = ["", *(entry["name"] for entry in found["instances"])]
    return [names[found["instance"][int(y), int(x)]] for x, y in bl.Camera().project(points)]

# what is seen through instances
shelf, other, third = (data.collections.new(name) for name in ("shelf", "unlinked", "third"))
scene.collection.children.link(shelf)
layer.layer_collection.children["shelf"].exclude = True
add("source", mesh, (0, 0, 0), shelf)["class_id"] = 5
add("unlinked source", mesh, (0, 0, 0), other)
add("not seen", mesh, (0, 0, 0), third)
for name, place, collection in [("first", (4, 0, 0), shelf), ("second", (4, 4, 0), shelf), ("third", (-4, 0, 0), other)]:
    empty = add(name, None, place)
    empty.instance_type, empty.instance_collection = "COLLECTION", collection
parent = add("parent", data.meshes.new("point"), (0, 4, 0))
parent.data.from_pydata([(0, 0, 0)], [], [])
parent.instance_type = "VERTS"
child = add("child", mesh, (0, 0, 0))
child.parent = parent
holdout = add("holdout", mesh, (0, -4, 0))
holdout.is_holdout = True
child["class_id"], child["class_name"] = 2.0, "young"
for i, obj in enumerate(data.objects):
    obj.pass_index = 100 + i  # the user's own, which must not be taken for ids
before = {obj.name: obj.pass_index for obj in data.objects}
found = bl.render(["instance", "semantic"])
assert before == {obj.name: obj.pass_index for obj in data.objects}
results["table"] = found["instances"]
results["seen"] = at(found, (0, 0, 0), (4, 0, 0), (4, 4, 0), (-4, 0, 0), (0, 4, 0), (0, -4, 0), (-4, -4, 0))
results["classes"] = sorted({int(value) for value in np.unique(found["semantic"])})
results["highest"] = int(found["instance"].max())
results["of the layer"] = object_ids.ObjectIds(layer).table

# by persistent data too, and with an object that was linked just now
options.use_persistent_data = True
results["persistent"] = []
for name in ("Z", "A"):
    add(name, mesh, (-4, -4, 0) if name == "Z" else (-4, 4, 0))
    found = bl.render(["instance"])
    results["persistent"].append(at(found, (0, 0, 0), (-4, -4, 0), (-4, 4, 0)))
    assert all(before.get(obj.name, 0) == obj.pass_index for obj in data.objects)
options.use_persistent_data = False

def attempt(name, *passes):
    own = [obj.pass_index for obj in data.objects]
    try:
        bl.render(passes or ["instance"])
    except ValueError as error:
        results["errors"][name] = [type(error).__name__, str(error)]
    assert own == [obj.pass_index for obj in data.objects], name

for value in (0, -3, 1.5, "cube", [1, 2]):
    cube["class_id"] = value
    attempt(f"class {value}", "semantic")
cube["class_id"], cube["class_name"] = 1, 3
attempt("class name")
del cube["class_id"], cube["class_name"]
most, object_ids._LARGEST_INDEX = object_ids._LARGEST_INDEX, 7
attempt("too many")
object_ids._LARGEST_INDEX = most
attempt("unknown", "instance", "nope")
curve = cube.driver_add("pass_index")
attempt("driven")
curve.mute = True
attempt("muted")
cube.driver_remove("pass_index")
cube.keyframe_insert("location", frame=1)
attempt("moved")
cube.keyframe_insert("pass_index", frame=1)
attempt("animated")
cube.animation_data.nla_tracks.new().strips.new("Indices", 1, cube.animation_data.action)
cube.animation_data.action = None
attempt("in a strip")
cube.animation_data_clear()
options.engine = "BLENDER_WORKBENCH"
attempt("engine", "depth", "object_index", "semantic")
attempt("engine's normals", "normal")
options.engine = "CYCLES"
cube.pass_index = 32767
assert cube.pass_index == most

(OUT / "results.json").write_text(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(in_blender: Callable[[str], Path]) -> dict[str, Any]:
    return dict(json.loads((in_blender(SCRIPT) / "results.json").read_text()))


def entry(number: int, name: str, class_id: int = 0, class_name: str = "") -> dict[str, Any]:
    return {"id": number, "name": name, "class_id": class_id, "class_name": class_name}


@pytest.mark.slow
def test_what_instances_show_has_the_id_of_its_source(results: dict[str, Any]) -> None:
    assert results["seen"] == ["Cube", "source", "source", "unlinked source", "child", "", ""]
    assert results["classes"] == [0, 2, 5]


def test_sources_outside_the_view_layer_come_last_if_they_are_seen(results: dict[str, Any]) -> None:
    of_the_layer = [entry(1, "Cube"), entry(2, "child", 2, "young"), entry(3, "holdout"), entry(4, "parent")]
    assert results["of the layer"] == of_the_layer
    assert results["table"] == [*of_the_layer, entry(5, "source", 5, "5"), entry(6, "unlinked source")]
    assert results["highest"] == 6


def test_ids_follow_the_scene_with_persistent_data(results: dict[str, Any]) -> None:
    assert results["persistent"] == [["Cube", "Z", ""], ["Cube", "Z", "A"]]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        *((f"class {value}", ["'Cube'", "class_id", "whole number from 1"]) for value in (0, -3, 1.5, "cube")),
        ("class [1, 2]", ["'Cube'", "class_id"]),
        ("class name", ["'Cube'", "class_name", "string"]),
        ("too many", ["instance", "counts up to 7", "'ViewLayer'"]),
        ("unknown", ["'nope'", "flow_forward", "normal_camera", "object_index", "AOV"]),
        *((name, ["'Cube'", "animated or driven pass_index"]) for name in ("driven", "animated", "in a strip")),
        ("engine", ["BLENDER_WORKBENCH", "'object_index'", "'CYCLES'"]),
        ("engine's normals", ["BLENDER_WORKBENCH", "'normal'", "'CYCLES'"]),
    ],
)
def test_wrong_input_is_a_config_error_that_says_what_is_right(
    results: dict[str, Any], name: str, words: list[str]
) -> None:
    """The script asserts after each error that every object has its own `pass_index` again."""
    kind, message = results["errors"][name]
    assert kind == "ConfigError"
    for word in words:
        assert word in message
