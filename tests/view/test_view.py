"""`asyncblend view`: what its files hold, by rerun's own reader, and how it ends."""

from __future__ import annotations

import base64
import http.client
import io
import itertools
import shutil
import signal
import socket
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from asyncblend.recording import Recording
from tests.waiting import gone

from .conftest import PYTHON, ROOT, Rows, Viewing, children, wait_until

Array = np.ndarray[Any, Any]

ALL = """
K = np.array([[50.0, 0, 20], [0, 50, 15], [0, 0, 1]])
POSE = np.array([[1.0, 0, 0, 0.5], [0, 1, 0, 0], [0, 0, 1, 2], [0, 0, 0, 1]])
BOX = np.array([[x, y, z] for x in (-1.0, 1) for y, z in ((-1, 3), (1, 3), (1, 5), (-1, 5))])

def sample(task):
    i = task.index
    depth = np.full((30, 40), 4 + i, np.float32)
    depth[:, :10] = np.inf
    instance = np.zeros((30, 40), np.int32)
    instance[5:10, 5:10], instance[20:, 20:] = 1, 300
    labels = {
        "image": np.full((30, 40, 3), 40 * i, np.uint8), "depth": depth, "instance": instance,
        "semantic": (instance > 0).astype(np.uint8) * 2,
        "normal": np.full((30, 40, 3), (0, 0, 1), np.float32), "flow_forward": np.full((30, 40, 2), i, np.float32),
        "instances": [{"id": 1, "class_id": 2, "class_name": "cup"}, {"id": 300, "class_id": 0, "class_name": ""}],
        "id": np.array([1]), "name": ["my cup"], "class_id": np.array([2]), "class_name": ["cup"],
        "bbox": np.array([[5.0, 5, 5, 5]]), "visible_fraction": np.array([0.5]), "bbox3d": BOX[None],
        "keypoints": np.array([[[6.0, 7, 2], [8, 9, 1], [0, 0, 0]]]), "skeleton": [[1, 2], [2, 3]],
        "K": K, "world_to_camera": POSE, "other": np.full((20, 20, 3), 9, np.uint8), "note": "hello",
    }
    return labels if i < 2 else {"image": labels["image"]}
"""


def at(rows: Rows, path: str, index: int) -> dict[str, Any]:
    """Return what an entity was at a sample."""
    (found,) = [row for row in rows[path] if row.get("sample") == index]
    return found


def pixels(row: dict[str, Any], dtype: Any, height: int, width: int) -> Array:
    """Return the values of an image that is not compressed."""
    (name,) = [name for name in row if name.endswith("Image:buffer")]
    return np.frombuffer(base64.b64decode(row[name]), dtype).reshape(height, width)


def colours(row: dict[str, Any], name: str) -> list[int]:
    """Return colours as numbers, 0xRRGGBBAA."""
    return [int(one) for one in row[name]]


# -- what a file holds -------------------------------------------------------------------------------------------


