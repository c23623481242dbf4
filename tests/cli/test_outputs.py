"""Where a command writes is checked before anything is rendered, and what fails later has no traceback either."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from asyncblend.cli.outputs import check_file, write, writing
from asyncblend.errors import ConfigError
from asyncblend.testing import fake_blender

BENCH = ("bench", "scene.py", "--instances", "1", "--threads", "1", "--seconds", "0.05")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ("inspect", "scene.py", "--out", "/dev/full/x.png"),
            "--out '/dev/full/x.png' cannot be written: Not a directory",
        ),
        (
            ("inspect", "scene.py", "--out", "scene.py/new/x.png"),
            "cannot be written: Not a directory; choose another place",
        ),
        (("inspect", "scene.py", "--out", "here.png"), "--out 'here.png' cannot be written: Is a directory"),
        (("demo", "--out", "/proc/x"), "--out '/proc/x/output_00.png' cannot be written: No such file or directory"),
        ((*BENCH, "--json", "/proc/x"), "--json '/proc/x' cannot be written"),
        ((*BENCH, "--out", "/dev/null"), "--out '/dev/null/bench.png' cannot be written"),
        (("record", "scene.py", "--length", "1", "--out", "/proc/x"), "RecordingError cannot record into /proc/x"),
        (("export", "scene.py", "--length", "1", "--out", "/proc/x"), "ConfigError cannot export to /proc/x"),
    ],
)
@pytest.mark.exhaustive
def test_nothing_is_rendered_for_nothing(args: tuple[str, ...], message: str, tmp_path: Path) -> None:
    """The reason comes without a traceback, and no Blender was started."""
    (tmp_path / "scene.py").touch()
    (tmp_path / "here.png").mkdir()
    blender = tmp_path / "blender"
    blender.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\nexit 1\n")
    blender.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "asyncblend", *args],
        capture_output=True, text=True, timeout=90, cwd=tmp_path, check=False,
        env={**os.environ, "ASYNCBLEND_BLENDER": str(blender)},
    )  # fmt: skip
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blender", "here.png", "scene.py"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has such a disk")
@pytest.mark.exhaustive
def test_a_disk_that_becomes_full(tmp_path: Path) -> None:
    """The figures are shown before the file fails."""
    (tmp_path / "scene.py").touch()
    fake = fake_blender(tmp_path / "fake", values={"image": ("uint8", (4, 4, 3))})
    done = subprocess.run(
        [sys.executable, "-m", "asyncblend", *BENCH, "--blender", str(fake), "--json", "/dev/full"],
        capture_output=True, text=True, timeout=90, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Best: 1 x 1 thread" in done.stdout
    assert "ConfigError --json '/dev/full' cannot be written: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_check_leaves_nothing(tmp_path: Path) -> None:
    """Neither folders nor an empty file; and what is there already stays as it is."""
    check_file("--out", tmp_path / "a" / "b" / "sheet.png")
    assert not list(tmp_path.iterdir())
    file = tmp_path / "sheet.png"
    file.write_bytes(b"old")
    check_file("--out", file)
    assert file.read_bytes() == b"old"
    with pytest.raises(ConfigError, match="Not a directory"):
        check_file("--out", file / "more.png")
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_a_name_that_is_too_long() -> None:
    """Is an error of the option's, as everything else that the system refuses."""
    with pytest.raises(ConfigError, match="cannot be written: File name too long"):
        check_file("--out", Path("x" * 300))
    with (
        pytest.raises(ConfigError, match=r"--out 'x.png' cannot be written: no codec; choose"),
        writing("--out", Path("x.png")),
    ):
        raise OSError("no codec")


def test_a_text_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that becomes full leaves the older file, and no part of the new one. A link and a device stay what they are."""
    file = tmp_path / "new" / "figures.json"
    write("--json", file, "old")
    (tmp_path / "link").symlink_to(file)
    write("--json", tmp_path / "link", "newer")
    assert (tmp_path / "link").is_symlink()
    assert file.read_text() == "newer"
    write("--json", Path(os.devnull), "nothing")
    assert Path(os.devnull).is_char_device()
    real = Path.write_text

    def write_text(self: Path, text: str, **options: str) -> int:
        real(self, text[:3], **options)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", write_text)
    with pytest.raises(ConfigError, match=r"--json .* cannot be written: No space left on device"):
        write("--json", file, "newest")
    assert file.read_text() == "newer"
    with pytest.raises(ConfigError, match="No space left on device"):
        write("--json", tmp_path / "other", "newest")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["figures.json", "link", "new"]
