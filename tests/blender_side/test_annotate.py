"""Boxes, poses and visibility from `annotate` are checked against Blender's own render of each object alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.blender

WIDTH, HEIGHT = 160, 120

START = f"""
from mathutils import Vector
from asyncblend import blender as bl
from asyncblend.blender.labels.rendered_ids import render_ids
from asyncblend.blender.scene.lens import frame_of

scene = bpy.context.scene
scene.render.engine = "CYCLES"
scene.cycles.samples, scene.cycles.use_denoising = 1, False
scene.render.resolution_x, scene.render.resolution_y = {WIDTH}, {HEIGHT}
camera = bl.Camera()
results = {{}}

def ids():  # the ids that annotate renders when it is given no result
    return render_ids(frame_of(scene.render))

def plain(found):
    return {{key: value.tolist() if hasattr(value, "tolist") else value for key, value in found.items()}}

def empty():
    for obj in list(bpy.data.objects):
        if obj.type != "CAMERA":
            bpy.data.objects.remove(obj)

def add(name, kind, **options):
    getattr(bpy.ops.mesh, f"primitive_{{kind}}_add")(**options)
    bpy.context.object.name = name
    return bpy.context.object

def straight(kind, location=(0, -10, 0)):  # looks along y; in an orthographic image a unit is 16 pixels
    scene.camera.location, scene.camera.rotation_euler = location, (np.pi / 2, 0, 0)
    scene.camera.data.type, scene.camera.data.ortho_scale, scene.camera.data.lens = kind, 10, 50
"""
END = """
(OUT / "results.json").write_text(json.dumps(results))
"""

RANDOM = """
rng = np.random.default_rng(5)
scene.frame_set(1)

def whole(obj):  # the pixels of the object alone, in an image of three times the size
    data, hidden = scene.camera.data, [other for other in scene.objects if other != obj and not other.hide_render]
    before = data.lens, data.ortho_scale, data.shift_x, data.shift_y
    for other in hidden:
        other.hide_render = True
    scene.render.resolution_x *= 3
    scene.render.resolution_y *= 3
    data.lens, data.ortho_scale, data.shift_x, data.shift_y = before[0] / 3, before[1] * 3, before[2] / 3, before[3] / 3
    pixels = int((ids().mask > 0).sum())
    scene.render.resolution_x //= 3
    scene.render.resolution_y //= 3
    data.lens, data.ortho_scale, data.shift_x, data.shift_y = before
    for other in hidden:
        other.hide_render = False
    return pixels

results["scenes"] = []
for number in range(4):
    empty()
    data = scene.camera.data
    data.type, data.lens, data.ortho_scale = "PERSP" if number % 2 == 0 else "ORTHO", 45, 7
    data.shift_x, data.shift_y = rng.uniform(-0.1, 0.1, 2)
    scene.render.pixel_aspect_y = 1.25 if number == 3 else 1
    scene.camera.location, scene.camera.rotation_euler = rng.uniform(-1, 1, 3) + (0, 0, 9), rng.uniform(-0.1, 0.1, 3)
    objects = [
        add("Ball", "uv_sphere", segments=24, ring_count=12),
        add("Box", "cube"),
        add("Head", "monkey"),
        add("Ring", "torus", major_segments=24, minor_segments=8),
        add("Sheet", "grid", x_subdivisions=4, y_subdivisions=4, size=2),
    ]
    bpy.ops.object.modifier_add(type="SIMPLE_DEFORM")
    bpy.context.object.modifiers[0].deform_method = "BEND"
    bpy.context.object.modifiers[0].angle = 1.5
    for obj in objects:
        obj.location, obj.rotation_euler = rng.uniform((-2.5, -2.2, -2), (2.5, 2.2, 2)), rng.uniform(0, 6, 3)
        obj.scale = rng.uniform(0.4, 1.1, 3)
    objects[1].parent = objects[0]
    found = bl.annotate(objects)
    masks = ids()
    depsgraph = bpy.context.evaluated_depsgraph_get()
    truth = {"id": {name: entry.id for name, entry in masks.entries.items()}, "mask": masks.mask.tolist(), "K": camera.K.tolist()}
    for obj in objects:
        evaluated = obj.evaluated_get(depsgraph)
        local = [v.co.copy() for v in evaluated.data.vertices]
        truth.setdefault("local", []).append([tuple(v) for v in local])
        truth.setdefault("xy", []).append(camera.project(local, obj).tolist())
        truth.setdefault("corners", []).append([tuple(evaluated.matrix_world @ Vector(c)) for c in evaluated.bound_box])
    truth["perspective"] = scene.camera.data.type == "PERSP"
    truth["whole"] = [whole(obj) for obj in objects]
    results["scenes"].append([plain(found), truth])
