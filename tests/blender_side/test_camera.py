"""Camera.project, checked against where Blender really draws things."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.blender

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "long-lens": {"camera.lens": 70, "camera.sensor_width": 30},
    "wide-lens": {"camera.lens": 20},
    "shifted": {"camera.shift_x": 0.11, "camera.shift_y": -0.07},
    "portrait": {"render.resolution_x": 90, "render.resolution_y": 140},
    "fit-vertical": {"camera.sensor_fit": "VERTICAL", "camera.sensor_height": 30},
    "fit-horizontal-portrait": {
        "camera.sensor_fit": "HORIZONTAL",
        "render.resolution_x": 110,
        "render.resolution_y": 140,
    },
    "pixel-aspect": {"render.pixel_aspect_x": 1.0, "render.pixel_aspect_y": 1.6, "camera.shift_x": 0.05},
    "wide-pixels": {"render.pixel_aspect_x": 1.5, "camera.shift_y": 0.05},
    "percentage": {"render.resolution_x": 333, "render.resolution_y": 251, "render.resolution_percentage": 47},
    "ortho": {"camera.type": "ORTHO", "camera.ortho_scale": 7.0, "camera.shift_x": 0.1},
    "ortho-portrait": {"camera.type": "ORTHO", "camera.ortho_scale": 9.0, "render.resolution_x": 100},
    "cropped": {
        "render.use_border": True,
        "render.use_crop_to_border": True,
        "render.border_min_x": 0.13,
        "render.border_max_x": 0.91,
        "render.border_min_y": 0.09,
        "render.border_max_y": 0.87,
    },
    "border-without-crop": {"render.use_border": True, "render.border_min_x": 0.05},
    "scaled-camera": {"obj.scale": (2.0, 0.5, 3.0)},
    "parented-camera": {"obj.parent": "Parent"},
}

SCRIPT = """
from mathutils import Vector
from asyncblend.blender import Camera, render

bpy.data.objects.remove(bpy.data.objects["Cube"])
bpy.data.objects.remove(bpy.data.objects["Light"])
scene = bpy.context.scene
scene.render.engine = "CYCLES"
scene.cycles.samples, scene.cycles.use_denoising, scene.cycles.use_adaptive_sampling = 64, False, False
scene.view_settings.view_transform = "Raw"  # so that pixels are linear in coverage
scene.world.node_tree.nodes["Background"].inputs["Color"].default_value = (0, 0, 0, 1)
scene.render.resolution_x, scene.render.resolution_y = 160, 120

POINTS = [(0.9, -0.5, 0.7), (-1.0, 0.8, -0.4), (0.3, 1.3, 0.2)]
for point, colour in zip(POINTS, np.eye(3)):  # a red, a green and a blue marker, each alone in its channel
    bpy.ops.mesh.primitive_uv_sphere_add(radius=0.12, location=point)
    material = bpy.data.materials.new("Marker")
    if material.node_tree is None:
        material.use_nodes = True
    nodes = material.node_tree.nodes
    nodes.clear()
    emission, output = nodes.new("ShaderNodeEmission"), nodes.new("ShaderNodeOutputMaterial")
    emission.inputs["Color"].default_value = (*colour, 1)
    material.node_tree.links.new(emission.outputs[0], output.inputs[0])
    bpy.context.object.data.materials.append(material)

parent = bpy.data.objects.new("Parent", None)
scene.collection.objects.link(parent)
parent.rotation_euler, parent.location = (0.05, -0.04, 0.03), (0.2, 0.1, -0.1)

original = scene.camera
camera = Camera()
results = {"cases": {}, "errors": {}}
for name, settings in CASES.items():
    scene.camera = obj = original.copy()
    obj.data = original.data.copy()
    scene.collection.objects.link(obj)
    owners = {"render": scene.render, "camera": obj.data, "obj": obj}
    before = {}
    for key, value in settings.items():
        owner, attribute = key.split(".")
        before[key] = getattr(owners[owner], attribute)
        setattr(owners[owner], attribute, parent if attribute == "parent" else value)
    projected = camera.project(POINTS)
    image = render()["image"].astype(float)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    drawn = [[float((axis * image[..., c]).sum() / image[..., c].sum()) for axis in (x, y)] for c in range(3)]
    results["cases"][name] = [projected.tolist(), drawn]
    for key, value in before.items():
        owner, attribute = key.split(".")
        setattr(owners[owner], attribute, value)
