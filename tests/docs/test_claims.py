"""The pages are never ahead of the code: every block of code and every command in them is run by a test here."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncblend.cli.config_file import load_config
from tests.docs.pages import COMMANDS, CONFIGS, PYTHON, README, SCRIPTS, block

PROGRAMS = (
    *("set_epoch", "index / 8", "length=8).sync()", "validation", "MixedDataset", "bt.Receiver"),
    *("def item_transform", "def record", "# one question", "ab.Curriculum", "clip=4", "BlenderVectorEnv"),
    *("export_scene", 'script("model.py")', "stats.occupancy", "dataset.view(port"),
    *(
        "WeightedRandomSampler",
        "StatefulDataLoader",
        "asyncblend.ray.dataset",
        "cluster=Cluster",
        "gpus=[0, 1]",
        "photo.jpg",
    ),
)
"""The blocks that do not run inside Blender, each with a word that only it has."""
RUN = {
    ". .venv/bin/activate",
    *("asyncblend demo", "python scene.py", "asyncblend stream scene.py --instances 2 --length 16"),
    "asyncblend inspect labelled.py --out sheet.png",
    "asyncblend inspect model.py --out sheet.png -- part.glb",
    "asyncblend inspect model.py -- part.glb --objects 2:6 --physics --materials random",
    "asyncblend export model.py --length 1000 --val 0.1 --format yolo --out parts -- part.glb",
    "asyncblend export model.py --length 16 --val 0.25 --format yolo --out yolo -- part.glb",
    "asyncblend export model.py --length 8 --format bop --out bop -- part.glb --bop",
    "asyncblend export labelled.py --length 16 --val 0.25 --format yolo --task segment --out yolo",
    "asyncblend export labelled.py --length 16 --format parquet --out rooms",
    "asyncblend export shapes.py --length 4 --format bop --out bop -- --labels bop",
    *("python3 -m venv view", 'view/bin/pip install ".[view]"'),
    "view/bin/asyncblend view scene.py --blender .venv/bin/python",
    "asyncblend view scene.py --length 16 --save run.rrd",
    "asyncblend view recording --save recording.rrd",
    "python examples/train_keypoints.py",
    "python examples/train_keypoints.py --processor --minutes 1.5 --compare 500 2000 8000",
    "python examples/train_keypoints.py --script blender_scripts/model.py --out tmp/corners -- part.glb --objects 1",
    "python examples/train_detector.py --script blender_scripts/model.py --out tmp/part -- part.glb --objects 3",
    *(
        "python3.11 -m venv blender",
        'blender/bin/pip install "bpy==4.5.*"',
        "asyncblend demo --blender blender/bin/python",
    ),
    "asyncblend record labelled.py --out recording --length 16",
    "asyncblend inspect recording --out sheet.png",
    "asyncblend export recording --format coco --out coco",
    *('pip install ".[bpy]"', "pip install fake-bpy-module-4.5"),
    *("make demo", "make test", "make lint", "make docs"),
}
"""The commands."""


def test_every_block_is_run() -> None:
    """All Python blocks and all commands are known to these tests: scripts, and what uses them."""
    assert {block(word) for word in (*SCRIPTS.values(), *PROGRAMS)} == set(PYTHON)
    assert RUN == COMMANDS


def test_the_readme_is_two_screens() -> None:
    """What grows, grows in `docs/`."""
    assert len(README.splitlines()) <= 125


@pytest.mark.parametrize("claim", sorted({*PROGRAMS, *RUN}))
def test_who_runs_it(claim: str) -> None:
    """What is known is also run: a test beside this one has its word, or the command."""
    tests = [path.read_text() for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__)]
    assert any(f'"{claim}"' in text or f"'{claim}'" in text for text in tests)


def test_config_files_are_read(tmp_path: Path) -> None:
    """Each has the fields of a config, and its script stands beside it."""
    assert CONFIGS
    for text in CONFIGS:
        (tmp_path / "scene.py").write_text(block(SCRIPTS["scene.py"]))
        (tmp_path / "config.toml").write_text(text)
        config = load_config(tmp_path / "config.toml")
        assert (config.script, config.instances, config.timeouts.frame) == (tmp_path / "scene.py", 2, 60.0)
