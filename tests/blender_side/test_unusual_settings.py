"""Labels are right with settings that few scenes have, and scripts that run for long leave nothing behind."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.blender

SETTINGS = """
from asyncblend import blender as bl

scene, cube = bpy.context.scene, bpy.data.objects["Cube"]
scene.render.resolution_x, scene.render.resolution_y = 24, 16
scene.cycles.use_denoising, scene.cycles.samples = False, 4
results = {"pixels": [], "background": []}

scene.render.engine = "CYCLES"
results["pixels"].append(int((bl.render(("instance",))["instance"] > 0).sum()))
scene.render.engine = "BLENDER_WORKBENCH"
for subset, offset in ((False, 0), (True, 2)):
    if hasattr(scene.cycles, "use_sample_subset"):
        scene.cycles.use_sample_subset = subset
    scene.cycles.sample_offset = offset
    results["pixels"].append(int((bl.render(("instance",))["instance"] > 0).sum()))

engines = scene.render.bl_rna.properties["engine"].enum_items.keys()
scene.render.engine = next(name for name in ("BLENDER_EEVEE_NEXT", "BLENDER_EEVEE") if name in engines)
samples = "taa_render_samples"
setattr(scene.eevee, samples, 1)
bpy.data.objects.remove(cube)
for near, far in ((0.1, 100), (0.1, 500), (0.1, 3000), (0.01, 500), (0.001, 1000)):
    scene.camera.data.clip_start, scene.camera.data.clip_end = near, far
    results["background"].append(bool(np.isposinf(bl.render(("depth",))["depth"]).all()))
(OUT / "results.json").write_text(json.dumps(results))
"""

CUBES = """
import runpy
from asyncblend.blender.serving import serve
from asyncblend.blender.serving.task import make_task

served = []
serve.attach(served.append)
sys.argv = ["falling_cubes.py", *"--width 16 --height 12 --samples 1 --cubes 2 --frames 260".split()]
folder = pathlib.Path(serve.__file__).parents[3] / "blender_scripts"
try:
    runpy.run_path(str(folder / "falling_cubes.py"), run_name="__main__")
except SystemExit:
    pass
actions = []
for index in range(3):
    next(served[0](make_task(index, 0, 0, {})))
    actions.append(len(bpy.data.actions))
(OUT / "results.json").write_text(json.dumps([actions, bpy.context.scene.rigidbody_world.point_cache.frame_end]))
"""


@pytest.mark.slow
@pytest.mark.exhaustive
def test_ids_and_background(in_blender: Callable[[str], Path]) -> None:
    """Ids are those of the first sample, which Cycles may have to leave out; EEVEE's background is infinitely far away."""
    results: dict[str, Any] = json.loads((in_blender(SETTINGS) / "results.json").read_text())
    first, *others = results["pixels"]
    assert 10 < first < 200
    assert all(abs(pixels - first) <= 12 for pixels in others)  # Cycles' own ids are of a sample anywhere in the pixel
    assert others[0] == others[1]
    assert all(results["background"])


@pytest.mark.slow
@pytest.mark.exhaustive
def test_long_falls_and_many_samples(in_blender: Callable[[str], Path]) -> None:
    """No sample leaves an action behind, and the simulation is as long as the episode."""
    actions, end = json.loads((in_blender(CUBES) / "results.json").read_text())
    assert actions == [actions[0]] * 3
    assert end == 262
