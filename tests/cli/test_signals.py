"""What ends a command besides Ctrl-C: a scheduler, a container that is stopped, and a terminal that is closed."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from asyncblend.recording import Recording
from asyncblend.testing import fake_blender
from tests.waiting import gone, until

VALUES = {"image": ("uint8", (48, 64, 3))}
LIMIT = 60


def command(folder: Path, name: str, *args: str) -> list[str]:
    """Return a command line for two fake Blenders."""
    (folder / "scene.py").touch()
    fake = str(fake_blender(folder / "fake", values=VALUES))
    options = ["--length", "100000", "--instances", "2", "--blender", fake]
    return [sys.executable, "-m", "asyncblend", name, "scene.py", *options, *args]


def ignoring(name: str, line: list[str]) -> list[str]:
    """Have a shell ignore a signal, and then become the command."""
    return ["/bin/sh", "-c", f'trap "" {name}; exec "$@"', "sh", *line]


def blenders(parent: int) -> list[int]:
    """Return the children of a process."""
    children = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(pid) for pid in children.read_text().split()]


def shards(folder: Path) -> int:
    return len(list((folder / "cubes").glob("*.tar")))


@pytest.mark.parametrize(
    ("name", "status", "ignored", "loop"),
    [
        ("SIGTERM", 143, "", "uvloop"),
        ("SIGTERM", 143, "", "asyncio"),
        ("SIGTERM", 143, "INT", "uvloop"),
        ("SIGTERM", 143, "INT", "asyncio"),
        ("SIGHUP", 129, "", "uvloop"),
    ],
)
def test_a_recording_is_whole(name: str, status: int, ignored: str, loop: str, tmp_path: Path) -> None:
    """Also where SIGINT is ignored, as by what a script starts in the background."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    if loop == "asyncio":
        (tmp_path / "none").mkdir()
        (tmp_path / "none" / "uvloop.py").write_text("raise ImportError")
        environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "none"), environment.get("PYTHONPATH", "")])
    line = command(tmp_path, "record", "--out", "cubes", "--shard-size", "50")
    with subprocess.Popen(
        ignoring(ignored, line) if ignored else line, cwd=tmp_path, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        until(lambda: shards(tmp_path) >= 2 or process.poll() is not None)
        started = blenders(process.pid)
        process.send_signal(getattr(signal, name))
        if name == "SIGHUP":  # which comes from a shell and from its terminal
            process.send_signal(signal.SIGHUP)
        out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == status, err
    assert err.splitlines()[-1] == "Stopped."
    assert "Traceback" not in err
    recorded = Recording(tmp_path / "cubes")
    assert f"{len(recorded)} samples are in cubes" in out
    assert not list((tmp_path / "cubes").glob("*.partial"))
    assert started
    assert all(gone(pid) for pid in started)
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("name", ["record", "stream"])
def test_the_terminal_is_closed(name: str, tmp_path: Path) -> None:
    """The command ends as by Ctrl-C, though it can print nothing more."""
    out = ["--out", "cubes", "--shard-size", "50"] if name == "record" else []
    parent, child = pty.openpty()
    line = command(tmp_path, name, *out)
    # The first terminal that the leader of a session opens is the session's own.
    terminal = "import os, sys; os.close(os.open(os.ttyname(0), os.O_RDWR)); os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", terminal, *line], cwd=tmp_path, stdin=child, stdout=child, stderr=child,
        start_new_session=True,
    )  # fmt: skip
    os.close(child)
    try:
        seen, end = b"", time.monotonic() + LIMIT
        while b"/s" not in seen or (name == "record" and shards(tmp_path) < 2):
            assert select.select([parent], [], [], max(0.0, end - time.monotonic()))[0], seen
            seen += os.read(parent, 4096)
        started = blenders(process.pid)
        os.close(parent)
        assert process.wait(timeout=LIMIT) == 129
        assert started
        assert all(gone(pid) for pid in started)
        if name == "record":
            assert len(Recording(tmp_path / "cubes")) >= 100
            assert not list((tmp_path / "cubes").glob("*.partial"))
    finally:
        process.kill()
        process.wait()


def test_nohup(tmp_path: Path) -> None:
    """What is ignored at the start stays ignored."""
    line = ignoring("HUP", command(tmp_path, "record", "--out", "cubes", "--shard-size", "50"))
    with subprocess.Popen(line, cwd=tmp_path, text=True, stderr=subprocess.PIPE) as process:
        until(lambda: shards(tmp_path) >= 1 or process.poll() is not None)
        process.send_signal(signal.SIGHUP)
        before = shards(tmp_path)
        until(lambda: shards(tmp_path) > before + 4 or process.poll() is not None)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 143, errors
