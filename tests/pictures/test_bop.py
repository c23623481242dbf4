"""BOP: poses, models, masks, depths and cameras, in BOP's units and conventions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from asyncblend.errors import ConfigError
from asyncblend.export import export

Scene = Callable[..., dict[str, Any]]
Array = np.ndarray[Any, Any]

BOX = {
    "vertices": np.array([*np.ndindex(2, 2, 2)], np.float32) - 0.5,
    "faces": np.array([[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5]], np.int32),
}


def posed(sample: dict[str, Any], scale: tuple[float, float, float] = (1, 1, 1)) -> dict[str, Any]:
    """Add what BOP needs to a sample. The silhouettes are the visible pixels, and one more column outside the image."""
    count = len(sample["id"])
    poses = np.zeros((count, 4, 4), np.float32)
    for number in range(count):
        turn, _ = np.linalg.qr(np.random.default_rng(number).normal(size=(3, 3)))
        poses[number] = np.eye(4)
        poses[number, :3, :3] = turn * np.linalg.det(turn) * scale
        poses[number, :3, 3] = (number, 0.5, 4)
    masks = sample["instance"] == sample["id"][:, None, None]
    boxes = sample["bbox"] + np.array([-1, 0, 1, 0], np.float32)
    added = {
        "silhouette": masks,
        "silhouette_bbox": boxes,
        "silhouette_pixels": masks.sum(axis=(1, 2)).astype(np.int32) + 9,
    }
    return {**sample, "pose": poses, **added}


@pytest.fixture
def items(scene: Scene) -> list[dict[str, Any]]:
    """Samples 998 to 1001, which belong to two scenes. Their last objects have no class."""
    return [{**posed(scene(index, 80, 60, objects=4)), "index": 998 + index} for index in range(4)]


def loaded(path: Path) -> Any:
    return json.loads(path.read_text())


def pixels(path: Path) -> Array:
    with Image.open(path) as image:
        return np.asarray(image).copy()


def test_scenes_have_a_thousand_images(items: list[dict[str, Any]], tmp_path: Path) -> None:
    """A sample's scene and number follow from its index, whatever the order, and each file has an image's own entry."""
    report = export(items[::-1], tmp_path / "out", "bop")
    for scene, images in (("000000", ["998", "999"]), ("000001", ["0", "1"])):
        folder = tmp_path / "out" / "train" / scene
        for name in ("scene_gt", "scene_gt_info", "scene_camera"):
            assert sorted(loaded(folder / f"{name}.json")) == images
        for kind in ("rgb", "depth"):
            assert sorted(path.name for path in (folder / kind).iterdir()) == [f"{int(one):06d}.png" for one in images]
    assert report.splits == {"train": 4}
    assert report.notes[0].startswith(
        "no model was given of ball, board: return \"models\": {'ball': bl.mesh_of(obj), "
    )
    assert report.notes[1] == "4 objects have no class, and so no obj_id: they are left out"
    assert "| 2 | board |" in (tmp_path / "out" / "dataset_info.md").read_text()


def test_an_object_of_less_than_a_pixel_ends_no_export(items: list[dict[str, Any]], tmp_path: Path) -> None:
    """Its silhouette may have a pixel and no box, because a render samples pixels at random places."""
    item = posed(items[0])
    item["world_to_camera"], item["silhouette_bbox"] = np.eye(4), np.zeros_like(item["silhouette_bbox"])
    item["bbox3d"] = np.full((len(item["id"]), 8, 3), (1, 1, 2), np.float32)
    assert export([item], tmp_path / "out", "bop").objects == 3


def test_entries_are_in_millimetres_and_pixel_centres(items: list[dict[str, Any]], tmp_path: Path) -> None:
    """Rotations have no scale, and the principal point is half a pixel less than in COCO's pixels."""
    item = posed(items[0], (2, 2, 2))
    item["instance"][item["instance"] == 1] = 0  # something hides the first object, which still has a silhouette
    del item["bbox3d"]  # of another camera
    item["world_to_camera"] = np.array([[1, 0, 0, 1], [0, 0, -1, 2], [0, 1, 0, 3], [0, 0, 0, 1.0]])
    export([item], tmp_path / "out", "bop")
    folder = tmp_path / "out" / "train" / "000000"
    camera = loaded(folder / "scene_camera.json")["998"]
    K = item["K"] - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]
    assert camera["cam_K"] == pytest.approx(K.ravel().tolist())
    assert camera["cam_R_w2c"] == [1, 0, 0, 0, 0, -1, 0, 1, 0]
    assert camera["cam_t_w2c"] == [1000, 2000, 3000]
    nominal = loaded(tmp_path / "out" / "camera.json")
    assert (nominal["fx"], nominal["cy"], nominal["width"], nominal["height"]) == (K[0, 0], K[1, 2], 80, 60)
    poses, infos = (loaded(folder / f"scene_{name}.json")["998"] for name in ("gt", "gt_info"))
    assert [pose["obj_id"] for pose in poses] == [1, 2, 1]
    for number, (pose, info) in enumerate(zip(poses, infos, strict=True)):
        rotation = np.reshape(pose["cam_R_m2c"], (3, 3))
        np.testing.assert_allclose(rotation * 2, item["pose"][number, :3, :3], atol=1e-5)
        assert pose["cam_t_m2c"] == [1000 * number, 500, 4000]
        seen = item["instance"] == number + 1
        np.testing.assert_array_equal(pixels(folder / "mask_visib" / f"000998_{number:06d}.png"), seen * 255)
        np.testing.assert_array_equal(
            pixels(folder / "mask" / f"000998_{number:06d}.png"), item["silhouette"][number] * 255
        )
        assert info["px_count_all"] == item["silhouette_pixels"][number]
        assert info["px_count_visib"] == seen.sum()
        assert info["px_count_valid"] == (item["silhouette"][number] & np.isfinite(item["depth"])).sum()
        assert info["visib_fract"] == seen.sum() / item["silhouette_pixels"][number]
        x, y, width, height = item["bbox"][number].tolist()
        assert info["bbox_visib"] == ([x, y, width - 1, height - 1] if number else [-1] * 4)
        assert info["bbox_obj"] == ([x - 1, y, width, height - 1] if number else [-1] * 4)


