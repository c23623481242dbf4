"""Recordings that a cluster makes: the files of one machine, whatever dies meanwhile, and what is said of them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

import asyncblend as ab
from asyncblend.recording import Recording
from asyncblend.recording.about import about
from asyncblend.recording.codec import Images, encode
from asyncblend.recording.writer import ShardSize, Writer
from asyncblend.testing import fake_blender

from .conftest import LIMIT, Cluster, until

pytest.importorskip("ray.data", reason='pip install ".[ray]"')
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]

HELD = """
import pathlib, time
HERE = pathlib.Path(r"{folder}")

def sample(task):
    while task.index % {every} >= {held} and not (HERE / "go").exists():
        time.sleep(0.01)
    rows = int(task.rng.integers(1, 200))
    return {{"image": task.rng.integers(0, 256, (rows, 32, 3), np.uint8), "name": f"sample {{task.index}}"}}
"""
"""Samples of various sizes, so that their images take various times. From one on, they wait for a file."""
RAISES = """    if task.index == 7:
        raise ValueError("no light")
    rows ="""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the nodes' processes run in."""
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture(scope="module")
def cluster(elsewhere: Path) -> Iterator[Cluster]:
    """A head that renders nothing, and two nodes."""
    with contextlib.chdir(elsewhere):
        made = Cluster({"num_cpus": 1}, {"num_cpus": 1})
    yield made
    made.end()


@pytest.fixture
def config(tmp_path: Path, write_script: Callable[..., Path]) -> Callable[..., ab.StreamConfig]:
    """Make a config of a script that a fake Blender runs, whose samples wait for the file `go` from one on."""

    def make(held: int = 100, every: int = 100, body: str = HELD, **options: Any) -> ab.StreamConfig:
        script = write_script(body.format(folder=tmp_path, held=held, every=every))
        return ab.StreamConfig(script=script, blender=fake_blender(tmp_path / "fake"), seed=3, **options)

    return make


def command(config: ab.StreamConfig, out: Path, *more: str) -> list[str]:
    """Return the line that records a stream."""
    line = [sys.executable, "-m", "asyncblend", "record", str(config.script), "--out", str(out), "--seed", "3"]
    return [*line, "--blender", str(config.blender), "--shard-size", "20", *more]


