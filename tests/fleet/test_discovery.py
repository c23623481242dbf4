"""Which Blender is found, with files and variables made for the test."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import pickle
import sys
from pathlib import Path

import pytest

from asyncblend.errors import BlenderNotFound
from asyncblend.fleet.discovery import VARIABLE, Blender, all_blenders, find_blender
from asyncblend.fleet.install import embedded


def make_executable(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def set_module(monkeypatch: pytest.MonkeyPatch, *, there: bool) -> None:
    spec = importlib.machinery.ModuleSpec("bpy", None, origin="bpy/__init__.so") if there else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)


def set_embedded(home: Path, name: str = "env-1234") -> Blender:
    """Write files like those of an environment with the embedded Blender, and return that Blender."""
    (home / name / "lib/python3.11/site-packages/bpy").mkdir(parents=True)
    path = make_executable(home / name / "bin/python")
    (home / "current").write_text(f"{name}\n")
    return Blender("module", path)


def home_of(version: tuple[int, int]) -> Path:
    return embedded._home(version)


@pytest.fixture(autouse=True)
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set up a machine without any Blender, and return its working directory."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ASYNCBLEND_CACHE", str(tmp_path / "cache"))
    for name in ("PYENV_ROOT", "UV_PYTHON_INSTALL_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    set_module(monkeypatch, there=False)
    return tmp_path


def test_executable_is_taken_by_its_path(tmp_path: Path) -> None:
    path = make_executable(tmp_path / "blender-9.9")
    assert find_blender(path) == Blender("executable", path)
    assert find_blender(Path(path)) == Blender("executable", path)


def test_relative_path_and_home_become_absolute(tmp_path: Path) -> None:
    path = make_executable(tmp_path / "apps" / "blender-9.9")
    assert find_blender("apps/blender-9.9").path == path
    assert find_blender("~/apps/blender-9.9").path == path


def test_folder_that_holds_one(tmp_path: Path) -> None:
    path = make_executable(tmp_path / "blender-9.9-linux-x64" / "blender")
    assert find_blender("blender-9.9-linux-x64") == Blender("executable", path)


@pytest.mark.parametrize(
    ("platform", "folder", "executable"),
    [
        ("linux", "opt", "opt/blender"),
        ("darwin", "Applications", "Applications/Blender.app/Contents/MacOS/Blender"),
        ("darwin", "Blender.app", "Blender.app/Contents/MacOS/Blender"),
    ],
)
def test_folder_on_each_platform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, folder: str, executable: str
) -> None:
    path = make_executable(tmp_path / executable)
    monkeypatch.setattr(sys, "platform", platform)
    assert find_blender(tmp_path / folder).path == path


def test_variable_then_path_then_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_module(monkeypatch, there=True)
    module = Blender("module", sys.executable)
    assert find_blender(None) == module

    on_path = Blender("executable", make_executable(tmp_path / "bin" / "blender"))
    assert find_blender(None) == on_path

    named = Blender("executable", make_executable(tmp_path / "mine"))
    monkeypatch.setenv(VARIABLE, "mine")
    assert find_blender(None) == named
    assert all_blenders() == [named, on_path, module]

    monkeypatch.setenv(VARIABLE, "bpy")
    assert find_blender(None) == module
    assert all_blenders() == [module, on_path]


def test_embedded_blender_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes after this interpreter's module, also where "bpy" is asked for."""
    inside = set_embedded(home_of((3, 11)))
    assert find_blender(None) == find_blender("bpy") == inside
    assert find_blender(None).found == "the embedded Blender"

    set_module(monkeypatch, there=True)
    module = Blender("module", sys.executable)
    assert find_blender(None) == find_blender("bpy") == module
    assert all_blenders() == [module, inside]

    on_path = Blender("executable", make_executable(tmp_path / "bin" / "blender"))
    assert find_blender(None) == on_path
    assert all_blenders() == [on_path, module, inside]

    monkeypatch.setenv(VARIABLE, inside.path)  # to prefer it to the others
    assert find_blender(None) == inside
    assert all_blenders() == [inside, on_path, module]


def test_embedded_blender_of_this_python_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """If there is none for this Python, that of another one is found."""
    older, newer = set_embedded(home_of((3, 11))), set_embedded(home_of((3, 13)))
    for here, found in (((3, 11), older), ((3, 12), older), ((3, 13), newer)):
        monkeypatch.setattr(sys, "version_info", here)
        assert find_blender(None) == found
        assert len(all_blenders()) == 2


