"""The sweeper of a workspace: what it holds, what it survives, and what it removes."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import pytest

from asyncblend.fleet.workspace import Workspace
from asyncblend.wire.launch import RUN
from tests.waiting import until

LIMIT = 40  # seconds; the bound of failure of every wait
linux = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks into /proc")


def of(workspace: Workspace) -> psutil.Process:
    """Return the process."""
    assert workspace._sweeper is not None
    return psutil.Process(workspace._sweeper._process.pid)


@linux
def test_it_holds_nothing_of_its_host() -> None:
    """Neither the pipe's write end, nor what the program lets its children inherit, nor the working directory."""
    ours = os.pipe()
    for descriptor in ours:
        os.set_inheritable(descriptor, True)
    with Workspace() as workspace:
        process = of(workspace)
        until(lambda: process.name() == "sh")
        until(lambda: sorted(os.listdir(f"/proc/{process.pid}/fd")) == ["0", "1", "2"])
        held = [os.readlink(f"/proc/{process.pid}/fd/{number}") for number in range(3)]
        assert held[0].startswith("pipe:")
        assert held[1:] == [os.devnull] * 2
        assert process.cwd() == "/"
    for descriptor in ours:
        os.close(descriptor)
    assert not process.is_running()


def test_it_outlives_what_ends_the_programs_of_a_terminal() -> None:
    """A service manager sends SIGTERM to all processes of a service, a terminal SIGINT or SIGHUP to a group."""
    with Workspace() as workspace:
        process = of(workspace)
        assert os.getsid(process.pid) == process.pid
        until(lambda: process.status() == psutil.STATUS_SLEEPING)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGKILL):
            assert process.is_running()
            process.send_signal(number)
        until(lambda: process.status() == psutil.STATUS_ZOMBIE)
    assert not process.is_running()
    assert not workspace.folder.exists()


KILLED = """
import os, pathlib, signal, sys
from asyncblend.fleet.workspace import Workspace
workspace = Workspace()
(workspace.life_folder(0, 0) / "a b").touch()
print(workspace.folder, flush=True)
sys.stdin.read()
"""


def killed_host(**variables: str) -> Path:
    """Return the folder of a program that was killed."""
    program = subprocess.Popen(
        [sys.executable, "-c", KILLED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
    )
    with program:
        assert program.stdout is not None
        folder = Path(program.stdout.readline().strip())
        assert list(folder.iterdir())
        program.kill()
    return folder


@pytest.mark.parametrize("path", ["", "/nowhere"])
def test_a_killed_host_leaves_no_folder(path: str, tmp_path: Path) -> None:
    """Whatever the path of the folder, and whatever PATH says."""
    temporary = tmp_path / "it's $HOME; a *"
    temporary.mkdir()
    folder = killed_host(TMPDIR=str(temporary), PATH=path)
    assert folder.parent == temporary
    until(lambda: not folder.exists())


@linux
def test_it_kills_what_has_the_mark_of_the_run_and_nothing_else() -> None:
    """Also in another session. Processes of another run, even one whose name ends so, are left."""
    with Workspace() as workspace:
        marks = {"ours": workspace.folder.name, "another's": f"x{workspace.folder.name}", "none": ""}
        sleepers = {
            name: subprocess.Popen(["sleep", "600"], env={**os.environ, RUN: mark}, start_new_session=True)
            for name, mark in marks.items()
        }
        os.close(workspace._held or 0)  # as if this process had been killed
        workspace._held = None
        assert sleepers["ours"].wait(LIMIT) == -signal.SIGKILL
        until(lambda: not workspace.folder.exists())
    for name in ("another's", "none"):
        assert sleepers[name].poll() is None
        sleepers[name].kill()
        sleepers[name].wait()


def test_a_system_without_a_shell(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Runs go on without a sweeper, and the log says what a kill would leave."""
    real = subprocess.Popen

    def without_shell(command: list[str], **options: Any) -> Any:
        return real(["/nowhere/sh", *command[1:]], **options)

    monkeypatch.setattr(subprocess, "Popen", without_shell)
    with Workspace() as workspace:
        assert stat.S_IMODE(workspace.folder.stat().st_mode) == 0o700
        assert f"If this program is killed, {workspace.folder} will stay: " in caplog.text
    assert not list(Path(tempfile.gettempdir()).glob("asyncblend*"))
