"""What only a real Blender can show: pixels, scene files, mathutils, and packages that its Python lacks."""

from __future__ import annotations

import asyncio
import logging
import os
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import asyncblend as ab
from asyncblend.cli.link import prepare
from asyncblend.fleet.discovery import find_blender
from asyncblend.scripts import script

pytestmark = pytest.mark.blender

Write = Callable[..., Path]

SMALL = """
import bpy
scene = bpy.context.scene
scene.render.resolution_x, scene.render.resolution_y = 32, 24
scene.render.engine, scene.cycles.samples, scene.cycles.use_denoising = "CYCLES", 1, False
"""


async def frames_of(**options: Any) -> list[ab.Frame]:
    """Return all frames of a stream with these options."""
    async with asyncio.timeout(110), ab.BlenderStream(**options) as stream:
        return [frame async for frame in stream]


@pytest.mark.every_kind
async def test_pixels_are_the_same_with_one_and_three_instances(real: Any) -> None:
    """One seed gives bit-identical images and keypoints per index, whichever instance renders them in any order."""
    runs = []
    for instances in (1, 3):
        frames = await frames_of(
            script=script("cube.py"),
            script_args=["--width", "96", "--height", "64"],
            blender=real.blender,
            instances=instances,
            length=9,
            seed=11,
        )
        runs.append({f.index: (f["image"].tobytes(), f["xy"].tobytes()) for f in frames})
        assert len({image for image, _ in runs[-1].values()}) == 9
    assert runs[0] == runs[1]


async def test_pixels_survive_a_crash(real: Any, write_script: Write, tmp_path: Path) -> None:
    """A Blender that is killed in the middle of a render changes no sample."""
    body = (
        SMALL
        + """
import os, pathlib, signal, sys
flag = pathlib.Path(sys.argv[1])
def die(*_):
    if flag.name == "die" and not flag.exists() and current == 2:
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
bpy.app.handlers.render_pre.append(die)
def sample(task):
    global current
    current = task.index
    bpy.data.objects["Cube"].rotation_euler = task.rng.uniform(-3, 3, 3)
    return {"image": bl.render()["image"]}
"""
    )
    runs = []
    for flag in ("stay", "die"):
        options: dict[str, Any] = {
            "script": write_script(body),
            "script_args": [str(tmp_path / flag)],
            "blender": real.blender,
            "instances": 1,
            "length": 5,
            "restart": ab.RestartPolicy(backoff=0),
        }
        runs.append({f.index: f["image"].tobytes() for f in await frames_of(**options)})
    assert (tmp_path / "die").exists()
    assert sorted(runs[0]) == [0, 1, 2, 3, 4]
    assert runs[0] == runs[1]


@pytest.mark.every_kind
@pytest.mark.exhaustive
async def test_what_bl_render_took_comes_with_each_frame(real: Any, write_script: Write) -> None:
    """Rendering, and the rest of `bl.render`, of all calls of a sample; the script's own time is the rest of it."""
    body = """
def sample(task):
    import time
    began = time.perf_counter()
    for _ in range(task.index):
        bl.render(["depth"])
    time.sleep(0.1)
    told = bl.last_render()
    return {"last": -1.0 if told is None else told.seconds_render, "whole": time.perf_counter() - began}
"""
    path = write_script(SMALL + body)
    async with (
        asyncio.timeout(110),
        ab.BlenderStream(script=path, blender=real.blender, instances=1, length=4) as stream,
    ):
        frames = {frame.index: frame async for frame in stream}
        stats = stream.stats()
    for index, frame in frames.items():
        spent = frame.spent
        assert spent is not None
        assert spent.sample >= max(0.1 + spent.render + spent.capture, frame["whole"]) - 1e-4
        if index == 0:
            assert (spent.render, spent.capture) == (0, 0)
            continue
        assert spent.render >= frame["last"] - 1e-5
        assert spent.capture > 0
        if index == 1:
            assert spent.render == pytest.approx(frame["last"], abs=1e-5)
    assert stats.seconds_render.mean == pytest.approx(
        sum(f.spent.render for f in frames.values() if f.spent) / 3, rel=1e-3
    )
    assert stats.seconds_sample.median > 0.09
    assert 0 < stats.seconds_capture.median < stats.seconds_sample.p90


