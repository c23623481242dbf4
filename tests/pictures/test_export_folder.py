"""The folder of an export: whatever goes wrong at any moment, an earlier export is not lost."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asyncblend.errors import ConfigError
from asyncblend.export import FORMATS, Report, export
from asyncblend.export.folder import _ENTRIES
from asyncblend.export.own_files import LIST
from asyncblend.export.plan import Plan
from asyncblend.stream.frame import Frame

Files = dict[str, str]
NEW = {"annotations.json": "new", "images/2.png": "new"}
REPLACED = {"annotations.json": "earlier", "images/1.png": "earlier", "val/3.png": "earlier"}
OWN = {"notes.txt": "mine", "own/notes.txt": "mine", "images/mine.txt": "mine"}
EARLIER = {**REPLACED, **OWN}


def write(folder: Path, files: Files) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def files_in(folder: Path) -> Files:
    """Return the files in a folder, but for lists of exports."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != LIST)
    return {str(path.relative_to(folder)): path.read_text() for path in files}


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an earlier export and files of the user's. The format "coco" writes two small files."""
    files = REPLACED

    def write_files(items: Any, folder: Path, plan: Any) -> Report:
        write(folder, files)
        for _ in items:  # an item may raise
            pass
        return Report(images=1)

    monkeypatch.setitem(FORMATS, "coco", write_files)
    out = tmp_path / "work" / "out"
    export([], out)
    write(out, OWN)
    files = NEW
    return out


def test_an_earlier_export_is_replaced_and_other_files_stay(out: Path) -> None:
    """All that the earlier export wrote goes, also its folders, and nothing else. Nothing is left beside `out`."""
    out.chmod(0o750)
    (out / "images" / "empty").mkdir()
    (out / "images" / "link").symlink_to("nowhere")
    assert export([], out, overwrite=True).images == 1
    assert files_in(out) == {**NEW, **OWN}
    folders = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_dir()}
    assert folders == {"images", "own", "images/empty"}
    assert (out / "images" / "link").readlink() == Path("nowhere")
    assert stat.S_IMODE(out.stat().st_mode) == 0o750
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("taken", ["images/2.png", "images/2.png/mine.txt"])
def test_a_file_of_the_user_is_never_replaced(taken: str, out: Path) -> None:
    """Also if it has the name of a new one, and lies among those of the earlier export."""
    write(out, {taken: "mine"})
    with pytest.raises(ConfigError, match=r"is not empty: 'images/2\.png' would be replaced, and may be yours"):
        export([], out, overwrite=True)
    assert files_in(out) == {**EARLIER, taken: "mine"}
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("damage", ["none", "cut off", "changed"])
def test_without_a_list_nothing_is_replaced(damage: str, out: Path) -> None:
    """As an export of a version that wrote none has it. It is told before a sample is asked for. Others still stay."""
    text = (out / LIST).read_text()
    if damage == "none":
        (out / LIST).unlink()
    else:
        (out / LIST).write_text(text[:-9] if damage == "cut off" else text.replace("images/1.png", "images/9.png"))
    with pytest.raises(ConfigError, match=r"'\w+(\.json)?' would be replaced.*older versions of asyncblend"):
        export((pytest.fail("a sample was asked for") for _ in range(1)), out, overwrite=True)
    assert files_in(out) == EARLIER
    for name in ("annotations.json", "images", "val"):
        (out / name).rename(out / f"my {name}")
    kept = files_in(out)
    export([], out, overwrite=True)
    assert files_in(out) == {**NEW, **kept}


