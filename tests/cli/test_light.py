"""What the command line needs: nothing but typer and rich for help, and one clear line where a package is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from asyncblend.cli import app
from asyncblend.testing import fake_blender

COMMANDS = [command.callback.__name__ for command in app.registered_commands if command.callback is not None]
PACKAGES = (
    "numpy",
    "zmq",
    "PIL",
    "isal",
    "torch",
    "webdataset",
    "matplotlib",
    "pycocotools",
    "filelock",
    "platformdirs",
    "uvloop",
)

HIDE = """
import sys

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)

sys.meta_path.insert(0, Hide())
sys.argv[0] = "asyncblend"
{then}
"""
MAIN = "from asyncblend.cli import main; main()"


def hiding(
    *hidden: str, arguments: tuple[str, ...] = (), cwd: Path, then: str = MAIN, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run code in a Python that cannot import some packages."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", HIDE.format(hidden=set(hidden), then=then), *arguments],
        capture_output=True,
        text=True,
        timeout=90,
        cwd=cwd,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a script and a fake Blender, which is the one that is used."""
    (tmp_path / "scene.py").touch()
    values = {"image": ("uint8", (48, 64, 3)), "xy": ("float32", (8, 2))}
    monkeypatch.setenv("ASYNCBLEND_BLENDER", str(fake_blender(tmp_path / "fake", values=values)))
    return tmp_path


USE = {
    "bench": ("bench", "scene.py", "--instances", "1", "--threads", "1", "--seconds", "0.05"),
    "demo": ("demo", "--batches", "1"),
    "doctor": ("doctor",),
    "export": ("export", "recording", "--out", "coco"),
    "inspect": ("inspect", "scene.py"),
    "link": ("link",),
    "record": ("record", "scene.py", "--out", "recording", "--length", "2"),
    "stream": ("stream", "scene.py", "--length", "2"),
    "view": ("view", "scene.py", "--save", "run.rrd"),
}


def test_every_command_is_tried() -> None:
    """A new command needs a line above."""
    assert sorted(USE) == sorted(COMMANDS)


