"""Camera with random settings: its parts agree with each other, and with what Blender renders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable

    Ask = Callable[[Any], Any]

pytestmark = pytest.mark.blender

SCRIPT = """
from asyncblend import blender as bl

scene = bpy.context.scene
bpy.data.objects.remove(bpy.data.objects["Cube"])
bpy.data.objects.remove(bpy.data.objects["Light"])
camera = bl.Camera()
obj, data = scene.camera, scene.camera.data
parent = bpy.data.objects.new("Parent", None)
scene.collection.objects.link(parent)
owners = {"render": scene.render, "data": data, "obj": obj, "parent": parent}
obj.matrix_parent_inverse.translation = (0.1, 0.2, 0.3)

def set_up(values):
    for key, value in values["settings"].items():
        owner, attribute = key.split(".")
        setattr(owners[owner], attribute, value)
    obj.parent = parent if values["parented"] else None

def size():
    from asyncblend.blender.scene.lens import frame_of
    return frame_of(scene.render)
"""

TALK = """
def answer(values):
    set_up(values)
    frame = size()
    xy = np.array(values["fractions"]) * (frame.width, frame.height)
    depth = np.array(values["depths"])
    there = camera.unproject(xy, depth)
    back, far = camera.project(there, depth=True)
    again = camera.project(camera.unproject(back, far))
    K, world_to_camera = camera.K, camera.world_to_camera
    types = [str(array.dtype) for array in (there, back, far, K, world_to_camera)]
    found = {"xy": xy, "there": there, "back": back, "far": far, "again": again, "K": K, "W": world_to_camera}
    if values["wanted"]:
        fx, ratio, cx, cy = values["wanted"]
        wanted = np.array([[fx * frame.full_width, 0, cx * frame.width],
                           [0, ratio * fx * frame.full_width, cy * frame.height], [0, 0, 1]])
        camera.set_K(wanted)
        found |= {"wanted": wanted, "got": camera.K, "by_wanted": camera.project(there)}
    return {name: array.tolist() for name, array in found.items()} | {"types": types}
"""

MARKERS = """
scene.render.engine = "CYCLES"
scene.cycles.samples, scene.cycles.use_denoising, scene.cycles.use_adaptive_sampling = 256, False, False
scene.view_settings.view_transform = "Raw"  # so that pixels are linear in coverage
scene.world.node_tree.nodes["Background"].inputs["Color"].default_value = (0, 0, 0, 1)
markers = []
for colour in np.eye(3):  # a red, a green and a blue one, each alone in its channel
    bpy.ops.mesh.primitive_uv_sphere_add(radius=1)
    markers.append(bpy.context.object)
    material = bpy.data.materials.new("Marker")
    if material.node_tree is None:
        material.use_nodes = True
    nodes = material.node_tree.nodes
    nodes.clear()
    emission, output = nodes.new("ShaderNodeEmission"), nodes.new("ShaderNodeOutputMaterial")
    emission.inputs["Color"].default_value = (*colour, 1)
    material.node_tree.links.new(emission.outputs[0], output.inputs[0])
    markers[-1].data.materials.append(material)

def answer(values):
    set_up(values)
    frame = size()
    if values["wanted"]:
        fx, ratio, cx, cy = values["wanted"]
        camera.set_K([[fx * frame.full_width, 0, cx * frame.width],
                      [0, ratio * fx * frame.full_width, cy * frame.height], [0, 0, 1]])
    pixels = np.array([(0.2, 0.3), (0.8, 0.4), (0.45, 0.8)]) * (frame.width, frame.height)
    depths = np.array(values["depths"][:3])
    K, perspective = camera.K, data.type == "PERSP"
    radii = 1.2 * (depths if perspective else np.ones(3)) / K[[0, 1], [0, 1]].min()
    for marker, point, radius in zip(markers, camera.unproject(pixels, depths), radii):
        marker.location, marker.scale = point, [radius] * 3
    image = bl.render()["image"].astype(float)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    drawn = [[float((axis * image[..., c]).sum() / image[..., c].sum()) for axis in (x, y)] for c in range(3)]
    projected = camera.project([m.location for m in markers])
    # In perspective a sphere is drawn as an ellipse, whose centre is farther from the principal point than the sphere's
    # centre: X Z / (Z^2 - r^2) instead of X / Z, from the two tangents in the plane of X and Z.
    away = 1 / (1 - (radii / depths) ** 2) if perspective else np.ones(3)
    centres = K[:2, 2] + away[:, None] * (projected - K[:2, 2])
    return {"projected": projected.tolist(), "drawn": drawn, "centres": centres.tolist(), "pixels": pixels.tolist(),
            "shape": image.shape[:2], "size": [frame.height, frame.width]}
