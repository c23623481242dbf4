"""`asyncblend doctor`, with real Blenders and with broken ones."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import asyncblend
from asyncblend.cli.doctor import advice, rendering
from asyncblend.cli.doctor.command import doctor
from asyncblend.cli.doctor.libraries import debian_package, missing_libraries
from asyncblend.fleet.discovery import VARIABLE
from asyncblend.fleet.install.embedded import RELEASES
from asyncblend.testing import fake_blender

RELEASE = next((name for name, version in RELEASES.items() if version == sys.version_info[:2]), "")
"""The release of Blender whose module is for this Python."""
LOADER = "error while loading shared libraries: {}: cannot open shared object file: No such file or directory"


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Remove the developer's own variable and Pythons, and set a width."""
    monkeypatch.delenv(VARIABLE, raising=False)
    for name in ("PYENV_ROOT", "UV_PYTHON_INSTALL_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("COLUMNS", "100")


def run(*arguments: str, may_show_traceback: bool = False) -> Any:
    """Run `asyncblend doctor`. Only a script's own mistake, which the doctor's never makes, may show a traceback."""
    app = typer.Typer()
    app.command()(doctor)
    result = CliRunner().invoke(app, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert may_show_traceback or "Traceback" not in result.output
    return result


def last_line(result: Any) -> str:
    return str(result.output.rstrip().splitlines()[-1])


def without(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """Hide a module from find_spec."""
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, package=None: None if name == module else real(name, package)
    )


def versions(monkeypatch: pytest.MonkeyPatch, **changed: str | None) -> None:
    """Give distributions other versions. None removes one."""
    real = importlib.metadata.version

    def version(name: str) -> str:
        found = changed[name] if name in changed else real(name)
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)


def shell(folder: Path, body: str) -> str:
    """Write a `blender` that is a shell script, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "blender"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def broken(folder: Path, soname: str = "libXi.so.6") -> str:
    return shell(folder, f'echo "$0: {LOADER.format(soname)}" >&2; exit 127')


@pytest.mark.exhaustive
def test_a_real_blender_passes(real: Any) -> None:
    """The page has versions, engines and the time of a frame, and the exit status is 0."""
    result = run("--blender", real.blender)
    assert result.exit_code == 0, result.output
    assert re.search(r"Blender \d+\.\d+\.\d+.* \((bpy module|executable)", result.output)
    assert re.search(r"Python +3\.\d+\.\d+, numpy [12]\.\d+\.\d+, pyzmq \d+", result.output)
    assert re.search(r"engines +.*CYCLES", result.output)
    assert re.search(r"64x48 with Cycles in \d+", result.output)
    assert "denoiser" in result.output
    assert last_line(result).startswith("Ready: type asyncblend demo")


@pytest.mark.exhaustive
def test_the_default_is_marked_and_the_host_is_told(
    bpy_kind: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without options each Blender is tried, and the one that would be used is marked."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("ASYNCBLEND_CACHE", str(tmp_path / "cache"))
    result = run()
    assert result.exit_code == 0, result.output
    assert "(bpy module, taken by default)" in result.output
    assert str(tmp_path / "cache") in result.output
    for package in ("torch", "numpy", "pyzmq"):
        assert f"{package:11} {importlib.metadata.version(package)}" in result.output
    assert last_line(result) == "Ready: type asyncblend demo"


@pytest.mark.exhaustive
def test_the_python_of_another_environment(
    bpy_kind: Any, make_environment: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its module is shown as such. Where it has none, the line for pip is the first thing to type."""
    python = str(make_environment("bpy", "numpy", "requests", "zstandard", "zmq") / "bin/python")
    found = json.loads(run("--json", "--blender", python).stdout)
    (one,) = found["blenders"]
    assert (one["kind"], one["path"], one["option"], one["embedded"]) == ("module", python, python, False)
    assert (one["works"], one["facts"]["pyzmq_origin"]) == (True, "own")
    assert found["commands"] == [f"asyncblend demo --blender {python}"]

    monkeypatch.setenv(VARIABLE, python)
    monkeypatch.setenv("PATH", "")
    result = run()
    assert f"Blender {one['version']} (bpy module of another Python, taken by default)" in result.output
    assert rendering.module_version(python) == importlib.metadata.version("bpy")

    bare = str(make_environment() / "bin/python")
    result = run("--blender", bare)
    assert result.exit_code == 1
    assert f"{bare} is Python" in result.output
    assert last_line(result).startswith("Not ready. Type: ")
    assert f"--python {bare} install" in last_line(result)


def test_a_second_broken_blender_is_only_a_warning(
    bpy_kind: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A Blender that would not be used does not count, but what mends it is shown too."""
    monkeypatch.setenv("PATH", os.path.dirname(broken(tmp_path / "bin")), prepend=os.pathsep)
    monkeypatch.setenv(VARIABLE, "bpy")
    result = run()
    assert result.exit_code == 0, result.output
    assert "note   why         shared library is missing: libXi.so.6" in result.output
    assert "apt-get install libxi6" in result.output
    assert last_line(result) == "Ready: type asyncblend demo"


def test_a_broken_default_counts_though_another_works(
    bpy_kind: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What mends it comes first, and the command that chooses the other one is shown."""
    monkeypatch.setenv("PATH", os.path.dirname(broken(tmp_path / "bin")), prepend=os.pathsep)
    result = run()
    assert result.exit_code == 1
    assert f"type export {VARIABLE}=bpy" in result.output
    assert last_line(result).endswith("apt-get install libxi6")


@pytest.mark.exhaustive
def test_a_default_that_cannot_be_mended_gives_way(
    bpy_kind: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where no command is known to help, the other Blender, which works, is chosen."""
    folder = tmp_path / "bin"
    shell(folder, "echo Blender 2.79b; exit 1")
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    result = run()
    assert result.exit_code == 1
    assert "too old: asyncblend needs 3.4 or later" in result.output
    assert last_line(result) == f"Not ready. Type: export {VARIABLE}=bpy"


@pytest.mark.parametrize(("user", "line"), [(0, "Type: apt-get"), (1000, "Type: sudo apt-get")])
def test_a_missing_library_gives_the_apt_line(
    user: int, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loader's message is turned into the package, with sudo only for users who need it."""
    (tmp_path / "example_Packages").touch()
    monkeypatch.setattr(advice, "_APT_LISTS", tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    result = run("--blender", broken(tmp_path / "broken"))
    assert result.exit_code == 1
    assert "shared library is missing: libXi.so.6" in result.output
    assert last_line(result) == f"Not ready. {line} install libxi6"


def test_a_bare_container_updates_the_lists_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without apt's lists, apt knows no package to install."""
    monkeypatch.setattr(advice, "_APT_LISTS", tmp_path / "none")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    result = run("--blender", broken(tmp_path / "broken"))
    assert last_line(result).endswith("Type: sudo apt-get update && sudo apt-get install libxi6")


@pytest.mark.skipif(shutil.which("ldd") is None, reason="there is no ldd here")
async def test_ldd_tells_of_all_libraries_at_once(tmp_path: Path) -> None:
    """A real program lists its missing library. A whole program, and a file that is no program, list none."""
    true = shutil.which("true")
    assert true is not None
    program = Path(true).read_bytes()
    if b"libc.so.6\0" not in program:
        pytest.skip("`true` is not linked with glibc here")
    damaged = tmp_path / "damaged"
    damaged.write_bytes(program.replace(b"libc.so.6\0", b"libQ.so.6\0"))
    damaged.chmod(0o755)
    assert await missing_libraries(str(damaged)) == ["libQ.so.6"]
    assert await missing_libraries(true) == []
    assert await missing_libraries(broken(tmp_path / "broken")) == []
    assert await missing_libraries("") == []


def test_several_missing_libraries_make_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ldd lists and what the loader names are put together, each once."""
    ldd = tmp_path / "bin" / "ldd"
    ldd.parent.mkdir()
    lines = [
        "libX11.so.6 => not found",
        "libSM.so.6 => not found",
        "libXi.so.6 => not found",
        "libc.so.6 => /l/c (0x1)",
    ]
    ldd.write_text("#!/bin/sh\n" + "\n".join(f"echo '\t{line}'" for line in lines))
    ldd.chmod(0o755)
    monkeypatch.setenv("PATH", str(ldd.parent), prepend=os.pathsep)
    result = run("--blender", broken(tmp_path / "broken"))
    assert "shared libraries are missing: libSM.so.6, libX11.so.6, libXi.so.6" in result.output
    assert last_line(result).endswith("apt-get install libsm6 libx11-6 libxi6")


@pytest.mark.parametrize(
    ("soname", "package"),
    [
        ("libX11.so.6", "libx11-6"),
        ("libXrender.so.1", "libxrender1"),
        ("libXfixes.so.3", "libxfixes3"),
        ("libXi.so.6", "libxi6"),
        ("libXxf86vm.so.1", "libxxf86vm1"),
        ("libxkbcommon.so.0", "libxkbcommon0"),
        ("libSM.so.6", "libsm6"),
        ("libICE.so.6", "libice6"),
        ("libGL.so.1", "libgl1"),
        ("libEGL.so.1", "libegl1"),
        ("libGLU.so.1", "libglu1-mesa"),
        ("libX11-xcb.so.1", "libx11-xcb1"),
        ("libdecor-0.so.0", "libdecor-0-0"),
        ("libwayland-client.so.0", "libwayland-client0"),
        ("libgcc_s.so.1", "libgcc-s1"),
        ("libstdc++.so.6", "libstdc++6"),
        ("libglib-2.0.so.0", "libglib2.0-0"),
        ("libpython3.11.so.1.0", "libpython3.11"),
        ("libz.so.1", "zlib1g"),
        ("libm.so.6", "libc6"),
        ("libOpenImageIO.so.2.4", "libopenimageio2.4"),
        ("libembree3.so.3", "libembree3-3"),
    ],
)
def test_debian_package_of_a_library(soname: str, package: str) -> None:
    """Names follow Debian's rule, or are exceptions."""
    assert debian_package(soname) == package


@pytest.mark.parametrize(
    ("python", "first"),
    [((3, 11), "asyncblend doctor --fix"), ((3, 13), "asyncblend doctor --fix"), ((3, 12), "apt-get install blender")],
)
def test_no_blender_at_all(
    python: tuple[int, int], first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page says how to get one: the module only where there are wheels of it, else the Pythons that have them."""
    monkeypatch.setenv("ASYNCBLEND_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "version_info", python)
    monkeypatch.setattr(sys, "platform", "linux")
    without(monkeypatch, "bpy")
    result = run()
    assert result.exit_code == 1
    assert "No Blender found" in result.output
    assert "apt-get install blender" in result.output
    assert "https://www.blender.org/download/" in result.output
    assert ('-m pip install "asyncblend[bpy]"' in result.output) == (python != (3, 12))
    assert ("There is none for Python 3.12" in result.output) == (python == (3, 12))
    assert last_line(result).startswith("Not ready. Type: ")
    assert first in last_line(result)


def test_releases_of_blender_are_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each one that a Python here can take is offered, unless it is here; a Python that does not start is passed over."""
    monkeypatch.setenv("ASYNCBLEND_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sys, "version_info", (3, 12))
    (tmp_path / "bin").mkdir()
    for name, body in (("python3.11", f'exec "{sys.executable}" "$@"'), ("python3.13", "exit 127")):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    without(monkeypatch, "bpy")
    command, python = "asyncblend doctor --bpy 4.5", str(tmp_path / "bin" / "python3.11")
    assert as_json()[1]["offers"] == [{"release": "4.5", "python": python, "command": command}]
    assert f"Blender 4.5 can be had as a module of {python}: type {command}" in run().output
    assert as_json("--blender", "nowhere")[1]["offers"] == []


def test_a_release_that_cannot_be_installed(bpy_kind: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What was asked for is not here, so this is not ready, though another Blender works."""
    other = next(name for name, version in RELEASES.items() if version != sys.version_info[:2])
    for name in ("ASYNCBLEND_CACHE", "PYENV_ROOT", "UV_PYTHON_INSTALL_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("PATH", str(tmp_path))
    result = run("--bpy", other)
    assert result.exit_code == 1
    assert "The embedded Blender could not be installed" in result.output
    assert last_line(result).startswith(f"Not ready. Type: asyncblend doctor --fix --bpy {other}    (with Python ")


def test_a_release_that_is_here_already(
    bpy_kind: Any, make_environment: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing is installed, and it is said how to choose it where another one is taken by default."""
    monkeypatch.setenv("ASYNCBLEND_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    home = tmp_path / "cache" / f"bpy-cpython-{sys.version_info[0]}{sys.version_info[1]}-{sysconfig.get_platform()}"
    home.mkdir(0o700, parents=True)
    (home / "env-1").symlink_to(make_environment("bpy", "numpy", "requests", "zstandard", "zmq"))
    (home / "current").write_text("env-1")
    code, found = as_json("--bpy", RELEASE, "--blender", "bpy")
    assert (code, found["fixed"]) == (0, [])
    (present,) = found["present"]
    python = str(home / "env-1" / "bin" / "python")
    assert present["what"].startswith(f"The embedded Blender, bpy {RELEASE}.")
    assert present["what"].endswith("is here already")
    assert (present["path"], present["commands"]) == (python, [f"export {VARIABLE}={python}"])


def test_a_release_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that can be installed are named."""
    result = run("--bpy", "5.9")
    assert result.exit_code == 2
    assert "'5.9' is none of 4.5, 5.2" in result.output


def test_pip_by_its_name_in_an_active_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is short where `pip` is this Python's own, and names the Python elsewhere."""
    for name in ("pip", "python"):
        (tmp_path / name).touch(0o755)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    versions(monkeypatch, torch=None, numpy=None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert last_line(run("--blender", "nowhere")).startswith("Not ready. Type: pip install torch numpy")
    monkeypatch.setenv("PATH", "")
    assert f"Type: {tmp_path / 'python'} -m pip install torch numpy" in last_line(run("--blender", "nowhere"))
    without(monkeypatch, "pip")
    (tmp_path / "pip").rename(tmp_path / "uv")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "Type: uv pip install --python " in last_line(run("--blender", "nowhere"))


@pytest.mark.parametrize("package", ["torch", "pyzmq"])
@pytest.mark.exhaustive
def test_the_main_job_needs_its_packages(package: str, bpy_kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch a Blender renders, but the exit status is 1. Without pyzmq no Blender can be tried."""
    versions(monkeypatch, **{package: None})
    result = run("--blender", "bpy")
    assert result.exit_code == 1
    assert ("64x48 with Cycles" in result.output) == (package == "torch")
    assert ("No Blender was tried" in result.output) == (package == "pyzmq")
    assert f"pip install {package}" in last_line(result)


@pytest.mark.exhaustive
def test_numpy_that_bpy_is_not_made_for(bpy_kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a note with a command, not a failure, because the Blender did render."""
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["cython", "numpy<2.0,>=1.26"])
    versions(monkeypatch, numpy="2.3.1")
    result = run("--blender", "bpy")
    assert result.exit_code == 0, result.output
    assert "is made for numpy<2.0,>=1.26, here is 2.3.1" in result.output
    assert 'pip install "numpy<2.0,>=1.26"' in result.output
    assert f"    or  asyncblend doctor --bpy {RELEASE}" in result.output


@pytest.mark.parametrize("values", [None, {"image": ("uint8", (4, 4, 3))}])
def test_a_fake_blender_is_none(values: Any, tmp_path: Path) -> None:
    """It speaks the protocol, but cannot render."""
    result = run("--blender", str(fake_blender(tmp_path, values=values)))
    assert result.exit_code == 1
    assert "this is no Blender" in result.output
    assert last_line(result).startswith("Not ready. Type: ")


def test_an_unknown_failure_shows_the_end_of_the_log(tmp_path: Path) -> None:
    """The page also says how to start that Blender by hand."""
    path = str(fake_blender(tmp_path / "with space", exit_at_start=3))
    result = run("--blender", path)
    assert result.exit_code == 1
    assert "it exited with status 3 before it was ready" in result.output
    assert "fake Blender: exits at its start" in result.output
    assert f"Type: '{path}' --background --factory-startup" in last_line(result)


def test_a_blender_that_dies_while_it_renders(tmp_path: Path) -> None:
    """The page tells of the crash itself, not of the restarts that the doctor forbids."""
    result = run("--blender", str(fake_blender(tmp_path, values={"image": ("uint8", (1, 1, 3))}, crash_after=0)))
    assert result.exit_code == 1
    assert "it was killed by signal 9 while it served" in result.output


def test_a_sample_that_raises(
    bpy_kind: Any, write_script: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Blender may start and yet not render, such as one without Cycles."""
    script = write_script("def sample(task): raise RuntimeError('this Blender has no Cycles')")
    monkeypatch.setattr(rendering, "_PROBE", script)
    result = run("--blender", "bpy", may_show_traceback=True)
    assert result.exit_code == 1
    assert "sample 0 failed in Blender 0: RuntimeError: this Blender has no Cycles" in result.output
    assert 'import bpy; print(bpy.app.version_string)"' in last_line(result)


def without_pyzmq(tmp_path: Path) -> str:
    """Return a `blender` that does what a Blender without pyzmq does, in a Python that has it."""
    main = tmp_path / "main.py"
    main.write_text(
        "import json, os\n"
        "launch = json.loads(os.environ['ASYNCBLEND_LAUNCH'])\n"
        "folder = os.path.join(launch['packages'], 'cpython-310')\n"
        "report = {'packages': ['pyzmq'], 'python': '3.10', 'folder': folder}\n"
        "json.dump(report, open(launch['report'], 'w'))\n"
        "os._exit(77)\n"
    )
    return shell(tmp_path / "bare", f"exec '{sys.executable}' '{main}'")


def test_packages_that_cannot_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page has the installer's last words, and its command to type."""
    monkeypatch.setenv("ASYNCBLEND_CACHE", str(tmp_path / "cache"))
    for name, value in (("PIP_NO_INDEX", "1"), ("PIP_CONFIG_FILE", os.devnull), ("UV_NO_INDEX", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    result = run("--blender", without_pyzmq(tmp_path))
    assert result.exit_code == 1
    assert "Blender's Python 3.10 has no pyzmq, and installing failed" in result.output
    assert " pip install " in last_line(result)
    assert last_line(result).endswith(" pyzmq")


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command names another folder."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("ASYNCBLEND_CACHE", str(tmp_path / "file"))
    code, found = as_json("--blender", without_pyzmq(tmp_path))
    assert code == 1
    (blender,) = found["blenders"]
    assert blender["why"].startswith("Cannot write pyzmq for Blender's Python 3.10 into ")
    assert blender["commands"][0].startswith("export ASYNCBLEND_CACHE=")
    assert blender["mends"]
    assert found["commands"] == blender["commands"]


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_wrong_option(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the option, and no other Blender is tried instead."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    result = run("--blender", name)
    assert result.exit_code == 1
    assert f"blender={name!r}" in result.output
    assert "64x48" not in result.output


def test_a_wrong_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stream would stop there, so it counts. The other Blenders are tried, and the way out is to unset it."""
    monkeypatch.setenv(VARIABLE, "nowhere")
    monkeypatch.setenv("ASYNCBLEND_CACHE", str(tmp_path / "cache"))
    without(monkeypatch, "bpy")
    monkeypatch.setenv("PATH", os.path.dirname(broken(tmp_path / "bin")))
    result = run()
    assert result.exit_code == 1
    assert "'nowhere'" in result.output
    assert "libxi6" in result.output
    assert last_line(result) == f"Not ready. Type: unset {VARIABLE}"


def test_in_a_terminal_there_are_panels_and_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """People see colours and frames, and the command is in one line, to be copied."""
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    result = run("--blender", broken(tmp_path / "broken", "libvery_long_name_of_a_shared_library.so.1"))
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", result.output)
    assert "╭─ ✓ This machine" in text
    assert "✗ why" in text
    assert re.search(
        r"^Not ready\. Type: .*apt-get install libvery-long-name-of-a-shared-library1$", text, re.MULTILINE
    )


# -- as JSON -------------------------------------------------------------------------------------------------------


def as_json(*arguments: str) -> tuple[int, Any]:
    """Return the exit status, and the JSON that is all of the standard output."""
    result = run("--json", *arguments)
    return result.exit_code, json.loads(result.stdout)


def test_json_has_what_the_page_has(real: Any) -> None:
    """Programs get the same findings."""
    code, found = as_json("--blender", real.blender)
    assert code == 0, found
    assert found["asyncblend"] == asyncblend.__version__
    assert found["ready"] is True
    assert found["commands"][0].startswith("asyncblend demo")
    assert found["host"]["executable"] == sys.executable
    assert set(found["host"]["packages"]) == {"torch", "numpy", "pyzmq", "uvloop"}
    assert found["host"]["commands"] == found["problems"] == found["fixed"] == []
    (blender,) = found["blenders"]
    assert blender["option"] == real.blender
    assert blender["works"] is True
    assert blender["why"] is None
    facts = blender["facts"]
    assert "CYCLES" in facts["engines"]
    assert (facts["width"], facts["height"]) == (64, 48)
    assert facts["frame_seconds"] > 0
    assert facts["start_seconds"] > 0
    assert facts["pyzmq_origin"] in {"own", "host", "cache"}


@pytest.mark.exhaustive
def test_json_of_a_default_that_fails_beside_one_that_works(
    bpy_kind: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each Blender has its facts, or why it failed and the commands. The default counts: the exit status is 1."""
    path = broken(tmp_path / "bin")
    monkeypatch.setenv("PATH", os.path.dirname(path), prepend=os.pathsep)
    code, found = as_json()
    assert code == 1
    assert found["ready"] is False
    assert found["default"] == path
    assert found["commands"][-1].endswith("apt-get install libxi6")
    first, second = found["blenders"]
    assert (first["kind"], first["path"], first["default"]) == ("executable", path, True)
    assert first["works"] is False
    assert first["facts"] is None
    assert first["why"] == "shared library is missing: libXi.so.6"
    assert first["commands"] == found["commands"][-1:]
    assert (second["kind"], second["option"], second["default"]) == ("module", "bpy", False)
    assert second["works"] is True
    assert second["facts"]["numpy"] == importlib.metadata.version("numpy")


def test_json_without_any_blender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The problem says why there is none, and has the ways to one."""
    monkeypatch.setenv("ASYNCBLEND_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "")
    without(monkeypatch, "bpy")
    code, found = as_json()
    assert code == 1
    assert found["default"] is None
    assert found["blenders"] == []
    (problem,) = found["problems"]
    assert problem["title"] == "No Blender"
    assert "No Blender found" in problem["why"]
    assert found["commands"] == problem["commands"][:1]


def test_json_where_none_can_be_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The JSON is whole, and has the command."""
    versions(monkeypatch, pyzmq=None)
    code, found = as_json()
    assert code == 1
    assert found["host"]["packages"]["pyzmq"] is None
    assert found["commands"][0].endswith("pip install pyzmq")
    assert [problem["title"] for problem in found["problems"]] == ["No Blender was tried"]
