"""A fleet that stays warm: any number of programs share its Blenders, each as if they were its own, whatever dies."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import asyncblend as ab
from asyncblend.cli import app
from asyncblend.recording import Recording
from asyncblend.testing import fake_blender

from .conftest import LIMIT, Cluster, until

pytest.importorskip("ray.data", reason='pip install ".[ray]"')
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]

SCRIPT = """
import pathlib, time
HERE = pathlib.Path(r"{folder}")

def values(task, step):
    return {{
        "image": task.rng.integers(0, 256, (24, 32, 3), np.uint8),
        "boxes": [task.rng.random((step + 1, 4))],
        "made_by": task.instance,
        "level": task.params.get("level", 0),
    }}

def episode(task):
    for step in range(5):
        made = values(task, step)
        del made["made_by"]  # another Blender may have to make the same again
        yield made

def sample(task):
    while task.params.get("wait") and not (HERE / task.params["wait"]).exists():
        time.sleep(0.005)
    if task.params.get("wait") == "raise":
        raise ValueError("no light")
    return episode(task) if task.index >= 1000 else values(task, 0)
"""
"""Samples wait for a file, if their params name one. From 1000 on they are episodes of five frames."""

WAITER = """
import asyncio, sys
import asyncblend as ab

async def main():
    async with ab.BlenderStream(fleet="cubes", params={"wait": "never"}) as stream:
        episode = stream.frames([1000], params={})
        await anext(episode)
        waiting = asyncio.create_task(anext(stream))
        while stream.stats().rendering < 4:  # the second place of the two has two leases, or holds the episode
            await asyncio.sleep(0.01)
        print("attached", flush=True)
        await waiting

asyncio.run(main())
"""
"""A program that holds an episode, and that waits for samples which never come."""

LOADER = """
import json, sys
import asyncblend as ab
from torch.utils.data import DataLoader

if __name__ == "__main__":
    dataset = ab.BlenderDataset(fleet="cubes", length=20, start=100)
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context=sys.argv[1], timeout=100)
    print(json.dumps([(int(item["index"]), int(item["image"].sum())) for item in loader]))
"""

RANK = """
import json, sys
import torch.distributed as dist
import asyncblend as ab

rank, meet = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=2)
dataset = ab.BlenderDataset(fleet="cubes", length=24, batch_size=4)
batches = [batch["index"].tolist() for batch in dataset]
assert len(batches) == len(dataset)
everybody = [None, None]
dist.all_gather_object(everybody, batches)
print(json.dumps(everybody))
dataset.close()
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that renders nothing, and a node. Programs that this one starts find it."""
    made = Cluster({"num_cpus": 2})
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_ADDRESS", made.address)
    yield made
    patch.undo()
    made.end()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that samples look for files in."""
    return tmp_path_factory.mktemp("warm")


@pytest.fixture(scope="module")
def config(folder: Path) -> ab.StreamConfig:
    """A script for two fake Blenders."""
    script = folder / "cubes.py"
    head = "import numpy as np\nfrom asyncblend import blender as bl\n"
    script.write_text(head + SCRIPT.format(folder=folder) + "\nbl.serve(sample)\n")
    return ab.StreamConfig(script=script, blender=fake_blender(folder / "fake"), seed=3, instances=2)


@pytest.fixture
def cubes(cluster: Cluster, config: ab.StreamConfig) -> Iterator[str]:
    """The name of a fleet that runs."""
    import asyncblend.ray

    if "cubes" not in [one.name for one in asyncblend.ray.fleets()]:
        asyncblend.ray.start(config, name="cubes", num_cpus=0)
    yield "cubes"
    until(lambda: not any(one.programs for one in asyncblend.ray.fleets()), lambda: "a program is still attached")


@pytest.fixture(scope="module", autouse=True)
def none_left(cluster: Cluster) -> Iterator[None]:
    """Stop the fleets at last."""
    yield
    import asyncblend.ray

    for fleet in asyncblend.ray.fleets():
        asyncblend.ray.stop(fleet.name)
    until(lambda: not cluster.blenders())


