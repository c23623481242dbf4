"""The blocks of code and the commands of the pages that say how to do one thing are run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT
from tests.docs.running import run, run_block

MAKE = {
    "make demo": "asyncblend demo",
    "make test": "pytest",
    "make lint": "ruff check",
    "make docs": "mkdocs build --strict",
}


@pytest.mark.blender
@pytest.mark.slow
def test_resuming(folder: Path) -> None:
    """Each index comes once, before the stop or after it."""
    pytest.importorskip("torchdata", reason='pip install ".[stateful]"')
    assert run_block(folder, "StatefulDataLoader").splitlines() == ["True"]


@pytest.mark.parametrize("line", MAKE)
def test_what_make_would_do(line: str) -> None:
    """The targets exist, and end with the right command. `.ci/run` runs them all."""
    assert MAKE[line] in run("make", "-n", line.split()[1], cwd=ROOT)


def test_gpus(folder: Path) -> None:
    """The options are right. Whether there is a GPU is looked up when the stream is entered."""
    assert run_block(folder, "gpus=[0, 1]") == ""


@pytest.mark.exhaustive
def test_stubs_of_bpy(tmp_path: Path) -> None:
    """mypy knows what an object's location is, and that an object has no such attribute."""
    line = "pip install fake-bpy-module-4.5"
    run(sys.executable, "-m", "venv", "--without-pip", "editor", cwd=tmp_path)
    packages = next((tmp_path / "editor").glob("lib/python*/site-packages"))
    run(sys.executable, "-m", *line.split(), "--quiet", "--target", str(packages))
    (tmp_path / "script.py").write_text(
        'import bpy\ncube = bpy.data.objects["Cube"]\nreveal_type(cube.location)\ncube.no_such_attribute  # type: ignore\n'
    )
    mypy = (
        "mypy",
        "--config-file=",
        "--warn-unused-ignores",
        "--python-executable",
        str(tmp_path / "editor/bin/python"),
    )
    shown = run(sys.executable, "-m", *mypy, "script.py", cwd=tmp_path)
    assert 'Revealed type is "mathutils.Vector"' in shown
