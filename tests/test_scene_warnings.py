"""What is wrong in a scene reaches the training program's log; and Python in .blend files, executed or not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import asyncblend as ab

pytestmark = pytest.mark.blender

Write = Callable[..., Path]

MAKE = """
import bpy, sys
cube = bpy.data.objects["Cube"]
cube.driver_add("location", 0).driver.expression = "frame * 3.0 + len(bpy.data.cameras) + 1"  # `bpy` makes it unsafe
text = bpy.data.texts.new("register.py")
text.use_module = True
text.write("import bpy; bpy.app.driver_namespace['registered'] = True")
bpy.ops.wm.save_as_mainfile(filepath=sys.argv[1])
def sample(task): return {}
"""

LOOK = """
import bpy, sys
if sys.argv[1:]:
    bpy.ops.wm.read_factory_settings()
    bpy.app.driver_namespace.clear()
    bpy.ops.wm.open_mainfile(filepath=sys.argv[1], load_ui=False)
def sample(task):
    bpy.context.scene.frame_set(4)
    graph = bpy.context.evaluated_depsgraph_get()
    return {
        "x": bpy.data.objects["Cube"].evaluated_get(graph).matrix_world.translation.x,
        "registered": "registered" in bpy.app.driver_namespace,
    }
"""


async def run(**options: Any) -> list[ab.Frame]:
    """Return all frames of a stream with these options."""
    async with asyncio.timeout(200), ab.BlenderStream(**options) as stream:
        return [frame async for frame in stream]


@pytest.fixture
async def driven(real: Any, write_script: Write, tmp_path: Path) -> Path:
    """Return a scene with a driver and a text block that need Python."""
    path = tmp_path / "driven.blend"
    make = write_script(MAKE, name="make.py")
    await run(script=make, script_args=[str(path)], blender=real.blender, instances=1, length=1)
    return path


@pytest.mark.every_kind
@pytest.mark.exhaustive
@pytest.mark.slow
async def test_python_in_a_scene_is_executed_unless_it_is_forbidden(
    real: Any, write_script: Write, driven: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The driver says 3 x 4 + 2. Where it is not executed, the log says so, once for all instances."""
    options: dict[str, Any] = {"blender": real.blender, "length": 6}
    look = write_script(LOOK)
    (frame, *_) = await run(script=look, scene=driven, instances=1, **options)
    assert (frame["x"], frame["registered"]) == (14, True)
    (frame, *_) = await run(script=look, script_args=[str(driven)], instances=1, **options)
    assert (frame["x"], frame["registered"]) == (14, True), "a file that the script opens"
    assert not caplog.records
    frames = await run(script=look, scene=driven, instances=2, autoexec=False, **options)
    assert {(frame["x"], frame["registered"]) for frame in frames} == {(0, False)}
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("asyncblend", logging.WARNING)
    for words in ("did not execute", "frame * 3.0", "autoexec=True"):
        assert words in record.getMessage()


async def test_a_missing_file_is_logged_once(
    real: Any, write_script: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log of the program names it, whichever instance found it first."""
    script = write_script(f"""
import bpy
image = bpy.data.images.new("wood", 8, 8)
image.filepath_raw, image.file_format = {str(tmp_path / "wood.png")!r}, "PNG"
image.save()
image = bpy.data.images.load({str(tmp_path / "wood.png")!r})
bpy.data.objects["Cube"].data.materials[0].node_tree.nodes.new("ShaderNodeTexImage").image = image
image.filepath = {str(tmp_path / "gone.png")!r}
def sample(task): return {{}}
""")
    async with asyncio.timeout(200), ab.BlenderStream(script=script, blender=real.blender, instances=2) as stream:
        found: set[int] = set()
        async for frame in stream:
            found.add(frame.instance)
            if found == {0, 1}:  # both have said what they found
                break
    (record,) = caplog.records
    assert record.getMessage().startswith(f"Missing image files: 'wood.png' ({tmp_path}/gone.png). What shows them")