def program(code: str, *args: str, **options: Any) -> subprocess.Popen[str]:
    """Start a program of its own."""
    return subprocess.Popen([sys.executable, "-c", code, *args], stdout=subprocess.PIPE, text=True, **options)


def printed(process: subprocess.Popen[str]) -> str:
    """Return what a program printed, when it has ended well."""
    with process:
        out, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0
    return out


def frames_of(config: ab.StreamConfig | None = None, **options: Any) -> dict[tuple[int, int], ab.Frame]:
    """Return the frames of a stream by index and step; none comes twice."""
    found: dict[tuple[int, int], ab.Frame] = {}
    with ab.BlenderStream(config, **options).sync() as stream:
        for frame in stream:
            assert (frame.index, frame.step) not in found
            assert frame.get("made_by", frame.instance) == frame.instance
            found[frame.index, frame.step] = frame
    return found


def assert_same(found: dict[tuple[int, int], ab.Frame], wanted: dict[tuple[int, int], ab.Frame]) -> None:
    """Compare all but which Blender made it."""
    assert found.keys() == wanted.keys()
    for name, frame in wanted.items():
        np.testing.assert_array_equal(found[name]["image"], frame["image"], strict=True)
        np.testing.assert_array_equal(found[name]["boxes"][0], frame["boxes"][0], strict=True)
        assert (found[name].last, found[name].params) == (frame.last, frame.params)


