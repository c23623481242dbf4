"""Parquet: Hugging Face's `datasets` loads it, with images as images and all else in types of its own."""

from __future__ import annotations

import io
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from asyncblend.errors import ConfigError
from asyncblend.export import export, parquet

from .conftest import recorded

Scene = Callable[..., dict[str, Any]]

IMAGES = ("image", "depth", "distance", "instance", "semantic")


@pytest.fixture
def items(scene: Scene) -> list[dict[str, Any]]:
    """Samples with different numbers of objects, some of which nothing is known of; the first one has none."""
    return [scene(index, 40, 30, objects=objects) for index, objects in enumerate((0, 4, 3, 5, 1, 2))]


def plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def rows_of(out: Path, split: str) -> list[dict[str, Any]]:
    return [row for path in sorted(out.glob(f"data/{split}-*.parquet")) for row in pq.read_table(path).to_pylist()]


def pixels(row: dict[str, Any], name: str) -> Any:
    with Image.open(io.BytesIO(row[name]["bytes"])) as image:
        return np.asarray(image).copy()


def test_rows_are_the_samples(items: list[dict[str, Any]], tmp_path: Path) -> None:
    """Each value comes back: images from their files, all others as lists of the same numbers."""
    items[2]["level"], items[2]["pair"], items[2]["half"] = np.int64(3), (1, 2.5), items[2]["instance"] > 1
    report = export(items, tmp_path / "out", "parquet", val=0.3)
    assert report.images == 6
    assert report.splits == {"train": 3, "val": 3}
    assert report.classes == [("ball", 7), ("board", 5), ("object", 3)]
    rows = {row["index"]: row for split in ("train", "validation") for row in rows_of(tmp_path / "out", split)}
    for item in items:
        row = rows[item["index"]]
        for name, value in item.items():
            if name in IMAGES:
                np.testing.assert_array_equal(pixels(row, name), value)
            elif name not in ("level", "pair", "half"):
                assert row[name] == plain(value), name
    assert (rows[2]["level"], rows[2]["pair"], rows[1]["level"]) == (3, [1, 2.5], None)
    np.testing.assert_array_equal(pixels(rows[2], "half") > 0, items[2]["half"])


