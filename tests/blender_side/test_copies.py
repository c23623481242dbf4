"""`annotate(..., instances=True)`: each copy has an id, a box, a pose and a visible fraction of its own.

Which copy a pixel shows is checked against rays that Blender casts itself, through the centre of each pixel. Boxes and
fractions are checked against a scene in which each copy is an object.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from .conftest import NODES

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.blender

START = (
    NODES
    + """
from mathutils import Matrix, Vector

cube = data.objects["Cube"]
cube.location, cube.scale, cube["class_id"] = (-5, 3, 0), (0.4, 0.4, 0.4), 3
results = {}

def add(name, what, place=(0, 0, 0), collection=None):
    obj = data.objects.new(name, what)
    (collection or scene.collection).objects.link(obj)
    obj.location = place
    return obj

def plain(found):
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in found.items()}

def matrices(found):
    back = np.linalg.inv(bl.Camera().world_to_camera)
    return [back @ np.array(pose) for pose in found["pose"]]

def rays(found):  # the share of pixels at which a ray meets what the mask says, and the share of those that show copies
    depsgraph = bpy.context.evaluated_depsgraph_get()
    known = {row["id"]: row["name"] for row in found["instances"]}
    those_of_copies = {row["id"] for row in found["instances"] if "instancer" in row}
    worlds = [(known[number], number, matrix) for number, matrix in zip(found["id"].tolist(), matrices(found))]
    same = copies = 0
    for y in range(64):
        for x in range(96):
            at = Vector(((x + 0.5) / 8 - 6, 4 - (y + 0.5) / 8, 19))
            hit, _, _, _, obj, matrix = scene.ray_cast(depsgraph, at, Vector((0, 0, -1)))
            met = [n for name, n, m in worlds if hit and name == obj.name and np.allclose(m, np.array(matrix), atol=1e-4)]
            wanted = met[0] if met else 0
            copies += wanted in those_of_copies
            same += wanted == found["instance"][y, x]
    return same / (96 * 64), copies / (96 * 64)

def nodes(obj, source):  # show the source, an object or a cube made by nodes, at each point
    tree, start, end = geometry_nodes("Scatter")
    scatter = tree.nodes.new("GeometryNodeInstanceOnPoints")
    if source is None:
        node = tree.nodes.new("GeometryNodeMeshCube")
    else:
        node = tree.nodes.new("GeometryNodeObjectInfo")
        node.inputs["Object"].default_value, node.inputs["As Instance"].default_value = source, True
    tree.links.new(start, scatter.inputs["Points"])
    tree.links.new(node.outputs["Mesh" if source is None else "Geometry"], scatter.inputs["Instance"])
    tree.links.new(scatter.outputs[0], end)
    obj.modifiers.new("Scatter", "NODES").node_group = tree

def points(name, places):
    mesh = data.meshes.new(name)
    mesh.from_pydata(places, [], [])
    return add(name, mesh)
"""
)
SCRIPT = """
# a collection with two parts, shown by three empties; two of them overlap, and one is cut by the image's edge
shelf = data.collections.new("Shelf")
body, ball = add("Body", cube.data, (0, 0, 0), shelf), None
bpy.ops.mesh.primitive_uv_sphere_add(segments=16, ring_count=8)
ball = bpy.context.object
for collection in list(ball.users_collection):
    collection.objects.unlink(ball)
shelf.objects.link(ball)
ball.name, ball.location, ball.scale = "Ball", (1, 0, 0.5), (0.7, 0.7, 0.7)
body["class_id"], body["class_name"] = 5, "body"
empties = [add(f"Shop {number}", None, place) for number, place in enumerate([(-2, 0, 0), (0.4, 0.8, 1), (5.5, -1, 0)])]
for empty in empties:
    empty.instance_type, empty.instance_collection = "COLLECTION", shelf