def test_programs_share_it_and_have_the_samples_of_their_own_fleet(cubes: str, config: ab.StreamConfig) -> None:
    """Three at once, one of them in order: each has its indices once, with the pixels of Blenders of its own."""
    own = frames_of(config, length=40)
    results: list[dict[tuple[int, int], ab.Frame]] = []
    each = [{}, {"ordered": True, "queue_size": 3}, {"script": config.script, "seed": 3, "blender": config.blender}]
    threads = [
        threading.Thread(target=lambda more=more: results.append(frames_of(fleet=cubes, length=40, **more)))
        for more in each
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert len(results) == 3
    for found in results:
        assert_same(found, own)
    assert any(list(found) == sorted(found) for found in results)
    frame = results[0][0, 0]
    assert not frame["image"].flags.writeable
    assert not frame["boxes"][0].flags.writeable
    assert frame.spent is not None
    assert frame.spent.sample > 0
    with ab.BlenderStream(fleet=cubes, length=4).sync() as stream:
        assert len(list(stream)) == 4
        stats = stream.stats()
        assert stats.seconds_sample.mean > 0
        assert stats.bytes > 0
        assert stats.instance_restarts == {0: 0, 1: 0}


def test_episodes_come_whole(cubes: str, config: ab.StreamConfig) -> None:
    """Their frames are those of a fleet of one's own, also where only two may be in memory; and so are clips."""
    wanted = frames_of(config, start=1000, length=6)
    assert len(wanted) == 30
    assert_same(frames_of(fleet=cubes, start=1000, length=6, queue_size=2), wanted)
    with ab.BlenderStream(fleet=cubes, start=1000, length=6).sync() as stream:
        clips = list(stream.frames().clips(2, 2))
        assert sorted(clip.index for clip in clips) == list(range(1000, 1006))
        assert clips[0]["image"].shape == (2, 24, 32, 3)


def test_a_program_that_stands_still_holds_up_no_other(cubes: str, config: ab.StreamConfig) -> None:
    """It has episodes open in both Blenders, and takes no more of their frames. Later it goes on where it was."""
    with ab.BlenderStream(fleet=cubes, start=1000, length=4, queue_size=2).sync() as slow:
        found = {(frame.index, frame.step): frame for frame in [next(slow)]}
        assert len(frames_of(fleet=cubes, length=20)) == 20
        found |= {(frame.index, frame.step): frame for frame in slow}
    assert_same(found, frames_of(config, start=1000, length=4))


async def test_a_stream_goes_on_in_the_middle_of_an_episode(cubes: str, config: ab.StreamConfig) -> None:
    """A state of one program is loaded by another; of a fleet with another seed it is refused."""
    wanted = frames_of(config, start=1000, length=3)
    async with ab.BlenderStream(fleet=cubes, start=1000, length=3, ordered=True) as stream:
        found = {(frame.index, frame.step): frame for frame in [await anext(stream) for _ in range(7)]}
        state = json.loads(json.dumps(stream.state_dict()))
        assert state["seed"] == 3
    resumed = ab.BlenderStream(fleet=cubes, start=1000, length=3, ordered=True)
    resumed.load_state_dict(state)
    async with resumed:
        found |= {(frame.index, frame.step): frame async for frame in resumed}
    assert_same(found, wanted)
    other = ab.BlenderStream(fleet=cubes, start=1000, length=3)
    other.load_state_dict({**state, "seed": 4})
    with pytest.raises(ab.ConfigError, match="the saved state has seed=4, this stream has 3"):
        await other.__aenter__()


async def test_params_are_those_of_the_moment_and_flush_takes_them_back(cubes: str, folder: Path) -> None:
    """They are drawn when a place is free; what no place has begun gets new ones; `render` goes before it."""
    level = 1
    (folder / "now").unlink(missing_ok=True)

    def params(index: int) -> dict[str, Any]:
        return {"level": level, "wait": "now"}

    async with ab.BlenderStream(fleet=cubes, params=params, length=16, ordered=True) as stream:
        stream.frames([])  # another pass, which is over at once
        first = asyncio.create_task(anext(stream))
        while stream.stats().rendering < 4:  # two places hold two leases each
            await asyncio.sleep(0.01)
        level = 2
        assert stream.flush() == 2
        (folder / "now").touch()
        levels = [(await first)["level"]] + [frame["level"] async for frame in stream]
        assert sorted(levels) == [1] * 2 + [2] * 14
        assert (await stream.render(7, {"level": 5}))["level"] == 5
        assert stream.stats().state.keys() == {0, 1}
        assert stream.stats().delivered == 17


async def test_a_sample_that_raises_is_its_programs_alone(cubes: str, folder: Path) -> None:
    """It has the traceback from inside Blender, and the others go on."""
    (folder / "raise").touch()
    async with ab.BlenderStream(fleet=cubes, length=8) as other:
        with pytest.raises(ab.SampleError, match=r"sample 0 failed in Blender \d: ValueError: no light") as caught:
            async with ab.BlenderStream(fleet=cubes, length=1, params={"wait": "raise"}) as stream:
                await anext(stream)
        assert "sample(task)" in caught.value.traceback or "in sample" in caught.value.traceback
        assert len([frame async for frame in other]) == 8
    skipping = ab.BlenderStream(fleet=cubes, length=3, params={"wait": "raise"}, on_bad_sample="skip")
    async with skipping:
        assert [frame async for frame in skipping] == []
        assert skipping.stats().skipped == 3


@pytest.mark.exhaustive
def test_a_program_that_is_killed_leaves_nothing_behind(cubes: str, cluster: Cluster) -> None:
    """Its leases and its open episode are given up, and another program has both Blenders meanwhile and afterwards."""
    import asyncblend.ray

    with program(WAITER) as killed:
        assert killed.stdout is not None
        try:
            assert killed.stdout.readline() == "attached\n"
            (before,) = asyncblend.ray.fleets()
            assert before.programs == 1
        finally:
            killed.send_signal(signal.SIGKILL)
    until(lambda: asyncblend.ray.fleets()[0].programs == 0)
    # One sample of that program waits for ever in each Blender: only a new one can make others.
    for blender in cluster.blenders():
        blender.kill()
    assert len(frames_of(fleet=cubes, length=20)) == 20


def test_a_blender_that_is_killed_loses_nothing(cubes: str, cluster: Cluster, config: ab.StreamConfig) -> None:
    """The fleet makes its samples again, and the program learns of it only from the statistics."""
    wanted = frames_of(config, length=30)
    with ab.BlenderStream(fleet=cubes, length=30, ordered=True).sync() as stream:
        found = {(frame.index, frame.step): frame for frame in [next(stream) for _ in range(3)]}
        restarts = stream.stats().restarts
        cluster.blenders()[0].kill()
        found |= {(frame.index, frame.step): frame for frame in stream}
        assert_same(found, wanted)
        until(lambda: stream.stats().restarts > restarts)


def test_a_recording_is_that_of_blenders_of_ones_own(cubes: str, config: ab.StreamConfig, tmp_path: Path) -> None:
    """A fleet can go on with it, because it knows what its samples are made of."""
    own = dataclasses.replace(config, length=8)
    assert asyncio.run(recorded(ab.BlenderStream(own), tmp_path / "out")) == 8
    assert asyncio.run(recorded(ab.BlenderStream(fleet=cubes, length=12), tmp_path / "out")) == 12
    assert Recording(tmp_path / "out").indices.tolist() == list(range(12))


async def recorded(stream: ab.BlenderStream, out: Path) -> int:
    """Record a stream to its end."""
    return await stream.record(out)


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.exhaustive
def test_workers_have_a_share_each(cubes: str, config: ab.StreamConfig, tmp_path: Path, start: str) -> None:
    """Two workers of a DataLoader, in a program that is not connected to Ray itself."""
    (tmp_path / "loader.py").write_text(LOADER)
    process = subprocess.Popen([sys.executable, tmp_path / "loader.py", start], stdout=subprocess.PIPE, text=True)
    wanted = frames_of(config, start=100, length=20)
    assert sorted(map(tuple, json.loads(printed(process)))) == [
        (index, int(frame["image"].sum())) for (index, _), frame in sorted(wanted.items())
    ]


def test_a_forked_copy_of_a_connected_program_is_refused(cubes: str) -> None:
    """Ray would wait for ever there. The message says what to do."""
    from torch.utils.data import DataLoader

    dataset = ab.BlenderDataset(fleet=cubes, length=4)
    loader: Any = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="fork", timeout=LIMIT)
    items: Any = iter(loader)
    with pytest.raises(ab.ForkedProcessError, match='multiprocessing_context="spawn"'):
        next(items)
    items._shutdown_workers()


