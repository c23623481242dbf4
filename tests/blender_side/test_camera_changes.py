"""Changes of a camera by set_K and look_at, and unproject of a whole depth map."""

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
import itertools
from mathutils import Vector
from asyncblend import ConfigError, blender as bl

scene = bpy.context.scene
render = scene.render
render.engine = "CYCLES"
scene.cycles.samples, scene.cycles.use_denoising = 1, False
render.resolution_x, render.resolution_y = 64, 48
cube, obj = bpy.data.objects["Cube"], scene.camera
data = obj.data
camera = bl.Camera()
results = {"errors": {}}

# look_at works with any parent, rotation mode and delta rotation
parent = bpy.data.objects.new("Parent", None)
scene.collection.objects.link(parent)
parent.rotation_euler, parent.location = (0.7, -1.1, 2.0), (3, -2, 1)
rng = np.random.default_rng(5)
looks = []
modes = ["XYZ", "ZXY", "QUATERNION", "AXIS_ANGLE"]
for mode, parented, delta, scale in itertools.product(modes, [False, True], [False, True], [(1, 1, 1), (2, 2, 2), (1, 2, 4)]):
    obj.rotation_mode, obj.parent, parent.scale = mode, parent if parented else None, scale
    obj.delta_rotation_euler.x = obj.delta_rotation_quaternion.x = 0.4 if delta else 0
    obj.location, obj.scale = rng.uniform(-5, 5, 3), (1, 2, 0.5)
    point, up = rng.uniform(-5, 5, 3), rng.normal(size=3)
    before = [*obj.location, *obj.scale, *parent.location]
    camera.look_at(point, up)
    at = np.linalg.inv(camera.world_to_camera)[:3, 3]
    higher = point + 0.01 * up / np.linalg.norm(up)
    looks.append({"even": not parented or len(set(scale)) == 1, "kept": before == [*obj.location, *obj.scale, *parent.location],
                  "xy": camera.project([point, higher]).tolist()})
results["looks"] = looks
results["middle"] = camera.K[:2, 2].tolist()

obj.parent, obj.rotation_mode = None, "XYZ"
obj.delta_rotation_euler.x = 0
obj.location = (0, 0, 9)
camera.look_at((0, 0, 0))
results["down"] = camera.project([(0, 0, 0), (1, 0, 0), (0, 1, 0)]).tolist()
obj.location = (4, -7, 3)
cube.location = (0.5, 0.6, 0.7)
camera.look_at(cube)
results["object"] = camera.project([(0, 0, 0)], cube).tolist()

# the depth map of a render: each pixel that shows the cube is on the cube
cube.rotation_euler = (0.3, 0.4, 0.5)
render.use_border = render.use_crop_to_border = True
render.border_min_x, render.border_max_y = 0.1, 0.9
for kind in ("PERSP", "ORTHO"):
    data.type, data.ortho_scale = kind, 6
    depth = bl.render(("depth",))["depth"]
    depth[depth > 1e9] = np.inf  # the background, for which Cycles gives a large number
    points = camera.unproject(None, depth)
    local = points.reshape(-1, 3) @ np.array(cube.matrix_world.inverted().to_3x3()).T + cube.matrix_world.inverted().translation
    local = local[np.isfinite(depth).ravel()]
    results[kind] = {"shape": points.shape, "depth": depth.shape, "nan": bool((np.isnan(points[..., 0]) == ~np.isfinite(depth)).all()),
                     "count": len(local), "far": float(np.abs(np.abs(local).max(axis=1) - 1).max())}
data.type = "PERSP"
results["scalar"] = camera.project(camera.unproject([(3, 4), (5, 6)], 7), depth=True)[1].tolist()
render.use_border = False

# set_K changes what its documentation says and nothing else
def settings():
    found = {f"data.{n}": getattr(data, n) for n in ("lens", "sensor_width", "sensor_height", "sensor_fit", "shift_x",
             "shift_y", "ortho_scale", "type", "clip_start", "clip_end")}
    found |= {f"render.{n}": getattr(render, n) for n in ("resolution_x", "resolution_y", "resolution_percentage",
              "pixel_aspect_x", "pixel_aspect_y", "use_border", "border_min_x")}
    return found

for name, kind, K in [("square", "PERSP", [[80, 0, 30], [0, 80, 20], [0, 0, 1]]), ("flat", "PERSP", [[90, 0, 30], [0, 120, 20], [0, 0, 1]]),
                      ("ortho", "ORTHO", [[8, 0, 30], [0, 8, 20], [0, 0, 1]]), ("short", "PERSP", [[1, 0, 32], [0, 1, 24], [0, 0, 1]])]:
    data.type, render.pixel_aspect_x, render.pixel_aspect_y = kind, 1.5, 1.5
    before = settings()
    camera.set_K(K)
    after = settings()
    results[name] = [sorted(key for key in before if before[key] != after[key]), after, camera.K.tolist()]
    data.sensor_width = 36

def attempt(name, call):
    before = settings()
    try:
        call()
        results["errors"][name] = None
    except Exception as error:
        results["errors"][name] = [isinstance(error, ConfigError), isinstance(error, ValueError), str(error)]
    assert settings() == before, name

