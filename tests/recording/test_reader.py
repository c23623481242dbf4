"""Reading: samples come in order of index, and errors name what is missing or damaged."""

from __future__ import annotations

import gc
import json
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from asyncblend import recording
from asyncblend.errors import RecordingError
from asyncblend.recording import Recording, read, shards, writer

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


@pytest.mark.parametrize("damage", ["missing", "empty", "no JSON", "another format", "another size", "wrong place"])
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
    }
    if damage == "missing":
        table.unlink()
    else:
        broken = {"empty": "", "no JSON": "{", **{how: json.dumps(all_of_it) for how, all_of_it in changed.items()}}
        table.write_text(broken[damage])
    check(folder, list(range(10)))
    written([])
    assert table.read_bytes() == good


@pytest.mark.parametrize("table", [True, False])
def test_another_format_is_told(table: bool, written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both reading and writing refuse shards of another format, with or without tables, and leave them unchanged."""
    monkeypatch.setattr(shards, "FORMAT", 1)
    monkeypatch.setattr(writer, "FORMAT", 1)
    folder = written(range(10))
    monkeypatch.undo()
    if not table:
        for path in folder.glob("*.json"):
            path.unlink()
    before = {path: path.read_bytes() for path in folder.glob("shard-*")}
    for reader in (lambda: list(read(folder)), lambda: written([])):
        with pytest.raises(RecordingError, match=r"shard-000000\.tar is of the format 1.*reads format 2") as caught:
            reader()
        assert caught.value.path == str(folder / "shard-000000.tar")
    assert {path: path.read_bytes() for path in folder.glob("shard-*")} == before


@pytest.mark.parametrize("size", [b"\xff" * 12, b"\xff" * 11 + b"\0", b"\x80" + b"\xff" * 11])
def test_a_size_that_no_file_has_is_told(size: bytes, written: Written) -> None:
    """A negative size, which would read the same header for ever, and a huge one are damage."""
    folder = written(range(4))
    tar = folder / "shard-000000.tar"
    data = bytearray(tar.read_bytes())
    data[124:136] = size
    data[148:156] = b"        "
    data[148:156] = b"%06o\0 " % sum(data[:512])
    tar.write_bytes(data)
    tar.with_suffix(".json").unlink()
    with pytest.raises(RecordingError, match=r"shard-000000\.tar is damaged"):
        list(read(folder))


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
        np.testing.assert_array_equal(sample["depth.npy"], expected["depth"])
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
    found = Recording(written(range(4)))
    os.truncate(found.folder / "shard-000000.tar", 3000)
    with pytest.raises(RecordingError, match=r"shard-000000\.tar is damaged: sample 3"):
        found[3]
    (found.folder / "shard-000000.tar").unlink()
    with pytest.raises(RecordingError, match=r"cannot read .*shard-000000\.tar: No such file"):
        found[0]


@pytest.mark.parametrize("seed", range(20))
def test_flipped_bytes_never_get_through_as_another_error(seed: int, written: Written) -> None:
    """Flipped bytes change only pixels, or the error says that the shard is damaged, with a table and without."""
    folder = written(range(4))
    tar = folder / "shard-000000.tar"
    data = bytearray(tar.read_bytes())
    rng = np.random.default_rng(seed)
    for at in rng.integers(0, len(data), 20):
        data[at] ^= int(rng.integers(1, 256))
    tar.write_bytes(data)
    if seed % 2:
        tar.with_suffix(".json").unlink()
    told: RecordingError | None = None
    try:
        samples = list(read(folder))
    except RecordingError as error:
        told = error
    if told is None:
        assert all(isinstance(sample["image"], np.ndarray) for sample in samples)
    else:
        assert told.path == str(tar)
        assert "shard-000000.tar is damaged" in str(told)


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
