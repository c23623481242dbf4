"""The commands export and inspect, run as a user types them."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from asyncblend.pictures.shown import Shown
from asyncblend.recording import Recording
from asyncblend.stream.stream import BlenderStream
from asyncblend.testing import fake_blender

LABELLED = """
import runpy
from asyncblend import blender as bl
draw = runpy.run_path({conftest!r})["draw"]
def sample(task):
    values = draw(task.index, 160, 120, 5, seed=task.seed)
    del values["index"]
    views = {{"right": values["image"][::2, ::2].copy(), "mask": values["instance"] > 0, "clip": [values["albedo"]] * 2}}
    points = {{"middle": values["bbox"][:, :2] / 2, "points": {{"middle": "right"}}}}
    return {{**values, **views, **points, "level": task.params.get("level", 0)}}
bl.serve(sample)
"""


EPISODES = """
import runpy
import numpy as np
from asyncblend import blender as bl
draw = runpy.run_path({conftest!r})["draw"]
def sample(task):
    for step in range(3):
        values = draw(task.index + 10 * step, 160, 120, 2 + step, seed=task.seed)
        del values["index"]
        words = {{"said": None if step else "first", "seen": step == 1, "deep": {{"share": step / 2, "row": [step]}}}}
        yield {{**values, **words, "step": step}}
bl.serve(sample)
"""


def asyncblend(*args: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "asyncblend", *args],
        capture_output=True,
        text=True,
        timeout=90,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "400", **environment},
        check=False,
    )


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A script that gives all labels, and needs no bpy."""
    path = tmp_path / "labelled.py"
    path.write_text(LABELLED.format(conftest=str(Path(__file__).with_name("conftest.py"))))
    return path


@pytest.fixture
def fake(tmp_path: Path) -> str:
    """A fake Blender that runs the script."""
    return str(fake_blender(tmp_path / "fake"))


async def record(script: Path, fake: str, folder: Path, length: int = 5) -> None:
    async with BlenderStream(script=script, blender=fake, instances=1, length=length, seed=3) as stream:
        await stream.record(folder, shard_size=3)


