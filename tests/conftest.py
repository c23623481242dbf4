"""What every test gets: the Blenders to test with, the options of a run, and the guard against what a test leaves."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib.util
import multiprocessing.util
import os
import shutil
import signal
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

import hypothesis
import psutil
import pytest
import zmq

from asyncblend.cli.doctor.rendering import module_version
from asyncblend.fleet.discovery import find_blender
from asyncblend.testing import fake_blender

BPY5 = Path(__file__).parents[1] / ".venv-bpy5" / "bin" / "python"
"""The Python of an environment with bpy 5 and no torch, which `make blender5` makes."""

_MARK = "ASYNCBLEND_TEST"
_tested: set[str] = set()

# Examples are the same in every run, so that a failure is the change's and not the day's. `--all` tries more of them.
hypothesis.settings.register_profile("few", derandomize=True, deadline=None, database=None, max_examples=100)
hypothesis.settings.register_profile("many", hypothesis.settings.get_profile("few"), max_examples=250)


# -- a run -------------------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that `make test-all` and continuous integration give."""
    parser.addoption(
        "--all",
        action="store_true",
        help="run everything: each test with every kind of Blender, more examples, and what is marked exhaustive",
    )
    parser.addoption(
        "--most",
        action="store_true",
        help="run as much as continuous integration has time for: all but what is marked slow, unless a short run has it",
    )


def pytest_configure(config: Any) -> None:
    """Choose the Hypothesis profile, and collect from the processes of pytest-xdist what they tested."""
    hypothesis.settings.load_profile("many" if config.getoption("all") else "few")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in what a shell runs in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.pluginmanager.hasplugin("xdist"):
        config.pluginmanager.register(_FromOthers())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: Any, log: Any) -> Any:
    """Run tests that share a Blender of their module in one process, and all others wherever there is room."""
    if config.getvalue("dist") != "load":
        return None  # the user has chosen another way
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            if not _shares_a_blender(config.rootpath / file):
                return nodeid
            return f"{file} {next((name for name in ('executable', 'bpy5') if name in test), 'bpy')}"

    return Scheduler(config, log)


@functools.cache
def _shares_a_blender(file: Path) -> bool:
    """Tell whether fixtures of this file belong to the module, as those of `blender_side` do."""
    return file.parent.name == "blender_side" or 'fixture(scope="module")' in file.read_text(encoding="utf-8")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the options do not ask for, and start what is slow first: no process waits for it in the end then."""
    if not config.getoption("all"):
        most = config.getoption("most")
        left_out = {item for item in items if _is_exhaustive(item) and (not most or item.get_closest_marker("slow"))}
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def _is_exhaustive(item: pytest.Item) -> bool:
    """Tell whether a short run can do without this test: the module has the same contract as the other kinds."""
    if item.get_closest_marker("exhaustive"):
        return True
    kinds = {value for value in _parameters(item).values() if isinstance(value, str)}
    return "bpy5" in kinds or ("executable" in kinds and not item.get_closest_marker("every_kind"))


def _parameters(item: pytest.Item) -> dict[str, Any]:
    return item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Leave what the imports made to itself: else each search for leaks goes through all of it."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: Any) -> None:
    """Hand over to the main process what this process of pytest-xdist tested."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["kinds"] = sorted(_tested)


