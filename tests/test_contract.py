"""What every Blender must do, with or without bpy: the same tests against the fake, the module, the executable."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import asyncblend as ab

Write = Callable[..., Path]
FAST = ab.RestartPolicy(backoff=0.01)


async def frames_of(config: ab.StreamConfig) -> list[ab.Frame]:
    async with asyncio.timeout(90), ab.BlenderStream(config) as stream:
        return [frame async for frame in stream]


def config_of(kind: Any, script: Path, **options: Any) -> ab.StreamConfig:
    return ab.StreamConfig(**{"script": script, "blender": kind.blender, "instances": 2, **options})


PLAIN = "def sample(task): return {'pid': __import__('os').getpid(), 'noise': task.rng.random(3)}"


async def test_every_index_arrives_exactly_once(kind: Any, write_script: Write) -> None:
    """A finite stream ends, with each index once, whoever made it."""
    config = config_of(kind, write_script(PLAIN), length=40)
    async with asyncio.timeout(90), ab.BlenderStream(config) as stream:
        frames = [frame async for frame in stream]
        assert sorted(frame.index for frame in frames) == list(range(40))
        stats = stream.stats()
    assert stats.delivered == sum(stats.frames.values()) == 40
    assert stats.rendering == stats.queued == stats.stale == stats.duplicates == stats.restarts == 0
    assert stream.stats().delivered == 40
    assert set(stream.stats().state.values()) == {"stopped"}
    assert {frame.instance for frame in frames} <= {0, 1}


async def test_all_values_that_travel_arrive(kind: Any, write_script: Write) -> None:
    """Values of each type arrive as documented, and arrays are read-only."""
    script = write_script("""
def sample(task):
    return {
        "image": np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
        "half": np.float16(0.5), "flag": np.bool_(True), "count": np.int32(7),
        "nothing": None, "text": "gr\\u00fc\\u00df", "nan": float("nan"), "list": [1, (2.5, "x")],
        "deep": {"boxes": [np.zeros((0, 4), np.float32)], "$odd": {"$": 1}},
        "big_endian": np.arange(3, dtype=">i4"), "fortran": np.asfortranarray(np.eye(2, 3)),
        "long": "y" * 100_000, "scalar": np.array(5),
    }
""")
    (frame,) = await frames_of(config_of(kind, script, length=1, instances=1))
    np.testing.assert_array_equal(frame["image"], np.arange(24, dtype=np.uint8).reshape(2, 4, 3))
    assert not frame["image"].flags.writeable
    assert (frame["half"], frame["flag"], frame["count"]) == (0.5, True, 7)
    assert (frame["nothing"], frame["text"], frame["list"]) == (None, "grüß", [1, [2.5, "x"]])
    assert np.isnan(frame["nan"])
    assert frame["deep"]["boxes"][0].shape == (0, 4)
    assert frame["deep"]["$odd"] == {"$": 1}
    np.testing.assert_array_equal(frame["big_endian"], [0, 1, 2])
    np.testing.assert_array_equal(frame["fortran"], np.eye(2, 3))
    assert frame["long"] == "y" * 100_000
    assert frame["scalar"].shape == ()
    with pytest.raises(ValueError, match="read-only"):
        frame["image"][0] = 1
    with pytest.raises(KeyError, match="this frame has 'image'"):
        frame["depth"]


async def test_a_script_runs_as_under_python(kind: Any, write_script: Write, tmp_path: Path) -> None:
    """__main__, __file__, argv, the script's folder first on the path, and the host's working directory."""
    (tmp_path / "beside.py").write_text("WORD = 'found'\n")
    script = write_script("""
import os, sys, beside
ABOUT = {"name": __name__, "file": __file__, "argv": list(sys.argv), "path": sys.path[0], "cwd": os.getcwd()}
ABOUT["word"] = beside.WORD
ABOUT["main"] = sys.modules["__main__"].ABOUT is ABOUT
ABOUT["secret"] = any("token" in value for value in os.environ.values())
def sample(task): return {**ABOUT, "instance": task.instance}
""")
    args = [["--only", "a b"], ["--only", "c"]]
    frames = await frames_of(config_of(kind, script, length=12, script_args=args, prefetch=1))
    for frame in frames:
        assert frame["argv"] == [str(script), *args[frame.instance]]
        assert (frame["name"], frame["file"], frame["path"]) == ("__main__", str(script), str(tmp_path))
        assert (frame["cwd"], frame["word"], frame["main"]) == (os.getcwd(), "found", True)
        assert frame["instance"] == frame.instance
        assert not frame["secret"]


async def test_ordered_delivers_by_index(kind: Any, write_script: Write) -> None:
    """With ordered=True, a slow sample holds the later ones back, and nothing is lost."""
    script = write_script("""
