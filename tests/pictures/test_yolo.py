"""YOLO: ultralytics' own code reads each line, and outlines have exactly the pixels of their masks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from asyncblend.errors import ConfigError
from asyncblend.export import TASKS, export
from asyncblend.export.outline import outline_of

yaml: Any = pytest.importorskip("yaml", reason="pip install pyyaml")

ROOT = Path(__file__).resolve().parents[2]
Scene = Callable[..., dict[str, Any]]
Array = np.ndarray[Any, Any]

# Run by a Python that has ultralytics. Its torchvision may be one whose compiled part does not fit to torch: reading
# labels needs none of that, but importing torchvision wants two of its operators to be declared.
READ = """
import json, sys
try:
    import torchvision
except RuntimeError:
    import torch
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
from ultralytics.cfg import get_cfg
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import check_det_dataset
file, task = sys.argv[1:]
data, found = check_det_dataset(file, autodownload=False), {}
for split in ("train", "val"):
    dataset = YOLODataset(img_path=data[split], data=data, task=task, imgsz=160, augment=False, hyp=get_cfg())
    for label in dataset.labels:
        found[label["im_file"]] = {name: len(label[name]) for name in ("cls", "bboxes", "segments")}
        found[label["im_file"]]["boxes"] = label["bboxes"].tolist()
        found[label["im_file"]]["keypoints"] = None if label["keypoints"] is None else label["keypoints"].tolist()
    assert all(dataset[i]["img"].shape[0] == 3 for i in range(len(dataset)))
print("FOUND", json.dumps({"names": data["names"], "files": found}))
"""


@pytest.fixture
def items(scene: Scene) -> list[dict[str, Any]]:
    return [scene(index, objects=7) for index in range(8)]


def even_odd(polygon: Array, height: int, width: int) -> Array:
    """Return which pixels' centres are in a polygon, by the even-odd rule."""
    y, x = np.mgrid[:height, :width] + 0.5
    inside = np.zeros((height, width), bool)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if y0 != y1:
            inside ^= ((min(y0, y1) <= y) & (y < max(y0, y1))) & (x < x0 + (y - y0) / (y1 - y0) * (x1 - x0))
    return inside


@given(st.integers(1, 9), st.integers(1, 9), st.randoms(use_true_random=False))
def test_an_outline_has_exactly_the_pixels_of_its_mask(height: int, width: int, random: Any) -> None:
    """Several parts, holes, parts in holes, and pixels that touch with a corner alone are in one polygon."""
    mask = np.array([[random.random() < 0.5 for _ in range(width)] for _ in range(height)])
    mask[random.randrange(height), random.randrange(width)] = True
    polygon = outline_of(mask)
    np.testing.assert_array_equal(even_odd(polygon, height, width), mask)
    assert (polygon == polygon.round()).all()


def test_the_outline_of_a_large_ring_takes_little_memory() -> None:
    """Two long lines are joined without a distance for each pair of their corners."""
    y, x = np.mgrid[:1000, :1000] - 500
    mask = abs(np.hypot(x, y) - 450) < 30
    tracemalloc.start()
    try:
        polygon = outline_of(mask)
        assert tracemalloc.get_traced_memory()[1] < 40_000_000
    finally:
        tracemalloc.stop()
    assert len(polygon) > 4000


def lines_of(out: Path) -> dict[int, list[list[float]]]:
    """Return the lines of labels by the samples' indices."""
    return {
        int(path.stem): [[float(word) for word in line.split()] for line in path.read_text().splitlines()]
        for path in out.glob("labels/*/*.txt")
    }


@pytest.mark.parametrize("task", TASKS)
def test_labels_are_those_of_the_samples(task: str, items: list[dict[str, Any]], tmp_path: Path) -> None:
    """Each visible object has a line, also one that is divided by others, and one without keypoints or a class."""
    report = export(items, tmp_path / "out", "yolo", val=0.3, task=task)
    found = lines_of(tmp_path / "out")
    assert sorted(found) == list(range(8))
    assert report.objects == sum(map(len, found.values()))
    assert report.objects + report.hidden == 8 * 7
    assert (tmp_path / "out" / report.entry).name == "data.yaml"
    for item in items:
        lines = iter(found[item["index"]])
        for row, number in enumerate(item["id"]):
            mask = item["instance"] == number
            if not mask.any():
                continue
            kind, *values = next(lines)
            assert kind == (item["class_id"][row] or 3) - 1
            if task == "segment":
                polygon = np.reshape(values, (-1, 2)) * (160, 120)
                np.testing.assert_array_equal(even_odd(polygon.round(), 120, 160), mask)
                assert abs(polygon - polygon.round()).max() < 1e-3
                continue
            x, y, width, height = np.array(values[:4]) * (160, 120, 160, 120)
            np.testing.assert_allclose([x - width / 2, y - height / 2, width, height], item["bbox"][row], atol=1e-3)
            if task == "pose":
                points = np.reshape(values[4:], (5, 3)) * (160, 120, 1)
                np.testing.assert_allclose(points, item["keypoints"][row], atol=1e-3)
            else:
                assert len(values) == 4
        assert next(lines, None) is None


def python_with_ultralytics() -> str:
    """Return a Python that has ultralytics: the one that the environment names, that of `make loaders`, or this one."""
    made = ROOT / ".venv-load" / "bin" / "python"
    return os.environ.get("ASYNCBLEND_TEST_ULTRALYTICS") or (str(made) if made.exists() else sys.executable)


