"""Ids, classes and labels of what is linked from a library: objects, collections, instances of them, and overrides.

Which object a pixel shows is checked against rays that Blender casts itself, through the centre of each pixel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.blender

SCRIPT = """
from mathutils import Vector
from asyncblend.blender.labels.rendered_ids import render_ids
from asyncblend.blender.scene.lens import frame_of

layer = bpy.context.view_layer
mesh = data.objects["Cube"].data
library = str(OUT / "library.blend")

# a library with an object, and with three collections; the names of some objects are those of local ones
def add(name, place, class_id, collection=None):
    obj = data.objects.new(name, mesh)
    (collection or scene.collection).objects.link(obj)
    obj.location, obj.scale, obj["class_id"] = place, (0.5, 0.5, 0.5), class_id
    return obj

data.objects["Cube"].name = "Was Cube"
made = []
for name, objects in {
    "Alone": [("Ball", (-4, 2.5, 0), 2)],
    "Linked": [("Cube", (-2, 2.5, 0), 3), ("Cone", (0, 2.5, 0), 4)],
    "Shown": [("Part", (0, 0, 0), 5), ("Wall", (0, 1.2, 0), 6)],
    "Changed": [("Arm", (2, 2.5, 0), 7), ("Leg", (4, 2.5, 0), 8)],
}.items():
    made.append(data.collections.new(name))
    scene.collection.children.link(made[-1])
    for each in objects:
        add(*each, made[-1])
data.libraries.write(library, set(made))
for collection in made:
    for obj in list(collection.objects):
        data.objects.remove(obj)
    data.collections.remove(collection)
data.objects["Was Cube"].name = "Cube"
data.objects["Cube"].location, data.objects["Cube"].scale = (-4, -2.5, 0), (0.5, 0.5, 0.5)
data.objects["Cube"]["class_id"] = 1

with data.libraries.load(library, link=True) as (there, here):
    here.collections, here.objects = ["Linked", "Shown", "Changed"], ["Ball"]
linked, shown, changed = here.collections
ball = here.objects[0]
scene.collection.objects.link(ball)
scene.collection.children.link(linked)
for number in range(2):
    empty = data.objects.new(f"Empty {number}", None)
    scene.collection.objects.link(empty)
    empty.instance_type, empty.instance_collection, empty.location = "COLLECTION", shown, (number * 3 - 1, -2, 0)
scene.collection.children.link(changed)
changed.override_hierarchy_create(scene, layer)
if changed.name in scene.collection.children and changed in scene.collection.children[:]:
    scene.collection.children.unlink(changed)
scene.collection.update_tag()
layer.update()
zed = add("Zed", (5, -2.5, 0), 9)

overridden = [obj for obj in data.objects if obj.override_library]
results = {"overridden": sorted(obj.name for obj in overridden), "readonly": [obj.is_property_readonly("pass_index") for obj in overridden]}
for number, obj in enumerate(data.objects):
    obj.pass_index = 100 + number
before = {obj: obj.pass_index for obj in data.objects}

names = [obj.name for obj in data.objects]
def unique(obj):
    return obj.name if names.count(obj.name) == 1 or obj.library is None else f"{obj.name} [library.blend]"

def compared(found):
    depsgraph = bpy.context.evaluated_depsgraph_get()
    known = {0: ("", 0), **{row["id"]: (row["name"], row["class_id"]) for row in found["instances"]}}
    same, seen = 0, set()
    for y in range(64):
        for x in range(96):
            at = Vector(((x + 0.5) / 8 - 6, 4 - (y + 0.5) / 8, 19))
            hit, _, _, _, obj, _ = scene.ray_cast(depsgraph, at, Vector((0, 0, -1)))
            wanted = (unique(obj), obj["class_id"]) if hit else ("", 0)
            seen.add(wanted)
            same += known[int(found["instance"][y, x])] == wanted
            same += wanted[1] == found["semantic"][y, x]
    return same / (2 * 96 * 64), sorted(seen)

results["renders"] = []
for persistent in (False, True, True):
    scene.render.use_persistent_data = persistent
    ball.location.x += 0.01
    found = bl.render(("instance", "semantic"))
    results["renders"].append([*compared(found), {obj: obj.pass_index for obj in data.objects} == before])
scene.render.use_persistent_data = False
results["table"] = found["instances"]
results["index"] = sorted(set(np.unique(bl.render(("instance", "object_index"))["object_index"]).astype(int).tolist()))
results["own"] = sorted([0, *(before[obj] for obj in data.objects if obj.type == "MESH")])

cubes = [obj for obj in data.objects if obj.name == "Cube"]
found = bl.annotate([*cubes, ball, "Cone", *overridden])
results["found"] = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in found.items()}
results["by name"] = bl.annotate(["Cube", "Cube [library.blend]"], {"Cube [library.blend]": [0]})["bbox"].tolist()
local = next(obj for obj in cubes if obj.library is None)
data.objects.remove(local)
results["alone"] = [bl.annotate(["Cube"])["bbox"].tolist(), bl.annotate(["Cube"])["name"]]
"""


@pytest.fixture(scope="module")
def results(seen_from_above: Callable[[str], Any]) -> dict[str, Any]:
    return dict(seen_from_above(SCRIPT))


@pytest.mark.slow
def test_what_is_linked_has_its_own_id_and_class(results: dict[str, Any]) -> None:
    """That holds with persistent data, too. A linked object has a longer name where a local one has the same."""
    for same, seen, _ in results["renders"]:
        assert same > 0.995
        assert [tuple(one) for one in seen] == [
            *[("", 0), ("Arm", 7), ("Ball", 2), ("Cone", 4), ("Cube", 1), ("Cube [library.blend]", 3), ("Leg", 8)],
            *[("Part", 5), ("Wall", 6), ("Zed", 9)],
        ]
    ids = [row["id"] for row in results["table"]]
    assert ids == [*range(1, len(ids) + 1)]


def test_the_user_s_indices_are_back_after_each_render(results: dict[str, Any]) -> None:
    """The pass with that name has them, too."""
    assert [back for *_, back in results["renders"]] == [True] * 3
    assert set(results["index"]) <= set(results["own"])
    assert len(results["index"]) == 10


def test_overrides_of_the_system_are_among_them(results: dict[str, Any]) -> None:
    """Blender lets nobody edit these, so that `foreach_set` skips them as it does linked objects."""
    assert results["overridden"] == ["Arm", "Leg"]
    assert results["readonly"] == [True, True]


def test_labels_of_linked_objects(results: dict[str, Any]) -> None:
    found = results["found"]
    assert found["name"] == ["Cube", "Cube [library.blend]", "Ball", "Cone", "Arm", "Leg"]
    assert found["class_id"] == [1, 3, 2, 4, 7, 8]
    assert found["visible_fraction"] == pytest.approx([1] * 6, abs=0.03)
    centres = [(-4, -2.5), (-2, 2.5), (-3.97, 2.5), (0, 2.5), (2, 2.5), (4, 2.5)]
    boxes = [((x + 6) * 8 - 4, (4 - y) * 8 - 4, 8, 8) for x, y in centres]
    np.testing.assert_allclose(found["bbox"], boxes, atol=1.01)
    np.testing.assert_allclose(found["bbox_loose"], boxes, atol=0.01)
    assert results["by name"] == found["bbox"][:2]
    assert results["alone"] == [[found["bbox"][1]], ["Cube"]]