scene.render.pixel_aspect_y = 1
"""


@pytest.fixture(scope="module")
def scenes(in_blender: Callable[[str], Path]) -> list[Any]:
    found = json.loads((in_blender(START + RANDOM + END) / "results.json").read_text())["scenes"]
    for _, truth in found:
        truth["mask"] = np.array(truth["mask"])
    return list(found)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_ids_are_those_of_the_mask(scenes: list[Any]) -> None:
    for found, truth in scenes:
        assert found["name"] == ["Ball", "Box", "Head", "Ring", "Sheet"]
        assert found["id"] == [truth["id"][name] for name in found["name"]]


def test_boxes_hold_the_visible_pixels(scenes: list[Any]) -> None:
    seen = 0
    for found, truth in scenes:
        for number, box in zip(found["id"], found["bbox"], strict=True):
            y, x = np.nonzero(truth["mask"] == number)
            if len(x):
                seen += 1
                assert box == [x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()]
            else:
                assert box == [0, 0, 0, 0]
    assert seen > 12


def test_loose_boxes_hold_the_projected_mesh(scenes: list[Any]) -> None:
    for found, truth in scenes:
        for xy, box, cut in zip(truth["xy"], found["bbox_loose"], found["truncated"], strict=True):
            low, high = np.min(xy, axis=0), np.max(xy, axis=0)
            assert cut == ((low < 0).any() or (high > (WIDTH, HEIGHT)).any())
            low, high = np.clip(low, 0, (WIDTH, HEIGHT)), np.clip(high, 0, (WIDTH, HEIGHT))
            truth_box = [*low, *(high - low)] if (low < high).all() else [0, 0, 0, 0]
            np.testing.assert_allclose(box, truth_box, atol=0.01)


def test_3d_boxes_are_the_bound_boxes_of_blender(scenes: list[Any]) -> None:
    for found, truth in scenes:
        np.testing.assert_allclose(found["bbox3d"], truth["corners"], atol=1e-4)


def test_poses_take_vertices_to_their_pixels(scenes: list[Any]) -> None:
    """The pose is multiplied with the vertices of the mesh as they are, also for scaled objects with parents."""
    for found, truth in scenes:
        for pose, local, xy in zip(found["pose"], truth["local"], truth["xy"], strict=True):
            x, y, z = (np.array(pose)[:3, :3] @ np.transpose(local)) + np.array(pose)[:3, 3:]
            plane = np.stack([x / z, y / z, z / z] if truth["perspective"] else [x, y, z / z])
            np.testing.assert_allclose((np.array(truth["K"]) @ plane)[:2].T, xy, atol=0.01)


def test_visible_fractions_are_of_the_object_drawn_alone(scenes: list[Any]) -> None:
    """The object alone is drawn in an image of three times the size, because parts outside the image count."""
    hidden = 0
    for found, truth in scenes:
        for number, fraction, whole in zip(found["id"], found["visible_fraction"], truth["whole"], strict=True):
            visible = (truth["mask"] == number).sum()
            assert fraction == pytest.approx(min(visible / whole, 1), abs=0.01 + 3 / whole)
            hidden += fraction < 0.9
    assert hidden >= 4


SCENES = """
for kind in ("PERSP", "ORTHO"):
    empty()
    straight(kind)
    cube = add("Cube", "cube")
    cube["class_id"], cube["class_name"] = 4, "box"
    wall = add("Wall", "plane", size=6, location=(3, -3, 0), rotation=(np.pi / 2, 0, 0))
    results[f"wall {kind}"] = plain(bl.annotate([cube, "Wall"]))

