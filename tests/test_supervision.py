"""Bad samples, replaced Blenders, fewer instances, kept logs: what long runs need, with fake and real Blenders."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asyncblend as ab
from asyncblend.testing import fake_blender

Write = Callable[..., Path]
FAST = ab.RestartPolicy(backoff=0.01, max_restarts=20)

KILLED = """
import os, signal
def sample(task):
    if task.index == 3: os.kill(os.getpid(), signal.SIGKILL)
    return {}
"""
RAISES = "def sample(task):\n    if task.index in (3, 4): raise ValueError('no cube')\n    return {}"


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """A fake Blender without faults."""
    return fake_blender(tmp_path / "fake")


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(("body", "missing"), [(KILLED, {3}), (RAISES, {3, 4})], ids=["kills", "raises"])
async def test_a_bad_sample_is_skipped_and_counted(
    body: str, missing: set[int], ordered: bool, fake: Path, write_script: Write, caplog: pytest.LogCaptureFixture
) -> None:
    """With on_bad_sample="skip" all others arrive, in order if asked, and the log names what was skipped."""
    config = ab.StreamConfig(
        script=write_script(body),
        blender=fake,
        instances=2,
        length=12,
        prefetch=1,  # else a frame that is lost with its Blender may be blamed for the next sample's crash
        on_bad_sample="skip",
        ordered=ordered,
        restart=FAST,
    )
    async with asyncio.timeout(60), ab.BlenderStream(config) as stream:
        indices = [frame.index async for frame in stream]
        stats = stream.stats()
    assert (indices if ordered else sorted(indices)) == [i for i in range(12) if i not in missing]
    assert stats.skipped == len(missing)
    assert stats.delivered == 12 - len(missing)
    assert [m for m in caplog.messages if m.startswith("Skipped a sample: sample 3")]


@pytest.mark.parametrize(
    ("deed", "cause", "about"),
    [
        ("os.kill(os.getpid(), 9)", ab.InstanceExited, "was killed by signal 9 while it served (is memory short?)."),
        ("os._exit(3)", ab.InstanceExited, "exited with status 3 while it served."),
        (
            "time.sleep(3600)",
            ab.FrameTimeout,
            "made no frame for 1 s (timeouts.frame) and was killed; where a sample takes so long, give it more time",
        ),
    ],
    ids=["killed", "exits", "hangs"],
)
async def test_a_sample_that_kills_its_blenders_is_named(
    deed: str, cause: type[ab.InstanceError], about: str, fake: Path, write_script: Write
) -> None:
    """After `max_sample_deaths` crashes it is a SampleError with its index and params, and how the last one ended."""
    config = ab.StreamConfig(
        script=write_script(f"import os, time\ndef sample(task):\n    if task.index == 3: {deed}\n    return {{}}"),
        blender=fake,
        instances=2,
        length=12,
        prefetch=1,
        params={"level": 7},
        timeouts=ab.Timeouts(frame=1 if cause is ab.FrameTimeout else 60),
        restart=ab.RestartPolicy(backoff=0.01, max_restarts=100, max_sample_deaths=2),
    )
    with pytest.raises(ab.SampleError) as caught:
        async with asyncio.timeout(60), ab.BlenderStream(config) as stream:
            async for _ in stream:
                pass
    assert caught.value.index == 3
    text = str(caught.value)
    assert text.startswith("sample 3 killed its Blender 2 times; its params: {'level': 7}. The last time: Blender ")
    assert about in text.splitlines()[0]
    assert type(caught.value.__cause__) is cause


async def test_a_skipped_index_is_not_tried_again(fake: Path, write_script: Write) -> None:
    """The saved state counts it as delivered."""
    config = ab.StreamConfig(script=write_script(RAISES), blender=fake, instances=1, length=6, on_bad_sample="skip")
    async with asyncio.timeout(60), ab.BlenderStream(config) as stream:
        async for _ in stream:
            pass
        state = stream.state_dict()
    assert (state["watermark"], state["above"]) == (6, [])
    resumed = ab.BlenderStream(config)
    resumed.load_state_dict(state)
    async with asyncio.timeout(60), resumed:
        assert [frame async for frame in resumed] == []


@pytest.mark.slow
async def test_a_blender_is_replaced_after_so_many_frames(kind: Any, write_script: Write) -> None:
    """Nothing is lost, nothing is counted as a restart, and the other Blender serves meanwhile."""
    script = write_script("import os\ndef sample(task): return {'pid': os.getpid(), 'x': task.rng.random(3)}")
    config = ab.StreamConfig(script=script, blender=kind.blender, instances=2, max_frames_per_instance=8, queue_size=4)
    frames: list[ab.Frame] = []
    async with asyncio.timeout(90), ab.BlenderStream(config) as stream:
        async for frame in stream:
            frames.append(frame)
            if len({f["pid"] for f in frames}) >= 4:  # both were replaced
                break
        stats = stream.stats()
    assert len({frame.index for frame in frames}) == len(frames)
    assert stats.recycled >= 2
    assert stats.restarts == stats.stale == 0
    for frame in frames:
        np.testing.assert_array_equal(frame["x"], np.random.default_rng([0, frame.index]).random(3))


async def test_a_blender_is_replaced_when_its_memory_grows(fake: Path, write_script: Write) -> None:
    """Its heartbeats tell how large it is."""
    script = write_script("""
