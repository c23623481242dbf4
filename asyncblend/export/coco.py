"""COCO: instances and keypoints, as JSON and images, for pycocotools and all tools that read its files.

Without validation samples there are `annotations.json` and `images/`. With them there are, as COCO itself has them,
`annotations/instances_train.json` beside the images in `train/`, and the same for `val`; both have the same categories.

Each annotated object has its box and area, its mask as compressed RLE, its keypoints, and two more fields,
`visible_fraction` and `truncated`. A class is a category whose id is its `class_id`. Objects without a class are in a
category "object", whose id follows the last class's. Boxes are those of the masks. Coordinates are rounded to a
thousandth of a pixel. An image's id is the sample's index. Annotations count from 1, because pycocotools takes an id of
0 for none.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import ConfigError
from .categories import Categories
from .images import image_file, write_new
from .labels import check_labels, check_size, row_of
from .plan import Plan, Report

_NEEDED = ("image", "instance", "id", "class_id", "class_name")


def write_coco(items: Iterable[Mapping[str, Any]], folder: Path, plan: Plan) -> Report:
    """Write the JSON files and the images into an empty folder.

    A sample may also have "keypoint_names", a list of strings, and "skeleton", pairs of keypoints counted from 1. Both
    may be dicts by class name, and both go into the categories. Without names, a class has as many keypoints as one of
    its objects ever had, not counting zeros at the end.

    A sample from a recording has its image's file, which is copied and not encoded again.

    Raises:
        ConfigError: A sample lacks a label, or has it in a wrong form; there is no sample; pycocotools is missing.
    """
    try:
        from pycocotools import mask as masks
    except ImportError as error:
        raise ConfigError(f'the format coco needs pycocotools: pip install "asyncblend[coco]" ({error})') from None
    report, categories = Report(entry="annotations" if plan.val else "annotations.json"), Categories()
    with contextlib.ExitStack() as stack:
        parts = {split: stack.enter_context(_opened(folder, split, plan)) for split in plan.splits}
        for item in items:
            index, split = int(item["index"]), plan.split_of(int(item["index"]))
            check_labels(item, _NEEDED, "COCO")
            part, size = parts[split], parts[split].add_image(item, index)
            check_size(item, "instance", size)
            report.add_image(split)
            ids = np.asfortranarray(item["instance"])
            for row, number in enumerate(item["id"].tolist()):
                annotation = _annotation(item, row, ids == number, masks)
                if annotation is None:
                    report.hidden += 1
                    continue
                report.objects += 1
                category = categories.add(item, row, row_of(item, "keypoints", row, 3))
                part.add_annotation({"image_id": index, "category_id": category, **annotation})
        report.check(plan)
        report.classes, report.notes = categories.counts(), categories.notes
        for part in parts.values():
            part.finish(categories, report)
    return report


@contextlib.contextmanager
def _opened(folder: Path, split: str, plan: Plan) -> Iterator[_Part]:
    """Open the files of a split."""
    images = folder / (split if plan.val else "images")
    images.mkdir()
    labels = folder / (f"annotations/instances_{split}.json" if plan.val else "annotations.json")
    labels.parent.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryFile("w+", encoding="ascii", dir=folder) as waiting,
        open(labels, "w", encoding="ascii") as file,
    ):
        file.write(f'{{"info": {json.dumps(dict(plan.info))},\n"licenses": [],\n"images": [')
        yield _Part(images, "" if plan.val else "images/", file, waiting)


class _Part:
    """A JSON file and its images. Annotations wait on the disk: the last sample tells how many keypoints they have."""

    def __init__(self, images: Path, prefix: str, file: IO[str], waiting: IO[str]) -> None:
        self._images, self._prefix, self._file, self._waiting = images, prefix, file, waiting
        self._first, self._objects = True, 0

    def add_image(self, item: Mapping[str, Any], index: int) -> tuple[int, int]:
        """Write an image, and return its height and width."""
        image = image_file(item)
        write_new(self._images / f"{index:09d}{image.suffix}", image.data, index)
        height, width = image.size
        entry = {"id": index, "file_name": f"{self._prefix}{index:09d}{image.suffix}", "width": width, "height": height}
        _write_line(self._file, entry, first=self._first)
        self._first = False
        return image.size

    def add_annotation(self, annotation: dict[str, Any]) -> None:
        """Keep an annotation until the categories are known, and give it its id."""
        self._objects += 1
        self._waiting.write(json.dumps({"id": self._objects, **annotation}, allow_nan=False) + "\n")

    def finish(self, categories: Categories, report: Report) -> None:
        """Write the categories and the annotations, and all of it to the disk."""
        self._file.write(f'],\n"categories": {json.dumps(categories.finish())},\n"annotations": [')
        self._waiting.seek(0)
        for number, line in enumerate(self._waiting):
            _write_line(self._file, _finished(json.loads(line), categories, report), first=number == 0)
        self._file.write("]}\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _write_line(file: IO[str], value: Any, *, first: bool) -> None:
    """Write an element of a JSON list as a line of its own."""
    file.write(("\n" if first else ",\n") + json.dumps(value, separators=(",", ":"), allow_nan=False))


def _finished(annotation: dict[str, Any], categories: Categories, report: Report) -> dict[str, Any]:
    """Return an annotation with its category's final id and number of keypoints, and count its keypoints."""
    category = annotation["category_id"]
    annotation["category_id"] = categories.id_of(category)
    count = categories.keypoints_of(category)
    points = annotation.pop("keypoints", [])[: 3 * count]
    if count:
        points += [0] * (3 * count - len(points))
        annotation["keypoints"] = points
        annotation["num_keypoints"] = sum(visibility > 0 for visibility in points[2::3])
        report.keypoints += annotation["num_keypoints"]
    return annotation


def _annotation(item: Mapping[str, Any], row: int, seen: np.ndarray[Any, Any], masks: Any) -> dict[str, Any] | None:
    """Return an object's annotation without its ids. None if no pixel of the object is visible."""
    if not seen.any():
        return None
    encoded = masks.encode(seen.view(np.uint8))
    annotation: dict[str, Any] = {
        "bbox": masks.toBbox(encoded).tolist(),
        "area": int(masks.area(encoded)),
        "segmentation": {"size": list(seen.shape), "counts": encoded["counts"].decode("ascii")},
        "iscrowd": 0,
    }
    if (visible := row_of(item, "visible_fraction", row, 1)) is not None:
        annotation["visible_fraction"] = round(float(visible), 4)
    if (truncated := row_of(item, "truncated", row, 1)) is not None:
        annotation["truncated"] = bool(truncated)
    if (points := row_of(item, "keypoints", row, 3)) is not None:
        rounded = np.round(points.astype(np.float64), 3).tolist()
        annotation["keypoints"] = [value for x, y, visibility in rounded for value in (x, y, int(visibility))]
    return annotation