@pytest.mark.every_kind
@pytest.mark.slow
def test_a_file_holds_what_the_frames_have(viewing: Viewing, of_here: str, write_script: Any) -> None:
    """Every label of every sample, at its sample; and what the stream does. Of each kind of Blender."""
    file = viewing.folder / "new" / "run.rrd"
    printed = viewing.run(write_script(ALL), "--blender", of_here, "--length", 3, "--instances", 1, "--save", file)
    assert "3" in printed
    rows = viewing.rows(file)
    for i in range(2):
        row = at(rows, "/world/camera/depth", i)
        expected = np.full((30, 40), 4 + i, np.float32)
        expected[:, :10] = 0  # rerun draws no point there
        np.testing.assert_array_equal(pixels(row, np.float32, 30, 40), expected)
        assert row["DepthImage:meter"] == [1.0]
        instance = np.zeros((30, 40), np.uint16)
        instance[5:10, 5:10], instance[20:, 20:] = 1, 300
        np.testing.assert_array_equal(pixels(at(rows, "/world/camera/instance", i), np.uint16, 30, 40), instance)
        np.testing.assert_array_equal(
            pixels(at(rows, "/world/camera/masks", i), np.uint8, 30, 40), np.where(instance == 1, 1, 0)
        )
        semantic = at(rows, "/world/camera/semantic", i)
        np.testing.assert_array_equal(pixels(semantic, np.uint8, 30, 40), 2 * (instance > 0))
        named = {
            one["class_id"]: one["class_description"]["info"]["label"]
            for one in semantic["AnnotationContext:context"][0]
        }
        assert named == {0: "nothing", 2: "cup"}
        boxes = at(rows, "/world/camera/boxes", i)
        assert boxes["Boxes2D:labels"] == ["cup 50%"]
        assert (boxes["Boxes2D:centers"], boxes["Boxes2D:half_sizes"]) == ([[7.5, 7.5]], [[2.5, 2.5]])
        keypoints = at(rows, "/world/camera/keypoints", i)
        assert keypoints["Points2D:positions"] == [[6.0, 7.0], [8.0, 9.0]]
        assert keypoints["Points2D:class_ids"] == [2, 1]
        assert at(rows, "/world/camera/skeletons", i)["LineStrips2D:strips"] == [[[6.0, 7.0], [8.0, 9.0]]]
        camera = at(rows, "/world/camera", i)
        np.testing.assert_allclose(camera["Pinhole:image_from_camera"][0], [50, 0, 0, 0, 50, 0, 20, 15, 1])
        assert camera["Pinhole:resolution"] == [[40.0, 30.0]]
        assert camera["Transform3D:translation"] == [[-0.5, 0.0, -2.0]]
        points = np.array(at(rows, "/world/points", i)["Points3D:positions"])
        assert len(points) == 30 * 30  # without those at infinity
        np.testing.assert_allclose(
            points[0], [(10.5 - 20) / 50 * (4 + i) - 0.5, (0.5 - 15) / 50 * (4 + i), 2 + i], rtol=1e-5
        )
        (strip,) = at(rows, "/world/boxes", i)["LineStrips3D:strips"]
        edges = {frozenset((tuple(a), tuple(b))) for a, b in itertools.pairwise(strip)}
        assert len(edges) == 12
        assert all(np.abs(np.subtract(*map(np.array, edge))).tolist().count(2) == 1 for edge in map(tuple, edges))
        assert at(rows, "/world/boxes", i)["LineStrips3D:labels"] == ["cup"]
        assert "sample 0" in at(rows, "/values", 0)["TextDocument:text"][0]
        assert "note 'hello'" in at(rows, "/values", i)["TextDocument:text"][0]
        for label in ("normal", "flow_forward"):
            assert at(rows, f"/world/camera/{label}", i)["EncodedImage:media_type"] == ["image/jpeg"]
        assert at(rows, "/pictures/other", i)
    for i in range(3):
        image = Image.open(io.BytesIO(base64.b64decode(at(rows, "/world/camera/image", i)["EncodedImage:blob"])))
        assert image.size == (40, 30)
        np.testing.assert_allclose(np.asarray(image), 40 * i, atol=2)
    # What a later frame has not is no longer to be seen.
    for path in ("/world/camera/boxes", "/world/points", "/world/camera/depth", "/pictures/other"):
        assert at(rows, path, 2).get("Clear:is_recursive") == [False], path
    states = [row["StateChange:state"][0] for row in rows["/activity/blenders/0"] if "StateChange:state" in row]
    assert {*states} & {"ready", "idle"}
    assert [row for row in rows["/activity/share/queue"] if 0 <= row["Scalars:scalars"][0] <= 1]
    assert all(row["Scalars:scalars"] == [0.0] for row in rows["/activity/share/not_shown"])  # each frame is in a file
    assert not list(viewing.home.rglob("analytics*"))


