"""Reading: samples come in order of index, and errors name what is missing or damaged."""

from __future__ import annotations

import gc
import io
import json
import os
import pickle
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from asyncblend import recording
from asyncblend.errors import RecordingError
from asyncblend.recording import Recording, read, shards

from .conftest import ABOUT, values_of

Written = Callable[..., Path]


def check(folder: Path, indices: list[int]) -> None:
    """Check that the recording has these samples, in this order and with the right values."""
    samples = list(read(folder))
    assert [sample.index for sample in samples] == indices
    for sample in samples:
        expected = values_of(sample.index)
        assert sample.keys() == {*expected, "index"}
        assert sample["index"] == sample.index
        np.testing.assert_array_equal(sample["image"], expected["image"])
        np.testing.assert_array_equal(sample["depth"], expected["depth"])
        assert sample["name"] == expected["name"]
        assert (sample.instance, sample.params) == (sample.index % 2, {"level": sample.index / 4})
        assert sample.files["image.png"].startswith(b"\x89PNG")


def test_samples_come_in_order_of_index(written: Written) -> None:
    """The order does not depend on the order of arrival, or on how samples are spread over shards."""
    indices = [int(i) for i in np.random.default_rng(0).permutation(23)]
    folder = written(indices)
    assert len(list(folder.glob("*.tar"))) == 6
    check(folder, list(range(23)))
    assert isinstance(Recording(folder), Iterable)
    assert [sample.index for sample in Recording(folder)] == list(range(23))
    about = Recording(folder).about
    assert {name: about[name] for name in ABOUT} == ABOUT
    assert recording.is_recording(folder)
    assert recording.is_recording(os.fspath(folder))


