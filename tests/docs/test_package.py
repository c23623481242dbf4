"""The package that a package index would have."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT
from tests.docs.running import run

pytestmark = [pytest.mark.blender, pytest.mark.slow]


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_the_package_installs_and_its_demo_runs(folder: Path) -> None:
    """The package is built and installed without what it needs, which is here already; then its demo draws cubes."""
    install = shlex.split('pip install ".[bpy]"')
    run(sys.executable, "-m", *install, "--quiet", "--no-deps", "--target", str(folder / "installed"), cwd=ROOT)
    (about,) = (folder / "installed").glob("asyncblend-*.dist-info/METADATA")
    description = about.read_text()
    assert "a script with one function: Your own scene" in description
    assert "](docs/" not in description
    scripts = {path.name for path in (folder / "installed/asyncblend/blender_scripts").iterdir()}
    assert scripts >= {path.name for path in (ROOT / "blender_scripts").glob("*.py")}
    code = "import asyncblend, sys; assert 'installed' in asyncblend.__file__; from asyncblend.cli import main; main()"
    run(sys.executable, "-c", code, "demo", environment={"PYTHONPATH": str(folder / "installed")})
    pictures = sorted(path.name for path in (folder / "tmp").glob("*.png"))
    assert pictures == [f"output_{i:02d}.png" for i in range(10)]