empty()
straight("ORTHO")
ball = add("Ball", "uv_sphere", segments=64, ring_count=32, location=(5, 0, 0))
results["ball half"] = plain(bl.annotate([ball]))
ball.location = (5, 0, 3.75)
results["ball quarter"] = plain(bl.annotate([ball]))
ball.location = (0, 0, 0)
results["ball whole"] = plain(bl.annotate([ball]))

for kind in ("PERSP", "ORTHO"):
    empty()
    straight(kind)
    add("Behind", "cube", location=(0, -14, 0))
    add("Aside", "cube", location=(40, 0, 0))
    add("Covered", "cube", location=(0, 2, 0))
    add("Wall", "cube", location=(0, -1, 0), size=4)
    add("Hidden", "cube").hide_render = True
    results[f"unseen {kind}"] = plain(bl.annotate(["Behind", "Aside", "Covered", "Wall", "Hidden"]))
empty()
results["empty"] = {key: [list(value.shape), str(value.dtype)] if hasattr(value, "shape") else value
                    for key, value in bl.annotate([], {}).items()}

for kind in ("PERSP", "ORTHO"):
    empty()
    straight(kind)
    scene.camera.data.clip_start = 0.5
    # the floor reaches from behind the camera to far in front of it
    add("Floor", "plane", size=200, location=(0, 0, -1), rotation=(0 if kind == "PERSP" else 0.1, 0, 0))
    found = [plain(bl.annotate(["Floor"]))]
    add("Near", "uv_sphere", radius=1, location=(0.7, -9.2, 0.3))  # the camera is in it
    results[f"crossing {kind}"] = [*found, plain(bl.annotate(["Near"]))]
    scene.camera.data.clip_start = 0.1
empty()
straight("PERSP")
bpy.ops.object.text_add(rotation=(np.pi / 2, 0, 0))
text = bpy.context.object
text.data.body = "Text"
bpy.ops.curve.primitive_bezier_circle_add(location=(-1, 0, -1), rotation=(np.pi / 2, 0, 0))
curve = bpy.context.object
curve.data.bevel_depth = 0.2
found = bl.annotate([text, curve])
results["curves"] = plain(found), [int((ids().mask == i).sum()) for i in found["id"]]
"""


@pytest.fixture(scope="module")
def results(in_blender: Callable[[str], Path]) -> dict[str, Any]:
    return dict(json.loads((in_blender(START + SCENES + END) / "results.json").read_text()))


@pytest.mark.parametrize("kind", ["PERSP", "ORTHO"])
@pytest.mark.slow
def test_half_of_a_cube_is_behind_a_wall(results: dict[str, Any], kind: str) -> None:
    found = results[f"wall {kind}"]
    assert found["visible_fraction"][0] == pytest.approx(0.5, abs=0.03)
    assert found["truncated"] == [False, True]
    (x, y, w, h), loose = found["bbox"][0], found["bbox_loose"][0]
    assert (x + w, y, h) == pytest.approx((WIDTH / 2, loose[1], loose[3]), abs=1.5)
    assert loose[0] + loose[2] / 2 == pytest.approx(WIDTH / 2, abs=0.01)
    assert (found["class_id"], found["class_name"]) == ([4, 0], ["box", ""])


def test_half_of_a_sphere_is_outside_the_image(results: dict[str, Any]) -> None:
    half, quarter, whole = (results[f"ball {part}"] for part in ("half", "quarter", "whole"))
    assert half["visible_fraction"] == pytest.approx([0.5], abs=0.02)
    assert quarter["visible_fraction"] == pytest.approx([0.25], abs=0.02)
    assert whole["visible_fraction"] == pytest.approx([1], abs=0.02)
    assert [found["truncated"] for found in (half, quarter, whole)] == [[True], [True], [False]]
    np.testing.assert_allclose(half["bbox_loose"], [[144, 44, 16, 32]], atol=0.1)
    np.testing.assert_allclose(half["bbox"], [[144, 44, 16, 32]], atol=1)


@pytest.mark.parametrize("kind", ["PERSP", "ORTHO"])
def test_what_cannot_be_seen_has_an_empty_box(results: dict[str, Any], kind: str) -> None:
    found = results[f"unseen {kind}"]
    assert [box == [0, 0, 0, 0] for box in found["bbox"]] == [True, True, True, False, True]
    assert [fraction == 0 for fraction in found["visible_fraction"]] == [True, True, True, False, True]
    assert found["truncated"] == [True, True, False, kind == "PERSP", False]
    assert [box == [0, 0, 0, 0] for box in found["bbox_loose"]] == [True, True, False, False, False]
    assert sorted(found["id"]) == [1, 2, 3, 4, 5]


def test_no_objects_give_empty_arrays(results: dict[str, Any]) -> None:
    assert results["empty"] == {
        "id": [[0], "int32"],
        "name": [],
        "class_id": [[0], "int32"],
        "class_name": [],
        "bbox": [[0, 4], "float32"],
        "bbox_loose": [[0, 4], "float32"],
        "bbox3d": [[0, 8, 3], "float32"],
        "pose": [[0, 4, 4], "float32"],
        "visible_fraction": [[0], "float32"],
        "truncated": [[0], "bool"],
        "keypoints": [[0, 0, 3], "float32"],
    }


@pytest.mark.parametrize("kind", ["PERSP", "ORTHO"])
def test_a_mesh_around_the_camera_is_cut_at_the_near_plane(results: dict[str, Any], kind: str) -> None:
    """Cycles does not draw what is nearer than that plane, so boxes from the mesh and from the mask agree."""
    for found in results[f"crossing {kind}"]:
        np.testing.assert_allclose(found["bbox"], found["bbox_loose"], atol=1.1)
        assert found["truncated"] == [True]
    floor = results[f"crossing {kind}"][0]
    if kind == "PERSP":  # it goes on below the horizon, outside the image
        assert 0.1 < floor["visible_fraction"][0] < 0.3


def test_texts_and_curves_have_labels_too(results: dict[str, Any]) -> None:
    found, pixels = results["curves"]
    assert min(pixels) > 100
    assert found["visible_fraction"] == pytest.approx([1, 1], abs=0.08)
    np.testing.assert_allclose(found["bbox"], found["bbox_loose"], atol=1.1)


STATE = """
def settings():
    owners = [scene.render, scene.cycles, scene.view_layers[0], scene.camera.data.dof, scene.camera.data]
    return [
        str(getattr(owner, name))
        for owner in owners
        for name in owner.bl_rna.properties.keys()
        if not owner.is_property_readonly(name) and name != "denoiser"  # reading it gives a warning in 3.4, which has no denoiser
    ]

