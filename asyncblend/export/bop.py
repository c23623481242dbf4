"""BOP: scenes with the 6D poses of objects, in the classic layout of the BOP benchmark, which `bop_toolkit` reads.

    train/000000/                 a scene: the samples 0 to 999; val/ has those of the split "val"
        rgb/000012.png            the image of sample 12
        depth/000012.png          16 bits; times the image's depth_scale they are millimetres along the camera's axis
        mask/000012_000003.png    the whole silhouette of the image's object 3, mask_visib/ its visible pixels
        scene_camera.json         cam_K, depth_scale, and cam_R_w2c and cam_t_w2c if the sample has "world_to_camera"
        scene_gt.json             obj_id, cam_R_m2c and cam_t_m2c of each object
        scene_gt_info.json        bbox_obj, bbox_visib, px_count_all, px_count_valid, px_count_visib and visib_fract
    models/obj_000001.ply         the models, if the samples have "models"
    camera.json, dataset_info.md

Lengths are millimetres. An obj_id is a class_id; objects without a class have none, and are left out. Poses lead from the
model to the camera, in OpenCV's axes: a rotation and a translation. The scale that `pose` of `bl.annotate` contains goes
into the model. In BOP the *centre* of the top-left pixel is (0, 0), so cam_K differs from `bl.Camera().K` by half a pixel.
The depth_scale of an image is the finest of 0.1, 0.2, 0.5, 1 and so on that holds its largest finite depth: 0.1 reaches to
6.5 m. As in BOP's own files, the width of a box in scene_gt_info.json is the distance of its first and last column, and
an object of which nothing is visible has boxes of -1.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..recording.png import png
from .images import image_file, write_new
from .labels import check_labels, check_size
from .models import Models, rigid
from .plan import Plan, Report

Array = np.ndarray[Any, Any]

_NEEDED = (
    *("image", "depth", "instance", "id", "class_id", "class_name", "pose"),
    *("silhouette", "silhouette_bbox", "silhouette_pixels", "K"),
)
_IN_A_SCENE = 1000
_NEAR = 2.0  # pixels by which a silhouette may lie outside of its projected box
_NO_BOX = [-1, -1, -1, -1]


def write_bop(items: Iterable[Mapping[str, Any]], folder: Path, plan: Plan) -> Report:
    """Write scenes and models into an empty folder.

    Raises:
        ConfigError: A sample lacks a label, or has it in a wrong form; there is no sample; the camera is no perspective
            one; a pose is no rotation, scale and translation; objects of one class come in several sizes, but have one model.
    """
    report, models, scenes = Report(entry="train"), Models(), dict[Path, _Scene]()
    counts: Counter[tuple[int, str]] = Counter()
    unclassed = 0
    for item in items:
        index, split = int(item["index"]), plan.split_of(int(item["index"]))
        check_labels(item, _NEEDED, "BOP")
        number, image_id = divmod(index, _IN_A_SCENE)
        place = folder / split / f"{number:06d}"
        scene = scenes.get(place) or scenes.setdefault(place, _Scene(place))
        camera, depth = scene.add_image(item, image_id)
        if not report.images:
            (folder / "camera.json").write_text(json.dumps(_nominal(camera, item["image"].shape)) + "\n")
        report.add_image(split)
        models.add(item)
        poses: list[dict[str, Any]] = []
        infos: list[dict[str, Any]] = []
        for row, one in enumerate(item["id"].tolist()):
            whole, seen = item["silhouette"][row], item["instance"] == one
            class_id, name = int(item["class_id"][row]), item["class_name"][row]
            if class_id < 1:
                unclassed += 1
                continue
            if not whole.any():
                report.hidden += 1
                continue
            _check_projection(item, row)
            rotation, translation, scale = rigid(item, row)
            models.note_scale(class_id, name, scale)
            counts[class_id, name] += 1
            scene.add_masks(image_id, len(poses), whole, seen)
            pose = {"cam_R_m2c": rotation.ravel().tolist(), "cam_t_m2c": (1000 * translation).tolist()}
            poses.append({**pose, "obj_id": class_id})
            infos.append(_info(item, row, whole, seen, depth))
        report.objects += len(poses)
        scene.add_lines(image_id, scene_camera=camera, scene_gt=poses, scene_gt_info=infos)
    report.check(plan)
    for scene in scenes.values():
        scene.finish()
    report.classes = [(name or f"class {class_id}", count) for (class_id, name), count in sorted(counts.items())]
    report.notes += models.write(folder / "models")
    if unclassed:
        report.notes.append(f"{unclassed} objects have no class, and so no obj_id: they are left out")
    (folder / "dataset_info.md").write_text(_about(plan, [key for key, _ in sorted(counts.items())]), encoding="utf-8")
    return report


class _Scene:
    """A folder with the images of a scene and its JSON files, which grow by a line with each image."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._empty = True
        for kind in ("rgb", "depth", "mask", "mask_visib"):
            (folder / kind).mkdir(parents=True)

    def add_image(self, item: Mapping[str, Any], image_id: int) -> tuple[dict[str, Any], Array]:
        """Write the image and the depth. Returns the entry of scene_camera.json, and the depth as it was written."""
        image = image_file(item, alpha=False)
        for name in ("instance", "depth", "silhouette"):
            check_size(item, name, image.size)
        write_new(self._folder / "rgb" / f"{image_id:06d}{image.suffix}", image.data, int(item["index"]))
        millimetres = np.where(np.isfinite(item["depth"]), item["depth"], 0).astype(np.float64).clip(min=0) * 1000
        scale = _depth_scale(millimetres.max())
        depth = np.rint(millimetres / scale).astype(np.uint16)
        (self._folder / "depth" / f"{image_id:06d}.png").write_bytes(png(depth))
        intrinsics = np.array(item["K"], np.float64)
        intrinsics[:2, 2] -= 0.5  # from the corner of the first pixel to its centre
        camera: dict[str, Any] = {"cam_K": intrinsics.ravel().tolist(), "depth_scale": scale}
        if (world := item.get("world_to_camera")) is not None:
            matrix = np.array(world, np.float64)
            camera |= {"cam_R_w2c": matrix[:3, :3].ravel().tolist(), "cam_t_w2c": (1000 * matrix[:3, 3]).tolist()}
        return camera, depth

    def add_masks(self, image_id: int, number: int, whole: Array, seen: Array) -> None:
        """Write the masks of the image's object of that number."""
        for kind, mask in (("mask", whole), ("mask_visib", seen)):
            (self._folder / kind / f"{image_id:06d}_{number:06d}.png").write_bytes(png(mask))

    def add_lines(self, image_id: int, **entries: Any) -> None:
        """Write the entry of an image into each of the JSON files."""
        before = "{\n" if self._empty else ",\n"
        for name, entry in entries.items():
            self._append(name, f'{before}"{image_id}": {json.dumps(entry, allow_nan=False)}')
        self._empty = False

    def finish(self) -> None:
        """End the JSON files."""
        for name in ("scene_camera", "scene_gt", "scene_gt_info"):
            self._append(name, "\n}\n")

    def _append(self, name: str, text: str) -> None:
        with open(self._folder / f"{name}.json", "a", encoding="ascii") as file:
            file.write(text)


