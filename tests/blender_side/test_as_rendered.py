"""Labels belong to what is rendered, where modifiers and other settings differ between renders and the viewport.

Each case is compared with the same scene after its viewport has been set to what renders have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.blender

SCRIPT = """
from asyncblend.blender.labels import as_rendered

cube = data.objects["Cube"]
results = {}
calls = []
handlers = [bpy.app.handlers.render_pre, bpy.app.handlers.frame_change_post]
handlers += [bpy.app.handlers.render_post, bpy.app.handlers.frame_change_pre]
for each in handlers:
    each.append(lambda *_: calls.append(1))

def state():
    owners = [scene.render, scene.cycles]
    return [
        str(getattr(owner, name)) for owner in owners for name in owner.bl_rna.properties.keys()
        if not owner.is_property_readonly(name) and name != "denoiser"
    ]

def labels(objects, keypoints=None):
    labels = bl.render(("instance",))
    before, so_far = state(), len(calls)
    found = bl.annotate(objects, keypoints, rendered=labels)
    assert state() == before
    return {key: value.tolist() if hasattr(value, "tolist") else value for key, value in found.items()}, len(calls) - so_far

def case(name, objects, settings, keypoints=None):
    '''The labels with settings of the viewport, each (owner, its name, its value), and with those of renders.'''
    before = [getattr(owner, key) for owner, key, *_ in settings]
    assert not as_rendered.render_differs(scene), name
    for owner, key, value in settings:
        setattr(owner, key, value)
    assert as_rendered.render_differs(scene), name
    differs = labels(objects, keypoints)
    for (owner, key, _), value in zip(settings, before):
        setattr(owner, key, value)
    results[name] = [*differs, *labels(objects, keypoints)]

smooth = cube.modifiers.new("Smooth", "SUBSURF")
smooth.levels = smooth.render_levels = 3
case("subdivision off", [cube], [(smooth, "show_viewport", False)], {"Cube": [0, 50, (0, 0, 0.5)]})
case("subdivision lower", [cube], [(smooth, "levels", 0)], {"Cube": [0, 50, (0, 0, 0.5)]})
scene.render.use_simplify = True
scene.render.simplify_subdivision = scene.render.simplify_subdivision_render = 3
case("simplified", [cube], [(scene.render, "simplify_subdivision", 0)])
scene.render.use_simplify = False
cube.modifiers.clear()

row = cube.modifiers.new("Row", "ARRAY")
row.count, row.show_render, row.show_viewport = 2, False, False
case("array off in renders", [cube], [(row, "show_viewport", True)])
row.show_render = row.show_viewport = True
row.relative_offset_displace = (0, 0, 1.5)
low = data.objects.new("Low", data.meshes.new("Low"))
low.data.from_pydata([(-1, -1, -5), (1, -1, -5), (0, 1, -5)], [], [(0, 1, 2)])
scene.collection.objects.link(low)
cube.location.x = -1.5
row.relative_offset_displace = (1.1, 0, 0)  # the second one is in front of "Low", in renders alone
case("hidden by an array", [low], [(row, "show_viewport", False)], {low: [(0, 0, -5), (5, 0, -5)]})
cube.modifiers.clear()

bpy.ops.curve.primitive_bezier_circle_add(location=(3, 2, 0))
circle = bpy.context.object
circle.data.bevel_depth, circle.data.resolution_u, circle.data.render_resolution_u = 0.3, 12, 12
case("curve", [circle], [(circle.data, "resolution_u", 1)])
case("spline", [circle], [(circle.data.splines[0], "resolution_u", 1)])
mesh = data.meshes.new("Wheel")
mesh.from_pydata([(0.3, 0, 0), (1.5, 0, 0)], [(0, 1)], [])
wheel = data.objects.new("Wheel", mesh)
wheel.location = (3.5, -2, 0)
scene.collection.objects.link(wheel)
screw = wheel.modifiers.new("Screw", "SCREW")
screw.steps = screw.render_steps = 32
case("screw", [wheel], [(screw, "steps", 3)])
data.objects.remove(wheel)
bpy.ops.object.metaball_add(location=(-3, 2, 0))
ball = bpy.context.object
ball.data.resolution = ball.data.render_resolution = 0.2
case("metaball", [ball], [(ball.data, "resolution", 1.0)])
data.objects.remove(ball)
for each in list(data.metaballs):
    data.metaballs.remove(each)
behind = [(-4.5, -2, -3), (-2, -2, -3)]  # points in the circle's space: one is behind the cube
group = data.collections.new("Group")
scene.collection.children.link(group)
group.objects.link(cube)
scene.collection.objects.unlink(cube) if cube.name in scene.collection.objects else cube.users_collection[0].objects.unlink(cube)
group.objects.link(cube) if cube.name not in group.objects else None
case("hidden in viewports", [cube, circle], [(cube, "hide_viewport", True)], {cube: [(0, 0, 1)], circle: behind})
case("collection hidden in viewports", [cube, circle], [(group, "hide_viewport", True)], {cube: [0], circle: behind})
cube.hide_set(True)
results["hidden by hand"] = labels([circle], {circle: behind})[0]["keypoints"]
cube.hide_set(False)