empties[1].rotation_euler, empties[1]["class_id"] = (0, 0, 0.5), 9
empties[1]["class_name"] = "shop"
found = bl.annotate([cube, *empties], {cube: [0]}, instances=True)
results["shelf"] = plain(found), rays(found)
some = bl.annotate(["Body", empties[2]], {"Body": [0, (0, 0, 1), "Ball"]}, instances=True)
corners = [Vector(vertex.co) for vertex in cube.data.vertices][:1] + [Vector((0, 0, 1))]
results["some"] = plain(some), [
    bl.Camera().project([(Matrix(matrix.tolist()) @ corner)[:] for corner in corners]).tolist()
    for name, matrix in zip(some["name"], matrices(some)) if name == "Body"
]
given = bl.render(("instance", "semantic", "depth"))
merged = {**given, **bl.annotate(["Body"], rendered=given, instances=True)}
results["given"] = [
    merged["id"].tolist(), bool((merged["instance"] == found["instance"]).mean() > 0.97),
    sorted(set(np.unique(merged["semantic"]).tolist())), sorted(set(np.unique(given["semantic"]).tolist())),
]
try:
    bl.annotate(["Body"], rendered=bl.render(("instance",)), instances=True)
except ValueError as error:
    results["error"] = [type(error).__name__, str(error)]

# the same as objects
for number, (name, matrix) in enumerate(zip(found["name"][1:], matrices(found)[1:])):
    add(f"real {number}", data.objects[name].data).matrix_world = Matrix(matrix.tolist())
for empty in empties:
    data.objects.remove(empty)
names = ["Cube", *(f"real {number}" for number in range(6))]
results["real"] = plain(bl.annotate(names))
for name in names[1:]:
    data.objects.remove(data.objects[name])

# nodes that show an object, and nodes that show a mesh of their own
grid = points("Grid", [(x * 1.5, y, 0.3 * x * y) for x in (-3, -1, 0, 1, 4) for y in (-2, 0, 1.2)])
nodes(grid, cube)
found = bl.annotate([cube], instances=True)
results["nodes"] = plain(found), rays(found)
grid.modifiers.clear()
nodes(grid, None)
found = bl.annotate([cube, grid], instances=True)
results["own mesh"] = plain(found), rays(found)
grid.modifiers.clear()

# vertices
grid.instance_type = "VERTS"
child = add("Child", cube.data)
child.parent, child.scale = grid, (0.5, 0.6, 0.4)
found = bl.annotate([cube, child], instances=True)
results["vertices"] = plain(found), rays(found)
data.objects.remove(child)
grid.instance_type = "NONE"

# particles
bpy.ops.mesh.primitive_plane_add(size=8)
plane = bpy.context.object
plane.show_instancer_for_render = plane.show_instancer_for_viewport = False
settings = plane.modifiers.new("Particles", "PARTICLE_SYSTEM").particle_system.settings
settings.count, settings.frame_end, settings.physics_type, settings.lifetime = 12, 1, "NO", 1000
settings.render_type, settings.instance_object, settings.particle_size = "OBJECT", cube, 0.8
scene.frame_set(2)
found = bl.annotate([cube], instances=True)
results["particles"] = plain(found), rays(found)
settings.display_percentage = 0
results["all particles"] = plain(bl.annotate([cube], instances=True))

# a handler makes an object when the ids are rendered
def make(*_):
    if "Late" not in data.objects:
        add("Late", cube.data, (0, -3, 0))
