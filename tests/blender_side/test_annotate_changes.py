"""`annotate` after something has changed, and for objects that the camera does not see."""

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
from asyncblend import ConfigError, blender as bl

scene, layer = bpy.context.scene, bpy.context.view_layer
scene.render.engine = "CYCLES"
scene.cycles.samples, scene.cycles.use_denoising = 1, False
scene.render.resolution_x, scene.render.resolution_y = 96, 64
cube, results = bpy.data.objects["Cube"], {}

def seen(rendered=None):
    found = bl.annotate([cube], {"Cube": [(0, 0, 1)]}, rendered=rendered)
    return [found["class_id"][0].item(), found["visible_fraction"][0].item(), found["keypoints"][0, 0, 2].item()]

labels = bl.render(("instance",))
results["plain"] = seen(labels)
cube["class_id"] = 2
results["class"] = seen()
results["class of the render"] = seen(labels)
cube.visible_camera = False
results["unseen"] = seen()[1]
cube.visible_camera = True

# between camera and cube, in a collection that only casts shadows and reflections
wall = bpy.data.collections.new("Wall")
scene.collection.children.link(wall)
bpy.ops.mesh.primitive_plane_add(size=20, location=(3.5, -3.3, 2.4), rotation=scene.camera.rotation_euler)
plane = bpy.context.object
for collection in list(plane.users_collection):
    collection.objects.unlink(plane)
wall.objects.link(plane)
results["behind"] = seen()[1:]
layer.layer_collection.children["Wall"].indirect_only = True
results["looked through"] = seen()[1:]

# a view layer that asks for more samples than an image of ids needs
layer.samples = 64
scene.cycles.seed += 1
seen()
results["layer samples"] = layer.samples
counts = []
bpy.app.handlers.render_pre.append(lambda *_: counts.append(layer.samples))
scene.cycles.seed += 1
seen()
bpy.app.handlers.render_pre.clear()
results["samples"] = counts
results["way"] = bl.last_render().backend

# a call that raises must leave the object as it was
child, parent = cube, bpy.data.objects.new("Parent", None)
scene.collection.objects.link(parent)
child.parent, child.location, child.hide_viewport = parent, (1, 2, 3), True
errors = results["errors"] = {}
def fails(name, function):
    try:
        function()
    except Exception as error:
        errors[name] = [type(error).__name__, str(error)]
fails("hidden", lambda: bl.randomise.pose(child, np.random.default_rng(0)))
results["location"] = list(child.location)
fails("name", lambda: bl.randomise.pose("Cube", np.random.default_rng(0)))
fails("camera", lambda: bl.Camera("Camera").K)
bl.randomise.material(plane, np.random.default_rng(0))
plane.material_slots[0].material.node_tree.nodes.clear()
fails("shader", lambda: bl.randomise.material(plane, np.random.default_rng(0)))
(OUT / "results.json").write_text(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(in_blender: Callable[[str], Path]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((in_blender(SCRIPT) / "results.json").read_text())
    return found


@pytest.mark.slow
def test_classes_are_those_of_the_render(results: dict[str, Any]) -> None:
    """This holds for a given render, and for one that annotate does itself."""
    assert results["plain"] == [0, pytest.approx(1, abs=0.05), 2]
    assert results["class"][0] == 2
    assert results["class of the render"] == results["plain"]


def test_an_object_that_the_camera_does_not_see(results: dict[str, Any]) -> None:
    """It has no pixels, and it hides nothing if its collection is for indirect light only."""
    assert results["unseen"] == 0
    assert results["behind"] == [0, 1]
    assert results["looked through"] == [pytest.approx(1, abs=0.05), 2]


def test_an_image_of_ids_takes_one_sample(results: dict[str, Any]) -> None:
    """That holds even if the view layer asks for more. No view transform is applied."""
    assert results["samples"] == [0]
    assert results["layer samples"] == 64
    assert results["way"] == "memory"


def test_wrong_objects(results: dict[str, Any]) -> None:
    """The errors say what is needed, and the object stays where it was."""
    assert np.allclose(results["location"], (1, 2, 3))
    errors = results["errors"]
    assert errors["hidden"][0] == "RuntimeError"
    assert errors["name"] == ["ConfigError", "an object is needed, such as bpy.data.objects['Cube']; got 'Cube'"]
    assert errors["camera"][0] == "TypeError"
    assert "camera object" in errors["camera"][1]
    assert errors["shader"][0] == "ConfigError"
    assert "no Principled BSDF" in errors["shader"][1]
