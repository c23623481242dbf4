"""`python -m benchmarks warm`: how soon a program that starts has its first frame, from a fleet that stays warm."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import asyncblend as ab
from asyncblend.aio import loop_factory

from .measuring import Effort, Timed, Way, in_turn
from .peers.plain import INSIDE
from .render import CYCLES
from .report import Metric, Report
from .startup import kinds

__all__ = ["measure"]

_METHOD = (
    "One instance, a 128x96 image with Cycles. *fleet=*: from entering the stream to the first frame, in a program that "
    "is connected to Ray. *fleet=, new program*: from the start of the program, which imports Ray, connects and attaches. "
    "*its own Blender*: from entering a stream that starts one. *a call (limit)*: to find an actor of Ray by its name, "
    "and to call it once."
)
_SCENE = (128, 96, CYCLES)
_QUIET = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
_PROGRAM = """
import asyncio, sys
import asyncblend as ab

async def main():
    async with ab.BlenderStream(fleet="warm", params={"scene": [128, 96, "CYCLES"]}) as stream:
        await anext(stream)
        print("frame", flush=True)

asyncio.run(main())
"""


def measure(how: Effort) -> Report:
    """Seconds to the first frame from a fleet that runs already, beside those of a program that starts its own.

    Of the fake and of each kind of Blender that is here.
    """
    metrics = [Metric("seconds to the first frame", lambda timed: timed.seconds, 3, less_is_better=True)]
    own = ["fleet=, new program", "its own Blender"]
    report = Report("warm", "A fleet that stays warm", _METHOD, metrics, "fleet=", own=own)
    with tempfile.TemporaryDirectory(prefix="bench") as name, _cluster(Path(name)):
        for kind, blender in kinds(Path(name), quick=how.quick).items():
            how.say(kind)
            with _ways(blender) as ways:
                report.add(kind, in_turn(ways, how))
    return report


@contextlib.contextmanager
def _cluster(folder: Path) -> Iterator[None]:
    """Run a cluster of one node, which this program is connected to."""
    import ray
    from ray.cluster_utils import Cluster

    with mock.patch.dict(os.environ, {**_QUIET, "RAY_TMPDIR": str(folder)}):
        head = {"num_cpus": 2, "include_dashboard": False, "temp_dir": str(folder / "ray")}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            with mock.patch.dict(os.environ, {"RAY_ADDRESS": cluster.address}):
                ray.init(cluster.address, log_to_driver=False, logging_level="warning")
                yield
        finally:
            ray.shutdown()
            cluster.shutdown()


@contextlib.contextmanager
def _ways(blender: str) -> Iterator[Mapping[str, Way]]:
    import ray

    import asyncblend.ray

    def call() -> float:
        ray.get(ray.get_actor("warm", "asyncblend").call.remote("status"))
        return time.perf_counter()

    config = ab.StreamConfig(script=INSIDE / "cube_stream.py", blender=blender, instances=1)
    asyncblend.ray.start(config, name="warm", num_cpus=1)
    try:
        yield {
            "fleet=": _timed(lambda: _first(fleet="warm")),
            "fleet=, new program": _timed(_new_program),
            "its own Blender": _timed(lambda: _first(config)),
            "a call (limit)": _timed(call),
        }
    finally:
        asyncblend.ray.stop("warm")


def _timed(work: Callable[[], float]) -> Way:
    """Return a way that does its work once, however long it takes. `work` returns when it was done."""

    def way(seconds: float) -> Timed:
        began = time.perf_counter()
        return Timed(1, work() - began)

    return way


def _first(config: ab.StreamConfig | None = None, **options: Any) -> float:
    async def first() -> float:
        async with ab.BlenderStream(config, **options, params={"scene": list(_SCENE)}) as stream:
            await anext(stream)
            return time.perf_counter()

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(first())


def _new_program() -> float:
    with subprocess.Popen([sys.executable, "-c", _PROGRAM], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "frame\n"
        return time.perf_counter()  # it takes its time to leave Ray
