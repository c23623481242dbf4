"""The way from a mesh to a trained network is run, as the tutorials show it."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.docs.pages import ROOT
from tests.docs.running import run, run_block

pytestmark = [pytest.mark.blender, pytest.mark.slow]

SMALL = ("--width", "64", "--height", "48", "--samples", "1")
"""Options of model.py."""
LOOK = "asyncblend inspect model.py --out sheet.png -- part.glb"
VARY = "asyncblend inspect model.py -- part.glb --objects 2:6 --physics --materials random"
EXPORT = "asyncblend export model.py --length 16 --val 0.25 --format yolo --out yolo -- part.glb"
LARGE = "asyncblend export model.py --length 1000 --val 0.1 --format yolo --out parts -- part.glb"
POSES = "asyncblend export model.py --length 8 --format bop --out bop -- part.glb --bop"
BRIEF = ("--steps", "2", "--looks", "1", "--held-out", "4", "--batch", "2", "--size", "32", "--instances", "1")
"""Options of the examples."""
TRAIN = {
    "python examples/train_keypoints.py": "painted_cube",
    "python examples/train_keypoints.py --processor --minutes 1.5 --compare 500 2000 8000": "painted_cube",
    "python examples/train_keypoints.py --script blender_scripts/model.py --out tmp/corners -- part.glb --objects 1": "corners",
    "python examples/train_detector.py --script blender_scripts/model.py --out tmp/part -- part.glb --objects 3": "part",
}


@pytest.fixture
def part(folder: Path) -> Path:
    """The folder, with the mesh of the tutorial."""
    run_block(folder, "export_scene")
    return folder


@pytest.mark.exhaustive
def test_a_mesh_with_its_labels(part: Path) -> None:
    """The mesh is drawn with its labels, in both ways, and a training loop gets its boxes."""
    for command in (LOOK, VARY):
        (part / "sheet.png").unlink(missing_ok=True)
        run(*command.split(), *SMALL)
        assert (part / "sheet.png").is_file()
    lines = run_block(part, 'script("model.py")').splitlines()
    assert len(lines) == 2
    for line in lines:
        counts = [int(n) for n in re.findall(r"\d+", line.split("]) [")[1].split("]")[0])]
        assert len(counts) == 4
        assert {*counts} <= {1, 2, 3}
        assert line.count("'part'") == sum(counts)


@pytest.mark.exhaustive
def test_files_for_another_trainer(part: Path) -> None:
    """Sixteen images are split, each with its file of labels."""
    run(*EXPORT.split(), *SMALL)
    assert (part / "yolo/data.yaml").is_file()
    names = {kind: {path.stem for path in (part / "yolo" / kind).rglob("*.*")} for kind in ("images", "labels")}
    assert len(names["images"]) == 16
    assert names["images"] == names["labels"]
    run(*LARGE.replace("1000", "4").split(), *SMALL)
    assert (part / "parts/data.yaml").is_file()
    run(*POSES.split(), *SMALL)
    assert (part / "bop/models/models_info.json").is_file()


@pytest.mark.exhaustive
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("command", TRAIN)
def test_training(part: Path, command: str) -> None:
    """Two steps leave a network and a picture behind."""
    for name in ("examples", "blender_scripts"):
        (part / name).symlink_to(ROOT / name)
    python, example, *rest = command.replace("500 2000 8000", "4 8").split()
    assert python == "python"
    run(sys.executable, example, *BRIEF, *rest)
    made = {path.suffix for path in (part / "tmp" / TRAIN[command]).rglob("*.*")}
    assert {".pt", ".png"} <= made


@pytest.mark.exhaustive
def test_a_photograph(part: Path) -> None:
    """A detector of two steps looks for parts in a photograph, and says what is likeliest."""
    for name in ("examples", "blender_scripts"):
        (part / name).symlink_to(ROOT / name)
    (command,) = (command for command, name in TRAIN.items() if name == "part")
    run(sys.executable, *command.split()[1:2], *BRIEF, *command.split()[2:])
    Image.effect_noise((200, 150), 50).save("photo.jpg")
    lines = run_block(
        part, "photo.jpg", environment={"PYTHONPATH": f"examples{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    ).splitlines()
    assert len(lines) == 5
    assert all(re.fullmatch(r"\d+%: from -?\d+, -?\d+ to -?\d+, -?\d+", line) for line in lines)