@pytest.mark.exhaustive
async def test_noise_generators_of_blender_are_seeded(real: Any, write_script: Write) -> None:
    """mathutils.noise and Cycles' seed depend only on the stream's seed and the index."""
    path = write_script("""
import bpy
from mathutils import noise
def sample(task): return {"noise": noise.random(), "vector": noise.random_unit_vector(), "cycles": bpy.context.scene.cycles.seed}
""")
    seen = []
    for instances in (1, 2):
        frames = await frames_of(script=path, blender=real.blender, instances=instances, length=6)
        seen.append({f.index: (f["noise"], f["vector"].tobytes(), f["cycles"]) for f in frames})
    assert seen[0] == seen[1]
    assert len(set(seen[0].values())) == 6


async def test_mathutils_values_travel_as_arrays(real: Any, write_script: Write) -> None:
    """Vectors, matrices, quaternions, Euler angles and colours arrive as float arrays, also inside lists and dicts."""
    path = write_script("""
from mathutils import Color, Euler, Matrix, Quaternion, Vector
def sample(task):
    return {"vector": Vector((1, 2, 3)), "matrix": Matrix.Identity(4), "more": [Quaternion((1, 0, 0, 0)), {"e": Euler((0, 1, 2))}],
            "colour": Color((0.5, 0.25, 0))}
""")
    (frame,) = await frames_of(script=path, blender=real.blender, instances=1, length=1)
    np.testing.assert_array_equal(frame["vector"], [1, 2, 3])
    np.testing.assert_array_equal(frame["matrix"], np.eye(4))
    np.testing.assert_array_equal(frame["more"][0], [1, 0, 0, 0])
    np.testing.assert_array_equal(frame["more"][1]["e"], [0, 1, 2])
    np.testing.assert_array_equal(frame["colour"], [0.5, 0.25, 0])


@pytest.mark.every_kind
@pytest.mark.exhaustive
@pytest.mark.slow
async def test_a_scene_file_is_opened_first(real: Any, write_script: Write, tmp_path: Path) -> None:
    """The script finds the objects of the scene file, or those of the factory scene without one."""
    blend = tmp_path / "scene with spaces.blend"
    save = write_script(
        f"""
import bpy
bpy.ops.mesh.primitive_torus_add()
bpy.context.object.name = "Ring"
bpy.ops.wm.save_as_mainfile(filepath={str(blend)!r})
def sample(task): return {{"objects": sorted(o.name for o in bpy.data.objects)}}
""",
        name="save.py",
    )
    (made,) = await frames_of(script=save, blender=real.blender, instances=1, length=1)
    assert blend.is_file()
    look = write_script("import bpy\ndef sample(task): return {'objects': sorted(o.name for o in bpy.data.objects)}")
    (opened,) = await frames_of(script=look, scene=blend, blender=real.blender, instances=1, length=1)
    (factory,) = await frames_of(script=look, blender=real.blender, instances=1, length=1)
    assert opened["objects"] == made["objects"] == ["Camera", "Cube", "Light", "Ring"]
    assert factory["objects"] == ["Camera", "Cube", "Light"]


@pytest.mark.exhaustive
async def test_a_file_that_is_no_scene(real: Any, write_script: Write, tmp_path: Path) -> None:
    """A scene file that Blender cannot open is an error with Blender's own words."""
    (tmp_path / "broken.blend").write_text("no blend file")
    with pytest.raises(ab.InstanceExited, match=r"broken\.blend"):
        await frames_of(
            script=write_script("def sample(task): return {}"), scene=tmp_path / "broken.blend", blender=real.blender
        )


@pytest.mark.exhaustive
async def test_a_blender_that_quits_is_restarted(real: Any, write_script: Write, tmp_path: Path) -> None:
    """A Blender that exits with status 0 while it holds leases is replaced, and no frame is lost."""
    flag = tmp_path / "flag"
    path = write_script(f"""
import os, pathlib, bpy
flag = pathlib.Path({str(flag)!r})
def sample(task):
    if task.index == 1 and not flag.exists():
        flag.touch()
        os._exit(0)
    return {{}}
""")
    async with (
        asyncio.timeout(110),
        ab.BlenderStream(
            script=path, blender=real.blender, instances=1, length=4, restart=ab.RestartPolicy(backoff=0)
        ) as stream,
    ):
        assert sorted([frame.index async for frame in stream]) == [0, 1, 2, 3]
        assert stream.stats().restarts == 1