import threading
def sample(task):
    threading.Event().wait(0.05 if task.index % 5 == 0 else 0)
    return {}
""")
    frames = await frames_of(config_of(kind, script, length=23, ordered=True, queue_size=5))
    assert [frame.index for frame in frames] == list(range(23))


async def test_params_are_evaluated_at_the_lease(kind: Any, write_script: Write) -> None:
    """A callable steers each sample; the frame and the task have the same params."""
    seen: list[int] = []

    def params(index: int) -> dict[str, Any]:
        seen.append(index)
        return {"index": index, "matrix": np.full((2, 2), index)}

    script = write_script("def sample(task): return {'got': task.params['matrix'] + 0, 'i': task.params['index']}")
    config = config_of(kind, script, length=10, params=params, queue_size=4)
    async with asyncio.timeout(60), ab.BlenderStream(config) as stream:
        first = await anext(stream)
        assert len(seen) <= 5  # four slots, and the frame that was consumed
        frames = [first, *[frame async for frame in stream]]
    for frame in frames:
        assert frame["i"] == frame.index == frame.params["index"]
        np.testing.assert_array_equal(frame["got"], np.full((2, 2), frame.index))
    assert sorted(seen) == list(range(10))


@pytest.mark.slow
async def test_a_sample_depends_on_seed_index_and_params_alone(kind: Any, write_script: Write) -> None:
    """One seed gives the same bytes with 1 and with 3 instances, from every generator; another seed gives others."""
    script = write_script("""
import random
def sample(task):
    return {"rng": task.rng.random(4), "random": random.random(), "numpy": np.random.random(2), "seed": task.seed}
""")
    runs = []
    for instances, seed in ((1, 7), (3, 7), (1, 8)):
        frames = await frames_of(config_of(kind, script, length=12, seed=seed, instances=instances))
        assert all(frame["seed"] == seed for frame in frames)
        runs.append({f.index: (f["rng"].tobytes(), f["random"], f["numpy"].tobytes()) for f in frames})
    assert runs[0] == runs[1]
    assert not set(runs[0].values()) & set(runs[2].values())
    expected = np.random.default_rng([7, 3]).random(4).tobytes()
    assert runs[0][3][0] == expected


async def test_a_killed_blender_is_replaced_and_nothing_is_lost(kind: Any, write_script: Write) -> None:
    """A Blender that is killed in mid-stream is restarted, its samples are leased again, and each index arrives once."""
    config = config_of(kind, write_script(PLAIN), length=60, restart=FAST, queue_size=4)
    async with asyncio.timeout(90), ab.BlenderStream(config) as stream:
        first = await anext(stream)
        os.kill(first["pid"], signal.SIGKILL)
        frames = [first, *[frame async for frame in stream]]
        assert sorted(frame.index for frame in frames) == list(range(60))
        # The rest may well have been rendered before the exit was noticed; then there was nothing to restart for.
        assert stream.stats().delivered == 60


async def test_a_sample_that_kills_its_blender_once_arrives_in_the_end(
    kind: Any, write_script: Write, tmp_path: Path
) -> None:
    """The sample of a dead Blender is leased to the next life, with its first params."""
    script = write_script(f"""
import os, pathlib, signal
flag = pathlib.Path({str(tmp_path / "died")!r})
def sample(task):
    if task.index == 5 and not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {{"turn": task.params["turn"]}}
""")
    turns = iter(range(100))
    config = config_of(kind, script, length=12, instances=1, restart=FAST, params=lambda index: {"turn": next(turns)})
    async with asyncio.timeout(90), ab.BlenderStream(config) as stream:
        frames = [frame async for frame in stream]
        assert stream.stats().restarts == 1
    assert sorted(f.index for f in frames) == list(range(12))
    assert [f["turn"] for f in sorted(frames, key=lambda f: f.index)] == list(range(12))


async def test_a_script_that_raises_while_it_loads(kind: Any, write_script: Write) -> None:
    """The error has the script's traceback, with the script's own line first; there is no retry."""
    script = write_script("def build():\n    return {}['missing key']\nbuild()", serve=False)
    with pytest.raises(ab.InstanceExited, match="missing key") as caught:
        await frames_of(config_of(kind, script))
    assert caught.value.returncode == 1
    assert f'File "{script}", line 5' in str(caught.value)
    assert f'File "{script}", line 4, in build' in caught.value.log_tail
    assert "runpy" not in caught.value.log_tail


async def test_a_sample_that_raises(kind: Any, write_script: Write) -> None:
    """The script's traceback and line reach the caller, after the good frames."""
    script = write_script(
        "def sample(task):\n    if task.index == 3:\n        raise ValueError('no cube')\n    return {}"
    )
    good = []
    with pytest.raises(ab.SampleError, match="no cube") as caught:
        async with asyncio.timeout(60), ab.BlenderStream(config_of(kind, script, instances=1)) as stream:
            async for frame in stream:
                good.append(frame.index)
    assert good == [0, 1, 2]
    assert caught.value.index == 3
    assert f'File "{script}", line 5, in sample' in caught.value.traceback
    assert "worker.py" not in str(caught.value)
    assert caught.value.traceback.rstrip() in str(caught.value)


