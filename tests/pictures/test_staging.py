"""Staging: whatever goes wrong, and when, an earlier export stays as it was."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from asyncblend.errors import ConfigError
from asyncblend.export.staging import staged

Files = dict[str, str]
EARLIER = {"annotations.json": "earlier", "images/1.png": "earlier", "notes.txt": "mine"}


def write(folder: Path, files: Files) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def files_in(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def replace(out: Path) -> None:
    with staged(out, overwrite=True) as folder:
        write(folder, {"annotations.json": "new", "images/2.png": "new"})


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder with an earlier export, and a file of the user's."""
    write(tmp_path / "out", EARLIER)
    return tmp_path / "out"


@pytest.mark.parametrize("moves", range(4))
@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_an_error_between_the_moves_undoes_them(
    moves: int, moved: bool, error: BaseException, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two files go and two come: before or after each of the four moves."""
    rename, calls = os.rename, 0

    def failing(source: Any, target: Any) -> None:
        nonlocal calls
        calls += 1
        if calls != moves + 1 or moved:
            rename(source, target)
        if calls == moves + 1:
            raise error

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises((ConfigError, KeyboardInterrupt)) as caught:
        replace(out)
    assert calls > moves
    if isinstance(error, OSError):
        assert "Input/output error; nothing was changed there" in str(caught.value)
    assert files_in(out) == EARLIER
    assert {path.name for path in out.iterdir()} == {"annotations.json", "images", "notes.txt"}


def test_what_cannot_be_put_back_is_kept(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the message says where."""
    rename, calls = os.rename, 0

    def failing(source: Any, target: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(ConfigError, match=r"could the earlier files be put back.*missing are in (\S+)$") as caught:
        replace(out)
    assert files_in(Path(str(caught.value).rsplit(" ", 1)[1])) == {
        name: text for name, text in EARLIER.items() if name != "notes.txt"
    }
    monkeypatch.undo()
    with pytest.raises(ZeroDivisionError), staged(out, overwrite=True):
        raise ZeroDivisionError
    assert sorted(files_in(out).values()) == ["earlier", "earlier", "mine"]


def test_what_a_killed_export_left_goes_with_the_next(out: Path) -> None:
    """What it wrote goes at once; what was there before it only when a new export is in its place."""
    write(out, {".export-one/new/images/1.png": "half", ".export-two/old/images/1.png": "earlier"})
    (out / ".export-one" / "old").mkdir()
    with pytest.raises(ZeroDivisionError), staged(out, overwrite=True) as folder:
        assert {path.name for path in out.glob(".export-*")} == {folder.parent.name, ".export-two"}
        raise ZeroDivisionError
    assert files_in(out) == {**EARLIER, ".export-two/old/images/1.png": "earlier"}
    replace(out)
    assert files_in(out) == {"annotations.json": "new", "images/2.png": "new", "notes.txt": "mine"}
    assert not list(out.glob(".export-*"))


def test_two_exports_into_one_folder(out: Path) -> None:
    """The second one is told, and the first is not disturbed."""
    with staged(out, overwrite=True) as folder:
        write(folder, {"annotations.json": "first"})
        with pytest.raises(ConfigError, match=r"another export into .* is going on"):
            replace(out)
    assert files_in(out) == {**EARLIER, "annotations.json": "first"}


def test_a_file_system_without_locks(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nobody knows whose a folder is: it stays."""

    def unknown(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unknown)
    write(out, {".export-one/new/images/1.png": "half"})
    replace(out)
    assert files_in(out) == {
        "annotations.json": "new",
        "images/2.png": "new",
        "notes.txt": "mine",
        ".export-one/new/images/1.png": "half",
    }
