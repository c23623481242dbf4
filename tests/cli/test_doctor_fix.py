"""`asyncblend doctor --fix`: installs the embedded Blender for real, once, from the package index."""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer
from typer.testing import CliRunner

import asyncblend as ab
from asyncblend.cli.doctor.command import doctor
from asyncblend.cli.link import link
from asyncblend.fleet.discovery import VARIABLE, Blender, all_blenders, find_blender
from asyncblend.fleet.install.embedded import MODULES, RELEASES, embedded_pythons, site_packages, working_python

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.blender,
    pytest.mark.skipif(sys.version_info[:2] not in MODULES, reason="there is no module bpy for this Python"),
]

EXECUTABLE = shutil.which("blender")


def fix(*arguments: str) -> tuple[int, str]:
    """Return the exit status and the standard output of `asyncblend doctor --fix`."""
    app = typer.Typer()
    app.command()(doctor)
    result = CliRunner().invoke(app, ["--fix", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout


def hide_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide bpy from this Python."""
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, package=None: None if name == "bpy" else real(name, package)
    )


@pytest.fixture(autouse=True)
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide every Blender, and begin with an empty cache."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("ASYNCBLEND_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "")
    for name in ("PYENV_ROOT", "UV_PYTHON_INSTALL_DIR"):  # the developer's own Pythons
        monkeypatch.setenv(name, str(tmp_path / "none"))
    hide_module(monkeypatch)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache into which a first `--fix` has put the embedded Blender, without changing anything else."""
    cache = tmp_path_factory.mktemp("cache")
    before = own_packages()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(VARIABLE, raising=False)
        patch.setenv("ASYNCBLEND_CACHE", str(cache))
        patch.setenv("PATH", "")
        hide_module(patch)
        code, text = fix("--json")
    found = json.loads(text)
    assert code == 0, found
    (fixed,) = found["fixed"]
    assert fixed["what"].startswith("The embedded Blender, bpy ")
    assert fixed["path"] == found["blenders"][0]["path"]
    assert own_packages() == before
    yield cache
    shutil.rmtree(cache)  # a gigabyte


@pytest.fixture
def inside(made: Path, monkeypatch: pytest.MonkeyPatch) -> Blender:
    """The embedded Blender, the only one on this machine."""
    monkeypatch.setenv("ASYNCBLEND_CACHE", str(made))
    (blender,) = all_blenders()
    return blender


def own_packages() -> dict[str, tuple[str, float]]:
    """Return what is installed in the Python that runs here, and when it was installed."""
    found = {}
    for one in importlib.metadata.distributions():
        record = Path(str(one.locate_file("")), f"{one.metadata['Name']}-{one.version}.dist-info", "RECORD")
        found[one.metadata["Name"]] = (one.version, record.stat().st_mtime if record.exists() else 0.0)
    return found


@pytest.mark.exhaustive
async def test_a_stream_on_it_renders(inside: Blender, write_script: Callable[..., Path]) -> None:
    """It is used when there is no other, and it has packages of its own."""
    assert find_blender(None) == find_blender("bpy") == inside
    script = write_script(
        "import bpy, sys, zmq\n"
        "scene = bpy.context.scene\n"
        "scene.render.engine, scene.cycles.samples, scene.cycles.use_denoising = 'CYCLES', 1, False\n"
        "scene.render.resolution_x, scene.render.resolution_y = 64, 48\n"
        "def sample(task):\n"
        "    return {**bl.render(), 'prefix': sys.prefix, 'files': [np.__file__, zmq.__file__, bpy.__file__]}\n"
    )
    async with ab.BlenderStream(script=script, instances=1, length=2) as stream:
        frames = [frame async for frame in stream]
    assert [frame.index for frame in frames] == [0, 1]
    for frame in frames:
        assert frame["image"].shape == (48, 64, 3)
        assert frame["image"].any()
        assert frame["prefix"] == str(Path(inside.path).parents[1])
        assert all(file.startswith(str(site_packages(inside.path))) for file in frame["files"])


@pytest.mark.exhaustive
def test_its_numpy_is_its_own(inside: Blender) -> None:
    """What bpy pins holds in its environment. Here nothing has changed, as the fixture checks."""
    versions = {
        one.metadata["Name"]: one.version
        for one in importlib.metadata.distributions(path=[str(site_packages(inside.path))])
    }
    assert {"bpy", "numpy", "pyzmq"} <= set(versions)
    if sys.version_info[:2] == (3, 11):
        assert versions["numpy"].startswith("1.")
    assert not {"torch", "asyncblend"} & set(versions)


@pytest.mark.exhaustive
def test_a_script_runs_on_it_by_itself(inside: Blender, write_script: Callable[..., Path]) -> None:
    """`link` lets it find asyncblend, and undoing it leaves it as it was."""
    script = write_script("def sample(task): return {'at': task.index}")
    app = typer.Typer()
    app.command()(link)
    done = CliRunner().invoke(app, [])
    assert f"Try it: {inside.path} script.py" in done.stdout, done.output
    shown = subprocess.run([inside.path, script], capture_output=True, text=True, timeout=120, check=True)
    assert "at: int, 0" in shown.stdout
    assert "Removed " in CliRunner().invoke(app, ["--undo"]).stdout
    assert not [*site_packages(inside.path).rglob("asyncblend*")]


@pytest.mark.exhaustive
def test_a_second_fix_is_quick_and_changes_nothing(inside: Blender) -> None:
    """The second run renders a frame with what is there."""
    before = os.stat(inside.path), os.listdir(Path(inside.path).parents[2])
    code, page = fix()
    assert code == 0, page
    assert "(embedded bpy module, taken by default)" in page
    assert "pyzmq" in page
    assert "Fixed" not in page
    assert page.splitlines()[-1] == "Ready: type asyncblend demo"
    assert (os.stat(inside.path), os.listdir(Path(inside.path).parents[2])) == before


@pytest.mark.exhaustive
def test_json_tells_of_it(inside: Blender) -> None:
    """It has its facts in the JSON, as any other Blender."""
    code, text = fix("--json")
    found = json.loads(text)
    assert code == 0, found
    assert found["ready"] is True
    assert found["default"] == "bpy"
    (blender,) = found["blenders"]
    assert blender["path"] == inside.path
    assert (blender["kind"], blender["embedded"], blender["default"]) == ("module", True, True)
    assert blender["facts"]["pyzmq_origin"] == "own"
    assert blender["version"].startswith(("4.5.", "5."))


@pytest.mark.exhaustive
def test_beside_the_own_module_it_is_the_last(inside: Blender, bpy_kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its path is the option that chooses it."""
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("ASYNCBLEND_CACHE", str(Path(inside.path).parents[3]))
    assert all_blenders() == [Blender("module", sys.executable), inside]
    code, text = fix("--json", "--blender", inside.path)
    assert code == 0, text
    (blender,) = json.loads(text)["blenders"]
    assert blender["option"] == inside.path
    assert blender["default"] is False


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this environment has no pip")
async def test_a_release_for_another_python(
    write_script: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is installed into an environment of that Python, streams find it from then on, and it is not offered again."""
    monkeypatch.delenv("PYENV_ROOT")
    monkeypatch.delenv("UV_PYTHON_INSTALL_DIR")
    monkeypatch.setenv("PATH", os.defpath)
    release, version = next((name, python) for name, python in RELEASES.items() if python != sys.version_info[:2])
    if await working_python(version) is None:
        pytest.skip(f"there is no Python {version[0]}.{version[1]} here, which bpy {release} is made for")
    monkeypatch.setenv("PATH", "")
    code, text = await asyncio.to_thread(fix, "--json", "--bpy", release)
    found = json.loads(text)
    assert code == 0, found
    (fixed,), (blender,) = found["fixed"], found["blenders"]
    assert fixed["what"].startswith(f"The embedded Blender, bpy {release}.")
    assert fixed["commands"] == []  # there is no other Blender here
    assert (blender["path"], blender["works"], blender["embedded"]) == (fixed["path"], True, True)
    assert blender["facts"]["python"].startswith(f"{version[0]}.{version[1]}.")
    assert release not in [offer["release"] for offer in found["offers"]]
    script = write_script("import bpy\ndef sample(task): return {'version': bpy.app.version_string}")
    async with ab.BlenderStream(script=script, instances=1, length=1) as stream:
        assert (await anext(stream))["version"].startswith(release)
    shutil.rmtree(tmp_path / "cache")  # a gigabyte


@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this environment has no pip")
@pytest.mark.parametrize("arguments", [(), ("--blender", "bpy")])
def test_without_a_network_the_command_is_told(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The report has the installer's last words, the command to type, and other ways to a Blender."""
    for name, value in (("PIP_NO_INDEX", "1"), ("PIP_CONFIG_FILE", os.devnull)):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    code, text = fix("--json", *arguments)
    found = json.loads(text)
    assert code == 1
    assert found["ready"] is False
    failed, absent = found["problems"]
    assert failed["title"] == "The embedded Blender could not be installed"
    assert "No matching distribution found for bpy" in failed["details"]
    assert " install " in failed["commands"][0]
    assert MODULES[sys.version_info[:2]] in failed["commands"][0]
    assert found["commands"] == failed["commands"]
    assert absent["title"].startswith("No ")
    assert "asyncblend doctor --fix" not in absent["commands"]
    assert list(embedded_pythons()) == []


def test_no_python_that_it_is_made_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page says what to install first."""
    monkeypatch.setattr(sys, "version_info", (3, 12))
    code, page = fix()
    assert code == 1
    assert "There is no module bpy for Python 3.12, which runs here" in page
    assert "Type: asyncblend doctor --fix    (with Python 3.11 or 3.13 on the PATH)" in page


@pytest.mark.exhaustive
@pytest.mark.skipif(EXECUTABLE is None, reason="there is no Blender executable here")
def test_a_named_executable_gets_pyzmq_and_nothing_else(tmp_path: Path) -> None:
    """Its packages are installed ahead of time, and the page says so. The embedded Blender was not asked for."""
    code, page = fix("--blender", str(EXECUTABLE))
    assert code == 0, page
    assert not list((tmp_path / "cache").glob("bpy-*"))
    if "(its own)" in page:
        pytest.skip("this Blender's Python brings pyzmq along")
    assert re.search(r"installed +(numpy \S+ and )?pyzmq \d\S* for its Python, just now", page)
    code, text = fix("--json", "--blender", str(EXECUTABLE))
    (blender,) = json.loads(text)["blenders"]
    assert code == 0
    assert blender["facts"]["pyzmq_origin"] == "cache"
    assert blender["installed"] == []


@pytest.mark.exhaustive
async def test_the_hosts_pythonpath_does_not_reach_it(
    inside: Blender, write_script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modules of the host's PYTHONPATH are made for another Python, and never reach Blender."""
    (tmp_path / "poison").mkdir()
    (tmp_path / "poison" / "numpy.py").write_text("raise ImportError('leaked')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "poison"))
    script = write_script("def sample(task): return {'numpy': np.__file__}")
    async with ab.BlenderStream(script=script, blender=inside.path, instances=1, length=1) as stream:
        frames = [frame async for frame in stream]
    assert frames[0]["numpy"].startswith(str(site_packages(inside.path)))