empty()
straight("PERSP")
cube, ball = add("Cube", "cube", size=1.5), add("Ball", "uv_sphere", location=(2, 0, 0))
renders = []
bpy.app.handlers.render_post.append(lambda *_: renders.append(1))

def count(name, rendered=None):  # keep how many renders annotate needed, and what it found
    before, so_far = settings(), len(renders)
    found = plain(bl.annotate([cube, ball], rendered=rendered))
    assert settings() == before, name
    results[name] = [len(renders) - so_far, found["bbox"], found["visible_fraction"]]

scene.render.engine = "BLENDER_WORKBENCH"
scene.render.use_motion_blur = True
scene.camera.data.dof.use_dof, scene.camera.data.dof.focus_distance = True, 1
scene.camera.data.dof.aperture_fstop = 0.1
scene.cycles.samples, scene.cycles.use_denoising, scene.cycles.filter_width = 32, True, 3
count("first")
count("again")
scene.render.engine, scene.render.use_motion_blur = "CYCLES", False
scene.cycles.samples, scene.cycles.use_denoising = 1, False
scene.camera.data.dof.use_dof = False
cube.location.z = 0.5
count("moved")
ball["class_id"], ball["class_name"] = 3, "round"
labels = bl.render(("depth", "instance"))
count("rendered", labels)
results["boxes"] = [bl.box_of(labels["instance"] == number).tolist() for number in (2, 1)]
before = {name: value.copy() if hasattr(value, "copy") else value for name, value in labels.items()}
ball["class_id"], ball["class_name"] = 4, "other"
results["classes"] = {
    name: [found["id"].tolist(), found["class_id"].tolist(), found["class_name"]]
    for name, found in [("rendered", bl.annotate([cube, ball], rendered=labels)), ("now", bl.annotate([cube, ball]))]
}
results["kept"] = all(np.array_equal(before[name], labels[name]) for name in before) and list(before) == list(labels)
labels["instance"][:, 80:] = 0  # the ball, and half of the cube
count("half of the mask", {name: labels[name] for name in ("instance", "instances")})
scene.render.use_border, scene.render.border_min_x = True, 0.25
bordered = bl.render(("instance",))
count("border", bordered)
scene.render.use_crop_to_border = True
cropped = bl.render(("instance",))
count("crop", cropped)