async def test_an_error_of_ours_in_a_sample(kind: Any, write_script: Write) -> None:
    """The traceback ends where the script called us. The message is whole, once, under the short name of its class."""
    script = write_script(
        "from asyncblend.blender.scene.placing import vector\n"
        "def sample(task):\n    return {'place': vector(task.params, 'x' * 1000)}"
    )
    with pytest.raises(ab.SampleError, match=r"Blender 0: ConfigError: x{1000} must be three") as caught:
        await frames_of(config_of(kind, script, instances=1))
    assert caught.value.traceback.count("  File ") == 1
    assert "    return {'place': vector(" in caught.value.traceback


async def test_a_script_that_never_serves(kind: Any, write_script: Write) -> None:
    """The error says what to add."""
    with pytest.raises(ab.InstanceExited, match=r"serve\(sample\)"):
        await frames_of(config_of(kind, write_script("x = 1", serve=False)))


async def test_a_value_that_cannot_travel_is_named(kind: Any, write_script: Write) -> None:
    """The error names the key, down to the nested one."""
    script = write_script("def sample(task): return {'labels': [1, {'raw': b'bytes'}]}")
    with pytest.raises(ab.SampleError, match=r"'labels\[1\]\.raw' is a builtins\.bytes"):
        await frames_of(config_of(kind, script))


@pytest.mark.parametrize(("returned", "message"), [("{'index': 1}", "reserved"), ("[1]", "a dict"), ("None", "a dict")])
async def test_a_wrong_return_value_is_named(returned: str, message: str, write_script: Write, tmp_path: Path) -> None:
    """A return value that is no dict, or has the reserved key, is a SampleError."""
    script = write_script(f"def sample(task): return {returned}")
    fake = ab_fake(tmp_path)
    with pytest.raises(ab.SampleError, match=message):
        await frames_of(ab.StreamConfig(script=script, blender=fake, instances=1))


async def test_a_fake_takes_dtypes_of_numpy(tmp_path: Path) -> None:
    """By name or as numpy has them; what is none is named before anything is started."""
    from asyncblend.testing import fake_blender

    fake = fake_blender(
        tmp_path / "fake", values={"a": (np.uint8, [2]), "b": (np.dtype("<f4"), [2]), "c": ("bool", [2])}
    )
    (tmp_path / "scene.py").touch()
    (frame,) = await frames_of(ab.StreamConfig(script=tmp_path / "scene.py", blender=fake, instances=1, length=1))
    assert [frame[name].dtype.name for name in "abc"] == ["uint8", "float32", "bool"]
    with pytest.raises(ab.ConfigError, match="values need dtypes of numbers, such as 'uint8'; got 'unit8'"):
        fake_blender(tmp_path / "other", values={"a": ("unit8", [2])})


def ab_fake(folder: Path, **faults: Any) -> Path:
    from asyncblend.testing import fake_blender

    return fake_blender(folder / "fake", **faults)


async def test_a_blender_that_ends_before_it_is_ready(kind: Any, write_script: Write) -> None:
    """The error has the exit status and the last output."""
    script = write_script("print('about to leave')\nimport sys\nsys.exit(3)", serve=False)
    with pytest.raises(ab.InstanceExited, match="exited with status 3 before it was ready") as caught:
        await frames_of(config_of(kind, script))
    assert caught.value.returncode == 3
    assert "about to leave" in caught.value.log_tail
    assert caught.value.instance in (0, 1)