@pytest.mark.parametrize(
    ("farthest", "scale"), [(0.5, 0.1), (6.55, 0.1), (6.6, 0.2), (40, 1.0), (70, 2.0), (900, 20.0)]
)
def test_the_depth_scale_fits_the_depths(
    farthest: float, scale: float, items: list[dict[str, Any]], tmp_path: Path
) -> None:
    """No depth is cut off. The background, where there is nothing, is 0."""
    depth = np.linspace(0.1, farthest, 80 * 60, dtype=np.float32).reshape(60, 80)
    depth[0, 0] = np.inf
    export([{**items[0], "depth": depth}], tmp_path / "out", "bop")
    folder = tmp_path / "out" / "train" / "000000"
    camera = loaded(folder / "scene_camera.json")["998"]
    written = pixels(folder / "depth" / "000998.png")
    assert camera["depth_scale"] == scale
    assert written.dtype in (np.uint16, np.int32)
    assert written[0, 0] == 0
    assert abs(written * scale / 1000 - depth)[written > 0].max() <= 0.51 * scale / 1000


def test_models_are_scaled_and_mirrored_as_the_objects(items: list[dict[str, Any]], tmp_path: Path) -> None:
    """A model's vertices, turned and shifted by R and t, are where the pose puts the object's own ones."""
    item = {**posed(items[0], (-1, 2, 3)), "models": {"ball": BOX}}
    report = export([item], tmp_path / "out", "bop")
    assert report.notes[0].startswith("no model was given of board:")
    text = (tmp_path / "out" / "models" / "obj_000001.ply").read_text()
    rows = [line.split() for line in text.partition("end_header\n")[2].splitlines()]
    vertices = np.array(rows[:8], float)
    pose = loaded(tmp_path / "out" / "train" / "000000" / "scene_gt.json")["998"][0]
    found = vertices[:, :3] @ np.reshape(pose["cam_R_m2c"], (3, 3)).T + pose["cam_t_m2c"]
    expected = BOX["vertices"] @ item["pose"][0, :3, :3].T + item["pose"][0, :3, 3]
    np.testing.assert_allclose(found, 1000 * expected, atol=0.1)
    assert rows[8] == ["3", "3", "1", "0"]  # turned round, because a mirrored face shows its other side
    info = loaded(tmp_path / "out" / "models" / "models_info.json")
    assert list(info) == ["1"]
    assert info["1"]["diameter"] == pytest.approx(1000 * np.sqrt(14))
    assert (info["1"]["min_x"], info["1"]["size_z"]) == pytest.approx((-500, 3000))


