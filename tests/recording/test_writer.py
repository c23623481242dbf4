"""The writer: shards are always whole, a folder has one writer at a time, and one recording."""

from __future__ import annotations

import errno
import json
import os
import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asyncblend
from asyncblend.config import StreamConfig
from asyncblend.errors import ConfigError, RecordingError, StartTimeout
from asyncblend.recording import Recording, read
from asyncblend.recording.about import about, check_same
from asyncblend.recording.codec import Images
from asyncblend.recording.writer import ShardSize, Writer, write_shard

from .conftest import ABOUT, files_of

Written = Callable[..., Path]


def opened(folder: Path, shard_size: int | str = 4) -> Writer:
    writer = Writer(folder, ABOUT, ShardSize(shard_size))
    writer.open()
    return writer


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def indices(folder: Path) -> list[int]:
    return [sample.index for sample in read(folder)]


def test_a_shard_has_so_many_samples(written: Written) -> None:
    """The last shard has the rest. Nothing else is left in the folder, except for the lock's file."""
    folder = written(range(10), shard_size=4)
    shards = [f"shard-00000{number}{suffix}" for number in range(3) for suffix in (".tar", ".json")]
    assert names(folder) == {*shards, ".writing"}
    assert Recording(folder).shards.tolist() == [0] * 4 + [1] * 4 + [2] * 2


def test_a_shard_has_so_many_bytes(written: Written) -> None:
    """A shard of bytes ends with the sample that reaches the limit."""
    folder = written(range(30), shard_size="20KB")
    tars = sorted(folder.glob("*.tar"))
    assert len(tars) > 3
    for tar in tars[:-1]:
        assert 20_000 <= tar.stat().st_size < 20_000 + 2 * 10_240  # the rest of a tar's record
    assert indices(folder) == list(range(30))


@pytest.mark.parametrize("size", [0, -1, True, 1.5, None, "", "MB", "0MB", "10", "10 TB", "1e3MB"])
def test_wrong_shard_sizes_are_told(size: Any) -> None:
    """The error shows both forms that a shard size may have."""
    with pytest.raises(ConfigError, match='a number of samples, at least 1, or of bytes, such as "500MB"'):
        ShardSize(size)


def test_the_next_writer_goes_on(written: Written) -> None:
    """The next writer adds new shards with the missing samples, and does not touch the shards that are there."""
    folder = written(range(6))
    before = {path: path.read_bytes() for path in folder.glob("shard-*")}
    writer = opened(folder)
    assert sorted(writer.indices) == list(range(6))
    assert writer.recorded == 6
    for index in range(12):
        writer.add(index, files_of(index))
    writer.close()
    assert writer.recorded == 12
    assert {path: path.read_bytes() for path in before} == before
    assert indices(folder) == list(range(12))
    assert Recording(folder).shards.tolist() == [0] * 4 + [1] * 2 + [2] * 4 + [3] * 2


def test_the_same_samples_are_the_same_bytes(written: Written, tmp_path: Path) -> None:
    """No time, user, or order of names gets into a shard."""
    one = written(range(4))
    other = tmp_path / "other"
    writer = opened(other)
    for index in range(4):
        writer.add(index, dict(reversed(files_of(index).items())))
    writer.close()
    assert (one / "shard-000000.tar").read_bytes() == (other / "shard-000000.tar").read_bytes()


def test_many_threads_may_add(folder: Path) -> None:
    """When many threads add samples, each sample is recorded once."""
    writer = opened(folder, 7)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: writer.add(index % 100, files_of(index % 100)), range(200)))
    writer.close()
    assert indices(folder) == list(range(100))
    assert writer.recorded == 100
    assert writer.written == sum(path.stat().st_size for path in folder.glob("*.tar"))


def test_leftovers_of_a_crash_go(written: Written) -> None:
    """Only unfinished shards and tables are removed."""
    folder = written(range(4))
    for name in ("shard-000001.tar.partial", "shard-000000.json.partial", "notes.partial", "shard-notes.txt"):
        (folder / name).write_bytes(b"half")
    opened(folder).close()
    assert names(folder) == {"shard-000000.tar", "shard-000000.json", "notes.partial", "shard-notes.txt", ".writing"}


# -- one writer, one recording -------------------------------------------------------------------------------------


