"""Labels of pixels are checked against rays of `scene.ray_cast` through the pixels' centres."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.blender

SCENE = """
import bmesh
from asyncblend import blender as bl

scene, layer = bpy.context.scene, bpy.context.view_layer
options = scene.render
options.engine = "CYCLES"
options.resolution_x, options.resolution_y, options.pixel_aspect_y = 96, 64, 1.25
scene.cycles.samples, scene.cycles.use_denoising = 4, False
scene.view_settings.view_transform = "Standard"
cube, camera = bpy.data.objects["Cube"], scene.camera
cube.rotation_euler = 0.4, 0.2, 0.1
cube["class_id"], cube["class_name"] = 7, "cube"

def add(name, mesh, **values):
    obj = bpy.data.objects.new(name, mesh)
    scene.collection.objects.link(obj)
    for key, value in values.items():
        setattr(obj, key, value)
    return obj

def ball(name):
    mesh, shape = bpy.data.meshes.new(name), bmesh.new()
    bmesh.ops.create_icosphere(shape, subdivisions=2, radius=1.2)
    shape.to_mesh(mesh)
    shape.free()
    return mesh

add("Ball", ball("ball"), location=(-1.5, 2, 0.3))["class_id"] = 2
add("Another", cube.data, location=(1.5, 1, -1), scale=(0.5, 1, 2), rotation_euler=(1, 2, 3))
hidden = add("A hidden one", cube.data, location=(3, -3, 2))  # between the camera and the others
hidden.hide_render = True
camera.data.shift_x, camera.data.shift_y = 0.05, -0.08
cube.pass_index, hidden.pass_index = 44, 3
ALL = ("depth", "distance", "normal", "normal_camera", "instance", "semantic", "albedo")
results = {}

def rays():
    '''Origins and directions through the pixels' centres, from what Blender itself says of its frame.'''
    layer.update()
    place = np.array(camera.matrix_world.normalized())
    # The whole image's corners: right top, right bottom, left bottom, left top.
    top_right, _, bottom_left, top_left = np.array([list(c) for c in camera.data.view_frame(scene=scene)])
    width, height = options.resolution_x, options.resolution_y
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    at = top_left + x[..., None] * (top_right - top_left) + y[..., None] * (bottom_left - top_left)
    if camera.data.type == "ORTHO":
        origins, along = at * (1, 1, 0), np.broadcast_to((0.0, 0.0, -1.0), at.shape)
    else:
        origins, along = np.zeros_like(at), at
    along = along / np.linalg.norm(along, axis=2, keepdims=True)
    return origins @ place[:3, :3].T + place[:3, 3], along @ place[:3, :3].T, place

def truth():
    '''What the rays hit: place and normal in the world, object's name, place in the camera's space (OpenCV).'''
    origins, along, place = rays()
    hidden.hide_viewport = True  # ray_cast sees what viewports show
    depsgraph = bpy.context.evaluated_depsgraph_get()
    shape = origins.shape
    point, normal, name = np.full(shape, np.nan), np.zeros(shape), np.full(shape[:2], "", object)
    for i in np.ndindex(shape[:2]):
        hit, at, facing, _, obj, _ = scene.ray_cast(depsgraph, origins[i], along[i])
        if hit:
            point[i], name[i] = at, obj.name
            normal[i] = facing * -np.sign(np.dot(facing, along[i]))
    hidden.hide_viewport = False
    local = (point - place[:3, 3]) @ place[:3, :3] * (1, -1, -1)
    return {"point": point, "facing": normal, "hit": name.astype(str), "local": local, "place": place}

def keep(name):
    before = [(o.name, o.pass_index) for o in bpy.data.objects]
    found = bl.render(ALL)
    assert [(o.name, o.pass_index) for o in bpy.data.objects] == before
    results[name] = found.pop("instances")
    results[f"{name} kinds"] = {key: [str(a.dtype), a.shape, a.flags.c_contiguous and a.flags.writeable]
                                for key, a in found.items()}
    np.savez(OUT / f"{name}.npz", **found, **truth(), unprojected=unprojected(found["depth"]))

