"""BlenderStream(cluster=Cluster()): Blenders on the nodes of a cluster, and everything else as on one machine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import asyncblend as ab
from asyncblend.errors import BlenderNotFound, ConfigError, InstanceExited
from asyncblend.testing import fake_blender
from tests.conftest import Kind

from .conftest import LIMIT, Cluster, until

pytest.importorskip("ray.data", reason='pip install ".[ray]"')
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]

SOON = ab.RestartPolicy(backoff=0.0, max_restarts=20)
NOISE = """
def sample(task):
    return {"image": task.rng.integers(0, 255, (24, 32, 3)).astype("uint8"), "level": task.params.get("level")}
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that renders nothing, and two nodes."""
    made = Cluster({"num_cpus": 2}, {"num_cpus": 2})
    yield made
    made.end()


@pytest.fixture
def config(tmp_path: Path, write_script: Callable[..., Path]) -> Callable[..., ab.StreamConfig]:
    """Make a config of two fakes on the cluster: `config(body, **options)`; `on` are options of its Cluster."""

    def config(body: str = NOISE, *, on: dict[str, Any] | None = None, **options: Any) -> ab.StreamConfig:
        import asyncblend.ray

        fake = fake_blender(tmp_path / "fake")
        elsewhere = asyncblend.ray.Cluster(**{"strategy": "SPREAD", **(on or {})})
        own = {"instances": 2, "seed": 5, "ordered": True, "restart": SOON, "cluster": elsewhere, **options}
        return ab.StreamConfig(**{"script": write_script(body), "blender": fake, **own})

    return config


def images(config: ab.StreamConfig, seen: Callable[[ab.Frame], None] = lambda _: None, **options: Any) -> list[bytes]:
    """Consume a finite, ordered stream."""

    async def main() -> list[bytes]:
        found = []
        async with ab.BlenderStream(config, **options) as stream:
            async for frame in stream:
                seen(frame)
                found.append(frame["image"].tobytes())
        return found

    return asyncio.run(main())


def test_the_same_frames(cluster: Cluster, config: Callable[..., ab.StreamConfig]) -> None:
    """They are those of one machine, from both nodes; nothing stays behind."""
    own = config(length=60)

    async def main() -> list[bytes]:
        async with ab.BlenderStream(own) as stream, asyncio.timeout(LIMIT):
            while len(cluster.keepers()) < 2:  # the first Blender alone might make all
                await asyncio.sleep(0.05)
            return [frame["image"].tobytes() async for frame in stream]

    assert asyncio.run(main()) == images(own, cluster=None)
    until(lambda: not cluster.blenders() and not cluster.folders())


def test_everything_else_is_as_on_one_machine(cluster: Cluster, config: Callable[..., ab.StreamConfig]) -> None:
    """A closed loop, single samples and episodes."""
    body = """
def sample(task):
    total = task.params.get("level", 0)
    if not task.params.get("episode"):
        return {"total": total}
    def steps():
        nonlocal total
        while True:
            params = yield {"total": total}
            total += params["add"]
    return steps()
"""

    async def main() -> None:
        drawn = iter({"level": level} for level in range(100))
        async with ab.BlenderStream(config(body, length=10, params=drawn)) as stream:
            assert [(frame["total"], frame.params) async for frame in stream] == [
                (level, {"level": level}) for level in range(10)
            ]
            assert (await stream.render(3, {"level": 7}))["total"] == 7
            async with await stream.episode(1, {"episode": True, "level": 5}) as episode:
                assert [(await episode.step({"add": 2}))["total"] for _ in range(3)] == [7, 9, 11]

    asyncio.run(main())


@pytest.mark.timeout(600)
@pytest.mark.exhaustive
def test_a_blender_a_keeper_and_a_node_die(cluster: Cluster, config: Callable[..., ab.StreamConfig]) -> None:
    """Each in the middle. Every sample comes once, with its own pixels; the Blender of the node is placed on another."""
    body = "import time" + NOISE.replace("return", "time.sleep(0.05); return")
    node = cluster.add(num_cpus=2, resources={"third": 1})
    here = {blender.pid for blender in cluster.blenders()}
    own = config(body, length=120, instances=3, queue_size=6, timeouts=ab.Timeouts(stop=0.5))

    def seen(frame: ab.Frame) -> None:
        blenders = [blender for blender in cluster.blenders() if blender.pid not in here]
        if frame.index == 10:
            blenders[0].kill()
        elif frame.index == 40:
            os.kill(blenders[-1].ppid(), signal.SIGKILL)
        elif frame.index == 70:
            cluster.remove(node)

    assert images(own, seen) == images(own, cluster=None, instances=2)
    until(lambda: not cluster.blenders() and not cluster.folders())


@pytest.mark.exhaustive
def test_a_warm_fleet_on_several_nodes(
    cluster: Cluster, config: Callable[..., ab.StreamConfig], tmp_path: Path
) -> None:
    """Its Blenders are where the cluster has room; programs that attach have the samples of one machine.

    What the script reads travels to the fleet, and from there to the nodes.
    """
    import asyncblend.ray

    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "level.txt").write_text("7")
    read = "import pathlib, sys\nLEVEL = int(pathlib.Path(sys.argv[1], 'level.txt').read_text())\n"
    body = read + NOISE.replace("return {", "assert LEVEL == 7; return {'where': sys.argv[1], ")
    files = {"script_args": [str(tmp_path / "elsewhere")], "on": {"files": [tmp_path / "elsewhere"]}}
    asyncblend.ray.start(config(body, **files), name="wide")
    try:
        until(lambda: len(cluster.keepers()) == 2)  # it is ready with the first one
        with ab.BlenderStream(fleet="wide", length=40, ordered=True).sync() as frames:
            found = [frame["image"].tobytes() for frame in frames if "/asyncblend-" in frame["where"]]
    finally:
        asyncblend.ray.stop("wide")
    assert found == images(config(body, length=40, **files), cluster=None)
    until(lambda: not cluster.blenders() and not cluster.folders())


DRIVER = """
import asyncio, sys
import asyncblend as ab, asyncblend.ray

