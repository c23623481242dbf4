"""Keypoints from `annotate`: all ways to give them, and whether the camera sees them in simple scenes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.blender

START = """
from mathutils import Vector
from asyncblend import blender as bl

scene = bpy.context.scene
scene.render.resolution_x, scene.render.resolution_y = 160, 120
camera = bl.Camera()
results = {}

def empty():
    for obj in list(bpy.data.objects):
        if obj.type != "CAMERA":
            bpy.data.objects.remove(obj)

def add(name, kind, **options):
    getattr(bpy.ops.mesh, f"primitive_{kind}_add")(**options)
    bpy.context.object.name = name
    return bpy.context.object

def straight(kind):  # looks along y
    scene.camera.location, scene.camera.rotation_euler = (0, -10, 0), (np.pi / 2, 0, 0)
    scene.camera.data.type, scene.camera.data.ortho_scale = kind, 10
"""
END = """
(OUT / "results.json").write_text(json.dumps(results))
"""

FLAGS = """
POINTS = {
    "front": (0.3, -1, 0.4), "back": (0.3, 1, 0.4), "middle": (0, 0, 0), "below the front": (0, -0.9, 0),
    "near corner": (1, -1, 1), "far corner": (1, 1, 1), "edge": (1, -1, 0.2), "before": (0, -3, 0),
    "outside": (9, 0, 0), "above": (0, 0, 8), "behind the camera": (0, -12, 0), "at the camera": (0, -10, 0),
}
NAMES = list(POINTS)

def flags(**options):
    found = bl.annotate(["Cube"], {"Cube": list(POINTS.values())}, **options)["keypoints"][0]
    return dict(zip(NAMES, found.tolist()))

for kind in ("PERSP", "ORTHO"):
    empty()
    straight(kind)
    cube = add("Cube", "cube")
    results[kind] = found = {"alone": flags()}
    xy, depth = camera.project(list(POINTS.values())), [10 + point[1] for point in POINTS.values()]
    found["xy"], found["size"] = dict(zip(NAMES, np.nan_to_num(xy).tolist())), [160, 120]
    found["margin"] = flags(keypoint_margin=1)
    found["deep margin"] = flags(keypoint_margin=5)

    wall = add("Wall", "plane", size=3, location=(0, -4, 0), rotation=(np.pi / 2, 0, 0))
    found["wall"] = flags()
    found["wall and margin"] = flags(keypoint_margin=20)
    wall.hide_render = True
    found["hidden wall"] = flags()
    wall.hide_render, wall.visible_camera = False, False
    found["wall not for cameras"] = flags()
    wall.visible_camera = True
    collection = bpy.data.collections.new("Stage")
    scene.collection.children.link(collection)
    bpy.context.collection.objects.unlink(wall)
    collection.objects.link(wall)
    found["wall in a collection"] = flags()
    collection.hide_render = True
    found["wall in a hidden collection"] = flags()
    bpy.context.collection.objects.link(wall)
    found["wall in a shown one too"] = flags()
    bpy.data.collections.remove(collection)
    bpy.data.objects.remove(wall)

    sliver = add("Sliver", "plane", size=3, location=(0, -9.95, 0), rotation=(np.pi / 2, 0, 0))
    found["nearer than the clip start"] = flags()
    scene.camera.data.clip_start = 0.01
    found["beyond the clip start"] = flags()
    scene.camera.data.clip_start = 0.1
    bpy.data.objects.remove(sliver)

    scene.camera.data.clip_end = 10.5
    found["clip end"] = flags()
    scene.camera.data.clip_end = 100
    cube.hide_render = True
    found["hidden itself"] = flags()
    cube.hide_render = False
    cube.location.y, cube.rotation_euler = 1000, (0.3, 0.2, 0.7)  # far away, where float32 is coarse
    scene.camera.location.y = 990
    scene.camera.data.clip_end = 2000
    bpy.ops.object.select_all(action="DESELECT")
    found["far from the origin"] = bl.annotate([cube], {cube: range(8)})["keypoints"][0, :, 2].tolist()
    scene.camera.data.clip_end = 100
