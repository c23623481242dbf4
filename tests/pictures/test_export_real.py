"""Real Blender's labels in each format, straight from a stream: what is read back is what Blender rendered."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools.coco import COCO

import asyncblend as ab
from asyncblend.errors import ConfigError
from asyncblend.export import TASKS, export
from asyncblend.scripts import script

pytestmark = [pytest.mark.blender, pytest.mark.every_kind]

SCRIPT = """
import bpy
import numpy as np
from asyncblend import blender as bl

scene = bpy.context.scene
scene.render.resolution_x, scene.render.resolution_y = 160, 120
scene.render.engine, scene.cycles.samples, scene.cycles.use_denoising = "CYCLES", 1, False
cube, camera = bpy.data.objects["Cube"], bl.Camera()
bpy.ops.mesh.primitive_monkey_add(size=1.5)
monkey = bpy.context.object
bpy.ops.mesh.primitive_cube_add(size=1)
wall = bpy.context.object  # in front of the others
wall.name, wall.scale = "Wall", (0.2, 2.0, 2.5)
cube.scale, monkey.scale = (0.5, 0.9, 0.7), (-1, 1, 1)  # the monkey is mirrored
for number, thing in enumerate((cube, monkey, wall), 1):
    thing["class_id"], thing["class_name"] = number, thing.name.lower()
    bl.randomise.material(thing, np.random.default_rng(number))


def sample(task):
    camera.obj.location = (9, 0, 0.5)
    camera.look_at((0, 0, 0))
    for thing in (cube, monkey):
        thing.location = task.rng.uniform((-1, -3.2, -2), (1, 3.2, 2))
        thing.rotation_euler = task.rng.uniform(-3, 3, 3)
    wall.location = (2, 0.8, 0)
    labels = bl.render(("depth", "instance"))
    found = bl.annotate([cube, monkey, wall], {cube: list(range(8))}, rendered=labels, silhouettes=True)
    models = {thing.name.lower(): bl.mesh_of(thing) for thing in (cube, monkey, wall)}
    view = {"K": camera.K, "world_to_camera": camera.world_to_camera, "models": models}
    return {**labels, **found, **view}


