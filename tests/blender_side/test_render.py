"""`render` returns what Blender would save, as an array."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.blender

SCRIPT = """
import os
from asyncblend.blender import render

scene = bpy.context.scene
options, image = scene.render, scene.render.image_settings
options.engine = "CYCLES"
options.resolution_x, options.resolution_y = 64, 48
scene.cycles.samples = 2
results = {"errors": {}}

def settings():
    found = {"dither": options.dither_intensity, "path": options.filepath, "extension": options.use_file_extension}
    for name in image.bl_rna.properties.keys():
        if not image.is_property_readonly(name):
            found[name] = getattr(image, name)
    return {name: str(value) for name, value in found.items()}

def attempt(name):
    before = settings()
    try:
        render()
        results["errors"][name] = None
    except RuntimeError as error:
        results["errors"][name] = str(error)
    assert settings() == before, name

attempt("denoiser")
results["denoising"] = scene.cycles.use_denoising
scene.cycles.use_denoising = False

def png(name):  # what Blender itself saves
    image.file_format, image.color_mode, image.color_depth = "PNG", "RGB", "8"
    options.dither_intensity, options.filepath = 0, str(OUT / f"{name}.png")
    bpy.ops.render.render(write_still=True)

def same(name):
    png(name)
    options.dither_intensity = 1  # as it is from the factory
    np.save(OUT / f"{name}.npy", render()["image"])

for name, transform in [("plain", "Standard"), ("filmic", "Filmic")]:
    scene.view_settings.view_transform = transform
    same(name)
options.film_transparent = True
same("transparent")
options.film_transparent = False
options.use_border = options.use_crop_to_border = True
options.border_min_x, options.border_max_x, options.border_min_y, options.border_max_y = 0.13, 0.71, 0.2, 0.77
same("crop")
options.use_border = False
options.resolution_percentage = 33
same("percentage")
options.resolution_percentage = 100
options.engine = "BLENDER_WORKBENCH"
same("workbench")
options.engine = "CYCLES"

scene.world.node_tree.nodes["Background"].inputs["Color"].default_value = (0.5, 0.5, 0.5, 1)
first, again = render()["image"], render()["image"]
results["repeatable"] = bool((first == again).all())
results["contiguous"] = bool(first.flags.c_contiguous and first.flags.writeable)

other = bpy.data.scenes.new("Other")
other.render.resolution_x, other.render.resolution_y, other.render.engine = 16, 8, "CYCLES"
other.cycles.use_denoising, other.cycles.samples, other.camera = False, 1, scene.camera
if bpy.context.window:
    bpy.context.window.scene = other
    results["other"] = render()["image"].shape
    bpy.context.window.scene = scene

results["restored"] = {}
for file_format, mode, depth in [("OPEN_EXR", "RGBA", "32"), ("JPEG", "BW", "8"), ("PNG", "RGBA", "16")]:
    image.file_format, image.color_mode, image.color_depth = file_format, mode, depth
    options.filepath, options.dither_intensity, options.use_file_extension = "//my_frames_", 0.75, True
    before = settings()
    render()
    results["restored"][file_format] = (before, settings())
image.file_format = "PNG"
descriptors = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
for _ in range(3):
    render()
results["leaked"] = (len(os.listdir("/proc/self/fd")) if descriptors else 0) - descriptors

options.use_multiview = True
attempt("stereo")
options.use_multiview = False
scene.camera = None
attempt("camera")
results["files"] = sorted(path.name for path in OUT.iterdir())
(OUT / "results.json").write_text(json.dumps(results))
"""


@pytest.fixture(scope="module")
def out(in_blender: Callable[[str], Path]) -> Path:
    return in_blender(SCRIPT)


@pytest.fixture(scope="module")
def results(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "results.json").read_text()))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("plain", (48, 64, 3)),
        ("filmic", (48, 64, 3)),
        ("transparent", (48, 64, 3)),
        ("crop", (27, 37, 3)),
        ("percentage", (15, 21, 3)),
        ("workbench", (48, 64, 3)),
    ],
)
@pytest.mark.slow
def test_is_what_blender_saves(out: Path, name: str, shape: tuple[int, ...]) -> None:
    """By a file it is the same to the bit, and from Cycles' memory it is within 1/255."""
    image = np.load(out / f"{name}.npy")
    assert image.shape == shape
    assert image.dtype == np.uint8
    assert image.std() > 0
    saved = np.asarray(Image.open(out / f"{name}.png"))
    assert np.abs(image.astype(int) - saved).max() <= (0 if name == "workbench" else 1)


@pytest.mark.parametrize("file_format", ["OPEN_EXR", "JPEG", "PNG"])
def test_puts_all_settings_back(results: dict[str, Any], file_format: str) -> None:
    before, after = results["restored"][file_format]
    assert before["file_format"] == file_format
    assert before["path"] == "//my_frames_"
    assert after == before


def test_same_scene_gives_the_same_bytes(results: dict[str, Any]) -> None:
    assert results["repeatable"]


def test_array_is_contiguous_and_writable(results: dict[str, Any]) -> None:
    assert results["contiguous"]


