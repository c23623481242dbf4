"""bl.surface_keypoints on real Blender: where they are, and on what they depend."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.blender

SCRIPT = """
from asyncblend import blender as bl
from asyncblend.errors import ConfigError

cube = bpy.data.objects["Cube"]
cube.location, cube.scale = (5, 0, 0), (2, 1, 1)
results = {"cube": bl.surface_keypoints(cube, 8).tolist(), "many": bl.surface_keypoints(cube, 60).tolist()}
rng = np.random.default_rng(0)
points = np.array([vertex.co for vertex in cube.data.vertices])
faces = [list(polygon.vertices) for polygon in cube.data.polygons]
order = rng.permutation(8)
other = bpy.data.objects.new("Other", bpy.data.meshes.new("Other"))
other.data.from_pydata(points[order].tolist(), [], [np.argsort(order)[face].tolist() for face in reversed(faces)])
bpy.context.scene.collection.objects.link(other)
results["other order"] = bl.surface_keypoints(other, 8).tolist()
copy = cube.copy()
copy.location = (0, 0, 9)
bpy.context.scene.collection.objects.link(copy)
results["copy"] = bl.surface_keypoints(copy, 60).tolist()
bpy.ops.mesh.primitive_uv_sphere_add(radius=2, segments=96, ring_count=48)
results["ball"] = bl.surface_keypoints(bpy.context.object, 20).tolist()
cube.modifiers.new("Bevel", "BEVEL").width = 0.2
results["bevelled"] = bl.surface_keypoints(cube, 8).tolist()
flat = bpy.data.objects.new("Flat", bpy.data.meshes.new("Flat"))
flat.data.from_pydata([(0, 0, 0)] * 3, [], [(0, 1, 2)])
bpy.context.scene.collection.objects.link(flat)
results["flat"] = bl.surface_keypoints(flat, 3).tolist()

lines = bpy.data.objects.new("Lines", bpy.data.meshes.new("Lines"))
lines.data.from_pydata([(0, 0, 0), (1, 0, 0)], [(0, 1)], [])
bpy.context.scene.collection.objects.link(lines)
refused = results["refused"] = []
for args in ((lines, 8), (bpy.data.objects["Light"], 8), ("Cube", 8), (cube, 0), (cube, 2.5), (cube, True)):
    try:
        bl.surface_keypoints(*args)
    except ConfigError as error:
        refused.append(str(error))
(OUT / "results.json").write_text(json.dumps(results))
"""


@pytest.mark.exhaustive
def test_keypoints_are_spread_over_the_surface(in_blender: Callable[[str], Path]) -> None:
    """A box has its corners, then points in its faces. They lie on the surface, far from each other, always the same."""
    found = json.loads((in_blender(SCRIPT) / "results.json").read_text())
    corners = np.array([*np.ndindex(2, 2, 2)]) * 2.0 - 1
    assert sorted(found["cube"]) == corners.tolist()
    assert found["cube"] == found["other order"]
    many = np.array(found["many"])
    assert many[:8].tolist() == found["cube"]  # fewer are the first of more
    np.testing.assert_allclose(np.abs(many).max(axis=1), 1, atol=1e-6)
    apart = np.linalg.norm(many[:, None] - many[None], axis=2) + 9 * np.eye(60)
    assert apart.min() > 0.4  # 24 square units for 60 points
    assert found["copy"] == found["many"]
    ball = np.array(found["ball"])
    np.testing.assert_allclose(np.linalg.norm(ball, axis=1), 2, atol=0.01)
    assert (np.linalg.norm(ball[:, None] - ball[None], axis=2) + 9 * np.eye(20)).min() > 1.2
    bevelled = np.abs(found["bevelled"])
    assert bevelled.max() == pytest.approx(1)
    assert (np.linalg.norm(bevelled, axis=1) < 1.72).all()  # modifiers are applied: the corners are gone
    assert found["flat"] == [[0, 0, 0]] * 3
    no_faces, light, name, *counts = found["refused"]
    assert "has no faces" in no_faces
    assert "'Light'" in light
    assert "'Cube'" in name
    assert [text.rpartition(" ")[2] for text in counts] == ["0", "2.5", "True"]