bl.serve(sample)
"""


@pytest.fixture
def config(real: Any, tmp_path: Path) -> ab.StreamConfig:
    """Six samples of a cube, a mirrored monkey and a wall that hides some of them. Some reach out of the image."""
    (tmp_path / "scene.py").write_text(SCRIPT)
    return ab.StreamConfig(script=tmp_path / "scene.py", blender=real.blender, instances=1, length=6, ordered=True)


def read(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as image:
        return np.asarray(image).copy()


def test_every_format_from_one_stream(config: ab.StreamConfig, tmp_path: Path) -> None:
    """Poses, models, masks, boxes, keypoints and depths in the files are those of the frames, by reprojection."""
    with ab.BlenderStream(config).sync() as frames:
        samples = list(frames)
    for name in ("bop", "parquet"):
        report = export(samples, tmp_path / name, name, val=0.2)
        assert report.splits["val"] == 2
        assert not report.notes
    for task in ("detect", "segment", "pose"):
        export(samples, tmp_path / task, "yolo", val=0.2, task=task)
    models = {number: vertices_of(tmp_path / "bop" / "models" / f"obj_{number:06d}.ply") for number in (1, 2, 3)}
    assert np.ptp(models[1], axis=0) == pytest.approx([1000, 1800, 1400])
    info = json.loads((tmp_path / "bop" / "models" / "models_info.json").read_text())
    assert info["1"]["diameter"] == pytest.approx(np.linalg.norm([1000, 1800, 1400]))

    occluded = truncated = 0
    for frame in samples:
        split = next(
            split for split in ("train", "val") if (tmp_path / f"detect/labels/{split}/{frame.index:09d}.txt").exists()
        )
        scene = tmp_path / "bop" / split / "000000"
        poses, infos, cameras = (
            json.loads((scene / f"scene_{name}.json").read_text())[str(frame.index)]
            for name in ("gt", "gt_info", "camera")
        )
        depth = read(scene / "depth" / f"{frame.index:06d}.png") * cameras["depth_scale"] / 1000
        expected = np.where(np.isfinite(frame["depth"]), frame["depth"], 0)
        assert abs(depth - expected).max() <= cameras["depth_scale"] / 1000
        K = np.reshape(cameras["cam_K"], (3, 3))
        for number, (pose, one) in enumerate(zip(poses, infos, strict=True)):
            rotation = np.reshape(pose["cam_R_m2c"], (3, 3))
            assert np.linalg.det(rotation) == pytest.approx(1)
            points = models[pose["obj_id"]] @ rotation.T + pose["cam_t_m2c"]
            x, y, z = (points @ K.T).T
            if one[
                "px_count_visib"
            ]:  # the outermost pixels' centres are in the outline, and less than two pixels from it
                left, top, width, height = one["bbox_obj"]
                beyond = [
                    left - (x / z).min(),
                    top - (y / z).min(),
                    (x / z).max() - left - width,
                    (y / z).max() - top - height,
                ]
                assert all(-0.01 < more < 2 for more in beyond)
            whole, seen = (
                read(scene / kind / f"{frame.index:06d}_{number:06d}.png") > 0 for kind in ("mask", "mask_visib")
            )
            assert not (seen & ~whole).any()
            assert seen.sum() == one["px_count_visib"]
            # A render samples a pixel at a random place: a few that are seen at the outline are not counted in all.
            assert whole.sum() <= 1.03 * one["px_count_all"]
            row = frame["class_id"].tolist().index(pose["obj_id"])
            assert one["visib_fract"] == pytest.approx(frame["visible_fraction"][row], abs=1e-5)
            near = points[:, 2].min() / 1000
            assert near - 0.01 <= depth[seen].min(initial=np.inf)
            occluded += 0 < one["px_count_visib"] < 0.9 * whole.sum()
            truncated += whole.sum() < 0.9 * one["px_count_all"]
    assert occluded
    assert truncated


@pytest.mark.exhaustive
def test_shapes_in_every_format(real: Any, tmp_path: Path) -> None:
    """Masks, boxes and keypoints of shapes.py are in each file as they are in the frames."""
    options = ["--labels", "bop", "--width", "160", "--height", "120", "--samples", "1"]
    config = ab.StreamConfig(
        script=script("shapes.py"), script_args=options, blender=real.blender, instances=1, length=2, ordered=True
    )
    with ab.BlenderStream(config).sync() as frames:
        samples = list(frames)
    for name in ("bop", "coco", "parquet"):
        export(samples, tmp_path / name, name)
    for task in TASKS:
        export(samples, tmp_path / task, "yolo", task=task)
    coco = COCO(str(tmp_path / "coco" / "annotations.json"))
    rows = pq.read_table(tmp_path / "parquet" / "data" / "train-00000-of-00001.parquet").to_pylist()
    infos = json.loads((tmp_path / "bop" / "train" / "000000" / "scene_gt_info.json").read_text())
    for frame, row in zip(samples, rows, strict=True):
        visible = [number for number, box in enumerate(frame["bbox"]) if box[2]]
        ids = frame["id"][visible]
        masks = [coco.annToMask(annotation) > 0 for annotation in coco.imgToAnns[frame.index]]
        for mask, number in zip(masks, ids, strict=True):
            np.testing.assert_array_equal(mask, frame["instance"] == number)
        assert row["bbox"] == frame["bbox"].tolist()
        with Image.open(io.BytesIO(row["depth"]["bytes"])) as depth:
            np.testing.assert_array_equal(np.asarray(depth), frame["depth"])
        assert sum(info["px_count_visib"] > 0 for info in infos[str(frame.index)]) == len(visible)
        name = f"labels/train/{frame.index:09d}.txt"
        lines = {task: [line.split() for line in (tmp_path / task / name).read_text().splitlines()] for task in TASKS}
        for task in TASKS:
            assert [int(line[0]) for line in lines[task]] == (frame["class_id"][visible] - 1).tolist()
        boxes = np.array([line[1:5] for line in lines["detect"]], float) * (160, 120, 160, 120)
        np.testing.assert_allclose(boxes[:, :2] - boxes[:, 2:] / 2, frame["bbox"][visible, :2], atol=1e-3)
        points = np.array([line[5:] for line in lines["pose"]], float).reshape(len(visible), -1, 3) * (160, 120, 1)
        np.testing.assert_allclose(points, frame["keypoints"][visible], atol=1e-3)
        outlines = [np.reshape(np.array(line[1:], float), (-1, 2)) * (160, 120) for line in lines["segment"]]
        found = [[*low, *(high - low)] for low, high in ((one.min(axis=0), one.max(axis=0)) for one in outlines)]
        np.testing.assert_allclose(found, frame["bbox"][visible], atol=1e-3)


@pytest.mark.exhaustive
def test_an_orthographic_camera_is_no_camera_of_bop(config: ab.StreamConfig, tmp_path: Path) -> None:
    """Its K would put the objects in other places."""
    text = SCRIPT.replace("cube, camera = ", "scene.camera.data.type = 'ORTHO'\ncube, camera = ")
    Path(config.script).write_text(text)
    with (
        ab.BlenderStream(config).sync() as frames,
        pytest.raises(ConfigError, match="BOP knows only perspective cameras"),
    ):
        export(frames, tmp_path / "bop", "bop")


def vertices_of(path: Path) -> np.ndarray[Any, Any]:
    """Return the vertices of a PLY file, V x 3."""
    header, _, body = path.read_text().partition("end_header\n")
    count = int(header.partition("element vertex ")[2].split()[0])
    return np.loadtxt(io.StringIO("".join(body.splitlines(keepends=True)[:count])))[:, :3]