@pytest.mark.parametrize("task", TASKS)
def test_ultralytics_reads_all_of_it(task: str, items: list[dict[str, Any]], tmp_path: Path) -> None:
    """Its dataset has each image and each object: none is corrupt, and none is dropped."""
    python = python_with_ultralytics()
    known = subprocess.run([python, "-c", "import importlib.util as u; assert u.find_spec('ultralytics')"], check=False)
    if known.returncode:
        pytest.skip("ultralytics is not here: `make loaders` installs it into .venv-load")
    export(items, tmp_path / "out", "yolo", val=0.3, task=task)
    expected = lines_of(tmp_path / "out")
    done = subprocess.run(
        [python, "-c", READ, str(tmp_path / "out" / "data.yaml"), task],
        env={**os.environ, "YOLO_CONFIG_DIR": str(tmp_path), "YOLO_OFFLINE": "True", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.partition("FOUND ")[2].splitlines()[0])
    assert found["names"] == {"0": "ball", "1": "board", "2": "object"}
    assert sorted(int(Path(file).stem) for file in found["files"]) == sorted(expected)
    for file, label in found["files"].items():
        lines = expected[int(Path(file).stem)]
        assert label["cls"] == label["bboxes"] == len(lines)
        assert label["segments"] == (len(lines) if task == "segment" else 0)
        item = items[int(Path(file).stem)]
        visible = [row for row, number in enumerate(item["id"]) if (item["instance"] == number).any()]
        x, y, width, height = np.array(label["boxes"]).T * np.array([[160, 120, 160, 120]]).T
        boxes = np.stack([x - width / 2, y - height / 2, width, height], axis=1)
        np.testing.assert_allclose(boxes, item["bbox"][visible], atol=2e-3)
        if task == "pose":
            points = np.array(label["keypoints"]) * (160, 120, 1)
            np.testing.assert_allclose(points, item["keypoints"][visible], atol=2e-3)


def test_an_image_without_objects_is_a_background(items: list[dict[str, Any]], tmp_path: Path) -> None:
    """It has an empty file of labels."""
    items[3]["instance"][:] = 0
    report = export(items[2:4], tmp_path / "out", "yolo")
    assert lines_of(tmp_path / "out")[3] == []
    assert "no split val" in report.notes[0]
    text = (tmp_path / "out" / "data.yaml").read_text()
    assert "\ntrain: images/train\nval: images/train\n" in text
    with Image.open(tmp_path / "out" / "images" / "train" / "000000003.png") as image:
        np.testing.assert_array_equal(np.asarray(image), items[3]["image"])


@pytest.mark.parametrize("names", [["Tür", 'a "b" \\', "x: #y", "\U0001f600 cube", "\u2028\x85\n"], []], ids=str)
def test_names_are_read_from_the_yaml(names: list[str], items: list[dict[str, Any]], tmp_path: Path) -> None:
    """Whatever characters they have, and also where there is none."""
    item = items[0]
    item["instance"][:] = 0
    item["instance"][0, : len(names)] = item["id"][: len(names)]
    item["class_id"], item["class_name"] = np.arange(1, 8, dtype=np.int32), [*names, *[""] * (7 - len(names))]
    export([item], tmp_path / "out", "yolo", info={"description": "\U0001f600"})
    found = yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())
    assert found["names"] == dict(enumerate(names))


@pytest.mark.parametrize("wrong", [np.zeros(7), np.zeros((7, 5)), np.zeros((3, 5, 3)), [[1.0, 2.0]] * 7, "none"])
def test_keypoints_of_another_form(wrong: Any, items: list[dict[str, Any]], tmp_path: Path) -> None:
    """The tasks that do not read them do not care."""
    items[0]["keypoints"] = wrong
    for task in ("detect", "segment"):
        assert export(items[:1], tmp_path / task, "yolo", task=task).images == 1
    for format, chosen in (("yolo", "pose"), ("coco", None)):
        with pytest.raises(
            ConfigError, match=r"sample 0: 'keypoints' is not as bl\.annotate\(objects, keypoints\) gives"
        ):
            export(items[:1], tmp_path / "out", format, task=chosen)


def test_pose_needs_keypoints(items: list[dict[str, Any]], tmp_path: Path) -> None:
    """The error says what gives them, where samples lack them, and where no object has any."""
    for item in items:
        item["keypoints"] = np.zeros((7, 0, 3), np.float32)
    with pytest.raises(ConfigError, match=r"none of the \d+ objects has a keypoint.*bl.annotate\(objects, keypoints\)"):
        export(items, tmp_path / "out", "yolo", task="pose")
    del items[0]["keypoints"]
    with pytest.raises(ConfigError, match=r"sample 0 has no 'keypoints', which YOLO's task pose needs.*keypoints\)"):
        export(items, tmp_path / "out", "yolo", task="pose")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "yolo", "task": "classify"}, "task must be one of detect, segment, pose; got 'classify'"),
        ({"format": "coco", "task": "pose"}, "task='pose' goes with the format 'yolo'"),
        ({"format": "yolo", "val": 1.0}, "from 0 to less than 1; got 1.0"),
        ({"format": "yolo", "val": float("nan")}, "from 0 to less than 1; got nan"),
        ({"format": "yolo", "val": "0.1"}, "from 0 to less than 1; got '0.1'"),
        ({"format": "coco", "info": {"made": Path()}}, "info is a dict of JSON values.*PosixPath"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str, items: list[dict[str, Any]], tmp_path: Path) -> None:
    """They are told before the first sample is asked for."""
    with pytest.raises(ConfigError, match=message):
        export((pytest.fail("a sample was asked for") for _ in items), tmp_path / "out", **options)