class _FromOthers:
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        _tested.update(getattr(node, "workeroutput", {}).get("kinds", ()))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say which kinds of Blender were tested; `.ci/run` reads this line."""
    terminalreporter.write_line(f"Blender kinds tested: {', '.join(sorted(_tested)) or 'none'}")


# -- Blenders ----------------------------------------------------------------------------------------------------


REAL = ("bpy", "executable", "bpy5")
"""The bpy module of this Python, a Blender executable, and the bpy module of another Python."""


@dataclass(frozen=True)
class Kind:
    """One kind of Blender to test with."""

    name: str
    blender: str
    """The value for the option `blender`."""
    version: str = ""
    """Of a real Blender."""

    @property
    def real(self) -> bool:
        """Whether it has bpy."""
        return self.name != "fake"


def _kind(name: str, folder: Path) -> Kind:
    return Kind(name, str(fake_blender(folder / "fake"))) if name == "fake" else _real_kind(name)


def _real_kind(name: str) -> Kind:
    """Return a kind of real Blender, and note that it is tested; or skip the test."""
    if name == "executable":
        path = shutil.which("blender") or pytest.skip("there is no Blender executable here")
        found = Kind(name, path, _version_of(path))
    elif name == "bpy5":
        if not BPY5.exists():
            pytest.skip("bpy 5 is not here: `make blender5` installs it where there is Python 3.13")
        found = Kind(name, str(BPY5), str(module_version(str(BPY5))))
    else:
        found = Kind(name, "bpy", str(module_version(find_blender("bpy").path)))
    _tested.add(f"{name} {found.version}")
    return found


@functools.cache
def _version_of(blender: str) -> str:
    about = subprocess.run([blender, "--version"], capture_output=True, text=True, check=True, timeout=100).stdout
    return about.split()[1]


def _real(*names: str) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.blender) for name in names]


@pytest.fixture(params=["fake", *_real(*REAL)])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    """Each kind of Blender, the fake included: for contracts that do not need bpy."""
    return _kind(request.param, tmp_path)


@pytest.fixture(params=_real(*REAL))
def real(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    """Each kind of real Blender."""
    return _kind(request.param, tmp_path)


@pytest.fixture(scope="session")
def real_kind() -> Callable[[str], Kind]:
    """Return a kind of real Blender by its name; the test is skipped where it is not there."""
    return _real_kind


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


@pytest.fixture
def make_environment(tmp_path: Path) -> Callable[..., Path]:
    """Make an environment for this Python that has no packages but some of those that are installed here."""
    made: list[Path] = []

    def make(*modules: str) -> Path:
        environment = tmp_path / f"environment-{len(made)}"
        made.append(environment)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True, timeout=300)
        (packages,) = environment.glob("lib/python3.*/site-packages")
        for module in modules:
            spec = importlib.util.find_spec(module)
            assert spec is not None
            assert spec.submodule_search_locations
            own = Path(spec.submodule_search_locations[0])
            beside = (f"*{module}*.libs", f"*{module}-*.dist-info")
            for path in (own, *(found for pattern in beside for found in own.parent.glob(pattern))):
                (packages / path.name).symlink_to(path)
        return environment

    return make


@pytest.fixture
def case() -> Callable[[object], contextlib.AbstractContextManager[None]]:
    """Name the case that a loop is at, in the failure: `with case(name): ...`."""

    @contextlib.contextmanager
    def named(name: object) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            error.add_note(f"the case: {name!r}")
            raise

    return named


# -- leaks -------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_leaks(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail a test that leaves a process, a thread, a ZeroMQ context or a temporary file behind.

    Processes are found by a mark in their environment, which their own children inherit, so that orphans are found
    too.
    """
    _Made.processes, contexts = False, set[zmq.Context[Any]]()
    tmp_path_factory.getbasetemp()  # pytest makes its own folder before ours takes the place of /tmp
    mark = uuid.uuid4().hex
    monkeypatch.setenv(_MARK, mark)
    # A short path, because the paths of ipc sockets may have only about a hundred characters.
    temporary = Path(tempfile.mkdtemp(prefix="abt", dir="/tmp" if os.path.isdir("/tmp") else None))
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    threads = set(threading.enumerate())
    before = _Made.contexts()
    try:
        yield
        contexts = _Made.contexts() - before
        if _Made.processes or contexts:  # most tests start no process, and the search would take longer than the test
            gc.collect()
            _wait_until_none("processes left behind", lambda: _marked(mark))
        _wait_until_none(
            "threads left behind",
            lambda: [
                thread.name
                for thread in set(threading.enumerate()) - threads
                if not thread.daemon or thread.name.startswith("asyncblend")
            ],
        )
        _wait_until_none(
            "files left behind",
            lambda: [path.name for path in temporary.iterdir() if path.name.startswith("asyncblend")],
        )
        left = [context for context in contexts if not context.closed]
        assert not left, f"ZeroMQ contexts left open: {left}"
    finally:
        if _Made.processes or contexts:
            for process in _marked(mark):
                process.kill()
        shutil.rmtree(temporary, ignore_errors=True)


class _Made:
    """What tests have made that could be left behind."""

    processes = False
    """Whether a process was started since this was last set to False."""
    _contexts: ClassVar[weakref.WeakSet[zmq.Context[Any]]] = weakref.WeakSet()

    @classmethod
    def contexts(cls) -> set[zmq.Context[Any]]:
        """Return ZeroMQ's contexts, closed ones too, without those that only stand for another one."""
        return {context for context in cls._contexts if not context._shadow}

    @classmethod
    def watch(cls) -> None:
        """Begin to watch. uvloop's processes are not seen, but the contexts of their streams are."""
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


def _wait_until_none(what: str, find: Callable[[], list[Any]], seconds: float = 60.0) -> None:
    """Fail unless nothing is found within these seconds: a process killed a moment ago may still be listed."""
    end = time.monotonic() + seconds
    while found := find():
        assert time.monotonic() < end, f"{what}: {found}"
        threading.Event().wait(0.02)


def _marked(mark: str) -> list[psutil.Process]:
    """Return the other processes that have this mark in their environment."""
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
    """Tell whether this is one of multiprocessing's helpers, which live as long as this process does."""
    line = " ".join(process.cmdline())
    return "resource_tracker" in line or "forkserver" in line


@pytest.fixture(scope="session", autouse=True)
def _quiet_workers() -> None:
    # multiprocessing makes its folder once for each process: outside of the folders that go with a test.
    multiprocessing.util.get_temp_dir()
    # torch advises against more workers than cores, but small machines run these tests too.
    warnings.filterwarnings("ignore", message="This DataLoader will create")