def test_a_second_writer_is_told(folder: Path) -> None:
    """The error names the process that has the folder. When that has closed its writer, another may open the folder."""
    writer = opened(folder)
    with pytest.raises(RecordingError, match=rf"another recording into .* is going on \(process {os.getpid()}\)"):
        opened(folder)
    writer.add(0, files_of(0))
    writer.close()
    opened(folder).close()
    assert indices(folder) == [0]


def test_a_child_forked_meanwhile_holds_nothing(folder: Path) -> None:
    """A fork that outlives the writer, such as a DataLoader's worker, does not keep the folder locked."""
    writer = opened(folder)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(writing)
        os.read(reading, 1)  # returns when the parent closes its end, or has died
        os._exit(0)
    try:
        writer.close()
        opened(folder).close()
    finally:
        os.close(writing)
        os.close(reading)
        os.waitpid(child, 0)


def test_a_writer_in_another_process_is_told_and_its_death_frees_the_folder(folder: Path) -> None:
    """The death of a writer's process unlocks the folder, however the process dies."""
    code = (
        "import sys; from pathlib import Path; from asyncblend.recording.writer import *;"
        f"writer = Writer(Path({str(folder)!r}), {ABOUT!r}, ShardSize(4)); writer.open(); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(RecordingError, match=rf"process {other.pid}"):
            opened(folder)
        other.kill()
        other.wait(timeout=30)
        opened(folder).close()


def test_a_writer_that_cannot_open_holds_nothing(written: Written, folder: Path) -> None:
    """If anything stops a writer after it has locked the folder, the folder is unlocked again."""
    written(range(4))
    other = Writer(folder, {**ABOUT, "seed": 1}, ShardSize(4))
    with pytest.raises(ConfigError):
        other.open()
    opened(folder).close()


def test_a_recording_of_something_else_is_told(written: Written, folder: Path) -> None:
    """The recording that is there stays unchanged."""
    written(range(4))
    with pytest.raises(ConfigError, match="seed is 0 there, 1 here"):
        Writer(folder, {**ABOUT, "seed": 1}, ShardSize(4)).open()
    opened(folder).close()
    assert indices(folder) == list(range(4))


def test_what_differs_is_told(tmp_path: Path) -> None:
    """Differing options are named as the user writes them. A script is compared by its content, whatever its name."""
    script = tmp_path / "scene.py"
    script.write_text("pass\n")
    (tmp_path / "copy.py").write_text("pass\n")
    (tmp_path / "other.py").write_text("other\n")
    first: dict[str, Any] = {"script": script, "seed": 3, "script_args": ["--fast"], "params": {"level": 1}}

    def made(images: Images | None = None, **changed: Any) -> dict[str, Any]:
        as_written = json.dumps(about(StreamConfig(**{**first, **changed}), images or Images()))
        read_again: dict[str, Any] = json.loads(as_written)
        return read_again

    there = made()
    for same in ({}, {"instances": 7, "queue_size": 3, "length": 10}, {"script": tmp_path / "copy.py"}):
        check_same(there, made(**same), tmp_path)
    for changed, told in (
        ({"seed": 4}, "seed is 3 there, 4 here"),
        ({"script": tmp_path / "other.py"}, "the script is 'scene.py' there, 'other.py' here"),
        ({"script_args": ["--slow"]}, r"script_args is \['--fast'\] there, \['--slow'\] here"),
        ({"params": {"level": 2}}, "params is .*level.*1.* there, .*level.*2.* here"),
        ({"params": str}, "params is .* there, .*function.*str.* here"),
        ({"scene": script}, "the scene is None there, 'scene.py' here"),
        ({"images": Images("jpeg", 90)}, "image_format is 'png' there, 'jpeg' here; quality is None there, 90 here"),
    ):
        with pytest.raises(ConfigError, match=told):
            check_same(there, made(**changed), tmp_path)
    script.write_text("changed\n")
    with pytest.raises(ConfigError, match="the script has been changed since"):
        check_same(there, made(), tmp_path)


def test_what_made_it_names_versions(tmp_path: Path) -> None:
    """The versions say what a recording was made with."""
    (tmp_path / "scene.py").touch()
    versions = about(StreamConfig(script=tmp_path / "scene.py"), Images())["versions"]
    assert {"asyncblend", "python", "numpy", "pillow", "isal", "webdataset"} <= versions.keys()
    with pytest.raises(ConfigError, match=r"script 'nowhere\.py' cannot be read: No such file"):
        about(StreamConfig(script="nowhere.py"), Images())


# -- the disk ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_files() -> Iterator[Callable[[int], None]]:
    """Limit the size of files, so that writing fails with a real error of the system, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [0, 5_000, 15_000, 25_000, 40_000, 100_000])
def test_a_full_disk_keeps_what_was_written(room: int, folder: Path, small_files: Callable[[int], None]) -> None:
    """The error says how much was recorded. That can be read, and the recording continues when there is space again."""
    writer = opened(folder, 1000)
    small_files(room)
    index = 0
    with pytest.raises(RecordingError, match=r"cannot record into .*: File too large") as caught:
        for index in range(1000):
            writer.add(index, files_of(index))
    small_files(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    assert isinstance(caught.value.__cause__, OSError)
    recorded = caught.value.recorded
    assert recorded == writer.recorded
    with pytest.raises(RecordingError):  # a failed writer stays closed, also when there is space again
        writer.add(index + 1, files_of(index + 1))
    writer.close()
    if recorded:
        assert f"{recorded} samples are recorded there and stay readable" in str(caught.value)
        assert indices(folder) == list(range(recorded))
    assert (recorded or 0) >= room // 5_000 - 4
    assert not list(folder.glob("*.partial"))
    writer = opened(folder, 1000)
    for index in range(60):
        writer.add(index, files_of(index))
    writer.close()
    assert indices(folder) == list(range(60))


@pytest.mark.parametrize("call", ["write", "fsync", "replace", "open"])
@pytest.mark.parametrize("turn", range(4))
def test_a_full_disk_at_any_call(call: str, turn: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each system call of a writer fails once with ENOSPC. An error is raised, and what it counts can be read."""
    calls = 0
    writer = opened(folder, 3)
    real = getattr(os, call)

    def failing(*args: Any, **options: Any) -> Any:
        nonlocal calls
        # The fsync of the folder does not count: not every file system has it, and errors of it are ignored.
        ours = "shard-" in str(args[0]) if call in ("replace", "open") else stat.S_ISREG(os.fstat(args[0]).st_mode)
        calls += ours
        if ours and calls == 1 + 3 * turn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "the disk")
        return real(*args, **options)

    monkeypatch.setattr(os, call, failing)
    try:
        with pytest.raises(RecordingError, match="No space left on device"):
            for index in range(60):
                writer.add(index, files_of(index))
    finally:
        monkeypatch.undo()
    writer.close()
    assert (indices(folder) if writer.recorded else []) == sorted(writer.indices)
    assert len(writer.indices) == writer.recorded
    assert not list(folder.glob("*.partial"))
    written_again = opened(folder, 3)
    for index in range(60):
        written_again.add(index, files_of(index))
    written_again.close()
    assert indices(folder) == list(range(60))