good = np.array([[80.0, 0, 30], [0, 80, 20], [0, 0, 1]])
data.type = "PERSP"
attempt("skew", lambda: camera.set_K(good + [[0, 2, 0], [0, 0, 0], [0, 0, 0]]))
attempt("xy", lambda: camera.unproject([1, 2], 3))
attempt("depth", lambda: camera.unproject([(1, 2), (3, 4)], [1, 2, 3]))
attempt("map", lambda: camera.unproject(None, np.ones((3, 4))))
attempt("here", lambda: camera.look_at(obj))
attempt("up", lambda: camera.look_at((0, 0, 0), (0, 0, 0)))
attempt("point", lambda: camera.look_at((0, float("nan"), 0)))
data.driver_add("shift_x").driver.expression = "0.25"
bpy.context.view_layer.update()
attempt("driver", lambda: camera.set_K(good))
data.driver_remove("shift_x")
obj.constraints.new("TRACK_TO").target = cube
attempt("constraint", lambda: camera.look_at((9, 9, 9)))
obj.constraints.clear()
data.type = "PANO"
attempt("panoramic", lambda: camera.set_K(good))
camera.look_at((9, 9, 9))
results["pano"] = (camera.world_to_camera @ (9, 9, 9, 1)).tolist()
(OUT / "results.json").write_text(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(in_blender: Callable[[str], Path]) -> dict[str, Any]:
    return dict(json.loads((in_blender(SCRIPT) / "results.json").read_text()))


@pytest.mark.exhaustive
@pytest.mark.slow
def test_looks_at_the_point_whatever_parent_and_rotation_mode(results: dict[str, Any]) -> None:
    """The point is in the middle of the image, and `up` points up, exactly so unless a parent is scaled unevenly."""
    assert len(results["looks"]) == 48
    for look in results["looks"]:
        at, higher = np.array(look["xy"])
        np.testing.assert_allclose(at, results["middle"], atol=2e-3)
        assert look["kept"]
        if look["even"]:
            assert higher[1] < at[1] or np.isclose(higher[1], at[1], atol=2e-3)
            assert abs(higher[0] - at[0]) < 2e-3


def test_looks_straight_down(results: dict[str, Any]) -> None:
    """When the camera looks along `up`, the world's y is up."""
    middle, right, up = np.array(results["down"])
    assert right[0] > middle[0] + 1
    assert up[1] < middle[1] - 1
    np.testing.assert_allclose([right[1], up[0]], [middle[1], middle[0]], atol=1e-3)


def test_looks_at_an_object(results: dict[str, Any]) -> None:
    np.testing.assert_allclose(results["object"], [results["middle"]], atol=1e-3)


@pytest.mark.parametrize("kind", ["PERSP", "ORTHO"])
def test_a_depth_map_lies_on_the_mesh(results: dict[str, Any], kind: str) -> None:
    """A depth map that was cropped to a border is unprojected as a whole, with NaN for the background."""
    found = results[kind]
    assert found["shape"] == [*found["depth"], 3] == [43, 58, 3]
    assert found["nan"]
    assert found["count"] > 100
    # Cycles' ray of a pixel goes anywhere through it, so a point may be off by half a pixel.
    assert found["far"] < 0.15


def test_one_depth_for_all(results: dict[str, Any]) -> None:
    np.testing.assert_allclose(results["scalar"], [7, 7], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "K", "changes"),
    [
        ("square", [80, 80, 30, 20], ["data.lens"]),
        ("flat", [90, 120, 30, 20], ["data.lens"]),
        ("ortho", [8, 8, 30, 20], ["data.ortho_scale"]),
        ("short", [1, 1, 32, 24], ["data.lens", "data.sensor_width"]),
    ],
)
def test_set_K_changes_what_it_says(results: dict[str, Any], name: str, K: list[float], changes: list[str]) -> None:
    """It sets lens or scale, shift and pixel aspect, and the sensor only where the lens would be too short."""
    changed, after, got = results[name]
    fx, fy, cx, cy = K
    np.testing.assert_allclose(got, [[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]], atol=1e-3)
    shifts_and_aspect = {"data.shift_x", "data.shift_y", "render.pixel_aspect_x", "render.pixel_aspect_y"}
    assert set(changed) - shifts_and_aspect == set(changes)
    np.testing.assert_allclose(
        (after["render.pixel_aspect_x"], after["render.pixel_aspect_y"]), (fy / min(fx, fy), fx / min(fx, fy))
    )
    if name == "short":
        assert after["data.lens"] == 1


@pytest.mark.parametrize(
    ("name", "config", "part"),
    [
        ("skew", True, "no skew"),
        ("driver", True, "remove it"),
        ("xy", False, "(N, 2), got (2,)"),
        ("depth", True, "one for each of 2 points; got the shape (3,)"),
        ("map", True, "the shape of the image, (48, 64); got the shape (3, 4)"),
        ("here", True, "the point where it is"),
        ("up", True, "up must not be (0, 0, 0)"),
        ("point", True, "point must be three finite numbers"),
        ("constraint", True, "a constraint or a driver holds its rotation"),
        ("panoramic", False, "of type PANO"),
    ],
)
def test_names_the_mistake_and_changes_nothing(results: dict[str, Any], name: str, config: bool, part: str) -> None:
    is_config, is_value, message = results["errors"][name]
    assert (is_config, is_value) == (config, True)
    assert part in message


def test_a_panoramic_camera_has_a_place(results: dict[str, Any]) -> None:
    """world_to_camera works for it, though projecting does not."""
    x, y, z, one = results["pano"]
    np.testing.assert_allclose([x, y, one], [0, 0, 1], atol=1e-4)
    assert z > 0
