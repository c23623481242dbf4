"""Samples with all labels, whose truth is known because numpy draws them: balls and boards, and a wall with a hole."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from asyncblend.recording.codec import Sample

Array = np.ndarray[Any, Any]
Scene = Callable[..., dict[str, Any]]


@pytest.fixture
def scene() -> Scene:
    """A function that returns the values of one sample: `scene(index=0, width=160, height=120, objects=5, seed=0)`."""
    return lambda *arguments, **options: copy.deepcopy(draw(*arguments, **options))


@functools.cache  # drawing takes longer than most tests
def draw(index: int = 0, width: int = 160, height: int = 120, objects: int = 5, *, seed: int = 0) -> dict[str, Any]:
    """Return one sample, under the names of `bl.render` and `bl.annotate`. World axes and camera axes are the same.

    Objects lie behind each other in a random order and may cross the image's border. Each has a flow of its own. Balls
    (class 1) have five keypoints and boards (class 2) four, so a board's last row is zeros. The last object has no
    class.
    """
    rng = np.random.default_rng([seed, index])
    focal = 1.1 * max(width, height)
    camera = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    # The canvas is three times as large, because the part of an object outside the image counts for visible_fraction.
    y, x = np.mgrid[-height : 2 * height, -width : 2 * width].astype(np.float32) + 0.5
    rays = np.stack([(x - width / 2) / focal, (y - height / 2) / focal, np.ones_like(x)], -1)
    depth = np.full(x.shape, 9.0, np.float32)
    depth[np.hypot(x - 0.8 * width, y - 0.2 * height) < 0.12 * width] = np.inf
    normal = np.zeros((*x.shape, 3), np.float32)
    normal[np.isfinite(depth)] = (0, 0, -1)
    albedo = np.full(normal.shape, (0.55, 0.55, 0.6), np.float32) * np.isfinite(depth)[..., None]
    flow = np.zeros((*x.shape, 2), np.float32)
    ids = np.zeros(x.shape, np.int32)
    table, whole, points, corners = [], [], [], []
    for number in range(1, objects + 1):
        ball = number % 2 == 1
        distance = rng.uniform(3, 8)
        middle = rng.uniform((-0.05, -0.05), (1.05, 1.05)) * (width, height)
        radius = rng.uniform(0.12, 0.22) * height * (2.2 if objects < 12 else 1.0) / (distance / 3)
        across, down = (x - middle[0]) / radius, (y - middle[1]) / radius
        if ball:
            inside = across**2 + down**2 < 1
            out = np.sqrt(np.maximum(1 - across**2 - down**2, 0))
            normals = np.stack([across, down, -out], -1)
            spots = [(0, 0), (0.999, 0), (0, 0.999), (-0.999, 0), (0, -0.999)]
        else:
            inside = (abs(across) < 1) & (abs(down) < 0.7)
            out, normals = np.zeros_like(x), np.broadcast_to(np.array((0, 0, -1), np.float32), normal.shape)
            spots = [(-0.99, -0.69), (0.99, -0.69), (0.99, 0.69), (-0.99, 0.69)]
        far = distance - out * radius / focal * distance
        nearer = inside & (far < depth)
        depth[nearer], ids[nearer] = far[nearer], number
        normal[nearer] = normals[nearer]
        albedo[nearer] = rng.uniform(0.2, 0.95, 3)
        flow[nearer] = rng.normal(0, 9, 2)
        whole.append(inside)
        points.append([middle + radius * np.array(spot) for spot in spots])
        half = radius / focal * distance
        centre = np.array([(middle - (width / 2, height / 2)) / focal * distance]).reshape(2)
        corners.append(_cuboid((*centre, distance), half, half if ball else 0.7 * half, half if ball else 0))
        kind = (0, "") if number == objects > 2 else (1, "ball") if ball else (2, "board")
        table.append(
            {
                "id": number,
                "name": f"{'Ball' if ball else 'Board'}.{number:03d}",
                "class_id": kind[0],
                "class_name": kind[1],
            }
        )
    crop = (slice(height, 2 * height), slice(width, 2 * width))
    light = np.clip(normal @ np.array((-0.4, -0.5, -0.75), np.float32), 0, 1)
    image = np.clip(albedo * (0.2 + 0.8 * light)[..., None], 0, 1) ** (1 / 2.2)
    seen = ids[crop]
    return {
        "image": np.rint(image[crop] * 255).astype(np.uint8),
        "depth": depth[crop],
        "distance": depth[crop] * np.linalg.norm(rays[crop], axis=-1).astype(np.float32),
        "normal": normal[crop],
        "normal_camera": normal[crop],
        "instance": seen,
        "semantic": np.array([0, *(row["class_id"] for row in table)], np.int32)[seen],
        "flow_forward": flow[crop],
        "flow_backward": -flow[crop],
        "albedo": albedo[crop],
        "instances": table,
        **_annotated(seen, ids, table, whole, points),
        "bbox3d": np.array(corners, np.float32).reshape(-1, 8, 3),
        "K": camera,
        "world_to_camera": np.eye(4),
        "index": index,
    }


def recorded(values: dict[str, Any], name: str, data: bytes) -> Sample:
    """Return values as a sample of a recording, in which the image's file has this name and these bytes."""
    sources = {"image": (name, values["image"])}
    return Sample(values, index=values["index"], instance=0, params={}, files={name: data}, sources=sources)


def _annotated(
    seen: Array, ids: Array, table: list[dict[str, Any]], whole: list[Array], points: list[list[Array]]
) -> dict[str, Any]:
    """Return what `bl.annotate` gives."""
    height, width = seen.shape
    boxes, fractions, cut = [], [], []
    keypoints = np.zeros((len(table), 5, 3), np.float32)
    for i, (inside, places) in enumerate(zip(whole, points, strict=True)):
        mask = seen == i + 1
        ys, xs = np.nonzero(mask)
        boxes.append((xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()) if len(xs) else (0,) * 4)
        fractions.append(mask.sum() / max(inside.sum(), 1))
        cut.append(inside.sum() > inside[height : 2 * height, width : 2 * width].sum())
        for k, (px, py) in enumerate(places):
            if 0 <= px < width and 0 <= py < height:
                keypoints[i, k] = px, py, 2 if seen[int(py), int(px)] == i + 1 else 1
    return {
        "id": np.arange(1, len(table) + 1, dtype=np.int32),
        "name": [row["name"] for row in table],
        "class_id": np.array([row["class_id"] for row in table], np.int32),
        "class_name": [row["class_name"] for row in table],
        "bbox": np.array(boxes, np.float32).reshape(-1, 4),
        "visible_fraction": np.array(fractions, np.float32),
        "truncated": np.array(cut, bool),
        "keypoints": keypoints,
    }


def _cuboid(centre: tuple[float, float, float], x: float, y: float, z: float) -> Array:
    """Return the 8 x 3 corners of a cuboid."""
    signs = [(-1, -1), (-1, 1), (1, 1), (1, -1)]  # y and z, in the order of Blender's own bound_box
    corners: Array = np.array(centre) + np.array([(i, *jk) for i in (-1, 1) for jk in signs]) * (x, y, z)
    return corners