@pytest.mark.slow
def test_a_recording_is_shown_in_order_or_at_random(
    viewing: Viewing, tmp_path: Path, fake: str, write_script: Any
) -> None:
    """The frames of `asyncblend record`, episodes included, of which each step is one. The same seed, the same order."""
    script = write_script(
        "def sample(task):\n    for i in range(2):\n        yield {'image': np.zeros((20, 20, 3), np.uint8)}"
    )
    subprocess.run(
        [sys.executable, "-m", "asyncblend", "record", script, "--blender", fake, "--length", "5", "--out", "rec"],
        cwd=tmp_path, check=True, timeout=240, capture_output=True,
    )  # fmt: skip
    orders = []
    for options in ((), ("--shuffle",), ("--shuffle", "--length", 3)):
        viewing.run("rec", "--save", "run.rrd", *options)
        shown = viewing.rows(viewing.folder / "run.rrd")["/values"]
        assert [row["step"] for row in shown] == [0, 1] * (len(shown) // 2)
        assert [row["frame"] for row in shown] == [*range(1, 1 + len(shown))]
        orders.append([row["sample"] for row in shown[::2]])
    assert orders[0] == sorted(orders[1]) == [0, 1, 2, 3, 4] != orders[1]
    assert orders[2] == orders[1][:3]


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_real_scene_is_as_it_was_recorded(viewing: Viewing, tmp_path: Path, real: Any) -> None:
    """The depth as points lies on the objects: in the 3D boxes of the visible ones, and on the floor."""
    subprocess.run(
        [sys.executable, "-m", "asyncblend", "record", ROOT / "blender_scripts" / "shapes.py", "--blender", real.blender,
         "--length", "1", "--out", "rec", "--", "--width", "160", "--height", "120"],
        cwd=tmp_path, check=True, timeout=240, capture_output=True,
    )  # fmt: skip
    viewing.run("rec", "--save", "run.rrd")
    rows, sample = viewing.rows(viewing.folder / "run.rrd"), Recording(tmp_path / "rec")[0]
    points = np.array(at(rows, "/world/points", 0)["Points3D:positions"])
    above = points[points[:, 2] > 0.05]
    low, high = sample["bbox3d"].min(axis=1) - 0.02, sample["bbox3d"].max(axis=1) + 0.02
    inside = ((above[:, None] > low) & (above[:, None] < high)).all(axis=2)
    assert inside.any(axis=1).mean() > 0.8  # the rest is clutter, which has no box
    visible = sample["visible_fraction"] > 0.3
    assert inside.any(axis=0)[visible].all()
    assert abs(np.median(points[(points[:, 2] < 0.05)][:, 2])) < 0.01
    np.testing.assert_array_equal(
        pixels(at(rows, "/world/camera/depth", 0), np.float32, 120, 160),
        np.where(np.isfinite(sample["depth"]), sample["depth"], 0),
    )


# -- a running training ------------------------------------------------------------------------------------------

TRAINING = """
import logging, os, sys
import asyncblend as ab
if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, filename="training.log")
    dataset = ab.BlenderDataset(script=sys.argv[1], blender=sys.argv[2], instances=1)
    dataset.view(port=int(sys.argv[3]))
    items = iter(dataset)
    next(items)
    print("begun", flush=True)
    for step, item in enumerate(items):
        logging.info("step %d", step)
        if os.path.exists("enough"):
            break
    items.close()
    dataset.close()
"""


@pytest.mark.slow
def test_a_training_is_looked_at_until_it_ends(viewing: Viewing, tmp_path: Path, fake: str, write_script: Any) -> None:
    """Its frames, its log and its Blenders' states; and every frame is shown or counted. It has no rerun itself."""
    (tmp_path / "training.py").write_text(TRAINING)
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port = trial.getsockname()[1]
    body = "import time\ndef sample(task):\n    time.sleep(0.01)\n    return {'image': np.full((20, 20, 3), task.index % 200, np.uint8)}"
    command = [sys.executable, "training.py", str(write_script(body)), fake, str(port)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as training:
        assert training.stdout is not None
        assert training.stdout.readline() == "begun\n"
        process = viewing.start("--attach", port, "--save", "run.rrd")
        file = viewing.folder / "run.rrd"
        wait_until(lambda: file.exists() and file.stat().st_size > 200_000)
        (tmp_path / "enough").touch()
        printed, _ = process.communicate(timeout=240)
        assert process.returncode == 0, printed
        assert training.wait(240) == 0
    rows = viewing.rows(viewing.folder / "run.rrd")
    shown = [row["sample"] for row in rows["/world/camera/image"]]
    assert len(shown) > 1
    assert shown == sorted({*shown})
    lines = [row["TextLog:text"][0] for row in rows["/log"]]
    assert any(line.startswith("step ") for line in lines)
    assert {row["StateChange:state"][0] for row in rows["/activity/blenders/0"] if "StateChange:state" in row} & {
        "ready",
        "idle",
    }
    (ended,) = [line for line in printed.splitlines() if "The training has ended" in line]
    count, missed = (int(word) for word in ended.split() if word.isdecimal())
    assert count == len(shown)
    assert count + missed >= shown[-1] - shown[0] + 1  # from the first look on; one instance: samples come in order


@pytest.mark.exhaustive
@pytest.mark.slow
def test_an_endless_view_is_bounded_in_memory(viewing: Viewing, fake: str, write_script: Any) -> None:
    """After a gigabyte of frames was shown, rerun has dropped the oldest, and nothing piles up before it."""
    body = "def sample(task):\n    return {'image': np.zeros((20, 20, 3), np.uint8), 'depth': task.rng.random((1500, 1500), np.float32)}"
    process, _ = viewing.page(write_script(body), "--blender", fake, "--instances", 1)
    (rerun,) = children(process, "rerun")
    own = psutil.Process(process.pid)
    wait_until(lambda: own.io_counters().write_chars > 1_000_000_000)
    assert rerun.memory_info().rss < 800 << 20
    before = own.memory_info().rss
    wait_until(lambda: own.io_counters().write_chars > 1_300_000_000)
    assert own.memory_info().rss - before < 150 << 20
    viewing.stop(process)


# -- the page ----------------------------------------------------------------------------------------------------


def test_the_page_is_this_machines_alone_and_ends_with_ctrl_c(viewing: Viewing, fake: str, write_script: Any) -> None:
    """It listens on the loopback device, lets the browser speak to nobody else, and leaves nothing behind."""
    process, address = viewing.page(write_script(ALL), "--blender", fake, "--length", 2)
    viewing.said(process, "All is shown")
    (rerun,) = children(process, "rerun")
    listening = [
        connection.laddr.ip
        for one in (psutil.Process(process.pid), rerun)
        for connection in one.net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 3
    assert set(listening) == {"127.0.0.1"}
    where = urllib.parse.urlsplit(address)
    page = http.client.HTTPConnection(where.netloc, timeout=60)
    page.request("GET", "/re_viewer.js")
    answer = page.getresponse()
    data = urllib.parse.urlsplit(urllib.parse.parse_qs(where.query)["url"][0]).netloc
    policy = answer.headers["content-security-policy"]
    assert f"connect-src 'self' http://{data};" in policy
    assert "default-src 'self' 'unsafe-inline' 'wasm-unsafe-eval' data: blob:;" in policy
    assert len(answer.read()) > 1000
    page.request("POST", "/")
    assert page.getresponse().status == 405
    page.close()
    viewing.stop(process)
    assert not rerun.is_running()
    assert not list(viewing.home.rglob("*analytics*"))


@pytest.mark.skipif(sys.platform != "linux", reason="the leash is the kernel's, and Linux has it")
def test_nothing_is_left_of_a_view_that_is_killed(viewing: Viewing, fake: str, write_script: Any) -> None:
    """rerun ends with it, though nobody is left to end it."""
    process, _ = viewing.page(write_script(ALL), "--blender", fake)
    (rerun,) = children(process, "rerun")
    process.kill()
    wait_until(lambda: gone(rerun))


def test_a_viewer_that_ends_ends_the_stream(viewing: Viewing, fake: str, write_script: Any) -> None:
    """An endless stream stops, and the message has the viewer's status."""
    process, _ = viewing.page(write_script(ALL), "--blender", fake)
    (rerun,) = children(process, "rerun")
    rerun.send_signal(signal.SIGKILL)
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "rerun's viewer ended with status -9" in printed


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_browser_shows_the_page(viewing: Viewing, tmp_path: Path, fake: str, write_script: Any) -> None:
    """Chromium draws the frames, and asks nobody on the net for anything."""
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("there is no Chromium: `apt-get install chromium` installs it")
    from .browser import looked_at

    process, address = viewing.page(write_script(ALL), "--blender", fake, "--length", 2)
    viewing.said(process, "All is shown")
    picture, asked = looked_at(chromium, address, tmp_path / "profile", colour=(40, 40, 40))
    viewing.stop(process)
    assert picture.size == (1280, 800)
    assert {urllib.parse.urlsplit(one).hostname for one in asked} <= {"127.0.0.1", None}, asked


@pytest.fixture
def screen() -> Iterator[str]:
    """The display of a virtual screen, on which programs draw without a GPU."""
    if not all(map(shutil.which, ("Xvfb", "xdotool"))) or not [*Path("/usr/share/vulkan/icd.d").glob("lvp*")]:
        pytest.skip("no screen: `apt-get install xvfb xdotool mesa-vulkan-drivers` installs what the window needs")
    command = ["Xvfb", "-displayfd", "1", "-screen", "0", "1280x800x24", "-nolisten", "tcp"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        yield f":{process.stdout.readline().strip()}"
        process.terminate()


@pytest.mark.exhaustive
@pytest.mark.slow
def test_closing_the_window_ends_the_stream(viewing: Viewing, fake: str, screen: str, write_script: Any) -> None:
    """rerun's own window, on the loopback device; the user quits it, and an endless stream ends without an error."""
    process = viewing.start(write_script(ALL), "--blender", fake, "--instances", 1, DISPLAY=screen)

    def window() -> str:
        command = ["xdotool", "search", "--onlyvisible", "--name", "Rerun"]
        environment = {**viewing.environment, "DISPLAY": screen}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout.split("\n")[
            0
        ]

    wait_until(lambda: process.poll() is not None or window())
    assert process.poll() is None, process.communicate()[0]
    (rerun,) = children(process, "rerun")
    assert {one.laddr.ip for one in rerun.net_connections() if one.status == psutil.CONN_LISTEN} == {"127.0.0.1"}

    def quit_it() -> bool:
        command = ["xdotool", "windowfocus", "--sync", window(), "key", "ctrl+q"]
        subprocess.run(command, env={**viewing.environment, "DISPLAY": screen}, capture_output=True, check=False)
        return process.poll() is not None

    wait_until(quit_it)
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, printed
    assert "rror" not in printed


# -- mistakes ----------------------------------------------------------------------------------------------------


def test_without_rerun_it_says_where_that_goes(viewing: Viewing) -> None:
    """bpy 4.5 excludes the numpy that rerun needs, so the line to type makes another environment."""
    printed = viewing.run("scene.py", status=1, python=sys.executable)
    assert "It needs numpy 2, which the bpy module that is installed here excludes" in printed
    assert f"--blender {sys.executable}" in printed


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["{script}"], 1, "add --web to look at it in a browser, or --save run.rrd"),
        (["{script}", "--port", "9999"], 1, "--port is that of the web page; add --web"),
        (
            ["{script}", "--web", "--port", "{taken}"],
            1,
            "port {taken} of 127.0.0.1 cannot be used: Address already in use",
        ),
        (["{script}", "--save", "run.mp4"], 1, "take one that ends with .rrd"),
        (["{script}", "--save", "{script}/run.rrd"], 1, "cannot be written"),
        (["{script}", "--shuffle", "--web"], 1, "--shuffle is for a recording"),
        ([".", "--web"], 1, "is a folder, but no recording"),
        (
            ["{recording}", "--shuffle", "--seed", "-1", "--save", "run.rrd"],
            1,
            "--seed must be a whole number, at least 0",
        ),
        (["missing", "--web"], 1, "missing does not exist"),
        ([], 2, "give a script.py, a TOML file or a recording, or --attach"),
        (["--attach", "x", "--web", "--port", "{free}"], 1, "an address is a port, or HOST:PORT"),
        (["--attach", "--length", "3"], 1, "leave out --length"),
    ],
)
def test_mistakes_are_told_with_what_to_do(
    viewing: Viewing, write_script: Any, arguments: list[str], status: int, says: str
) -> None:
    """Nothing is started, and the message says what to type instead."""
    script = write_script(ALL)
    with socket.socket() as other, socket.socket() as trial:
        other.bind(("127.0.0.1", 0))
        other.listen()
        trial.bind(("127.0.0.1", 0))
        ports = {"taken": other.getsockname()[1], "free": trial.getsockname()[1]}
        trial.close()
        recording = ROOT / "tests" / "recording" / "format3"
        given = [argument.format(script=script, recording=recording, **ports) for argument in arguments]
        assert says.format(**ports) in " ".join(viewing.run(*given, status=status).split())


def test_a_script_that_fails_ends_the_view(viewing: Viewing, fake: str, write_script: Any) -> None:
    """The error is the stream's own, and the file is whole."""
    script = write_script("def sample(task):\n    raise ValueError('no such thing')")
    printed = viewing.run(script, "--blender", fake, "--length", 2, "--save", "run.rrd", status=1)
    assert "ValueError: no such thing" in printed
    viewing.rows(viewing.folder / "run.rrd")


STUCK = """
import os, sys
import numpy as np
from asyncblend.stream.frame import Frame
from asyncblend.tap.tap import Tap
from asyncblend.viewer import screen as screens

screens._PATIENCE = 1.0
os.mkfifo(sys.argv[1])
reader = os.open(sys.argv[1], os.O_RDONLY | os.O_NONBLOCK)  # it reads nothing, so nothing more can be written
tap, rng = Tap(), np.random.default_rng(0)
try:
    with screens.Screen(url=None, file=sys.argv[1], live=False) as screen:
        for index in range(1000):
            image = rng.integers(0, 255, (200, 200, 3), np.uint8)
            screen.show(tap.take(Frame({"image": image}, index=index, instance=0, params={}, step=0, last=True)))
except screens.ScreenLost:
    print("lost")
"""


def test_what_cannot_be_written_is_not_waited_for(viewing: Viewing) -> None:
    """As on a full disk. rerun would wait when it is told to end, and once more at the end of the program."""
    done = subprocess.run(
        [PYTHON, "-c", STUCK, viewing.folder / "run.rrd"], env=viewing.environment, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "lost\n"), done.stderr