"""


@pytest.fixture(scope="module")
def flagged(in_blender: Callable[[str], Path]) -> dict[str, Any]:
    return dict(json.loads((in_blender(START + FLAGS + END) / "results.json").read_text()))


def flags(found: dict[str, list[float]]) -> dict[str, int]:
    return {name: int(point[2]) for name, point in found.items()}


ALONE = {
    **dict.fromkeys(["front", "near corner", "edge", "before"], 2),
    **dict.fromkeys(["back", "middle", "below the front", "far corner"], 1),
    **dict.fromkeys(["outside", "above", "behind the camera", "at the camera"], 0),
}


@pytest.mark.parametrize("kind", ["PERSP", "ORTHO"])
class TestFlags:
    def test_own_surface_hides_what_is_not_on_it(self, flagged: dict[str, Any], kind: str) -> None:
        # With parallel rays, the ray to the far corner runs along a side of the cube and touches nothing before it.
        assert flags(flagged[kind]["alone"]) == ALONE | ({"far corner": 2} if kind == "ORTHO" else {})

    def test_points_lie_where_they_are_projected_or_are_0_0_outside(self, flagged: dict[str, Any], kind: str) -> None:
        for name, (x, y, v) in flagged[kind]["alone"].items():
            assert [x, y] == (pytest.approx(flagged[kind]["xy"][name], abs=1e-3) if v else [0, 0]), name

    def test_a_margin_lets_the_own_surface_pass(self, flagged: dict[str, Any], kind: str) -> None:
        alone = flags(flagged[kind]["alone"])
        assert flags(flagged[kind]["margin"]) == alone | {"middle": 2, "below the front": 2} | (
            {"far corner": 2} if kind == "ORTHO" else {}
        )
        assert flags(flagged[kind]["deep margin"]) == {name: min(2 * v, 2) for name, v in alone.items()}

    def test_other_objects_hide_whatever_the_margin_is(self, flagged: dict[str, Any], kind: str) -> None:
        hidden = {name: min(v, 1) for name, v in ALONE.items()}
        for case in ("wall", "wall and margin", "wall in a collection", "wall in a shown one too"):
            assert flags(flagged[kind][case]) == hidden, case

    @pytest.mark.parametrize(
        "case", ["hidden wall", "wall not for cameras", "wall in a hidden collection", "nearer than the clip start"]
    )
    def test_what_is_not_rendered_hides_nothing(self, flagged: dict[str, Any], kind: str, case: str) -> None:
        assert flagged[kind][case] == flagged[kind]["alone"]

    def test_what_is_beyond_the_clip_start_hides(self, flagged: dict[str, Any], kind: str) -> None:
        assert set(flags(flagged[kind]["beyond the clip start"]).values()) == {0, 1}

    def test_points_beyond_the_clip_end_are_not_visible(self, flagged: dict[str, Any], kind: str) -> None:
        alone = flags(flagged[kind]["alone"])
        assert flags(flagged[kind]["clip end"]) == alone | {"far corner": 1}

    def test_an_object_that_is_not_rendered_has_no_keypoints(self, flagged: dict[str, Any], kind: str) -> None:
        assert all(point == [0, 0, 0] for point in flagged[kind]["hidden itself"].values())

    def test_precision_suffices_far_from_the_origin(self, flagged: dict[str, Any], kind: str) -> None:
        """The camera sees seven of the eight corners of a turned cube."""
        assert sorted(flagged[kind]["far from the origin"]) == [1, 2, 2, 2, 2, 2, 2, 2]


KINDS = """
empty()
straight("PERSP")
body = add("Body", "cylinder", vertices=16, radius=0.5, depth=3)
body.location, body.rotation_euler, body.scale = (0.2, 0.1, -0.1), (0.1, 0.2, 0.3), (1.1, 0.9, 1)
bpy.ops.object.modifier_add(type="SUBSURF")
bpy.ops.object.armature_add(location=(0.3, 0.2, 0.1))
rig = bpy.context.object
rig.name = "Rig"
bpy.ops.object.mode_set(mode="EDIT")
lower = rig.data.edit_bones[0]
lower.name = "Lower"
upper = rig.data.edit_bones.new("Upper")
upper.head, upper.tail, upper.parent = lower.tail, (0, 0, 2), lower
bpy.ops.object.mode_set(mode="OBJECT")
rig.pose.bones["Lower"].rotation_mode = "XYZ"
rig.pose.bones["Lower"].rotation_euler = (0, 0, 0.7)
modifier = body.modifiers.new("Rig", "ARMATURE")
modifier.object = rig
hung = add("Hung", "cube", size=0.3)
hung.parent = rig
empty_object = bpy.data.objects.new("Tip", None)
scene.collection.objects.link(empty_object)
empty_object.parent, empty_object.location = body, (0.4, 0.3, 1.2)
namesake = bpy.data.objects.new("Upper", None)  # a bone has this name, too
scene.collection.objects.link(namesake)
namesake.location = (0.5, 0, 0.5)
away = bpy.data.objects.new("Away", None)

