"""blender_scripts/model.py in one Blender for long: nothing grows from sample to sample."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.blender

SAMPLES = 100

SCRIPT = """
import runpy
from asyncblend.blender.serving import serve
from asyncblend.blender.serving.task import make_task

bpy.ops.wm.read_factory_settings()
bpy.ops.mesh.primitive_monkey_add(size=0.2)
monkey = bpy.context.object
for other in list(bpy.data.objects):
    if other != monkey:
        bpy.data.objects.remove(other)
bpy.ops.wm.save_as_mainfile(filepath=str(OUT / "monkey.blend"))
bpy.ops.wm.read_factory_settings()
(OUT / "skies").mkdir()
for number in range(3):
    image = bpy.data.images.new("Sky", 16, 8)
    image.filepath_raw, image.file_format = str(OUT / "skies" / f"{number}.png"), "PNG"
    image.save()
    bpy.data.images.remove(image)

served = []
serve.attach(served.append)
sys.argv = ["model.py", str(OUT / "monkey.blend"), *"--width 16 --height 12 --samples 1 --materials mixed --physics".split()]
sys.argv += ["--hdris", str(OUT / "skies"), "--backgrounds", str(OUT / "skies")]
folder = pathlib.Path(serve.__file__).parents[3] / "blender_scripts"
sys.path.insert(0, str(folder))
try:
    runpy.run_path(str(folder / "model.py"), run_name="__main__")
except SystemExit:
    pass
counts = []
for index in range(SAMPLES):
    served[0](make_task(index, 0, 0, {}))
    nodes = sum(len(block.node_tree.nodes) for block in (*bpy.data.worlds, *bpy.data.materials) if block.node_tree)
    counts.append([len(bpy.data.user_map()), nodes])
(OUT / "counts.json").write_text(json.dumps(counts))
"""


@pytest.mark.slow
@pytest.mark.exhaustive
def test_nothing_grows(in_blender: Callable[[str], Path]) -> None:
    """After every object had its material once, no data block and no node is added by any further sample."""
    counts = json.loads((in_blender(SCRIPT.replace("SAMPLES", str(SAMPLES))) / "counts.json").read_text())
    assert len(counts) == SAMPLES
    assert counts[20:] == [counts[20]] * (SAMPLES - 20)
