"""An opaque image of Workbench or EEVEE, which is read from a file with alpha, is what Blender saves without alpha."""

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

SCENE = """
from asyncblend import blender as bl
from asyncblend.blender.capture.imagefile import render_result, save_exr
from asyncblend.blender.capture.plan import plan_capture

scene, options, view = bpy.context.scene, bpy.context.scene.render, bpy.context.scene.view_settings
options.resolution_x, options.resolution_y, options.dither_intensity = 96, 64, 0
view.view_transform = "Standard"
cube = bpy.data.objects["Cube"]
cube.rotation_euler = 0.4, 0.2, 0.1
pane, glass = cube.copy(), bpy.data.materials.new("glass")
pane.data, pane.location, glass.diffuse_color = cube.data.copy(), (1.2, -1, 0.4), (0.2, 0.5, 0.9, 0.37)
pane.data.materials.clear()
pane.data.materials.append(glass)
scene.collection.objects.link(pane)
results = {"plans": {}, "alphas": {}}

def same(name):
    '''Keep what Blender itself saves, what we get, what was planned, and how large alpha is at least.'''
    options.image_settings.file_format, options.image_settings.color_mode = "PNG", "RGB"
    options.filepath = str(OUT / f"{name}.png")
    bpy.ops.render.render(write_still=True)
    np.save(OUT / f"{name}.npy", bl.render()["image"])
    results["plans"][name] = plan_capture(scene).opaque
    results["alphas"][name] = float(save_exr(scene, render_result(), layers=False)[""][..., 3].min())

def case(name, **settings):
    '''Settings are given as OWNER__NAME=VALUE.'''
    before = []
    for key, value in settings.items():
        owner, _, attribute = key.partition("__")
        before.append((globals()[owner], attribute, getattr(globals()[owner], attribute)))
        setattr(globals()[owner], attribute, value)
    same(name)
    for owner, attribute, value in reversed(before):
        setattr(owner, attribute, value)

def finish():
    (OUT / "results.json").write_text(json.dumps(results))
"""

WORKBENCH = (
    SCENE
    + """
options.engine, display = "BLENDER_WORKBENCH", scene.display
shading, lens = display.shading, scene.camera.data.dof
display.render_aa = "OFF"
case("plain")
case("x-ray", shading__show_xray=True, shading__xray_alpha=0.3)
case("decorated", shading__show_cavity=True, shading__show_shadows=True, shading__show_object_outline=True)
case("exposed", view__exposure=1.3, view__gamma=1.4)
case("mixed", view__view_transform="AgX" if bpy.app.version >= (4, 0) else "Filmic")
for samples in ("FXAA", "5", "8", "11", "32"):
    case(f"samples {samples}", display__render_aa=samples)
lens.focus_distance, lens.aperture_fstop = 8, 0.5
case("blurred", shading__use_dof=True, lens__use_dof=True)
case("transparent", options__film_transparent=True)
case("border", options__use_border=True, options__border_min_x=0.3)
case("crop", options__use_border=True, options__border_min_x=0.3, options__use_crop_to_border=True)
case("stamp", options__use_stamp=True, options__use_stamp_date=False, options__use_stamp_time=False,
     options__use_stamp_render_time=False, options__use_stamp_memory=False)
scene.view_layers.new("other")
case("layers")
finish()
"""
)

EEVEE = (
    SCENE
    + """
engines = options.bl_rna.properties["engine"].enum_items.keys()
options.engine = "BLENDER_EEVEE_NEXT" if "BLENDER_EEVEE_NEXT" in engines else "BLENDER_EEVEE"
options.resolution_percentage = 50
scene.eevee.taa_render_samples = 7
if not glass.node_tree:
    glass.use_nodes = True
glass.node_tree.nodes["Principled BSDF"].inputs["Alpha"].default_value = 0.37
case("plain")
if hasattr(glass, "surface_render_method"):
    case("blended", glass__surface_render_method="BLENDED")
case("transparent", options__film_transparent=True)
pane.is_holdout = True
case("holdout")
finish()
"""
)

OPAQUE = ["plain", "x-ray", "decorated", "exposed", "mixed", "crop"]
OTHERS = ["samples FXAA", "samples 5", "samples 8", "samples 11", "samples 32", "blurred", "transparent", "border"]
OTHERS += ["stamp", "layers"]


@pytest.fixture(scope="module")
def out(in_blender: Callable[[str], Path]) -> Path:
    return in_blender(WORKBENCH)


def results(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "results.json").read_text()))


def check(out: Path, name: str) -> None:
    saved = np.asarray(Image.open(out / f"{name}.png"))
    assert saved.std() > 5
    np.testing.assert_array_equal(np.load(out / f"{name}.npy"), saved)


@pytest.mark.parametrize("name", [*OPAQUE, *OTHERS])
@pytest.mark.exhaustive
@pytest.mark.slow
def test_workbench_is_to_the_bit_what_blender_saves(out: Path, name: str) -> None:
    check(out, name)


def test_workbench_counts_as_opaque_only_where_its_alpha_is_exactly_one(out: Path) -> None:
    """With many samples, alpha is one minus what their sum was rounded by, and an 8 bit file may well say 255."""
    found = results(out)
    planned = {name for name, opaque in found["plans"].items() if opaque}
    assert planned in (set(OPAQUE), set())  # in older Blenders it saves nothing
    assert {found["alphas"][name] for name in OPAQUE} == {1}
    assert found["alphas"]["samples 8"] < 1


@pytest.mark.exhaustive
@pytest.mark.timeout(900)  # without a GPU its shaders take long to build
@pytest.mark.slow
def test_eevee_is_to_the_bit_what_blender_saves(in_blender: Callable[..., Path]) -> None:
    """A holdout makes even an opaque film transparent, which only the file with alpha tells."""
    out = in_blender(EEVEE, limit=850)
    found = results(out)
    for name, alpha in found["alphas"].items():
        check(out, name)
        assert (alpha < 1) == (name in ("transparent", "holdout"))
    assert not found["plans"]["transparent"]
    assert found["plans"]["holdout"] == found["plans"]["plain"]