LOCAL = [(0.1, 0.2, 0.3), (0, 0, -1.5), (0.5, 0, 0)]
given = {
    "array": np.array(LOCAL), "array of float32": np.array(LOCAL, np.float32), "vectors": [Vector(p) for p in LOCAL],
    "tuples": LOCAL, "generator": (p for p in LOCAL), "whole numbers": np.array([(0, 0, 1), (1, 0, 0)]),
    "vertices": [0, 20, 5], "vertices as an array": np.array([0, 20, 5]), "bones": ["Lower", "Upper"],
    "objects": [empty_object, "Tip", namesake], "mixed": [(0, 0, 1), 7, "Upper", namesake, "Tip"], "none": [],
}
depsgraph = bpy.context.evaluated_depsgraph_get()
evaluated = body.evaluated_get(depsgraph)
vertices = [v.co.copy() for v in evaluated.data.vertices]
posed = rig.evaluated_get(depsgraph)

def world(entry):
    return evaluated.matrix_world @ (vertices[entry] if isinstance(entry, int) else Vector(entry))

heads = {bone.name: posed.matrix_world @ bone.head for bone in posed.pose.bones}
results["moved"] = (heads["Upper"] - rig.matrix_world @ rig.data.bones["Upper"].head_local).length
tip, other = empty_object.evaluated_get(depsgraph).matrix_world.translation, namesake.location
truth = {
    **dict.fromkeys(["array", "array of float32", "vectors", "tuples", "generator"], [world(p) for p in LOCAL]),
    "whole numbers": [world((0, 0, 1)), world((1, 0, 0))],
    "vertices": [world(0), world(20), world(5)], "vertices as an array": [world(0), world(20), world(5)],
    "bones": [heads["Lower"], heads["Upper"]], "objects": [tip, tip, other],
    "mixed": [world((0, 0, 1)), world(7), heads["Upper"], other, tip], "none": [],
}
results["kinds"] = {}
for name in given:
    found = bl.annotate([body], {"Body": given[name]}, keypoint_margin=9)["keypoints"]
    results["kinds"][name] = found[0].tolist(), camera.project(truth[name]).tolist()
results["more vertices"] = [len(vertices), len(body.data.vertices)]
found = bl.annotate(["Hung", body], {hung: ["Lower"], "Body": LOCAL}, keypoint_margin=9)["keypoints"]
results["padded"] = found.tolist(), str(found.dtype), camera.project([heads["Lower"]]).tolist()
results["some"] = bl.annotate(["Hung", body], {"Body": LOCAL})["keypoints"][0].tolist()
results["without"] = sorted(bl.annotate([hung]))