results["errors"] = {}

def attempt(name, call):
    so_far = len(renders)
    try:
        call()
        results["errors"][name] = None
    except Exception as error:
        results["errors"][name] = [type(error).__name__, str(error)]
    assert len(renders) == so_far, name

attempt("uncropped", lambda: bl.annotate([cube], rendered=bordered))
scene.render.use_border = scene.render.use_crop_to_border = False
attempt("cropped", lambda: bl.annotate([cube], rendered=cropped))
scene.render.border_min_x = 0
scene.render.resolution_percentage = 50
attempt("another size", lambda: bl.annotate([cube], rendered=labels))
scene.render.resolution_percentage = 100
shown, classes = bl.render(("depth",)), bl.render(("semantic",))
attempt("without ids", lambda: bl.annotate([cube], rendered=shown))
attempt("classes only", lambda: bl.annotate([cube], rendered=classes))
attempt("without a table", lambda: bl.annotate([cube], rendered={"instance": labels["instance"]}))
attempt("mask alone", lambda: bl.annotate([cube], rendered=labels["instance"]))
attempt("no ids", lambda: bl.annotate([cube], rendered={**labels, "instance": shown["depth"]}))
attempt("an image", lambda: bl.annotate([cube], rendered={**labels, "instance": shown["image"]}))
attempt("no table", lambda: bl.annotate([cube], rendered={**labels, "instances": ["Cube", "Ball"]}))
attempt("no list", lambda: bl.annotate([cube], rendered={**labels, "instances": 7}))
late = add("Late", "cube")
attempt("linked later", lambda: bl.annotate([cube, late], rendered=labels))
bpy.data.objects.remove(late)

