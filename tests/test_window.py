"""A stream with Blender's own window: what its user sees and does there, and how it ends."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

import asyncblend as ab
from asyncblend.testing import fake_blender

Write = Callable[..., Path]
LIMIT = 250  # seconds; the window is drawn by the processor, and the machine may be busy

SCENE = """
import bpy
scene = bpy.context.scene
scene.render.engine, scene.cycles.samples, scene.cycles.use_denoising = "CYCLES", 1, False
scene.render.resolution_x, scene.render.resolution_y = 64, 48
cube = bpy.data.objects["Cube"]
"""
SPINNING = f"""{SCENE}
def sample(task):
    cube.rotation_euler = task.rng.uniform(0, 6, 3)
    labels = bl.render(("depth", "instance"))
    return {{**labels, **bl.annotate([cube], rendered=labels), "x": cube.location.x}}
"""


class Screen(NamedTuple):
    """A virtual screen, on which nobody but a test looks and types."""

    name: str
    memory: Path
    """Its content, as an X window dump."""

    def picture(self) -> npt.NDArray[np.uint8]:
        """Return what is seen: H x W x 3."""
        dump = self.memory.read_bytes()
        header = np.frombuffer(dump, ">u4", 25)
        start, width, height = header[0] + 12 * header[19], header[4], header[5]
        pixels = np.frombuffer(dump, np.uint8, 4 * width * height, start).reshape(height, width, 4)
        return pixels[..., 2::-1]

    def view(self) -> bytes:
        """Return what is seen in the middle of the 3D view."""
        return self.picture()[200:500, 200:600].tobytes()

    def type(self, *keys: str) -> None:
        """Press keys, with the mouse over the 3D view."""
        for command in (["mousemove", "400", "350"], ["key", "--delay", "50", *keys]):
            subprocess.run(["xdotool", *command], check=True, timeout=LIMIT, env={"DISPLAY": self.name, **os.environ})


@pytest.fixture(scope="module")
def xvfb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Screen]:
    """The screen of this module's tests."""
    if missing := [name for name in ("Xvfb", "xdotool") if shutil.which(name) is None]:
        pytest.skip(f"there is no {' and no '.join(missing)} here: sudo apt-get install xvfb xdotool")
    folder, (reading, writing) = tmp_path_factory.mktemp("screen"), os.pipe()
    options = ["-screen", "0", "1024x768x24", "-fbdir", str(folder), "-nolisten", "tcp", "-noreset"]
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(writing), *options], pass_fds=[writing], stderr=subprocess.DEVNULL
    )
    os.close(writing)
    try:
        with open(reading) as pipe:
            yield Screen(f":{pipe.readline().strip()}", folder / "Xvfb_screen0")
    finally:
        server.terminate()
        server.wait(LIMIT)


@pytest.fixture
def screen(xvfb: Screen, monkeypatch: pytest.MonkeyPatch) -> Screen:
    """The screen, as the only one that this test's programs know."""
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", xvfb.name)
    return xvfb


def stream_of(script: Path, blender: Any, **options: Any) -> ab.BlenderStream:
    """Return a stream with a window."""
    return ab.BlenderStream(**{"script": script, "blender": blender.blender, "instances": 1, "show": True, **options})


# -- before anything starts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"instances": 2}, "show opens the window of one Blender: set instances=1; got instances=2"),
        ({"blender": "bpy"}, "show needs a Blender executable, .* has no window: install Blender"),
        ({}, "neither \\$DISPLAY nor \\$WAYLAND_DISPLAY names a screen"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="only there it can be known that there is no screen")