@pytest.mark.exhaustive
def test_ranks_have_equally_many_batches_and_no_index_twice(cubes: str, tmp_path: Path) -> None:
    """Two ranks of torch.distributed."""
    ranks = [program(RANK, str(rank), str(tmp_path / "meet")) for rank in range(2)]
    first, second = map(json.loads, map(printed, ranks))
    assert first == second
    assert [[len(batch) for batch in batches] for batches in first] == [[4, 4, 4], [4, 4, 4]]
    assert sorted(index for batches in first for batch in batches for index in batch) == list(range(24))


def test_a_dataset_goes_on_and_accesses_any_sample(cubes: str, config: ab.StreamConfig) -> None:
    """Its state says what the fleet's samples are made of, and is checked against it."""
    with ab.BlenderMapDataset(fleet=cubes, length=10) as by_index:
        last = by_index[-1]
    dataset = ab.BlenderDataset(fleet=cubes, length=10, ordered=True)
    items = iter(dataset)
    found = [next(items)["index"] for _ in range(4)]
    state = json.loads(json.dumps(dataset.state_dict()))
    assert state["of"].items() >= {"seed": 3, "script": "cubes.py"}.items()
    dataset.close()
    resumed = ab.BlenderDataset(fleet=cubes, length=10, ordered=True)
    resumed.load_state_dict(state)
    rest = list(resumed)
    assert found + [item["index"] for item in rest] == list(range(10))
    assert (rest[-1]["image"] == last["image"]).all()
    with pytest.raises(ab.ConfigError, match="has seed=4, and this BlenderDataset has 3"):
        resumed.load_state_dict({**state, "of": {**state["of"], "seed": 4}})
    resumed.close()
    own = ab.BlenderDataset(config, length=10, ordered=True)
    own.load_state_dict(state)  # the same samples


