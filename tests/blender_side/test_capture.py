"""Each way in which `render` gets images and passes gives what Blender itself saves."""

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

scene, layer = bpy.context.scene, bpy.context.view_layer
options, image, view = scene.render, scene.render.image_settings, scene.view_settings
options.engine = "CYCLES"
options.resolution_x, options.resolution_y = 96, 64
scene.cycles.samples, scene.cycles.use_denoising = 2, False
view.view_transform = "Standard"
scene.world.node_tree.nodes["Background"].inputs["Color"].default_value = (0.45, 0.2, 0.06, 1)
cube = bpy.data.objects["Cube"]
cube.rotation_euler = 0.4, 0.2, 0.1
results = {"info": {}, "errors": {}, "skipped": []}

def same(name, channels="RGB"):
    '''Keep what Blender itself saves, and what we get.'''
    image.file_format, image.color_mode, image.color_depth = "PNG", channels, "8"
    options.dither_intensity, options.filepath = 0, str(OUT / f"{name}.png")
    bpy.ops.render.render(write_still=True)
    options.dither_intensity = 1  # as it is from the factory
    np.save(OUT / f"{name}.npy", bl.render(channels=channels)["image"])
    results["info"][name] = bl.last_render()._asdict()

class changed:
    '''with changed(owner, name=value): ...'''
    def __init__(self, owner, **values):
        self.owner, self.values = owner, values
    def __enter__(self):
        self.before = {name: getattr(self.owner, name) for name in self.values}
        for name, value in self.values.items():
            setattr(self.owner, name, value)
    def __exit__(self, *error):
        for name, value in self.before.items():
            setattr(self.owner, name, value)

def finish():
    (OUT / "results.json").write_text(json.dumps(results))
"""

IMAGES = (
    SCENE
    + """
def transform(name, **more):
    try:
        with changed(view, **more):
            for channels in ("RGB", "RGBA"):
                same(f"{name}-{channels}", channels)
                with changed(options, film_transparent=True):
                    same(f"{name}-{channels}-transparent", channels)
    except TypeError:  # this Blender has no such transform or look
        results["skipped"].append(name)

assert bl.last_render() is None
transform("standard")
transform("exposure", exposure=1.3)
transform("gamma", gamma=1.6, exposure=-0.5)
transform("raw", view_transform="Raw")
transform("filmic", view_transform="Filmic", exposure=0.7)
transform("agx", view_transform="AgX", gamma=1.2)
transform("look", view_transform="Filmic", look="High Contrast")
transform("agx_look", view_transform="AgX", look="AgX - Punchy", exposure=-0.4)
transform("khronos", view_transform="Khronos PBR Neutral", exposure=1.2)
transform("false_color", view_transform="False Color")
view.use_curve_mapping = True
view.curve_mapping.curves[0].points[1].location = 1, 0.5  # red alone
view.curve_mapping.curves[3].points.new(0.3, 0.6)
view.curve_mapping.update()
transform("curves", exposure=0.4)
view.use_curve_mapping = False
if hasattr(view, "use_white_balance"):
    transform("white_balance", use_white_balance=True, white_balance_temperature=4000)
    transform("white_balance_agx", view_transform="AgX", use_white_balance=True, white_balance_temperature=4000)

border = {"border_min_x": 0.13, "border_max_x": 0.71, "border_min_y": 0.2, "border_max_y": 0.77, "use_border": True}
with changed(options, **border):
    same("border")
    with changed(options, use_crop_to_border=True):
        same("crop")
with changed(options, resolution_percentage=33, pixel_aspect_x=2.0):
    same("percentage")
with changed(options, use_stamp=True, use_stamp_note=True, stamp_note_text="note", use_stamp_date=False,
             use_stamp_time=False, use_stamp_render_time=False, use_stamp_memory=False):
    same("stamp")
with changed(options, use_freestyle=True):
    same("freestyle")
with changed(scene.cycles, use_auto_tile=True, tile_size=32):
    same("tiles")
with changed(options, engine="BLENDER_WORKBENCH"):
    same("workbench")
if hasattr(image, "color_management"):
    with changed(image, color_management="OVERRIDE"):
        image.view_settings.view_transform, image.view_settings.exposure = "Standard", 2
        same("override")

with changed(scene.cycles, use_denoising=True):
    try:
        same("denoised")
    except RuntimeError:  # Debian's Blender has no denoiser
        (OUT / "denoised.npy").unlink(missing_ok=True)
