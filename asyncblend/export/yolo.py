"""YOLO: images, a text file of labels for each, and `data.yaml`, as ultralytics' trainer reads them.

    yolo detect train data=FOLDER/data.yaml model=yolo11n.pt

A line of a text file is an object: its class, counted from 0 in the order of `class_id`, and then, as shares of the
image's width and height,

    detect     the middle, width and height of the box around its visible pixels
    segment    the corners of the outline of its visible pixels; parts and holes are joined by lines of no width
    pose       the box as in detect, and x y v of each keypoint, with COCO's visibility

All classes have as many keypoints in `pose`, because the format asks for it: the missing ones are 0 0 0, and so are all
of an object that has none. `flip_idx` is not written, because nothing says which keypoints change places in a mirror:
ultralytics then mirrors no images.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import ConfigError
from .categories import Categories
from .images import image_file, write_new
from .labels import check_labels, check_size, row_of
from .outline import outline_of
from .plan import Plan, Report

Array = np.ndarray[Any, Any]

_NEEDED = ("image", "instance", "id", "class_id", "class_name")


def write_yolo(items: Iterable[Mapping[str, Any]], folder: Path, plan: Plan) -> Report:
    """Write `data.yaml`, `images/` and `labels/` into an empty folder.

    Raises:
        ConfigError: A sample lacks a label, or has it in a wrong form; there is no sample; no object has a keypoint,
            for the task "pose".
    """
    report, categories = Report(entry="data.yaml"), Categories()
    needed = (*_NEEDED, "keypoints") if plan.task == "pose" else _NEEDED
    for split in plan.splits:
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
    # The labels wait on the disk, because only the last sample tells how many classes and keypoints there are.
    with tempfile.TemporaryFile("w+", encoding="ascii", dir=folder) as waiting:
        for item in items:
            index, split = int(item["index"]), plan.split_of(int(item["index"]))
            check_labels(item, needed, f"YOLO's task {plan.task}")
            image = image_file(item)
            check_size(item, "instance", image.size)
            write_new(folder / "images" / split / f"{index:09d}{image.suffix}", image.data, index)
            report.add_image(split)
            objects = []
            for row, number in enumerate(item["id"].tolist()):
                if not (seen := item["instance"] == number).any():
                    report.hidden += 1
                    continue
                report.objects += 1
                points = row_of(item, "keypoints", row, 3) if plan.task == "pose" else None
                objects.append((categories.add(item, row, points), *_label(seen, points, plan.task)))
            waiting.write(json.dumps([f"{split}/{index:09d}.txt", objects]) + "\n")
        report.check(plan)
        report.classes, report.notes = categories.counts(), categories.notes
        found = categories.finish()
        own = [len(category.get("keypoints", ())) for category in found]
        keypoints = max(own, default=0) if plan.task == "pose" else 0
        if plan.task == "pose" and not keypoints:
            raise ConfigError(
                f"none of the {report.objects} objects has a keypoint, which YOLO's task pose needs: give them to "
                f"bl.annotate(objects, keypoints); then record, or export, again"
            )
        place = {category["id"]: number for number, category in enumerate(found)}
        waiting.seek(0)
        for line in waiting:
            name, objects = json.loads(line)
            lines = [
                " ".join(map(str, (place[categories.id_of(number)], *shape, *_padded(points, 3 * keypoints))))
                for number, shape, points in objects
            ]
            (folder / "labels" / name).write_text("".join(f"{line}\n" for line in lines), encoding="ascii")
            report.keypoints += sum(v > 0 for *_, points in objects for v in points[2::3])
    with open(folder / "data.yaml", "w", encoding="ascii") as file:
        _write_yaml(file, plan, [category["name"] for category in found], keypoints)
        file.flush()
        os.fsync(file.fileno())
    if not plan.val:
        report.notes.append("there is no split val, so data.yaml names the training images for it, too: try --val 0.1")
    return report


def _label(seen: Array, points: Array | None, task: str) -> tuple[list[float], list[float]]:
    """Return an object's box or outline, and its keypoints if there are any, as shares of the image."""
    size = np.array(seen.shape[::-1])
    if task == "segment":
        return _rounded(outline_of(seen) / size), []
    columns, rows = np.flatnonzero(seen.any(axis=0)), np.flatnonzero(seen.any(axis=1))
    low, high = np.array([columns[0], rows[0]]), np.array([columns[-1], rows[-1]]) + 1
    box = _rounded(np.concatenate([(low + high) / 2 / size, (high - low) / size]))
    if points is None:
        return box, []
    points = points.astype(np.float64)
    points[points[:, 2] <= 0] = 0  # ultralytics refuses what lies outside the image
    points[:, :2] /= size
    return box, [value if place % 3 < 2 else int(value) for place, value in enumerate(_rounded(points))]


def _rounded(shares: Array) -> list[float]:
    return np.round(shares.ravel(), 6).tolist()  # type: ignore[no-any-return]


def _padded(points: list[float], length: int) -> list[float]:
    return points[:length] + [0] * (length - len(points))


def _write_yaml(file: IO[str], plan: Plan, names: list[str], keypoints: int) -> None:
    """Write what is trained on. Paths are relative to the file."""
    file.write(f"# {_quoted(str(plan.info.get('description', 'exported by asyncblend')))}\n")
    file.write(f"train: images/train\nval: images/{plan.splits[-1]}\n")
    if plan.task == "pose":
        file.write(f"kpt_shape: [{keypoints}, 3]\n")
    file.write("names:" + "".join(f"\n  {number}: {_quoted(name)}" for number, name in enumerate(names)))
    file.write("\n" if names else " {}\n")


def _quoted(text: str) -> str:
    """Return a string as YAML has it, in ASCII. JSON's own escapes have two for what is beyond U+FFFF, and YAML's one."""
    return json.dumps(text, ensure_ascii=False).encode("ascii", "backslashreplace").decode()