async def test_what_blender_starts_dies_with_it(kind: Any, write_script: Write) -> None:
    """A grandchild is gone when the stream is closed."""
    script = write_script("""
import subprocess
child = subprocess.Popen(["sleep", "600"])
def sample(task): return {"child": child.pid}
""")
    async with asyncio.timeout(60), ab.BlenderStream(config_of(kind, script, instances=1)) as stream:
        pid = (await anext(stream))["child"]
        assert psutil.pid_exists(pid)
    with contextlib.suppress(psutil.NoSuchProcess):
        async with asyncio.timeout(60):  # it was killed, which takes a moment on a busy machine
            while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("way", ["break", "exception", "cancellation", "before the first frame"])
async def test_nothing_is_left_however_the_block_is_left(way: str, kind: Any, write_script: Write) -> None:
    """The no_leaks fixture looks for processes, files, sockets and threads afterwards."""
    config = config_of(kind, write_script(PLAIN))

    async def use() -> None:
        async with ab.BlenderStream(config) as stream:
            if way == "before the first frame":
                return
            async for frame in stream:
                if frame.index > 3:
                    if way == "exception":
                        raise ArithmeticError
                    if way == "cancellation":
                        asyncio.current_task().cancel()  # type: ignore[union-attr]
                    else:
                        break

    async with asyncio.timeout(60):
        if way == "exception":
            with pytest.raises(ArithmeticError):
                await use()
        elif way == "cancellation":
            task = asyncio.create_task(use())
            await asyncio.wait([task])
            assert task.cancelled()
        else:
            await use()


async def test_memory_is_bounded_by_the_slots(kind: Any, write_script: Write) -> None:
    """A consumer that stops consuming stops the fleet at queue_size samples; each frame consumed lets one more be made."""
    config = config_of(kind, write_script(PLAIN), queue_size=3, prefetch=2)
    async with asyncio.timeout(60), ab.BlenderStream(config) as stream:
        for delivered in (1, 2):
            await anext(stream)
            while stream.stats().queued < 3:
                await asyncio.sleep(0)
            stats = stream.stats()
            assert (stats.delivered, stats.queued, stats.rendering) == (delivered, 3, 0)
            assert set(stats.state.values()) <= {"idle", "starting"}


async def test_passes_follow_each_other_on_the_same_processes(kind: Any, write_script: Write) -> None:
    """Another pass and `render` give the same values for an index, from warm Blenders, and nothing of earlier passes."""
    config = config_of(kind, write_script(PLAIN), length=9)
    async with asyncio.timeout(60), ab.BlenderStream(config) as stream:
        first = {frame.index: frame async for frame in stream}
        async with stream.frames() as again:
            half = [await anext(again) for _ in range(4)]
        later = {frame.index: frame async for frame in stream.frames(range(9, 18))}
        half += [await stream.render(index) for index in (8, 0)]
        assert stream.stats().restarts == 0
    assert sorted(first) == list(range(9))
    assert sorted(later) == list(range(9, 18))
    assert len({f["pid"] for f in (*half, *first.values(), *later.values())}) <= config.instances
    assert [frame.index for frame in half[4:]] == [8, 0]
    for frame in half:
        np.testing.assert_array_equal(frame["noise"], first[frame.index]["noise"])


async def test_a_stream_resumes_where_it_was(kind: Any, write_script: Write) -> None:
    """Samples consumed before are not rendered again; all others are."""
    config = config_of(kind, write_script(PLAIN), length=20, shard=(1, 2))
    async with asyncio.timeout(60), ab.BlenderStream(config) as stream:
        before = [(await anext(stream)).index for _ in range(4)]
        state = stream.state_dict()
    stream = ab.BlenderStream(config)
    stream.load_state_dict(state)
    async with asyncio.timeout(60), stream:
        after = [frame.index async for frame in stream]
    assert sorted(before + after) == list(range(1, 20, 2))
    with pytest.raises(ab.ConfigError, match="seed"):
        ab.BlenderStream(config, seed=5).load_state_dict(state)


async def test_a_fleet_that_waits_after_a_failed_sample_is_no_hang(write_script: Write, tmp_path: Path) -> None:
    """After a SampleError the time for a frame does not run: the Blender is idle, and serves the next pass."""
    script = write_script(
        "def sample(task):\n    if task.index == 1 and not task.params: raise ValueError\n    return {}"
    )
    fail = True
    config = ab.StreamConfig(
        script=script, blender=ab_fake(tmp_path), instances=1, length=4, params=lambda index: {} if fail else {"go": 1}
    )
    async with asyncio.timeout(30), ab.BlenderStream(config) as stream:
        with pytest.raises(ab.SampleError):
            async for _ in stream:
                pass
        while stream.stats().state[0] != "idle":
            await asyncio.sleep(0)
        fail = False
        assert sorted([frame.index async for frame in stream.frames()]) == [0, 1, 2, 3]
        assert stream.stats().restarts == 0


