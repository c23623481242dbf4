"""COCO: pycocotools reads what is written, and its evaluation finds the labels equal to themselves."""

from __future__ import annotations

import copy
import io
import json
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from asyncblend.errors import ConfigError
from asyncblend.export import export
from asyncblend.export.own_files import LIST
from asyncblend.recording.codec import Images, decode, encode

from .conftest import recorded

Scene = Callable[..., dict[str, Any]]


def loaded(out: Path) -> COCO:
    return COCO(str(out / "annotations.json"))


@pytest.fixture
def items(scene: Scene) -> list[dict[str, Any]]:
    """Six samples, one of them without objects, whose indices have a gap."""
    return [scene(i, objects=0 if i == 4 else 7) for i in (1, 2, 3, 4, 7, 8)]


# -- what is written ---------------------------------------------------------------------------------------------


def test_each_mask_box_and_area_is_that_of_the_object(items: list[dict[str, Any]], tmp_path: Path) -> None:
    """A decoded mask has exactly the pixels with the object's id. Hidden objects are not written, but counted."""
    report = export(items, tmp_path / "out")
    coco = loaded(tmp_path / "out")
    written = hidden = 0
    for item in items:
        annotations = coco.imgToAnns[item["index"]]
        for number, fraction, cut in zip(item["id"], item["visible_fraction"], item["truncated"], strict=True):
            mask = item["instance"] == number
            if not mask.any():
                hidden += 1
                continue
            annotation = annotations.pop(0)
            written += 1
            np.testing.assert_array_equal(coco.annToMask(annotation), mask)
            ys, xs = np.nonzero(mask)
            box = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
            assert annotation["bbox"] == box
            assert annotation["area"] == mask.sum()
            assert annotation["iscrowd"] == 0
            assert annotation["visible_fraction"] == pytest.approx(fraction, abs=1e-4)
            assert annotation["truncated"] is bool(cut)
        assert annotations == []
    assert (report.objects, report.hidden, report.images) == (written, hidden, 6)
    assert hidden > 0