async def test_where_there_can_be_no_window(
    options: dict[str, Any], message: str, write_script: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an error that says what to do, and nothing is started."""
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setenv("WAYLAND_DISPLAY", "")
    fake = fake_blender(tmp_path / "fake", exit_at_start=1)
    with pytest.raises(ab.ConfigError, match=message):
        async with ab.BlenderStream(
            **{"script": write_script(""), "blender": fake, "instances": 1, "show": True, **options}
        ):
            pass


async def test_a_screen_that_does_not_answer(
    executable: Any, write_script: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has Blender's own words."""
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", ":4711")
    with pytest.raises(ab.InstanceExited, match=r"before it was ready(.*\n)+.*unable to"):
        async with stream_of(write_script(SPINNING), executable):
            pass


# -- while it streams ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.exhaustive
async def test_a_window_changes_no_frame(screen: Screen, executable: Any, write_script: Write) -> None:
    """Each sample comes once, with the same bytes as in the background. Between two, Blender's main loop goes round."""
    script = write_script(f"""{SPINNING}
rounds = 0
def count():
    global rounds
    rounds += 1
    return 0.0
if not bpy.app.background:
    bpy.app.timers.register(count)

spin = sample
def sample(task): return {{**spin(task), "rounds": rounds}}
""")
    runs = []
    for show in (True, False):
        async with asyncio.timeout(LIMIT), stream_of(script, executable, show=show, length=4, ordered=True) as stream:
            frames = [frame async for frame in stream]
            assert stream.stats().restarts == stream.stats().stale == 0
        assert [frame.index for frame in frames] == list(range(4))
        rounds = [frame["rounds"] for frame in frames]
        assert all(a < b if show else a == b for a, b in itertools.pairwise(rounds))
        labels = ("image", "depth", "instance", "bbox")
        runs.append([[hashlib.sha256(frame[name].tobytes()).digest() for name in labels] for frame in frames])
    assert runs[0] == runs[1]


@pytest.mark.slow
@pytest.mark.exhaustive
async def test_an_episode_in_a_window(screen: Screen, executable: Any, write_script: Write) -> None:
    """Each step comes once and in order, while Blender's main loop goes round; also the steps that are asked for."""
    script = write_script(f"""{SCENE}
def sample(task):
    params = task.params
    for step in range(4):
        cube.location.x = params.get("x", step)
        params = yield {{**bl.render(), "x": cube.location.x}}
""")
    async with asyncio.timeout(LIMIT), stream_of(script, executable, show=True, length=2, ordered=True) as stream:
        frames = [(frame.index, frame.step, frame["x"]) async for frame in stream]
        assert frames == [(index, step, step) for index in range(2) for step in range(4)]
        async with await stream.episode(7, {"x": 5.0}) as episode:
            assert episode.frame["x"] == 5.0
            assert [(await episode.step({"x": x}))["x"] for x in (1.5, 2.5)] == [1.5, 2.5]
        assert stream.stats().restarts == stream.stats().stale == 0


@pytest.mark.slow
@pytest.mark.exhaustive
async def test_the_user_watches_edits_and_closes(screen: Screen, executable: Any, write_script: Write) -> None:
    """The window shows the scene of each sample, and what its user moves there is in the frames that follow.

    Undo does nothing, as it would remove the objects that the script holds. When the user closes the window and
    answers that nothing is to be saved, the stream ends with an error of its own, and no Blender is started again.
    """
    async with asyncio.timeout(LIMIT), stream_of(write_script(SPINNING), executable, queue_size=1) as stream:
        views = set[bytes]()
        while len(views) < 3:
            assert (await anext(stream))["x"] == 0
            views.add(screen.view())
        assert len(np.unique(screen.picture().reshape(-1, 3), axis=0)) > 100  # there are menus and buttons

        screen.type("g", "x", "2", "Return")  # grab the selected cube, and move it
        while (x := (await anext(stream))["x"]) == 0:
            pass
        assert x == 2
        screen.type("ctrl+z")
        assert [(await anext(stream))["x"] for _ in range(5)] == [2] * 5

        screen.type("ctrl+q")
        with pytest.raises(ab.WindowClosed, match="the user closed the window of Blender 0, which ends the stream"):
            while await anext(stream):
                screen.type("d")
        assert stream.stats().restarts == 0


@pytest.mark.exhaustive
@pytest.mark.slow
async def test_a_script_that_opens_a_file(screen: Screen, executable: Any, write_script: Write, tmp_path: Path) -> None:
    """It goes on as in the background: the context has its objects, and operators work. So it is in a sample."""
    made = tmp_path / "made.blend"
    script = write_script(f"""
import os, sys, bpy
sees = []
def look(): sees.append([bpy.context.window is not None, bpy.context.object and bpy.context.object.name])
look()
bpy.ops.wm.read_factory_settings(use_empty=True)
bpy.ops.mesh.primitive_monkey_add()
bpy.ops.object.shade_smooth()
look()
bpy.ops.wm.save_as_mainfile(filepath={str(made)!r})
bpy.ops.wm.open_mainfile(filepath={str(made)!r})
look()
def sample(task):
    if task.index == 1:
        bpy.ops.wm.read_factory_settings()
    look()
    undo = bpy.context.preferences.edit.use_global_undo
    return {{"sees": sees, "smooth": bpy.context.object.data.polygons[0].use_smooth, "undo": undo}}
""")
    runs = []
    for show in (True, False):
        async with asyncio.timeout(LIMIT), stream_of(script, executable, show=show, length=3, ordered=True) as stream:
            runs.append([frame async for frame in stream])
            assert [frame["undo"] for frame in runs[-1]] == [not show] * 3
    for shown, hidden in zip(*runs, strict=True):
        assert shown["sees"] == hidden["sees"]
        assert shown["smooth"] == hidden["smooth"]
    assert runs[0][2]["sees"] == [[True, name] for name in ("Cube", "Suzanne", "Suzanne", "Suzanne", "Cube", "Cube")]
    async with asyncio.timeout(LIMIT), stream_of(script, executable, scene=made, length=1) as stream:
        assert (await anext(stream))["sees"][0] == [True, "Suzanne"]


@pytest.mark.exhaustive
@pytest.mark.slow
async def test_samples_wait_while_the_user_renders(screen: Screen, executable: Any, write_script: Write) -> None:
    """Blender cannot render twice at once: it would crash. So the user's own render is finished first."""
    script = write_script(f"""{SPINNING}
renders = []
def render():
    scene.cycles.samples = 4000
    bpy.ops.render.render("INVOKE_DEFAULT")  # as F12 does: the scene is copied, and then rendered by a thread
    scene.cycles.samples = 1
    renders.append("begun")
if not bpy.app.background:
    bpy.app.timers.register(render, first_interval=0.1)
bpy.app.handlers.render_complete.append(lambda *_: renders.append("done") if "begun" in renders else None)
spin = sample
def sample(task): return {{**spin(task), "renders": list(renders), "both": bpy.app.is_job_running("RENDER")}}
""")
    async with asyncio.timeout(LIMIT), stream_of(script, executable, queue_size=1) as stream:
        while len((frame := await anext(stream))["renders"]) < 2:
            assert not frame["both"]
        assert stream.stats().restarts == 0


@pytest.mark.exhaustive
@pytest.mark.slow
async def test_every_kind_of_request(screen: Screen, executable: Any, write_script: Write) -> None:
    """A pass beside the stream, an urgent sample, and a flush are served as in the background; idling does no harm."""
    script = write_script(f"{SCENE}\ndef sample(task): return {{'level': task.params['level']}}")
    level = 0
    options: dict[str, Any] = {"params": lambda index: {"level": level}, "timeouts": ab.Timeouts(beat=4)}
    async with asyncio.timeout(LIMIT), stream_of(script, executable, **options) as stream:
        assert (await anext(stream))["level"] == 0
        assert (await stream.render(17, {"level": 3}))["level"] == 3
        level = 1
        stream.flush()
        while (await anext(stream))["level"] == 0:
            pass
        assert [frame.index async for frame in stream.frames([5, 2], ordered=True)] == [5, 2]
        await asyncio.sleep(6)  # the queue is full, and Blender has nothing to do for longer than a beat may be late
        assert (await anext(stream))["level"] == 1
        assert stream.stats().restarts == 0


# -- how it ends ---------------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("script", "error", "message"),
    [
        (f"{SCENE}\ndef sample(task): return {{'x': 1 / (task.index - 2)}}", ab.SampleError, "ZeroDivisionError"),
        (f"{SCENE}\ncube.nonsense()\ndef sample(task): return {{}}", ab.InstanceExited, "no attribute 'nonsense'"),
        (f"{SCENE}\nimport time\ndef sample(task): time.sleep(3600)", ab.CrashLoop, "made no frame for 2 s"),
        (f"{SCENE}\ndef sample(task): raise SystemExit('enough')", ab.CrashLoop, "exited with status 1(.*\n)*.*enough"),
    ],
    ids=["sample", "script", "hang", "exit"],
)  # fmt: skip
@pytest.mark.slow
async def test_errors_reach_the_host(
    script: str, error: type[ab.AsyncblendError], message: str, screen: Screen, executable: Any, write_script: Write
) -> None:
    """What goes wrong in the window's Blender is the host's error, as it is in the background."""
    options: dict[str, Any] = {"restart": ab.RestartPolicy(max_restarts=0)}
    if "made no frame" in message:
        options["timeouts"] = ab.Timeouts(frame=2)
    with pytest.raises(error, match=message):
        async with asyncio.timeout(LIMIT), stream_of(write_script(script), executable, **options) as stream:
            async for _ in stream:
                pass


