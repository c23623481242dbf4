"""`python -m benchmarks view`: what it costs a training to be looked at."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from asyncblend.stream.frame import Frame
from asyncblend.tap.tap import Tap
from asyncblend.testing import fake_blender

from .measuring import Effort, Timed, Way, in_turn, timed
from .peers.arrays import Spec, script
from .report import Metric, Report
from .streams import PATIENT, written

__all__ = ["measure"]

_SPEC: Spec = {"image": ("uint8", (480, 640, 4)), "depth": ("float32", (480, 640)), "instance": ("uint16", (480, 640))}
_MANY = 1000  # frames shown between two looks at the clock
_METHOD = (
    "A `BlenderDataset` of two fake Blenders, with 640x480 RGBA, depth and a mask in each item, which a loop takes and "
    "drops. *not viewed*: without `view`. *nobody looks*: with it. *attached*: another process asks for ten frames a second, "
    "as `asyncblend view --attach` does, and drops them. *shown to nobody*: what `view` adds to the training's thread while "
    "nobody looks, without any stream."
)
_LOOKER = """
import sys, time
from asyncblend.tap.attached import Attached
with Attached(sys.argv[1]) as attached:
    while True:
        began = time.monotonic()
        if (moment := attached.look(1.0)) is not None and moment.frame is not None:
            print(moment.came, flush=True)
        time.sleep(max(0.0, began + 0.1 - time.monotonic()))
"""


def measure(how: Effort) -> Report:
    """Count the frames a second of a dataset that is not viewed, viewed by nobody, and viewed from another process."""
    metrics = [Metric("frames/s", lambda timed: timed.rate), Metric("CPU µs/frame", lambda timed: timed.cpu_each, 2)]
    report = Report("view", "View: being looked at", _METHOD, metrics, "attached", own=["not viewed", "nobody looks"])
    how.say("640x480")
    with _ways() as ways:
        report.add("RGBA, depth and mask", in_turn(ways, how))
    report.add("that alone", in_turn({"shown to nobody": _showing}, how))
    return report


@contextlib.contextmanager
def _ways() -> Iterator[Mapping[str, Way]]:
    from asyncblend.data.dataset import BlenderDataset

    with tempfile.TemporaryDirectory(prefix="benchmark-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        options: dict[str, Any] = {
            "script": written(folder, "frames.py", script(_SPEC)),
            "blender": fake_blender(folder / "fake"),
            "instances": 2,
            "timeouts": PATIENT,
        }
        ways: dict[str, Way] = {}
        for case in ("not viewed", "nobody looks", "attached"):
            dataset = BlenderDataset(**options)
            stack.callback(dataset.close)
            if case != "not viewed":
                dataset.view(port := _free_port())
            items = iter(dataset)
            next(items)
            if case == "attached":
                stack.enter_context(_looker(port))
            ways[case] = _taking(items)
        yield ways


def _taking(items: Iterator[Any]) -> Way:
    def take() -> int:
        next(items)
        return 1

    def way(seconds: float) -> Timed:
        for _ in range(32):  # these were made while another way had its turn
            take()
        return timed(take, seconds)

    return way


def _showing(seconds: float) -> Timed:
    tap, frame = Tap(), Frame({}, index=0, instance=0)

    def show() -> int:
        for _ in range(_MANY):
            tap.put(frame)
        return _MANY

    try:
        return timed(show, seconds)
    finally:
        tap.end()


@contextlib.contextmanager
def _looker(port: int) -> Iterator[None]:
    """Look from another process, which begins when it can."""
    with subprocess.Popen([sys.executable, "-c", _LOOKER, str(port)], stdout=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


def _free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port: int = trial.getsockname()[1]
        return port