def run(line: list[str]) -> str:
    """Run a command to its end, and return what it printed on the standard output."""
    done = subprocess.run(line, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def to_the_end(recorder: Awaitable[int]) -> int:
    """Record all."""
    return await recorder


def content(folder: Path) -> dict[str, bytes]:
    """Return all files of a recording, but the one that is locked."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".writing"}


@pytest.mark.timeout(600)
@pytest.mark.exhaustive
def test_an_actor_and_the_program_are_killed(cluster: Cluster, config: Callable[..., Any], tmp_path: Path) -> None:
    """The same command goes on. In the end the files are those of one machine, byte for byte, and none was made twice."""
    held, out = config(held=50), tmp_path / "cluster"
    line = command(held, out, "--ray", cluster.address)
    with subprocess.Popen([*line, "--length", "90"], stdout=subprocess.DEVNULL) as program:
        try:
            # An actor may take up its shards in any order, and what waits for `go` holds up the others.
            until(
                lambda: (
                    program.poll() is not None
                    or (len(cluster.blenders()) == 2 and len(list(out.glob("*.partial"))) > 1)
                )
            )
            lost = next(actor for actor in cluster.actors() if actor.children())
            lost.kill()
            until(lambda: not lost.is_running() and len(cluster.blenders()) == 2)
        finally:
            program.kill()
    until(lambda: not cluster.actors() and not cluster.blenders())
    before = {path: path.stat().st_ino for path in out.glob("*.tar")}
    assert list(out.glob("*.partial"))

    (tmp_path / "go").touch()
    printed = run([*line, "--length", "110"])
    there = 20 * len(before)
    assert (f"{there} of 110 samples are there already" in printed) == bool(there)
    assert "110 samples are in" in printed
    assert f": {110 - there} new ones in" in printed
    assert {path: path.stat().st_ino for path in before} == before

    alone = ab.BlenderStream(held, instances=1, length=110).record(tmp_path / "alone", shard_size=20)
    assert asyncio.run(to_the_end(alone)) == 110
    assert content(out) == content(tmp_path / "alone")


@pytest.mark.timeout(600)
@pytest.mark.exhaustive
def test_what_is_told_meanwhile(cluster: Cluster, config: Callable[..., Any], tmp_path: Path) -> None:
    """Progress is that of all nodes, also of shards that are not whole; what is skipped is counted."""
    import asyncblend.ray

    told: list[asyncblend.ray.Progress] = []

    def report(progress: asyncblend.ray.Progress) -> None:
        told.append(progress)
        if progress.nodes == 2 and progress.rendered >= 2:
            (tmp_path / "go").touch()

    stream = config(held=5, every=10, body=HELD.replace("    rows =", RAISES), length=80, on_bad_sample="skip")
    last = asyncblend.ray.record(stream, tmp_path / "out", shard_size=10, progress=report)
    assert told[-1] == last
    assert told[0].recorded == 0
    assert (last.total, last.before, last.recorded, last.rendered, last.skipped, last.nodes) == (80, 0, 79, 0, 1, 2)
    assert last.written == sum(tar.stat().st_size for tar in (tmp_path / "out").glob("*.tar"))
    assert Recording(tmp_path / "out").indices.tolist() == [index for index in range(80) if index != 7]


@pytest.mark.timeout(600)
@pytest.mark.exhaustive
def test_nodes_must_have_the_blender_of_the_recording(
    cluster: Cluster, config: Callable[..., Any], tmp_path: Path
) -> None:
    """It is continued with the version that it was begun with, or not at all: the pixels of others differ."""
    import asyncblend.ray

    stream = config(length=4)
    writer = Writer(tmp_path / "out", about(stream, Images()), ShardSize(2))
    writer.open()
    for index in range(2):
        writer.add(index, encode({}, index=index, instance=0, params={}, images=Images()), blender="4.2.0 LTS")
    writer.close()
    words = r"node .* has Blender of no version, but the recording in .*out has 4\.2\.0 LTS, and their pixels differ"
    with pytest.raises(ab.ConfigError, match=words):
        asyncblend.ray.record(stream, tmp_path / "out", shard_size=2, actors=1)
    assert Recording(tmp_path / "out").indices.tolist() == [0, 1]


DRIVER = """
import asyncblend as ab, asyncblend.ray
if __name__ == "__main__":
    config = ab.StreamConfig(script={script!r}, blender={blender!r}, seed=3, length=60)
    last = asyncblend.ray.record(config, {out!r}, shard_size=20, address={address!r}, quiet=True)
    print(last.before, last.recorded)
"""


@pytest.mark.timeout(600)
@pytest.mark.exhaustive
def test_ctrl_c_in_a_program(cluster: Cluster, config: Callable[..., Any], tmp_path: Path) -> None:
    """It ends with KeyboardInterrupt, and nothing is left that runs or is half written; the next run goes on."""
    # As soon as one shard is whole, the others wait in their midst, whichever of them the actors have taken up first.
    body = HELD.replace("while ", "while any((HERE / 'out').glob('*.tar')) and ")
    held, out = config(held=15, every=20, body=body), tmp_path / "out"
    names = {"script": str(held.script), "blender": str(held.blender), "out": str(out), "address": cluster.address}
    (tmp_path / "driver.py").write_text(DRIVER.format(**names))
    line = [sys.executable, str(tmp_path / "driver.py")]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as program:
        try:
            until(lambda: program.poll() is not None or (any(out.glob("*.tar")) and any(out.glob("*.partial"))))
            program.send_signal(signal.SIGINT)
            _, printed = program.communicate(timeout=LIMIT)
        finally:
            program.kill()
    assert program.returncode != 0
    assert printed.rstrip().endswith("KeyboardInterrupt")
    until(lambda: not cluster.actors() and not cluster.blenders() and not cluster.folders())
    assert not list(out.glob("*.partial"))
    there = len(Recording(out))
    assert there in (20, 40)

    (tmp_path / "go").touch()
    assert run(line) == f"{there} 60\n"
    alone = ab.BlenderStream(held, instances=1, length=60).record(tmp_path / "alone", shard_size=20)
    assert asyncio.run(to_the_end(alone)) == 60
    assert content(out) == content(tmp_path / "alone")


@pytest.mark.timeout(600)
@pytest.mark.exhaustive
def test_what_goes_wrong_on_a_node_is_said(
    cluster: Cluster, elsewhere: Path, config: Callable[..., Any], tmp_path: Path
) -> None:
    """A sample that raises is a SampleError, and whole shards stay; a folder that is not shared is named with the node."""
    import asyncblend.ray

    stream = config(length=20, body="def sample(task): return {{'x': 1 // (task.index != 12)}}")
    with pytest.raises(ab.SampleError, match="sample 12 failed") as caught:
        asyncblend.ray.record(stream, tmp_path / "out", shard_size=10, actors=1)
    assert type(caught.value) is ab.SampleError
    if (tmp_path / "out" / "shard-000000.tar").exists():  # Ray may have begun with the other one
        assert Recording(tmp_path / "out").indices.tolist() == list(range(10))

    (elsewhere / "other").mkdir()
    for name, words in {"missing": "has no folder", "other": "which this machine does not see"}.items():
        own = Path("/proc/self/cwd", name)  # another folder for each process
        with contextlib.chdir(tmp_path), pytest.raises(ab.RecordingError, match=f"node .*{words}.*all nodes see"):
            asyncblend.ray.record(stream, own, length=10, shard_size=10, actors=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shard_size": "1MB"}, "shard_size must be a number of samples, so that it is known.*got '1MB'"),
        ({"shard_size": 0}, "shard_size must be a number of samples, at least 1"),
        ({"length": 30}, "length=30 is more than the stream has, which is 20"),
        ({"num_cpus": 0}, "num_cpus=0 without num_gpus lets a node have any number of actors; give actors"),
        ({"quality": 80}, "quality goes with image_format='jpeg'"),
        ({"actors": 0}, "actors must be a whole number, at least 1; got 0"),
        ({"num_gpus": 1.5}, "num_gpus must be a whole number where it is more than 1, as Ray wants; got 1.5"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_refused(
    config: Callable[..., Any], tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    """The message names it and its value. No folder is made."""
    import asyncblend.ray

    with pytest.raises(ab.ConfigError, match=words):
        asyncblend.ray.record(config(length=20), tmp_path / "out", **options)
    with pytest.raises(ab.ConfigError, match="an endless stream is recorded up to a length"):
        asyncblend.ray.record(config(), tmp_path / "out")
    with pytest.raises(ab.ConfigError, match="written into a folder, not to 's3://data/cubes'"):
        asyncblend.ray.record(config(length=20), "s3://data/cubes")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--shard-size", "1MB"), "on a cluster, shard_size must be a number of samples"),
        (("--file", "nowhere.txt"), "nowhere.txt' cannot be read"),
    ],
)
def test_a_command_checks_before_it_connects(
    config: Callable[..., Any], tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    """A wrong option is told where the address is wrong, too: no cluster is asked, let alone started."""
    line = command(config(), tmp_path / "out", "--length", "5", "--ray", "127.0.0.1:9", *options)
    done = subprocess.run(line, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 1
    assert words in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()


def test_there_is_room_for_parts_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as fit, though their sum is no exact number; the scarcest counts."""
    from asyncblend.ray import nodes as module

    monkeypatch.setattr(module, "_nodes", lambda **_: [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 1.0}])
    assert [module.room({"CPU": 0, "GPU": part}) for part in (0.1, 0.2, 0.3, 1)] == [10, 5, 3, 1]
    assert module.room({"CPU": 0.8, "GPU": 0}) == 11
    assert module.room({"CPU": 4, "GPU": 0.1}) == 2
    assert module.room({}) == float("inf")