bpy.app.handlers.render_pre.append(make)
found = bl.annotate([cube, grid], instances=True)
bpy.app.handlers.render_pre.remove(make)
results["late"] = [row["name"] for row in found["instances"] if "instancer" not in row]
"""


@pytest.fixture(scope="module")
def results(seen_from_above: Callable[[str], Any]) -> dict[str, Any]:
    return dict(seen_from_above(START + SCRIPT))


@pytest.mark.parametrize(
    ("name", "least"), [("shelf", 0.1), ("nodes", 0.05), ("own mesh", 0.1), ("vertices", 0.1), ("particles", 0.04)]
)
@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_pixel_has_the_id_of_the_copy_that_a_ray_meets(results: dict[str, Any], name: str, least: float) -> None:
    same, copies = results[name][1]
    assert same > 0.995
    assert copies > least


def test_a_copy_is_labelled_as_an_object_would_be(results: dict[str, Any]) -> None:
    """In the other scene each copy is an object. Ids and classes are those of copies."""
    (copies, _), real = results["shelf"], results["real"]
    for name in ("bbox", "bbox_loose", "visible_fraction", "truncated", "bbox3d", "pose"):
        np.testing.assert_allclose(copies[name], real[name], atol=1e-4, err_msg=name)
    assert copies["truncated"] == [False] * 5 + [True] * 2
    assert min(copies["visible_fraction"]) < 0.9


def test_ids_follow_those_of_the_objects(results: dict[str, Any]) -> None:
    """Copies are in order of their instancer and source. A class of the empty comes before that of the source."""
    found, _ = results["shelf"]
    assert found["id"] == [*range(1, 8)]
    assert found["name"] == ["Cube", *["Ball", "Body"] * 3]
    assert found["instancer"] == ["", *(f"Shop {number}" for number in (0, 0, 1, 1, 2, 2))]
    assert found["class_id"] == [3, 0, 5, 9, 9, 0, 5]
    assert found["class_name"] == ["3", "", "body", "shop", "shop", "", "body"]
    table = {row["id"]: row for row in found["instances"]}
    assert [table[number]["name"] for number in found["id"]] == found["name"]
    assert [table[number].get("instancer", "") for number in found["id"]] == found["instancer"]
    assert sorted(np.unique(found["semantic"])) == [0, 3, 5, 9]


def test_copies_are_found_by_source_and_by_instancer(results: dict[str, Any]) -> None:
    """Each counts once, also where both are given. Keypoints move with a copy."""
    found, pixels = results["some"]
    assert found["name"] == ["Body"] * 3 + ["Ball"]
    assert found["instancer"] == ["Shop 0", "Shop 1", "Shop 2", "Shop 2"]
    for number in range(2):
        np.testing.assert_allclose(np.array(found["keypoints"][number])[:2, :2], pixels[number], atol=0.02)
    ball = np.array(found["keypoints"])[:3, 2, :2] - np.array(found["keypoints"])[:3, 1, :2]
    np.testing.assert_allclose(np.linalg.norm(ball[:2], axis=1), 8, atol=0.05)
    assert [row[1][2] for row in found["keypoints"]][:2] == [2, 2]


def test_a_given_result_is_told_apart_where_it_has_depth(results: dict[str, Any]) -> None:
    ids, same, classes, before = results["given"]
    assert len(ids) == 3
    assert same
    assert classes == [0, 3, 5, 9]
    assert before == [0, 3, 5]
    kind, message = results["error"]
    assert kind == "ConfigError"
    assert "rendered has no 'depth'" in message
    assert 'bl.render((..., "instance", "depth"))' in message


def test_a_handler_may_make_an_object_when_the_ids_are_rendered(results: dict[str, Any]) -> None:
    """It came too late for the table of that render, and is left out like what is linked after it."""
    assert "Cube" in results["late"]
    assert "Late" not in results["late"]


def test_copies_of_every_kind_have_ids_of_their_own(results: dict[str, Any]) -> None:
    for name, count in [("nodes", 16), ("own mesh", 16), ("vertices", 16), ("particles", 13)]:
        found, _ = results[name]
        assert len(found["id"]) == len(set(found["id"])) == count, name
        assert (
            len({(who, tuple(number)) for who, number in zip(found["instancer"], found["persistent_id"], strict=True)})
            == count
        )
    found, _ = results["nodes"]
    assert found["name"] == ["Cube"] * 16
    assert found["class_id"] == [3] * 16
    assert found["instancer"] == ["", *["Grid"] * 15]


def test_copies_are_those_of_the_render(results: dict[str, Any]) -> None:
    """The viewport may show fewer particles, or none."""
    (found, _), again = results["particles"], results["all particles"]
    assert again["id"] == found["id"]
    assert again["bbox"] == found["bbox"]


AGAIN = """
for name in ("B", "A"):
    nodes(points(name, [(x, y, 0) for x in range(-4, 5) for y in (-1, 2)]), cube)
found = bl.annotate([cube], instances=True)
results["table"], results["boxes"] = found["instances"], found["bbox"].tolist()
"""


@pytest.mark.exhaustive
@pytest.mark.slow
def test_ids_are_the_same_in_each_process(seen_from_above: Callable[[str], Any]) -> None:
    one, other = (seen_from_above(START + AGAIN) for _ in range(2))
    assert one == other
    assert len(one["table"]) == 3 + 36