bpy.ops.mesh.primitive_uv_sphere_add(location=(50, 0, 0))
ball = bpy.context.object
bpy.ops.mesh.primitive_plane_add(size=0.1, location=(-4, -2, 2))
emitter = bpy.context.object
emitter.modifiers.new("Particles", "PARTICLE_SYSTEM")
particles = emitter.particle_systems[0].settings
particles.type, particles.count, particles.render_step = "HAIR", 1, particles.display_step
particles.render_type, particles.instance_object, particles.hair_length = "OBJECT", ball, 1
particles.particle_size = 0.8
under = [(-7.4, -4, -3), (-5, -4, -3)]  # points in the circle's space: one is below the ball that the particle shows
case("particles not displayed", [circle], [(particles, "display_method", "NONE")], {circle: under})
data.objects.remove(emitter)
for each in list(data.particles):
    data.particles.remove(each)

shelf, empty = data.collections.new("Shelf"), data.objects.new("Empty", None)
data.scenes.new("Other").collection.children.link(shelf)
ball.users_collection[0].objects.unlink(ball)
shelf.objects.link(ball)
scene.collection.objects.link(empty)
empty.instance_type, empty.instance_collection, empty.location = "COLLECTION", shelf, (-54, -2, 2)
def in_a_collection(name):
    found = labels([circle], {circle: under})[0]["keypoints"][0]
    results["in a collection"][name] = [as_rendered.render_differs(scene), [v for _, _, v in found]]
results["in a collection"] = {}
in_a_collection("shown")
ball.hide_render = True
in_a_collection("hidden from renders")
inner = data.collections.new("Inner")
shelf.children.link(inner)
inner.objects.link(ball)
shelf.objects.unlink(ball)
ball.hide_render, inner.hide_render = False, True
in_a_collection("in one hidden from renders")
empty.instance_type, empty.instance_collection = "NONE", None
in_a_collection("not instanced")
data.objects.remove(ball)
inner.hide_render = False

# what is hidden from renders has the labels of what cannot be seen
cube.hide_render = True
circle.data.resolution_u = 2
found, _ = labels([cube, circle], {cube: [(0, 0, 1)]})
results["hidden from renders"] = found
cube.hide_render = False

# errors come through, and everything is as before
before = state()
try:
    as_rendered.with_render_depsgraph(lambda _: 1 / 0)
except ZeroDivisionError:
    results["error"] = state() == before and all(len(each) == 1 for each in handlers)
results["engines"] = hasattr(bpy.types, "ASYNCBLEND_NOTHING")
for each in handlers:
    each.clear()
"""

CASES = [
    *["subdivision off", "subdivision lower", "simplified", "array off in renders", "hidden by an array"],
    *["curve", "spline", "screw", "metaball", "hidden in viewports", "collection hidden in viewports"],
    "particles not displayed",
]


@pytest.fixture(scope="module")
def results(seen_from_above: Callable[[str], Any]) -> dict[str, Any]:
    return dict(seen_from_above(SCRIPT))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.slow
def test_labels_are_those_of_what_is_rendered(results: dict[str, Any], name: str) -> None:
    found, calls, truth, _ = results[name]
    assert found.keys() == truth.keys()
    for key, value in truth.items():
        if isinstance(value[0], str):
            assert found[key] == value
        else:
            np.testing.assert_allclose(found[key], value, atol=1e-4, err_msg=key)
    if name != "hidden by an array":
        np.testing.assert_allclose(found["bbox"], found["bbox_loose"], atol=1.1)
    assert calls == 0, "no handler of the user is called"


def test_what_is_wholly_visible_has_the_fraction_1(results: dict[str, Any]) -> None:
    for name in CASES:
        if name != "hidden by an array":
            assert results[name][0]["visible_fraction"] == pytest.approx([1] * len(results[name][0]["id"]), abs=0.09), (
                name
            )


def test_keypoints_are_hidden_by_what_is_rendered(results: dict[str, Any]) -> None:
    """One is behind what only renders have, and the other is free."""
    assert [v for _, _, v in results["hidden by an array"][0]["keypoints"][0]] == [1, 2]
    for name in ("hidden in viewports", "collection hidden in viewports"):
        assert [v for _, _, v in results[name][0]["keypoints"][1]] == [1, 2], name
    assert [v for _, _, v in results["hidden by hand"][0]] == [1, 2]
    assert [v for _, _, v in results["particles not displayed"][0]["keypoints"][0]] == [1, 2]


def test_keypoints_are_not_hidden_by_copies_that_only_the_viewport_shows(results: dict[str, Any]) -> None:
    """And what is hidden from renders costs no second evaluation where nothing shows copies of it."""
    assert results["in a collection"] == {
        "shown": [False, [1, 2]],
        "hidden from renders": [True, [2, 2]],
        "in one hidden from renders": [True, [2, 2]],
        "not instanced": [False, [2, 2]],
    }


def test_what_is_hidden_from_renders_has_a_pose_and_no_pixels(results: dict[str, Any]) -> None:
    found = results["hidden from renders"]
    assert found["bbox"][0] == [0, 0, 0, 0]
    assert found["visible_fraction"][0] == 0
    assert found["bbox_loose"][0][2] > 0
    assert found["keypoints"][0] == [[0, 0, 0]]


def test_nothing_is_left_behind(results: dict[str, Any]) -> None:
    assert results["error"]
    assert not results["engines"]