scene.camera = original

# the object's space, with a transform that was just assigned
obj = bpy.data.objects.new("Mover", None)
scene.collection.objects.link(obj)
obj.rotation_euler, obj.scale = (0.4, 0.5, 0.6), (1, 2, 3)
child = bpy.data.objects.new("Child", None)
scene.collection.objects.link(child)
child.parent = obj
obj.location = (0.5, 0.25, 0.125)
local = np.array(POINTS)
moved = camera.project(local, child)
world = [obj.matrix_world @ Vector(point) for point in POINTS]
results["space"] = [moved.tolist(), camera.project(world).tolist()]
results["inputs"] = [
    camera.project(value).tolist()
    for value in (POINTS, np.array(POINTS, np.float32), [Vector(p) for p in POINTS], (p for p in POINTS))
]
empty = camera.project([])
results["empty"] = [list(empty.shape), str(empty.dtype)]

forward = original.matrix_world.to_3x3() @ Vector((0, 0, -1))
sideways = original.matrix_world.to_3x3() @ Vector((1, 0, 0))
at = original.matrix_world.translation
behind = camera.project([at + forward * 5, at, at - forward * 5, at - forward + sideways])
results["behind"] = np.isnan(behind).tolist()

other = original.copy()
scene.collection.objects.link(other)
other.location.x += 1
results["own"] = [Camera(other).project(POINTS).tolist(), camera.project(POINTS).tolist()]
scene.camera = other
results["own"].append(camera.project(POINTS).tolist())
scene.camera = original


def attempt(name, call):
    try:
        call()
        results["errors"][name] = None
    except Exception as error:
        results["errors"][name] = [type(error).__name__, str(error)]

attempt("flat", lambda: camera.project([1, 2, 3]))
attempt("four", lambda: camera.project(np.zeros((5, 4))))
attempt("kind", lambda: Camera(obj).project(POINTS))
obj.hide_viewport = child.hide_viewport = True
attempt("hidden", lambda: camera.project(POINTS, child))
original.data.type = "PANO"
attempt("panoramic", lambda: camera.project(POINTS))
scene.camera = None
attempt("none", lambda: camera.project(POINTS))
(OUT / "results.json").write_text(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(in_blender: Callable[[str], Path]) -> dict[str, Any]:
    return dict(json.loads((in_blender(f"CASES = {CASES!r}\n{SCRIPT}") / "results.json").read_text()))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.slow
def test_projects_to_where_the_marker_is_drawn(results: dict[str, Any], case: str) -> None:
    projected, drawn = results["cases"][case]
    np.testing.assert_allclose(projected, drawn, atol=0.15, rtol=0)


def test_points_are_in_the_space_of_the_object_and_fresh_transforms_count(results: dict[str, Any]) -> None:
    local, world = results["space"]
    np.testing.assert_allclose(local, world, atol=1e-3)


def test_takes_arrays_vectors_and_generators(results: dict[str, Any]) -> None:
    for other in results["inputs"][1:]:
        np.testing.assert_allclose(other, results["inputs"][0], atol=1e-4)


def test_no_points_give_an_empty_array(results: dict[str, Any]) -> None:
    assert results["empty"] == [[0, 2], "float32"]


def test_points_on_or_behind_the_camera_are_nan(results: dict[str, Any]) -> None:
    assert results["behind"] == [[False, False], [True, True], [True, True], [True, True]]


def test_given_camera_wins_and_the_scene_camera_is_resolved_at_each_call(results: dict[str, Any]) -> None:
    own, scene, after_switch = results["own"]
    assert own == after_switch != scene


@pytest.mark.parametrize(
    ("name", "kind", "part"),
    [
        ("flat", "ValueError", "(3,)"),
        ("four", "ValueError", "(5, 4)"),
        ("kind", "TypeError", "'Mover' is not a camera but of type EMPTY"),
        ("hidden", "RuntimeError", "hide_viewport"),
        ("panoramic", "ValueError", "PANO"),
        ("none", "RuntimeError", "set scene.camera"),
    ],
)
def test_names_the_mistake(results: dict[str, Any], name: str, kind: str, part: str) -> None:
    error = results["errors"][name]
    assert error is not None
    assert error[0] == kind
    assert part in error[1]