def test_the_image_files_and_their_sizes(items: list[dict[str, Any]], tmp_path: Path) -> None:
    """A sample's index is its id and the name of its file. Pixels are kept, and no other files are written."""
    export(items, tmp_path / "out", info={"description": "cubes", "year": 2026})
    coco = loaded(tmp_path / "out")
    assert sorted(coco.imgs) == [item["index"] for item in items]
    for item in items:
        entry = coco.imgs[item["index"]]
        assert entry["file_name"] == f"images/{item['index']:09d}.png"
        with Image.open(tmp_path / "out" / entry["file_name"]) as image:
            assert image.size == (entry["width"], entry["height"]) == (160, 120)
            np.testing.assert_array_equal(np.asarray(image), item["image"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"annotations.json", "images", LIST}
    assert len(list((tmp_path / "out" / "images").iterdir())) == 6
    assert coco.dataset["info"] == {"description": "cubes", "year": 2026}
    assert coco.dataset["licenses"] == []


def test_recorded_image_files_are_copied(items: list[dict[str, Any]], tmp_path: Path) -> None:
    """Recorded files are copied to the byte: JPEG stays JPEG, and PNG is not encoded again, also with four channels."""
    jpeg, png = io.BytesIO(), io.BytesIO()
    Image.fromarray(items[0]["image"]).save(jpeg, "JPEG")
    items[1]["image"] = np.dstack([items[1]["image"], np.full((120, 160), 200, np.uint8)])
    Image.fromarray(items[1]["image"]).save(png, "PNG", compress_level=3)
    export(
        [recorded(items[0], "image.jpg", jpeg.getvalue()), recorded(items[1], "image.png", png.getvalue())],
        tmp_path / "out",
    )
    coco = loaded(tmp_path / "out")
    assert [image["file_name"] for image in coco.dataset["images"]] == ["images/000000001.jpg", "images/000000002.png"]
    assert (tmp_path / "out" / "images" / "000000001.jpg").read_bytes() == jpeg.getvalue()
    assert (tmp_path / "out" / "images" / "000000002.png").read_bytes() == png.getvalue()


@pytest.mark.parametrize("other", ["Image", "image_", "IMAGE"])
@pytest.mark.parametrize("format", ["png", "jpeg"])
def test_the_image_has_its_own_file(other: str, format: str, items: list[dict[str, Any]], tmp_path: Path) -> None:
    """Another value may have taken the file name of the image; an array that was put in its place is encoded."""
    values = {other: np.zeros((120, 160, 3), np.uint8), **items[0]}
    sample, replaced = (
        decode(encode(values, index=index, instance=0, params={}, images=Images(format))) for index in (0, 1)
    )
    replaced["image"] = items[1]["image"]
    export([sample, replaced], tmp_path / "out")
    names = [image["file_name"] for image in loaded(tmp_path / "out").dataset["images"]]
    written = [np.asarray(Image.open(tmp_path / "out" / name)) for name in names]
    np.testing.assert_array_equal(written[0], sample["image"])
    np.testing.assert_array_equal(written[1], items[1]["image"])


def test_categories_are_the_classes_with_keypoints_of_their_own(items: list[dict[str, Any]], tmp_path: Path) -> None:
    """Balls have five keypoints and boards four, without unused rows. Objects without a class are the last category."""
    for item in items:
        item["keypoint_names"] = {"board": ["a", "b", "c", "d"]}
        item["skeleton"] = {"board": [[1, 2], [2, 3], [3, 4], [4, 1]]}
    report = export(items, tmp_path / "out")
    coco = loaded(tmp_path / "out")
    by_name = {category["name"]: category for category in coco.dataset["categories"]}
    assert [(c["id"], c["name"]) for c in coco.dataset["categories"]] == [(1, "ball"), (2, "board"), (3, "object")]
    assert by_name["ball"]["keypoints"] == [f"keypoint_{i}" for i in range(1, 6)]
    assert by_name["ball"]["skeleton"] == []
    assert by_name["board"]["keypoints"] == ["a", "b", "c", "d"]
    assert by_name["board"]["skeleton"] == [[1, 2], [2, 3], [3, 4], [4, 1]]
    inside = 0
    for item in items:
        annotations = iter(coco.imgToAnns[item["index"]])
        for row, number in enumerate(item["id"]):
            if not (item["instance"] == number).any():
                continue
            annotation = next(annotations)
            own = len(coco.cats[annotation["category_id"]]["keypoints"])
            expected = item["keypoints"][row]
            assert not expected[own:].any()
            got = np.reshape(annotation["keypoints"], (own, 3))
            np.testing.assert_allclose(got, expected[:own], atol=1e-3)
            assert annotation["num_keypoints"] == (expected[:, 2] > 0).sum()
            inside += annotation["num_keypoints"]
    assert report.keypoints == inside
    assert dict(report.classes) == {
        name: len(coco.getAnnIds(catIds=[category["id"]])) for name, category in by_name.items()
    }


def test_samples_without_keypoints_and_visibility(items: list[dict[str, Any]], tmp_path: Path) -> None:
    """Fields that no sample has are not written. A value of None counts as missing."""
    for item in items:
        for name in ("keypoints", "visible_fraction", "truncated"):
            del item[name]
    items[0] |= dict.fromkeys(("keypoints", "visible_fraction", "truncated", "keypoint_names", "skeleton"))
    export(items, tmp_path / "out")
    dataset = loaded(tmp_path / "out").dataset
    assert set(dataset["annotations"][0]) == {
        *("id", "image_id", "category_id", "bbox", "area", "segmentation", "iscrowd")
    }
    assert set(dataset["categories"][0]) == {"id", "name", "supercategory"}


def test_classes_with_odd_names(items: list[dict[str, Any]], tmp_path: Path) -> None:
    """Two names for one class give a note. A class may have the name of the category for objects without a class."""
    items[0]["class_name"] = ["object"] * 7
    report = export(items, tmp_path / "out")
    names = [category["name"] for category in loaded(tmp_path / "out").dataset["categories"]]
    assert names == ["object", "object", "without a class"]
    assert report.notes == [
        "class 1 is called 'object' and 'ball'; the first is taken",
        "class 2 is called 'object' and 'board'; the first is taken",
    ]


def test_classes_without_names(items: list[dict[str, Any]], tmp_path: Path) -> None:
    """A category has its number as its name, and the report says that it is a class's."""
    for item in items:
        item["class_name"] = [""] * len(item["id"])
    report = export(items, tmp_path / "out")
    assert [name for name, _ in report.classes] == ["class 1", "class 2", "object"]
    names = [category["name"] for category in loaded(tmp_path / "out").dataset["categories"]]
    assert names == ["1", "2", "object"]


# -- splits ------------------------------------------------------------------------------------------------------


def test_splits_have_the_same_categories(items: list[dict[str, Any]], tmp_path: Path) -> None:
    """Each split has its JSON file and its images, as COCO has. A class that only one split has is in both."""
    for item in items[1:]:
        item["class_id"][:] = 1
        item["class_name"] = ["ball"] * len(item["id"])
    report = export(items, tmp_path / "out", val=0.3)
    parts = {
        split: COCO(str(tmp_path / "out" / "annotations" / f"instances_{split}.json")) for split in ("train", "val")
    }
    assert parts["train"].dataset["categories"] == parts["val"].dataset["categories"]
    assert report.objects == sum(len(part.anns) for part in parts.values())
    assert report.splits == {split: len(part.imgs) for split, part in parts.items()}
    assert sorted([*parts["train"].imgs, *parts["val"].imgs]) == [item["index"] for item in items]
    for split, part in parts.items():
        assert sorted(part.anns) == list(range(1, len(part.anns) + 1))
        assert {image["file_name"] for image in part.dataset["images"]} == {
            path.name for path in (tmp_path / "out" / split).iterdir()
        }
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"annotations", "train", "val", LIST}


