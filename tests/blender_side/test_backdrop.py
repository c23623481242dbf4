"""bl.randomise.background, rendered: the camera sees the picture, and nothing else does."""

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
from pathlib import Path
from asyncblend import ConfigError, blender as bl
from asyncblend.blender.scene import backdrop

FOLDER = Path(FOLDER)
scene, data = bpy.context.scene, bpy.data
scene.render.engine = "CYCLES"
scene.render.resolution_x, scene.render.resolution_y = 64, 48
scene.cycles.samples, scene.cycles.use_denoising = 8, False
scene.view_settings.view_transform = "Standard"
cube = data.objects["Cube"]
results = {"errors": {}}

def show(name):
    return bl.randomise.background(FOLDER / name, np.random.default_rng(0))

def keep(name):
    np.save(OUT / f"{name}.npy", bl.render()["image"])

keep("before")
results["path"] = show("same")
keep("after")
cube.hide_render = True
keep("same")
for name in ("wide", "high"):
    show(name)
    keep(name)
scene.render.pixel_aspect_x = 2
show("wide")
keep("aspect")
scene.render.pixel_aspect_x = 1
show("same")
scene.camera.data.type = "ORTHO"
keep("ortho")
scene.camera.data.type = "PERSP"
scene.camera.rotation_euler.x = 3
keep("turned")
scene.render.use_border = scene.render.use_crop_to_border = True
scene.render.border_min_x, scene.render.border_max_x = 0.25, 0.75
scene.render.border_min_y, scene.render.border_max_y = 0.5, 1
keep("crop")
scene.render.use_border = False
scene.render.use_persistent_data = True
keep("persistent before")
show("wide")
keep("persistent wide")
scene.render.use_persistent_data = False

def own_colours():
    shown = [node.inputs["Color"] for node in scene.world.node_tree.nodes if node.type == "BACKGROUND"]
    return [list(colour.default_value)[:3] for colour in shown if not colour.is_linked]

# other worlds: no world, one without nodes, and one whose output has no link
scene.world = None
show("same")
keep("none")
results["no world"] = own_colours()
scene.world = data.worlds.new("Plain")
if bpy.app.version < (5, 0):
    scene.world.use_nodes = False
else:  # there is no world without nodes
    scene.world.node_tree.nodes["Background"].inputs["Color"].default_value = (0.2, 0.3, 0.4, 1)
scene.world.color = (0.2, 0.3, 0.4)
show("same")
keep("plain")
results["colour"] = own_colours()
scene.world = data.worlds.new("Bare")
if bpy.app.version < (5, 0):
    scene.world.use_nodes = True
scene.world.node_tree.nodes.clear()
show("same")
keep("bare")

# a sky that lights the scene is still sampled as before
scene.world = data.worlds.new("Sky")
if bpy.app.version < (5, 0):
    scene.world.use_nodes = True
tree = scene.world.node_tree
tree.links.new(tree.nodes.new("ShaderNodeTexSky").outputs[0], tree.nodes["Background"].inputs["Color"])
show("same")
results["sampling"] = [scene.world.cycles.sampling_method, data.worlds["World"].cycles.sampling_method]

# the generator alone decides which picture is shown, and memory does not grow
def chosen():
    return [Path(bl.randomise.background(FOLDER / "many", np.random.default_rng([1, index]))).name for index in range(200)]

first = chosen()
sizes = {name: len(getattr(data, name)) for name in ("images", "worlds", "materials", "node_groups")}
nodes = len(scene.world.node_tree.nodes)
results["chosen"] = [first, chosen()]
results["grown"] = [len(getattr(data, name)) - size for name, size in sizes.items()] + [len(scene.world.node_tree.nodes) - nodes]
backdrop._KEPT = 3 * 13  # KiB: three of the small pictures
users_own = data.images.load(str(FOLDER / "many" / "0.png"))
counts, order = set(), []
for name in ["a", "b", "c", "a", "d", "b", "a"]:
    show(f"one/{name}")
    counts.add(sum(backdrop._MARK in image for image in data.images))
    order.append(sorted(Path(image.filepath).stem for image in data.images if backdrop._MARK in image))
results["kept"] = [max(counts), order]
results["users_own"] = users_own.name in data.images

def attempt(name, call):
    images = len(data.images)
    try:
        call()
        results["errors"][name] = None
    except ConfigError as error:
        results["errors"][name] = str(error)
    assert len(data.images) == images, name

