"""The commands `asyncblend demo`, `stream` and `link`, as a user types them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import asyncblend as ab
from asyncblend.cli.config_file import load_config
from asyncblend.cli.demo import figure
from asyncblend.config import Timeouts
from asyncblend.errors import ConfigError
from asyncblend.scripts import script
from asyncblend.testing import fake_blender

VALUES = {"image": ("uint8", (48, 64, 3)), "xy": ("float32", (8, 2))}


def asyncblend(*args: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "asyncblend", *args],
        capture_output=True,
        text=True,
        timeout=90,
        cwd=cwd,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.mark.exhaustive
@pytest.mark.slow
def test_demo_writes_a_picture_a_batch_and_no_other(tmp_path: Path) -> None:
    """Pictures of an earlier demo are removed, other files stay, and the summary says what came."""
    fake = str(fake_blender(tmp_path / "fake", values=VALUES))
    options = ("--blender", fake, "--instances", "2", "--batch-size", "3", "--seed", "4")
    done = asyncblend("demo", *options, "--batches", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in (
        "time to the first frame",
        r"frames(/s over| in less than) [\d.]+ s",
        "frames by instance +0: ",
        r"output_##\.png \(3\)",
        r"Look at tmp/output_00\.png\. Then go on:",
        rf"asyncblend inspect model\.py --blender {re.escape(fake)} -- part\.glb$",
    ):
        assert re.search(word, done.stdout, re.MULTILINE)
    own = ["notes.txt", "output_3d_scan.png", "output_1.png", "output_007.png"]
    for name in own:
        (tmp_path / "tmp" / name).touch()
    again = asyncblend("demo", *options, "--batches", "2", cwd=tmp_path, PATH=os.defpath)
    assert again.returncode == 0, again.stderr
    assert f"\n  {shlex.quote(sys.executable)} -m asyncblend inspect shapes.py" in again.stdout  # not on this PATH
    names = sorted(path.name for path in (tmp_path / "tmp").iterdir())
    assert names == sorted([*own, "output_00.png", "output_01.png"])
    with Image.open(tmp_path / "tmp" / "output_00.png") as picture:
        assert picture.size == (128, 96)  # three frames in a 2x2 figure


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_demo_that_is_stopped_says_where_its_pictures_are(tmp_path: Path) -> None:
    """Those that are finished stay."""
    fake = str(fake_blender(tmp_path / "fake", values=VALUES))
    line = [sys.executable, "-m", "asyncblend", "demo", "--blender", fake, "--instances", "1", "--batches", "100000"]
    with subprocess.Popen(line, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while not (tmp_path / "tmp" / "output_02.png").exists() and process.poll() is None:
            threading.Event().wait(0.005)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    saved = len(list((tmp_path / "tmp").glob("*.png")))
    found = re.search(r"^pictures +tmp/output_##\.png \((\d+)\) *$", out, re.MULTILINE)
    assert found is not None, out
    assert saved - 1 <= int(found[1]) <= saved  # the last one may be cut short
    assert "go on" not in out


@pytest.mark.blender
@pytest.mark.slow
def test_demo_on_real_blender_draws_corners_on_the_corners(real: Any, tmp_path: Path) -> None:
    """The projected corners span the pixels of the cube, which differ from the plain background."""
    done = asyncblend(
        "demo", "--blender", real.blender, "--batches", "1", "--instances", "1", "--out", "figures", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "figures" / "output_00.png") as picture:
        assert picture.size == (1280, 960)


@pytest.mark.blender
@pytest.mark.exhaustive
async def test_the_corners_of_the_demo_scene_bound_the_cube(real: Any) -> None:
    """In each frame of cube.py the box of the projected corners is the box of the pixels that are not background."""
    seen = 0
    async with ab.BlenderStream(script=script("cube.py"), blender=real.blender, instances=1, length=4) as stream:
        async for frame in stream:
            image, corners = frame["image"].astype(int), frame["xy"]
            assert image.shape == (480, 640, 3)
            ys, xs = np.nonzero(np.abs(image - image[0, 0]).sum(axis=2) > 24)
            found = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
            expected = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
            np.testing.assert_allclose(found, expected, atol=2.5)
            seen += 1
    assert seen == 4


def test_a_figure_marks_each_keypoint_at_its_place() -> None:
    """A dot covers the pixel whose area holds the keypoint, in the right tile."""
    batch = {"image": torch.zeros((4, 40, 50, 3), dtype=torch.uint8), "xy": torch.tensor([[[20.5, 10.5]]] * 4)}
    sheet = np.asarray(figure(batch))
    assert sheet.shape == (80, 100, 3)
    for top in (0, 40):
        for left in (0, 50):
            tile = sheet[top : top + 40, left : left + 50]
            ys, xs = np.nonzero(tile.sum(axis=2))
            assert (xs.min() + xs.max()) / 2 == 20
            assert (ys.min() + ys.max()) / 2 == 10


def test_stream_takes_a_script_or_a_toml_file(tmp_path: Path) -> None:
    """Both print the first frame and a summary. Options override the file."""
    fake_blender(tmp_path / "fake", values=VALUES)
    (tmp_path / "scene.py").touch()
    (tmp_path / "job.toml").write_text('script = "scene.py"\ninstances = 2\nlength = 50\n[timeouts]\nstart = 60\n')
    for config in ("scene.py", "job.toml"):
        done = asyncblend("stream", config, "--length", "7", cwd=tmp_path, ASYNCBLEND_BLENDER=str(tmp_path / "fake"))
        assert done.returncode == 0, done.stderr
        assert "image=uint8[48, 64, 3]" in done.stdout
        assert re.search(r"^frames +7 *$", done.stdout, re.MULTILINE)


def test_config_file_reads_paths_beside_itself_and_tables(tmp_path: Path) -> None:
    """All fields of StreamConfig can be written in TOML, and an option that is None overrides none of them."""
    path = tmp_path / "job.toml"
    path.write_text(
        'script = "a.py"\nscene = "b.blend"\nshard = [1, 2]\ninstances = 7\n[timeouts]\nstop = 1\n[params]\nlevel = 3\n'
    )
    config = load_config(path, seed=5, instances=None)
    assert (config.script, config.scene) == (tmp_path / "a.py", tmp_path / "b.blend")
    assert (config.shard, config.seed, config.params, config.instances) == ((1, 2), 5, {"level": 3}, 7)
    assert config.timeouts == Timeouts(stop=1)


def test_blender_in_a_config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a path beside the file, unless it is "bpy" or a command on the PATH, as for `--blender`."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    fake_blender(tmp_path / "bin").rename(tmp_path / "bin" / "blender")
    path = tmp_path / "jobs" / "job.toml"
    path.parent.mkdir()
    for given, expected in (
        ("blender", "blender"),
        ("bpy", "bpy"),
        ("blender-4", path.parent / "blender-4"),
        ("./blender", path.parent / "blender"),
        ("../bin/blender", path.parent / "../bin/blender"),
    ):
        path.write_text(f'script = "a.py"\nblender = "{given}"\n')
        assert load_config(path).blender == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('script = "a.py"\ninstanses = 2', "did you mean 'instances'"),
        ("script = ", "cannot be read"),
        ("", "needs script"),
    ],
)
def test_config_file_errors(text: str, message: str, tmp_path: Path) -> None:
    """A wrong file gives a ConfigError that says what is wrong."""
    path = tmp_path / "job.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(path)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("demo", "--instances", "0"), "ConfigError instances must be a whole number, at least 1; got 0"),
        (("demo", "--blender", "no-such-folder"), "BlenderNotFound blender='no-such-folder'"),
        (("stream", "nowhere.py", "--blender", "bpy"), "ConfigError script 'nowhere.py' does not exist"),
        (("stream", "nowhere.toml"), "ConfigError config 'nowhere.toml' does not exist"),
        *(
            ((command, "room.blend", *more), "ConfigError room.blend is a scene, not a script: give the script, and ")
            for command, *more in (["stream"], ["inspect"], ["bench"], ["record", "--length", "1", "--out", "rooms"])
        ),
    ],
)
@pytest.mark.exhaustive
@pytest.mark.slow
def test_wrong_use_ends_with_one_and_the_reason(args: tuple[str, ...], message: str, tmp_path: Path) -> None:
    """The error's own words are on standard error, without a Python traceback of ours."""
    done = asyncblend(*args, cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.blender
@pytest.mark.exhaustive
@pytest.mark.slow
def test_link_lets_blender_itself_run_a_script(tmp_path: Path) -> None:
    """After the command, `blender -b --python script.py` shows sample 0 and saves the image beside the script."""
    blender = shutil.which("blender")
    if blender is None:
        pytest.skip("there is no Blender executable here")
    home = {"HOME": str(tmp_path / "home"), "XDG_CONFIG_HOME": str(tmp_path / "home" / ".config")}
    linked = asyncblend("link", "--blender", blender, cwd=tmp_path, **home)
    assert linked.returncode == 0, linked.stderr
    script = tmp_path / "scene.py"
    script.write_text("""
import bpy
from asyncblend import blender as bl
scene = bpy.context.scene
scene.render.engine, scene.cycles.samples, scene.cycles.use_denoising = "CYCLES", 1, False
scene.render.resolution_x, scene.render.resolution_y = 64, 48
def sample(task): return {"image": bl.render()["image"], "index_was": task.index}
bl.serve(sample)
print("serve returned")
""")
    done = subprocess.run(
        [blender, "--background", "--factory-startup", "--python", str(script)],
        env={**os.environ, **home},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "image: uint8, shape (48, 64, 3)" in done.stdout, done.stdout + done.stderr
    assert "index_was: int, 0" in done.stdout
    assert "serve returned" in done.stdout
    with Image.open(tmp_path / "scene.png") as picture:
        assert picture.size == (64, 48)


def link(cwd: Path, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `asyncblend link` with Debian's or another Blender executable, and a home of its own."""
    blender = shutil.which("blender")
    if blender is None:
        pytest.skip("there is no Blender executable here")
    home = {"HOME": str(cwd / "home"), "XDG_CONFIG_HOME": str(cwd / "home" / ".config")}
    return asyncblend("link", "--blender", blender, *args, cwd=cwd, **home, **environment)


@pytest.mark.blender
@pytest.mark.exhaustive
@pytest.mark.slow
def test_link_lets_another_environment_run_a_script(make_environment: Callable[..., Path], tmp_path: Path) -> None:
    """The command says what to type, which shows sample 0; without the bpy module it says that it is missing."""
    python = make_environment("bpy", "numpy", "zmq") / "bin" / "python"
    script = tmp_path / "scene.py"
    script.write_text("import bpy\nfrom asyncblend import blender as bl\nbl.serve(lambda task: {'at': task.index})\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    alone = [str(python), str(script)]
    before = subprocess.run(alone, env=environment, capture_output=True, text=True, timeout=90, check=False)
    assert "No module named 'asyncblend'" in before.stderr
    linked = asyncblend("link", "--blender", str(python), cwd=tmp_path)
    assert linked.returncode == 0, linked.stderr
    assert f"Try it: {shlex.quote(str(python))} script.py" in linked.stdout
    done = subprocess.run(alone, env=environment, capture_output=True, text=True, timeout=90, check=False)
    assert "at: int, 0" in done.stdout, done.stdout + done.stderr
    undone = asyncblend("link", "--blender", str(python), "--undo", cwd=tmp_path)
    assert "Removed " in undone.stdout, undone.stderr
    assert not [*python.parents[1].rglob("asyncblend*")]
    without = asyncblend("link", "--blender", str(make_environment("numpy") / "bin" / "python"), cwd=tmp_path)
    assert without.returncode == 1
    assert "has no module bpy. Type: " in without.stderr


@pytest.mark.blender
def test_link_of_this_python_says_what_to_type(bpy_kind: object, tmp_path: Path) -> None:
    """A Python that has both bpy and asyncblend needs no link."""
    done = asyncblend("link", "--blender", "bpy", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"Try it: {shlex.quote(sys.executable)} script.py"


@pytest.mark.blender
@pytest.mark.exhaustive
@pytest.mark.slow
def test_link_is_undone(tmp_path: Path) -> None:
    """Nothing is left of it, and what else is in the folder stays. Undoing what is not there says so."""
    nothing = link(tmp_path, "--undo")
    assert nothing.returncode == 0, nothing.stderr
    assert nothing.stdout.startswith("Nothing is linked: ")
    linked = link(tmp_path)
    assert linked.returncode == 0, linked.stderr
    (path,) = (tmp_path / "home").rglob("asyncblend.py")
    assert f"Wrote {path}" in linked.stdout
    compiled = path.parent / "__pycache__" / "asyncblend.cpython-310.pyc"
    compiled.parent.mkdir()
    compiled.touch()
    undone = link(tmp_path, "--undo")
    assert undone.returncode == 0, undone.stderr
    assert undone.stdout.splitlines()[:2] == [f"Removed {path}", f"Removed {compiled}"]
    assert not [one for one in (tmp_path / "home").rglob("*") if "scripts" in one.parts]
    assert link(tmp_path).returncode == 0
    other = path.parent.parent / "theirs.py"
    other.touch()
    assert link(tmp_path, "--undo").returncode == 0
    assert not path.parent.exists()
    assert other.exists()


@pytest.mark.blender
@pytest.mark.exhaustive
@pytest.mark.slow
def test_link_leaves_the_files_of_others(tmp_path: Path) -> None:
    """A module of that name which somebody else wrote is neither replaced nor removed."""
    assert link(tmp_path).returncode == 0
    (path,) = (tmp_path / "home").rglob("asyncblend.py")
    path.write_text("mine = True")
    for args in ((), ("--undo",)):
        done = link(tmp_path, *args)
        assert done.returncode == 1
        assert f"ConfigError {path} was not written by `asyncblend link`" in done.stderr
        assert path.read_text() == "mine = True"