with changed(options, use_motion_blur=True):
    same("blur")

other = scene.view_layers.new("other")
cube_only = bpy.data.collections.new("cube only")
scene.collection.children.link(cube_only)
cube_only.objects.link(cube)
other.layer_collection.children[0].exclude = True
same("layers")
scene.view_layers.remove(other)
scene.collection.children.unlink(cube_only)

editor = scene.sequence_editor_create()
strips = editor.strips if hasattr(editor, "strips") else editor.sequences
end = {"length": 10} if bpy.app.version >= (5, 0) else {"frame_end": 10}
strips.new_effect(name="colour", type="COLOR", channel=1, frame_start=0, **end).color = 0.2, 0.4, 0.6
same("strips")
with changed(options, use_sequencer=False):
    same("strips_off")
scene.sequence_editor_clear()

if hasattr(scene, "compositing_node_group"):
    tree = scene.compositing_node_group = bpy.data.node_groups.new("tree", "CompositorNodeTree")
    tree.interface.new_socket("Image", in_out="OUTPUT", socket_type="NodeSocketColor")
    output = tree.nodes.new("NodeGroupOutput")
else:
    scene.use_nodes = True
    tree = scene.node_tree
    tree.nodes.clear()
    output = tree.nodes.new("CompositorNodeComposite")
rendered, flip = tree.nodes.new("CompositorNodeRLayers"), tree.nodes.new("CompositorNodeInvert")
tree.links.new(rendered.outputs["Image"], flip.inputs["Color"])
tree.links.new(flip.outputs["Color"], output.inputs[0])
same("compositor")
assert options.use_compositing and options.use_sequencer
with changed(options, use_compositing=False):
    same("compositor_off")
    assert not options.use_compositing
if hasattr(scene, "compositing_node_group"):
    scene.compositing_node_group = None
else:
    scene.use_nodes = False

pencils = bpy.data.grease_pencils_v3 if hasattr(bpy.data, "grease_pencils_v3") else bpy.data.grease_pencils
scene.collection.objects.link(bpy.data.objects.new("pencil", pencils.new("pencil")))
same("pencil")
finish()
"""
)

VALUES = (
    SCENE
    + """
from asyncblend.blender.capture import cycles as reading, plan as planning

cube.pass_index, cube.active_material.pass_index = 3, 5
aov = layer.aovs.add()
aov.name, aov.type = "my colour", "COLOR"
node = cube.active_material.node_tree.nodes.new("ShaderNodeOutputAOV")
setattr(node, "aov_name" if hasattr(node, "aov_name") else "name", "my colour")
node.inputs[0].default_value = 0.25, 0.5, 0.75, 1

def switches():
    owners = (layer, layer.cycles)
    return [(p.identifier, getattr(o, p.identifier)) for o in owners for p in o.bl_rna.properties if p.type == "BOOLEAN"]

asked = ("combined", "depth", "mist", "normal", "position", "vector", "uv", "object_index", "material_index", "albedo",
         "emission", "environment", "glossy_direct", "denoising_albedo", "my colour", "CryptoObject00", "DiffDir")
before = switches()
memory = bl.render(asked, color="linear", channels="RGBA")
results["memory"] = bl.last_render()._asdict()
assert switches() == before
assert list(memory) == ["image", *asked]
results["own"] = all(a.flags.c_contiguous and a.flags.writeable and a.flags.owndata or a.base.flags.owndata
                     for a in memory.values())
obstacle = planning.passes_obstacle
planning.passes_obstacle = lambda scene: "the test says so"
saved = bl.render(asked, color="linear", channels="RGBA")
planning.passes_obstacle = obstacle
results["saved"] = bl.last_render()._asdict()
for name in memory:
    np.savez(OUT / f"{name}.npz", memory=memory[name], saved=saved[name])

half = bl.render(color="linear", dtype="float16")["image"]
results["half"] = [str(half.dtype), half.shape, bool((half == memory["image"][..., :3].astype(np.float16)).all())]
shown = bl.render(["depth"])
results["shown"] = {name: [str(array.dtype), array.shape] for name, array in shown.items()}
with changed(view, view_transform="Filmic"):
    filmic = bl.render(["depth"])
    results["filmic"] = [bl.last_render().backend, bool((filmic["depth"] == shown["depth"]).all())]
with changed(options, engine="BLENDER_WORKBENCH"):
    results["workbench"] = [bl.render(["depth"])["depth"].shape, bl.last_render().backend]

