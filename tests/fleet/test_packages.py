"""Packages for Blender's Python: the real pip, mostly with wheels made here instead of a package index."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import logging
import os
import pwd
import shutil
import stat
import sys
import tempfile
import textwrap
import zipfile
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from asyncblend.blender.serving import requirements
from asyncblend.errors import ConfigError, InstanceError
from asyncblend.fleet.install import packages
from asyncblend.fleet.install.packages import cache_folder, install, locked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOST_PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
needs_pip = pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this environment has no pip")


def children() -> list[psutil.Process]:
    """Return our child processes, except multiprocessing's helpers, which live as long as this process does."""
    own = psutil.Process().children()
    return [process for process in own if "multiprocessing" not in " ".join(process.cmdline())]


def make_wheel(index: Path, name: str) -> None:
    """Write a wheel that has one module and can be installed for any Python."""
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}/__init__.py": f"name = {name!r}\n",
        f"{name}.libs/lib{name}.so": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: not-to-be-installed\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name} = {name}:main\n",
    }
    record = [f"{info}/RECORD,,"]
    for path, text in files.items():
        digest = urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record.append(f"{path},sha256={digest},{len(text)}")
    with zipfile.ZipFile(index / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        for path, text in {**files, f"{info}/RECORD": "\n".join(record) + "\n"}.items():
            wheel.writestr(path, text)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder of wheels, and let pip see no other."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in ("alpha", "beta"):
        make_wheel(folder, name)
    for variable in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Return the folder to install into. Nothing but the folder and its lock may be left in its parent."""
    folder = tmp_path / "cache" / "packages" / "cpython-311-linux"
    yield folder
    assert {path.name for path in folder.parent.iterdir()} <= {folder.name, f"{folder.name}.lock"}
    assert children() == []


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"bin", "Scripts"}


def holder(pid: int) -> str:
    """Return what the log calls the process that holds a lock."""
    return f"the installation by process {pid}" if Path("/proc/locks").exists() else "another installation"


ALPHA = {"alpha", "alpha.libs", "alpha-1.0.dist-info"}
BETA = {"beta", "beta.libs", "beta-1.0.dist-info"}


@needs_pip
async def test_installs_once_and_without_dependencies(
    index: Path, folder: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, "asyncblend")
    await install(["alpha"], "3.10", folder)
    assert names(folder) == ALPHA
    await install(["alpha"], "3.10", folder)
    assert caplog.messages == [f"Installing alpha for Blender's Python 3.10 into {folder} (once)"]
    assert capfd.readouterr() == ("", "")


@needs_pip
async def test_second_package_goes_beside_the_first(index: Path, folder: Path) -> None:
    await install(["alpha"], HOST_PYTHON, folder)
    seen = (folder / "alpha" / "__init__.py").stat()
    await install(["alpha", "beta"], HOST_PYTHON, folder)
    assert names(folder) == ALPHA | BETA
    assert (folder / "alpha" / "__init__.py").stat().st_ino == seen.st_ino


@needs_pip
async def test_what_a_killed_installer_left_is_mended(index: Path, folder: Path) -> None:
    await install(["alpha", "beta"], HOST_PYTHON, folder)
    (folder / "alpha" / "__init__.py").unlink()
    (folder / "alpha").rmdir()
    (folder / "alpha.libs" / "old").touch()
    (folder.with_name(f"{folder.name}.new-1234") / "alpha").mkdir(parents=True)
    await install(["alpha"], HOST_PYTHON, folder)
    assert names(folder) == ALPHA | BETA
    assert not (folder / "alpha.libs" / "old").exists()


@needs_pip
async def test_tasks_that_ask_at_once_install_once(index: Path, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "asyncblend")
    await asyncio.gather(*(install(["alpha"], HOST_PYTHON, folder) for _ in range(3)))
    assert names(folder) == ALPHA
    wait = f"Waiting for {holder(os.getpid())}, which holds {folder}.lock"
    install_it = f"Installing alpha for Blender's Python {HOST_PYTHON} into {folder} (once)"
    assert sorted(caplog.messages) == [install_it, wait, wait]


@needs_pip
@pytest.mark.slow
async def test_processes_that_ask_at_once_install_once(index: Path, folder: Path) -> None:
    code = textwrap.dedent(f"""
        import asyncio, logging, pathlib
        from asyncblend.fleet.install.packages import install
        logging.basicConfig(level=logging.INFO)
        asyncio.run(install(["alpha", "beta"], {HOST_PYTHON!r}, pathlib.Path({str(folder)!r})))
    """)
    children = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", code, stderr=asyncio.subprocess.PIPE)
        for _ in range(3)
    ]
    logs = [(await child.communicate())[1].decode() for child in children]
    assert [child.returncode for child in children] == [0, 0, 0], logs
    assert "".join(logs).count("Installing alpha and beta") == 1
    assert names(folder) == ALPHA | BETA


@needs_pip
async def test_a_process_that_dies_releases_its_lock(
    index: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The process that waits for it logs that once, and then installs."""
    folder.parent.mkdir(parents=True)
    code = textwrap.dedent(f"""
        import asyncio, pathlib
        from asyncblend.fleet.install.packages import locked
        async def main():
            async with locked(pathlib.Path({str(folder)!r}), "alpha"):
                print("held", flush=True)
                await asyncio.Event().wait()
        asyncio.run(main())
    """)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"held\n"
    installing = asyncio.create_task(install(["alpha"], HOST_PYTHON, folder))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):  # for several attempts
            await asyncio.shield(installing)
    process.kill()
    await process.wait()
    await installing
    assert names(folder) == ALPHA
    assert caplog.messages == [f"Waiting for {holder(process.pid)}, which holds {folder}.lock"]