async def main():
    elsewhere = asyncblend.ray.Cluster(address=sys.argv[1], strategy="SPREAD")
    async with ab.BlenderStream(script=sys.argv[2], blender=sys.argv[3], instances=2, cluster=elsewhere) as stream:
        async for frame in stream:
            if set(stream.stats().state.values()) <= {"ready", "idle"}:
                print("streaming", flush=True)

asyncio.run(main())
"""


@pytest.mark.exhaustive
def test_the_host_is_killed(cluster: Cluster, config: Callable[..., ab.StreamConfig], tmp_path: Path) -> None:
    """No Blender survives it, on any node, and no folder stays."""
    program = tmp_path / "driver.py"
    program.write_text(DRIVER)
    own = config()
    command = [sys.executable, str(program), cluster.address, str(own.script), str(own.blender)]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    host = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    try:
        assert host.stdout is not None
        assert host.stdout.readline() == b"streaming\n"
        assert len(cluster.blenders()) == 2
    finally:
        host.kill()
        host.communicate()
    until(lambda: not cluster.blenders() and not cluster.folders())


@pytest.mark.exhaustive
def test_a_cluster_that_is_full(
    cluster: Cluster, config: Callable[..., ab.StreamConfig], caplog: pytest.LogCaptureFixture
) -> None:
    """It is said what is wanted and what there is. The wait does not count as time to start; a new node ends it."""
    own = config(length=4, instances=1, on={"resources": {"scarce": 1}}, timeouts=ab.Timeouts(start=10.0))

    async def main() -> list[ab.Frame]:
        async with ab.BlenderStream(own) as stream:
            return [frame async for frame in stream]

    async def with_a_node_later() -> list[ab.Frame]:
        frames = asyncio.ensure_future(main())
        async with asyncio.timeout(100):
            while "Waiting for" not in caplog.text:
                assert not frames.done()
                await asyncio.sleep(0.1)
        node = cluster.add(num_cpus=1, resources={"scarce": 1})
        try:
            return await frames
        finally:
            cluster.remove(node)

    with caplog.at_level(logging.WARNING, "asyncblend"):
        assert len(asyncio.run(with_a_node_later())) == 4
    assert re.search(r"Waiting for 1 x \(1 CPU, 1 scarce\), \d+ s so far; the cluster has nodes: ", caplog.text)
    assert "2 x (2 CPU, 0 scarce), 1 x (0 CPU, 0 scarce), with room for 0 such Blenders in all" in caplog.text


def test_a_wait_that_is_given_up(cluster: Cluster, config: Callable[..., ab.StreamConfig]) -> None:
    """Closing a stream that waits for a node leaves nothing, and takes no time."""

    async def main() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                async with ab.BlenderStream(config(instances=1, on={"resources": {"nowhere": 1}})):
                    pass

    asyncio.run(main())
    until(lambda: not cluster.processes("Keeper"))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"script": "gone.py"}, ConfigError, "'.*gone.py' cannot be read, so it cannot travel"),
        ({"blender": "/opt/gone/blender"}, BlenderNotFound, "/opt/gone/blender"),
        ({"body": "raise RuntimeError('broken script')", "instances": 1}, InstanceExited, "broken script"),
        ({"on": {"address": "127.0.0.1:1"}}, ConfigError, "connected to the cluster at .* already, and cannot join"),
    ],
    ids=["no-script", "no-blender-on-the-node", "a-script-that-raises", "connected-already"],
)
def test_errors(
    cluster: Cluster, config: Callable[..., ab.StreamConfig], options: dict[str, Any], error: type[Exception], text: str
) -> None:
    """They are those of one machine."""
    with pytest.raises(error, match=text):
        images(config(**{"length": 1, **options}))
    until(lambda: not cluster.blenders())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_cpus": -1}, "num_cpus must be a number, zero or more; got -1"),
        ({"num_cpus": 0}, "must need something of its node: give num_cpus"),
        ({"num_cpus": 0.00001}, "num_cpus must be zero or at least 0.0001, as Ray counts"),
        ({"host": 5}, "host must be the one address"),
        ({"host": "0.0.0.0"}, "host must be the one address"),
        ({"port": 0}, "port must be a whole number, at least 1"),
        ({"port": 65536}, "port must be at most 65535; got 65536"),
        ({"address": 6379}, "address must be that of a cluster"),
        ({"mixed_blenders": "no"}, "mixed_blenders must be True or False; got 'no'"),
        ({"labels": ["a"]}, r"labels must be a mapping with names; got \['a'\]"),
        ({"resources": [1]}, r"resources must be a mapping with names; got \[1\]"),
        ({"resources": {1: 1}}, "resources must be a mapping with names"),
        ({"resources": {"GPU": 1}}, "resources must not have 'GPU'; give num_gpus instead"),
        ({"files": [3]}, "each of files must be a path; got 3"),
        ({"labels": {"a": 3}}, "labels must be strings"),
        ({"labels": {"ray.io/node-id": "x"}}, "'ray.io/node-id' is not among them"),
        ({"files": "textures"}, "files must be a list of paths; got 'textures'"),
        ({"num_gpus": 1.5}, "num_gpus must be a whole number where it is more than 1"),
        ({"resources": {"rack": "a"}}, "rack must be a number"),
        ({"strategy": "PACKED"}, "strategy must be 'DEFAULT' or 'SPREAD'; got 'PACKED'"),
        ({"cpus": 1}, "Cluster has no option 'cpus'; did you mean 'num_cpus'"),
    ],
)
def test_wrong_options(options: dict[str, Any], text: str) -> None:
    """They are named when a Cluster is made."""
    import asyncblend.ray

    with pytest.raises(ConfigError, match=text):
        asyncblend.ray.Cluster(**options)


@pytest.mark.exhaustive
def test_the_only_node_with_room_is_used_again(
    cluster: Cluster, config: Callable[..., ab.StreamConfig], caplog: pytest.LogCaptureFixture
) -> None:
    """A keeper that is killed says nothing of its node."""
    node = cluster.add(num_cpus=1, resources={"own": 1})
    body = "import time" + NOISE.replace("return", "time.sleep(0.02); return")
    own = config(body, length=60, instances=1, queue_size=2, on={"resources": {"own": 1}})

    def seen(frame: ab.Frame) -> None:
        if frame.index == 20:
            os.kill(cluster.blenders()[0].ppid(), signal.SIGKILL)

    assert len(set(images(own, seen))) == 60
    assert "does not answer" not in caplog.text
    cluster.remove(node)


@pytest.mark.timeout(300)
@pytest.mark.exhaustive
def test_a_keeper_that_dies_before_any_blender_is_ready(
    cluster: Cluster, config: Callable[..., ab.StreamConfig]
) -> None:
    """It says nothing of the script, so another one is started."""
    body = "import os, time\nwhile not os.path.exists(r'{}'): time.sleep(0.05)\n" + NOISE
    own = config(body, length=4, instances=1)
    go = Path(own.script).parent / "go"
    Path(own.script).write_text(Path(own.script).read_text().replace("{}", str(go)))

    async def main() -> None:
        async def kill() -> None:
            while not cluster.blenders():
                await asyncio.sleep(0.05)
            os.kill(cluster.blenders()[0].ppid(), signal.SIGKILL)
            go.touch()

        killing = asyncio.ensure_future(kill())
        async with ab.BlenderStream(own) as stream:
            await killing
            assert len([frame async for frame in stream]) == 4
            assert stream.stats().restarts == 1

    asyncio.run(main())


@pytest.mark.exhaustive
def test_a_program_that_leaves_ray(config: Callable[..., ab.StreamConfig], tmp_path: Path) -> None:
    """`ray.shutdown` under a stream ends it with an error that says so, and starts no other Ray."""
    own = config()
    program = tmp_path / "leaves.py"
    program.write_text(
        f"""