def attempt(name, *args, **options):
    before = switches()
    try:
        bl.render(*args, **options)
    except ValueError as error:
        results["errors"][name] = [type(error).__name__, str(error)]
    assert switches() == before, name

attempt("unknown", ["depth", "nope"])
attempt("image", ["image"])
attempt("string", "depth")
attempt("color", color="srgb")
attempt("channels", channels="BGR")
attempt("dtype", color="linear", dtype="int8")
attempt("display_dtype", dtype="float32")
attempt("nonsense", dtype="nonsense")
with changed(options, engine="BLENDER_WORKBENCH"):
    attempt("engine", ["albedo"])

# an error inside the engine's render only reaches Blender's log
def broken(*args):
    raise ArithmeticError("broken on purpose")
read, reading._read = reading._read, broken
try:
    bl.render()
except ArithmeticError as error:
    results["errors"]["reading"] = [type(error).__name__, str(error)]
reading._read = read
import cycles
assert cycles.CyclesRender.render.__module__ == "cycles"

# persistent data: a new seed counts, and frames are the same as without
def frames():
    seen = []
    for i in range(4):
        scene.cycles.seed, cube.location.x, bpy.data.objects["Camera"].data.lens = i // 2, 0.2 * (i % 2), 40 + i
        cube.active_material.node_tree.nodes["Principled BSDF"].inputs["Base Color"].default_value = 0.2 * i, 0.5, 0.1, 1
        seen.append(bl.render(["vector"], color="linear")["image"].copy())
    return seen
plain = frames()
with changed(options, use_persistent_data=True):
    kept = frames() + frames()
    assert options.use_persistent_data
