"""Three nodes, one of which is cut off, and dies, while its Blenders work for a stream on the head."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import asyncblend as ab
from asyncblend.testing import fake_blender

from .conftest import until
from .netns import Node, RayNetwork, ray_network, unavailable

pytest.importorskip("ray", reason='pip install ".[ray]"')
pytestmark = [pytest.mark.slow, pytest.mark.exhaustive, pytest.mark.skipif(bool(unavailable()), reason=unavailable())]

BEAT = 4.0
BODY = """
import time
def sample(task):
    time.sleep(0.1)
    return {"x": task.rng.integers(0, 255, (16, 16)).astype("uint8")}
"""
DRIVER = f"""
import asyncio, hashlib, logging, sys, threading, time
import asyncblend as ab, asyncblend.ray, ray

ray.init(log_to_driver=False)
logging.basicConfig(level="WARNING")

told = threading.Event()
threading.Thread(target=lambda: sys.stdin.read() or told.set(), daemon=True).start()

async def main():
    stream = ab.BlenderStream(
        script=sys.argv[1], blender=sys.argv[2], instances=2, ordered=True, queue_size=4,
        timeouts=ab.Timeouts(beat={BEAT}, stop=1.0), cluster=asyncblend.ray.Cluster(strategy="SPREAD"),
    )
    async with stream:
        async for frame in stream:
            both = set(stream.stats().state.values()) <= {{"ready", "idle"}}
            print("frame", frame.index, hashlib.sha256(frame["x"].tobytes()).hexdigest(), int(both), flush=True)
            if told.is_set():
                break
        began = time.monotonic()
    print("closed in", time.monotonic() - began, stream.stats().restarts)

asyncio.run(main())
"""


class Watched:
    """A stream on the head, frame by frame."""

    def __init__(self, cluster: RayNetwork, folder: Path, script: Path) -> None:
        self.program = folder / "driver.py"
        self.program.write_text(DRIVER)
        self.process = cluster.drive(self.program, script, fake_blender(folder / "fake"))
        self.frames: dict[int, str] = {}
        self.last = ""

    def until(self, condition: Callable[[bool], bool]) -> None:
        """Consume frames, until this is so or there are no more; it is told whether both Blenders serve."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("closed"):
                self.last = line
                return
            if not line.startswith("frame"):
                continue  # Ray's own
            _, index, digest, both = line.split()
            assert int(index) == len(self.frames)
            self.frames[int(index)] = digest
            if condition(both == "1"):
                return
        raise AssertionError(self.process.stderr and self.process.stderr.read())

    def finish(self) -> float:
        """Have it end, and consume the rest. Return how many seconds the stream took to close."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.stdin = None  # as `communicate` would write to it
        self.until(lambda both: False)
        _, errors = self.process.communicate(timeout=100)
        assert self.process.returncode == 0, errors
        return float(self.last.split()[2])


def blenders(node: Node) -> list[psutil.Process]:
    """Return the Blenders on a node."""
    return node.processes("instance=")


def folders(node: Node) -> list[Path]:
    """Return asyncblend's folders on a node."""
    return [path for path in node.folder.iterdir() if path.name.startswith("asyncblend-")]


def expected(script: Path, folder: Path, length: int) -> dict[int, str]:
    """Return what one machine makes."""
    quick = folder / "quick.py"
    quick.write_text(script.read_text().replace("0.1", "0"))
    with ab.BlenderStream(script=quick, blender=fake_blender(folder / "own"), length=length).sync() as frames:
        return {frame.index: hashlib.sha256(frame["x"].tobytes()).hexdigest() for frame in frames}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["cut", "raylet"])
def test_a_node_is_lost(how: str, tmp_path: Path, write_script: Callable[..., Path]) -> None:
    """Its Blender ends within the limits, the stream goes on, and the instance is placed on the third node.

    A node that is cut off is mended when its Blender has ended: nothing of it comes back.
    """
    script = write_script(BODY)
    with ray_network({"num_cpus": 0}, *[{"num_cpus": 1}] * 3) as cluster:
        stream = Watched(cluster, tmp_path, script)
        stream.until(lambda both: both and len(stream.frames) > 20)
        working = [node for node in cluster.nodes if blenders(node)]
        assert len(working) == 2
        spare = next(node for node in cluster.nodes[1:] if node not in working)
        lost = working[0]
        if how == "cut":
            lost.cut()
        else:
            for raylet in lost.processes("raylet/raylet"):
                raylet.kill()
        began = time.monotonic()
        while blenders(lost):
            stream.until(lambda both: True)
        ended = time.monotonic() - began
        stream.until(lambda both: bool(blenders(spare)))
        if how == "cut":
            lost.mend()
        closing = stream.finish()
        assert stream.frames == expected(script, tmp_path, len(stream.frames))
        assert stream.last.split()[3] == "1"
        until(lambda: not any(map(blenders, cluster.nodes)) and not any(map(folders, cluster.nodes)))
    print(f"{how}: the Blender ended after {ended:.1f} s; the stream closed in {closing:.1f} s")
    assert ended < BEAT + 10


@pytest.mark.timeout(600)
def test_the_host_is_cut_off(tmp_path: Path, write_script: Callable[..., Path]) -> None:
    """Every Blender on the other nodes ends."""
    with ray_network({"num_cpus": 0}, *[{"num_cpus": 1}] * 2) as cluster:
        stream = Watched(cluster, tmp_path, write_script(BODY))
        stream.until(lambda both: both)
        cluster.nodes[0].cut()
        began = time.monotonic()
        until(lambda: not any(map(blenders, cluster.nodes)))
        assert time.monotonic() - began < BEAT + 10
    # The end of the network ended the stream's program, too.
    stream.process.communicate()
