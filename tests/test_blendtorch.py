"""blendtorch's names: the code outline of its README, and what Receiver and BlenderLauncher promise."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch.utils import data

import asyncblend as ab
from asyncblend import blendtorch as bt
from asyncblend.scripts import script
from asyncblend.testing import fake_blender

Write = Callable[..., Path]

LIMIT = 20_000  # milliseconds; the bound of failure of every wait here

# What cube.py gives, for a Blender without bpy.
CUBE = """
import os
def sample(task):
    image = task.rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    return {"image": image, "xy": task.rng.random((8, 2), dtype=np.float32), "pid": os.getpid()}
"""


class MyDataset:
    """The map-style dataset of the origin's README."""

    def __init__(self, blender_launcher: bt.BlenderLauncher) -> None:
        self.recv = bt.Receiver(blender_launcher)

    def __len__(self) -> int:
        return 100

    def __getitem__(self, idx: int) -> tuple[Any, Any, Any]:
        d = self.recv(timeoutms=LIMIT)
        x, coords = d["image"], d["xy"]
        h, _ = x.shape[:2]
        coords[..., 1] = h - coords[..., 1]
        return x, coords, d["btid"]


@pytest.fixture
def fake(tmp_path: Path) -> str:
    return str(fake_blender(tmp_path / "fake"))


@pytest.mark.exhaustive
def test_the_origins_outline_runs(kind: Any, write_script: Write) -> None:
    """The loop of the origin's README gives ten batches of four, each sample another."""
    kwargs = {
        "num_instances": 2,
        "scene": "",
        "script": str(script("cube.py")) if kind.real else str(write_script(CUBE)),
        "blend_path": kind.blender,
        "instance_args": [["--width", "64", "--height", "48"] for _ in range(2)],
    }
    seen: set[int] = set()
    images: set[bytes] = set()
    with bt.BlenderLauncher(**kwargs) as bl:
        ds = MyDataset(bl)
        dl: Any = data.DataLoader(ds, batch_size=4, num_workers=0)  # type: ignore[arg-type]
        for _ in range(10):
            x, coords, ids = next(iter(dl))
            assert (x.shape, x.dtype) == ((4, 48, 64, 3), torch.uint8)
            assert (coords.shape, coords.dtype) == ((4, 8, 2), torch.float32)
            seen.update(ids.tolist())
            images.update(image.numpy().tobytes() for image in x)
    assert seen <= {0, 1}
    assert len(images) == 40


def test_each_sample_has_the_scripts_values_and_btid(fake: str, write_script: Write) -> None:
    """A sample is a dict of what the script returned, with the instance's number."""
    body = "def sample(task): return {'where': task.instance, 'text': 'x', 'none': None, 'list': [1, 2.5]}"
    with bt.BlenderLauncher(num_instances=2, script=write_script(body), blend_path=fake) as launcher:
        recv = bt.Receiver(launcher)
        for _ in range(20):
            got = recv(timeoutms=LIMIT)
            assert type(got) is dict
            assert got == {"where": got["btid"], "text": "x", "none": None, "list": [1, 2.5], "btid": got["where"]}
        assert recv.recv(timeoutms=LIMIT).keys() == got.keys()


def test_arrays_are_writable_and_nobody_elses(fake: str, write_script: Write) -> None:
    """Writing into a sample's arrays, nested ones too, changes no other sample, and none that comes later."""
    body = """
def sample(task):
    zeros = np.zeros(4)
    return {"a": zeros, "again": zeros, "deep": {"list": [zeros, {"b": zeros}]}, "words": ["x"]}
"""
    with bt.BlenderLauncher(num_instances=1, script=write_script(body), blend_path=fake) as launcher:
        recv = bt.Receiver(launcher)
        for _ in range(5):
            got = recv(timeoutms=LIMIT)
            arrays = [got["a"], got["again"], got["deep"]["list"][0], got["deep"]["list"][1]["b"]]
            for number, array in enumerate(arrays, 1):
                assert isinstance(array, np.ndarray)
                assert not array.any()
                array += number
            assert [array[0] for array in arrays] == [1, 2, 3, 4]
            got["words"].append("y")


