"""The blocks of code and the commands of the pages that say how to do one thing are run."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, page
from tests.docs.running import run, run_block

MAKE = {
    "make demo": "asyncblend demo",
    "make test": "pytest",
    "make lint": "ruff check",
    "make docs": "mkdocs build --strict",
}
EXPORTS = {
    "asyncblend export labelled.py --length 16 --val 0.25 --format yolo --task segment --out yolo": "yolo/data.yaml",
    "asyncblend export labelled.py --length 16 --format parquet --out rooms": "rooms/data/train-00000-of-00001.parquet",
    "asyncblend export shapes.py --length 4 --format bop --out bop -- --labels bop": "bop/train/000000/scene_gt.json",
}
OWN = (
    "python3.11 -m venv blender",
    'blender/bin/pip install "bpy==4.5.*"',
    "asyncblend demo --blender blender/bin/python",
)
VIEWER = (
    "python3 -m venv view",
    'view/bin/pip install ".[view]"',
    "view/bin/asyncblend view scene.py --blender .venv/bin/python",
)
VIEWS = ("asyncblend view scene.py --length 16 --save run.rrd", "asyncblend view recording --save recording.rrd")


@pytest.mark.blender
@pytest.mark.slow
@pytest.mark.exhaustive
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


@pytest.mark.blender
@pytest.mark.slow
@pytest.mark.exhaustive
def test_who_is_the_bottleneck(folder: Path) -> None:
    """The statistics of a short training say who was the bottleneck, and how full its queue was."""
    verdict, queue = run_block(folder, "stats.occupancy").splitlines()
    assert re.search("bottleneck|balanced|wait for each other", verdict)
    assert re.fullmatch(r"the queue was \d+% full, training waited \d+% of the time", queue)


@pytest.mark.blender
@pytest.mark.slow
@pytest.mark.exhaustive
def test_exports(folder: Path) -> None:
    """Each format's own files are there. Its reader reads them in `tests/pictures`."""
    pytest.importorskip("pyarrow", reason='pip install ".[parquet]"')
    for command, made in EXPORTS.items():
        smaller = ("--width", "64", "--height", "48") if "shapes.py" in command else ()
        run(*command.split(), *smaller)
        assert (folder / made).is_file()


@pytest.mark.blender
@pytest.mark.slow
@pytest.mark.exhaustive
def test_datasets_loads_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call that the page names loads what its command wrote."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(folder / "home"))
    pytest.importorskip("datasets", reason="pip install datasets")
    (call,) = re.findall(r"`(datasets\.load_dataset\(.*?\))`", page("howto/export.md"))
    (command,) = (command for command in EXPORTS if "parquet" in command)
    run(*command.replace("16", "2").split())
    assert run(sys.executable, "-c", f"import datasets; print({call}['train']['index'][:])").strip() == "[0, 1]"


@pytest.mark.blender
@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_training_that_can_be_looked_at(folder: Path) -> None:
    """It trains whether somebody looks or not."""
    lines = run_block(folder, "dataset.view(port").splitlines()
    assert sorted(int(index) for line in lines for index in re.findall(r"\d+", line)) == list(range(16))


@pytest.mark.blender
@pytest.mark.slow
def test_what_is_viewed(folder: Path) -> None:
    """A stream and a recording become files, in an environment that has rerun, by a Blender of this one."""
    viewer = ROOT / ".venv-view/bin/python"
    if not viewer.exists():
        pytest.skip("make viewer")
    run("asyncblend", "record", "labelled.py", "--out", "recording", "--length", "2")
    stream, recording = VIEWS
    run(str(viewer), "-m", *stream.split(), "--blender", sys.executable)
    run(str(viewer), "-m", *recording.split())
    assert (folder / "run.rrd").read_bytes()[:4] == (folder / "recording.rrd").read_bytes()[:4]


@pytest.mark.blender
@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_viewer_in_an_environment_of_its_own(folder: Path) -> None:
    """The environment is made, pip knows the extra, and a frame is shown there. The packages are borrowed from here."""
    make, install, show = VIEWER
    viewer = ROOT / ".venv-view"
    if not viewer.exists():
        pytest.skip("make viewer")
    run(sys.executable, *make.split()[1:])
    (own,), (borrowed,) = ([*path.glob("lib/python*/site-packages")] for path in (folder / "view", viewer))
    (own / "borrowed.pth").write_text(f"{borrowed}\nimport site; site.addsitedir({str(borrowed)!r})\n")
    pip, *words = shlex.split(install.replace('".[', f'"{ROOT}['))
    assert "rerun-sdk" in run(pip, *words, "--dry-run")
    program, *words = show.replace(".venv/bin/python", sys.executable).split()
    run(program.replace("asyncblend", "python"), "-m", "asyncblend", *words, "--length", "2", "--save", "run.rrd")
    assert (folder / "run.rrd").is_file()


def test_the_environment_of_a_checkout(tmp_path: Path) -> None:
    """Once it is activated, as the page says, the command is on the PATH."""
    if not Path(sys.prefix, "bin/activate").is_file():
        pytest.skip("this Python is in no environment of venv")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    activate = ". .venv/bin/activate"
    found = run("sh", "-c", f"{activate} && command -v asyncblend", cwd=tmp_path, environment={"PATH": "/usr/bin:/bin"})
    assert Path(found.strip()).samefile(Path(sys.prefix, "bin/asyncblend"))


@pytest.mark.blender
@pytest.mark.exhaustive
@pytest.mark.slow
def test_blender_in_an_environment_of_its_own(folder: Path) -> None:
    """The environment is made, pip finds bpy for it, and the demo renders there. The module itself is borrowed from here."""
    make, install, demo = OWN
    if sys.version_info[:2] != (3, 11):
        pytest.skip("bpy 4.5 is for Python 3.11")
    run(sys.executable, *make.split()[1:])
    pip, *words = shlex.split(install)
    run(pip, *words, "--dry-run", "--quiet")
    packages = next((folder / "blender").glob("lib/python*/site-packages"))
    bpy = importlib.util.find_spec("bpy")
    assert bpy is not None
    assert bpy.origin is not None
    (packages / "borrowed.pth").write_text(f"{Path(bpy.origin).parents[1]}\n")
    run(*demo.split(), "--batches", "1", "--instances", "1")
    assert (folder / "tmp/output_00.png").is_file()


@pytest.mark.exhaustive
@pytest.mark.slow
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
