"""What the camera does not see anywhere hides no keypoint, and has no keypoints and no silhouette; its copies have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from .conftest import NODES

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.blender

SCRIPT = (
    NODES
    + """
scene.render.resolution_x, scene.render.resolution_y = 48, 32
data.objects.remove(data.objects["Cube"])
results = {}

def flat(name, size, place):
    bpy.ops.mesh.primitive_plane_add(size=size, location=place)
    bpy.context.object.name = name
    return bpy.context.object

target = flat("Target", 6, (0, 0, -2))
cover = flat("Cover", 1, (0, 0, 3))
speck = flat("Speck", 0.6, (4, 2, 0))
shelf = data.collections.new("Shelf")
empty = data.objects.new("Empty", None)
scene.collection.objects.link(empty)

def case(name, obj=cover):
    labels = bl.render(("instance", "depth"))
    points = {target: [(0, 0, 0)], obj: [(0, 0, 0)]}
    found = bl.annotate([target, obj], points, rendered=labels, silhouettes=True)
    copies = bl.annotate([obj], {obj: [(0, 0, 0)]}, rendered=labels, silhouettes=True, instances=True)
    results[name] = {
        "behind": int(found["keypoints"][0, 0, 2]),
        "seen": bool((labels["instance"] == found["id"][1]).any()),
        "keypoint": found["keypoints"][1, 0].tolist(),
        "silhouette": [int(found["silhouette_pixels"][1]), int(found["silhouette"][1].sum())],
        "copies": copies["keypoints"][:, :1, 2].astype(int).ravel().tolist(),
        "of copies": [pixels > 0 for pixels in copies["silhouette_pixels"].tolist()],
    }

def nodes(obj, source):  # show the source at each point
    tree, start, end = geometry_nodes("Scatter")
    node, scatter, join = (
        tree.nodes.new("GeometryNode" + kind) for kind in ("ObjectInfo", "InstanceOnPoints", "JoinGeometry")
    )
    node.inputs["Object"].default_value, node.inputs["As Instance"].default_value = source, True
    tree.links.new(start, scatter.inputs["Points"])
    tree.links.new(node.outputs["Geometry"], scatter.inputs["Instance"])
    tree.links.new(start, join.inputs[0])
    tree.links.new(scatter.outputs[0], join.inputs[0])
    tree.links.new(join.outputs[0], end)
    obj.modifiers.new("Scatter", "NODES").node_group = tree

case("shown")
cover.visible_camera = False
case("not for cameras")
shelf.objects.link(cover)
empty.instance_type, empty.instance_collection, empty.location = "COLLECTION", shelf, (2, 0, 0)
case("copy not for cameras")
cover.visible_camera, empty.visible_camera = True, False
case("copied by what is not for cameras")
empty.instance_type, empty.visible_camera = "NONE", True

cover.is_holdout = True
case("holdout")
cover.is_holdout = False

cover.show_instancer_for_render = False
case("shows no copies")
bpy.context.view_layer.objects.active = cover
cover.modifiers.new("Hair", "PARTICLE_SYSTEM")
hair = cover.particle_systems[0].settings
hair.type, hair.count, hair.render_step = "HAIR", 0, hair.display_step
case("emitter")
cover.modifiers.clear()
nodes(cover, speck)
case("nodes")
cover.modifiers.clear()
speck.parent, cover.instance_type = cover, "VERTS"
speck.location = (0, 0, -3)  # so that it lies in the world's origin, and its copies at the corners
case("corners")
case("copied to corners", speck)
cover.show_instancer_for_render = True
case("corners and itself")
cover.show_instancer_for_render = False
cover.data.vertices[0].co = speck.location = (0, 0, 0)
speck.scale = (2, 2, 2)
case("a copy in the place of what is copied", speck)
"""
)


@pytest.fixture(scope="module")
def results(seen_from_above: Callable[[str], Any]) -> dict[str, Any]:
    return dict(seen_from_above(SCRIPT))


UNSEEN = ["not for cameras", "emitter", "nodes", "corners", "copied to corners"]


@pytest.mark.parametrize("name", UNSEEN)
@pytest.mark.slow
def test_what_is_unseen_has_no_keypoints_and_no_silhouette(results: dict[str, Any], name: str) -> None:
    assert results[name]["keypoint"] == [0, 0, 0]
    assert results[name]["silhouette"] == [0, 0]


@pytest.mark.parametrize("name", UNSEEN)
def test_what_is_unseen_hides_no_keypoint(results: dict[str, Any], name: str) -> None:
    assert results[name]["behind"] == 2


@pytest.mark.parametrize("name", ["shown", "shows no copies", "corners and itself"])
def test_what_is_seen_hides_and_has_keypoints(results: dict[str, Any], name: str) -> None:
    """Whether an instancer is shown means nothing for what shows no copies."""
    found = results[name]
    assert found["seen"]
    assert [found["behind"], found["keypoint"][2], min(found["silhouette"]) > 0] == [1, 2, True]


def test_a_copy_is_seen_where_it_and_what_shows_it_are_visible_to_cameras(results: dict[str, Any]) -> None:
    assert results["copied to corners"]["copies"] == [2] * 4
    assert results["copied to corners"]["of copies"] == [True] * 4
    assert results["copy not for cameras"]["copies"] == [0, 0]
    assert results["copied by what is not for cameras"]["copies"] == [2, 0]
    assert results["copied by what is not for cameras"]["of copies"] == [True, False]


def test_a_copy_hides_where_what_is_copied_would_be(results: dict[str, Any]) -> None:
    found = results["a copy in the place of what is copied"]
    assert [found["behind"], found["keypoint"]] == [1, [0, 0, 0]]


def test_a_holdout_has_no_pixels_but_hides(results: dict[str, Any]) -> None:
    found = results["holdout"]
    assert not found["seen"]
    assert [found["behind"], found["keypoint"][2], min(found["silhouette"]) > 0] == [1, 2, True]