import os
kept = []
def sample(task):
    kept.append(bytearray(os.urandom(1 << 20)) * 8)
    return {"pid": os.getpid()}
""")
    config = ab.StreamConfig(script=script, blender=fake, instances=2, max_rss=250 << 20, queue_size=2)
    async with asyncio.timeout(60), ab.BlenderStream(config) as stream:
        pids = set()
        async for frame in stream:
            pids.add(frame["pid"])
            await asyncio.sleep(0.01)  # so that heartbeats come between the frames
            if stream.stats().recycled >= 2 and len(pids) >= 4:
                break
    assert stream.stats().restarts == 0


async def test_the_stream_goes_on_with_fewer(tmp_path: Path, write_script: Write) -> None:
    """With `min_instances`, a Blender that dies too often is given up, and the others render all."""
    blender = fake_blender(tmp_path / "fake", crash_after=1, instances=[0])
    config = ab.StreamConfig(
        script=write_script("def sample(task): return {}"),
        blender=blender,
        instances=2,
        queue_size=2,
        restart=ab.RestartPolicy(backoff=0.01, max_restarts=1, window=1000, min_instances=1, max_sample_deaths=50),
    )
    indices: list[int] = []
    async with asyncio.timeout(60), ab.BlenderStream(config) as stream:
        while stream.stats().state[0] != "failed":
            indices.append((await anext(stream)).index)
        indices += [(await anext(stream)).index for _ in range(50)]
        assert stream.stats().state[1] in ("idle", "ready")
    assert len(set(indices)) == len(indices)
    assert set(range(40)) <= set(indices)  # the other one rendered what the dead one held


@pytest.mark.slow
async def test_logs_are_kept_where_asked(kind: Any, write_script: Write, tmp_path: Path) -> None:
    """Each instance has a file, in which its lives follow one another."""
    script = write_script("import sys\nprint('hello from', *sys.argv[1:])\ndef sample(task): return {}")
    config = ab.StreamConfig(
        script=script,
        script_args=[["a"], ["b"]],
        blender=kind.blender,
        instances=2,
        length=4,
        logs=tmp_path / "kept" / "logs",
    )
    for _ in range(2):
        async with asyncio.timeout(60), ab.BlenderStream(config) as stream:
            while set(stream.stats().state.values()) & {"new", "starting"}:
                await asyncio.sleep(0.01)
            async for _frame in stream:
                pass
    for number, word in enumerate("ab"):
        text = (tmp_path / "kept" / "logs" / f"instance-{number}.log").read_text()
        assert text.count(f"--- Blender {number}, start 0") == 2
        assert text.count(f"hello from {word}") == 2


async def test_a_script_that_does_not_load_later_is_not_tried_again(
    kind: Any, write_script: Write, tmp_path: Path
) -> None:
    """It is given up after one attempt, and the others go on where that is allowed."""
    script = write_script(f"""