@pytest.mark.exhaustive
def test_what_is_wrong_is_said(cubes: str, config: ab.StreamConfig, tmp_path: Path) -> None:
    """Names and values; and nothing is started."""
    import asyncblend.ray

    def attach(config: ab.StreamConfig | None = None, **options: Any) -> None:
        with ab.BlenderStream(config, **options).sync():
            pass

    with pytest.raises(
        ab.ConfigError, match="there is no fleet 'cones'; in this cluster there are: 'cubes'; start it:"
    ):
        attach(fleet="cones")
    with pytest.raises(ab.ConfigError, match="there is no fleet 'cones'"):
        asyncblend.ray.stop("cones")
    with pytest.raises(ab.ConfigError, match="fleet 'cubes' has seed=3, and this config has 4"):
        attach(fleet=cubes, seed=4)
    with pytest.raises(ab.ConfigError, match="fleet 'cubes' has autoexec=True, and this config has False"):
        attach(config, fleet=cubes, autoexec=False)
    other = tmp_path / "cubes.py"
    other.write_text(Path(config.script).read_text() + "\n")
    with pytest.raises(
        ab.ConfigError, match=r"fleet 'cubes' has script='cubes.py' \(SHA-256 \w+\), and this config has 'cubes.py' \("
    ):
        attach(config, fleet=cubes, script=other)
    with pytest.raises(ab.ConfigError, match="there is a fleet 'cubes' already; attach to it"):
        asyncblend.ray.start(config, name=cubes, num_cpus=0)
    with pytest.raises(ab.ConfigError, match="fleet='cubes' runs already; give the script"):
        asyncblend.ray.start(ab.StreamConfig(fleet=cubes), name="more")
    with (
        pytest.raises(ab.ConfigError, match="an episode that is stepped keeps a Blender for itself"),
        ab.BlenderStream(fleet=cubes).sync() as stream,
    ):
        stream.episode(1000)
    broken = tmp_path / "broken.py"
    broken.write_text("raise ValueError('no cube')")
    with pytest.raises(ab.InstanceExited, match="no cube"):
        asyncblend.ray.start(dataclasses.replace(config, script=broken), name="broken", num_cpus=0)
    assert [one.name for one in asyncblend.ray.fleets()] == [cubes]


def test_a_missing_ray_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the line that installs it."""
    monkeypatch.setitem(sys.modules, "asyncblend.warm.attachment", None)
    with (
        pytest.raises(ModuleNotFoundError, match=r"fleet='cubes' needs Ray .* pip install \"asyncblend\[ray\]\""),
        ab.BlenderStream(fleet="cubes").sync(),
    ):
        pass


def test_a_cluster_of_ones_own_is_refused(cubes: str, config: ab.StreamConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fleet that would end with the program would not stay warm."""
    import asyncblend.ray

    monkeypatch.setattr("ray._private.worker._global_node.head", True)
    with pytest.raises(ab.ConfigError, match=r"'mine' would end with this program.* type `ray start --head` first"):
        asyncblend.ray.start(config, name="mine")


async def lost(stream: ab.BlenderStream, end: Callable[[], None]) -> tuple[int, ab.FleetLost]:
    """Take frames while the fleet ends. Return how many, and what is raised then."""
    async with stream:
        count = 0
        with pytest.raises(ab.FleetLost) as caught:
            async for _ in stream:
                count += 1
                if count == 3:
                    await asyncio.to_thread(end)
        return count, caught.value


@pytest.mark.exhaustive
async def test_a_fleet_that_does_not_answer_is_given_up(cubes: str, cluster: Cluster) -> None:
    """It is waited for as long as for a heartbeat."""
    (actor,) = cluster.processes("WarmFleet")

    def end() -> None:
        actor.suspend()

    try:
        stream = ab.BlenderStream(fleet=cubes, timeouts=ab.Timeouts(beat=10))
        _, error = await lost(stream, end)
    finally:
        actor.resume()
    assert "has not answered for 10 s" in str(error)


