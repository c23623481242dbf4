"""The environment with rerun, `asyncblend view` in it, and what its files hold."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from asyncblend.testing import fake_blender

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-view" / "bin" / "python"
"""Of the environment with rerun, which `make viewer` makes."""
LIMIT = 240.0  # seconds; the bound of failure of every wait here

Rows = dict[str, list[dict[str, Any]]]


class Viewing:
    """`asyncblend view` in the environment with rerun. Its processes are killed at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._started = folder, list[subprocess.Popen[str]]()
        self.home = folder / "home"
        self.home.mkdir()
        self.environment = {
            **{name: value for name, value in os.environ.items() if name not in ("CI", "DISPLAY", "WAYLAND_DISPLAY")},
            "PYTHONPATH": str(ROOT),
            "HOME": str(self.home),
        }

    def start(self, *arguments: object, python: object = PYTHON, **environment: str) -> subprocess.Popen[str]:
        """Start it."""
        process = subprocess.Popen(
            [str(python), "-m", "asyncblend", "view", *map(str, arguments)],
            env={**self.environment, **environment}, cwd=self.folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._started.append(process)
        return process

    def run(self, *arguments: object, status: int = 0, **options: Any) -> str:
        """Run it to its end, and return what it printed."""
        process = self.start(*arguments, **options)
        printed, _ = process.communicate(timeout=LIMIT)
        assert process.returncode == status, printed
        return printed

    def page(self, *arguments: object) -> tuple[subprocess.Popen[str], str]:
        """Start it with a page, and return the page's address when it is there."""
        with socket.socket() as trial:
            trial.bind(("127.0.0.1", 0))
            port = trial.getsockname()[1]
        process = self.start(*arguments, "--web", "--port", port)
        return process, self.said(process, "The view is at ").split()[-1]

    def said(self, process: subprocess.Popen[str], what: str) -> str:
        """Return the first line from now on that has these words in it."""
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if what in line:
                return line
        raise AssertionError("".join(lines))

    def stop(self, process: subprocess.Popen[str]) -> str:
        """Press Ctrl-C, and return what it printed since."""
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=LIMIT)
        assert process.returncode == 130, printed
        return printed

    def rows(self, file: Path) -> Rows:
        """Return what a file holds, by rerun's own reader, after its own check of it."""
        for command in (["-m", "rerun", "rrd", "verify"], [Path(__file__).with_name("reading.py")]):
            done = subprocess.run(
                [PYTHON, *command, file], env={**self.environment, "CI": "1"}, capture_output=True, text=True,
                timeout=LIMIT, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    def end(self) -> None:
        """Kill what runs still."""
        for process in self._started:
            with process:  # which closes its pipe, of a process that has ended by itself, too
                process.kill()


@pytest.fixture
def viewing(tmp_path: Path) -> Iterator[Viewing]:
    """`asyncblend view` where rerun is installed."""
    if not PYTHON.exists():
        pytest.skip("rerun is not here: `make viewer` installs it into .venv-view")
    one = Viewing(tmp_path)
    yield one
    one.end()


@pytest.fixture
def of_here(kind: Any) -> str:
    """Each kind of Blender, for a host in another environment: that of the module is named by its Python."""
    return sys.executable if kind.name == "bpy" else str(kind.blender)


@pytest.fixture
def fake(tmp_path: Path) -> str:
    """A fake Blender, for what is the same of each kind."""
    return str(fake_blender(tmp_path / "fake"))


def children(process: subprocess.Popen[str], name: str) -> list[psutil.Process]:
    """Return the processes of this name that one has started."""
    found = []
    for one in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if one.name() == name:
                found.append(one)
    return found


def wait_until(true: Callable[[], object]) -> None:
    """Wait until something is true that nothing tells."""
    end = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)
