"""Damage: whichever byte of a recording is changed or missing, what is read is what was written, or an error says where."""

from __future__ import annotations

import contextlib
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asyncblend as ab
from asyncblend.errors import RecordingError
from asyncblend.recording import Recording, is_recording, read
from asyncblend.recording.checksums import FORMAT
from asyncblend.recording.codec import Images, encode
from asyncblend.recording.writer import ShardSize, Writer

from .conftest import ABOUT

VALUES: dict[str, Any] = {
    "image": np.arange(12, dtype=np.uint8).reshape(2, 2, 3),
    "x": np.array([1, 2], np.float32),
    "n": [1, "one", 0.5],
}
PARAMS = {"level": 0.25}


@pytest.fixture
def small(folder: Path) -> Path:
    """A recording of one sample, in one shard."""
    writer = Writer(folder, ABOUT, ShardSize(4))
    writer.open()
    writer.add(3, encode(VALUES, index=3, instance=1, params=PARAMS, images=Images()))
    writer.close()
    return folder


def told(folder: Path) -> RecordingError | None:
    """Read the recording. Return the error if there is one; otherwise all values must be what was written."""
    try:
        recording = Recording(folder)
        (sample,) = recording
    except RecordingError as error:
        return error
    assert {name: recording.about[name] for name in ABOUT} == ABOUT
    assert (sample.index, sample.instance, sample.params) == (3, 1, PARAMS)
    assert sample.keys() == {*VALUES, "index"}
    for name, value in VALUES.items():
        np.testing.assert_array_equal(sample[name], value)
        assert not isinstance(value, np.ndarray) or sample[name].dtype == value.dtype
    return None


