"""The embedded Blender's environment: real Pythons and the real pip, with wheels made here instead of a package index."""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import logging
import os
import shlex
import shutil
import stat
import sys
import textwrap
import tomllib
import zipfile
from pathlib import Path

import psutil
import pytest

from asyncblend.errors import InstanceError
from asyncblend.fleet.install import embedded
from asyncblend.fleet.install.embedded import (
    MODULES,
    RELEASES,
    embedded_pythons,
    make_embedded,
    pythons_for_it,
    site_packages,
    working_python,
)
from asyncblend.fleet.install.packages import locked

HERE = sys.version_info[:2]
pytestmark = [
    pytest.mark.skipif(HERE not in MODULES, reason="there is no module bpy for this Python"),
    pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this environment has no pip"),
]


def children() -> list[psutil.Process]:
    """Return our child processes, except multiprocessing's helpers, which live as long as this process does."""
    own = psutil.Process().children()
    return [process for process in own if "multiprocessing" not in " ".join(process.cmdline())]


def make_wheel(index: Path, name: str, version: str) -> None:
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(index / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(path, text)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("ASYNCBLEND_CACHE", str(folder))
    for name in ("PYENV_ROOT", "UV_PYTHON_INSTALL_DIR"):  # the developer's own Pythons
        monkeypatch.setenv(name, str(tmp_path / "none"))
    return folder


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder of wheels, and let pip see no other."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name, version in (("bpy", "4.5.9"), ("bpy", "5.2.9"), ("numpy", "1.26.9"), ("pyzmq", "27.9")):
        make_wheel(folder, name, version)
    for variable in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def distributions(python: str) -> dict[str, str]:
    found = importlib.metadata.distributions(path=[str(site_packages(python))])
    return {one.metadata["Name"]: one.version for one in found}


def environments(cache: Path) -> list[Path]:
    """Return the folders of all environments, whether complete or not."""
    return sorted(path for path in cache.glob("bpy-*/env-*") if path.is_dir())


async def run(*command: str, **variables: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env={**os.environ, **variables}
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()


def test_modules_are_those_of_the_extra() -> None:
    """The table and the package's extra agree, and each release has its Python."""
    assert {f"bpy>={release}" for release in RELEASES} == {wanted.partition(",")[0] for wanted in MODULES.values()}
    assert all(MODULES[version].startswith(f"bpy>={release},") for release, version in RELEASES.items())
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extra = {f"{wanted}; python_version == '{a}.{b}'" for (a, b), wanted in MODULES.items()}
    assert set(project["optional-dependencies"]["bpy"]) == extra


async def test_made_once(
    index: Path, cache: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """It has what a worker needs and nothing of the host's, is logged once, and is then found by its files alone."""
    caplog.set_level(logging.INFO, "asyncblend")
    assert list(embedded_pythons()) == []
    python = await make_embedded()
    assert list(embedded_pythons()) == [python]
    assert Path(python).is_relative_to(cache)
    assert set(distributions(python)) == {"bpy", "numpy", "pyzmq"}
    code, output = await run(python, "-c", "import sys, bpy, numpy; print(sys.prefix, sys.version_info[:2])")
    assert (code, output.strip()) == (0, f"{Path(python).parents[1]} {HERE}")

    stamp = Path(python).stat()
    assert await make_embedded() == python
    assert Path(python).stat() == stamp
    assert len(caplog.messages) == 1
    assert "(once" in caplog.messages[0]
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
async def test_tasks_and_processes_that_ask_at_once_make_one(index: Path, cache: Path) -> None:
    code = "import asyncio; from asyncblend.fleet.install.embedded import make_embedded; print(asyncio.run(make_embedded()))"
    *made, (status, output) = await asyncio.gather(make_embedded(), make_embedded(), run(sys.executable, "-c", code))
    assert status == 0, output
    path = output.splitlines()[-1]  # the process may have said before that it waits
    assert {*made, path} == set(embedded_pythons())
    assert len(environments(cache)) == 1


async def test_what_is_set_for_the_host_does_not_reach_it(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A numpy that the host finds by PYTHONPATH is not in that environment."""
    make_wheel(tmp_path, "numpy", "2.9")
    with zipfile.ZipFile(tmp_path / "numpy-2.9-py3-none-any.whl") as wheel:
        wheel.extractall(tmp_path / "hosts")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hosts"))
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "target"))
    monkeypatch.setenv("PIP_USER", "1")
    monkeypatch.setenv("PIP_REQUIRE_VIRTUALENV", "1")
    assert distributions(await make_embedded())["numpy"] == "1.26.9"


@pytest.mark.slow
async def test_another_python_does_it_where_there_is_no_module_for_this_one(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found on the PATH; a version manager's stand-in that does not start is passed over."""
    name = f"python{HERE[0]}.{HERE[1]}"
    for folder, body in (("shims", "echo not installed; exit 127"), ("bin", f'exec "{sys.executable}" "$@"')):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'shims'}{os.pathsep}{tmp_path / 'bin'}")
    monkeypatch.setattr(sys, "version_info", (3, 12))
    python = await make_embedded()
    assert f"cpython-{HERE[0]}{HERE[1]}-" in python
    assert list(embedded_pythons()) == [python]


def install_python(path: Path, body: str = f'exec "{sys.executable}" "$@"') -> Path:
    """Write a Python that is this one by another name, or a stand-in for one."""
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


async def test_the_pythons_of_version_managers_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyenv's stand-in on the PATH may name a version that is not active, and uv's Pythons need not be on it."""
    number = f"{HERE[0]}.{HERE[1]}"
    python, tag = f"bin/python{number}", f"{number}.9"
    monkeypatch.setattr(sys, "version_info", (3, 12))
    monkeypatch.setenv("PATH", str(install_python(tmp_path / "shims" / python, "exit 127").parent))
    own = install_python(tmp_path / "uv" / f"cpython-{tag}-linux-x86_64-gnu" / python)
    assert await working_python(HERE) is None
    monkeypatch.setenv("UV_PYTHON_INSTALL_DIR", str(tmp_path / "uv"))
    assert await working_python(HERE) == (HERE, str(own))
    of_pyenv = install_python(tmp_path / "pyenv" / "versions" / tag / python)
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    assert await working_python(HERE) == (HERE, str(of_pyenv))
    assert [path for _, path in pythons_for_it(HERE)][1:] == [str(of_pyenv), str(own)]


async def test_the_release_that_is_asked_for(index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made beside one that is there. Where there is no Python for it, the error says which one it takes."""
    (other,) = MODULES.keys() - {HERE}
    there = embedded._home(other) / "env" / "bin" / "python"
    there.parent.mkdir(parents=True)
    there.symlink_to(sys.executable)
    (there.parents[1] / "lib" / "python3.x" / "site-packages" / "bpy").mkdir(parents=True)
    (there.parents[2] / "current").write_text("env")
    for folder in (cache, there.parents[2]):
        folder.chmod(0o700)
    assert await make_embedded(other) == str(there)
    python = await make_embedded(HERE)
    assert distributions(python)["bpy"].startswith(f"{MODULES[HERE].removeprefix('bpy>=').partition(',')[0]}.")
    assert list(embedded_pythons()) == [python, str(there)]
    assert list(embedded_pythons(other)) == [str(there)]

    shutil.rmtree(there.parents[2])
    monkeypatch.setenv("PATH", "")
    (release,) = (name for name, version in RELEASES.items() if version == other)
    told = rf"The module bpy {release} is for Python {other[0]}\.{other[1]} only, and Python {HERE[0]}\.{HERE[1]} runs"
    with pytest.raises(InstanceError, match=told) as caught:
        await make_embedded(other)
    assert caught.value.command.startswith(f"asyncblend doctor --fix --bpy {release}    (with Python ")


async def test_no_python_that_will_do(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """The error says which Python is needed, and what to type then."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "version_info", (3, 12))
    with pytest.raises(
        InstanceError, match=r"(?s)no module bpy for Python 3.12.*python3.11 and no python3.13"
    ) as caught:
        await make_embedded()
    assert "`asyncblend doctor --fix`" in str(caught.value)
    assert not cache.exists()


@pytest.mark.exhaustive
async def test_failure_has_pips_words_and_a_command_that_works(index: Path, cache: Path) -> None:
    """No unfinished environment is left, and the command in the message makes one that is found."""
    wheels = [path.rename(path.with_suffix(".away")) for path in index.glob("bpy-*")]
    with pytest.raises(InstanceError) as caught:
        await make_embedded()
    message, _, command = str(caught.value).rpartition("To install by hand, type:\n")
    assert f"Installing {MODULES[HERE]} for Python {HERE[0]}.{HERE[1]} failed" in message
    assert "No matching distribution found for bpy" in message
    assert "No matching distribution" in caught.value.log_tail
    assert environments(cache) == []
    assert list(embedded_pythons()) == []

    for path in wheels:
        path.rename(path.with_suffix(".whl"))
    code, output = await run("/bin/sh", "-c", command)
    assert code == 0, output
    (python,) = embedded_pythons()
    assert "by-hand" in python
    assert await make_embedded() == python


async def test_environments_cannot_be_made(index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python without the module venv, as some distributions have it, is an error that says so."""
    monkeypatch.setenv("PATH", "")

    async def run_none(command: object, environment: object) -> tuple[int, str]:
        return 1, "No module named venv"

    monkeypatch.setattr(embedded, "output_of", run_none)
    with pytest.raises(InstanceError, match="cannot make environments"):
        await make_embedded()


async def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ASYNCBLEND_CACHE", str(tmp_path / "file"))
    with pytest.raises(InstanceError, match="ASYNCBLEND_CACHE"):
        await make_embedded()


class SilentIndex:
    """A package index that accepts requests and never answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._writers: list[asyncio.StreamWriter] = []
        self.asked, self.gone = asyncio.Event(), asyncio.Event()

    async def __aenter__(self) -> SilentIndex:
        self._server = await asyncio.start_server(self._hear, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        for name, value in (
            ("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple"),
            ("PIP_EXTRA_INDEX_URL", ""),
            ("PIP_FIND_LINKS", ""),
            ("PIP_CONFIG_FILE", os.devnull),
            ("PIP_RETRIES", "0"),
            ("NO_PROXY", "127.0.0.1"),
        ):
            self._monkeypatch.setenv(name, value)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        self.asked.set()
        while await reader.read(1 << 16):
            pass
        self.gone.set()


async def test_cancelling_ends_pip_and_removes_what_is_half_made(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with asyncio.timeout(60), SilentIndex(monkeypatch) as index:
        task = asyncio.create_task(make_embedded())
        await index.asked.wait()
        assert len(environments(cache)) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert children() == []  # reaped too
        await index.gone.wait()
    assert environments(cache) == []


@pytest.mark.slow
@pytest.mark.exhaustive
async def test_what_a_killed_process_left_is_not_found_and_is_mended(
    index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its installer may go on in the abandoned environment, which does no harm."""
    code = textwrap.dedent("""
        import asyncio
        from asyncblend.fleet.install.embedded import make_embedded
        asyncio.run(make_embedded())
    """)
    async with asyncio.timeout(60):
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("PIP_NO_INDEX")
            async with SilentIndex(patch) as silent:
                process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
                await silent.asked.wait()
                process.kill()
                await process.wait()
                (half,) = environments(cache)
                assert list(embedded_pythons()) == []
        python = await make_embedded()
    assert list(embedded_pythons()) == [python]
    assert not half.exists()
    assert set(half.parent.iterdir()) == {half.parent / "current", Path(python).parents[1]}


@pytest.mark.exhaustive
async def test_an_environment_whose_python_is_gone_is_made_again(index: Path, cache: Path) -> None:
    """This happens when the base Python is removed."""
    python = Path(await make_embedded())
    python.unlink()
    python.symlink_to("/nowhere/python3")
    assert list(embedded_pythons()) == []
    again = await make_embedded()
    assert again != str(python)
    assert environments(cache) == [Path(again).parents[1]]


async def test_cancelled_while_another_makes_it(index: Path, cache: Path) -> None:
    home = embedded._home(HERE)
    home.mkdir(parents=True)
    async with locked(home, "bpy"):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await make_embedded()
    await make_embedded()


@pytest.mark.parametrize(
    ("pip", "uv", "installer"),
    [
        ("23.2.1", True, [sys.executable, "-m", "pip", "--python", "/E/bin/python"]),
        ("26.3.dev1", False, [sys.executable, "-m", "pip", "--python", "/E/bin/python"]),
        ("23.0.1", True, ["uv", "pip", "install", "--python", "/E/bin/python"]),
        ("23.0.1", False, ["/E/bin/python", "-m", "pip", "install"]),
        ("", True, ["uv", "pip", "install", "--python", "/E/bin/python"]),
        ("", False, ["/E/bin/python", "-m", "pip", "install"]),
    ],
)
def test_who_installs(pip: str, uv: bool, installer: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's pip installs, if it is one that runs in other Pythons; or else uv, or else a pip in the environment."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if pip else None)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: pip)
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/uv" if uv else None)
    first, second = embedded._commands("/base", HERE, Path("/E"))
    assert first[:3] == ["/base", "-m", "venv"]
    assert ("--without-pip" in first) == (installer[0] != "/E/bin/python")
    assert second[: len(installer)] == installer
    assert second[-3:] == [MODULES[HERE], "numpy", "pyzmq"]


def test_the_line_by_hand_is_quoted() -> None:
    line = embedded._by_hand("/a b/python", HERE, Path("/c d"))
    assert shlex.split(line)[:3] == ["/a b/python", "-m", "venv"]
    assert line.endswith("> '/c d/current'")


def test_one_that_others_may_change_is_not_used(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Their code would run as this user. The log says why there is no Blender."""
    home = embedded._home(HERE)
    python = home / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    (home / "env" / "lib" / "python3.x" / "site-packages" / "bpy").mkdir(parents=True)
    (home / "current").write_text("env")
    assert list(embedded_pythons()) == [str(python)]
    home.chmod(0o777)
    assert list(embedded_pythons()) == []
    assert caplog.messages == [f"Not using {python}: other users may write to {home} (its mode is 777)"]


async def test_folders_are_private_whatever_the_umask(index: Path, cache: Path) -> None:
    """No other user can change the Python that would run as this one."""
    before = os.umask(0)
    try:
        python = await make_embedded()
    finally:
        os.umask(before)
    made = (cache, Path(python).parents[2])
    assert [stat.S_IMODE(path.stat().st_mode) for path in made] == [0o700] * 2
    assert list(embedded_pythons()) == [python]
