"""Ids with engines other than Cycles: they agree with rays through the pixels' centres, and with the engine's own image."""

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
from asyncblend import blender as bl

scene, layer, camera = bpy.context.scene, bpy.context.view_layer, bpy.context.scene.camera
options = scene.render
options.resolution_x, options.resolution_y, options.film_transparent = {size}
scene.view_settings.view_transform = "Standard"
cube = bpy.data.objects["Cube"]
cube["class_id"], cube["class_name"], cube.pass_index = 7, "cube", 44
bpy.ops.mesh.primitive_uv_sphere_add(radius=1.2, location=(-1.5, 2, 0.3))
bpy.context.object.name = "Ball"
bpy.ops.mesh.primitive_cube_add(size=1, location=(1.5, 1, -1), rotation=(1, 2, 3))
bpy.context.object.name = "Another"
bpy.context.object["class_id"] = 2
bpy.ops.mesh.primitive_cube_add(location=(3, -3, 2))  # between the camera and the others
hidden = bpy.context.object
hidden.name, hidden.hide_render = "A hidden one", True
results = {{}}

def names(found):
    return np.array(["", *(row["name"] for row in found["instances"])])[found["instance"]]

def cast():
    '''The names of what the rays through the pixels' centres hit.'''
    hidden.hide_viewport = True  # rays meet what viewports show
    layer.update()
    depsgraph = bpy.context.evaluated_depsgraph_get()
    place = camera.matrix_world.normalized()
    top_right, _, bottom_left, top_left = camera.data.view_frame(scene=scene)
    hit = np.full((options.resolution_y, options.resolution_x), "", object)
    for y, x in np.ndindex(hit.shape):
        along = top_left + (x + 0.5) / hit.shape[1] * (top_right - top_left)
        along += (y + 0.5) / hit.shape[0] * (bottom_left - top_left)
        found, _, _, _, obj, _ = scene.ray_cast(depsgraph, place.translation, place.to_3x3() @ along)
        hit[y, x] = obj.name if found else ""
    hidden.hide_viewport = False
    return hit.astype(str)
"""

WORKBENCH = (
    SCENE.format(size="96, 64, True")
    + """
import math
truth = cast()
options.engine = "BLENDER_WORKBENCH"
scene.display.render_aa = "OFF"
# what would spoil ids, or cost time, if it were left on
options.use_motion_blur = True
camera.data.dof.use_dof, camera.data.dof.focus_distance, camera.data.dof.aperture_fstop = True, 1, 0.1
scene.cycles.samples, scene.cycles.filter_width, layer.samples = 32, 3, 64

# a node that writes a file at each render in which the compositor runs
if hasattr(scene, "compositing_node_group"):
    tree = scene.compositing_node_group = bpy.data.node_groups.new("Compositing", "CompositorNodeTree")
else:
    scene.use_nodes = True
    tree = scene.node_tree
tree.nodes.clear()
layers, node = tree.nodes.new("CompositorNodeRLayers"), tree.nodes.new("CompositorNodeOutputFile")
if hasattr(node, "directory"):
    node.directory = str(OUT / "nodes")
    node.file_output_items.new("RGBA", "image")
else:
    node.base_path = str(OUT / "nodes")
    tree.links.new(layers.outputs["Image"], tree.nodes.new("CompositorNodeComposite").inputs["Image"])
tree.links.new(layers.outputs["Image"], node.inputs[0])

def written():
    return sorted((OUT / "nodes").glob("*")) if (OUT / "nodes").exists() else []

engines = []
def note(*_):
    engines.append([options.engine, len(written())])
    for path in written():
        path.unlink()
bpy.app.handlers.render_pre.append(note)

def settings():
    owners = [options, scene.cycles, layer, camera.data.dof, camera.data, *bpy.data.objects]
    return [
        str(getattr(owner, name))
        for owner in owners
        for name in owner.bl_rna.properties.keys()
        if not owner.is_property_readonly(name) and name != "denoiser"  # a warning in 3.4, which has none
    ]

before = settings()
labels = bl.render(("semantic", "depth", "instance"), channels="RGBA")
results["changed"] = [pair for pair in zip(before, settings()) if pair[0] != pair[1]]
results["engines"], results["written"] = engines, len(written())
results["order"], results["table"] = list(labels), labels["instances"]
results["info"] = list(bl.last_render()[:2])
bpy.app.handlers.render_pre.clear()
tree.nodes.clear()
scene.display.render_aa = "8"

given, own = bl.annotate([cube, "Ball"], rendered=labels), bl.annotate([cube, "Ball"])
results["annotated"] = all(np.array_equal(given[name], own[name]) for name in own)
results["repeated"] = np.array_equal(labels["instance"], bl.render(("instance",))["instance"])

def attempt(name, *passes):
    before = settings()
    try:
        bl.render(passes)
    except ValueError as error:
        results[name] = [type(error).__name__, str(error), settings() == before]

attempt("object index", "instance", "object_index")
attempt("unknown", "nope", "instance")
cube["class_id"] = -1
attempt("class", "semantic")
del cube["class_id"]

# bodies that fall stay where the simulation has them, as long as the scene is told of no change
bpy.ops.rigidbody.world_add()
scene.rigidbody_world.collection = bpy.data.collections.new("bodies")
scene.rigidbody_world.collection.objects.link(cube)

def fallen(act):
    scene.frame_set(1)
    heights = []
    for frame in range(1, 9):
        scene.frame_set(frame)
        act()
        heights.append(cube.matrix_world.translation.z)
    return heights

