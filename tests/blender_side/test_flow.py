"""Flow is checked against where Blender's `world_to_camera_view` sees each pixel's point in both other frames."""

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
from bpy_extras.object_utils import world_to_camera_view
from mathutils import Vector
from asyncblend import blender as bl

scene, layer = bpy.context.scene, bpy.context.view_layer
options = scene.render
options.engine = "CYCLES"
options.resolution_x, options.resolution_y = 96, 64
scene.cycles.samples, scene.cycles.use_denoising = 4, False
scene.view_settings.view_transform = "Standard"
cube, camera = bpy.data.objects["Cube"], scene.camera
cube.scale = 2, 1.5, 1
still = bpy.data.objects.new("still", cube.data)
scene.collection.objects.link(still)
still.location = -4, 3, 0
FLOWS = ("flow_forward", "flow_backward")
results = {"errors": {}, "right": {}}

def animate(owner, path, *values):
    for frame, value in zip((4, 5, 6), values):
        setattr(owner, path, value)
        owner.keyframe_insert(path, frame=frame)
    scene.frame_set(5)

def pixels(points):
    '''Pixel coordinates of world points in the current frame.'''
    seen = np.array([world_to_camera_view(scene, camera, Vector(point))[:] for point in points.tolist()])
    return (seen[:, :2] * (1, -1) + (0, 1)) * (options.resolution_x, options.resolution_y)

def truth(depth, instance):
    '''Where what each pixel shows is in frames 6 and 4, minus where it is in frame 5.'''
    y, x = np.nonzero(np.isfinite(depth))
    here = np.stack([x + 0.5, y + 0.5], axis=1)
    points = bl.Camera().unproject(here, depth[y, x])
    assert np.abs(pixels(points) - here).max() < 1e-3
    objects, number = {1: cube, 2: still}, instance[y, x]
    local = np.empty_like(points)
    for key, obj in objects.items():
        back = np.linalg.inv(np.array(obj.matrix_world))
        local[number == key] = points[number == key] @ back[:3, :3].T + back[:3, 3]
    flows = []
    for frame in (6, 4):
        scene.frame_set(frame)
        for key, obj in objects.items():
            to = np.array(obj.matrix_world)
            points[number == key] = local[number == key] @ to[:3, :3].T + to[:3, 3]
        flow = np.zeros((*depth.shape, 2))
        flow[y, x] = pixels(points) - here
        flows.append(flow)
    scene.frame_set(5)
    return dict(zip(("forward", "backward"), flows))

def keep(name):
    frame = scene.frame_current
    handlers = list(bpy.app.handlers.frame_change_post)
    found = bl.render(("instance", "depth", *FLOWS))
    assert scene.frame_current == frame and list(bpy.app.handlers.frame_change_post) == handlers
    table = {entry["name"]: entry["id"] for entry in found.pop("instances")}
    assert table == {"Cube": 1, "still": 2}
    np.savez(OUT / f"{name}.npz", **found, **truth(found["depth"], found["instance"]))

def attempt(name):
    handlers = list(bpy.app.handlers.frame_change_post)
    try:
        bl.render(["flow_forward"])
        results["right"][name] = check()
    except ValueError as error:
        results["errors"][name] = [type(error).__name__, str(error)]
    assert list(bpy.app.handlers.frame_change_post) == handlers

def check():
    '''By how many pixels the flow is off, at most pixels.'''
    found = bl.render(("instance", "depth", *FLOWS))
    right, seen = truth(found["depth"], found["instance"]), np.isfinite(found["depth"])
    off = [np.abs(found[f"flow_{key}"] - right[key])[seen].max(axis=1) for key in right]
    return float(np.quantile(off, 0.95))