@pytest.mark.parametrize("command", [None, *COMMANDS])
@pytest.mark.exhaustive
def test_help_needs_only_typer_and_rich(command: str | None, tmp_path: Path) -> None:
    """Every other package is hidden, and the help is printed."""
    arguments = ("--help",) if command is None else (command, "--help")
    done = hiding(*PACKAGES, arguments=arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Usage: asyncblend" in done.stdout


def test_importing_the_command_line_imports_nothing_else(tmp_path: Path) -> None:
    """Every package that it loads belongs to typer or rich, hidden or not."""
    allowed = {"asyncblend", "typer", "rich", "click", "shellingham", "markdown_it", "mdurl", "pygments"}
    allowed |= {"typing_extensions", "annotated_doc", "annotated_types", "colorama"}
    then = (
        "before = set(sys.modules); import asyncblend.cli; names = {m.partition('.')[0] for m in set(sys.modules) - before};"
        f"print(sorted(names - sys.stdlib_module_names - {allowed!r}))"
    )
    done = hiding(then=then, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("command", sorted(USE))
def test_without_any_package_one_line_says_what_to_install(command: str, folder: Path) -> None:
    """As in an environment where only typer and rich are installed. No traceback, and exit status 1."""
    done = hiding(*PACKAGES, arguments=USE[command], cwd=folder)
    assert done.returncode == 1, done.stdout + done.stderr
    output = done.stdout + done.stderr
    assert "Traceback" not in output
    (line,) = [line for line in output.splitlines() if "pip install" in line]
    assert "Type: " in line


def test_all_that_a_command_misses_is_in_one_line(folder: Path) -> None:
    """Otherwise the next package would be missing once this line was typed."""
    done = hiding(*PACKAGES, arguments=USE["stream"], cwd=folder)
    _, _, line = done.stderr.rpartition(" install ")
    assert set(line.split()) == {"numpy", "pyzmq", "pillow", "isal", "filelock", "platformdirs"}


@pytest.mark.parametrize(
    ("command", "hidden", "line"),
    [
        ("demo", "torch", "pip install torch"),
        ("demo", "PIL", "pip install pillow"),
        ("doctor", "zmq", "pip install pyzmq"),
        ("doctor", "torch", "pip install torch"),
        ("inspect", "numpy", "pip install numpy"),
        ("record", "webdataset", 'pip install "asyncblend[record]"'),
        ("stream", "isal", "pip install isal"),
        ("stream", "zmq", "pip install pyzmq"),
    ],
)
@pytest.mark.exhaustive
def test_one_missing_package_is_named(command: str, hidden: str, line: str, folder: Path) -> None:
    """Before any Blender starts, with the line that installs just this one."""
    done = hiding(hidden, arguments=USE[command], cwd=folder)
    output = done.stdout + done.stderr
    assert done.returncode == 1, output
    assert "Traceback" not in output
    (found,) = [one for one in output.splitlines() if "pip install" in one]
    assert found.partition(" && ")[0].endswith(line)
    assert not (folder / "recording").exists()


@pytest.mark.exhaustive
def test_metrics_need_their_package_alone(folder: Path) -> None:
    """It is missed before any Blender starts, and only where metrics are asked for."""
    done = hiding("prometheus_client", arguments=(*USE["stream"], "--metrics", "0"), cwd=folder)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith('pip install "asyncblend[metrics]"'), done.stderr
    assert not done.stdout
    done = hiding("prometheus_client", arguments=USE["stream"], cwd=folder)
    assert done.returncode == 0, done.stderr


@pytest.mark.exhaustive
def test_the_format_coco_names_its_extra(folder: Path) -> None:
    """It is missed only when a recording is there to export."""
    recorded = hiding(arguments=USE["record"], cwd=folder)
    assert recorded.returncode == 0, recorded.stderr
    done = hiding("pycocotools", arguments=USE["export"], cwd=folder)
    assert done.returncode == 1
    assert 'pip install "asyncblend[coco]"' in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.exhaustive
def test_bench_prints_its_table_without_matplotlib(folder: Path) -> None:
    """One line says how to get a plot. Where one is asked for, nothing is measured without it."""
    done = hiding("matplotlib", arguments=USE["bench"], cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "Best: 1 x 1 thread" in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if "plot" in line]
    assert 'pip install "asyncblend[plot]"' in line
    plotted = hiding("matplotlib", arguments=(*USE["bench"], "--out", "plots"), cwd=folder)
    assert plotted.returncode == 1
    assert plotted.stdout == ""
    assert "This command needs what is not installed here: matplotlib." in plotted.stderr
    assert 'pip install "asyncblend[plot]"' in plotted.stderr
    assert not (folder / "plots").exists()


def test_a_mistake_of_ours_is_not_taken_for_a_missing_package(tmp_path: Path) -> None:
    """An import that fails although all packages are there shows its traceback."""
    then = "import asyncblend.cli as cli; cli.app = lambda **_: __import__('asyncblend.nonsense'); cli.main()"
    done = hiding(then=then, cwd=tmp_path)
    assert "ModuleNotFoundError: No module named 'asyncblend.nonsense'" in done.stderr
    assert "pip install" not in done.stderr


@pytest.mark.parametrize("error", ["ImportError('libc10.so: no such file', name='torch._C')", "OSError('libcudart')"])
def test_a_package_that_cannot_be_imported(error: str, folder: Path) -> None:
    """As torch without one of its libraries: the reason, and the line that installs it again."""
    (folder / "torch.py").write_text(f"raise {error}")
    done = hiding(arguments=("demo", "--batches", "1"), cwd=folder)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "torch is installed here, but cannot be imported: lib" in done.stderr
    assert done.stderr.rstrip().endswith("pip install --force-reinstall torch")
