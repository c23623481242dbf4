"""The Python of another environment as the option `blender`: real environments, and scripts that only look like one."""

from __future__ import annotations

import importlib.util
import pickle
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import asyncblend as ab
from asyncblend.errors import BlenderNotFound
from asyncblend.fleet import pythons
from asyncblend.fleet.discovery import VARIABLE, Blender, all_blenders, find_blender
from asyncblend.fleet.install.packages import cache_folder
from asyncblend.fleet.pythons import module_of

FILE = "bpy/__init__.so"


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the developer's own variable."""
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def environment(make_environment: Callable[..., Path]) -> Path:
    """An environment of this Python's version that has no packages at all."""
    return make_environment()


def packages_of(environment: Path) -> Path:
    (found,) = environment.glob("lib/python3.*/site-packages")
    return found


def looks_like_python(path: Path, body: str) -> str:
    """Write a shell script in place of a Python."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def answer(file: str, version: tuple[int, int], *, pip: bool = True) -> str:
    """Return a line of shell that answers as a Python does."""
    return f"""echo 'asyncblend: ["{file}", "1.2.3", [{version[0]}, {version[1]}], {str(pip).lower()}]'"""


async def start(folder: Path, python: str | Path) -> None:
    """Start a stream on a Python, and end it."""
    (folder / "scene.py").touch()
    async with ab.BlenderStream(script=folder / "scene.py", blender=python, instances=1):
        pass


@pytest.mark.blender
@pytest.mark.parametrize("named", ["bin/python", ""], ids=["its Python", "its folder"])
@pytest.mark.exhaustive
async def test_its_module_renders(
    bpy_kind: Any,
    make_environment: Callable[..., Path],
    write_script: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    named: str,
) -> None:
    """It has its own numpy; pyzmq, which it lacks, is taken from our packages, and nothing from this environment."""
    environment, other = make_environment("bpy", "numpy", "requests", "zstandard"), make_environment("zmq")
    monkeypatch.setenv("ASYNCBLEND_CACHE", str(tmp_path))
    beside = cache_folder() / f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
    beside.parent.mkdir()
    beside.symlink_to(packages_of(other))
    script = write_script(
        "import bpy, sys, zmq\n"
        "scene = bpy.context.scene\n"
        "scene.render.engine, scene.cycles.samples, scene.cycles.use_denoising = 'CYCLES', 1, False\n"
        "scene.render.resolution_x, scene.render.resolution_y = 64, 48\n"
        "def sample(task):\n"
        "    return {**bl.render(), 'prefix': sys.prefix, 'files': [np.__file__, bpy.__file__], 'zmq': zmq.__file__}\n"
    )
    async with ab.BlenderStream(script=script, blender=environment / named, instances=1, length=2) as stream:
        frames = [frame async for frame in stream]
    for frame in frames:
        assert frame["image"].shape == (48, 64, 3)
        assert frame["image"].any()
        assert frame["prefix"] == str(environment)
        assert all(file.startswith(str(packages_of(environment))) for file in frame["files"])
        assert frame["zmq"].startswith(str(beside))


@pytest.mark.parametrize(("pip", "how"), [(True, "{0} -m pip install "), (False, "{1} -m pip --python {0} install ")])
async def test_without_the_module_the_line_for_pip_is_told(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pip: bool, how: str
) -> None:
    """The stream does not start; its error has the line as its command, also where that Python has no pip."""
    python = str(environment / "bin/python")
    if pip:
        python = looks_like_python(tmp_path / "python3", answer("", sys.version_info[:2]))
    monkeypatch.setattr(pythons, "MODULES", {sys.version_info[:2]: "bpy>=4.5"})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())  # there is a pip here
    with pytest.raises(BlenderNotFound) as caught:
        await start(tmp_path, python)
    assert f"blender={python!r}: {python} is Python 3." in str(caught.value)
    assert f"has no module bpy. Type: {caught.value.command}" in str(caught.value)
    assert caught.value.command == how.format(python, sys.executable) + "'bpy>=4.5'"
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.command) == (str(caught.value), caught.value.command)


async def test_a_version_that_the_module_is_not_made_for(tmp_path: Path) -> None:
    """There is no command, but the versions are named."""
    python = looks_like_python(tmp_path / "python3.12", answer("", (3, 12)))
    with pytest.raises(BlenderNotFound, match=r"none for Python 3\.12.* Python 3\.11 and 3\.13") as caught:
        await start(tmp_path, python)
    assert caught.value.command == ""


async def test_a_python_that_is_too_old(tmp_path: Path) -> None:
    """Blenders from before 3.1 have one; their module is there, but could not run asyncblend."""
    python = looks_like_python(tmp_path / "python3.7", answer(FILE, (3, 7)))
    with pytest.raises(BlenderNotFound, match=r"is Python 3\.7, and asyncblend needs 3\.10 or later inside Blender"):
        await start(tmp_path, python)


async def test_a_module_that_it_has(tmp_path: Path) -> None:
    """Its version and its file are known then, and it is asked once."""
    python = looks_like_python(tmp_path / "python", f"echo asked >> {tmp_path}/asked\n" + answer(FILE, (3, 13)))
    assert await module_of(python) == (FILE, "1.2.3")
    assert (tmp_path / "asked").read_text() == "asked\n"


def test_the_variable_may_name_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the first of all Blenders then. Nothing is started to find it."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("ASYNCBLEND_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    python = looks_like_python(tmp_path / "bin" / "python3.13", f"touch {tmp_path}/started")
    monkeypatch.setenv(VARIABLE, python)
    assert find_blender(None) == Blender("module", python)
    assert all_blenders() == [Blender("module", python)]
    python = looks_like_python(tmp_path / "bin" / "python", f"touch {tmp_path}/started")
    assert find_blender(tmp_path) == Blender("module", python)  # the folder of an environment
    assert not (tmp_path / "started").exists()


def test_a_link_to_a_python_is_one(tmp_path: Path) -> None:
    """Its name need not say so. Other executables are Blenders: nobody knows what they would do if they were asked."""
    python = looks_like_python(tmp_path / "bin" / "python3.13t", "")
    (tmp_path / "blender-5").symlink_to(python)
    assert find_blender(tmp_path / "blender-5") == Blender("module", str(tmp_path / "blender-5"))
    other = looks_like_python(tmp_path / "python-of-blender", "")
    assert find_blender(other) == Blender("executable", other)


@pytest.mark.parametrize(
    ("body", "limit", "what"),
    [
        ("echo nothing works >&2; exit 3", 30.0, "does not run Python code. Its last output:\nnothing works"),
        ("sleep 1000 & sleep 1000", 0.2, "did not say within 0.2 s whether it has the module"),
    ],
)
async def test_what_gives_no_answer_is_an_error_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, limit: float, what: str
) -> None:
    """Nothing that it has started is left."""
    monkeypatch.setattr(pythons, "_LIMIT", limit)
    with pytest.raises(BlenderNotFound, match=what):
        await start(tmp_path, looks_like_python(tmp_path / "python", body))


async def test_what_cannot_be_executed(tmp_path: Path) -> None:
    """The system's reason is told."""
    python = looks_like_python(tmp_path / "python", "")
    Path(python).write_text("#!/nowhere/sh\n")
    with pytest.raises(BlenderNotFound, match=r"cannot execute .*No such file"):
        await start(tmp_path, python)


async def test_modules_that_it_will_not_see_do_not_count(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked as it is started: without our PYTHONPATH, and without the modules of the working directory."""
    for folder in (tmp_path / "here", tmp_path / "path"):
        folder.mkdir()
        (folder / "bpy.py").touch()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    with pytest.raises(BlenderNotFound, match="has no module bpy"):
        await start(tmp_path, environment / "bin/python")


def test_this_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Named by its path, it is the module here, or an error: no other Blender is used in its place."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: importlib.util.spec_from_file_location(name, FILE))
    assert find_blender(sys.executable) == Blender("module", sys.executable)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BlenderNotFound, match="has no module bpy"):
        find_blender(sys.executable)