def test_the_current_folder_may_change(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording stays where it was when it was opened. One that is not there is told by the name that was given."""
    folder = written(range(3))
    monkeypatch.chdir(folder.parent)
    opened = Recording(folder.name)
    (folder.parent / "other").mkdir()
    monkeypatch.chdir("other")
    assert [sample.index for sample in opened] == [0, 1, 2]
    assert len(pickle.loads(pickle.dumps(opened))) == 3
    with pytest.raises(RecordingError, match=r"^\. has no recording"):
        Recording(".")


@pytest.mark.parametrize("made", ["nothing", "empty", "file", "others"])
def test_what_is_no_recording_is_told(made: str, folder: Path) -> None:
    """No folder, an empty folder, a file, and a folder of other tars are no recordings."""
    if made == "file":
        folder.touch()
    elif made != "nothing":
        folder.mkdir()
        if made == "others":
            (folder / "shard-1.tar").touch()
            (folder / "shard-000000.tar.partial").touch()
    assert not recording.is_recording(folder)
    with pytest.raises(RecordingError, match="recording") as caught:
        next(read(folder))
    assert caught.value.path == str(folder)


@pytest.mark.parametrize(
    "damage", ["missing", "empty", "no JSON", "another format", "another size", "wrong place", "another seed"]
)
def test_a_bad_table_is_made_again(damage: str, written: Written) -> None:
    """Reading needs no table, because the tar has all that its table says. The next writer writes the table again."""
    folder = written(range(10))
    table = folder / "shard-000001.json"
    good = table.read_bytes()
    fields = json.loads(good)
    changed = {
        "another format": {**fields, "format": 99},
        "another size": {**fields, "size": fields["size"] - 512},
        "wrong place": {**fields, "samples": [[4, -5, 10]]},
        "another seed": {**fields, "about": {**fields["about"], "seed": 1}},
    }
    if damage == "missing":
        table.unlink()
    else:
        broken = {"empty": "", "no JSON": "{", **{how: json.dumps(all_of_it) for how, all_of_it in changed.items()}}
        table.write_text(broken[damage])
    check(folder, list(range(10)))
    written([])
    assert table.read_bytes() == good


@pytest.mark.parametrize("version", [1, 5])
@pytest.mark.parametrize("table", [True, False])
def test_another_format_is_told(version: int, table: bool, written: Written) -> None:
    """Both reading and writing refuse shards of another format, with or without tables, and leave them unchanged."""
    folder = written(range(10))
    for tar in folder.glob("*.tar"):
        as_format(tar, version)
        if table:
            shard = shards.Shard(tar, tar.stat().st_size, {"format": version}, [])
            shards.write_table(shard)
    before = {path: path.read_bytes() for path in folder.glob("shard-*")}
    told = rf"shard-000000\.tar is of the format {version} .*reads formats 2 to 4\. Take the version that wrote it"
    for reader in (lambda: list(read(folder)), lambda: written([])):
        with pytest.raises(RecordingError, match=told) as caught:
            reader()
        assert caught.value.path == str(folder / "shard-000000.tar")
    assert {path: path.read_bytes() for path in folder.glob("shard-*")} == before


@pytest.mark.parametrize("table", [True, False])
def test_format_2_is_read_without_checks(table: bool, written: Written) -> None:
    """A recording of before the checksums is read, and gone on with in new shards, which have them."""
    folder = written(range(6))
    for tar in folder.glob("*.tar"):
        as_format(tar, 2)
        if table:
            old = {"format": 2, "size": tar.stat().st_size, "about": {"format": 2}, "samples": []}
            tar.with_suffix(".json").write_text(json.dumps(old) + "\n")
    check(folder, list(range(6)))
    before = {tar: tar.read_bytes() for tar in folder.glob("*.tar")}
    written(range(10))
    check(folder, list(range(10)))
    assert {tar: tar.read_bytes() for tar in before} == before
    assert len(list(folder.glob("*.json"))) == len(list(folder.glob("*.tar"))) == 3


def as_format(tar: Path, version: int) -> None:
    """Pack a shard again as a writer of another format would have written it, and remove its table."""
    with tarfile.open(tar) as packed:
        files = {member.name: packed.extractfile(member).read() for member in packed}  # type: ignore[union-attr]
    with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as packed:
        for name, data in files.items():
            if name.endswith(".json"):
                fields = json.loads(data)
                fields = {key: value for key, value in fields.items() if key not in ("files", "crc32")}
                data = json.dumps({**fields, "format": version} if "seed" in fields else fields).encode()
            (member := tarfile.TarInfo(name)).size = len(data)
            packed.addfile(member, io.BytesIO(data))
    tar.with_suffix(".json").unlink()


@pytest.mark.parametrize("size", [-512, -1024, -1, 1 << 40, -(1 << 63), (1 << 63) - 1])
@pytest.mark.parametrize("table", [True, False])
def test_a_size_that_no_file_has_is_told(size: int, table: bool, written: Written) -> None:
    """A negative size, which would read the same header for ever, and a huge one are damage."""
    folder = written(range(4))
    tar = folder / "shard-000000.tar"
    at = read_table(tar)["samples"][0][1] if table else 0
    data = bytearray(tar.read_bytes())
    data[at + 124 : at + 136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)  # type: ignore[attr-defined]
    data[at + 148 : at + 156] = b"        "
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    tar.write_bytes(data)
    if not table:
        tar.with_suffix(".json").unlink()
    with pytest.raises(RecordingError, match=rf"shard-000000\.tar is damaged.*has {size} bytes") as caught:
        list(read(folder))
    assert (caught.value.path, caught.value.offset) == (str(tar), at)


def read_table(tar: Path) -> Any:
    return json.loads(tar.with_suffix(".json").read_bytes())


def test_another_tools_tar_is_read(written: Written) -> None:
    """`tar` may pack a shard again, with headers of its own."""
    folder = written(range(3))
    tar = folder / "shard-000000.tar"
    inside = folder / "inside"
    inside.mkdir()
    subprocess.run(["tar", "-xf", tar, "-C", inside], check=True, timeout=30)
    names = subprocess.run(["tar", "-tf", tar], check=True, capture_output=True, text=True, timeout=30).stdout.split()
    tar.unlink()
    subprocess.run(["tar", "--format=ustar", "-cf", tar, "-C", inside, *names], check=True, timeout=30)
    shutil.rmtree(inside)
    check(folder, [0, 1, 2])
    data = tar.read_bytes()
    tar.write_bytes(data.replace(b"\x89PNG", b"\x88PNG", 1))  # the checksums are still there
    with pytest.raises(RecordingError, match=r"image\.png is not what was written: its checksum differs"):
        list(read(folder))


@pytest.mark.parametrize("table", [True, False])
def test_a_recording_of_format_3_is_read_and_continued(table: bool, folder: Path, written: Written) -> None:
    """Its arrays are plain npy. A writer leaves its shards as they are, and adds others of its own format."""
    shutil.copytree(Path(__file__).parent / "format3", folder)  # made by the last version that wrote format 3
    if not table:
        for file in folder.glob("*.json"):
            file.unlink()
    before = {path: path.read_bytes() for path in folder.glob("*.tar")}
    assert written([4, 5]) == folder
    assert {path: path.read_bytes() for path in before} == before
    samples = list(read(folder))
    assert [sample.index for sample in samples] == list(range(6))
    for index, sample in enumerate(samples[:4]):
        image = np.arange(index, index + 144, dtype=np.uint8).reshape(6, 8, 3)
        depth = np.arange(48, dtype=np.float32).reshape(6, 8) / 7 + index
        np.testing.assert_array_equal(sample["image"], image)
        np.testing.assert_array_equal(sample["depth"], depth, strict=True)
        assert (sample["name"], sample.params["level"]) == (f"sample {index}", index / 4)
        np.testing.assert_array_equal(sample.params["xy"], np.array([index, -1]), strict=True)
        assert sorted(sample.files) == ["depth.npy", "image.png", "json", "params-xy.npy"]
    np.testing.assert_array_equal(samples[5]["depth"], values_of(5)["depth"], strict=True)
    assert sorted(samples[5].files) == ["depth.npy.gz", "image.png", "json"]
    data = bytearray(next(iter(before.values())))
    data[data.index(b"NUMPY") + 130] ^= 1  # its checksums are compared as ever
    next(iter(before)).write_bytes(data)
    with pytest.raises(RecordingError, match=r"depth\.npy is not what was written: its checksum differs"):
        list(read(folder))


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset does not close its files
def test_webdataset_reads_it(written: Written) -> None:
    """webdataset reads the samples with its own decoders, and skips the file that says what made them."""
    folder = written(range(6))
    tars = sorted(map(str, folder.glob("*.tar")))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in samples] == [f"{i:09d}" for i in range(6)]
    for index, sample in enumerate(samples):
        expected = values_of(index)
        np.testing.assert_array_equal(sample["image.png"], expected["image"])
        np.testing.assert_array_equal(sample["depth.npy.gz"], expected["depth"])
        assert sample["json"]["index"] == index
    gc.collect()


def test_a_missing_shard_is_told(written: Written) -> None:
    """A table without its tar means that the tar is missing."""
    folder = written(range(10))
    tar = folder / "shard-000001.tar"
    tar.unlink()
    for reader in (lambda: list(read(folder)), lambda: written([])):
        with pytest.raises(RecordingError, match=r"shard-000001\.tar is missing.*Put it back") as caught:
            reader()
        assert caught.value.path == str(tar)
    assert recording.is_recording(folder)
    tar.with_suffix(".json").unlink()
    check(folder, [0, 1, 2, 3, 8, 9])
    written(range(10))
    check(folder, list(range(10)))


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("left", [0, 100, 512, 1536, 0.5, -10240])
def test_a_shard_cut_off_anywhere_is_told(left: float, table: bool, written: Written) -> None:
    """A shard that was cut off is noticed with its table and without."""
    folder = written(range(10))
    tar = folder / "shard-000001.tar"
    size = tar.stat().st_size
    cut = int(left * size) if isinstance(left, float) else left if left >= 0 else size + left
    os.truncate(tar, cut)
    if not table:
        tar.with_suffix(".json").unlink()
    with pytest.raises(RecordingError, match=r"shard-000001\.tar is (cut off|damaged)") as caught:
        list(read(folder))
    assert caught.value.path == str(tar)


def test_a_shard_cut_off_while_it_is_open_is_told(written: Written) -> None:
    """A shard that changes after the recording was opened is noticed when a sample is read."""
    folder = written(range(4))
    found = Recording(folder)
    os.truncate(folder / "shard-000000.tar", 3000)
    with pytest.raises(RecordingError, match=r"shard-000000\.tar is damaged: sample 3"):
        found[3]
    (folder / "shard-000000.tar").unlink()
    with pytest.raises(RecordingError, match=r"cannot read .*shard-000000\.tar: No such file"):
        found[0]


def test_two_recordings_in_one_folder_are_told(written: Written) -> None:
    """An index in two shards is an error."""
    folder = written(range(4), shard_size=2)
    for suffix in (".tar", ".json"):
        shutil.copy(folder / f"shard-000000{suffix}", folder / f"shard-000002{suffix}")
    with pytest.raises(RecordingError, match=r"sample 0 is both in .*shard-000000\.tar and in shard-000002\.tar"):
        list(read(folder))


def test_a_foreign_file_in_a_shard_is_told(written: Written, tmp_path: Path) -> None:
    """A shard with a file that no recording has is an error."""
    folder = written(range(4))
    (tmp_path / "notes.txt").write_text("hello")
    tar = folder / "shard-000000.tar"
    tar.with_suffix(".json").unlink()
    subprocess.run(["tar", "--format=ustar", "-rf", tar, "-C", tmp_path, "notes.txt"], check=True, timeout=30)
    with pytest.raises(RecordingError, match=r"notes\.txt is no file of a recording"):
        list(read(folder))


def test_a_recording_can_be_pickled(written: Written) -> None:
    """DataLoader's workers get pickled recordings."""
    found: Any = pickle.loads(pickle.dumps(Recording(written(range(5)))))
    assert found[3].index == 3
    assert found.indices.tolist() == [0, 1, 2, 3, 4]
    assert found.shards.tolist() == [0, 0, 0, 0, 1]