def test_a_folder_is_recorded_into_once_at_a_time(config: Callable[..., Any], tmp_path: Path) -> None:
    """A recording that goes on, or that is another stream's, is left alone, before Ray is asked for anything."""
    import asyncblend.ray

    made = ab.BlenderStream(config(), instances=1, length=10)
    assert asyncio.run(to_the_end(made.record(tmp_path / "out"))) == 10
    with pytest.raises(ab.ConfigError, match="seed is 3 there, 4 here"):
        asyncblend.ray.record(dataclasses.replace(config(length=20), seed=4), tmp_path / "out")
    assert asyncblend.ray.record(config(length=10), tmp_path / "out").recorded == 10
    with FileLock(tmp_path / "out" / ".writing"), pytest.raises(ab.RecordingError, match="another recording into"):
        asyncblend.ray.record(config(length=20), tmp_path / "out")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:9", "no cluster of Ray that this program may join at '127.0.0.1:9': .*refused"),
        ("ray://head:10001", "on one of its nodes"),
    ],
)
def test_an_address_without_a_cluster(address: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said at once, by a program that is not connected."""
    import asyncblend.ray

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(ab.ConfigError, match=words):
        asyncblend.ray.connect(address)
    monkeypatch.setenv("RAY_ADDRESS", address)
    for same in (None, "auto"):
        with pytest.raises(ab.ConfigError, match=words):
            asyncblend.ray.connect(same)