@pytest.mark.every_kind
@pytest.mark.exhaustive
async def test_a_missing_denoiser_is_explained(write_script: Write, real: Any) -> None:
    """Where Blender has no denoiser, the error says which setting to change; where it has one, it renders."""
    path = write_script(SMALL + "scene.cycles.use_denoising = True\ndef sample(task): return bl.render()")
    options: dict[str, Any] = {"script": path, "blender": real.blender, "instances": 1, "length": 1}
    if real.name == "executable" and _is_debians(real.blender):
        with pytest.raises(ab.SampleError, match=r"scene\.cycles\.use_denoising = False"):
            await frames_of(**options)
    else:
        assert len(await frames_of(**options)) == 1


def _is_debians(blender: str) -> bool:
    """Tell whether this is Debian's Blender, which has no denoiser."""
    about = subprocess.run([blender, "--version"], capture_output=True, text=True, check=True, timeout=100).stdout
    return about.startswith("Blender 3.4.1")


@pytest.mark.exhaustive
async def test_the_folder_of_an_executable_will_do(write_script: Write, tmp_path: Path, executable: Any) -> None:
    """`blender` may name the folder that the executable is in."""
    folder = tmp_path / "my blender"
    folder.mkdir()
    (folder / "blender").symlink_to(executable.blender)
    path = write_script("def sample(task): return {}")
    assert len(await frames_of(script=path, blender=folder, instances=1, length=2)) == 2


def _has_zmq(blender: str) -> bool:
    """Tell whether this Blender's own Python has pyzmq."""
    code = "import importlib.util as u; print('has zmq:', u.find_spec('zmq') is not None)"
    command = [blender, "-b", "--factory-startup", "--python-expr", code]
    about = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    return "has zmq: True" in about.stdout


@pytest.mark.exhaustive
@pytest.mark.slow
async def test_missing_packages_are_installed_once_per_user(
    write_script: Write,
    tmp_path: Path,
    executable: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A Blender whose Python lacks pyzmq gets it, with one log line, and a second stream installs nothing."""
    if _has_zmq(executable.blender):
        pytest.skip("this Blender's Python brings pyzmq along")
    monkeypatch.setenv("ASYNCBLEND_CACHE", str(tmp_path / "cache"))
    caplog.set_level(logging.INFO, "asyncblend")
    path = write_script("import zmq\ndef sample(task): return {'zmq': zmq.__file__}")
    for _ in range(2):
        frames = await frames_of(script=path, blender=executable.blender, instances=2, length=4)
        assert all(frame["zmq"].startswith(str(tmp_path / "cache")) for frame in frames)
    lines = [message for message in caplog.messages if "Installing" in message]
    assert len(lines) == 1
    assert "pyzmq for Blender's Python 3." in lines[0]
    assert "(once)" in lines[0]


async def test_no_blender_anywhere(write_script: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without any Blender the error lists where it was looked for and how to get one."""
    import importlib.util

    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("ASYNCBLEND_CACHE", str(tmp_path / "cache"))  # without an embedded one
    monkeypatch.delenv("ASYNCBLEND_BLENDER", raising=False)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "bpy" else find_spec(name, *more)
    )
    with pytest.raises(ab.BlenderNotFound, match=r"No Blender found: \$ASYNCBLEND_BLENDER is not set"):
        await frames_of(script=write_script("def sample(task): return {}"))


async def test_files_that_do_not_exist(write_script: Write, case: Any) -> None:
    """A file that does not exist is a ConfigError when the stream is entered, before anything starts."""
    path = write_script("def sample(task): return {}")
    for name, value, message in (
        ("script", "nowhere.py", "script 'nowhere.py' does not exist"),
        ("script", ".", r"script '\.' is a folder"),
        ("scene", "nowhere.blend", "scene 'nowhere.blend' does not exist"),
    ):
        with case((name, value)), pytest.raises(ab.ConfigError, match=message):
            await frames_of(**{"script": path, "blender": "bpy", name: value})