def flipped(path: Path, step: int = 1) -> Iterator[int]:
    """Change one byte of a file after another, each by its own bits, and yield where. Each is put right again."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        for at in range(0, path.stat().st_size, step):
            right = os.pread(descriptor, 1, at)
            os.pwrite(descriptor, bytes([right[0] ^ (at % 255 + 1)]), at)
            yield at
            os.pwrite(descriptor, right, at)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.exhaustive
def test_a_changed_byte_anywhere_in_a_shard(table: bool, small: Path) -> None:
    """It is told with the shard and the place, or it is one of the few that nothing depends on."""
    tar = small / "shard-000000.tar"
    if not table:
        tar.with_suffix(".json").unlink()
    unread, end = 0, len(tar.read_bytes().rstrip(b"\0"))
    for at in flipped(tar):
        if (error := told(small)) is None:
            unread += 1
            continue
        assert str(tar) in str(error)
        assert error.path == str(tar)
        assert error.offset is not None
        assert f"at byte {error.offset}" in str(error)
        assert error.offset <= at
        assert at < error.offset + 1024 or at >= end
    with tarfile.open(tar) as packed:
        needed = sum(512 + member.size for member in packed if not table or member.name.startswith("0"))
    assert unread < tar.stat().st_size - needed + 100  # the padding, and the ends of numbers in headers


def test_a_changed_byte_anywhere_in_a_table(small: Path) -> None:
    """The table is not trusted, and the shard is read without it."""
    for _ in flipped(small / "shard-000000.json"):
        assert told(small) is None


@pytest.mark.parametrize("table", [True, False])
def test_blank_blocks_anywhere(table: bool, small: Path) -> None:
    """Zeros in the midst of a shard, as a disk may leave them, are not taken for its end."""
    tar = small / "shard-000000.tar"
    if not table:
        tar.with_suffix(".json").unlink()
    data = tar.read_bytes()
    end = len(data.rstrip(b"\0"))
    first = data.index(b"000000003.") if table else 0
    for at in range(0, len(data), 512):
        tar.write_bytes(data[:at] + bytes(1024) + data[at + 1024 :])
        changed = first - 1024 < at < end
        assert (told(small) is not None) == changed, at


def test_a_large_hole(small: Path) -> None:
    """Zeros from the header of a sample on, as a sparse copy leaves them, are not taken for the end of the shard."""
    tar = small / "shard-000000.tar"
    tar.with_suffix(".json").unlink()
    data = tar.read_bytes()
    tar.write_bytes(data[: data.index(b"000000003.")] + bytes(2 << 20) + data)
    assert "it has no end" in str(told(small))


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.exhaustive
def test_a_shard_of_any_length(table: bool, small: Path) -> None:
    """A shard that was cut off anywhere is told, if a byte is missing that matters."""
    tar = small / "shard-000000.tar"
    if not table:
        tar.with_suffix(".json").unlink()
    size = tar.stat().st_size
    with tarfile.open(tar) as packed:
        end = max(member.offset_data + -(-member.size // 512) * 512 for member in packed)
    for left in range(size - 1, -1, -1):
        os.truncate(tar, left)
        error = told(small)
        assert (error is not None) == (table or left < end + 1024), left
    os.truncate(tar, 0)


def test_a_table_of_any_length(small: Path) -> None:
    """A table that was cut off is made again."""
    table = small / "shard-000000.json"
    for left in range(table.stat().st_size - 1, -1, -1):
        os.truncate(table, left)
        assert told(small) is None


@pytest.mark.parametrize("file", ["image.png", "x.npy.gz", "json"])
def test_the_error_says_which_file_and_where(file: str, small: Path) -> None:
    """The offset is that of the damaged file in the shard."""
    tar = small / "shard-000000.tar"
    with tarfile.open(tar) as packed:
        member = packed.getmember(f"000000003.{file}")
    data = bytearray(tar.read_bytes())
    data[member.offset_data + member.size // 2] ^= 1
    tar.write_bytes(data)
    error = told(small)
    assert error is not None
    assert (error.path, error.offset) == (str(tar), member.offset_data)
    assert f"sample 3, at byte {member.offset_data}: " in str(error)
    assert file == "json" or f"{file} is not what was written: its checksum differs" in str(error)


def reseal(text: str) -> bytes:
    """Return a table with this text and a right checksum, as an attacker would write it."""
    return f'{text},"crc32":"{zlib.crc32(text.encode()):08x}"}}'.encode()


@pytest.mark.parametrize(
    "samples",
    [
        pytest.param("[" * 100_000, id="deep"),
        pytest.param("{" * 100_000, id="deep objects"),
        *("[[1e999,0,1024]]", "[[3,-1e999,1024]]", "[[NaN,0,1]]", "[[3,0]]", "[3]", "3", "null", "{}", '{"123":0}'),
        *("[[3,0,1e300]]", "[[-1,0,512]]", f"[[{2**63},0,512]]", f"[[3,0,{2**70}]]", f"[[{'9' * 5000},0,1]]"),
        *("[[3,0,512]]", "[[3,1,10240]]", "[[3,0,10240]]", "[[3,512,1536]]", "[[4,1024,5120]]", "[]"),
        *("[[3,0,512],[3,0,512]]", '[["3","0","512"]]', "[[[],[],[]]]", "[[true,false,true]]"),
    ],
)
def test_a_crafted_table_is_harmless(samples: str, small: Path) -> None:
    """A table with numbers that no table has gives an error of its kind, or is not used."""
    tar = small / "shard-000000.tar"
    size = tar.stat().st_size
    about = json.dumps({"format": FORMAT, **ABOUT})
    table = f'{{"format":{FORMAT},"size":{size},"about":{about},"samples":{samples}'
    tar.with_suffix(".json").write_bytes(reseal(table))
    told(small)
    with contextlib.suppress(RecordingError):  # any other error fails
        assert len(ab.RecordedDataset(small, shuffle=True)) > 0


@pytest.mark.parametrize("about", ["[" * 100_000, "1e999", '{"format":1e999}', "[]", '"', "", '{"format":[3]}', "{}"])
def test_a_crafted_beginning_is_harmless(about: str, small: Path) -> None:
    """What says what made the samples may be anything: it is told if it is not what a writer writes."""
    tar = small / "shard-000000.tar"
    tar.with_suffix(".json").unlink()
    with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as packed:
        (member := tarfile.TarInfo("__recording__/about.json")).size = len(about)
        (path := small / "about").write_text(about)
        with path.open("rb") as file:
            packed.addfile(member, file)
    with pytest.raises(RecordingError, match=r"damaged at byte|of the format"):
        list(read(small))


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize("name", ["shard-000000.tar", "shard-000000.json"])
def test_what_is_no_file_is_not_waited_for(kind: str, name: str, small: Path) -> None:
    """A named pipe, which nobody writes to, or a device without an end is no shard and no table."""
    path = small / name
    path.unlink()
    make: dict[str, Callable[[], Any]] = {
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "folder": path.mkdir,
    }
    make[kind]()
    assert is_recording(small)
    error = told(small)
    if name.endswith(".tar"):
        assert error is not None
        assert "cannot read" in str(error)
    else:
        assert error is None