import pathlib, sys, threading
proof, starts = pathlib.Path({str(tmp_path / "proof")!r}), pathlib.Path({str(tmp_path / "starts")!r})
def sample(task):
    proof.touch()
    return {{}}
if sys.argv[1] == "bad":
    with starts.open("a") as file: file.write("x")
    while not proof.exists(): threading.Event().wait(0.01)
    raise ImportError("no such texture")
""")
    config = ab.StreamConfig(
        script=script,
        script_args=[["good"], ["bad"]],
        blender=kind.blender,
        instances=2,
        queue_size=2,
        restart=ab.RestartPolicy(backoff=0.01, min_instances=1),
    )
    async with asyncio.timeout(60), ab.BlenderStream(config) as stream:
        while stream.stats().state[1] != "failed":
            await anext(stream)
            await asyncio.sleep(0.001)
        for _ in range(10):
            await anext(stream)
        assert stream.stats().restarts == 0
    assert (tmp_path / "starts").read_text() == "x"


async def test_a_blender_that_keeps_sending_garbage_is_replaced(
    tmp_path: Path, write_script: Write, caplog: pytest.LogCaptureFixture
) -> None:
    """Each bad message is counted, the sender's samples are rendered again, and every index comes once."""
    blender = fake_blender(tmp_path / "fake", garbage_after=2, garbage_messages=100, lives=1, instances=[1])
    config = ab.StreamConfig(
        script=write_script("def sample(task): return {}"), blender=blender, instances=2, queue_size=4, restart=FAST
    )
    indices = []
    async with asyncio.timeout(60), ab.BlenderStream(config) as stream:
        while stream.stats().restarts == 0 or stream.stats().frames[1] < 5:
            indices.append((await anext(stream)).index)
        stats = stream.stats()
    assert len(indices) == len(set(indices))
    missing = set(range(max(indices))) - set(indices)
    assert len(missing) <= 4  # the stream is not ordered: only what is still in flight may be missing
    assert stats.restarts == 1
    assert stats.bad_messages >= 17
    assert [m for m in caplog.messages if "Blender 1 sent 17 messages that cannot be read" in m]


async def test_closing_blames_no_sample(tmp_path: Path, write_script: Write) -> None:
    """A sample is not blamed for the death of a Blender that was stopped; the resumed stream renders it."""
    config = ab.StreamConfig(
        script=write_script("def sample(task): return {}"),
        blender=fake_blender(tmp_path / "slow", slow=0.02),
        instances=2,
        length=20,
        on_bad_sample="skip",
        restart=ab.RestartPolicy(max_sample_deaths=1),
        timeouts=ab.Timeouts(stop=0),
    )
    async with asyncio.timeout(60), ab.BlenderStream(config) as stream:
        first = [(await anext(stream)).index for _ in range(4)]
    state = stream.state_dict()
    assert stream.stats().skipped == 0
    resumed = ab.BlenderStream(config)
    resumed.load_state_dict(state)
    async with asyncio.timeout(60), resumed:
        rest = [frame.index async for frame in resumed]
    assert sorted(first + rest) == list(range(20))


async def test_an_exception_that_cannot_be_shown_is_a_bad_sample(fake: Path, write_script: Write) -> None:
    """Its Blender goes on."""
    script = write_script("""
class Odd(Exception):
    def __str__(self): raise RuntimeError
def sample(task): raise Odd
""")
    with pytest.raises(ab.SampleError, match="Odd"):
        async with asyncio.timeout(60), ab.BlenderStream(script=script, blender=fake, instances=1) as stream:
            await anext(stream)
    assert stream.stats().restarts == 0


async def test_a_folder_for_logs_that_cannot_be_is_named(fake: Path, write_script: Write) -> None:
    """The error is about the folder, not about Blender."""
    config = ab.StreamConfig(
        script=write_script("def sample(task): return {}"), blender=fake, instances=1, logs="/proc/logs"
    )
    with pytest.raises(ab.InstanceError, match="/proc/logs") as caught:
        async with asyncio.timeout(60), ab.BlenderStream(config):
            pass
    assert not isinstance(caught.value, ab.BlenderNotFound)