def test_a_file_that_comes_between_the_renamings_is_not_lost(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have the name of a file of the new export, after the names were compared."""
    rename = os.rename

    def late(source: Any, target: Any, **options: Any) -> None:
        if Path(source) == out:
            write(out, {"images/2.png": "mine"})
        rename(source, target, **options)

    monkeypatch.setattr(os, "rename", late)
    with pytest.raises(ConfigError, match=r"'images/2\.png' is both .*; the earlier files are in (\S+)$") as caught:
        export([], out, overwrite=True)
    assert files_in(out)["images/2.png"] == "new"
    assert files_in(Path(str(caught.value).rsplit(" ", 1)[1]))["images/2.png"] == "mine"


@pytest.mark.parametrize("calls", range(1, 6))
@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_an_error_at_any_renaming_loses_nothing(
    calls: int, done: bool, error: BaseException, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error comes before or after each renaming: of the old folder, the new one, and the user's three entries."""
    rename = os.rename
    seen = 0

    def failing(source: Any, target: Any, **options: Any) -> None:
        nonlocal seen
        seen += 1
        if seen != calls or done:
            rename(source, target, **options)
        if seen == calls:
            raise error

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises((ConfigError, KeyboardInterrupt)) as caught:
        export([], out, overwrite=True)
    assert seen >= calls
    if calls <= 2:  # of the two folders
        new_is_in_place = calls == 2 and done
        assert files_in(out) == ({**NEW, **OWN} if new_is_in_place else EARLIER)
        assert list(out.parent.iterdir()) == [out]
        if isinstance(error, OSError) and not new_is_in_place:
            assert "Input/output error; nothing was changed there" in str(caught.value)
    else:  # of the user's files, some of which then are still in the earlier folder
        (kept,) = out.parent.glob(".out.export-*/old")
        assert files_in(out).items() >= NEW.items()
        assert {**files_in(kept), **files_in(out)} == {**EARLIER, **NEW}
        assert {*files_in(kept)} & {*files_in(out)} == {"annotations.json"}
        if isinstance(error, OSError):
            assert f"Input/output error; the earlier files are in {kept}" in str(caught.value)


def test_what_cannot_be_put_back_is_kept(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says where the earlier export is."""
    rename = os.rename

    def failing(source: Any, target: Any, **options: Any) -> None:
        if Path(target) == out:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target, **options)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(ConfigError, match=r"Input/output error; the earlier files are in (\S+)$") as caught:
        export([], out, overwrite=True)
    assert files_in(Path(str(caught.value).rsplit(" ", 1)[1])) == EARLIER


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failure_while_writing_changes_nothing(overwrite: bool, out: Path) -> None:
    """An error of the samples or of the disk leaves no new folder, and nothing beside it."""

    def failing(error: Exception) -> Any:
        raise error
        yield

    for error, told in ((ZeroDivisionError(), ZeroDivisionError), (OSError(errno.ENOSPC, "No space"), ConfigError)):
        for target in (out, out.parent / "other"):
            if target == out and not overwrite:
                continue
            with pytest.raises(told):
                export(failing(error), target, overwrite=overwrite)
    assert files_in(out.parent) == {f"out/{name}": text for name, text in EARLIER.items()}
    assert list(out.parent.iterdir()) == [out]


def test_files_that_come_meanwhile_are_not_replaced(out: Path) -> None:
    """Without overwrite, files that appear while the export is written stay, also those of another export."""

    def items() -> Any:
        write(out.parent / "other", {"annotations.json": "another"})
        yield from ()

    with pytest.raises(ConfigError, match=r"cannot export to .*other.*not empty; nothing was changed there"):
        export(items(), out.parent / "other")
    assert files_in(out.parent / "other") == {"annotations.json": "another"}
    assert {path.name for path in out.parent.iterdir()} == {"out", "other"}


def test_an_empty_folder_and_a_link_to_one(out: Path) -> None:
    """Both get the files, and the link stays a link."""
    for name in ("empty", "linked"):
        (out.parent / name).mkdir()
    (out.parent / "link").symlink_to("linked")
    export([], out.parent / "empty")
    export([], out.parent / "link")
    assert files_in(out.parent / "empty") == files_in(out.parent / "linked") == NEW
    assert (out.parent / "link").is_symlink()


def test_the_current_folder_is_not_replaced(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell would be left in a folder that no longer exists. The same holds for the folders above the current one."""
    monkeypatch.chdir(out)
    for target in (".", "..", out):
        with pytest.raises(ConfigError, match="holds the current folder or is a mount point"):
            export([], target, overwrite=True)
    export([], "below")
    assert files_in(out) == {**EARLIER, **{f"below/{name}": text for name, text in NEW.items()}}


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_parent_that_one_may_not_write_is_told(out: Path) -> None:
    """The parent must be writable, because the new folder is written in it."""
    out.parent.chmod(0o500)
    with pytest.raises(ConfigError, match="Permission denied; nothing was changed there"):
        export([], out, overwrite=True)
    out.parent.chmod(0o700)


def test_the_json_is_one_with_its_lines(scene: Callable[..., Any], tmp_path: Path) -> None:
    """Each image and each object has a line, so that a long file can be read and compared by lines."""
    export([scene(index) for index in range(3)], tmp_path / "out")
    text = (tmp_path / "out" / "annotations.json").read_text()
    whole = json.loads(text)
    lines = [
        line.removesuffix(",").removesuffix("]}").removesuffix("],").removesuffix("]") for line in text.splitlines()
    ]
    assert whole["annotations"]
    for value in (*whole["images"], *whole["annotations"]):
        assert json.dumps(value, separators=(",", ":")) in lines


def test_an_export_of_each_format_is_replaced(scene: Callable[..., Any], tmp_path: Path) -> None:
    """With other splits and fewer samples nothing of the earlier one is left, and the formats have the entries they say."""

    def item(index: int) -> dict[str, Any]:
        values = scene(index, objects=1)
        mask, cube = values["instance"] == 1, {"vertices": np.eye(3, dtype=np.float32), "faces": np.array([[0, 1, 2]])}
        pose = {"pose": np.eye(4, dtype=np.float32)[None], "silhouette": mask[None]}
        sizes = {"silhouette_bbox": values["bbox"], "silhouette_pixels": np.array([mask.sum()])}
        del values["bbox3d"]
        return {**values, **pose, **sizes, **({"models": {"ball": cube}} if index > 3 else {})}

    for format in FORMATS:
        out, once = tmp_path / format, tmp_path / f"{format} once"
        export([item(index) for index in range(8)], out, format, val=0.3)
        first = {path.name for path in out.iterdir()}
        write(
            out, {"notes.txt": "mine", **{f"{folder}/mine.txt": "mine" for folder in first if (out / folder).is_dir()}}
        )
        mine = {path.relative_to(out) for path in out.rglob("*.txt") if path.read_text() == "mine"}
        assert len(mine) > 1
        export([item(index) for index in range(3)], out, format, overwrite=True)
        export([item(index) for index in range(3)], once, format)
        assert first | {path.name for path in once.iterdir()} == {*_ENTRIES[format], LIST}
        left = {path.relative_to(out) for path in out.rglob("*") if not path.is_dir()}
        assert left == {*(path.relative_to(once) for path in once.rglob("*") if not path.is_dir()), *mine}
        assert (out / LIST).read_bytes() == (once / LIST).read_bytes()


# -- what is written ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("val", [0.01, 0.1, 0.25, 0.5, 0.9])
def test_splits_follow_from_the_index_alone(val: float) -> None:
    """A run of indices, also of each third one, has its share of them. With a larger share a sample stays in "val"."""
    plan, larger = Plan(val=val), Plan(val=min(val + 0.05, 0.99))
    for indices in (range(1000), range(5000, 6000), range(1, 3000, 3), range(10**12, 10**12 + 1000)):
        chosen = [plan.split_of(index) for index in indices]
        assert abs(chosen.count("val") - 1000 * val) <= 6
        assert all(larger.split_of(i) == "val" for i, split in zip(indices, chosen, strict=True) if split == "val")
    assert {Plan().split_of(index) for index in range(1000)} == {"train"}


def test_an_empty_split_is_an_error(scene: Callable[..., Any], tmp_path: Path) -> None:
    """It would only be noticed when the training has ended."""
    for index, missing in ((0, "train"), (1, "val")):
        with pytest.raises(ConfigError, match=rf"of 1 samples, none is in the split '{missing}' with val=0.1"):
            export([scene(index)], tmp_path / "out", "yolo", val=0.1)
    assert not (tmp_path / "out").exists()


def test_an_empty_split_is_known_from_the_indices() -> None:
    """So nothing need be rendered to find it out."""
    for count, missing in ((1, "train"), (0, "train")):
        with pytest.raises(ConfigError, match=rf"of {count} samples, none is in the split '{missing}' with val=0.1"):
            Plan(val=0.1).check(range(count))
    Plan(val=0.1).check(range(10**12))  # it ends where each split has one
    Plan().check(range(1))


@pytest.mark.parametrize("shape", [(48, 64, 1), (48, 64, 2), (48, 64, 5), (0, 0), (0, 0, 3), ()], ids=str)
@pytest.mark.parametrize("format", ["coco", "yolo", "bop"])
def test_an_image_of_another_shape_is_told(
    format: str, shape: tuple[int, ...], scene: Callable[..., Any], tmp_path: Path
) -> None:
    """The error says what it is and what to do."""
    values = scene()
    count, size = len(values["id"]), values["instance"].shape
    values |= {
        "image": np.zeros(shape, np.uint8),
        "pose": np.tile(np.eye(4, dtype=np.float32), (count, 1, 1)),
        "silhouette": np.zeros((count, *size), bool),
        "silhouette_bbox": np.zeros((count, 4), np.float32),
        "silhouette_pixels": np.zeros(count, np.int32),
    }
    with pytest.raises(ConfigError, match=r"sample 0: `image` is no picture of .*uint8\[.*under another name"):
        export([values], tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", ["coco", "yolo"])
def test_an_index_comes_once(format: str, scene: Callable[..., Any], tmp_path: Path) -> None:
    """A second sample of an index would replace the first one's image."""
    with pytest.raises(ConfigError, match="two samples have the index 1; each may come once"):
        export([scene(1), scene(1)], tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


def test_frames_of_a_stream_are_samples(scene: Callable[..., Any], tmp_path: Path) -> None:
    """Their index is an attribute. One that is a part of an episode is refused."""
    values = scene(4)
    index = values.pop("index")
    assert export([Frame(values, index=index, instance=0)], tmp_path / "out", "yolo").images == 1
    assert (tmp_path / "out" / "labels" / "train" / "000000004.txt").exists()
    for step, last in ((0, False), (1, True)):
        with pytest.raises(ConfigError, match="sample 4 is an episode of several frames"):
            export([Frame(values, index=index, instance=0, step=step, last=last)], tmp_path / "other")
    with pytest.raises(ConfigError, match="a sample has no 'index', by which it is named; it has 'image'"):
        export([values], tmp_path / "other")


@pytest.mark.parametrize("format", list(FORMATS))
@pytest.mark.parametrize("index", ["a", "1", 1.7, None, True, -1, np.zeros(2, int)], ids=str)
def test_an_index_is_a_whole_number(index: Any, format: str, scene: Callable[..., Any], tmp_path: Path) -> None:
    """No other is taken for one in silence."""
    with pytest.raises(ConfigError, match="'index', by which it is named, must be a whole number from 0; got "):
        export([{**scene(), "index": index}], tmp_path / "out", format)
    assert export([{**scene(), "index": np.int64(3)}], tmp_path / "out", "coco").images == 1


@pytest.mark.parametrize("format", list(FORMATS))
def test_tensors_are_told(format: str, scene: Callable[..., Any], tmp_path: Path) -> None:
    """As a dataset's items have them. It is not the script that is wrong."""
    torch = pytest.importorskip("torch")
    values = scene()
    values["instance"] = torch.from_numpy(values["instance"])
    with pytest.raises(ConfigError, match=r"sample 0: 'instance' is a torch\.Tensor; give numpy arrays"):
        export([values], tmp_path / "out", format)
