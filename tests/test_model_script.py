"""blender_scripts/model.py: a user's meshes, whose labels are checked by geometry that Blender has no part in."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import asyncblend as ab
from asyncblend.export import export
from asyncblend.scripts import script

pytestmark = pytest.mark.blender

Floats = npt.NDArray[np.float64]

BRACKET = [((0, 0, 0), (2, 1, 0.5)), ((0, 0, 0.5), (0.5, 1, 1.5))]
"""Boxes by their lowest and highest corner, in millimetres times a hundred: an L, which no turn maps to itself."""
SIZE = 0.2  # metres, the longest side of the bracket


def quads(low: Any, high: Any) -> list[Floats]:
    """Return the six faces of a box, each 4 x 3, seen from outside counterclockwise."""
    found = []
    for axis, side in itertools.product(range(3), (0, 1)):
        u, v = (axis + 1) % 3, (axis + 2) % 3
        face = np.empty((4, 3))
        face[:, axis] = (low, high)[side][axis]
        for corner, (a, b) in enumerate(((0, 0), (1, 0), (1, 1), (0, 1)) if side else ((0, 0), (0, 1), (1, 1), (1, 0))):
            face[corner, u], face[corner, v] = (low, high)[a][u], (low, high)[b][v]
        found.append(face)
    return found


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with bracket.stl, which is 200 units long, and plate.ply."""
    folder = tmp_path / "models"
    folder.mkdir()
    lines = ["solid bracket"]
    for low, high in BRACKET:
        for a, b, c, d in quads(np.array(low) * 100, np.array(high) * 100):
            for triangle in ((a, b, c), (a, c, d)):
                corners = [f"vertex {x} {y} {z}" for x, y, z in triangle]
                lines += ["facet normal 0 0 0", "outer loop", *corners, "endloop", "endfacet"]
    (folder / "bracket.stl").write_text("\n".join([*lines, "endsolid bracket", ""]))
    faces = quads(np.array((0, 0, 0)), np.array((100, 60, 20)))
    vertices = [f"{x} {y} {z}" for face in faces for x, y, z in face]
    polygons = [f"4 {start} {start + 1} {start + 2} {start + 3}" for start in range(0, 24, 4)]
    head = ["ply", "format ascii 1.0", "element vertex 24", "property float x", "property float y", "property float z"]
    head += ["element face 6", "property list uchar int vertex_indices", "end_header"]
    (folder / "plate.ply").write_text("\n".join([*head, *vertices, *polygons, ""]))
    return folder


BOXES = {
    "bracket": (np.array(BRACKET) - (1, 0.5, 0.75)) * 0.1,
    "plate": np.array([((-0.05, -0.03, -0.01), (0.05, 0.03, 0.01))]),
}
"""By class the boxes that it is made of, in metres, in its own space: each N x 2 x 3, the lowest and highest corners."""


def config_of(models: Path, real: Any, *args: str, **options: Any) -> ab.StreamConfig:
    """Return the config of small pictures of these models."""
    small = ("--width", "160", "--height", "120", "--samples", "1", "--unit", "0.001")
    options = {"instances": 1, "seed": 5, **options}
    return ab.StreamConfig(
        script=script("model.py"), script_args=(str(models), *small, *args), blender=real.blender, **options
    )


async def frames(config: ab.StreamConfig) -> list[ab.Frame]:
    """Return all frames of a stream."""
    async with asyncio.timeout(250), ab.BlenderStream(config) as stream:
        return [frame async for frame in stream]


def surface_distance(points: Floats, boxes: Floats) -> Floats:
    """Return how far each of N points is from the surface of the nearest box."""
    found = []
    for low, high in boxes:
        outside = np.maximum(np.maximum(low - points, points - high), 0)
        inside = np.minimum(points - low, high - points).min(axis=1)
        found.append(np.where(inside > 0, inside, np.linalg.norm(outside, axis=1)))
    nearest: Floats = np.min(found, axis=0)
    return nearest


def entries(origin: Floats, directions: Floats, boxes: Floats) -> Floats:
    """Return for N rays from one point at which multiple of their direction they enter a box first; inf for never."""
    found = np.full(len(directions), np.inf)
    for low, high in boxes:
        with np.errstate(divide="ignore", invalid="ignore"):
            first, second = (low - origin) / directions, (high - origin) / directions
        near, far = np.nanmax(np.minimum(first, second), axis=1), np.nanmin(np.maximum(first, second), axis=1)
        found = np.where((near <= far) & (near > 0), np.minimum(found, near), found)
    return found