@pytest.mark.exhaustive
def test_the_diameter_of_a_large_model(items: list[dict[str, Any]], tmp_path: Path) -> None:
    """It is known to a thousandth, in little time."""
    points = np.random.default_rng(0).normal(size=(50_000, 3)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    points[7], points[8] = (0.7, -0.7, 0.7), (-0.7, 0.7, -0.7)
    item = {**items[0], "models": {"ball": {"vertices": points, "faces": BOX["faces"]}}}
    export([item], tmp_path / "out", "bop")
    info = loaded(tmp_path / "out" / "models" / "models_info.json")
    assert info["1"]["diameter"] == pytest.approx(1000 * 1.4 * np.sqrt(3), rel=1e-3)


def test_one_model_has_one_size(items: list[dict[str, Any]], tmp_path: Path) -> None:
    """Other sizes are an error where there is a model, and a note where there is none."""
    other = {**posed(items[1], (2, 2, 2)), "models": {"ball": BOX}}
    with pytest.raises(ConfigError, match=r"objects of class 1, 'ball', are scaled by 1 to 2, but BOP has one model"):
        # It is known with the second one, and no third one is asked for.
        export((item or pytest.fail("a third one") for item in (items[0], other, None)), tmp_path / "out", "bop")
    assert not (tmp_path / "out").exists()
    del other["models"]
    report = export([items[0], other], tmp_path / "out", "bop")
    assert report.notes[0] == "objects of one class differ in size, which no model can: ball, board"


def test_what_is_missing_is_named_with_its_source(items: list[dict[str, Any]], tmp_path: Path) -> None:
    """Each label is named with the call that gives it."""
    for name in ("depth", "pose", "silhouette", "silhouette_bbox", "silhouette_pixels", "K"):
        del items[1][name]
    with pytest.raises(ConfigError) as caught:
        export(items, tmp_path / "out", "bop")
    message = str(caught.value)
    assert message.startswith("sample 999 has no 'depth', 'pose', 'silhouette', ")
    for source in (
        '`depth` from bl.render(("depth",))',
        "`pose` from bl.annotate(objects)",
        "`silhouette` `silhouette_bbox` `silhouette_pixels` from bl.annotate(objects, silhouettes=True)",
        '`K` from {"K": bl.Camera().K}',
    ):
        assert source in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pose": np.zeros((4, 4, 4), np.float32)}, "the 'pose' of object 1 is no rotation, translation and scale"),
        ({"pose": np.zeros((3, 4, 4), np.float32)}, "'pose' is not as bl.annotate"),
        ({"silhouette": np.zeros((4, 60, 80), np.uint8)}, r"'silhouette' is not as bl.annotate\(objects, silhouettes"),
        ({"silhouette": np.zeros((4, 30, 40), bool)}, "80 x 60 pixels, but `silhouette` 40 x 30"),
        ({"depth": np.zeros((30, 40), np.float32)}, "80 x 60 pixels, but `depth` 40 x 30"),
        ({"K": np.full((3, 3), np.nan)}, "'K' is not as"),
        ({"models": {"ball": {"vertices": np.zeros((2, 3), np.float32)}}}, "'models' is no dict of meshes"),
        ({"world_to_camera": np.eye(4) + np.eye(4, k=3)}, "object 1 is not where 'K' and 'world_to_camera' project it"),
        ({"models": 3}, "'models' is no dict of meshes by class name.*got 3"),
    ],
)
def test_labels_of_another_form(
    change: dict[str, Any], message: str, items: list[dict[str, Any]], tmp_path: Path
) -> None:
    """The error names the sample and the value."""
    with pytest.raises(ConfigError, match=f"sample 998.*{message}"):
        export([{**items[0], **change}], tmp_path / "out", "bop")


def test_an_image_of_four_channels_loses_its_alpha(items: list[dict[str, Any]], tmp_path: Path) -> None:
    """BOP's readers take three."""
    opaque = items[0]["image"]
    items[0]["image"] = np.dstack([opaque, np.full((60, 80), 9, np.uint8)])
    export(items[:1], tmp_path / "out", "bop")
    np.testing.assert_array_equal(pixels(tmp_path / "out" / "train" / "000000" / "rgb" / "000998.png"), opaque)