@needs_pip
async def test_failure_has_pips_words_and_the_command(index: Path, folder: Path) -> None:
    with pytest.raises(InstanceError) as caught:
        await install(["no-such-package"], "3.10", folder)
    message = str(caught.value)
    assert "No matching distribution found for no-such-package" in message
    command = message.splitlines()[-1]
    assert command.startswith(f"{sys.executable} -m pip install")
    assert f"--target {folder}" in command
    assert "--python-version 3.10" in command
    assert command.endswith(" no-such-package")
    assert "No matching distribution" in caught.value.log_tail
    assert not folder.exists()


@needs_pip
async def test_cancelling_ends_pip(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()  # until pip's end of the connection closes
        gone.set()
        writer.close()

    async with asyncio.timeout(60), await asyncio.start_server(never_answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
        monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
        monkeypatch.setenv("PIP_FIND_LINKS", "")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        task = asyncio.create_task(install(["alpha"], HOST_PYTHON, folder))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert children() == []  # reaped too
        await gone.wait()
    assert not folder.exists()


@needs_pip
async def test_cancelled_while_waiting_for_the_lock(index: Path, folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    async with locked(folder, "alpha"):
        task = asyncio.create_task(install(["alpha"], HOST_PYTHON, folder))
        for _ in range(3):  # until it has found that the lock is held
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await install(["alpha"], HOST_PYTHON, folder)
    assert names(folder) == ALPHA


async def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(InstanceError, match="ASYNCBLEND_CACHE"):
        await install(["alpha"], HOST_PYTHON, tmp_path / "cache" / "packages" / "cpython-311")


# -- nobody else can put code there ------------------------------------------------------------------------------


@needs_pip
async def test_folders_are_private_whatever_the_umask(index: Path, folder: Path, tmp_path: Path) -> None:
    """No other user can write to a folder that is on Blender's sys.path, or above it up to what there was before."""
    before = os.umask(0)
    try:
        await install(["alpha"], HOST_PYTHON, folder)
    finally:
        os.umask(before)
    made = (folder, folder.parent, folder.parent.parent)
    assert [stat.S_IMODE(path.stat().st_mode) for path in made] == [0o700] * 3
    assert names(folder) == ALPHA
    await install(["alpha"], HOST_PYTHON, folder)


def writable(path: Path) -> None:
    path.chmod(0o777)


def anothers(path: Path) -> None:
    os.chown(path, 12345, -1)


def anothers_link(path: Path) -> None:
    path.rename(path.with_name("real"))
    path.symlink_to("real")
    os.chown(path, 12345, -1, follow_symlinks=False)


@pytest.mark.parametrize("which", ["folder", "folder above"])
@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (writable, "other users may write to {} (its mode is 777)"),
        (anothers, "{} belongs to another user (number 12345; this one is 0)"),
        (anothers_link, "{} belongs to another user (number 12345; this one is 0)"),
    ],
    ids=["writable", "another's", "another's link"],
)
async def test_a_folder_in_which_others_may_put_code_is_refused(
    spoil: Callable[[Path], None], why: str, which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host does not install into it, and says why and what to do; Blender does not import from it."""
    if spoil is not writable and os.geteuid() != 0:
        pytest.skip("only root can give a folder to another user")
    folder = Path(requirements.look(str(tmp_path / "cache")).folder)
    folder.mkdir(parents=True)
    (folder / "module.py").touch()
    monkeypatch.setattr(sys, "path", list(sys.path))
    requirements.look(str(folder.parent))
    assert sys.path.pop() == str(folder)

    spoiled = folder if which == "folder" else folder.parent
    spoil(spoiled)
    requirements.look(str(folder.parent))
    assert str(folder) not in sys.path
    with pytest.raises(InstanceError) as caught:
        await install(["alpha"], HOST_PYTHON, folder)
    assert why.format(spoiled) in str(caught.value)
    assert "or make it yours alone" in str(caught.value)
    assert caught.value.command.startswith("export ASYNCBLEND_CACHE=FOLDER")
    assert names(folder) == {"module.py"}


@needs_pip
async def test_a_cache_in_a_folder_like_tmp(index: Path, tmp_path: Path) -> None:
    """Others may write to it, but cannot rename what is ours."""
    tmp_path.chmod(0o1777)
    await install(["alpha"], HOST_PYTHON, tmp_path / "cpython-311")
    assert names(tmp_path / "cpython-311") == ALPHA


async def test_no_pip_and_no_uv(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InstanceError, match="-m ensurepip"):
        await install(["alpha"], HOST_PYTHON, folder)


def test_uv_stands_in_for_pip(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.parent.mkdir(parents=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    command = packages._command(["alpha"], "3.10", folder)
    assert command[:3] == ["uv", "pip", "install"]
    assert command[-1] == "alpha"


@needs_pip
@pytest.mark.exhaustive
async def test_pyzmq_from_the_index_is_built_for_blenders_python(folder: Path) -> None:
    python = "3.10" if HOST_PYTHON != "3.10" else "3.11"  # another version than runs here
    await install(["pyzmq"], python, folder)
    assert not (folder / "numpy").exists()
    tag = f"cp{python.replace('.', '')}"
    wheel = next(folder.glob("pyzmq-*.dist-info/WHEEL")).read_text()
    assert f"Tag: {tag}-" in wheel


@pytest.mark.skipif(sys.platform != "linux", reason="the folders of Linux")
@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, "home/.cache/asyncblend/packages"),
        ({"XDG_CACHE_HOME": "{}/xdg"}, "xdg/asyncblend/packages"),
        ({"XDG_CACHE_HOME": "relative"}, "home/.cache/asyncblend/packages"),
        ({"ASYNCBLEND_CACHE": "{}/own", "XDG_CACHE_HOME": "{}/xdg"}, "own/packages"),
        ({"ASYNCBLEND_CACHE": "~/own"}, "home/own/packages"),
    ],
)
def test_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: dict[str, str], expected: str) -> None:
    for variable in ("ASYNCBLEND_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for variable, value in env.items():
        monkeypatch.setenv(variable, value.format(tmp_path))
    assert cache_folder() == tmp_path / expected


def test_a_user_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """$HOME is not set, and the system does not know the user: no folder named "~" is made, and nothing raises."""

    def unknown(_: object) -> None:
        raise KeyError

    for variable in ("ASYNCBLEND_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert cache_folder() == Path(tempfile.gettempdir(), f"asyncblend-cache-{os.geteuid()}", "packages")
    monkeypatch.setenv("ASYNCBLEND_CACHE", "~/own")
    with pytest.raises(ConfigError, match=r"\$ASYNCBLEND_CACHE='~/own' begins with a home folder that is not known"):
        cache_folder()
    monkeypatch.setenv("ASYNCBLEND_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path / "packages"
