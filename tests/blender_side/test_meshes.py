"""Meshes as arrays: reading triangles from memory gives the same as Blender's own, slow way."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from asyncblend.blender.labels import meshes
from asyncblend.blender.labels.meshes import edges_for

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SCRIPT = """
from asyncblend.blender.labels import meshes

for obj in list(bpy.data.objects):
    bpy.data.objects.remove(obj)
bpy.ops.mesh.primitive_uv_sphere_add(segments=12, ring_count=7)
bpy.ops.mesh.primitive_cylinder_add(vertices=9)  # its ends are faces with nine corners
bpy.ops.mesh.primitive_monkey_add()
bpy.ops.mesh.primitive_cube_add()
bpy.context.object.name = "Smooth"
bpy.ops.object.modifier_add(type="SUBSURF")
bpy.ops.mesh.primitive_plane_add()
triangle = bpy.data.meshes.new("Triangle")
triangle.from_pydata([(0, 0, 0), (1, 0, 0), (0, 1, 0)], [], [(0, 1, 2)])
points = bpy.data.meshes.new("Points")
points.from_pydata([(0, 0, 0), (1, 0, 0)], [], [])
for data in (triangle, points):
    bpy.context.collection.objects.link(bpy.data.objects.new(data.name, data))
bpy.ops.object.text_add()
bpy.context.object.data.body = "Ab"

memory, results = meshes._memory, {}
for obj in bpy.context.view_layer.objects:
    evaluated = obj.evaluated_get(bpy.context.evaluated_depsgraph_get())
    mesh = evaluated.to_mesh()
    truth = [[tuple(v.co) for v in mesh.vertices]]
    if obj.type == "MESH":
        mesh = evaluated.data  # 3.4 may cut a face with four corners of the copy along its other diagonal
    mesh.calc_loop_triangles()
    truth.append([tuple(t.vertices) for t in mesh.loop_triangles])
    corners = memory(mesh.loop_triangles, (3, 4))
    evaluated.to_mesh_clear()
    fast = meshes.read_mesh(obj, evaluated)
    meshes._memory = lambda *_: None  # as in a Blender with another layout
    slow = meshes.read_mesh(obj, evaluated)
    meshes._memory = memory
    results[obj.name] = {
        "truth": truth,
        "found": [[array.tolist() for array in found] for found in (fast, slow)],
        "fast": corners is not None,
    }
(OUT / "results.json").write_text(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(in_blender: Callable[[str], Path]) -> dict[str, Any]:
    return dict(json.loads((in_blender(SCRIPT) / "results.json").read_text()))


@pytest.mark.blender
@pytest.mark.parametrize("name", ["Sphere", "Cylinder", "Suzanne", "Smooth", "Plane", "Triangle", "Points", "Text"])
@pytest.mark.slow
def test_a_mesh_is_what_blender_evaluates(results: dict[str, Any], name: str) -> None:
    points, triangles = results[name]["truth"]
    assert len(points) > (20 if name == "Smooth" else 1)
    for found in results[name]["found"]:
        np.testing.assert_array_equal(found[0], points)
        np.testing.assert_array_equal(np.reshape(found[1], (-1, 3)), np.reshape(triangles, (-1, 3)))
    assert results[name]["fast"] == (len(triangles) > 1)


def test_edges_are_found_anew_for_other_triangles() -> None:
    one, other = np.array([(0, 1, 2), (2, 1, 3)], np.int32), np.array([(0, 1, 2), (2, 1, 4)], np.int32)
    assert edges_for("Test", one).ends.tolist() == [[0, 1], [0, 2], [1, 2], [1, 3], [2, 3]]
    assert edges_for("Test", one.copy()) is edges_for("Test", one)
    assert edges_for("Test", other).ends.tolist() == [[0, 1], [0, 2], [1, 2], [1, 4], [2, 4]]


def test_few_edges_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scene may make new objects for thousands of samples."""
    monkeypatch.setattr(meshes, "_kept", {})
    monkeypatch.setattr(meshes, "_KEPT_TRIANGLES", 5)
    for number in range(9):
        edges_for(f"Test.{number}", np.array([(0, 1, 2), (2, 1, 3)], np.int32))
    assert list(meshes._kept) == ["Test.7", "Test.8"]