def test_datasets_loads_it(items: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The splits have their names, and an image is an image of Pillow."""
    reason = "datasets is not installed here: pip install datasets"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    datasets = pytest.importorskip("datasets", reason=reason)
    for item in items:
        item["silhouette"] = item["instance"] == item["id"][:, None, None]
    export(items, tmp_path / "out", "parquet", val=0.3)
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {split: rows["index"][:] for split, rows in loaded.items()} == {"train": [1, 3, 4], "validation": [0, 2, 5]}
    features = loaded["train"].features
    assert all(isinstance(features[name], datasets.Image) for name in IMAGES)
    assert features["bbox"] == datasets.List(datasets.List(datasets.Value("float32")))
    assert features["silhouette"].feature == datasets.Image()
    row = loaded["train"][1]
    assert isinstance(row["image"], Image.Image)
    for name in IMAGES:
        np.testing.assert_array_equal(np.asarray(row[name]), items[3][name])
    assert row["keypoints"] == items[3]["keypoints"].tolist()
    assert row["instances"] == items[3]["instances"]
    for number, mask in enumerate(row["silhouette"]):
        np.testing.assert_array_equal(np.asarray(mask) > 0, items[3]["silhouette"][number])


def test_recorded_images_are_copied(scene: Scene, tmp_path: Path) -> None:
    """JPEG stays JPEG."""
    values = scene(0)
    Image.fromarray(values["image"]).save(jpeg := io.BytesIO(), "JPEG")
    export([recorded(values, "image.jpg", jpeg.getvalue())], tmp_path / "out", "parquet")
    (row,) = rows_of(tmp_path / "out", "train")
    assert row["image"]["bytes"] == jpeg.getvalue()


@pytest.mark.exhaustive
@pytest.mark.slow
def test_files_and_row_groups_are_bounded(
    items: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file ends when it is large enough, and its name says how many there are. Memory does not grow with samples."""
    size = export_size(items[1], 2, tmp_path / "small")
    monkeypatch.setattr(parquet, "_ROWS", 10)
    monkeypatch.setattr(parquet, "_FILE_BYTES", 2 * size)

    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            export(({**items[1], "index": i} for i in range(count)), tmp_path / f"out{count}", "parquet")
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(20)
    few, many = peak(40), peak(200)
    assert many < few + 200_000
    names = sorted(path.name for path in (tmp_path / "out200" / "data").iterdir())
    assert len(names) > 3
    assert names == [f"train-{number:05d}-of-{len(names):05d}.parquet" for number in range(len(names))]
    assert [row["index"] for row in rows_of(tmp_path / "out200", "train")] == list(range(200))
    assert pq.ParquetFile(tmp_path / "out200" / "data" / names[0]).metadata.row_group(0).num_rows == 10


def export_size(item: dict[str, Any], count: int, out: Path) -> int:
    export([{**item, "index": i} for i in range(count)], out, "parquet")
    return next((out / "data").iterdir()).stat().st_size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": np.zeros((2, 4))}, r"samples 1 to 1: 'bbox' is not of one kind.*double.* and .*float"),
        ({"bbox": "none"}, r"'bbox' is not of one kind.*str"),
        ({"new": 3}, "samples 1 to 1 have 'new', which the first samples do not have"),
        ({"instances": [{"id": 1, "more": 2}]}, "'instances' is not of one kind.*no 'more' in it"),
        ({"name": [3]}, "'name' is not of one kind"),
        ({"instance": np.full((30, 40), 70_000)}, "'instance' is not of one kind.*all are from 0 to 65,535, and else"),
        ({"seen": [3]}, "'seen' is not of one kind.*it was empty, or .*in the first samples.*return an array"),
        ({"spectrum": np.zeros(3, complex)}, "sample 1: there is no column for 'spectrum'"),
    ],
)
def test_samples_of_other_types(
    change: dict[str, Any], message: str, items: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the value, what it is and where. Nothing is written, and nothing is dropped in silence."""
    monkeypatch.setattr(parquet, "_ROWS", 1)
    with pytest.raises(ConfigError, match=message):
        export([{**items[1], "index": 0, "seen": []}, {**items[1], **change}], tmp_path / "out", "parquet")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "values",
    [
        {"map": np.full((30, 40), -1)},
        {"map": np.full((30, 40), 70_000, np.uint32)},
        {"image": np.zeros((30, 40, 1), np.uint8)},
        {"image": np.zeros((30, 40, 5), np.uint8)},
        {"image": np.zeros((0, 0, 3), np.uint8), "map": np.zeros((0, 0), np.int32), "masks": np.zeros((2, 0, 0), bool)},
        {"scalar": np.array(3)},
    ],
)
def test_what_is_no_picture_is_a_list(values: dict[str, Any], tmp_path: Path) -> None:
    """A map with numbers that a PNG cannot have, an image of other channels, one without pixels, and a scalar."""
    plain_image = {"image": np.zeros((30, 40, 3), np.uint8)} if "map" in values else {}
    export([{"index": 0, **plain_image, **values}], tmp_path / "out", "parquet")
    (row,) = rows_of(tmp_path / "out", "train")
    for name, value in values.items():
        assert row[name] == plain(value), name


@pytest.mark.parametrize("value", ["cube", 3, True, 2.5, np.array([1, 2]), [[1], [2]], [{"x": 1}]], ids=str)
def test_a_class_name_of_another_kind_is_a_value_as_others(value: Any, tmp_path: Path) -> None:
    """It names no classes: the report counts none."""
    report = export([{"index": index, "class_name": value} for index in range(2)], tmp_path / "out", "parquet")
    assert (report.images, report.objects, report.classes) == (2, 0, [])
    assert [row["class_name"] for row in rows_of(tmp_path / "out", "train")] == [plain(value)] * 2


@pytest.mark.parametrize("value", [{}, [{}], {"deep": {}}], ids=str)
def test_a_dict_without_keys_is_told(value: Any, tmp_path: Path) -> None:
    """Parquet has no such column."""
    with pytest.raises(ConfigError, match="'facts' is or has a dict without keys"):
        export([{"index": 0, "facts": value}], tmp_path / "out", "parquet")
    assert not (tmp_path / "out").exists()


def test_an_interrupted_export_leaves_nothing(items: list[dict[str, Any]], tmp_path: Path) -> None:
    """Files that have been begun are closed and removed."""

    def breaking() -> Iterator[dict[str, Any]]:
        yield from items
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(breaking(), tmp_path / "out", "parquet")
    assert list(tmp_path.iterdir()) == []


def test_without_pyarrow(items: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the command that installs it."""
    monkeypatch.delitem(sys.modules, "asyncblend.export.columns", raising=False)
    monkeypatch.delattr("asyncblend.export.columns", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r'pip install "asyncblend\[parquet\]"'):
        export(items, tmp_path / "out", "parquet")