@pytest.mark.parametrize("remove", ["current", "env-1234/bin/python", "env-1234/lib/python3.11/site-packages/bpy"])
def test_embedded_blender_that_is_not_whole_is_not_found(remove: str) -> None:
    """An environment that is unfinished, or whose Python was removed, does not count."""
    home = home_of((3, 11))
    set_embedded(home)
    (home / remove).rename(home / "away")
    assert all_blenders() == []
    with pytest.raises(BlenderNotFound):
        find_blender("bpy")


def test_relative_entry_of_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_executable(tmp_path / "bin" / "blender")
    monkeypatch.setenv("PATH", "bin")
    assert find_blender(None).path == path


def test_option_goes_before_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, make_executable(tmp_path / "one"))
    other = make_executable(tmp_path / "other")
    assert find_blender(other).path == other


def test_empty_variable_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_executable(tmp_path / "bin" / "blender")
    monkeypatch.setenv(VARIABLE, "")
    assert find_blender(None).path == path


def test_wrong_variable_is_an_error_even_with_a_blender_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path = make_executable(tmp_path / "bin" / "blender")
    monkeypatch.setenv(VARIABLE, "nowhere")
    with pytest.raises(BlenderNotFound, match=r"ASYNCBLEND_BLENDER='nowhere'.*does not exist"):
        find_blender(None)
    assert all_blenders() == [Blender("executable", on_path)]


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ("nowhere", "nowhere does not exist"),
        ("empty", "no Blender in the folder"),
        ("scene.blend", "not an executable file"),
        ("bpy", "no module bpy"),
    ],
)
def test_wrong_option_says_what_was_given_and_what_to_do(tmp_path: Path, given: str, what: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "scene.blend").touch(0o644)
    with pytest.raises(BlenderNotFound) as caught:
        find_blender(given)
    message = str(caught.value)
    assert f"blender={given!r}" in message
    assert what in message
    assert "bpy" in message
    assert str(pickle.loads(pickle.dumps(caught.value))) == message


def test_a_bare_name_is_a_command_on_the_path(tmp_path: Path) -> None:
    """As in a shell. A file or folder of that name needs a slash where there is such a command, and else none."""
    here = make_executable(tmp_path / "blender" / "blender")
    assert find_blender("blender").path == here
    on_path = make_executable(tmp_path / "bin" / "blender")
    assert find_blender("blender").path == on_path
    assert find_blender("./blender").path == here
    python = make_executable(tmp_path / "bin" / "python3.99")
    assert find_blender("python3.99") == Blender("module", python)
    with pytest.raises(BlenderNotFound, match="nowhere does not exist, and there is no nowhere on the PATH"):
        find_blender("nowhere")


def test_no_blender_at_all_says_where_we_looked(tmp_path: Path) -> None:
    with pytest.raises(BlenderNotFound) as caught:
        find_blender(None)
    for part in (VARIABLE, str(tmp_path / "bin"), sys.executable, "Install Blender", "asyncblend doctor --fix"):
        assert part in str(caught.value)
    assert all_blenders() == []


@pytest.mark.parametrize(
    ("python", "advice"),
    [
        ((3, 11), r'pip install "asyncblend\[bpy\]", or .*asyncblend doctor --fix'),
        ((3, 12), r"There is none for Python 3.12, which runs here; .*3.11 and 3.13.*asyncblend doctor --fix"),
        ((3, 13), r'pip install "asyncblend\[bpy\]", or .*asyncblend doctor --fix'),
    ],
)
def test_advice_fits_the_running_python(monkeypatch: pytest.MonkeyPatch, python: tuple[int, int], advice: str) -> None:
    monkeypatch.setattr(sys, "version_info", python)
    with pytest.raises(BlenderNotFound, match=advice):
        find_blender("bpy")


def test_advice_names_another_python_that_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = make_executable(tmp_path / "bin" / "python3.13")
    monkeypatch.setattr(sys, "version_info", (3, 12))
    with pytest.raises(BlenderNotFound) as caught:
        find_blender(None)
    assert f"`asyncblend doctor --fix` installs one for {python}" in str(caught.value)


def test_folder_named_bpy_is_no_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    namespace = importlib.machinery.ModuleSpec("bpy", None, origin=None, is_package=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: namespace)
    with pytest.raises(BlenderNotFound):
        find_blender("bpy")
    path = make_executable(tmp_path / "bpy" / "blender")
    assert find_blender("./bpy").path == path


def test_an_environment_whose_python_is_gone_says_so(tmp_path: Path) -> None:
    """The Python that it was made with was removed; no other Blender is taken in its place."""
    (tmp_path / "environment" / "bin").mkdir(parents=True)
    (tmp_path / "environment" / "bin" / "python").symlink_to("/nowhere/python3.13")
    with pytest.raises(BlenderNotFound, match=r"has lost its Python: .* leads to /nowhere/python3\.13, which does not"):
        find_blender(tmp_path / "environment")
