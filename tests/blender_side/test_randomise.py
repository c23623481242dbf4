"""bl.randomise in real Blenders: it is reproducible, in view, spread as documented, and does not grow."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.blender

SCRIPT = """
from mathutils import Vector
from asyncblend import ConfigError, blender as bl

scene, data = bpy.context.scene, bpy.data
scene.render.resolution_x, scene.render.resolution_y = 160, 120
scene.render.pixel_aspect_y = 1.2
cube, lamp, eye = data.objects["Cube"], data.objects["Light"], scene.camera
camera = bl.Camera()
results = {"errors": {}}

parents = []
for number in range(3):
    parent = data.objects.new("Parent", None)
    scene.collection.objects.link(parent)
    parent.rotation_euler, parent.location, parent.scale = (number, 2, 3), (number, -1, 0.3), [1 + number / 3] * 3
    parents.append(parent)

def update():
    bpy.context.view_layer.update()

def corners(obj):
    update()
    return [obj.matrix_world @ Vector(corner) for corner in obj.bound_box]

# one sample, which must not depend on what was there before
def sample(index):
    rng = np.random.default_rng([7, index])
    bl.randomise.camera_on_shell(rng, (1, 2, 3))
    bl.randomise.pose(cube, rng)
    bl.randomise.light(lamp, rng, target=cube)
    bl.randomise.material(cube, rng)
    update()
    colour = cube.active_material.node_tree.nodes["Principled BSDF"].inputs["Base Color"].default_value
    numbers = [n for obj in (eye, cube, lamp) for row in obj.matrix_world for n in row]
    return [float(n).hex() for n in (*numbers, lamp.data.energy, *colour, cube.active_material.roughness, rng.random())]

runs = {}
for name, order in [("forth", range(20)), ("back", reversed(range(20))), ("again", [3, 3, 11])]:
    runs[name] = {}
    for index in order:
        runs[name][index] = sample(index)
eye.rotation_mode, cube.rotation_mode, lamp.rotation_mode = "QUATERNION", "AXIS_ANGLE", "ZYX"
eye.parent, cube.parent, lamp.parent = parents
for name, order in [("parents forth", range(20)), ("parents back", reversed(range(20)))]:
    runs[name] = {}
    for index in order:
        runs[name][index] = sample(index)
results["runs"] = runs
eye.rotation_mode = cube.rotation_mode = lamp.rotation_mode = "XYZ"

# pose: objects are in view, and spread over image and rotations
def poses(obj, count, **options):
    found = []
    for index in range(count):
        bl.randomise.pose(obj, np.random.default_rng([1, index]), **options)
        box = corners(obj)
        (xy,), (far,) = camera.project([sum(box, Vector()) / 8], depth=True)
        found.append([*xy.tolist(), float(far), *[n for row in obj.matrix_world.to_3x3().normalized() for n in row], *obj.scale])
    return found

cube.scale = (1, 2, 0.5)
for vertex in cube.data.vertices:
    vertex.co.x += 3  # its origin is not its middle
cube.data.update()
results["pose"] = poses(cube, 300)
results["narrow"] = poses(cube, 20, distance=(5, 5), margin=0.45)
eye.data.type, eye.data.shift_x = "ORTHO", 0.3
scene.render.use_border = scene.render.use_crop_to_border = True
scene.render.border_min_x, scene.render.border_max_y = 0.25, 0.75
results["ortho"] = poses(cube, 50, camera=eye)
results["empty"] = poses(parents[1], 20, camera=camera)
scene.render.use_border, eye.data.type, eye.data.shift_x = False, "PERSP", 0

# camera on a shell, and lights
def shell(index, **options):
    bl.randomise.camera_on_shell(np.random.default_rng([2, index]), **options)
    update()
    return [*eye.matrix_world.translation, *camera.project([options["target"]])[0].tolist()]

results["shell"] = [shell(index, target=(1, 2, 3), radius=(4, 5), elevation=(-0.2, 0.7)) for index in range(300)]
results["pole"] = shell(0, target=(1, 2, 3), elevation=(np.pi / 2, np.pi / 2))
middle = sum(corners(cube), Vector()) / 8
bl.randomise.camera_on_shell(np.random.default_rng(0), cube, camera=eye)
results["object"] = camera.project([middle])[0].tolist()
lights = []
for index in range(200):
    bl.randomise.light(lamp, np.random.default_rng([3, index]), target=(1, 2, 3), radius=(2, 3))
    update()
    lights.append([*lamp.matrix_world.translation, *(lamp.matrix_world.to_3x3() @ Vector((0, 0, -1))).normalized(), lamp.data.energy])
results["light"] = lights
lamp.data.type = "SUN"
sun = data.objects["Light"]
energies = []
for index in range(20):
    bl.randomise.light(sun, np.random.default_rng(index))
    energies.append(sun.data.energy)