def unprojected(depth):
    y, x = np.nonzero(np.isfinite(depth))
    points = np.full((*depth.shape, 3), np.nan)
    points[y, x] = bl.Camera().unproject(np.stack([x + 0.5, y + 0.5], axis=1), depth[y, x])
    return points

keep("perspective")
camera.data.type, camera.data.ortho_scale = "ORTHO", 9
keep("orthographic")
camera.data.type = "PERSP"
scene.cycles.filter_width = 0.01  # all samples in the pixel's centre
keep("sharp")
scene.cycles.filter_width = 1.5

# another engine, a cropped image, and a border without crop
options.engine = "BLENDER_WORKBENCH"
np.save(OUT / "workbench.npy", bl.render(["depth"])["depth"])
options.engine = "CYCLES"
options.use_border, options.border_min_x, options.border_max_y = True, 0.25, 0.75
np.savez(OUT / "border.npz", **{k: v for k, v in bl.render(ALL).items() if k != "instances"})
options.use_crop_to_border = True
np.savez(OUT / "crop.npz", **{k: v for k, v in bl.render(ALL).items() if k != "instances"})
options.use_border = options.use_crop_to_border = False

# labels together with the passes that they are made of
both = bl.render(["Depth", "depth", "object_index", "instance", "IndexOB", "semantic", "Normal"])
results["order"] = list(both)
del both["instances"]
np.savez(OUT / "both.npz", **both)

for obj in (cube, *(o for o in bpy.data.objects if o.type == "MESH")):
    obj.hide_render = True
np.savez(OUT / "empty.npz", **{k: v for k, v in bl.render(ALL).items() if k != "instances"})
for obj in [o for o in bpy.data.objects if o.type == "MESH"]:
    bpy.data.objects.remove(obj)