results["persistent"] = [bool((a == b).all()) for a, b in zip(plain + plain, kept, strict=True)]
finish()
"""
)


def info(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "results.json").read_text()))


@pytest.fixture(scope="module")
def images(in_blender: Callable[[str], Path]) -> Path:
    return in_blender(IMAGES)


@pytest.fixture(scope="module")
def values(in_blender: Callable[[str], Path]) -> Path:
    return in_blender(VALUES)


IN_MEMORY = [
    "standard",
    "exposure",
    "gamma",
    "raw",
    "curves",
    "filmic",
    "agx",
    "look",
    "agx_look",
    "khronos",
    "white_balance_agx",
]
BY_FILE = ["false_color", "white_balance"]


@pytest.mark.parametrize("channels", ["RGB", "RGBA"])
@pytest.mark.parametrize("film", ["", "-transparent"])
@pytest.mark.parametrize("transform", [*IN_MEMORY, *BY_FILE])
@pytest.mark.slow
def test_view_transform_is_what_blender_saves(images: Path, transform: str, film: str, channels: str) -> None:
    """From memory it is within 1/255 of that, and by a file it is the same to the bit."""
    name = f"{transform}-{channels}{film}"
    if not (images / f"{name}.npy").exists():
        pytest.skip(f"this Blender has no {transform}")
    image = np.load(images / f"{name}.npy")
    saved = np.asarray(Image.open(images / f"{name}.png"))
    assert image.dtype == np.uint8
    assert image.shape == (64, 96, len(channels))
    assert image.flags.c_contiguous
    assert image.std() > 5
    backend = info(images)["info"][name]["backend"]
    in_memory = transform in IN_MEMORY and (transform, channels) != ("curves", "RGBA")
    assert backend == ("memory" if in_memory else "file")
    assert np.abs(image.astype(int) - saved).max() <= (1 if backend == "memory" else 0)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("crop", (37, 56)), ("percentage", (21, 31)), ("strips_off", (64, 96)), ("compositor_off", (64, 96))],
)
def test_memory_serves_where_nothing_is_in_the_way(images: Path, name: str, shape: tuple[int, int]) -> None:
    image, saved = np.load(images / f"{name}.npy"), np.asarray(Image.open(images / f"{name}.png"))
    assert info(images)["info"][name]["backend"] == "memory"
    assert info(images)["info"][name]["reason"] == ""
    assert image.shape == (*shape, 3)
    assert np.abs(image.astype(int) - saved).max() <= 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("border", "border"),
        ("stamp", "use_stamp"),
        ("freestyle", "Freestyle"),
        ("tiles", "use_auto_tile"),
        ("workbench", "BLENDER_WORKBENCH"),
        ("override", "color_management"),
        ("layers", "several view layers"),
        ("strips", "sequencer"),
        ("compositor", "compositor"),
        ("pencil", "grease pencil"),
    ],
)
def test_file_serves_where_blender_saves_something_else(images: Path, name: str, reason: str) -> None:
    if not (images / f"{name}.npy").exists():
        pytest.skip(f"this Blender has no {name}")
    image, saved = np.load(images / f"{name}.npy"), np.asarray(Image.open(images / f"{name}.png"))
    told = info(images)["info"][name]
    assert told["backend"] == "file"
    assert reason in told["reason"]
    np.testing.assert_array_equal(image, saved)


def test_tells_how_long_it_took(images: Path) -> None:
    for told in info(images)["info"].values():
        assert 0 < told["seconds_capture"] < 60
        assert 0 < told["seconds_render"] < 60


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("image", (64, 96, 4)),
        ("combined", (64, 96, 4)),
        ("depth", (64, 96)),
        ("mist", (64, 96)),
        ("normal", (64, 96, 3)),
        ("position", (64, 96, 3)),
        ("vector", (64, 96, 4)),
        ("uv", (64, 96, 3)),
        ("object_index", (64, 96)),
        ("material_index", (64, 96)),
        ("albedo", (64, 96, 3)),
        ("emission", (64, 96, 3)),
        ("environment", (64, 96, 3)),
        ("glossy_direct", (64, 96, 3)),
        ("denoising_albedo", (64, 96, 3)),
        ("my colour", (64, 96, 4)),
        ("CryptoObject00", (64, 96, 4)),
        ("DiffDir", (64, 96, 3)),
    ],
)
@pytest.mark.slow
def test_pass_is_to_the_bit_what_an_exr_holds(values: Path, name: str, shape: tuple[int, ...]) -> None:
    """Passes read from memory are compared with those of the multilayer file that Blender writes."""
    arrays = np.load(values / f"{name}.npz")
    assert arrays["memory"].dtype == arrays["saved"].dtype == np.float32
    assert arrays["memory"].shape == shape
    np.testing.assert_array_equal(arrays["memory"], arrays["saved"])


def test_passes_have_the_top_row_first_and_blenders_units(values: Path) -> None:
    read = {name: np.load(values / f"{name}.npz")["memory"] for name in ("depth", "position", "object_index")}
    cube = read["object_index"] == 3
    assert 0.02 < cube.mean() < 0.9
    assert 8 < read["depth"][cube].min() < read["depth"][cube].max() < 13
    assert (read["depth"][read["object_index"] == 0] > 1e9).all()
    rows = np.nonzero(cube)[0]
    height = read["position"][..., 2][cube]
    assert height[rows <= np.quantile(rows, 0.2)].mean() > height[rows >= np.quantile(rows, 0.8)].mean() + 0.5
    np.testing.assert_allclose(np.load(values / "my colour.npz")["memory"][cube][:, :3].max(axis=0), (0.25, 0.5, 0.75))
    assert np.load(values / "material_index.npz")["memory"].max() == 5


def test_backends_of_linear_images(values: Path) -> None:
    told = info(values)
    assert (told["memory"]["backend"], told["saved"]["backend"]) == ("memory", "file")
    assert told["saved"]["reason"] == "the test says so"
    assert told["own"]
    assert told["half"] == ["float16", [64, 96, 3], True]
    assert told["shown"] == {"image": ["uint8", [64, 96, 3]], "depth": ["float32", [64, 96]]}
    assert told["filmic"] == ["memory", True]
    assert told["workbench"] == [[64, 96], "file"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("unknown", ["'nope'", "depth", "my colour", "AOV"]),
        ("image", ["'image'", "combined"]),
        ("string", ["'depth'", "sequence"]),
        ("color", ["'srgb'", "display", "linear"]),
        ("channels", ["'BGR'", "RGBA"]),
        ("dtype", ["'int8'", "float16"]),
        ("display_dtype", ["'float32'", "uint8"]),
        ("nonsense", ["'nonsense'"]),
        ("engine", ["'albedo'"]),
    ],
)
def test_wrong_argument_is_a_config_error_that_says_what_is_right(values: Path, name: str, words: list[str]) -> None:
    kind, message = info(values)["errors"][name]
    assert kind == "ConfigError"
    for word in words:
        assert word in message


def test_error_while_reading_reaches_the_caller(values: Path) -> None:
    assert info(values)["errors"]["reading"] == ["ArithmeticError", "broken on purpose"]


def test_persistent_data_gives_the_same_frames(values: Path) -> None:
    assert info(values)["persistent"] == [True] * 8
