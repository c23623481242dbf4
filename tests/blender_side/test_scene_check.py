"""What `scene_warnings` finds in .blend files whose images, libraries, fonts and volumes are there, and then are gone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.blender

FONT = f"{mpl.get_data_path()}/fonts/ttf/DejaVuSans.ttf"

SCRIPT = f"""
import contextlib, io, os, shutil, tempfile
from asyncblend import blender as bl
from asyncblend.blender.serving.scene_check import scene_warnings

FONT, results, data = {FONT!r}, {{"version": list(bpy.app.version)}}, bpy.data
own = OUT / "own"
own.mkdir()
tempfile.tempdir = str(own)  # as for a Blender of a fleet, each of which has a folder of its own

def main(path=OUT / "main.blend", save=False):
    if save:
        bpy.ops.wm.save_as_mainfile(filepath=str(path))
    bpy.ops.wm.open_mainfile(filepath=str(path), load_ui=False)

def picture(name):
    image = data.images.new("made", 8, 8)
    image.filepath_raw, image.file_format = str(OUT / name), "PNG"
    image.save()
    data.images.remove(image)

results["factory"] = scene_warnings()

# a library, which links from a second one in another folder, by relative paths
(OUT / "deep").mkdir()
data.objects["Cube"].name = "Deep"
main(OUT / "deep" / "second.blend", save=True)
bpy.ops.wm.read_factory_settings()
def link(path, name):
    with data.libraries.load(str(path), link=True) as (_, into):
        into.objects = [name]
    bpy.context.scene.collection.objects.link(into.objects[0])
data.objects["Cube"].name = "First"
data.objects["Camera"].name = "Another camera"
link(OUT / "deep" / "second.blend", "Deep")
data.objects["Deep"].parent = None
holder = data.collections.new("holder")
holder.objects.link(data.objects["Deep"])
holder.use_fake_user = True
main(OUT / "deep" / "first.blend", save=True)
bpy.ops.file.make_paths_relative()
bpy.ops.wm.save_mainfile()

# the scene
bpy.ops.wm.read_factory_settings()
main(save=True)  # so that paths can be relative
with data.libraries.load(str(OUT / "deep" / "first.blend"), link=True) as (_, into):
    into.objects, into.collections = ["First", "Another camera"], ["holder"]
for obj in into.objects:
    bpy.context.scene.collection.objects.link(obj)
bpy.context.scene.collection.children.link(into.collections[0])
for name in ("wood.png", "packed.png", "spare.png", "tiles.1001.png", "tiles.1002.png", "frames_003.png"):
    picture(name)
for name in ("wood.png", "packed.png", "spare.png", "tiles.1001.png", "frames_003.png"):
    image = data.images.load(str(OUT / name))
    if name == "spare.png":
        image.use_fake_user = True  # used by nothing else
        continue
    if name == "packed.png":
        image.pack()
    if name.startswith("tiles"):
        image.source = "TILED"
        image.filepath = str(OUT / "tiles.<UDIM>.png")
    if name.startswith("frames"):
        image.source = "SEQUENCE"
        image.filepath = str(OUT / "frames_001.png")  # the first frames are not rendered
    material = data.materials.new(name)
    material.use_fake_user = True
    if material.node_tree is None:
        material.use_nodes = True
    material.node_tree.nodes.new("ShaderNodeTexImage").image = image
shutil.copy(FONT, OUT / "letters.ttf")
text = data.curves.new("text", "FONT")
text.font = data.fonts.load(str(OUT / "letters.ttf"))
smoke = data.volumes.new("smoke")
(OUT / "smoke.vdb").write_bytes(b"")
smoke.filepath = str(OUT / "smoke.vdb")
for name, what in (("text", text), ("smoke", smoke), ("plain", data.curves.new("plain", "FONT"))):
    bpy.context.scene.collection.objects.link(data.objects.new(name, what))
main(save=True)
bpy.ops.file.make_paths_relative()
bpy.ops.wm.save_mainfile()
main()
results["names"] = sorted(one.name for one in (*data.images, *data.libraries, *data.fonts) if one.name != "Render Result")
results["all there"] = scene_warnings()

def without(name, *paths):
    for path in paths:
        os.rename(OUT / path, OUT / f"{{path}}.away")
    main()
    results[name] = scene_warnings()
    for path in paths:
        os.rename(OUT / f"{{path}}.away", OUT / path)

without("some", "wood.png", "packed.png", "spare.png", "letters.ttf", "smoke.vdb", "deep/first.blend")
without("indirect", "deep/second.blend")
without("several files", "frames_003.png", "tiles.1001.png", "tiles.1002.png")
without("one tile", "tiles.1001.png")

# many at once
main()
for i in range(40):
    image = data.images.load(str(OUT / "wood.png"))
    image.name, image.use_fake_user = f"number {{i}} \\u2603\\n", False
    image.filepath = "//" + 220 * "\\u2603" + f"\\x1b{{i}}.png"
    material = data.materials.new(str(i))
    material.use_fake_user = True
    if material.node_tree is None:
        material.use_nodes = True
    material.node_tree.nodes.new("ShaderNodeTexImage").image = image