nothing = bl.render(ALL)
results["no objects"] = [nothing["instances"], float(nothing["instance"].max()), float(nothing["depth"].min())]
(OUT / "results.json").write_text(json.dumps(results))
"""

CAMERAS = ["perspective", "orthographic"]
IDS = {"": 0, "A hidden one": 1, "Another": 2, "Ball": 3, "Cube": 4}
CLASSES = {"": 0, "A hidden one": 0, "Another": 0, "Ball": 2, "Cube": 7}


@pytest.fixture(scope="module")
def out(in_blender: Callable[[str], Path]) -> Path:
    return in_blender(SCENE)


@pytest.fixture(scope="module")
def results(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "results.json").read_text()))


def load(out: Path, name: str) -> dict[str, Any]:
    return dict(np.load(out / f"{name}.npz"))


def agreed(found: dict[str, Any]) -> Any:
    """Return the pixels where the ray and the render show the same object, or none. Nearly all do."""
    same = np.vectorize(IDS.get)(found["hit"]) == found["instance"]
    assert same.mean() > 0.998  # the others are rays that graze an edge
    return same


def inner(found: dict[str, Any]) -> Any:
    """Return the pixels whose eight neighbours show the same face."""
    same = found["hit"] != ""
    for step in np.ndindex(3, 3):
        to = (step[0] - 1, step[1] - 1)
        near = np.abs(np.roll(found["facing"], to, (0, 1)) - found["facing"]).max(axis=2) < 1e-4
        same &= near & (np.roll(found["hit"], to, (0, 1)) == found["hit"])
    same[[0, -1]] = same[:, [0, -1]] = False
    return same


@pytest.mark.parametrize("camera", CAMERAS)
@pytest.mark.exhaustive
@pytest.mark.slow
def test_ids_are_those_of_the_objects_that_rays_hit(out: Path, camera: str) -> None:
    found = load(out, camera)
    agreed(found)
    assert set(np.unique(found["instance"])) == {0, 2, 3, 4}
    assert min(np.bincount(found["instance"].ravel())[[0, 2, 3, 4]]) > 50


@pytest.mark.parametrize("camera", CAMERAS)
def test_classes_are_those_of_the_objects_that_rays_hit(out: Path, camera: str) -> None:
    found = load(out, camera)
    same = agreed(found)
    np.testing.assert_array_equal(found["semantic"][same], np.vectorize(CLASSES.get)(found["hit"])[same])


@pytest.mark.parametrize("camera", CAMERAS)
def test_depth_is_the_place_on_the_axis_and_distance_the_way_to_it(out: Path, camera: str) -> None:
    found = load(out, camera)
    seen = agreed(found) & (found["hit"] != "")
    error = np.abs(found["depth"] - found["local"][..., 2])[seen]
    assert np.median(error) < 2e-4
    assert error.max() < 5e-3  # the largest errors are where a ray grazes a face
    way = np.linalg.norm(found["local"], axis=2) if camera == "perspective" else found["local"][..., 2]
    np.testing.assert_allclose(found["distance"][seen], way[seen], atol=5e-3)
    if camera == "perspective":
        assert (found["distance"][seen] - found["depth"][seen]).max() > 0.4


@pytest.mark.parametrize("camera", CAMERAS)
def test_unprojected_depth_lies_on_the_mesh(out: Path, camera: str) -> None:
    found = load(out, camera)
    seen = agreed(found) & (found["hit"] != "")
    np.testing.assert_allclose(found["unprojected"][seen], found["point"][seen], atol=5e-3)


@pytest.mark.parametrize("camera", [*CAMERAS, "sharp"])
def test_normals_are_those_of_the_faces(out: Path, camera: str) -> None:
    """This holds in world space and in the camera's. Their length is 1 wherever there is a surface."""
    found = load(out, camera)
    seen = agreed(found) & (found["hit"] != "") if camera == "sharp" else inner(found)
    assert seen.sum() > 400
    local = found["facing"] @ found["place"][:3, :3] * (1, -1, -1)
    for name, truth in (("normal", found["facing"]), ("normal_camera", local)):
        right = np.abs(found[name] - truth)[seen].max(axis=1) < 2e-3
        assert right.mean() > 0.995  # the others have an edge between two rays
        surface = found["instance"] > 0
        np.testing.assert_allclose(np.linalg.norm(found[name][surface], axis=1), 1, atol=1e-5)
    assert local[seen][:, 2].max() < 0.1  # normals point to the camera, which looks along z


@pytest.mark.parametrize("name", [*CAMERAS, "border", "crop", "empty"])
def test_background_is_the_same_in_all_labels(out: Path, name: str) -> None:
    found = load(out, name)
    background = found["instance"] == 0
    assert background.any()
    assert np.isposinf(found["depth"][background]).all()
    assert np.isfinite(found["depth"][~background]).all()
    assert np.isposinf(found["distance"][background]).all()
    assert (found["semantic"][background] == 0).all()
    assert not found["normal"][background].any()
    assert not found["normal_camera"][background].any()
    assert background.all() == (name == "empty")
    if background.all():
        assert not found["albedo"].any()


def test_border_is_a_part_of_the_whole_image(out: Path) -> None:
    """A pixel has the same labels in a border, cropped or not, as in the whole image."""
    whole, border, crop = (load(out, name) for name in ("perspective", "border", "crop"))
    assert border["depth"].shape == (64, 96)
    assert crop["depth"].shape == (48, 72)
    for name in ("depth", "distance", "instance", "semantic"):
        np.testing.assert_allclose(crop[name], whole[name][16:, 24:], rtol=5e-4)
        np.testing.assert_allclose(border[name][16:, 24:], whole[name][16:, 24:], rtol=5e-4)


def test_workbench_has_depth_too(out: Path) -> None:
    found, depth = load(out, "perspective"), np.load(out / "workbench.npy")
    sure = inner(found)
    np.testing.assert_allclose(depth[sure], found["depth"][sure], rtol=2e-3)
    assert np.isposinf(depth[0, 0])