def test_follows_the_current_scene(results: dict[str, Any]) -> None:
    if "other" not in results:
        pytest.skip("no window here, so the scene cannot be switched")
    assert results["other"] == [8, 16, 3]


def test_leaves_neither_files_nor_descriptors(results: dict[str, Any]) -> None:
    assert {name for name in results["files"] if not name.endswith((".npy", ".png"))} == {"script.py"}
    assert results["leaked"] == 0


def test_says_which_setting_to_change_where_there_is_no_denoiser(results: dict[str, Any]) -> None:
    message = results["errors"]["denoiser"]
    assert message is None or ("use_denoising = False" in message and "OpenImageDenoise" in message)
    assert results["denoising"], "the user's setting was changed"


def test_says_that_there_is_no_camera(results: dict[str, Any]) -> None:
    assert "camera" in results["errors"]["camera"]
    assert "set scene.camera" in results["errors"]["camera"]


def test_says_that_stereo_is_not_supported(results: dict[str, Any]) -> None:
    assert "use_multiview = False" in results["errors"]["stereo"]


UNTOUCHED = """
from asyncblend.blender import render

scene = bpy.context.scene
scene.render.engine = "CYCLES"
scene.render.resolution_x, scene.render.resolution_y = 64, 48
scene.cycles.samples, scene.cycles.use_denoising = 1, False
scene.view_settings.view_transform = "Standard"
results = {"errors": []}

plain = render()["image"]  # fills the table of the view transform
bpy.context.view_layer.update()
evaluations = []
bpy.app.handlers.depsgraph_update_post.append(lambda *_: evaluations.append(1))
render()
bpy.context.evaluated_depsgraph_get()
results["evaluations"] = len(evaluations)
bpy.app.handlers.depsgraph_update_post.clear()

# a compositor that is on and has no nodes: Blender would not render
if hasattr(scene, "compositing_node_group"):
    scene.compositing_node_group = bpy.data.node_groups.new("empty", "CompositorNodeTree")
else:
    scene.use_nodes = True
    scene.node_tree.nodes.clear()
results["empty"] = bool((render()["image"] == plain).all())
scene.camera = None
try:
    render()
except RuntimeError as error:
    results["errors"].append(str(error))
results["compositing"] = scene.render.use_compositing
(OUT / "results.json").write_text(json.dumps(results))
"""


@pytest.fixture(scope="module")
def untouched(in_blender: Callable[[str], Path]) -> dict[str, Any]:
    return dict(json.loads((in_blender(UNTOUCHED) / "results.json").read_text()))


def test_without_labels_the_scene_is_not_evaluated_again(untouched: dict[str, Any]) -> None:
    assert untouched["evaluations"] == 0


def test_compositor_without_nodes_changes_nothing(untouched: dict[str, Any]) -> None:
    assert untouched["empty"]


def test_compositor_is_on_again_also_after_an_error(untouched: dict[str, Any]) -> None:
    assert len(untouched["errors"]) == 1
    assert untouched["compositing"]


MEANWHILE = """
from asyncblend.blender import last_render, render

scene = bpy.context.scene
options, view = scene.render, scene.view_settings
options.engine = "CYCLES"
options.resolution_x, options.resolution_y, options.dither_intensity = 64, 48, 0
scene.cycles.samples, scene.cycles.use_denoising = 1, False
options.image_settings.file_format, options.image_settings.color_mode = "PNG", "RGB"
results = {}

def before():
    view.exposure, view.gamma, scene.frame_current = 0, 1, 9  # the frame's animation is evaluated by the render alone

def same(name):
    before()
    np.save(OUT / f"{name}.npy", render()["image"])
    results[name] = last_render().backend
    before()
    options.filepath = str(OUT / f"{name}.png")
    bpy.ops.render.render(write_still=True)

for transform in ("Standard", "AgX" if bpy.app.version >= (4, 0) else "Filmic"):
    view.view_transform = transform
    for setting, value in (("exposure", 2.0), ("gamma", 1.7)):
        handler = lambda *_: setattr(view, setting, value)
        bpy.app.handlers.render_pre.append(handler)
        same(f"{transform} {setting} handler")
        bpy.app.handlers.render_pre.remove(handler)
        for frame, at in ((1, 1.0), (9, value)):
            setattr(view, setting, at)
            view.keyframe_insert(setting, frame=frame)
        same(f"{transform} {setting} animated")
        scene.animation_data_clear()
(OUT / "results.json").write_text(json.dumps(results))
"""


def test_view_settings_are_those_after_the_render(in_blender: Callable[[str], Path]) -> None:
    """Handlers and animation change them while Blender renders, and it saves with what they are then."""
    out = in_blender(MEANWHILE)
    results: dict[str, str] = json.loads((out / "results.json").read_text())
    assert len(results) == 8
    assert set(results.values()) == {"memory"}
    off = {
        name: np.abs(np.load(out / f"{name}.npy") - np.asarray(Image.open(out / f"{name}.png"), int))
        for name in results
    }
    assert {name: int(array.max()) for name, array in off.items() if array.max() > 1} == {}