@pytest.mark.parametrize("how", ["stopped", "killed"])
@pytest.mark.exhaustive
async def test_a_fleet_that_ends_is_told_after_the_good_frames(
    cubes: str, cluster: Cluster, config: ab.StreamConfig, how: str
) -> None:
    """Those who attach later are told that there is none. Its Blenders and its files are gone, and its name is free."""
    import asyncblend.ray

    def end() -> None:
        if how == "stopped":
            asyncblend.ray.stop(cubes)
        else:
            (actor,) = cluster.processes("WarmFleet")
            actor.kill()

    count, error = await lost(ab.BlenderStream(fleet=cubes), end)
    assert count >= 3
    assert error.fleet == cubes
    assert ("was stopped" if how == "stopped" else "is gone") in str(error)
    await asyncio.to_thread(
        until, lambda: not cluster.blenders() and not cluster.folders() and not asyncblend.ray.fleets()
    )
    with pytest.raises(ab.ConfigError, match="there is no fleet 'cubes'; in this cluster there are: none"):
        async with ab.BlenderStream(fleet=cubes):
            pass


@pytest.mark.exhaustive
def test_the_commands(
    cluster: Cluster, config: ab.StreamConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One starts a fleet and ends, one lists it, others use it by a TOML file, and one stops it."""

    def run(*args: str) -> str:
        result = CliRunner().invoke(app, args, catch_exceptions=False)
        assert result.exit_code == 0
        return result.output

    line = [sys.executable, "-m", "asyncblend", "fleet", "start", str(config.script), "--name", "cones"]
    line += ["--num-cpus", "0", "--blender", str(config.blender), "--instances", "1", "--ray", cluster.address]
    started = subprocess.run(line, capture_output=True, text=True, timeout=LIMIT, check=True).stdout
    assert "fleet cones runs on node" in started
    assert "asyncblend fleet stop cones" in started
    monkeypatch.chdir(tmp_path)
    Path("job.toml").write_text('fleet = "cones"\n')
    assert "5 samples are in out" in run("record", "job.toml", "--length", "5", "--out", "out")
    assert Recording("out").about["script"] == "cubes.py"
    run("inspect", "job.toml", "--samples", "2", "--out", "sheet.png")
    assert Path("sheet.png").exists()
    listed = run("fleet", "list")
    assert "cones" in listed
    assert "1 waiting for work" in listed
    with pytest.raises(ab.ConfigError, match="fleet 'cones' has its own number of instances"):
        run("bench", "job.toml")
    assert "fleet cones is stopped" in run("fleet", "stop", "cones", "--ray", cluster.address)
    assert "cones" not in run("fleet", "list")


@pytest.mark.exhaustive
def test_a_fleet_that_waits_for_cpus_is_listed(
    cubes: str, cluster: Cluster, config: ab.StreamConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list does not wait for it, and says what it may lack. It begins when there is room."""
    import ray

    import asyncblend.ray
    from asyncblend.warm.finding import names

    monkeypatch.setattr("asyncblend.ray.warm._ANSWER", 15.0)  # the other fleet may be slow on a busy machine
    line = [sys.executable, "-m", "asyncblend", "fleet", "start", str(config.script), "--name", "cones"]
    line += ["--num-cpus", "2", "--blender", str(config.blender), "--instances", "1", "--ray", cluster.address]
    busy = ray.remote(num_cpus=1)(threading.Event).remote()
    ray.get(busy.is_set.remote())
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as starting:
        try:
            until(lambda: "cones" in names())
            listed = CliRunner().invoke(app, ["fleet", "list"], catch_exceptions=False).output
            assert "cones does not answer: perhaps Ray has no free CPUs or GPUs for it yet" in listed
            assert {one.name: one.node != "" for one in asyncblend.ray.fleets()} == {cubes: True, "cones": False}
        finally:
            ray.kill(busy)
        out, _ = starting.communicate(timeout=LIMIT)
    assert "fleet cones runs on node" in out
    asyncblend.ray.stop("cones")
