"""bl.randomise.sky on real Blender: what is seen, what is lit, what a background changes, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.blender

SCRIPT = """
from asyncblend import blender as bl
from asyncblend.blender.scene import backdrop
from asyncblend.errors import ConfigError

scene, data = bpy.context.scene, bpy.data
scene.render.engine, scene.cycles.samples, scene.cycles.use_denoising = "CYCLES", 16, False
scene.render.resolution_x, scene.render.resolution_y = 32, 24
scene.view_settings.view_transform = "Standard"
data.objects.remove(data.objects["Light"])
cube, results = data.objects["Cube"], {}

def picture(path, colour):
    path.parent.mkdir(exist_ok=True)
    image = data.images.new(path.stem, 64, 32)
    image.pixels[:] = [*colour, 1.0] * (64 * 32)
    image.filepath_raw, image.file_format = str(path), "PNG"
    image.save()
    data.images.remove(image)

picture(OUT / "red" / "red.png", (1, 0, 0))
picture(OUT / "green" / "green.png", (0, 1, 0))
for number in range(6):
    picture(OUT / "many" / f"{number}.png", (number / 6, 0.5, 0.5))

def means():
    labels = bl.render(("instance",))
    hit = labels["instance"] > 0
    return [labels["image"][part].mean(axis=0).tolist() for part in (hit, ~hit)]

rng = np.random.default_rng(0)
results["path"] = bl.randomise.sky(OUT / "red", rng, strength=(1, 1)) == str(OUT / "red" / "red.png")
results["sky"] = means()
bl.randomise.background(OUT / "green", rng)
results["with background"] = means()

scene.world = data.worlds.new("Other")  # the other way round
bl.randomise.background(OUT / "green", rng)
bl.randomise.sky(OUT / "red", rng, strength=(1, 1))
results["background first"] = means()
scene.world = None
bl.randomise.sky(OUT / "red", rng, strength=(0.25, 0.25))
results["no world"] = means()

backdrop._KEPT = 20  # KiB: two or three of the pictures
def looks():
    own = np.random.default_rng(7)
    return bl.randomise.sky(OUT / "many", own), bl.randomise.background(OUT / "many", own), bl.render()["image"].tobytes()
before, counts = looks(), []
for seed in range(12):
    own = np.random.default_rng(seed)
    bl.randomise.sky(OUT / "many", own)
    bl.randomise.background(OUT / "many", own)
    shown = [node.image for node in scene.world.node_tree.nodes if getattr(node, "image", None)]
    counts.append((len(shown), len(data.images), len(scene.world.node_tree.nodes), len(data.worlds)))
results["counts"], results["again"] = counts, looks() == before

def refused(folder, **options):
    try:
        bl.randomise.sky(folder, rng, **options)
    except ConfigError as error:
        return str(error)
results["refused"] = [refused(OUT / "none"), refused(OUT / "many", strength=(2, 1))]
scene.render.engine = "BLENDER_WORKBENCH"
results["refused"].append(refused(OUT / "many"))
(OUT / "results.json").write_text(json.dumps(results))
"""


@pytest.mark.exhaustive
def test_a_sky_lights_the_scene(in_blender: Callable[[str], Path]) -> None:
    """The sky is seen and lights objects. A background is seen in front of it, and neither changes the other's effect.

    Pictures that are in use stay, older ones go, and the same generator gives the same image again.
    """
    found = json.loads((in_blender(SCRIPT) / "results.json").read_text())
    assert found["path"]
    for name, behind in (("sky", 0), ("with background", 1), ("background first", 1), ("no world", 0)):
        lit, seen = found[name]
        assert np.argmax(seen) == behind, name
        assert np.argmax(lit) == 0, name
        assert lit[0] > 40, name
    assert found["no world"][1][0] < found["sky"][1][0] - 50
    for shown, images, *rest in found["counts"]:
        assert shown == 2
        assert images <= 6
        assert rest == found["counts"][0][2:]
    assert found["again"]
    folder, strength, engine = found["refused"]
    assert "cannot list the folder" in folder
    assert "strength must be (lo, hi)" in strength
    assert "Workbench" in engine