def test_timeoutms_is_the_time_to_wait_and_nothing_is_lost(fake: str, write_script: Write, tmp_path: Path) -> None:
    """A call raises TimeoutError when no sample comes in time; a later call still gets the sample."""
    gate = tmp_path / "gate"
    body = f"""
import os, threading
def sample(task):
    while not os.path.exists({str(gate)!r}): threading.Event().wait(0.005)
    return {{"index_": task.index}}
"""
    with bt.BlenderLauncher(num_instances=1, script=write_script(body), blend_path=fake) as launcher:
        recv = bt.Receiver(launcher)
        with pytest.raises(TimeoutError, match=r"0\.05 s"):
            recv(timeoutms=50)
        with pytest.raises(TimeoutError):
            recv(timeoutms=0)
        gate.touch()
        assert [recv(timeoutms=LIMIT)["index_"], recv(timeoutms=-1)["index_"]] == [0, 1]
    default = inspect.signature(recv).parameters["timeoutms"].default
    assert default == 5000


@pytest.mark.parametrize("form", ["executable", "folder", "nothing"])
def test_blend_path_takes_what_the_option_blender_takes(
    form: str, fake: str, write_script: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an executable, the folder that holds it, or None for a search; the outline's test has bpy."""
    folder = os.path.dirname(fake)
    monkeypatch.delenv("ASYNCBLEND_BLENDER", raising=False)
    monkeypatch.setenv("PATH", folder + os.pathsep + os.environ["PATH"])
    path = {"executable": fake, "folder": folder, "nothing": None}[form]
    options = {} if path is None else {"blend_path": path}
    body = "def sample(task): return {'arg': __import__('sys').argv}"
    with bt.BlenderLauncher(num_instances=1, script=write_script(body), **options) as launcher:
        assert len(bt.Receiver(launcher)(LIMIT)["arg"]) == 1


def test_a_blend_path_without_a_blender(write_script: Write, tmp_path: Path) -> None:
    """Entering raises and leaves nothing behind; making a launcher starts nothing."""
    launcher = bt.BlenderLauncher(script=write_script(CUBE), blend_path=tmp_path)
    with pytest.raises(ab.BlenderNotFound, match="no Blender in the folder"), launcher:
        pytest.fail("entered")


@pytest.mark.slow
def test_instance_args_reach_each_script(kind: Any, write_script: Write) -> None:
    """Each instance has its own sys.argv."""
    path = write_script("import sys\ndef sample(task): return {'argv': sys.argv}")
    args = [["--color", "dark red"], ["--color", "blue"]]
    with bt.BlenderLauncher(
        num_instances=2, script=path, scene="", blend_path=kind.blender, instance_args=args
    ) as launcher:
        recv = bt.Receiver(launcher)
        seen: set[int] = set()
        while seen != {0, 1}:
            got = recv(timeoutms=LIMIT)
            assert got["argv"] == [str(path), *args[got["btid"]]]
            seen.add(got["btid"])


def test_instance_args_must_fit(write_script: Write) -> None:
    """There must be one sequence for each instance."""
    with pytest.raises(ab.ConfigError, match="each of the 2 instances"):
        bt.BlenderLauncher(num_instances=2, script=write_script(CUBE), instance_args=[["--a"]])


@pytest.mark.exhaustive
def test_scene_is_opened(real: Any, write_script: Write, tmp_path: Path) -> None:
    """The .blend file is open when the script runs."""
    scene = tmp_path / "scene.blend"
    body = f"""
import bpy
bpy.data.objects["Cube"].name = "Saved"
bpy.ops.wm.save_as_mainfile(filepath={str(scene)!r})
def sample(task): return {{}}
"""
    saving = write_script(body, name="saving.py")
    with bt.BlenderLauncher(num_instances=1, script=saving, blend_path=real.blender):
        assert scene.exists()
    body = "import bpy\nNAMES = list(bpy.data.objects.keys())\ndef sample(task): return {'names': NAMES}"
    with bt.BlenderLauncher(1, scene, write_script(body), real.blender) as launcher:
        assert "Saved" in bt.Receiver(launcher)(LIMIT)["names"]


def test_leaving_the_block_ends_the_blenders(fake: str, write_script: Write) -> None:
    """A normal end and an exception end them; receiving then raises, and the launcher can be entered again."""
    launcher = bt.BlenderLauncher(num_instances=2, script=write_script(CUBE), blend_path=fake)
    recv = bt.Receiver(launcher)  # before there is anything to receive from
    with pytest.raises(ab.ConfigError, match="`with`"):
        recv()
    pids = []
    with pytest.raises(ArithmeticError), launcher:
        pids.append(recv(LIMIT)["pid"])
        raise ArithmeticError
    assert not psutil.pid_exists(pids[0])
    for _ in range(2):
        with pytest.raises(ab.StreamClosed):
            recv(LIMIT)
    with launcher as same:
        assert same is launcher
        pids.append(recv(LIMIT)["pid"])
        assert psutil.pid_exists(pids[1])
    assert not psutil.pid_exists(pids[1])


def test_entering_twice_is_refused_and_starts_nothing(fake: str, write_script: Write) -> None:
    """The Blenders that run go on, and no others are started. A launcher that was left may be entered again."""
    body = "import os\ndef sample(task): return {'pid': os.getpid()}"
    launcher = bt.BlenderLauncher(num_instances=1, script=write_script(body), blend_path=fake)
    recv = bt.Receiver(launcher)
    with launcher:
        pid = recv(timeoutms=LIMIT)["pid"]
        with pytest.raises(ab.ConfigError, match="Blenders run already; leave its `with` block first"):
            launcher.__enter__()
        assert recv(timeoutms=LIMIT)["pid"] == pid
    with pytest.raises(ab.StreamClosed):
        recv(timeoutms=LIMIT)
    with launcher:
        assert recv(timeoutms=LIMIT)["pid"] != pid


def test_errors_arrive_as_themselves(fake: str, write_script: Write) -> None:
    """A sample's exception comes after the good samples; that of a script comes from entering."""
    body = "def sample(task):\n    if task.index == 3: raise ValueError('no cube')\n    return {'i': task.index}"
    with bt.BlenderLauncher(num_instances=1, script=write_script(body), blend_path=fake) as launcher:
        recv = bt.Receiver(launcher)
        assert [recv(LIMIT)["i"] for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ab.SampleError, match="no cube") as caught:
            recv(LIMIT)
        assert caught.value.index == 3
    broken = write_script("raise RuntimeError('no scene')", name="broken.py", serve=False)
    with (
        pytest.raises(ab.InstanceExited, match="no scene"),
        bt.BlenderLauncher(num_instances=1, script=broken, blend_path=fake),
    ):
        pytest.fail("entered")


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_worker_process_is_told_to_make_its_own(fake: str, write_script: Write) -> None:
    """A DataLoader's worker gets an error, not a hang: the Blenders belong to the process that launched them."""
    with bt.BlenderLauncher(num_instances=1, script=write_script(CUBE), blend_path=fake) as launcher:
        loader: Any = data.DataLoader(
            MyDataset(launcher),  # type: ignore[arg-type]
            num_workers=1,
            multiprocessing_context="fork",
            timeout=LIMIT / 1000,
        )
        iterator = iter(loader)
        with pytest.raises(ab.ForkedProcessError, match="belongs to the process from which this one was forked"):
            next(iterator)
        iterator._shutdown_workers()  # else torch takes five seconds: the error's traceback holds the iterator
        assert bt.Receiver(launcher)(LIMIT)["image"].shape == (48, 64, 3)


def test_it_needs_no_torch() -> None:
    """The origin's names need numpy and pyzmq only."""
    code = "import sys; from asyncblend import blendtorch as bt; bt.BlenderLauncher; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=LIMIT / 1000)
    assert bt.__all__ == ["BlenderLauncher", "Receiver"]