bl.randomise.light(sun, np.random.default_rng(0), energy=(7, 7))
results["sun"] = [min(energies), max(energies), sun.data.energy]

# materials: each object gets one of its own
twin = cube.copy()
scene.collection.objects.link(twin)
bare = data.objects.new("Bare", data.meshes.new("Bare"))
long = data.objects.new("x" * 63, cube.data)
several = data.objects.new("Several", cube.data.copy())
for number in range(3):
    several.data.materials.append(None)
before, shared = len(data.materials), cube.data.materials[0].name
paint = []
for index in range(50):
    for obj in (cube, twin, bare, long, several):
        bl.randomise.material(obj, np.random.default_rng([4, index]), roughness=(0.25, 0.5))
    shader = twin.active_material.node_tree.nodes["Principled BSDF"]
    paint.append([*shader.inputs["Base Color"].default_value, shader.inputs["Roughness"].default_value, *twin.active_material.diffuse_color])
results["paint"] = paint
results["own"] = [len(data.materials) - before, shared == cube.data.materials[0].name, len({o.active_material.name for o in (cube, twin, bare, long, several)}),
                  [slot.material == several.active_material for slot in several.material_slots]]

# nothing grows, also with objects that are made anew for each sample
def all_sizes():
    return {name: len(getattr(data, name)) for name in dir(data) if hasattr(getattr(data, name), "remove")}

def clutter(index):
    rng = np.random.default_rng([5, index])
    made = data.objects.new("Clutter", cube.data)
    scene.collection.objects.link(made)
    bl.randomise.pose(made, rng)
    bl.randomise.material(made, rng)
    sample(index)
    data.objects.remove(made)

clutter(0)
sizes = all_sizes()
for index in range(200):
    clutter(index)
results["sizes"] = [sizes, all_sizes()]

def attempt(name, call):
    try:
        call()
        results["errors"][name] = None
    except ConfigError as error:
        results["errors"][name] = str(error)