@pytest.mark.every_kind
def test_without_a_host_a_script_shows_sample_0(write_script: Write, real: Any) -> None:
    """A script without a host prints names, dtypes and shapes of sample 0, saves its image beside it, and goes on."""
    path = write_script(
        SMALL
        + """
bpy.data.objects["Cube"].location.z = 0.3
def sample(task):
    return {**bl.render(), "xy": bl.Camera().project([(0, 0, 0)]), "word": "hello", "i": task.index, "s": task.seed}
""",
        serve=False,
    )
    text = path.read_text() + "bl.serve(sample)\nprint('serve returned')\n"
    if real.name != "bpy":  # `asyncblend link` installs this for good
        bootstrap = Path(ab.__file__).parent / "blender" / "serving" / "bootstrap.py"
        packages = asyncio.run(prepare(find_blender(real.blender))).packages
        text = f"""
import runpy, sys
sys.path.append({packages!r})
runpy.run_path({str(bootstrap)!r})['load_asyncblend']()
{text}"""
    path.write_text(text)
    command = [find_blender(real.blender).path, str(path)]
    if real.name == "executable":
        command = [real.blender, "-b", "--factory-startup", "--python-exit-code", "1", "--python", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env={**os.environ})
    assert done.returncode == 0, done.stdout + done.stderr
    for line in (
        "image: uint8, shape (24, 32, 3)",
        "xy: float32, shape (1, 2)",
        "word: str, 'hello'",
        "i: int, 0",
        "s: int, 0",
        "serve returned",
    ):
        assert line in done.stdout
    with Image.open(path.with_suffix(".png")) as picture:
        assert picture.size == (32, 24)
        assert len(np.unique(np.asarray(picture))) > 10


@pytest.mark.parametrize("threads", ["auto", 1, None])
@pytest.mark.exhaustive
async def test_threads_are_set_for_every_scene(threads: Any, real: Any, write_script: Write, tmp_path: Path) -> None:
    """Each scene gets the instance's share of threads, also one from a file that the script opens itself."""
    script = write_script(f"""
import bpy, os
path = os.path.join({str(tmp_path)!r}, f"{{os.getpid()}}.blend")
def threads(): return [[s.render.threads_mode, s.render.threads] for s in bpy.data.scenes]
bpy.data.scenes.new("The other")
first = threads()
bpy.ops.wm.save_as_mainfile(filepath=path)
for scene in bpy.data.scenes: scene.render.threads_mode = "AUTO"
bpy.ops.wm.save_as_mainfile(filepath=path)
bpy.ops.wm.open_mainfile(filepath=path)
def sample(task): return {{"first": first, "second": threads()}}
""")
    config = ab.StreamConfig(script=script, blender=real.blender, instances=2, length=1, threads=threads)
    async with asyncio.timeout(110), ab.BlenderStream(config) as stream:
        frame = await anext(stream)
    each = config.threads_each()
    if each is None:
        assert all(mode == "AUTO" for mode, _ in [*frame["first"], *frame["second"]])
    else:
        # A scene that the script adds has the threads that the script sets, until a file is opened.
        assert frame["first"][0] == ["FIXED", each]
        assert frame["second"] == [["FIXED", each]] * 2


@pytest.mark.exhaustive
async def test_one_thread_takes_one_core(real: Any, write_script: Write) -> None:
    """With threads=1 a render uses one core, though newer Blenders' thread pool spins; later all cores are allowed."""
    script = write_script("""
import bpy, os, time
from asyncblend import blender as bl
scene = bpy.context.scene
scene.render.resolution_x, scene.render.resolution_y = 320, 240
scene.render.engine, scene.cycles.samples, scene.cycles.use_denoising = "CYCLES", 4, False
bl.render()
def sample(task):
    wall, busy = time.perf_counter(), time.process_time()
    bl.render()
    wall, busy = time.perf_counter() - wall, time.process_time() - busy
    allowed = {len(os.sched_getaffinity(int(thread))) for thread in os.listdir("/proc/self/task")}
    return {"cores": busy / wall, "allowed": sorted(allowed)}
""")
    config = ab.StreamConfig(script=script, blender=real.blender, instances=1, length=6, threads=1)
    async with asyncio.timeout(110), ab.BlenderStream(config) as stream:
        frames = [frame async for frame in stream]
    assert statistics.median(frame["cores"] for frame in frames) < 1.2
    assert frames[-1]["allowed"] == [len(os.sched_getaffinity(0))]


async def test_a_gpu_that_is_not_there_is_an_error(real: Any, write_script: Write) -> None:
    """A GPU that does not exist is an error at the start, instead of a silent render on the CPU."""
    config = ab.StreamConfig(
        script=write_script("def sample(task): return {}"), blender=real.blender, instances=1, gpus=["none-such"]
    )
    with pytest.raises(ab.InstanceExited, match="finds no GPU that it can use"):
        async with asyncio.timeout(110), ab.BlenderStream(config):
            pass
