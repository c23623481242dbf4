"""`python -m benchmarks cluster`: how many Blenders on other nodes one program can lead."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

import asyncblend as ab
from asyncblend.testing import fake_blender

from .measuring import Effort, Timed, Way, in_turn, timed
from .report import Metric, Report
from .streams import PATIENT, sync, written

__all__ = ["measure"]

_METHOD = (
    "Fake Blenders on nodes of Ray, all on this machine, reached over encrypted TCP as on others. *asyncblend.ray.Cluster*: "
    "each waits for 50 ms and has an image of 64x64 then. *so many times one Blender*: what one such Blender without Ray "
    "gives, times their number, which cannot be beaten (processor time is not given). In the last cases nobody waits, so that what this program can take "
    "is the limit, on cores that it shares with those who send. Driver CPU: processor time of this program, in all its "
    "threads, for each image; one of them runs asyncblend, others decrypt."
)
_WAIT = 0.05  # seconds for a sample
_SMALL, _LARGE = (64, 64, 3), (480, 640, 3)
_QUIET = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_enable_worker_prestart": "0"}
_GRID = [(1, 1), (1, 4), (2, 16), (4, 32), (8, 64)]
"""Numbers of nodes and of instances."""


def measure(how: Effort) -> Report:
    """Images/s and the driver's processor time with 1 to 64 Blenders on 1 to 8 nodes of Ray.

    The Blenders wait instead of rendering, on more and more nodes; then two that do not wait.
    """
    metrics = [
        Metric("images/s", lambda timed: timed.rate, 1),
        Metric("driver CPU µs/image", lambda timed: timed.cpu_each),
        Metric("its busiest thread µs/image", lambda timed: timed.busiest_each),
    ]
    report = Report("cluster", "Blenders on other nodes", _METHOD, metrics, "asyncblend.ray.Cluster", columns=2)
    with _nodes(1 if how.quick else 8) as folder:
        for nodes, instances in [(1, 2)] if how.quick else _GRID:
            case = f"{instances} Blenders on {nodes} node{'s' * (nodes > 1)}" if instances > 1 else "1 Blender"
            how.say(case)
            with _waiting(folder, nodes, instances) as ways:
                report.add(case, in_turn(ways, how))
        for name, shape in {"64x64": _SMALL, "640x480": _LARGE}.items():
            case = f"2 Blenders that do not wait, {name}"
            how.say(case)
            with _unbounded(folder, shape) as way:
                report.add(case, in_turn({"asyncblend.ray.Cluster": way}, how))
    return report


@contextlib.contextmanager
def _nodes(count: int) -> Iterator[Path]:
    """Start so many nodes, and connect this program to them. Node i has the resource `node-i`."""
    import ray  # needs Ray, as this command alone does
    from ray.cluster_utils import Cluster

    folder = Path(tempfile.mkdtemp(prefix="bench", dir="/tmp" if os.path.isdir("/tmp") else None))  # for sockets
    here = mock.patch.object(
        tempfile, "tempdir", str(folder)
    )  # of this program, too, as the variable is for the others
    with here, mock.patch.dict(os.environ, {**_QUIET, "TMPDIR": str(folder)}):
        head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": str(folder / "ray")}
        rays = Cluster(initialize_head=True, head_node_args=head)
        try:
            ray.init(rays.address, log_to_driver=False)
            for number in range(count):
                rays.add_node(wait=False, num_cpus=64, resources={f"first-{n}": 64 for n in range(number + 1, 9)})
            rays.wait_for_nodes()
            yield folder
        finally:
            ray.shutdown()
            rays.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _waiting(folder: Path, nodes: int, instances: int) -> Iterator[Mapping[str, Way]]:
    ours = _stream(folder, _SMALL, _WAIT, nodes=nodes, instances=instances)
    with ours as way, sync(**_options(folder, _SMALL, _WAIT), instances=1) as one:
        yield {"asyncblend.ray.Cluster": way, "so many times one Blender": _times(instances, one)}


@contextlib.contextmanager
def _unbounded(folder: Path, shape: tuple[int, ...]) -> Iterator[Way]:
    with _stream(folder, shape, 0.0, nodes=1, instances=2) as way:
        yield way


@contextlib.contextmanager
def _stream(folder: Path, shape: tuple[int, ...], wait: float, *, nodes: int, instances: int) -> Iterator[Way]:
    """Stream from the first so many nodes, when all Blenders are there."""
    import ray

    import asyncblend.ray

    each = asyncblend.ray.Cluster(
        num_cpus=1, strategy="SPREAD", resources={f"first-{nodes}": 1}, host=ray.util.get_node_ip_address()
    )
    stream = ab.BlenderStream(
        **_options(folder, shape, wait), instances=instances, queue_size=4 * instances, cluster=each, timeouts=PATIENT
    )
    with stream.sync() as frames:

        def take_one() -> int:
            next(frames)
            return 1

        def way(seconds: float) -> Timed:
            for _ in range(2 * stream.config.queue_size):
                take_one()
            before = _threads()
            found = timed(take_one, seconds)
            return found._replace(busiest=max(after - before.get(of, 0.0) for of, after in _threads().items()))

        while not set(frames.stats().state.values()) <= {"ready", "idle"}:
            take_one()  # Blenders that come up later would take their time from what is measured
        yield way


def _threads() -> dict[int, float]:
    """Return the seconds of processor time that each thread of this process has taken."""
    return {thread.id: thread.user_time + thread.system_time for thread in psutil.Process().threads()}


def _options(folder: Path, shape: tuple[int, ...], wait: float) -> dict[str, Any]:
    own = folder / f"fake-{shape[0]}-{wait}"
    script = written(folder, "none.py", "")
    return {"script": script, "blender": fake_blender(own, values={"image": ("uint8", shape)}, slow=wait)}


def _times(number: int, way: Way) -> Way:
    def scaled(seconds: float) -> Timed:
        timed = way(seconds)
        return timed._replace(done=number * timed.done, cpu=0.0)  # of the others it is not known

    return scaled
