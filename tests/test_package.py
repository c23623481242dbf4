"""What is uploaded: the wheel and the source package are sound, and a wheel is all that a new environment needs."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = [pytest.mark.exhaustive, pytest.mark.slow, pytest.mark.timeout(900)]


def run(*line: Any, folder: Path) -> str:
    """Run a command in a folder without what Python looks for around it, and return what it printed."""
    done = subprocess.run(
        [str(part) for part in line], cwd=folder, capture_output=True, text=True, timeout=800, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Build the source package, and from it the wheel."""
    folder = tmp_path_factory.mktemp("packages")
    run(sys.executable, "-m", "build", "--outdir", folder / "dist", ROOT, folder=folder)
    return sorted((folder / "dist").iterdir())


def test_twine_accepts_them(packages: list[Path]) -> None:
    """The index would show the README as it is meant, and has all that it asks for."""
    assert [path.suffix for path in packages] == [".whl", ".gz"]
    printed = run(sys.executable, "-m", "twine", "check", "--strict", *packages, folder=packages[0].parent)
    assert printed.count("PASSED") == 2


def test_what_is_in_them(packages: list[Path]) -> None:
    """The wheel has all modules, scripts and the mark of a typed package; the sources have the tests too."""
    wheel, source = packages
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "asyncblend").rglob("*.py")}
    scripts = {f"asyncblend/blender_scripts/{path.name}" for path in (ROOT / "blender_scripts").glob("*.py")}
    assert modules | scripts | {"asyncblend/py.typed"} <= names
    with tarfile.open(source) as archive:
        inside = {Path(*Path(name).parts[1:]).as_posix() for name in archive.getnames()}
    assert {"tests/test_package.py", "README.md", "LICENSE", "Makefile", "constraints.txt"} <= inside


def test_a_new_environment_runs_the_demo(packages: list[Path], tmp_path: Path) -> None:
    """`pip install` of the wheel alone brings all that it needs, and the demo draws its pictures."""
    run(sys.executable, "-m", "venv", "new", folder=tmp_path)
    python = tmp_path / "new" / "bin" / "python"
    pinned = ("-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt")
    run(python, *pinned, "torch", folder=tmp_path)
    run(python, *pinned, packages[0], folder=tmp_path)
    # Blender is that of this environment, which has the bpy module.
    run(tmp_path / "new/bin/asyncblend", "demo", "--batches", "1", "--blender", sys.executable, folder=tmp_path)
    assert [path.name for path in (tmp_path / "tmp").iterdir()] == ["output_00.png"]