CLI = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import asyncblend.cli as c; c.main()"


@pytest.mark.parametrize(
    "how", ["close", *(pytest.param(how, marks=pytest.mark.exhaustive) for how in ("interrupt", "kill", "length"))]
)
@pytest.mark.slow
def test_the_command_and_its_window_end_together(
    how: str, screen: Screen, executable: Any, write_script: Write, tmp_path: Path
) -> None:
    """`asyncblend stream --show` opens one window. Whichever of the two is ended, nothing of them is left."""
    (tmp_path / "job.toml").write_text(f"script = {str(write_script(SPINNING))!r}\ninstances = 3\n")
    length = ["--length", "5"] if how == "length" else []
    command = [sys.executable, "-c", CLI, "stream", "job.toml", "--show", "--blender", executable.blender, *length]
    program = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert program.stdout is not None
        assert "Frame" in program.stdout.readline()  # the first one
        if how == "close":
            screen.type("ctrl+q")
        elif how != "length":
            program.send_signal(signal.SIGINT if how == "interrupt" else signal.SIGKILL)
        output, errors = program.communicate(timeout=LIMIT)
    finally:
        program.kill()
        program.communicate()
    assert program.returncode == {"close": 0, "length": 0, "interrupt": 130, "kill": -signal.SIGKILL}[how], errors
    assert ("The window was closed." in errors) == (how == "close")
    if how != "kill":
        assert re.search(r"^frames by instance +0: \d+", output, re.MULTILINE)