def attempt(name, *args, **options):
    try:
        bl.annotate(*args, **options)
        results["errors"][name] = None
    except Exception as error:
        results["errors"][name] = [type(error).__name__, str(error)]

results["errors"] = {}
attempt("vertex", [body], {body: [0, 999]})
attempt("negative", [body], {body: [-1]})
attempt("bone", [body], {body: ["Lower", "Upperr"]})
attempt("no armature", [add("Lone", "cube")], {"Lone": ["Spine"]})
attempt("away", [body], {body: [away]})
attempt("pair", [body], {body: [(0, 0, 0), (1, 2)]})
attempt("infinite", [body], {body: [(0, 0, float("inf"))]})
attempt("flag", [body], {body: [True]})
attempt("nothing", [body], {body: [None]})
attempt("text", [body], {body: "Lower"})
attempt("number", [body], {body: 3})
attempt("other", [body], {"Bodi": LOCAL})
attempt("list", [body], [LOCAL])
attempt("margin", [body], {body: LOCAL}, keypoint_margin=-1)
"""


@pytest.fixture(scope="module")
def results(in_blender: Callable[[str], Path]) -> dict[str, Any]:
    return dict(json.loads((in_blender(START + KINDS + END) / "results.json").read_text()))


KIND_NAMES = [
    *("array", "array of float32", "vectors", "tuples", "generator", "whole numbers", "vertices"),
    *("vertices as an array", "bones", "objects", "mixed", "none"),
]


@pytest.mark.parametrize("name", KIND_NAMES)
@pytest.mark.exhaustive
@pytest.mark.slow
def test_keypoints_can_be_given_in_many_ways(results: dict[str, Any], name: str) -> None:
    found, truth = results["kinds"][name]
    assert len(found) == len(truth)
    np.testing.assert_allclose(np.reshape(found, (-1, 3))[:, :2], np.reshape(truth, (-1, 2)), atol=1e-3)


def test_modifiers_and_poses_are_applied(results: dict[str, Any]) -> None:
    more, few = results["more vertices"]
    assert more > few
    assert results["moved"] > 0.3


def test_rows_past_an_objects_own_number_are_zero(results: dict[str, Any]) -> None:
    found, dtype, lower = results["padded"]
    assert np.shape(found) == (2, 3, 3)
    assert dtype == "float32"
    assert found[0][0][:2] == pytest.approx(lower[0], abs=1e-3)
    assert found[0][1:] == [[0, 0, 0], [0, 0, 0]]
    assert all(point[2] > 0 for point in found[1])
    assert results["some"] == [[0, 0, 0]] * 3
    assert "keypoints" not in results["without"]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("vertex", "keypoint 1 of 'Body' is vertex 999, but its mesh, modifiers applied, has the vertices 0 to "),
        ("negative", "keypoint 0 of 'Body' is vertex -1"),
        ("bone", "keypoint 1 of 'Body' is 'Upperr', but there is no such object in the view layer, and no such bone"),
        ("bone", "Is it 'Upper'?"),
        (
            "no armature",
            "keypoint 0 of 'Lone' is 'Spine', but there is no such object in the view layer, and no armature",
        ),
        ("away", "keypoint 0 of 'Body' is the object 'Away', which is not in the view layer"),
        ("pair", "keypoint 1 of 'Body' must be three finite numbers"),
        ("infinite", "keypoint 0 of 'Body' must be three finite numbers"),
        ("flag", "keypoint 0 of 'Body' must be three finite numbers"),
        ("nothing", "got None"),
        ("text", "the keypoints of 'Body' must be K x 3 numbers"),
        ("number", "got 3"),
        ("other", "there are keypoints for 'Bodi', but it is not one of the objects: Body"),
        ("list", "keypoints must map objects or their names"),
        ("margin", "keypoint_margin must be a length, 0 or more, got -1"),
    ],
)
def test_names_the_mistake(results: dict[str, Any], name: str, part: str) -> None:
    kind, message = results["errors"][name]
    assert kind == "ConfigError"
    assert part in message