results["fallen"] = [fallen(act) for act in (bl.render, lambda: bl.render(("instance",)), lambda: bl.annotate([cube]))]
scene.frame_set(1)

# where shapes differ, ids are those of Cycles: a cube that cameras do not see, in an image of Workbench
bpy.ops.rigidbody.world_remove()
cube.visible_camera = False
apart = bl.render(("instance",), channels="RGBA")
results["unseen"] = ["Cube" in names(apart), bool((apart["image"][..., 3][truth == "Cube"] > 0).all())]
np.savez(OUT / "found.npz", truth=truth, names=names(labels), alpha=labels["image"][..., 3], semantic=labels["semantic"],
         depth=labels["depth"])
(OUT / "results.json").write_text(json.dumps(results))
"""
)

EEVEE = (
    SCENE.format(size="48, 32, True")
    + """
names_of_engines = options.bl_rna.properties["engine"].enum_items.keys()
options.engine = "BLENDER_EEVEE_NEXT" if "BLENDER_EEVEE_NEXT" in names_of_engines else "BLENDER_EEVEE"
scene.eevee.taa_render_samples = 1
options.filter_size = 0
labels = bl.render(("instance", "semantic"), channels="RGBA")
np.savez(OUT / "found.npz", truth=cast(), names=names(labels), alpha=labels["image"][..., 3])
"""
)


@pytest.fixture(scope="module")
def out(in_blender: Callable[[str], Path]) -> Path:
    return in_blender(WORKBENCH)


@pytest.fixture(scope="module")
def found(out: Path) -> dict[str, Any]:
    return dict(np.load(out / "found.npz"))


@pytest.fixture(scope="module")
def results(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "results.json").read_text()))


@pytest.mark.slow
def test_each_pixel_has_what_the_ray_through_its_centre_hits(found: dict[str, Any]) -> None:
    """Up to two pixels are allowed for rays that graze an edge."""
    assert set(np.unique(found["truth"])) == {"", "Another", "Ball", "Cube"}
    assert np.count_nonzero(found["names"] != found["truth"]) <= 2


def test_the_mask_covers_what_the_image_shows(found: dict[str, Any]) -> None:
    """Without antialiasing, Workbench also looks through the pixels' centres; its depth comes from the same render."""
    shown = found["alpha"] > 0
    assert np.count_nonzero(shown != (found["names"] != "")) <= 2
    assert np.array_equal(np.isfinite(found["depth"]), shown)


def test_classes_and_the_table(found: dict[str, Any], results: dict[str, Any]) -> None:
    of_name = {"": 0, "Ball": 0, "Another": 2, "Cube": 7}
    assert np.array_equal(found["semantic"], np.vectorize(of_name.get)(found["names"]))
    assert [(row["id"], row["name"]) for row in results["table"]] == [
        *((1, "A hidden one"), (2, "Another"), (3, "Ball"), (4, "Cube"))
    ]
    assert results["order"] == ["image", "semantic", "depth", "instance", "instances"]


def test_ids_are_a_render_of_their_own(results: dict[str, Any]) -> None:
    """The image is the engine's; then Cycles renders the ids, without the compositor, and all settings are put back."""
    assert results["engines"] == [
        ["BLENDER_WORKBENCH", 0],
        ["CYCLES", 1],
    ]  # the image's render wrote a file, which is removed
    assert results["written"] == 0
    assert results["changed"] == []
    assert results["info"] == ["file", "the engine is BLENDER_WORKBENCH"]


def test_annotate_takes_such_a_render(results: dict[str, Any]) -> None:
    assert results["annotated"]
    assert results["repeated"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("object index", ["BLENDER_WORKBENCH", "'object_index'", "'CYCLES'"]),
        ("unknown", ["'nope'"]),
        ("class", ["'Cube'", "class_id"]),
    ],
)
def test_errors_leave_the_settings_as_they_were(results: dict[str, Any], name: str, words: list[str]) -> None:
    kind, message, same = results[name]
    assert kind == "ConfigError"
    assert same
    for word in words:
        assert word in message


def test_a_simulation_goes_on_undisturbed(results: dict[str, Any]) -> None:
    """With denoising on, as it is in a new scene: switching it off and on again would be a change that Blender is told of."""
    without, with_ids, annotated = results["fallen"]
    assert without[0] - without[-1] > 0.1
    assert with_ids == annotated == without


def test_what_cycles_does_not_show_has_no_id(results: dict[str, Any]) -> None:
    assert results["unseen"] == [False, True]


@pytest.mark.exhaustive
@pytest.mark.timeout(900)  # without a GPU its shaders take long to build
@pytest.mark.slow
def test_eevee(in_blender: Callable[..., Path]) -> None:
    """Its image is a mean over each pixel, so it is compared where all neighbours show the same."""
    found = dict(np.load(in_blender(EEVEE, limit=850) / "found.npz"))
    assert np.count_nonzero(found["names"] != found["truth"]) <= 2
    shown = np.pad(found["truth"] != "", 1, mode="edge")
    around = [shown[1 + y : 33 + y, 1 + x : 49 + x] for y in (-1, 0, 1) for x in (-1, 0, 1)]
    inside, outside = np.all(around, axis=0), ~np.any(around, axis=0)
    assert inside.sum() > 50
    assert (found["alpha"][inside] == 255).all()
    assert (found["alpha"][outside] == 0).all()