@pytest.mark.parametrize("text", ["\N{GRINNING FACE}" * 9000, "\0" * 70_000, "x" * 200_000])
async def test_a_long_error_message_arrives(text: str, write_script: Write, tmp_path: Path) -> None:
    """An error that is too long for a message is cut, and never lost."""
    script = write_script(f"def sample(task): raise ValueError({text!r})")
    with pytest.raises(ab.SampleError, match="ValueError"):
        await frames_of(ab.StreamConfig(script=script, blender=ab_fake(tmp_path), instances=1))


async def test_packages_that_stay_missing_are_an_error(write_script: Write, tmp_path: Path) -> None:
    """A Blender that does not find what was installed for it is started twice, and not for ever."""
    starts = tmp_path / "starts"
    blender = tmp_path / "shut-off"
    blender.write_text(f"""#!{sys.executable}
import json, os, sys
with open({str(starts)!r}, "a") as file: file.write("x")
launch = json.loads(os.environ["ASYNCBLEND_LAUNCH"])
with open(launch["report"], "w") as file:
    json.dump({{"packages": [], "python": "3.11", "folder": {str(tmp_path / "packages")!r}}}, file)
sys.exit(1)
""")
    blender.chmod(0o755)
    with pytest.raises(ab.InstanceError, match="does not find them there"):
        await frames_of(ab.StreamConfig(script=write_script(PLAIN), blender=blender, instances=1))
    assert starts.read_text() == "xx"


async def test_a_changed_working_directory_changes_no_later_life(
    write_script: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative script is found again when a Blender is restarted, wherever the program is by then."""
    write_script("import os\ndef sample(task): return {'cwd': os.getcwd()}")
    monkeypatch.chdir(tmp_path)
    config = ab.StreamConfig(
        script="scene_script.py", blender=ab_fake(tmp_path, crash_after=3), instances=1, length=8, restart=FAST
    )
    async with asyncio.timeout(30), ab.BlenderStream(config) as stream:
        frames = []
        async for frame in stream:
            frames.append(frame)
            os.chdir("/")
    assert {frame["cwd"] for frame in frames} == {str(tmp_path)}


async def test_a_death_after_all_has_arrived_is_no_error(write_script: Write, tmp_path: Path) -> None:
    """The consumer gets the last frames and a clean end, though no Blender is left."""
    config = ab.StreamConfig(
        script=write_script(PLAIN),
        blender=ab_fake(tmp_path),
        instances=1,
        length=4,
        restart=ab.RestartPolicy(max_restarts=0),
    )
    async with asyncio.timeout(30), ab.BlenderStream(config) as stream:
        first = await anext(stream)
        while stream.stats().queued < 3:
            await asyncio.sleep(0)
        os.kill(first["pid"], signal.SIGKILL)
        with pytest.raises(ab.CrashLoop):
            await stream.render(9)
        assert sorted([frame.index async for frame in stream]) == [1, 2, 3]


async def test_few_slots_are_shared_by_all_instances(write_script: Write, tmp_path: Path) -> None:
    """With fewer slots than instances, each instance still has its turn."""
    config = ab.StreamConfig(
        script=write_script(PLAIN), blender=ab_fake(tmp_path), instances=4, queue_size=2, length=3000
    )
    async with asyncio.timeout(60), ab.BlenderStream(config) as stream:
        while set(stream.stats().state.values()) & {"new", "starting"}:
            await asyncio.sleep(0.01)
        async for _ in stream:
            pass
        assert min(stream.stats().frames.values()) > 10


async def test_params_of_a_frame_are_read_only(write_script: Write, tmp_path: Path) -> None:
    """Params are read-only, also when there are none; frames can be put into sets."""
    config = ab.StreamConfig(script=write_script(PLAIN), blender=ab_fake(tmp_path), instances=1, length=2)
    one, other = await frames_of(config)
    assert one.params == {}
    with pytest.raises(TypeError):
        one.params["x"] = 1  # type: ignore[index]
    assert len({one, other}) == 2


def test_a_wrong_option_is_only_a_config_error(capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing is printed when a stream whose options were wrong is collected."""
    with pytest.raises(ab.ConfigError, match="did you mean 'script'"):
        ab.BlenderStream(scrpt="x")  # type: ignore[call-arg]
    assert capfd.readouterr().err == ""