@pytest.mark.exhaustive
async def test_export_writes_what_was_recorded(script: Path, fake: str, tmp_path: Path) -> None:
    """Images are the recorded bytes, pycocotools reads the labels, and the summary has the counts."""
    await record(script, fake, tmp_path / "recording")
    done = asyncblend("export", "recording", "--format", "coco", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    recording = Recording(tmp_path / "recording")
    coco = COCO(str(tmp_path / "out" / "annotations.json"))
    assert sorted(coco.imgs) == [0, 1, 2, 3, 4]
    for position in range(5):
        sample = recording[position]
        name = coco.imgs[sample.index]["file_name"]
        assert (tmp_path / "out" / name).read_bytes() == sample.files["image.png"]
        for annotation in coco.imgToAnns[sample.index]:
            assert coco.annToMask(annotation).any()
    assert re.search(r"^images +5 *$", done.stdout, re.MULTILINE)
    total = len(coco.anns)
    assert re.search(rf"^objects +{total}  \(ball: \d+, board: \d+, object: \d+\) *$", done.stdout, re.MULTILINE)
    assert re.search(rf"^left out +{25 - total} without a visible pixel", done.stdout, re.MULTILINE)
    assert "labelled.py, seed 3" in coco.dataset["info"]["description"]


@pytest.mark.exhaustive
def test_export_of_classes_without_names(script: Path, fake: str, tmp_path: Path) -> None:
    """Their numbers are no counts."""
    text = script.read_text().replace('del values["index"]', 'del values["index"]; values["class_name"] = [""] * 5')
    script.write_text(text)
    options = ("--length", "2", "--instances", "1", "--blender", fake)
    done = asyncblend("export", script.name, *options, "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^objects +\d+  \(class 1: \d+, class 2: \d+, object: \d+\) *$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    "format", ["coco", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("parquet", "yolo"))]
)
@pytest.mark.slow
def test_a_stream_is_exported_without_a_recording(format: str, script: Path, fake: str, tmp_path: Path) -> None:
    """Each sample comes once, whichever of two Blenders rendered it, and the summary has the splits."""
    options = ("--format", format, "--val", "0.25", "--length", "8", "--instances", "2", "--blender", fake)
    done = asyncblend("export", script.name, *options, "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^images +8  \(train: 5, val: 3\) *$", done.stdout, re.MULTILINE)
    entry = {"coco": "annotations", "parquet": "data", "yolo": "data.yaml"}[format]
    assert re.search(rf"^written to +out/{entry} *$", done.stdout, re.MULTILINE)
    assert (tmp_path / "out" / entry).exists()
    if format != "parquet":
        images = sorted(int(path.stem) for path in (tmp_path / "out").glob("**/*.png"))
        assert images == list(range(8))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["fake", script.name, "out"])


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, *(pytest.param(one, marks=pytest.mark.exhaustive) for one in (signal.SIGTERM, signal.SIGHUP))],
)
def test_ctrl_c_says_what_is_whole(number: int, script: Path, fake: str, tmp_path: Path) -> None:
    """Nothing is left that looks like an export, and the last line says so."""
    command = [sys.executable, "-m", "asyncblend", "export", script.name, "--blender", fake, "--instances", "1"]
    with subprocess.Popen(
        [*command, "--format", "yolo", "--length", "100000", "--out", "out"], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        while len(list(tmp_path.glob(".out.export-*/new/images/train/*.png"))) < 2 and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(number)
        _, errors = process.communicate(timeout=90)
    assert process.returncode == 128 + number, errors
    assert re.search(r"Stopped after \d+ samples: none of them is in out, which is as it was before\.", errors)
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.exhaustive
@pytest.mark.slow
async def test_export_again(script: Path, fake: str, tmp_path: Path) -> None:
    """Without --overwrite, a folder that is not empty is not changed."""
    await record(script, fake, tmp_path / "recording", 1)
    for options, status in (((), 0), ((), 1), (("--overwrite",), 0)):
        done = asyncblend("export", "recording", "--out", "out", *options, cwd=tmp_path)
        assert done.returncode == status, done.stderr
        assert ("ConfigError out is not empty" in done.stderr) == (status == 1)
        assert "Traceback" not in done.stderr


async def test_export_of_a_recording_without_labels(fake: str, tmp_path: Path) -> None:
    """The error says which names are missing, and what gives them."""
    script = tmp_path / "plain.py"
    script.write_text(
        "import numpy as np\nfrom asyncblend import blender as bl\n"
        "bl.serve(lambda task: {'image': np.zeros((4, 4, 3), np.uint8)})\n"
    )
    await record(script, fake, tmp_path / "recording", 1)
    done = asyncblend("export", "recording", "--out", "out", cwd=tmp_path)
    assert done.returncode == 1
    assert "sample 0 has no 'instance', 'id', 'class_id', 'class_name', which COCO needs" in done.stderr
    assert "bl.annotate(objects)" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("export", ".", "--out", "out"), "RecordingError . has no recording"),
        (
            ("export", ".", "--out", "out", "--format", "kitti"),
            "there is no format 'kitti'; there are bop, coco, parquet",
        ),
        (
            ("export", "cube.py", "--out", "out", "--length", "1", "--val", "0.1", "--blender", "bpy"),
            "of 1 samples, none is in the split 'train' with val=0.1",
        ),
        (("export", "cube.py", "--out", "o" * 300, "--length", "1", "--blender", "bpy"), "cannot export to ooo"),
        (("inspect", "."), "ConfigError . is a folder, but no recording"),
        (("inspect", ".", "--seed", "3"), "ConfigError . is no script, so nothing is rendered: leave out --seed"),
        (("inspect", "nowhere"), "ConfigError nowhere does not exist (looked in "),
        (("export", "nowhere", "--out", "out"), "or a folder that `asyncblend record` wrote"),
        (("inspect", "nowhere.py", "--blender", "bpy"), "ConfigError script 'nowhere.py' does not exist"),
        (("inspect", "nowhere.toml"), "ConfigError config 'nowhere.toml' does not exist"),
        (("inspect", "cube.py", "--out", "sheet.txt"), "ConfigError --out 'sheet.txt' is no name of a picture"),
        (("inspect", "cube.py", "--samples", "0"), "ConfigError --samples must be a whole number, at least 1; got 0"),
        (("inspect", "cube.py", "--samples", "1000"), "ConfigError --samples can be 100 at most; got 1000"),
    ],
)
@pytest.mark.exhaustive
def test_wrong_use_ends_with_one_and_the_reason(args: tuple[str, ...], message: str, tmp_path: Path) -> None:
    """The command prints the reason without a traceback, and writes no file."""
    done = asyncblend(*args, cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.exhaustive
@pytest.mark.slow
async def test_inspect_draws_a_script_and_its_recording_alike(script: Path, fake: str, tmp_path: Path) -> None:
    """With the same seed, the two sheets differ only in their titles."""
    await record(script, fake, tmp_path / "recording")
    live = asyncblend(
        "inspect", script.name, "--out", "new/live.png", "--blender", fake, "--seed", "3", "--samples", "2", cwd=tmp_path
    )  # fmt: skip
    assert live.returncode == 0, live.stderr
    recorded = asyncblend("inspect", "recording", "--out", "recorded.png", "--samples", "2", cwd=tmp_path)
    assert recorded.returncode == 0, recorded.stderr
    one, other = (np.asarray(Image.open(tmp_path / name)) for name in ("new/live.png", "recorded.png"))
    height, width, _ = one.shape
    assert f"2 samples in {Path('new/live.png')}, {width} x {height} pixels" in live.stdout
    np.testing.assert_array_equal(one[110:], other[110:])
    (sample, _) = itertools.islice(Recording(tmp_path / "recording"), 2)
    shown = Shown({**sample, "index": 0})
    assert list(shown.pictures) == ["right", "mask", "clip[0]", "clip[1]"]
    assert [one.name for one in shown.points_on("right")] == ["middle"]


@pytest.mark.exhaustive
@pytest.mark.slow
async def test_recorded_episodes_are_drawn_and_refused_as_live_ones(fake: str, tmp_path: Path) -> None:
    """inspect draws each of their frames, whose values and numbers of objects may vary; export says what they are."""
    script = tmp_path / "episodes.py"
    script.write_text(EPISODES.format(conftest=str(Path(__file__).with_name("conftest.py"))))
    await record(script, fake, tmp_path / "recording", 2)
    of_script = (script.name, "--blender", fake, "--seed", "3")
    for name, source in (("live", of_script), ("recorded", ("recording",))):
        done = asyncblend("inspect", *source, "--out", f"{name}.png", "--samples", "5", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"5 frames in {name}.png" in done.stdout
        length = ("--length", "2") if name == "live" else ()
        done = asyncblend("export", *source, *length, "--out", "out", cwd=tmp_path)
        assert "ConfigError sample 0 is an episode of several frames" in done.stderr
    live, recorded = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("live", "recorded"))
    np.testing.assert_array_equal(live[110:], recorded[110:])


@pytest.mark.parametrize(
    ("fields", "val", "splits"),
    [("start = 3\nlength = 2", "0.7", "train: 1, val: 1"), ("shard = [1, 2]\nlength = 4", "0.1", None)],
)
def test_the_splits_are_those_of_the_samples_to_come(
    fields: str, val: str, splits: str | None, script: Path, fake: str, tmp_path: Path
) -> None:
    """Of a config that does not begin at 0, or has every second index. An empty one is told before anything starts."""
    blender = fake if splits else "/no/blender"
    (tmp_path / "job.toml").write_text(f'script = "{script.name}"\nblender = "{blender}"\ninstances = 1\n{fields}\n')
    options = ("--format", "parquet", "--val", val, "--out", "out")
    done = asyncblend("export", "job.toml", *options, cwd=tmp_path)
    if splits:
        assert f"({splits})" in done.stdout, done.stderr
    else:
        assert "of 2 samples, none is in the split 'val' with val=0.1" in done.stderr


@pytest.mark.exhaustive
@pytest.mark.slow
def test_inspect_takes_a_toml_file_and_its_length(script: Path, fake: str, tmp_path: Path) -> None:
    """inspect draws as many samples as there are, and lists params."""
    (tmp_path / "job.toml").write_text(
        f'script = "labelled.py"\nblender = "{fake}"\ninstances = 2\nlength = 1\n[params]\nlevel = 3\n'
    )
    done = asyncblend("inspect", "job.toml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 sample in sheet.png" in done.stdout


@pytest.mark.blender
@pytest.mark.slow
def test_inspect_cube_on_real_blender(real: Any, tmp_path: Path) -> None:
    """The demo's script gives an image and `xy`: four samples are drawn, two by two."""
    from asyncblend.scripts import script

    done = asyncblend(
        "inspect", str(script("cube.py")), "--blender", real.blender, "--instances", "1", "--samples", "4", cwd=tmp_path
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] == pytest.approx(1358, abs=100)
        colours = np.asarray(sheet).reshape(-1, 3)
    for colour in ((0xFF, 0x5D, 0x5D), (0x45, 0xD9, 0xE8)):  # the first corner, and the fifth
        assert (colours == colour).all(axis=1).sum() > 4 * 30
