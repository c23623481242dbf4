"""What travels to the nodes: each file as it is, or an error that names it. Nothing is waited for."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import asyncblend as ab

pytest.importorskip("ray.data", reason='pip install ".[ray]"')
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"), pytest.mark.timeout(100)]


@pytest.fixture
def around(tmp_path: Path) -> Path:
    """A folder with a script, and a folder `files`."""
    (tmp_path / "scene.py").touch()
    (tmp_path / "files").mkdir()
    return tmp_path


def travelled(around: Path) -> Path:
    """Pack the script and `files`, unpack them elsewhere, and return the folder `files` there."""
    from asyncblend.ray.shipping import Shipment

    config = ab.StreamConfig(script=around / "scene.py", script_args=[around / "files"])
    (there,) = Shipment.packed(config, [around / "files"]).unpacked(around / "there").script_args
    return Path(str(there))


def test_links_travel_as_what_they_lead_to(around: Path) -> None:
    """To a file or a folder, also from a folder that is a link, by way of others; one that is there twice is two."""
    (around / "elsewhere" / "deep").mkdir(parents=True)
    (around / "elsewhere" / "deep" / "wood.txt").write_text("wood")
    (around / "files" / "wood.txt").symlink_to(around / "elsewhere" / "deep" / "wood.txt")
    (around / "files" / "one").symlink_to(around / "elsewhere")
    (around / "files" / "two").symlink_to("one")
    (around / "elsewhere" / "deep" / "sibling").mkdir()
    there = travelled(around)
    for name in ("wood.txt", "one/deep/wood.txt", "two/deep/wood.txt"):
        assert (there / name).read_text() == "wood"
        assert not (there / name).is_symlink()
    assert (there / "two" / "deep" / "sibling").is_dir()


def test_empty_folders_and_odd_names_travel(around: Path) -> None:
    """Also a folder of nothing, one that is named itself, and what is no text."""
    (around / "files" / "empty" / "inner").mkdir(parents=True)
    odd = os.fsdecode(b"a\xff b\n")
    (around / "files" / odd).write_bytes(b"\0")
    (around / "files" / ".hidden").touch()
    there = travelled(around)
    assert (there / "empty" / "inner").is_dir()
    assert sorted(os.listdir(there)) == sorted(["empty", odd, ".hidden"])
    assert (there / odd).read_bytes() == b"\0"


def test_many_files_travel(around: Path) -> None:
    """Thousands."""
    for number in range(3000):
        (around / "files" / f"{number}.txt").write_text(str(number))
    there = travelled(around)
    assert sorted(int(path.read_text()) for path in there.iterdir()) == list(range(3000))


def fifo(path: Path) -> None:
    """Make a pipe that nobody writes into."""
    os.mkfifo(path)


def listening(path: Path) -> None:
    """Make a socket."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def huge(path: Path) -> None:
    """Make a file that takes no room on the disk."""
    path.touch()
    os.truncate(path, 1 << 40)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (fifo, "cannot be read.*it is no ordinary file"),
        (listening, "cannot be read"),
        (huge, "cannot travel.* more than 2 GiB"),
        (lambda path: path.symlink_to("nowhere"), "cannot be read.*No such file"),
        (lambda path: path.symlink_to("odd"), "cannot be read.*symbolic links"),
        (lambda path: path.symlink_to("/dev/zero"), "cannot be read.*it is no ordinary file"),
        (lambda path: path.symlink_to("/proc/self/mem"), "cannot be read.*Input/output error"),
        (lambda path: path.symlink_to(".."), "/files/odd/files' cannot travel.*a link to a folder that it is in"),
        (lambda path: path.symlink_to("."), "/files/odd' cannot travel.*a link to a folder that it is in"),
    ],
    ids=["pipe", "socket", "huge", "broken", "to-itself", "device", "unreadable", "loop", "folder-itself"],
)
def test_what_cannot_travel_is_named(around: Path, make: Callable[[Path], None], words: str) -> None:
    """At once, and with its path: a pipe is not waited for, and nothing endless is read."""
    make(around / "files" / "odd")
    with pytest.raises(ab.ConfigError, match=rf"/files/odd.*{words}" if "odd" not in words else words):
        travelled(around)


@pytest.fixture
def closed(around: Path) -> Iterator[Path]:
    """A folder and a file that nobody may read."""
    (around / "files" / "odd").mkdir()
    (around / "files" / "odd").chmod(0)
    yield around
    (around / "files" / "odd").chmod(0o700)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_closed_folder_is_named(closed: Path) -> None:
    """It is not taken for an empty one."""
    with pytest.raises(ab.ConfigError, match=r"files/odd' cannot be read.*Permission denied"):
        travelled(closed)


def test_the_script_may_be_no_pipe(around: Path) -> None:
    """It is not waited for either."""
    import asyncblend.ray

    (around / "scene.py").unlink()
    os.mkfifo(around / "scene.py")
    config = ab.StreamConfig(script=around / "scene.py")
    with pytest.raises(ab.ConfigError, match=r"scene\.py' cannot be read.*it is no ordinary file"):
        asyncblend.ray.dataset(config, length=1)
    with pytest.raises(ab.ConfigError, match=r"scene\.py' cannot be read: it is no ordinary file"):
        asyncblend.ray.record(config, around / "out", length=1)


def test_relative_paths_are_those_of_here(around: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of Blender and of the logs, since a node has another working directory. A command's name is one there, too."""
    from asyncblend.ray.shipping import Shipment

    (around / "own").touch()
    monkeypatch.chdir(around)

    def packed(**options: Any) -> ab.StreamConfig:
        return Shipment.packed(ab.StreamConfig(script="scene.py", **options)).config

    assert packed(logs="logs").logs == str(around / "logs")
    for given, there in {
        "blenders/blender": str(around / "blenders" / "blender"),
        "./blender": str(around / "blender"),
        "own": str(around / "own"),
        "blender-5.1": "blender-5.1",
        "~/blender": "~/blender",
        "bpy": "bpy",
        "sh": "sh",
    }.items():
        assert packed(blender=given).blender == there
    assert packed().blender is None
    assert packed().logs is None
