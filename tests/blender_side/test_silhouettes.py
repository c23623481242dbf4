"""`annotate(..., silhouettes=True)` and `model`, checked against Blender's own renders of each object alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.blender

SCRIPT = """
from asyncblend.blender.labels.rendered_ids import render_ids
from asyncblend.blender.scene.lens import frame_of

cube = data.objects["Cube"]
cube.location, cube.scale, cube.rotation_euler = (-5.5, 1, 0), (1, 0.7, 1), (0.3, 0.2, 0.4)  # half of it is outside
for kind, place in (("monkey", (0, 0, 0)), ("torus", (0.5, 0.3, 3)), ("cube", (4, 2, 0)), ("plane", (4, 2, 4)),
                    ("uv_sphere", (40, 0, 0)), ("ico_sphere", (2, -2, 0))):
    getattr(bpy.ops.mesh, f"primitive_{kind}_add")(location=place)
    bpy.context.object.name = kind
data.objects["plane"].scale = (2, 2, 2)  # hides the second cube
data.objects["ico_sphere"].hide_render = True
names = ["Cube", "monkey", "torus", "cube", "plane", "uv_sphere", "ico_sphere"]
objects = [data.objects[name] for name in names]

def alone(obj):  # the mask of the object alone: in the image, and its box in one of three times the size
    hidden = [other for other in objects if other != obj and not other.hide_render]
    for other in hidden:
        other.hide_render = True
    inside = render_ids(frame_of(scene.render)).mask > 0
    scene.render.resolution_x, scene.render.resolution_y, camera.data.ortho_scale = 288, 192, 36
    whole = render_ids(frame_of(scene.render)).mask > 0
    scene.render.resolution_x, scene.render.resolution_y, camera.data.ortho_scale = 96, 64, 12
    for other in hidden:
        other.hide_render = False
    y, x = np.nonzero(whole)
    box = [x.min() - 96, y.min() - 64, x.max() + 1 - x.min(), y.max() + 1 - y.min()] if len(x) else [0] * 4
    return inside.tolist(), [int(value) for value in box], int(whole.sum())

labels = bl.render(("instance",))
found = bl.annotate(objects, rendered=labels, silhouettes=True)
without = bl.annotate(objects, rendered=labels)
kinds = {name: [str(found[name].dtype), list(found[name].shape)] for name in found if name not in without}
results = {
    "kinds": kinds,
    "same": all(np.array_equal(found[name], without[name]) for name in without),
    "mask": labels["instance"].tolist(),
    "found": {name: found[name].tolist() for name in [*kinds, "id", "visible_fraction"]},
    "alone": [alone(obj) for obj in objects],
}
bpy.ops.object.select_all(action="DESELECT")
data.objects["torus"].modifiers.new("Half", "DECIMATE").ratio = 0.5
model = bl.mesh_of("torus")
bpy.context.view_layer.update()
mesh = data.objects["torus"].evaluated_get(bpy.context.evaluated_depsgraph_get()).data
mesh.calc_loop_triangles()
results["model"] = {
    "kinds": [str(model["vertices"].dtype), str(model["faces"].dtype)],
    "vertices": np.allclose(model["vertices"], [vertex.co for vertex in mesh.vertices]),
    "faces": model["faces"].tolist() == [list(triangle.vertices) for triangle in mesh.loop_triangles],
    "count": len(model["vertices"]),
}
for wrong in ("nothing", "Camera"):
    try:
        bl.mesh_of(wrong)
    except ValueError as error:
        results[wrong] = f"{type(error).__name__} {error}"

# A ball that covers no pixel's centre. Renders show a pixel of one now and then, and so does this mask.
bpy.ops.mesh.primitive_uv_sphere_add(radius=0.01, location=(0.25, 0.25, 8))
speck = bpy.context.object
labels = bl.render(("instance",))
number = bl.annotate([speck], rendered=labels)["id"][0]
labels["instance"][30, 50] = number
seen = bl.annotate([speck], rendered=labels, silhouettes=True)
results["speck"] = {name: seen[name].tolist() for name in ("bbox", "silhouette_bbox", "silhouette_pixels")}
data.objects.remove(speck)

parent = data.objects.new("Copies", None)
scene.collection.objects.link(parent)
group = data.collections.new("Group")
group.objects.link(objects[1])
parent.instance_type, parent.instance_collection, parent.location = "COLLECTION", group, (-2, -2, 1)
labels = bl.render(("instance", "depth"))
copies = bl.annotate([objects[1]], rendered=labels, instances=True, silhouettes=True)
results["copies"] = [copies["silhouette"].tolist(), copies["instance"].tolist(), copies["id"].tolist()]
"""


@pytest.fixture(scope="module")
def results(seen_from_above: Callable[[str], Any]) -> Any:
    return seen_from_above(SCRIPT)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_silhouette_is_the_object_drawn_alone(results: Any) -> None:
    """Whatever hides it, and wherever it is cut. A render samples pixels at random places, so the outline may differ."""
    assert results["kinds"] == {
        "silhouette": ["bool", [7, 64, 96]],
        "silhouette_bbox": ["float32", [7, 4]],
        "silhouette_pixels": ["int32", [7]],
    }
    assert results["same"]
    mask, found = np.array(results["mask"]), results["found"]
    for number, (inside, box, pixels) in enumerate(results["alone"]):
        silhouette, expected = np.array(found["silhouette"][number]), np.array(inside)
        visible = mask == found["id"][number]
        assert not (visible & ~silhouette).any()
        edges = np.abs(np.diff(np.pad(expected, 1).astype(int), axis=1)).sum() + 4
        assert (silhouette != expected).sum() <= edges / 2
        assert found["silhouette_bbox"][number] == pytest.approx(box, abs=2)
        assert found["silhouette_pixels"][number] == pytest.approx(pixels, abs=2 + edges / 2)
        whole = found["silhouette_pixels"][number]
        assert found["visible_fraction"][number] == pytest.approx(visible.sum() / whole if whole else 0, abs=1e-6)
    hidden, outside, unrendered = 3, 5, 6
    assert not (mask == found["id"][hidden]).any()
    assert found["silhouette_pixels"][hidden] > 200
    assert found["silhouette_pixels"][outside] == found["silhouette_pixels"][unrendered] == 0
    assert found["silhouette_bbox"][0][0] < 0


def test_a_silhouettes_box_holds_what_is_visible(results: Any) -> None:
    """Also of an object that covers no pixel's centre, of which a render shows a pixel by chance."""
    box = [[50, 30, 1, 1]]
    assert results["speck"] == {"bbox": box, "silhouette_bbox": box, "silhouette_pixels": [1]}


def test_copies_have_silhouettes_of_their_own(results: Any) -> None:
    """With `instances` each copy is labelled, and its mask holds its visible pixels."""
    silhouettes, mask, ids = map(np.array, results["copies"])
    assert len(silhouettes) == 2
    for silhouette, number in zip(silhouettes, ids, strict=True):
        assert silhouette[mask == number].all()
        assert silhouette.sum() > 100
    assert (silhouettes[0] != silhouettes[1]).any()


def test_a_model_is_the_mesh_with_its_modifiers(results: Any) -> None:
    """Vertices are in the object's own space, and errors say what is wrong."""
    model = results["model"]
    assert model["kinds"] == ["float32", "int32"]
    assert model["vertices"]
    assert model["faces"]
    assert 100 < model["count"] < 576
    assert "ConfigError" in results["nothing"]
    assert "'nothing'" in results["nothing"]
    assert "ConfigError" in results["Camera"]