scene.frame_set(5)
keep("nothing")
animate(cube, "location", (-0.3, 0.2, 0), (0, 0, 0), (0.5, 0.1, 0.1))
animate(cube, "rotation_euler", (0, 0, 0), (0.1, 0.2, 0.3), (0.3, 0.2, 0.1))
keep("object")
scene.cycles.filter_width = 0.01  # all samples in the pixel's centre
keep("sharp")
start = camera.location.copy()
turn = camera.rotation_euler.copy()
animate(camera, "location", start + Vector((0.3, 0, 0)), start, start + Vector((0, 0.2, 0.1)))
animate(camera, "rotation_euler", turn, turn, (turn.x, turn.y + 0.03, turn.z + 0.02))
camera.data.shift_x, options.pixel_aspect_y = 0.1, 1.5
keep("both")
options.use_persistent_data = True
keep("persistent")
keep("persistent again")
options.use_persistent_data = False
cube.animation_data_clear()
keep("camera")
options.use_motion_blur = True
attempt("motion blur")
options.use_motion_blur = False
animate(camera.data, "lens", 48, 50, 53)
attempt("lens")
camera.data.animation_data_clear()
animate(camera.data, "shift_x", 0.1, 0, 0.05)
attempt("shift")
camera.data.animation_data_clear()
camera.data.type, camera.data.ortho_scale = "ORTHO", 8
attempt("orthographic camera that moves")
camera.animation_data_clear()
camera.location, camera.rotation_euler = start, turn
animate(cube, "location", (-0.3, 0.2, 0), (0, 0, 0), (0.5, 0.1, 0.1))
keep("orthographic")
animate(camera.data, "ortho_scale", 7, 8, 9)
attempt("orthographic scale")
(OUT / "results.json").write_text(json.dumps(results))
"""

MOVING = {
    "object": {1},
    "sharp": {1},
    "both": {1, 2},
    "persistent": {1, 2},
    "persistent again": {1, 2},
    "camera": {1, 2},
    "orthographic": {1},
}
"""The ids that move, by scene."""


@pytest.fixture(scope="module")
def out(in_blender: Callable[[str], Path]) -> Path:
    return in_blender(SCRIPT)


@pytest.fixture(scope="module")
def results(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "results.json").read_text()))


@pytest.mark.parametrize("way", ["forward", "backward"])
@pytest.mark.parametrize("name", list(MOVING))
@pytest.mark.slow
def test_flow_leads_to_where_the_point_is_seen_in_the_frame_beside(out: Path, name: str, way: str) -> None:
    found = np.load(out / f"{name}.npz")
    flow, truth, ids = found[f"flow_{way}"], found[way], found["instance"]
    assert flow.dtype == np.float32
    assert flow.shape == (64, 96, 2)
    moving = np.isin(ids, list(MOVING[name]))
    assert moving.sum() > 300
    assert np.linalg.norm(truth[moving], axis=1).min() > 0.2
    error = np.abs(flow - truth)[ids > 0].max(axis=1)
    if name == "object":  # flow is the mean of samples around the pixel's centre, on edges of two objects
        assert np.median(error[moving[ids > 0]]) < 0.1
    else:
        assert np.quantile(error, 0.99) < 0.02
        assert not flow[(ids > 0) & ~moving].any()


@pytest.mark.parametrize("name", ["nothing", *MOVING])
def test_background_does_not_flow(out: Path, name: str) -> None:
    found = np.load(out / f"{name}.npz")
    background = found["instance"] == 0
    assert background.any()
    assert not found["flow_forward"][background].any()
    assert not found["flow_backward"][background].any()
    if name == "nothing":
        assert not found["flow_forward"].any()
        assert not found["flow_backward"].any()


def test_motion_blur_is_an_error_that_says_what_to_set(results: dict[str, Any]) -> None:
    kind, message = results["errors"]["motion blur"]
    assert kind == "ConfigError"
    assert "use_motion_blur = False" in message
    assert "'flow_forward'" in message


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("shift", "shift"),
        ("orthographic scale", "orthographic"),
        ("lens", "lens"),
        ("orthographic camera that moves", "orthographic camera"),
    ],
)
def test_what_cycles_leaves_out_is_an_error_or_right(results: dict[str, Any], name: str, word: str) -> None:
    """It depends on Blender's version which of the two it is. No version may give wrong flow silently."""
    if name in results["right"]:
        assert name in ("lens", "orthographic camera that moves")
        assert results["right"][name] < 0.02
    else:
        kind, message = results["errors"][name]
        assert kind == "ConfigError"
        assert word in message
        assert "'flow_forward'" in message