# -- pycocotools' evaluation -------------------------------------------------------------------------------------


def average_precision(coco: COCO, kind: str, category: int | None = None) -> Any:
    """Return the average precision of the labels as detections of themselves."""
    results = [{**annotation, "score": 1.0} for annotation in copy.deepcopy(coco.dataset["annotations"])]
    if category is not None:
        results = [result for result in results if result["category_id"] == category]
    found = coco.loadRes(results)
    evaluation = COCOeval(coco, found, kind)
    if category is not None:
        evaluation.params.catIds = [category]
        evaluation.params.kpt_oks_sigmas = np.full(len(coco.cats[category]["keypoints"]), 0.05)
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][..., -1]  # with as many detections as there are
    assert (precision > -1).any()
    return precision[precision > -1].mean()


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_boxes_and_masks_have_ap_1(kind: str, items: list[dict[str, Any]], tmp_path: Path) -> None:
    """The labels match themselves at all thresholds. A moved object lowers the precision."""
    export(items, tmp_path / "out")
    coco = loaded(tmp_path / "out")
    assert average_precision(coco, kind) == 1.0
    results = [{**annotation, "score": 1.0} for annotation in copy.deepcopy(coco.dataset["annotations"])]
    x, y, wide, high = results[0]["bbox"]
    results[0]["bbox"] = [x + 0.4 * wide, y, wide, high]
    results[0]["segmentation"] = results[-1]["segmentation"]
    evaluation = COCOeval(coco, coco.loadRes(results), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][..., -1]  # with as many detections as there are
    assert precision[precision > -1].mean() < 1.0


@pytest.mark.parametrize("category", [1, 2])
def test_keypoints_have_ap_1(category: int, items: list[dict[str, Any]], tmp_path: Path) -> None:
    """Each class is evaluated by itself, because it has its own number of keypoints."""
    export(items, tmp_path / "out")
    assert average_precision(loaded(tmp_path / "out"), "keypoints", category) == 1.0


# -- errors ------------------------------------------------------------------------------------------------------


def test_missing_labels_are_named_with_their_source(items: list[dict[str, Any]], tmp_path: Path) -> None:
    """The error names the missing labels, what gives them, and what the sample has. Nothing is written."""
    for name in ("instance", "id", "class_name"):
        del items[2][name]
    with pytest.raises(ConfigError) as caught:
        export(items, tmp_path / "out")
    message = str(caught.value)
    assert message.startswith("sample 3 has no 'instance', 'id', 'class_name', which COCO needs")
    assert '`instance` from bl.render(("instance",)), `id` `class_name` from bl.annotate(objects)' in message
    assert "It has 'image', 'depth'" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"instance": np.zeros((60, 80), np.int32)}, r"the image has 160 x 120 pixels, but `instance` 80 x 60"),
        ({"instance": np.zeros((120, 160))}, r"'instance' is not as bl.render\(\(\"instance\",\)\) gives it"),
        ({"id": 3}, r"'id' is not as bl.annotate\(objects\) gives it"),
        ({"class_id": np.zeros(3, int)}, "'class_id' is not as"),
        ({"class_id": np.full(7, -1)}, "class_id -1; classes count from 1"),
        ({"keypoints": np.zeros((7, 4, 2))}, "'keypoints' is not as"),
        ({"visible_fraction": np.zeros(2)}, "'visible_fraction' is not as"),
        ({"image": np.zeros((120, 160, 3))}, r"no picture of H x W, H x W x 3 or 4 uint8 but float64\[120, 160, 3\]"),
        ({"skeleton": [[0, 1]]}, "counted from 1"),
        ({"keypoints": np.full((7, 4, 3), np.nan)}, "'keypoints' is not as"),
        ({"skeleton": 3}, "counted from 1"),
        ({"skeleton": [[1, float("inf")]]}, "counted from 1"),
        ({"keypoint_names": "left"}, "'keypoint_names' is a list of strings"),
        ({"keypoint_names": ["left", "right"]}, "has 5 keypoints, but 'keypoint_names' has 2"),
    ],
)
def test_labels_of_another_form(change: dict[str, Any], message: str, scene: Scene, tmp_path: Path) -> None:
    """The error names the sample and the value, and says what the value should be."""
    with pytest.raises(ConfigError, match=f"sample 1.*{message}"):
        export([{**scene(1, objects=7), **change}], tmp_path / "out")


