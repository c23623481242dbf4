"""COCO: instances and keypoints, as `annotations.json` and `images/`, for pycocotools and all that reads its files.

Of each annotated object: its box and area, its mask as compressed RLE, its keypoints, and as further fields
`visible_fraction` and `truncated`. Categories are the classes, with `class_id` as their id; objects without a class
are in a category "object", whose id follows the last class's. Boxes are those of the masks. Coordinates are rounded to
a thousandth of a pixel. An image's id is the sample's index; annotations count from 1, as pycocotools takes an id of 0
for none.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from ..errors import ConfigError
from .categories import Categories
from .report import Report
from .spool import Spool

__all__ = ["write_coco"]

Array = np.ndarray[Any, Any]

_SOURCES = {
    "image": "bl.render()",
    "instance": 'bl.render(("instance",))',
    "id": "bl.annotate(objects)",
    "class_id": "bl.annotate(objects)",
    "class_name": "bl.annotate(objects)",
}
"""What each sample must have, and what gives it."""


def write_coco(items: Iterable[Mapping[str, Any]], folder: Path, info: Mapping[str, Any]) -> Report:
    """Write `annotations.json` and `images/`, as `formats.Writer` says.

    A sample may also have "keypoint_names", a list, or one for each class's name in a dict, and "skeleton", pairs of
    keypoints counted from 1, likewise; they go into the categories. Without names, a class has as many keypoints as
    one of its objects ever had at once, trailing zeros aside.

    Raises:
        ConfigError: a sample lacks a label, or has it in a wrong form; there is no sample; pycocotools is missing.
    """
    masks = _pycocotools()
    report, categories = Report(), Categories()
    pictures = folder / "images"
    pictures.mkdir()
    with Spool(folder) as images, Spool(folder) as annotations:
        for item in items:
            index = int(item["index"])
            _check(item, index)
            name, size = _save_image(item, index, pictures)
            ids = np.asfortranarray(item["instance"])
            if ids.shape != size:
                raise ConfigError(
                    f"sample {index}: the image has {size[1]} x {size[0]} pixels, but `instance` "
                    f"{ids.shape[1]} x {ids.shape[0]}; render both in one call of bl.render"
                )
            images.add({"id": index, "file_name": f"images/{name}", "width": size[1], "height": size[0]})
            report.images += 1
            for row, number in enumerate(item["id"].tolist()):
                annotation = _annotation(item, row, ids == number, masks)
                if annotation is None:
                    report.hidden += 1
                    continue
                category = categories.add(item, row)
                annotations.add({"id": len(annotations) + 1, "image_id": index, "category_id": category, **annotation})
        if not report.images:
            raise ConfigError("there is no sample to export")
        report.objects = len(annotations)
        report.classes, report.notes = categories.counts(), categories.notes
        with open(folder / "annotations.json", "w", encoding="ascii") as file:
            _write(file, info, images, categories.finish(), _finished(annotations, categories, report))
            file.flush()
            os.fsync(file.fileno())
    return report


def _write(
    file: IO[str],
    info: Mapping[str, Any],
    images: Iterable[Any],
    categories: list[Any],
    annotations: Iterable[Any],
) -> None:
    """The JSON, one image or object a line, never as a whole in memory."""
    file.write(f'{{"info": {json.dumps(dict(info))},\n"licenses": [],\n"categories": {json.dumps(categories)}')
    for name, values in (("images", images), ("annotations", annotations)):
        file.write(f',\n"{name}": [')
        for i, value in enumerate(values):
            file.write((",\n" if i else "\n") + json.dumps(value, separators=(",", ":"), allow_nan=False))
        file.write("]")
    file.write("}\n")


def _finished(annotations: Iterable[Any], categories: Categories, report: Report) -> Iterator[Any]:
    """Annotations with what is known only at the end: the id of the last category, how many keypoints each has."""
    for annotation in annotations:
        category = annotation["category_id"]
        annotation["category_id"] = categories.id_of(category)
        count = categories.keypoints_of(category)
        points = annotation.pop("keypoints", [])[: 3 * count]
        if count:
            points += [0] * (3 * count - len(points))
            annotation["keypoints"] = points
            annotation["num_keypoints"] = sum(visibility > 0 for visibility in points[2::3])
            report.keypoints += annotation["num_keypoints"]
        yield annotation


def _annotation(item: Mapping[str, Any], row: int, seen: Array, masks: Any) -> dict[str, Any] | None:
    """What COCO has of an object, but its ids; None: no pixel of it is seen."""
    if not seen.any():
        return None
    encoded = masks.encode(seen.view(np.uint8))
    annotation: dict[str, Any] = {
        "bbox": masks.toBbox(encoded).tolist(),
        "area": int(masks.area(encoded)),
        "segmentation": {"size": list(seen.shape), "counts": encoded["counts"].decode("ascii")},
        "iscrowd": 0,
    }
    if (visible := _of(item, "visible_fraction", row, 1)) is not None:
        annotation["visible_fraction"] = round(float(visible), 4)
    if (truncated := _of(item, "truncated", row, 1)) is not None:
        annotation["truncated"] = bool(truncated)
    if (points := _of(item, "keypoints", row, 3)) is not None:
        flat = np.round(points.astype(np.float64), 3)
        annotation["keypoints"] = [value for x, y, v in flat.tolist() for value in (_short(x), _short(y), int(v))]
    return annotation


def _of(item: Mapping[str, Any], name: str, row: int, rank: int) -> Any:
    """An object's row of an array that is optional. JSON has no NaN."""
    value = item.get(name)
    if value is None:
        return None
    wrong = not isinstance(value, np.ndarray) or value.ndim != rank or len(value) != len(item["id"])
    if wrong or value.dtype.kind not in "biuf" or (rank == 3 and value.shape[2] != 3):
        raise ConfigError(_as_annotated(int(item["index"]), name))
    if not np.isfinite(value[row]).all():
        raise ConfigError(_as_annotated(int(item["index"]), name))
    return value[row]