def check_labels(frame: ab.Frame) -> None:
    """Check all labels of a frame against the boxes that the models are made of, seen by the camera K."""
    K = frame["K"]
    height, width = frame["depth"].shape
    y, x = np.indices((height, width)) + 0.5
    rays = np.stack([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1], np.ones_like(x)], axis=-1)
    seen = rays * np.where(np.isfinite(frame["depth"]), frame["depth"], 0)[..., None]
    assert set(np.unique(frame["semantic"])) <= {0, *frame["class_id"].tolist()}
    for row, name in enumerate(frame["class_name"]):
        pose, boxes = frame["pose"][row].astype(float), BOXES[name]
        rotation, shift = pose[:3, :3], pose[:3, 3]
        np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-5)
        assert np.linalg.det(rotation) == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(frame["extent"][row], np.ptp(boxes.reshape(-1, 3), axis=0), atol=1e-6)

        # The mask and the depth: each pixel's point lies on the model's surface, where a ray enters it first.
        mask = frame["instance"] == frame["id"][row]
        assert (frame["semantic"][mask] == frame["class_id"][row]).all()
        points = (seen[mask] - shift) @ rotation
        assert (surface_distance(points, boxes) < 2e-4).all()
        own = entries(-shift @ rotation, rays.reshape(-1, 3) @ rotation, boxes).reshape(height, width)
        nearest = frame["depth"]
        # In pixels well within the outline, because a sample lies anywhere in its pixel.
        within = np.isfinite(own)
        for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            within &= np.isfinite(np.roll(own, (dy, dx), axis=(0, 1)))
        within[[0, -1]] = within[:, [0, -1]] = False
        assert (mask | (nearest <= own + 2e-3))[within].all()  # only something nearer may hide it
        assert not (mask & _far_from(np.isfinite(own)))[1:-1, 1:-1].any()

        # Boxes.
        corners = corners_of(boxes)
        projected = (corners @ rotation.T + shift) @ K.T
        if (projected[:, 2] <= 0.01).any():  # it reaches behind the camera
            assert frame["truncated"][row]
            assert frame["truncation"][row] > 0
            continue
        xy = projected[:, :2] / projected[:, 2:]
        low, high = np.clip(xy.min(axis=0), 0, (width, height)), np.clip(xy.max(axis=0), 0, (width, height))
        loose = [*low, *(high - low)] if (low < high).all() else [0, 0, 0, 0]
        np.testing.assert_allclose(frame["bbox_loose"][row], loose, atol=2e-2)
        assert frame["truncated"][row] == ((xy < -1e-2).any() or (xy > np.array((width, height)) + 1e-2).any())
        if mask.any():
            rows, columns = np.nonzero(mask)
            box = columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1
            np.testing.assert_array_equal(frame["bbox"][row], box)
        expected = (1 - frame["truncation"][row]) * (1 - frame["occlusion"][row])
        assert frame["visible_fraction"][row] == pytest.approx(expected, abs=0.2)

        # Keypoints: where they are, on the surface, and which of them something hides, by the depth around their pixel.
        keypoints = frame["model_keypoints"][row].astype(float)
        assert (surface_distance(keypoints, boxes) < 1e-6).all()
        local = keypoints @ rotation.T + shift
        where = local @ K.T
        where = where[:, :2] / where[:, 2:]
        for (u, v), z, (px, py, flag) in zip(where, local[:, 2], frame["keypoints"][row], strict=True):
            inside = 0 <= u < width and 0 <= v < height
            assert (flag > 0) == inside
            if not inside:
                continue
            assert (px, py) == pytest.approx((u, v), abs=1e-2)
            r, c = int(v), int(u)
            around = frame["depth"][max(r - 1, 0) : r + 2, max(c - 1, 0) : c + 2]
            if flag == 2:
                assert around.max() > z - 0.02  # nothing covers all that is around it
            else:
                assert around.min() < z + 0.02


def corners_of(boxes: Floats) -> Floats:
    """Return the corners of boxes: 8 N x 3."""
    return np.concatenate([low + (high - low) * np.array([*np.ndindex(2, 2, 2)]) for low, high in boxes])