@pytest.mark.parametrize("camera", CAMERAS)
def test_table_has_all_objects_in_order_of_name(results: dict[str, Any], camera: str) -> None:
    assert results[camera] == [
        {"id": 1, "name": "A hidden one", "class_id": 0, "class_name": ""},
        {"id": 2, "name": "Another", "class_id": 0, "class_name": ""},
        {"id": 3, "name": "Ball", "class_id": 2, "class_name": "2"},
        {"id": 4, "name": "Cube", "class_id": 7, "class_name": "cube"},
    ]


def test_dtypes_and_shapes(results: dict[str, Any]) -> None:
    flat, deep = [[64, 96], True], [[64, 96, 3], True]
    assert results["perspective kinds"] == {
        "image": ["uint8", *deep],
        **{name: ["float32", *flat] for name in ("depth", "distance")},
        **{name: ["float32", *deep] for name in ("normal", "normal_camera", "albedo")},
        **{name: ["int32", *flat] for name in ("instance", "semantic")},
    }


def test_passes_beside_labels_are_blenders_own(out: Path, results: dict[str, Any]) -> None:
    """The object index too, although it holds ids during the render."""
    both = load(out, "both")
    assert results["order"] == [
        *("image", "Depth", "depth", "object_index", "instance", "IndexOB", "semantic", "Normal"),
        "instances",
    ]
    assert both["object_index"].dtype == np.float32
    own = {0: 0, 2: 0, 3: 0, 4: 44}
    np.testing.assert_array_equal(both["object_index"], np.vectorize(own.get)(both["instance"]))
    np.testing.assert_array_equal(both["IndexOB"], both["object_index"])
    assert (both["Depth"][both["instance"] == 0] == 1e10).all()
    seen = both["instance"] > 0
    np.testing.assert_array_equal(both["Depth"][seen], both["depth"][seen])
    assert (np.linalg.norm(both["Normal"], axis=2) < 0.99).sum() > (
        ~seen
    ).sum()  # on edges it is a mean, and so shorter than 1


def test_scene_without_objects(results: dict[str, Any]) -> None:
    assert results["no objects"] == [[], 0, float("inf")]


def test_labels_are_of_the_scene_itself(in_blender: Callable[[str], Path]) -> None:
    """Where the compositor has another scene rendered too, whose view layer has the same name, its passes are not taken."""
    folder = in_blender(
        """
from asyncblend import blender as bl

scene = bpy.context.scene
scene.render.engine, scene.cycles.samples, scene.cycles.use_denoising = "CYCLES", 1, False
scene.render.resolution_x, scene.render.resolution_y = 32, 24
before = bl.render(("depth",))["depth"]
other = bpy.data.scenes.new("Other")
other.render.engine, other.camera = "CYCLES", scene.camera
other.cycles.samples, other.cycles.use_denoising = 1, False
other.render.resolution_x, other.render.resolution_y = 32, 24
other.collection.objects.link(scene.camera)
assert other.view_layers[0].name == scene.view_layers[0].name
other.view_layers[0].use_pass_z = True
if hasattr(scene, "compositing_node_group"):
    tree = scene.compositing_node_group = bpy.data.node_groups.new("tree", "CompositorNodeTree")
    tree.interface.new_socket("Image", in_out="OUTPUT", socket_type="NodeSocketColor")
    end = tree.nodes.new("NodeGroupOutput")
else:
    scene.use_nodes = True
    tree = scene.node_tree
    tree.nodes.clear()
    end = tree.nodes.new("CompositorNodeComposite")
mine, its = (tree.nodes.new("CompositorNodeRLayers") for _ in range(2))
its.scene = other
over = tree.nodes.new("CompositorNodeAlphaOver")  # needs both
images = [socket for socket in over.inputs if socket.type == "RGBA"]
tree.links.new(mine.outputs["Image"], images[0])
tree.links.new(its.outputs["Image"], images[1])
tree.links.new(over.outputs["Image"], end.inputs[0])
np.savez("depths.npz", before=before, after=bl.render(("depth",))["depth"])
"""
    )
    found = np.load(folder / "depths.npz")
    assert np.isfinite(found["before"]).any()
    np.testing.assert_array_equal(found["after"], found["before"])
