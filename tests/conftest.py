"""Which Blenders there are to test with, and the guard against anything left behind by a test."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
import zmq

from asyncblend.testing import fake_blender

_MARK = "ASYNCBLEND_TEST"
_tested: set[str] = set()


@dataclass(frozen=True)
class Kind:
    """One kind of Blender to test with."""

    name: str
    blender: str
    """What the option `blender` takes."""

    @property
    def real(self) -> bool:
        """Whether it has bpy."""
        return self.name != "fake"


def _kind(name: str, folder: Path) -> Kind:
    if name == "fake":
        return Kind(name, str(fake_blender(folder / "fake")))
    if name == "bpy":
        _tested.add(f"bpy {importlib.metadata.version('bpy')}")
        return Kind(name, "bpy")
    path = shutil.which("blender")
    if path is None:
        pytest.skip("there is no Blender executable here")
    about = subprocess.run([path, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    _tested.add(f"executable {about.split()[1]}")
    return Kind(name, path)


@pytest.fixture(
    params=[
        "fake",
        pytest.param("bpy", marks=pytest.mark.blender),
        pytest.param("executable", marks=pytest.mark.blender),
    ]
)
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    """Each kind of Blender, the fake included: for contracts that do not need bpy."""
    return _kind(request.param, tmp_path)


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.blender) for name in ("bpy", "executable")])
def real(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    """Each kind of real Blender."""
    return _kind(request.param, tmp_path)


@pytest.fixture
def bpy_kind(tmp_path: Path) -> Kind:
    """The bpy module, for what need not be repeated with an executable."""
    return _kind("bpy", tmp_path)


@pytest.fixture
def executable(tmp_path: Path) -> Kind:
    """A Blender executable, for what the module has not."""
    return _kind("executable", tmp_path)


@pytest.fixture
def write_script(tmp_path: Path) -> Callable[..., Path]:
    """Write a scene script: `write_script("def sample(task): ...")`; it ends with serve unless told otherwise."""

    def write(body: str, *, name: str = "scene_script.py", serve: bool = True) -> Path:
        path = tmp_path / name
        head = "import numpy as np\nfrom asyncblend import blender as bl\n"
        path.write_text(head + body + ("\nbl.serve(sample)\n" if serve else "\n"))
        return path

    return write


def pytest_sessionfinish(session: Any) -> None:
    """A process of pytest-xdist's hands over what it tested."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["kinds"] = sorted(_tested)


class _FromOthers:
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        _tested.update(getattr(node, "workeroutput", {}).get("kinds", ()))


def pytest_configure(config: Any) -> None:
    """Take over what the processes of pytest-xdist tested, where it is installed."""
    if config.pluginmanager.hasplugin("xdist"):  # its own session comes only later
        config.pluginmanager.register(_FromOthers())


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say which kinds were tested; .ci/run reads this line."""
    terminalreporter.write_line(f"Blender kinds tested: {', '.join(sorted(_tested)) or 'none'}")


@pytest.fixture(autouse=True)
def no_leaks(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail a test that leaves a process, a thread, a ZeroMQ context or a temporary file behind.

    Processes are found by a mark in their environment, which whatever they start inherits, so that orphans are
    found too.
    """
    _Made.processes, contexts = False, set[zmq.Context[Any]]()
    tmp_path_factory.getbasetemp()  # pytest's own folder is made before ours takes its place
    mark = uuid.uuid4().hex
    monkeypatch.setenv(_MARK, mark)
    # Short, so that ipc sockets can have their place in it.
    temporary = Path(tempfile.mkdtemp(prefix="abt", dir="/tmp" if os.path.isdir("/tmp") else None))
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    threads = set(threading.enumerate())
    before = _Made.contexts()
    try:
        yield
        contexts = _Made.contexts() - before
        if _Made.processes or contexts:  # for most tests the search would take longer than the test
            gc.collect()
            _until("processes left behind", lambda: _marked(mark))
        _until(
            "threads left behind",
            lambda: [
                t.name for t in set(threading.enumerate()) - threads if not t.daemon or t.name.startswith("asyncblend")
            ],
        )
        _until(
            "files left behind",
            lambda: [p.name for p in temporary.iterdir() if p.name.startswith("asyncblend")],
        )
        left = [context for context in contexts if not context.closed]
        assert not left, f"ZeroMQ contexts left open: {left}"
    finally:
        if _Made.processes or contexts:
            for process in _marked(mark):
                process.kill()
        shutil.rmtree(temporary, ignore_errors=True)


class _Made:
    """What tests have made that may be left behind."""

    processes = False
    """Since this was last set to False."""
    _contexts: ClassVar[weakref.WeakSet[zmq.Context[Any]]] = weakref.WeakSet()

    @classmethod
    def contexts(cls) -> set[zmq.Context[Any]]:
        """ZeroMQ's, also closed ones; not those that stand for another one."""
        return {context for context in cls._contexts if not context._shadow}

    @classmethod
    def watch(cls) -> None:
        """From now on. uvloop's processes are seen by the contexts of their streams."""
        init = zmq.Context.__init__

        def noted(self: zmq.Context[Any], *args: Any, **options: Any) -> None:
            init(self, *args, **options)
            cls._contexts.add(self)

        def heard(event: str, args: object) -> None:
            if event in ("subprocess.Popen", "os.fork", "os.posix_spawn"):
                cls.processes = True

        zmq.Context.__init__ = noted  # type: ignore[method-assign]
        sys.addaudithook(heard)


_Made.watch()


def _until(what: str, left: Callable[[], list[Any]], seconds: float = 5.0) -> None:
    """Fail unless nothing is left within a bound: a process that was killed a moment ago may still be listed."""
    end = time.monotonic() + seconds
    while remaining := left():
        assert time.monotonic() < end, f"{what}: {remaining}"
        threading.Event().wait(0.02)


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if (
                process.pid != os.getpid()
                and process.status() != psutil.STATUS_ZOMBIE
                and process.environ().get(_MARK) == mark
                and not _torchs_own(process)
            ):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def _torchs_own(process: psutil.Process) -> bool:
    """multiprocessing's helpers, which live as long as this process does."""
    line = " ".join(process.cmdline())
    return "resource_tracker" in line or "forkserver" in line


@pytest.fixture(scope="session", autouse=True)
def _quiet_worker_advice() -> None:
    # torch advises against more workers than cores; small machines run these tests too.
    warnings.filterwarnings("ignore", message="This DataLoader will create")