def _short(number: float) -> float | int:
    return int(number) if number == int(number) else number


def _check(item: Mapping[str, Any], index: int) -> None:
    """
    Raises:
        ConfigError: something that is needed is missing, or is not what its source gives.
    """
    missing = [name for name in _SOURCES if name not in item]
    if missing:
        sources: dict[str, list[str]] = {}
        for name in missing:
            sources.setdefault(_SOURCES[name], []).append(f"`{name}`")
        how = ", ".join(f"{' '.join(names)} from {source}" for source, names in sources.items())
        raise ConfigError(
            f"sample {index} has no {', '.join(repr(name) for name in missing)}, which COCO needs: let the script's "
            f'sample return {how}, such as {{**bl.render(("instance",)), **bl.annotate(objects)}}, and record '
            f"again. It has {', '.join(map(repr, item))}"
        )
    ids, count = item["id"], np.size(item["id"])
    forms = {
        "instance": _is_array(item["instance"], 2, "iu"),
        "id": _is_array(ids, 1, "iu"),
        "class_id": _is_array(item["class_id"], 1, "iu") and len(item["class_id"]) == count,
        "class_name": isinstance(item["class_name"], list) and len(item["class_name"]) == count,
    }
    for name, right in forms.items():
        if not right:
            raise ConfigError(_as_annotated(index, name))


def _is_array(value: Any, rank: int, kinds: str) -> bool:
    return isinstance(value, np.ndarray) and value.ndim == rank and value.dtype.kind in kinds


def _as_annotated(index: int, name: str) -> str:
    return (
        f"sample {index}: {name!r} is not as {_SOURCES.get(name, 'bl.annotate(objects)')} gives it, for as many "
        f"objects as `id` has; does the script return something else under this name?"
    )


def _save_image(item: Mapping[str, Any], index: int, folder: Path) -> tuple[str, tuple[int, int]]:
    """Its file's name, and its height and width. The recorded file itself, where there is one."""
    files: Mapping[str, bytes] = getattr(item, "files", {})
    for suffix in ("png", "jpg"):
        if (data := files.get(f"image.{suffix}")) is not None:
            break
    else:
        suffix, buffer = "png", io.BytesIO()
        image = item["image"]
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise ConfigError(
                f"sample {index}: `image` is no picture of H x W x 3 or 4 uint8 but "
                f"{getattr(image, 'dtype', type(image).__name__)}{list(np.shape(image))}; COCO's are files of 8 bits"
            )
        Image.fromarray(image).save(buffer, "PNG", compress_level=1)
        data = buffer.getvalue()
    name = f"{index:09d}.{suffix}"
    (folder / name).write_bytes(data)
    return name, np.shape(item["image"])[:2]  # type: ignore[return-value]


def _pycocotools() -> Any:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise ConfigError(f'the format coco needs pycocotools: pip install "asyncblend[coco]" ({error})') from None
    return mask