def test_a_shard_whose_renaming_fails_once_is_not_lost(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is raised, and all samples are there."""
    writer = opened(folder, 1000)
    for index in range(5):
        writer.add(index, files_of(index))
    real, failures = Path.replace, [OSError(errno.EIO, os.strerror(errno.EIO))]

    def replace(self: Path, target: Path) -> Path:
        if failures:
            raise failures.pop()
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(RecordingError, match="Input/output error") as caught:
        writer.close()
    assert caught.value.recorded == writer.recorded == 5
    assert indices(folder) == list(range(5))


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """A folder that is a file, or is below a file, raises before anything is rendered."""
    (tmp_path / "file").touch()
    for folder, why in ((tmp_path / "file", "File exists"), (tmp_path / "file" / "below", "Not a directory")):
        with pytest.raises(RecordingError, match=f"cannot record into .*: {why}") as caught:
            opened(folder)
        assert caught.value.path == str(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_one_may_not_write_is_told(folder: Path) -> None:
    """A folder without the permission to write raises."""
    folder.mkdir(mode=0o500)
    with pytest.raises(RecordingError, match="Permission denied"):
        opened(folder)


def test_a_missing_library_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the command that installs it, and the folder is not made."""
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(RecordingError, match=r'needs webdataset: pip install "asyncblend\[record\]"'):
        opened(folder)
    assert not folder.exists()


def test_without_webdataset_recordings_are_read_and_not_written(written: Written, tmp_path: Path) -> None:
    """A Python that has all packages except webdataset reads recordings, and its error says what to install."""
    recorded = written(range(6))
    packages = tmp_path / "packages"
    packages.mkdir()
    for path in Path(np.__file__).parents[1].iterdir():
        if not path.name.startswith(("webdataset", "__")):
            (packages / path.name).symlink_to(path)
    (tmp_path / "scene.py").write_text("raise SystemExit('rendered')")
    code = f"""
import asyncio, importlib.util, sys
sys.path.insert(1, {str(packages)!r})
assert importlib.util.find_spec("webdataset") is None
import asyncblend as ab
from asyncblend.recording import read
assert [sample["image"].shape for sample in read({str(recorded)!r})] == [(6, 8, 3)] * 6
assert len(list(ab.RecordedDataset({str(recorded)!r}))) == 6

async def record():
    await ab.BlenderStream(script={str(tmp_path / "scene.py")!r}, blender="/nowhere", length=4).record({str(tmp_path / "new")!r})

try:
    asyncio.run(record())
except ab.RecordingError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],  # -S leaves out the folder of installed packages
        capture_output=True,
        text=True,
        timeout=100,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(asyncblend.__file__).parents[1])},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert 'recording needs webdataset: pip install "asyncblend[record]"' in done.stdout
    assert not (tmp_path / "new").exists()


def test_closing_makes_the_shard_whole_from_any_thread(folder: Path) -> None:
    """A writer may be closed twice, and refuses samples afterwards."""
    writer = opened(folder)
    writer.add(0, files_of(0))
    thread = threading.Thread(target=writer.close)
    thread.start()
    thread.join(timeout=30)
    writer.close()
    assert indices(folder) == [0]
    with pytest.raises(RecordingError, match="closed"):
        writer.add(1, files_of(1))


# -- shards that other processes write -----------------------------------------------------------------------------


def test_a_shard_of_another_process_is_counted_and_gets_its_table(folder: Path, tmp_path: Path) -> None:
    """The files are those that a single writer makes. Written again, it is the one that is there."""
    writer = opened(folder, 4)
    made: Any = {**ABOUT, "blender": "4.5"}
    shards = [
        write_shard(folder, number, made, ((index, files_of(index)) for index in range(4 * number, 4 * number + 4)))
        for number in (1, 0)
    ]
    for shard in shards:
        assert shard is not None
        writer.include(shard)
    again = write_shard(folder, 1, made, iter([(99, files_of(99))]))
    assert again is not None
    assert [span.sample for span in again.spans] == [4, 5, 6, 7]
    assert writer.recorded == 8
    writer.close()

    alone = opened(tmp_path / "alone", 4)
    for index in range(8):
        alone.add(index, files_of(index), blender="4.5")
    alone.close()
    assert names(folder) == names(tmp_path / "alone")
    for name in names(folder) - {".writing"}:
        assert (folder / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_nothing_is_left_of_a_shard_that_cannot_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither when its samples raise, nor when the disk is full; without samples there is no shard."""
    writer = opened(folder)

    def failing() -> Iterator[tuple[int, dict[str, bytes]]]:
        yield 0, files_of(0)
        raise StartTimeout("no Blender", instance=0)  # an OSError, as the disk's are

    with pytest.raises(StartTimeout, match="no Blender"):
        write_shard(folder, 0, ABOUT, failing())
    assert write_shard(folder, 0, ABOUT, iter(())) is None

    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(RecordingError, match=r"cannot record into .*recording: No space left on device"):
            write_shard(folder, 0, ABOUT, iter([(0, files_of(0))]))
    assert names(folder) == {".writing"}
    with pytest.raises(RecordingError, match=r"cannot record into .*: No such file or directory"):
        write_shard(folder / "nowhere", 0, ABOUT, iter([(0, files_of(0))]))

    shard = write_shard(folder, 0, ABOUT, iter([(0, files_of(0))]))
    assert shard is not None
    (folder / "shard-000000.tar").unlink()
    with pytest.raises(RecordingError, match=r"cannot record into .*: No such file or directory"):
        writer.include(shard)

    def swept() -> Iterator[tuple[int, dict[str, bytes]]]:
        yield 0, files_of(0)
        writer.sweep()  # as a program does that ends while another process goes on
        yield 1, files_of(1)

    with pytest.raises(RecordingError, match=r"cannot record into .*: the recording was ended"):
        write_shard(folder, 1, ABOUT, swept())
    writer.close()