"""


def floats(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high)


@st.composite
def cameras(draw: st.DrawFn, longest: int, shortest: int = 16, lens: tuple[float, float] = (8, 300)) -> dict[str, Any]:
    """Draw settings of a camera, three or more points in front of it, and perhaps intrinsics for it."""
    x, y = draw(st.integers(shortest, longest)), draw(st.integers(shortest, longest))
    percentage = draw(st.sampled_from([100, 100, 50, 37, 133]))
    low_x, low_y = draw(floats(0, 0.3)), draw(floats(0, 0.3))
    angles = st.tuples(*[floats(-3, 3)] * 3)
    count = 8
    return {
        "settings": {
            "render.resolution_x": x * 100 // percentage + 1,
            "render.resolution_y": y * 100 // percentage + 1,
            "render.resolution_percentage": percentage,
            "render.pixel_aspect_x": draw(st.sampled_from([1.0, 1.0, 1.5, 2.25])),
            "render.pixel_aspect_y": draw(st.sampled_from([1.0, 1.0, 1.3, 2.0])),
            "render.use_border": draw(st.booleans()),
            "render.use_crop_to_border": True,
            "render.border_min_x": low_x,
            "render.border_max_x": low_x + draw(floats(0.5, 0.7)),
            "render.border_min_y": low_y,
            "render.border_max_y": low_y + draw(floats(0.5, 0.7)),
            "data.type": draw(st.sampled_from(["PERSP", "ORTHO"])),
            "data.sensor_fit": draw(st.sampled_from(["AUTO", "HORIZONTAL", "VERTICAL"])),
            "data.sensor_width": draw(floats(10, 50)),
            "data.sensor_height": draw(floats(10, 50)),
            "data.lens": draw(floats(*lens)),
            "data.ortho_scale": draw(floats(0.5, 50)),
            "data.shift_x": draw(floats(-0.5, 0.5)),
            "data.shift_y": draw(floats(-0.5, 0.5)),
            "obj.location": draw(st.tuples(*[floats(-20, 20)] * 3)),
            "obj.rotation_euler": draw(angles),
            "obj.scale": draw(st.sampled_from([(1, 1, 1), (2, 0.5, 3)])),
            "parent.location": draw(st.tuples(*[floats(-20, 20)] * 3)),
            "parent.rotation_euler": draw(angles),
        },
        "parented": draw(st.booleans()),
        "fractions": draw(st.lists(st.tuples(floats(-0.2, 1.2), floats(-0.2, 1.2)), min_size=count, max_size=count)),
        "depths": draw(st.lists(floats(0.5, 50), min_size=count, max_size=count)),
        "wanted": draw(st.none() | st.tuples(floats(0.4, 5), floats(0.3, 3), floats(-0.5, 1.5), floats(-0.5, 1.5))),
    }


@pytest.fixture(scope="module")
def ask(talk_to_blender: Callable[[str], Ask]) -> Ask:
    return talk_to_blender(SCRIPT + TALK)


@pytest.fixture(scope="module")
def ask_for_markers(talk_to_blender: Callable[[str], Ask]) -> Ask:
    return talk_to_blender(SCRIPT + MARKERS)


@given(values=cameras(longest=4096))
@pytest.mark.exhaustive
@pytest.mark.slow
def test_its_parts_agree(ask: Ask, values: dict[str, Any]) -> None:
    """unproject inverts project, K and world_to_camera give what project gives, and K is what set_K has set."""
    found = ask(values)
    assert found.pop("types") == ["float64", "float32", "float32", "float64", "float64"]
    result = {name: np.array(value) for name, value in found.items()}

    def near(actual: Any, desired: Any) -> None:
        np.testing.assert_allclose(actual, desired, atol=1e-3, rtol=0)

    near(result["back"], result["xy"])
    near(result["again"], result["back"])
    np.testing.assert_allclose(result["far"], values["depths"], rtol=1e-6)

    perspective = values["settings"]["data.type"] == "PERSP"
    homogeneous = np.concatenate([result["there"], np.ones((len(result["there"]), 1))], axis=1)
    inside = (homogeneous @ result["W"].T)[:, :3]
    np.testing.assert_allclose(result["W"][:3, :3] @ result["W"][:3, :3].T, np.eye(3), atol=1e-6)
    assert np.linalg.det(result["W"][:3, :3]) > 0

    def by(K: Any) -> Any:
        plane = inside / inside[:, 2:] if perspective else np.concatenate([inside[:, :2], homogeneous[:, 3:]], 1)
        return (plane @ K.T)[:, :2]

    near(by(result["K"]), result["back"])
    if values["wanted"]:
        # The settings are float32, which differ by some 1e-7 of the numbers' size.
        np.testing.assert_allclose(result["got"], result["wanted"], atol=1e-3, rtol=5e-7)
        np.testing.assert_allclose(by(result["got"]), result["by_wanted"], atol=1e-3, rtol=1e-6)


# Each example renders, so there are few, and to shrink one would take minutes.
@settings(max_examples=settings().max_examples // 20, phases=(Phase.generate,))
@given(values=cameras(longest=200, shortest=90, lens=(20, 100)))
@pytest.mark.exhaustive
@pytest.mark.slow
def test_markers_are_drawn_where_they_are_projected(ask_for_markers: Ask, values: dict[str, Any]) -> None:
    """Markers are put where unproject places pixels, and appear within half a pixel of those, also after set_K."""
    found = ask_for_markers(values)
    assert found["shape"] == found["size"]
    np.testing.assert_allclose(
        found["projected"], found["pixels"], atol=0.02, rtol=0
    )  # an object's location is float32
    np.testing.assert_allclose(found["drawn"], found["centres"], atol=0.5, rtol=0)