def _far_from(inside: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return the pixels that have no such pixel around them."""
    near = inside.copy()
    for dy, dx in itertools.product((-1, 0, 1), repeat=2):
        near |= np.roll(inside, (dy, dx), axis=(0, 1))
    return ~near


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["floating", "physics"])
async def test_labels_are_right(mode: str, real: Any, models: Path) -> None:
    """Masks, depth, boxes, poses and keypoints agree with the models' geometry, also where others hide and borders cut."""
    args = ("--objects", "2:5", "--distractors", "2:5", "--truncation", "0:0.8", "--occlusion", "0:0.9")
    found = await frames(config_of(models, real, *args, *(["--physics"] if mode == "physics" else []), length=6))
    assert {name for frame in found for name in frame["class_name"]} == {"bracket", "plate"}
    for frame in found:
        check_labels(frame)
        assert len(frame["instances"]) == 10 + (mode == "physics")
    fractions = np.concatenate([frame["visible_fraction"] for frame in found])
    assert (fractions < 0.9).any()
    assert (fractions > 0.98).any()
    if mode == "physics":
        for frame in found:
            to_world = np.linalg.inv(frame["world_to_camera"])
            for name, pose in zip(frame["class_name"], frame["pose"], strict=True):
                corners = corners_of(BOXES[name])
                lowest = (to_world @ pose @ np.column_stack([corners, np.ones(len(corners))]).T)[2].min()
                assert -0.01 < lowest < SIZE  # on the floor, or on what lies there


SAME = ("depth", "instance", "semantic", "bbox", "pose", "keypoints", "visible_fraction", "truncation", "class_id")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["floating", "physics"])
@pytest.mark.exhaustive
async def test_a_sample_is_a_function_of_its_index(mode: str, real: Any, models: Path) -> None:
    """A sample is the same whichever instance makes it, and whatever that instance rendered or simulated before."""
    args = ("--objects", "1:3", "--materials", "mixed", *(["--physics"] if mode == "physics" else []))
    first = {frame.index: frame for frame in await frames(config_of(models, real, *args, instances=2, length=5))}
    async with asyncio.timeout(250), ab.BlenderStream(config_of(models, real, *args)) as stream:
        crowd = {"objects": 3, "distance": (2, 3)}
        for index, params in ((4, None), (0, crowd), (2, None), (0, None), (4, None)):
            again = await stream.render(index, params)
            if params is None:
                assert np.abs(first[index]["image"].astype(int) - again["image"]).max() <= 1
                for key in SAME:
                    np.testing.assert_array_equal(first[index][key], again[key], err_msg=f"{index} {key}")
    assert len({frame["image"].tobytes() for frame in first.values()}) == 5


@pytest.mark.exhaustive
async def test_params_set_the_ranges(real: Any, models: Path) -> None:
    """Params set how many objects there are, how far, how high the camera is, and how much of objects is hidden."""
    async with asyncio.timeout(250), ab.BlenderStream(config_of(models, real, "--objects", "1:4")) as stream:
        for count in (1, 4):
            frame = await stream.render(0, {"objects": count, "distractors": 0, "distance": 9})
            assert len(frame["id"]) == count
            np.testing.assert_allclose(frame["pose"][:, 2, 3], 9 * SIZE, rtol=1e-4)
            hidden = [row["id"] for row in frame["instances"] if row["id"] not in frame["id"]]
            assert not np.isin(frame["instance"], hidden).any()
        near, far = [
            await stream.render(1, {"objects": (2, 2), "distance": distance}) for distance in ((3, 4), (12.0, 13.0))
        ]
        assert near["pose"][:, 2, 3].max() < 4 * SIZE + 1e-4 < 12 * SIZE - 1e-4 < far["pose"][:, 2, 3].min()
        above = await stream.render(1, {"elevation": 90})
        np.testing.assert_allclose(above["world_to_camera"][2, :3], (0, 0, -1), atol=1e-5)
        covered = await stream.render(2, {"objects": 1, "distractors": 4, "occlusion": (0.2, 0.8), "distance": 3})
        clear = await stream.render(2, {"objects": 1, "distractors": 4, "occlusion": 0, "truncation": 0, "distance": 3})
        assert 0.1 < covered["visible_fraction"][0] < 0.9
        assert clear["visible_fraction"][0] > 0.95
        assert not clear["truncated"].any()
        with pytest.raises(ab.SampleError, match=r"the script has only 4: give --objects"):
            await stream.render(3, {"objects": 5})


@pytest.mark.exhaustive
@pytest.mark.slow
async def test_no_object_is_missing(real: Any, models: Path) -> None:
    """All objects are there, also where there is no room for them. A range may be negative, and options come anywhere."""
    many = ("--distance", "1", "--elevation", "-20:-10", "--objects", "14", str(models / "plate.ply"))
    config = config_of(models / "bracket.stl", real, *many, length=2)
    for frame in await frames(config):
        assert len(frame["id"]) == 14
        assert np.linalg.inv(frame["world_to_camera"])[2, 3] < 0