def test_no_samples(tmp_path: Path) -> None:
    """No samples are an error, because an empty file would only be noticed later."""
    with pytest.raises(ConfigError, match="no sample"):
        export([], tmp_path / "out")


def test_an_unknown_format(tmp_path: Path) -> None:
    """The error names all formats, and the nearest one."""
    with pytest.raises(ConfigError, match="there is no format 'kitti'; there are bop, coco, parquet, yolo"):
        export([], tmp_path / "out", "kitti")
    with pytest.raises(ConfigError, match="did you mean 'coco'"):
        export([], tmp_path / "out", "COCO")


def test_without_pycocotools(items: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the command that installs it."""
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(ConfigError, match=r'pip install "asyncblend\[coco\]"'):
        export(items, tmp_path / "out")


# -- the folder --------------------------------------------------------------------------------------------------


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_that_is_not_empty_needs_overwrite(items: list[dict[str, Any]], tmp_path: Path) -> None:
    """With overwrite, all of the earlier export is replaced, and other files stay."""
    out = tmp_path / "out"
    export(items, out)
    (out / "notes.txt").write_text("mine")
    before = files_in(out)
    with pytest.raises(ConfigError, match=r"not empty.*--overwrite"):
        export(items[:2], out)
    assert files_in(out) == before
    export(items[:2], out, overwrite=True)
    images = {"images/000000001.png", "images/000000002.png"}
    assert set(files_in(out)) == {"notes.txt", "annotations.json", LIST, *images}
    assert len(loaded(out).imgs) == 2


def test_a_failure_leaves_the_folder_as_it_was(items: list[dict[str, Any]], tmp_path: Path) -> None:
    """After an error, an earlier export is unchanged, with its images, and a new folder does not exist."""

    def breaking() -> Iterator[dict[str, Any]]:
        yield items[1]
        raise KeyboardInterrupt

    out = tmp_path / "out"
    export(items[:1], out)
    before = files_in(out)
    with pytest.raises(KeyboardInterrupt):
        export(breaking(), out, overwrite=True)
    assert files_in(out) == before
    assert {path.name for path in out.iterdir()} == {"annotations.json", "images", LIST}
    with pytest.raises(KeyboardInterrupt):
        export(breaking(), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_folder_that_cannot_be_written(
    items: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in the folder's place, and a full disk, raise a ConfigError with the reason."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        export(items, tmp_path / "file")
    with pytest.raises(ConfigError, match=r"cannot export to .*Not a directory"):
        export(items, tmp_path / "file" / "below")

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ConfigError, match=r"cannot export to .*No space left on device; nothing was changed"):
        export(items, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.exhaustive
def test_memory_does_not_grow_with_the_images(scene: Scene, tmp_path: Path) -> None:
    """Samples are read one after another, and their annotations wait on the disk."""
    one = scene(1, 64, 48, 6)

    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            export(({**one, "index": i} for i in range(count)), tmp_path / f"out{count}")
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few = max(peak(10), peak(20))
    assert peak(400) < few + 100_000
    size = (tmp_path / "out400" / "annotations.json").stat().st_size
    assert size > 400_000
    assert len(json.loads((tmp_path / "out400" / "annotations.json").read_text())["annotations"]) >= 400


def test_masks_are_compressed(items: list[dict[str, Any]], tmp_path: Path) -> None:
    """Masks are written as in COCO's result files: as a string of counts, column by column."""
    export(items, tmp_path / "out")
    annotation = json.loads((tmp_path / "out" / "annotations.json").read_text())["annotations"][0]
    assert annotation["segmentation"]["size"] == [120, 160]
    assert isinstance(annotation["segmentation"]["counts"], str)
    mask = items[0]["instance"] == 1
    expected = masks.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert annotation["segmentation"]["counts"].encode() == expected["counts"]
    assert annotation["id"] == 1