def _check_projection(item: Mapping[str, Any], row: int) -> None:
    """Raise ConfigError if an object's silhouette is not where K projects it, as far as the sample tells."""
    world, corners = item.get("world_to_camera"), item.get("bbox3d")
    if world is None or corners is None:
        return
    matrix = np.array(world, np.float64)
    points = corners[row] @ matrix[:3, :3].T + matrix[:3, 3]
    if (points[:, 2] <= 0).any():
        return
    xy = points @ np.array(item["K"], np.float64).T
    xy = xy[:, :2] / xy[:, 2:]
    low, size = np.split(item["silhouette_bbox"][row], 2)
    if not size.any():  # a recording of before visible pixels counted has no box around less than a pixel
        return
    if (low < xy.min(axis=0) - _NEAR).any() or (low + size > xy.max(axis=0) + _NEAR).any():
        raise ConfigError(
            f"sample {item['index']}: object {int(item['id'][row])} is not where 'K' and 'world_to_camera' project it; BOP "
            f"knows only perspective cameras, and both must be those of bl.Camera() when the labels were rendered"
        )


def _depth_scale(farthest: float) -> float:
    """Return the finest step, in millimetres, in which 16 bits reach so far: 0.1, 0.2, 0.5, 1, 2, 5 and so on."""
    steps = (float(f"{digit}e{exponent}") for exponent in itertools.count(-1) for digit in (1, 2, 5))
    return next(step for step in steps if farthest <= step * 65535)


def _info(item: Mapping[str, Any], row: int, whole: Array, seen: Array, depth: Array) -> dict[str, Any]:
    """Return an entry of scene_gt_info.json."""
    visible = int(seen.sum())
    pixels = max(int(item["silhouette_pixels"][row]), visible)
    boxes = {"bbox_obj": _NO_BOX, "bbox_visib": _NO_BOX}
    if visible:
        columns, rows = np.flatnonzero(seen.any(axis=0)), np.flatnonzero(seen.any(axis=1))
        left, top = int(columns[0]), int(rows[0])
        x, y, width, height = map(int, item["silhouette_bbox"][row])
        boxes["bbox_visib"] = [left, top, int(columns[-1]) - left, int(rows[-1]) - top]
        boxes["bbox_obj"] = [x, y, width - 1, height - 1]
    return {
        **boxes,
        "px_count_all": pixels,
        "px_count_valid": int((depth[whole] > 0).sum()),
        "px_count_visib": visible,
        "visib_fract": visible / pixels,
    }


def _nominal(camera: Mapping[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """Return camera.json: the camera of the first image."""
    fx, _, cx, _, fy, cy, *_ = camera["cam_K"]
    height, width, *_ = shape
    intrinsics = {"cx": cx, "cy": cy, "fx": fx, "fy": fy}
    return {**intrinsics, "depth_scale": camera["depth_scale"], "height": height, "width": width}


def _about(plan: Plan, classes: list[tuple[int, str]]) -> str:
    names = "".join(f"| {class_id} | {name} |\n" for class_id, name in classes)
    return f"# {plan.info.get('description', 'exported by asyncblend')}\n\n| obj_id | class |\n|---|---|\n{names}"