attempt("missing", lambda: show("nowhere"))
attempt("empty", lambda: show("empty"))
attempt("file", lambda: show("same/picture.png"))
attempt("broken", lambda: show("broken"))
scene.render.film_transparent = True
attempt("film", lambda: show("same"))
scene.render.film_transparent, scene.render.engine = False, "BLENDER_WORKBENCH"
attempt("workbench", lambda: show("same"))
(OUT / "results.json").write_text(json.dumps(results))
"""


def gradient(width: int, height: int) -> Any:
    """Return a picture in which red grows to the right and green downwards."""
    y, x = np.indices((height, width))
    return np.stack([40 + 160 * x / width, 30 + 180 * y / height, np.full(x.shape, 90)], axis=-1).astype(np.uint8)


def shrunk(mask: Any) -> Any:
    """Shrink a mask by two pixels at its edges, where pixels mix both sides, but not at the image's own edge."""
    found = mask.copy()
    for y in range(-2, 3):
        for x in range(-2, 3):
            found &= np.roll(mask, (y, x), (0, 1))
    found[[0, -1]] = found[:, [0, -1]] = False
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for name, size in [("same", (64, 48)), ("wide", (128, 48)), ("high", (64, 96))]:
        (root / name).mkdir()
        Image.fromarray(gradient(*size)).save(root / name / "picture.png")
    (root / "many").mkdir()
    (root / "one").mkdir()
    for number in range(8):
        Image.fromarray(gradient(64, 48)).save(root / "many" / f"{number}.png")
    for name in "abcd":
        (root / "one" / name).mkdir()
        Image.fromarray(gradient(64, 48)).save(root / "one" / name / f"{name}.png")
    (root / "empty").mkdir()
    (root / "empty" / "notes.txt").write_text("no picture")
    (root / "broken").mkdir()
    (root / "broken" / "picture.png").write_text("no picture")
    return root


@pytest.fixture(scope="module")
def out(in_blender: Callable[[str], Path], folder: Path) -> Path:
    return in_blender(f"FOLDER = {str(folder)!r}\n{SCRIPT}")


@pytest.fixture(scope="module")
def results(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "results.json").read_text()))


SAME = gradient(64, 48)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("same", SAME),
        ("wide", gradient(128, 48)[:, 32:96]),
        ("high", gradient(64, 96)[24:72]),
        ("aspect", gradient(128, 48)),  # pixels are twice as wide, so the whole picture is seen
        ("ortho", SAME),
        ("turned", SAME),
        ("crop", SAME[:24, 16:48]),
        ("persistent before", SAME),
        ("persistent wide", gradient(128, 48)[:, 32:96]),
        ("none", SAME),
        ("plain", SAME),
        ("bare", SAME),
    ],
)
@pytest.mark.slow
def test_the_picture_fills_the_image(out: Path, name: str, expected: Any) -> None:
    """It does so with any camera, and is cut, not stretched, where its shape differs from the image's."""
    image = np.load(out / f"{name}.npy").astype(int)
    if name == "aspect":
        expected = expected[:, ::2].astype(int) + (expected[:, 1::2] - expected[:, ::2]) // 2
    assert image.shape == expected.shape
    assert np.abs(image - expected)[1:-1, 1:-1].max() <= 4


def test_objects_and_their_light_stay_as_they_were(out: Path, results: dict[str, Any]) -> None:
    """Only background pixels change, as the world lights the cube as before."""
    before, after = (np.load(out / f"{name}.npy").astype(int) for name in ("before", "after"))
    world = abs(before - before[0, 0]).max(axis=-1) <= 1
    inside, outside = shrunk(~world), shrunk(world)
    assert inside.sum() > 100
    assert outside.sum() > 1000
    assert np.abs(after - before)[inside].max() <= 1
    assert np.abs(after - SAME)[outside].max() <= 4
    assert results["path"].endswith("picture.png")


def test_a_world_that_lights_is_sampled_as_it_was(results: dict[str, Any]) -> None:
    """The map that finds bright directions is turned off only for a world that has none."""
    assert results["sampling"] == ["AUTOMATIC", "NONE"]


def test_a_world_without_nodes_keeps_its_colour(results: dict[str, Any]) -> None:
    np.testing.assert_allclose(results["colour"], [(0.2, 0.3, 0.4)], rtol=1e-6)


def test_a_scene_without_a_world_stays_dark(results: dict[str, Any]) -> None:
    """From Blender 5.0 on, a new world is grey."""
    assert results["no world"] == [[0, 0, 0]]


def test_the_generator_chooses(results: dict[str, Any]) -> None:
    first, again = results["chosen"]
    assert first == again
    assert set(first) == {f"{number}.png" for number in range(8)}


def test_nothing_grows_and_the_oldest_go_first(results: dict[str, Any]) -> None:
    """The most recently used pictures stay in memory, up to the limit; the user's own images are never removed."""
    assert not any(results["grown"])
    most, order = results["kept"]
    assert most == 3
    assert order[2:] == [list("abc"), list("abc"), list("acd"), list("abd"), list("abd")]
    assert results["users_own"]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("missing", "cannot list the folder"),
        ("empty", "it has 1 entries, none of which ends in .bmp"),
        ("file", "Not a directory"),
        ("broken", "cannot read the picture"),
        ("film", "film_transparent = False"),
        ("workbench", "use Cycles or EEVEE"),
    ],
)
def test_names_the_mistake(results: dict[str, Any], name: str, part: str) -> None:
    assert results["errors"][name] is not None
    assert part in results["errors"][name]