import asyncio, ray
import asyncblend as ab, asyncblend.ray

async def main():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    cluster = asyncblend.ray.Cluster()
    async with ab.BlenderStream(
        script={str(own.script)!r}, blender={str(own.blender)!r}, instances=1, cluster=cluster,
        timeouts=ab.Timeouts(beat=3.0),
    ) as stream:
        async for frame in stream:
            if frame.index == 5:
                ray.shutdown()

try:
    asyncio.run(main())
except ab.AsyncblendError as error:
    print("told:", error)
print("Ray:", ray.is_initialized())
"""
    )
    with tempfile.TemporaryDirectory(prefix="abr", dir="/tmp") as short:
        environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": short}
        ran = subprocess.run(
            [sys.executable, str(program)], capture_output=True, text=True, timeout=100, env=environment, check=False
        )
    assert ran.returncode == 0, ran.stderr
    assert "this program has left Ray" in ran.stdout
    assert ran.stdout.endswith("Ray: False\n")
    assert "Exception in thread" not in ran.stderr


@pytest.mark.exhaustive
def test_a_head_that_is_slow_holds_up_no_frame(cluster: Cluster, config: Callable[..., ab.StreamConfig]) -> None:
    """While the head answers nothing, a Blender dies; the other one goes on all the time."""
    (head,) = cluster.processes("gcs_server")
    own = config("import time" + NOISE.replace("return", "time.sleep(0.05); return"), ordered=False)

    async def main() -> None:
        async with ab.BlenderStream(own) as stream:
            frames = aiter(stream)
            while len({(await anext(frames)).instance for _ in range(10)}) < 2:
                pass
            head.suspend()
            try:
                cluster.blenders()[0].kill()
                async with asyncio.timeout(100):
                    for _ in range(100):
                        await anext(frames)
                assert stream.stats().restarts == 1
                assert head.status() == psutil.STATUS_STOPPED
            finally:
                head.resume()

    asyncio.run(main())


@pytest.mark.exhaustive
def test_a_dataset_and_its_workers(cluster: Cluster, config: Callable[..., ab.StreamConfig]) -> None:
    """A dataset streams from the cluster; workers of a DataLoader would each be a host of their own, and are refused."""
    from torch.utils.data import DataLoader

    dataset = ab.BlenderDataset(config(length=6))
    assert [item["index"] for item in dataset] == list(range(6))
    dataset.close()
    with pytest.raises(ConfigError, match="num_workers=0"):
        list(DataLoader(dataset, batch_size=None, num_workers=1))


@pytest.mark.exhaustive
def test_logs_are_kept_here(cluster: Cluster, config: Callable[..., ab.StreamConfig], tmp_path: Path) -> None:
    """What a Blender wrote on its node is in the folder on this machine, of each of its lives."""
    body = NOISE.replace("return", "print('sample', task.index); return")
    images(config(body, length=4, instances=1, logs=tmp_path / "logs", max_frames_per_instance=2))
    text = (tmp_path / "logs" / "instance-0.log").read_text()
    assert text.count("--- Blender 0, start") == 2
    assert all(f"sample {index}\n" in text for index in range(4))


def test_a_config_file(cluster: Cluster, config: Callable[..., ab.StreamConfig], tmp_path: Path) -> None:
    """A table `cluster` has the fields of Cluster."""
    import asyncblend.ray
    from asyncblend.cli.config_file import load_config

    file = tmp_path / "cubes.toml"
    file.write_text('script = "cube.py"\n[cluster]\nnum_cpus = 2\nfiles = ["textures"]\nresources = {rack = 1}\n')
    wanted = asyncblend.ray.Cluster(num_cpus=2, files=[tmp_path / "textures"], resources={"rack": 1})
    assert load_config(file).cluster == wanted


@pytest.mark.every_kind
@pytest.mark.timeout(600)
@pytest.mark.exhaustive
def test_real_blenders(real: Kind, cluster: Cluster, config: Callable[..., ab.StreamConfig]) -> None:
    """A rendered stream is that of one machine, to the bit, though its script travelled."""
    from asyncblend.scripts import script

    own = config(script=script("cube.py"), blender=real.blender, length=4, instances=1, threads=1)
    found: list[bytes] = images(own)
    assert found == images(own, cluster=None)
    assert len(set(found)) == 4
