"""Links in a recording's folder: recording never writes outside the folder."""

from __future__ import annotations

from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from asyncblend.errors import RecordingError
from asyncblend.recording import read
from asyncblend.recording.writer import ShardSize, Writer

from .conftest import ABOUT, files_of


def opened(folder: Path) -> Writer:
    writer = Writer(folder, ABOUT, ShardSize(2))
    writer.open()
    return writer


@pytest.mark.parametrize("link", ["symbolic", "hard", "dangling"])
def test_the_lock_is_no_link(link: str, folder: Path, tmp_path: Path) -> None:
    """The file that a link leads to is neither made, emptied nor written."""
    folder.mkdir()
    precious, lock = tmp_path / "precious", folder / ".writing"
    if link != "dangling":
        precious.write_text("mine")
    if link == "hard":
        lock.hardlink_to(precious)
    else:
        lock.symlink_to(precious)
    with pytest.raises(RecordingError, match=r"\.writing is a link .* remove it") as caught:
        opened(folder)
    assert caught.value.path == str(folder)
    assert not precious.exists() if link == "dangling" else precious.read_text() == "mine"
    lock.unlink()
    opened(folder).close()


def test_the_lock_becomes_a_link_meanwhile(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that comes after the folder was examined, or after it was locked, is not followed either."""
    folder.mkdir()
    precious, lock, real = tmp_path / "precious", folder / ".writing", FileLock.acquire
    precious.write_text("mine")

    def swapped(self: FileLock, *args: Any, locked: bool, **options: Any) -> Any:
        acquired = real(self, *args, **options) if locked else None
        lock.unlink(missing_ok=True)
        lock.symlink_to(precious)
        return acquired or real(self, *args, **options)

    for locked in (False, True):
        monkeypatch.setattr(FileLock, "acquire", partialmethod(swapped, locked=locked))
        with pytest.raises(RecordingError, match=r"cannot record into .*: Too many levels of symbolic links"):
            opened(folder)
        assert precious.read_text() == "mine"
        lock.unlink()
    monkeypatch.undo()
    opened(folder).close()


def test_a_table_is_not_written_through_a_link(folder: Path, tmp_path: Path) -> None:
    """A link in the place of a table that is being written leaves the file alone that it leads to."""
    (precious := tmp_path / "precious").write_text("mine")
    writer = opened(folder)
    (folder / "shard-000000.json.partial").symlink_to(precious)
    writer.add(0, files_of(0))
    with pytest.raises(RecordingError, match=r"cannot record into .*: File exists"):
        writer.add(1, files_of(1))
    assert precious.read_text() == "mine"
    writer.close()
    opened(folder).close()
    assert [sample.index for sample in read(folder)] == [0, 1]
    assert {path.name for path in folder.iterdir()} == {"shard-000000.tar", "shard-000000.json", ".writing"}