rng = np.random.default_rng(0)
attempt("margin", lambda: bl.randomise.pose(cube, rng, margin=0.5))
attempt("swapped", lambda: bl.randomise.pose(cube, rng, distance=(5, 4)))
attempt("number", lambda: bl.randomise.pose(cube, rng, distance=5))
attempt("kind", lambda: bl.randomise.light(cube, rng))
attempt("energy", lambda: bl.randomise.light(lamp, rng, energy=(-1, 4)))
attempt("target", lambda: bl.randomise.light(lamp, rng, target=(1, 2)))
attempt("roughness", lambda: bl.randomise.material(cube, rng, roughness=(0, 2)))
attempt("nothing", lambda: bl.randomise.material(parents[0], rng))
attempt("lamp", lambda: bl.randomise.material(lamp, rng))
attempt("degrees", lambda: bl.randomise.camera_on_shell(rng, cube, elevation=(10, 80)))
attempt("inside", lambda: bl.randomise.camera_on_shell(rng, cube, radius=(0, 0)))
parents[0].scale = (0, 0, 0)
attempt("flat", lambda: bl.randomise.camera_on_shell(rng, cube))
(OUT / "results.json").write_text(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(in_blender: Callable[[str], Path]) -> dict[str, Any]:
    return dict(json.loads((in_blender(SCRIPT) / "results.json").read_text()))


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_sample_is_a_function_of_its_generator(results: dict[str, Any]) -> None:
    """It is the same to the last bit whatever was sampled before, with parents and in any rotation mode."""
    runs = results["runs"]
    assert runs["forth"] == runs["back"]
    assert runs["again"].items() <= runs["forth"].items()
    assert runs["parents forth"] == runs["parents back"]
    assert len({tuple(numbers) for numbers in runs["forth"].values()}) == 20


def test_posed_objects_are_in_view(results: dict[str, Any]) -> None:
    """The middle of the bounding box, not the origin, is within the margin, the distance and the rendered crop."""
    for name, (width, height), margin, (near, far) in [
        ("pose", (160, 120), 0.1, (4, 12)),
        ("narrow", (160, 120), 0.45, (5, 5)),
        ("ortho", (120, 90), 0.1, (4, 12)),
        ("empty", (120, 90), 0.1, (4, 12)),
    ]:
        x, y, depth = np.array(results[name])[:, :3].T
        assert (abs(x / width - 0.5) <= 0.5 - margin + 1e-4).all()
        assert (abs(y / height - 0.5) <= 0.5 - margin + 1e-4).all()
        assert (depth >= near - 1e-4).all()
        assert (depth <= far + 1e-4).all()


def test_poses_are_spread(results: dict[str, Any]) -> None:
    """They are uniform over image, distance and rotations; each entry of such matrices has mean 0 and variance 1/3."""
    found = np.array(results["pose"])
    x, y, depth = found[:, :3].T
    for values, low, high in [(x / 160, 0.1, 0.9), (y / 120, 0.1, 0.9), (depth, 4, 12)]:
        assert values.min() < low + (high - low) / 20
        assert values.max() > high - (high - low) / 20
        assert abs(values.mean() - (low + high) / 2) < (high - low) / 15
    rotations = found[:, 3:12]
    np.testing.assert_allclose(rotations.mean(axis=0), 0, atol=0.12)
    np.testing.assert_allclose(rotations.var(axis=0), 1 / 3, atol=0.08)
    assert (np.linalg.det(rotations.reshape(-1, 3, 3)) > 0).all()
    np.testing.assert_allclose(found[:, 12:], [[1, 2, 0.5]] * len(found))


def test_a_camera_on_a_shell_looks_at_its_target(results: dict[str, Any]) -> None:
    """Distances and elevations are as asked for, and places are uniform over the shell's area."""
    found = np.array(results["shell"])
    offset = found[:, :3] - (1, 2, 3)
    length = np.linalg.norm(offset, axis=1)
    assert (length >= 4 - 1e-4).all()
    assert (length <= 5 + 1e-4).all()
    up = offset[:, 2] / length
    assert up.min() > np.sin(-0.2) - 1e-4
    assert up.max() < np.sin(0.7) + 1e-4
    assert abs(up.mean() - (np.sin(-0.2) + np.sin(0.7)) / 2) < 0.04
    assert np.linalg.norm(offset[:, :2].mean(axis=0)) < 0.5
    np.testing.assert_allclose(found[:, 3:], [[80, 60]] * 300, atol=1e-2)
    np.testing.assert_allclose(results["pole"][:2], [1, 2], atol=1e-4)
    np.testing.assert_allclose(results["pole"][3:], [80, 60], atol=1e-2)
    np.testing.assert_allclose(results["object"], [80, 60], atol=1e-2)


def test_lights_shine_at_their_target_from_above(results: dict[str, Any]) -> None:
    """Their energies suit their kind unless others are asked for."""
    found = np.array(results["light"])
    offset = found[:, :3] - (1, 2, 3)
    length = np.linalg.norm(offset, axis=1, keepdims=True)
    assert (abs(length - 2.5) <= 0.5 + 1e-4).all()
    assert (offset[:, 2] >= -1e-4).all()
    np.testing.assert_allclose(found[:, 3:6], -offset / length, atol=1e-4)
    energy = found[:, 6]
    assert 100 <= energy.min() < 150
    assert 950 < energy.max() <= 1000
    low, high, told = results["sun"]
    assert 1 <= low < high <= 5
    assert told == 7


def test_each_object_has_one_material_of_its_own(results: dict[str, Any]) -> None:
    """It is in all slots, also of copies and of objects without a slot; a shared mesh keeps its own material."""
    made, mesh_keeps, different, slots = results["own"]
    assert made == 4  # the cube had one of its own already
    assert mesh_keeps
    assert different == 5
    assert len(slots) == 4
    assert all(slots)


def test_colours_are_spread(results: dict[str, Any]) -> None:
    """Each channel is the largest at times, roughness is within its limits, and Workbench shows the same."""
    found = np.array(results["paint"])
    assert set(found[:, :3].argmax(axis=1)) == {0, 1, 2}
    assert (found[:, :3].max(axis=1) >= 0.2 - 1e-6).all()
    assert 0.25 <= found[:, 4].min() < 0.3
    assert 0.45 < found[:, 4].max() <= 0.5
    np.testing.assert_array_equal(found[:, :4], found[:, 5:])


def test_nothing_grows_over_two_hundred_samples(results: dict[str, Any]) -> None:
    before, after = results["sizes"]
    assert before == after
    assert before["materials"] > 0


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("margin", "at least 0 and below 0.5 of the image, got 0.5"),
        ("swapped", "distance must be (lo, hi), two numbers of at least 0; got (5, 4)"),
        ("number", "distance must be (lo, hi), two numbers of at least 0; got 5"),
        ("kind", "'Cube' is not a light but of type MESH"),
        ("energy", "energy must be (lo, hi)"),
        ("target", "target must be three finite numbers"),
        ("roughness", "at least 0 and at most 1; got (0, 2)"),
        ("nothing", "of type EMPTY cannot have a material"),
        ("lamp", "of type LIGHT cannot have a material"),
        ("degrees", "elevation (in radians) must be (lo, hi), two numbers of at least -1.571 and at most 1.571"),
        ("inside", "radius must be (lo, hi), two numbers of at least 1e-06; got (0, 0)"),
        ("flat", "a parent of 'Camera' has a scale of 0"),
    ],
)
def test_names_the_mistake(results: dict[str, Any], name: str, part: str) -> None:
    assert results["errors"][name] is not None
    assert part in results["errors"][name]