unlinked = bpy.data.objects.new("Unlinked", cube.data)
collection = bpy.data.collections.new("Excluded")
scene.collection.children.link(collection)
collection.objects.link(bpy.data.objects.new("Excluded", cube.data))
bpy.context.view_layer.layer_collection.children["Excluded"].exclude = True
vertexless = bpy.data.objects.new("Vertexless", bpy.data.meshes.new("Vertexless"))
scene.collection.objects.link(vertexless)
attempt("unknown", lambda: bl.annotate([cube, "Bal"]))
attempt("far off", lambda: bl.annotate(["Xylophone"]))
attempt("twice", lambda: bl.annotate([cube, ball, "Cube"]))
attempt("unlinked", lambda: bl.annotate([unlinked]))
attempt("excluded", lambda: bl.annotate(["Excluded"]))
attempt("camera", lambda: bl.annotate([scene.camera]))
attempt("number", lambda: bl.annotate([7]))
attempt("single", lambda: bl.annotate(cube))
attempt("name", lambda: bl.annotate("Cube"))
cube["class_id"] = 0
ball.location.x += 1
attempt("class", lambda: bl.annotate([ball]))
del cube["class_id"]
scene.camera.data.type = "PANO"
attempt("panoramic", lambda: bl.annotate([cube]))
scene.camera.data.type = "PERSP"
own = scene.camera
scene.camera = None
attempt("no camera", lambda: bl.annotate([cube]))
scene.camera = own
known = bl.render(("instance",))
attempt("vertexless", lambda: bl.annotate([vertexless], rendered=known))
bpy.app.handlers.render_post.clear()  # with such a handler the bpy module would hang at exit
"""


@pytest.fixture(scope="module")
def states(in_blender: Callable[[str], Path]) -> dict[str, Any]:
    return dict(json.loads((in_blender(START + STATE + END) / "results.json").read_text()))


@pytest.mark.slow
def test_ids_are_rendered_where_none_are_given(states: dict[str, Any]) -> None:
    """They are sharp with every engine and every blur. The script asserts that all settings are put back."""
    for name in ("first", "again", "moved"):
        renders, _, fractions = states[name]
        assert renders == 1, name
        assert fractions == pytest.approx([1, 1], abs=0.03), name
    assert states["first"][1:] == states["again"][1:]
    assert states["first"][1] != states["moved"][1]


def test_a_given_result_needs_no_render_and_is_what_the_labels_belong_to(states: dict[str, Any]) -> None:
    """Boxes and fractions come from its mask, with a border and without."""
    for name in ("rendered", "half of the mask", "border", "crop"):
        assert states[name][0] == 0, name
    _, boxes, fractions = states["rendered"]
    assert boxes == states["boxes"]
    assert fractions == pytest.approx([1, 1], abs=0.08)
    _, (half, nothing), fractions = states["half of the mask"]
    assert half[0] + half[2] == 80
    assert half[:2] == boxes[0][:2]
    assert nothing == [0, 0, 0, 0]
    assert fractions == [pytest.approx(0.5, abs=0.05), 0]
    assert states["border"][1] == boxes
    assert states["crop"][1] == [[x - 40, y, w, h] for x, y, w, h in boxes]


def test_ids_and_classes_are_those_of_the_given_table(states: dict[str, Any]) -> None:
    """Without a given result they are those of the scene as it is now. A given result is not changed."""
    assert states["classes"] == {"rendered": [[2, 1], [0, 3], ["", "round"]], "now": [[2, 1], [0, 4], ["", "other"]]}
    assert states["kept"]


RENDERED = 'give it the result of bl.render((..., "instance")) as it is, or leave rendered out'


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("uncropped", "rendered['instance'] is 160 x 120 pixels, but the scene is now set to 120 x 120"),
        ("cropped", "rendered['instance'] is 120 x 120 pixels, but the scene is now set to 160 x 120"),
        ("another size", "is 160 x 120 pixels, but the scene is now set to 80 x 60"),
        ("without ids", f"rendered has no 'instance' and no 'instances': {RENDERED}"),
        ("classes only", f"rendered has no 'instance': {RENDERED}"),
        ("without a table", f"rendered has no 'instances': {RENDERED}"),
        ("mask alone", f"rendered must be a dict, got ndarray: {RENDERED}"),
        ("no ids", f"rendered['instance'] must be H x W ids, got shape (120, 160), float32: {RENDERED}"),
        ("an image", "rendered['instance'] must be H x W ids, got shape (120, 160, 3), uint8"),
        ("no table", f"rendered['instances'] is not the table of ids that render returned: {RENDERED}"),
        ("no list", "rendered['instances'] is not the table of ids that render returned"),
        ("linked later", "'Late' is not in rendered['instances']"),
    ],
)
def test_a_result_that_cannot_belong_is_refused(states: dict[str, Any], name: str, part: str) -> None:
    """The message says what to do. The script asserts that nothing is rendered."""
    error = states["errors"][name]
    assert error is not None
    assert error[0] == "ConfigError"
    assert part in error[1]


@pytest.mark.parametrize(
    ("name", "kind", "part"),
    [
        ("unknown", "ConfigError", "objects[1] is 'Bal', but there is no such object: is it 'Ball'?"),
        ("far off", "ConfigError", "there are Ball, Cube, Vertexless"),
        ("twice", "ConfigError", "objects[2] is 'Cube', which is in the list already"),
        ("unlinked", "ConfigError", "objects[0] is 'Unlinked', which is not in the view layer"),
        ("excluded", "ConfigError", "objects[0] is 'Excluded', which is not in the view layer"),
        ("camera", "ConfigError", "objects[0], 'Camera', is of type CAMERA and has no mesh"),
        ("number", "ConfigError", "objects[0] must be an object or its name, got 7"),
        ("single", "ConfigError", "objects must be a list of objects or their names"),
        ("name", "ConfigError", "objects must be a list of objects or their names, got 'Cube'"),
        ("class", "ConfigError", "'Cube': class_id must be a whole number from 1 on, got 0"),
        ("panoramic", "ValueError", "PANO"),
        ("no camera", "RuntimeError", "set scene.camera"),
        ("vertexless", "ConfigError", "the mesh of 'Vertexless' has no vertices"),
    ],
)
def test_names_the_mistake(states: dict[str, Any], name: str, kind: str, part: str) -> None:
    error = states["errors"][name]
    assert error is not None
    assert error[0] == kind
    assert part in error[1]