main(OUT / "many.blend", save=True)
results["many"] = scene_warnings()

# a library that has lost an object
os.rename(OUT / "deep/first.blend", OUT / "deep/full.blend")
main(OUT / "deep/full.blend")
data.objects["First"].name = "Renamed"
main(OUT / "deep/first.blend", save=True)
main()
results["renamed"] = scene_warnings()

# nodes that write files
bpy.ops.wm.read_factory_settings()
scene = bpy.context.scene
if hasattr(scene, "compositing_node_group"):
    tree = scene.compositing_node_group = data.node_groups.new("Compositing", "CompositorNodeTree")
    attribute = "directory"
else:
    scene.use_nodes = True
    tree, attribute = scene.node_tree, "base_path"
group = data.node_groups.new("group", "CompositorNodeTree")
tree.nodes.new("CompositorNodeGroup").node_tree = group
inner, outer = group.nodes.new("CompositorNodeOutputFile"), tree.nodes.new("CompositorNodeOutputFile")
inner.name, outer.name = "Inner", "Outer"
setattr(inner, attribute, str(OUT / "written"))
setattr(outer, attribute, "/proc/nowhere")
outputs = results["outputs"] = {{"attribute": attribute, "both": scene_warnings()}}
outer.mute = True
outputs["one"] = scene_warnings()
setattr(inner, attribute, tempfile.mkdtemp())
outputs["own"] = scene_warnings()
outer.mute = False
scene.render.use_compositing = False
outputs["off"] = scene_warnings()

# without a host, the same is printed
scene.render.use_compositing = True
with contextlib.redirect_stderr(io.StringIO()) as said:
    bl.serve(lambda task: {{}})
outputs["said"] = said.getvalue()

results["out"] = str(OUT)
(OUT / "results.json").write_text(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(in_blender: Callable[[str], Path]) -> dict[str, Any]:
    return dict(json.loads((in_blender(SCRIPT) / "results.json").read_text()))


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_sound_scene_is_silent(results: dict[str, Any]) -> None:
    """Files that are there, that are packed, and that are several under one name are no defects."""
    assert {"wood.png", "packed.png", "first.blend", "second.blend", "DejaVu Sans Book"} <= set(results["names"])
    assert results["factory"] == results["all there"] == []


def test_missing_files_are_named(results: dict[str, Any]) -> None:
    """One text for each kind names what it was and where; what is packed or not used is not missed."""
    out, texts = results["out"], results["some"]
    libraries, images, fonts, volumes = texts
    assert libraries.startswith(f"Missing library files: 'first.blend' ({out}/deep/first.blend). What is linked")
    assert images.startswith(f"Missing image files: 'wood.png' ({out}/wood.png). What shows them is magenta")
    assert f"({out}/letters.ttf)" in fonts
    assert volumes.startswith(f"Missing volume files: 'smoke' ({out}/smoke.vdb)")
    assert all("pack the files into it" in text for text in texts)


def test_a_library_of_a_library_is_found_beside_it(results: dict[str, Any]) -> None:
    (text,) = results["indirect"]
    assert f"'second.blend' ({results['out']}/deep/second.blend)" in text


def test_images_of_several_files(results: dict[str, Any]) -> None:
    """They are missing if none of their files is there."""
    (text,) = results["several files"]
    assert "tiles.<UDIM>.png" in text
    assert "frames_001.png" in text
    assert results["one tile"] == []


def test_a_text_is_short_and_printable(results: dict[str, Any]) -> None:
    """It may be long in a path, and travels as JSON, where one character may take many bytes."""
    (text,) = results["many"]
    assert text.startswith("Missing image files: 'number 0 \u2603\\n' (")
    assert text.endswith(" [...]")
    assert r"\x1b0.png" in text
    assert text.isprintable()
    assert 5_000 < len(json.dumps(text)) < 7_000


def test_what_a_library_has_lost(results: dict[str, Any]) -> None:
    """Blender 3.4 does not tell."""
    told = results["version"] >= [4, 0, 0]
    assert [text.partition(". ")[0] for text in results["renamed"]] == told * [
        f"Missing from their libraries: object 'First' ({results['out']}/deep/first.blend)"
    ]


def test_nodes_that_write_files(results: dict[str, Any]) -> None:
    """Not those that are muted, that write into a folder of this Blender alone, or whose compositor is off."""
    out, outputs = results["out"], results["outputs"]
    (both,), (one,) = outputs["both"], outputs["one"]
    assert f"'Inner' ({out}/written)" in both
    assert "'Outer' (/proc/nowhere)" in both
    assert f"node.{outputs['attribute']} = tempfile.mkdtemp()" in both
    assert "'Outer'" not in one
    assert outputs["own"] == outputs["off"] == []


def test_without_a_host_it_is_printed(results: dict[str, Any]) -> None:
    assert "asyncblend: warning: File Output nodes" in results["outputs"]["said"]
    assert "'Outer' (/proc/nowhere)" in results["outputs"]["said"]
