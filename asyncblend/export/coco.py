"""COCO: instances and keypoints, as `annotations.json` and `images/`, for pycocotools and all tools that read its files.

Each annotated object has its box and area, its mask as compressed RLE, its keypoints, and two more fields,
`visible_fraction` and `truncated`. A class is a category whose id is its `class_id`. Objects without a class are in a
category "object", whose id follows the last class's. Boxes are those of the masks. Coordinates are rounded to a
thousandth of a pixel. An image's id is the sample's index. Annotations count from 1, because pycocotools takes an id of
0 for none.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from ..errors import ConfigError
from .categories import Categories

_ANNOTATE = "bl.annotate(objects)"
# The values that each sample must have, and what gives them.
_SOURCES = {"image": "bl.render()", "instance": 'bl.render(("instance",))'}
_SOURCES |= dict.fromkeys(("id", "class_id", "class_name"), _ANNOTATE)


@dataclass
class Report:
    """What an export wrote, and what it left out."""

    images: int = 0
    objects: int = 0  # with an annotation
    hidden: int = 0  # objects without an annotation, because no pixel of them is visible
    keypoints: int = 0  # inside an image, with the occluded ones
    classes: list[tuple[str, int]] = field(default_factory=list)  # for each class its name and number of objects
    notes: list[str] = field(default_factory=list)  # what the user should know about the labels


def write_coco(items: Iterable[Mapping[str, Any]], folder: Path, info: Mapping[str, Any]) -> Report:
    """Write `annotations.json` and `images/` into an empty folder.

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
    report, categories = Report(), Categories()
    (folder / "images").mkdir()
    # The annotations wait on the disk, because only the last sample tells how many keypoints a category has.
    with (
        tempfile.TemporaryFile("w+", encoding="ascii", dir=folder) as waiting,
        open(folder / "annotations.json", "w", encoding="ascii") as file,
    ):
        file.write(f'{{"info": {json.dumps(dict(info))},\n"licenses": [],\n"images": [')
        for item in items:
            index = int(item["index"])
            _check(item, index)
            name, (height, width) = _save_image(item, index, folder)
            ids = np.asfortranarray(item["instance"])
            if ids.shape != (height, width):
                raise ConfigError(
                    f"sample {index}: the image has {width} x {height} pixels, but `instance` "
                    f"{ids.shape[1]} x {ids.shape[0]}; render both in one call of bl.render"
                )
            image = {"id": index, "file_name": name, "width": width, "height": height}
            _write_line(file, image, first=not report.images)
            report.images += 1
            for row, number in enumerate(item["id"].tolist()):
                annotation = _annotation(item, row, ids == number, masks)
                if annotation is None:
                    report.hidden += 1
                    continue
                report.objects += 1
                ids_of = {"id": report.objects, "image_id": index, "category_id": categories.add(item, row)}
                waiting.write(json.dumps({**ids_of, **annotation}, allow_nan=False) + "\n")
        if not report.images:
            raise ConfigError("there is no sample to export")
        report.classes, report.notes = categories.counts(), categories.notes
        file.write(f'],\n"categories": {json.dumps(categories.finish())},\n"annotations": [')
        waiting.seek(0)
        for number, line in enumerate(waiting):
            _write_line(file, _finished(json.loads(line), categories, report), first=number == 0)
        file.write("]}\n")
        file.flush()
        os.fsync(file.fileno())
    return report


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
    if (visible := _row_of(item, "visible_fraction", row, 1)) is not None:
        annotation["visible_fraction"] = round(float(visible), 4)
    if (truncated := _row_of(item, "truncated", row, 1)) is not None:
        annotation["truncated"] = bool(truncated)
    if (points := _row_of(item, "keypoints", row, 3)) is not None:
        rounded = np.round(points.astype(np.float64), 3).tolist()
        annotation["keypoints"] = [value for x, y, visibility in rounded for value in (x, y, int(visibility))]
    return annotation


def _row_of(item: Mapping[str, Any], name: str, row: int, rank: int) -> Any:
    """Return an object's row of an optional array. None if the item does not have the array."""
    value = item.get(name)
    if value is None:
        return None
    right = _is_array(value, rank, "biuf") and len(value) == len(item["id"]) and (rank < 3 or value.shape[2] == 3)
    if not right or not np.isfinite(value[row]).all():  # JSON has no NaN
        raise ConfigError(_wrong_form(int(item["index"]), name))
    return value[row]


def _check(item: Mapping[str, Any], index: int) -> None:
    """Raise ConfigError if a value that is needed is missing, or is not what its source gives."""
    missing = [name for name in _SOURCES if name not in item]
    if missing:
        by_source = itertools.groupby(missing, _SOURCES.__getitem__)
        how = ", ".join(" ".join(f"`{name}`" for name in names) + f" from {source}" for source, names in by_source)
        raise ConfigError(
            f"sample {index} has no {', '.join(repr(name) for name in missing)}, which COCO needs: let the script's "
            f'sample return {how}, such as {{**bl.render(("instance",)), **bl.annotate(objects)}}, and record '
            f"again. It has {', '.join(map(repr, item))}"
        )
    count = np.size(item["id"])
    forms = {
        "instance": _is_array(item["instance"], 2, "iu"),
        "id": _is_array(item["id"], 1, "iu"),
        "class_id": _is_array(item["class_id"], 1, "iu") and len(item["class_id"]) == count,
        "class_name": isinstance(item["class_name"], list) and len(item["class_name"]) == count,
    }
    if wrong := [name for name, right in forms.items() if not right]:
        raise ConfigError(_wrong_form(index, wrong[0]))


def _is_array(value: Any, rank: int, kinds: str) -> bool:
    return isinstance(value, np.ndarray) and value.ndim == rank and value.dtype.kind in kinds


def _wrong_form(index: int, name: str) -> str:
    return (
        f"sample {index}: {name!r} is not as {_SOURCES.get(name, _ANNOTATE)} gives it, for as many "
        f"objects as `id` has; does the script return something else under this name?"
    )


def _save_image(item: Mapping[str, Any], index: int, folder: Path) -> tuple[str, tuple[int, int]]:
    """Write the image, as it was recorded if it was. Returns the file's path, and the image's height and width."""
    files: Mapping[str, bytes] = getattr(item, "files", {})
    suffix, image = "jpg" if "image.jpg" in files else "png", item["image"]
    if (data := files.get(f"image.{suffix}")) is None:
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise ConfigError(
                f"sample {index}: `image` is no picture of H x W x 3 or 4 uint8 but "
                f"{getattr(image, 'dtype', type(image).__name__)}{list(np.shape(image))}; COCO's are files of 8 bits"
            )
        Image.fromarray(image).save(buffer := io.BytesIO(), "PNG", compress_level=1)
        data = buffer.getvalue()
    name = f"images/{index:09d}.{suffix}"
    (folder / name).write_bytes(data)
    return name, np.shape(image)[:2]  # type: ignore[return-value]
