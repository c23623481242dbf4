"""Labels and `surface_keypoints` are of the mesh that a render shows: in Edit Mode, with loose parts, and subdivided."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.blender

SCRIPT = """
scene.render.resolution_x, scene.render.resolution_y = 48, 32
cube = data.objects["Cube"]
results = {}

def labels(objects, **options):
    rendered = bl.render(("instance", "depth"))
    found = bl.annotate(objects, {objects[0]: [0, (0, 0, 1), (0, 0, -1)]}, rendered=rendered, **options)
    return {key: value.tolist() if hasattr(value, "tolist") else value for key, value in found.items()}

def ways(name):
    results[name] = [labels([cube, twin], silhouettes=True), labels([cube, twin], instances=True)]

cube.location.x = -2
twin = cube.copy()  # has the same mesh
twin.location.x = 2
scene.collection.objects.link(twin)
ways("object mode")
bpy.context.view_layer.objects.active = cube
bpy.ops.object.mode_set(mode="EDIT")
ways("edit mode")
bpy.ops.wm.save_as_mainfile(filepath=str(OUT / "edited.blend"))
bpy.ops.wm.open_mainfile(filepath=str(OUT / "edited.blend"))
scene, data = bpy.context.scene, bpy.data
cube, twin = data.objects["Cube"], data.objects["Cube.001"]
assert cube.mode == "EDIT"
results["vertices"] = len(bl.mesh_of(cube)["vertices"])
ways("opened in edit mode")
bpy.ops.object.mode_set(mode="OBJECT")
data.objects.remove(twin)

smooth = cube.modifiers.new("Smooth", "SUBSURF")
smooth.levels, smooth.render_levels = 0, 2
found = bl.surface_keypoints(cube, 8)
vertices = bl.mesh_of(cube)["vertices"]
results["away"] = [float(np.linalg.norm(vertices - point, axis=1).min()) for point in found]
camera, scene.camera = scene.camera, None
cameras = [len(data.cameras), len(data.objects)]
results["without a camera"] = bool((bl.surface_keypoints(cube, 8) == found).all())
assert [scene.camera, len(data.cameras), len(data.objects)] == [None, *cameras]
scene.camera = camera
data.objects.remove(cube)

corners = [(-1, -1, 0), (1, -1, 0), (1, 1, 0), (-1, 1, 0)]
def add(name, points, edges, faces):
    obj = data.objects.new(name, data.meshes.new(name))
    obj.data.from_pydata(points, edges, faces)
    scene.collection.objects.link(obj)
    return obj

def alone(obj):
    result = labels([obj], silhouettes=True), bl.surface_keypoints(obj, 4).tolist() if obj.data.polygons else None
    data.objects.remove(obj)
    return result

results["plain"] = alone(add("Plain", corners, [], [(0, 1, 2, 3)]))
# One loose vertex is outside, and one behind the camera.
results["loose"] = alone(add("Plain", [*corners, (30, 0, 0), (0, 3, 50)], [(4, 0)], [(0, 1, 2, 3)]))
results["wires"] = alone(add("Plain", [(0, 0, 0), (30, 1, 0)], [(0, 1)], []))
"""


@pytest.fixture(scope="module")
def results(seen_from_above: Callable[[str], Any]) -> dict[str, Any]:
    return dict(seen_from_above(SCRIPT))


@pytest.mark.parametrize("name", ["edit mode", "opened in edit mode"])
@pytest.mark.slow
def test_edit_mode_changes_no_label(results: dict[str, Any], name: str) -> None:
    """Of the object that is edited, and of another one with its mesh; with `instances`, too."""
    assert results[name] == results["object mode"]
    assert results[name][1]["name"] == ["Cube", "Cube.001"]
    assert results["vertices"] == 8


def test_surface_keypoints_lie_on_what_is_rendered(results: dict[str, Any]) -> None:
    """Where the viewport is subdivided less than renders, and also without a camera, and none is left behind."""
    np.testing.assert_allclose(results["away"], 0, atol=1e-6)
    assert results["without a camera"]


def test_what_belongs_to_no_face_counts_nowhere(results: dict[str, Any]) -> None:
    """Except in a mesh without any face, of which the points are all there is."""
    assert results["loose"] == results["plain"]
    assert results["loose"][0]["truncated"] == [False]
    assert results["wires"][0]["truncated"] == [True]