async def test_ranges_of_params_are_checked(bpy_kind: Any, models: Path) -> None:
    """What is no number, pair or text is told as a mistake of that range."""
    async with asyncio.timeout(250), ab.BlenderStream(config_of(models, bpy_kind)) as stream:
        for value in ({"low": 1}, True, (True, 2)):
            with pytest.raises(ab.SampleError, match="objects must be LO:HI"):
                await stream.render(0, {"objects": value})


@pytest.mark.exhaustive
async def test_workbench_renders_too(bpy_kind: Any, models: Path) -> None:
    """It draws the same objects in colour, and the ids are those of Cycles."""
    args = ("--objects", "3", "--distractors", "0", "--materials", "random")
    own, other = [
        await frames(config_of(models, bpy_kind, *args, *engine, length=2))
        for engine in ((), ("--engine", "workbench"))
    ]
    for one, two in zip(own, other, strict=True):
        np.testing.assert_array_equal(one["pose"], two["pose"])
        assert (one["instance"] != two["instance"]).mean() < 0.02
        assert two["image"][two["instance"] > 0].std() > 10


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["missing.glb"], "there is no model 'missing.glb'"),
        (["{models}/bracket.stl", "{models}/bracket.stl"], "two models are called 'bracket'"),
        (["{models}", "--hdris", "{models}"], "there is no picture in"),
        (["{models}", "--backgrounds", "nowhere"], "cannot list the folder"),
        (["{models}", "--objects", "4:2"], "objects must be LO:HI, whole numbers from 1 to 200"),
        (["{models}", "--distance", "0:2"], "distance must be LO:HI, numbers from 0.5 to 1000"),
        (["{models}", "--size", "-1"], "argument --size: invalid positive value: '-1'"),
        (["{models}", "--table", "nowhere/table.json"], "cannot be written"),
        (["{models}", "--engine", "workbench", "--hdris", "{models}"], "Workbench draws no skies"),
        (["{models}", "--engine", "eevee", "--physics", "--backgrounds", "{models}"], "EEVEE has no shadow catchers"),
        (["{models}", "--elevation", "-100:20"], "elevation must be LO:HI, numbers from -90 to 90"),
        (["{models}", "--colour", "red"], "unrecognized arguments: --colour red"),
    ],
)
@pytest.mark.exhaustive
async def test_mistakes_are_told_at_the_start(args: list[str], said: str, bpy_kind: Any, models: Path) -> None:
    """What is wrong with the command line is one error, before anything is rendered."""
    own = [arg.format(models=models) for arg in args]
    config = ab.StreamConfig(script=script("model.py"), script_args=own, blender=bpy_kind.blender, instances=1)
    with pytest.raises(ab.InstanceExited) as caught:
        await frames(config)
    assert said in str(caught.value)


async def test_the_table_has_the_classes(bpy_kind: Any, models: Path, tmp_path: Path) -> None:
    """--table writes names, sizes and keypoints, the same as those of the samples."""
    config = config_of(models, bpy_kind, "--table", str(tmp_path / "table.json"), "--keypoints", "5", length=2)
    found = await frames(config)
    table = {row["class_id"]: row for row in json.loads((tmp_path / "table.json").read_text())}
    assert [(number, row["class_name"]) for number, row in table.items()] == [(1, "bracket"), (2, "plate")]
    for frame in found:
        assert frame["keypoints"].shape[1:] == (5, 3)
        for row, number in enumerate(frame["class_id"].tolist()):
            np.testing.assert_allclose(frame["model_keypoints"][row], table[number]["keypoints"], atol=1e-6)
            np.testing.assert_allclose(frame["extent"][row], table[number]["extent"], atol=1e-6)


def test_bop_has_the_models(bpy_kind: Any, models: Path, tmp_path: Path) -> None:
    """With --bop the samples become a BOP dataset, with a model of each class in millimetres."""
    config = config_of(models, bpy_kind, "--bop", length=3, ordered=True)
    with ab.BlenderStream(config).sync() as frames:
        report = export(frames, tmp_path / "bop", "bop")
    assert not [note for note in report.notes if "model" in note]
    infos = json.loads((tmp_path / "bop/models/models_info.json").read_text())
    sizes = [[info[f"size_{axis}"] for axis in "xyz"] for info in infos.values()]
    np.testing.assert_allclose(sizes, [[200, 100, 150], [100, 60, 20]], rtol=1e-4)
