"""stream.record: every sample is recorded once, none is rendered twice, and no frame that was returned is lost."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import sys
import tarfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asyncblend as ab
from asyncblend.config import cores
from asyncblend.recording import Recording, read
from asyncblend.recording.about import about
from asyncblend.recording.codec import Images, encode
from asyncblend.recording.writer import ShardSize, Writer
from asyncblend.testing import fake_blender

Make = Callable[..., ab.BlenderStream]

LIMIT = 60.0  # seconds; the bound of failure of every wait here
COUNTED = """
import os
def sample(task):
    with open({rendered!r}, "a") as file:
        file.write(f"{{task.index}}\\n")
    return {{
        "image": task.rng.integers(0, 256, (6, 8, 3), np.uint8), "noise": task.rng.random(3), "far": float("inf"),
        "index_was": task.index, "level": task.params.get("level"),
    }}
"""


@pytest.fixture
def make(tmp_path: Path, write_script: Callable[..., Path]) -> Make:
    """Make a stream of fakes, which note each sample that they render: `make(faults={}, **options)`."""
    number = 0

    def make(faults: dict[str, Any] | None = None, **options: Any) -> ab.BlenderStream:
        nonlocal number
        number += 1
        fake = fake_blender(tmp_path / f"fake{number}", **(faults or {}))
        script = write_script(COUNTED.format(rendered=str(tmp_path / "rendered")))
        return ab.BlenderStream(**{"script": script, "blender": fake, "instances": 2, "seed": 5, **options})

    return make


@pytest.fixture
def rendered(tmp_path: Path) -> Callable[[], list[int]]:
    """Return the indices of all samples that were rendered so far, ascending; a sample rendered twice is there twice."""
    file = tmp_path / "rendered"
    return lambda: sorted(map(int, file.read_text().split())) if file.exists() else []


def check(folder: Path, indices: list[int]) -> None:
    """Check that the recording has these samples, with the values that their index and the seed give."""
    samples = list(read(folder))
    assert [sample.index for sample in samples] == indices
    for sample in samples:
        rng = np.random.default_rng([5, sample.index])
        np.testing.assert_array_equal(sample["image"], rng.integers(0, 256, (6, 8, 3), np.uint8))
        np.testing.assert_array_equal(sample["noise"], rng.random(3))
        assert (sample["far"], sample["index_was"]) == (float("inf"), sample.index)


async def test_awaiting_records_all(make: Make, folder: Path) -> None:
    """Awaiting a recording of an entered stream returns the number of samples in the folder."""
    async with asyncio.timeout(LIMIT), make(length=25, params=lambda index: {"level": index / 2}) as stream:
        assert await stream.record(folder, shard_size=10) == 25
        assert stream.stats().delivered == 25
    check(folder, list(range(25)))
    assert [sample["level"] for sample in read(folder)] == [index / 2 for index in range(25)]
    assert [sample.params for sample in read(folder)] == [{"level": index / 2} for index in range(25)]
    assert {sample.instance for sample in read(folder)} <= {0, 1}
    assert len(list(folder.glob("*.tar"))) == 3


VARIOUS = """
def sample(task):
    rows = 400 if task.index % 2 == 0 else 1
    return {"image": task.rng.integers(0, 256, (rows, 400, 3), np.uint8)}
"""


async def test_frames_are_written_in_the_order_in_which_they_come(
    tmp_path: Path, write_script: Callable[..., Path]
) -> None:
    """However long their images take. So one Blender, or `ordered`, gives the same bytes each time."""
    script, fake = write_script(VARIOUS), fake_blender(tmp_path / "fake")
    kinds: dict[str, dict[str, Any]] = {
        "one": {"instances": 1},
        "again": {"instances": 1},
        "ordered": {"ordered": True},
    }
    for name, options in kinds.items():
        stream = ab.BlenderStream(script=script, blender=fake, length=30, **options)
        async with asyncio.timeout(LIMIT):
            await stream.record(tmp_path / name, shard_size=30)
        with tarfile.open(tmp_path / name / "shard-000000.tar") as tar:
            files = [member for member in tar.getnames() if member.endswith(".image.png")]
        assert files == [f"{index:09d}.image.png" for index in range(30)]
    assert (tmp_path / "one" / "shard-000000.tar").read_bytes() == (
        tmp_path / "again" / "shard-000000.tar"
    ).read_bytes()


async def test_a_stream_that_is_not_entered_is_entered_and_closed(make: Make, folder: Path) -> None:
    """The recorder owns its fleet then, so that recording is one line."""
    stream = make(length=5)
    async with asyncio.timeout(LIMIT):
        assert await stream.record(folder) == 5
    assert set(stream.stats().state.values()) == {"stopped"}
    with pytest.raises(ab.StreamClosed):
        await stream.render(0)
    check(folder, list(range(5)))


async def test_frames_are_given_while_they_are_recorded(make: Make, folder: Path) -> None:
    """The iterator returns each frame once, as the stream does."""
    async with asyncio.timeout(LIMIT), make(length=30) as stream:
        frames = [frame async for frame in stream.record(folder)]
    assert sorted(frame.index for frame in frames) == list(range(30))
    assert not frames[0]["image"].flags.writeable
    check(folder, list(range(30)))


async def test_leaving_early_keeps_what_was_given(make: Make, folder: Path) -> None:
    """Closing the stream makes the unfinished shard whole."""
    given = []
    async with asyncio.timeout(LIMIT), make() as stream:
        async for frame in stream.record(folder, length=1000):
            given.append(frame.index)
            if len(given) == 7:
                break
    check(folder, sorted(given))


async def test_closing_keeps_what_was_given(make: Make, folder: Path) -> None:
    """Closing the recorder does so too, also twice, while its stream goes on."""
    async with asyncio.timeout(LIMIT), make() as stream:
        async with stream.record(folder, length=100) as recorder:
            given = [(await anext(recorder)).index for _ in range(3)]
        await recorder.aclose()
        assert recorder.closed
        assert recorder.recorded == 3
        check(folder, sorted(given))
        with pytest.raises(StopAsyncIteration):
            await anext(recorder)
        assert await anext(stream)


async def test_going_on_renders_only_what_is_missing(
    make: Make, folder: Path, rendered: Callable[[], list[int]]
) -> None:
    """Samples in the folder are not rendered again; a larger length adds to them."""
    async with asyncio.timeout(LIMIT):
        await make(length=10).record(folder)
        before = rendered()
        assert await make(length=10).record(folder) == 10
        assert rendered() == before == list(range(10))  # nothing was missing: no Blender was started
        stream = make(length=16)
        recorder = stream.record(folder)
        assert await recorder == 16
        assert (recorder.before, recorder.recorded) == (10, 16)
        assert rendered() == list(range(16))
        assert stream.stats().delivered == 6
    check(folder, list(range(16)))


async def test_holes_are_filled(make: Make, folder: Path, rendered: Callable[[], list[int]]) -> None:
    """The samples of a shard that was removed, and no others, are rendered again."""
    async with asyncio.timeout(LIMIT):
        await make(length=20, ordered=True).record(folder, shard_size=4)
        missing = Recording(folder).indices[Recording(folder).shards == 2].tolist()
        for suffix in (".tar", ".json"):
            (folder / f"shard-000002{suffix}").unlink()
        await make(length=20, ordered=True).record(folder, shard_size=4)
    check(folder, list(range(20)))
    assert rendered() == sorted([*range(20), *missing])


async def test_an_entered_stream_renders_nothing_twice(
    make: Make, folder: Path, rendered: Callable[[], list[int]]
) -> None:
    """Entering leases nothing, so a recording of an entered stream renders exactly what the folder lacks."""
    async with asyncio.timeout(LIMIT):
        await make(length=10).record(folder)
        async with make(length=30) as stream:
            while "idle" not in stream.stats().state.values():
                await asyncio.sleep(0.002)
            frames = [frame.index async for frame in stream.record(folder)]
            assert stream.stats().delivered == 20
    assert sorted(frames) == list(range(10, 30))
    assert rendered() == list(range(30))
    check(folder, list(range(30)))


async def test_a_stream_is_recorded_and_iterated_at_once(make: Make, folder: Path) -> None:
    """Each is a pass of its own: both have all frames, and what the loop consumed is recorded all the same."""
    async with asyncio.timeout(LIMIT), make(length=40, queue_size=4) as stream:
        consumed = [(await anext(stream)).index for _ in range(3)]
        recording = asyncio.ensure_future(stream.record(folder, length=30))
        other = asyncio.ensure_future(stream.render(1000))
        consumed += [frame.index async for frame in stream]
        assert sorted(consumed) == list(range(40))
        assert await recording == 30
        assert (await other).index == 1000
        assert stream.stats().delivered == 71
    check(folder, list(range(30)))


async def test_a_stalled_loop_holds_up_no_recording(make: Make, folder: Path) -> None:
    """Nor does a stalled recording hold up a loop."""
    async with asyncio.timeout(LIMIT), make(length=40, queue_size=2) as stream:
        consumed = [(await anext(stream)).index]  # and no more of them, for now
        recorder = stream.record(folder)
        given = [(await anext(recorder)).index for _ in range(30)]
        consumed += [frame.index async for frame in stream]
        assert sorted(consumed) == list(range(40))
        given += [frame.index async for frame in recorder]
        assert sorted(given) == list(range(40))
    check(folder, list(range(40)))


async def test_a_second_recording_after_the_first(
    make: Make, folder: Path, tmp_path: Path, rendered: Callable[[], list[int]]
) -> None:
    """Over the same warm fleet: the first may have ended, or been closed early; the folder may be another."""
    async with asyncio.timeout(LIMIT), make(length=20, ordered=True) as stream:
        assert await stream.record(folder, length=5) == 5
        async with stream.record(folder, length=10) as recorder:
            assert (await anext(recorder)).index == 5
        assert await stream.record(folder) == 20
        times = Counter(rendered())
        assert set(times) == set(range(20))
        assert {times[index] for index in (*range(6), *range(10, 20))} == {1}
        assert max(times.values()) <= 2  # of what was leased when the recording was closed, some was made
        assert await stream.record(tmp_path / "other", length=3) == 3
        assert stream.stats().restarts == 0
    check(folder, list(range(20)))
    check(tmp_path / "other", [0, 1, 2])


async def test_a_length_of_an_endless_stream(make: Make, folder: Path) -> None:
    """The stream's own pass begins at its first index afterwards."""
    async with asyncio.timeout(LIMIT), make(ordered=True) as stream:
        assert await stream.record(folder, length=7) == 7
        assert (await anext(stream)).index == 0
    check(folder, list(range(7)))


CRASH = """
import asyncio, os, sys
import asyncblend as ab

async def main():
    script, fake, folder = sys.argv[1:]
    given = 0
    async with ab.BlenderStream(script=script, blender=fake, instances=2, seed=5, length=40) as stream:
        recorder = stream.record(folder, shard_size=5)
        async for _ in recorder:
            given += 1
            if given == 23:
                while recorder.recorded < 10:
                    await asyncio.sleep(0.002)
                os._exit(9)

asyncio.run(main())
"""


async def test_after_a_crash_only_what_is_missing_is_rendered(
    make: Make, folder: Path, tmp_path: Path, rendered: Callable[[], list[int]]
) -> None:
    """A program that dies while it records loses the unfinished shard; the next run makes the rest, and no more."""
    stream = make(length=40)
    (tmp_path / "program.py").write_text(CRASH)
    arguments = [str(tmp_path / "program.py"), str(stream.config.script), str(stream.config.blender), str(folder)]
    async with asyncio.timeout(LIMIT):
        program = await asyncio.create_subprocess_exec(sys.executable, *arguments)
        assert await program.wait() == 9
        before = rendered()
        there = set(Recording(folder).indices.tolist())
        assert await stream.record(folder, shard_size=5) == 40
    missing = set(range(40)) - there
    assert stream.stats().delivered == len(missing) < 40
    assert rendered() == sorted([*before, *missing])
    check(folder, list(range(40)))


async def test_a_shard_of_a_stream(make: Make, folder: Path, rendered: Callable[[], list[int]]) -> None:
    """A shard has the indices start + k, start + k + n, ...; `length` counts from the start, over all shards."""
    async with asyncio.timeout(LIMIT):
        await make(length=10, start=100, shard=(1, 3)).record(folder)
        await make(length=20, start=100, shard=(1, 3)).record(folder)
    assert Recording(folder).indices.tolist() == rendered() == list(range(101, 120, 3))


async def test_deaths_of_blenders_lose_nothing(make: Make, folder: Path) -> None:
    """A recording is complete although its Blenders crash, as any stream is."""
    async with asyncio.timeout(LIMIT):
        stream = make({"crash_after": 6, "lives": 2}, length=40, restart=ab.RestartPolicy(backoff=0.01))
        assert await stream.record(folder, shard_size=8) == 40
        assert stream.stats().restarts
    check(folder, list(range(40)))


@pytest.mark.parametrize("turns", range(0, 60, 6))
@pytest.mark.exhaustive
async def test_cancelling_keeps_what_was_given(turns: int, make: Make, folder: Path) -> None:
    """At any moment: all frames that were returned are in the folder, and the next run adds the rest."""
    given: list[int] = []
    async with asyncio.timeout(LIMIT):

        async def work() -> None:
            async with make(length=60).record(folder, shard_size=5) as recorder:
                async for frame in recorder:
                    given.append(frame.index)

        task = asyncio.create_task(work())
        while len(given) < turns and not task.done():
            await asyncio.sleep(0)
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        if given:
            check(folder, sorted(given))
        await make(length=60).record(folder)
    check(folder, list(range(60)))


@pytest.mark.parametrize("turns", range(0, 60, 6))
@pytest.mark.exhaustive
async def test_cancelling_an_await_keeps_what_came(turns: int, make: Make, folder: Path) -> None:
    """The recorder closes the stream that it entered; the next run renders the rest."""
    async with asyncio.timeout(LIMIT):
        stream = make(length=60)
        recorder = stream.record(folder, shard_size=5)

        async def record() -> int:
            return await recorder

        task = asyncio.create_task(record())
        await asyncio.sleep(0)
        while stream.stats().delivered < turns and not task.done():
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert recorder.closed
        assert "ready" not in stream.stats().state.values()
        if recorder.recorded:
            check(folder, Recording(folder).indices.tolist())
            assert len(Recording(folder)) == recorder.recorded >= turns
        assert await make(length=60).record(folder) == 60
    check(folder, list(range(60)))


async def test_an_interrupted_wait_loses_no_frame(make: Make, folder: Path) -> None:
    """Timeouts around the next frame, again and again, change nothing: each frame is returned and recorded once."""
    given = []
    async with asyncio.timeout(LIMIT), make(length=40) as stream:
        recorder = stream.record(folder, shard_size=5)
        while True:
            try:
                async with asyncio.timeout(0.002):
                    given.append((await anext(recorder)).index)
            except TimeoutError:
                continue
            except StopAsyncIteration:
                break
        await recorder.aclose()
    check(folder, list(range(40)))
    assert sorted(given) == list(range(40))


# -- errors --------------------------------------------------------------------------------------------------------


async def test_a_failing_sample_ends_it_with_what_came(make: Make, folder: Path, write_script: Any) -> None:
    """The stream's own error comes out; with on_bad_sample="skip", the other samples are recorded."""
    bad = write_script("def sample(task):\n    assert task.index != 5\n    return {'n': task.index}", name="bad.py")
    async with asyncio.timeout(LIMIT):
        with pytest.raises(ab.SampleError) as caught:
            await make(script=bad, length=10, ordered=True, instances=1).record(folder)
        assert caught.value.index == 5
        assert Recording(folder).indices.tolist() == [0, 1, 2, 3, 4]
        assert await make(script=bad, length=10, on_bad_sample="skip").record(folder) == 9
    assert Recording(folder).indices.tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9]


@pytest.mark.parametrize("opened", [False, True])
async def test_a_full_disk_is_told_and_the_fleet_is_closed(
    opened: bool, make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The error has the number of samples in the folder, all of which can be read. It is raised once, not by each thread."""
    real, left = os.write, 120_000

    def write(descriptor: int, data: Any) -> int:
        nonlocal left
        if folder.name in os.readlink(f"/proc/self/fd/{descriptor}"):
            left -= len(data)
            if left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    stream = make(length=1000)
    async with asyncio.timeout(LIMIT):
        with pytest.raises(ab.RecordingError, match=r"No space left on device.* stay readable") as caught:
            if opened:
                async with stream:
                    await stream.record(folder, shard_size=6)
            else:
                await stream.record(folder, shard_size=6)
    gc.collect()
    assert "never retrieved" not in caplog.text
    assert set(stream.stats().state.values()) == {"stopped"}
    recorded = Recording(folder)
    assert caught.value.recorded == len(recorded) > 6
    check(folder, recorded.indices.tolist())


async def test_a_full_disk_after_the_loop_is_told_by_the_stream(
    make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If only the end of the last shard finds the disk full, after the loop was left, leaving the stream raises."""

    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with asyncio.timeout(LIMIT):
        with pytest.raises(ab.RecordingError, match="No space left on device"):
            async with make(length=50) as stream:
                async for _ in stream.record(folder):
                    break
                monkeypatch.setattr(os, "fsync", fsync)
    assert "No space left on device" in caplog.text


async def test_another_recording_is_told_before_anything_is_rendered(
    make: Make, folder: Path, rendered: Callable[[], list[int]]
) -> None:
    """The folder of another recording stays as it is."""
    async with asyncio.timeout(LIMIT):
        await make(length=3).record(folder)
        before = rendered()
        with pytest.raises(ab.ConfigError, match="seed is 5 there, 6 here"):
            await make(length=10, seed=6).record(folder)
        with pytest.raises(ab.ConfigError, match="image_format is 'png' there, 'jpeg' here"):
            await make(length=10).record(folder, image_format="jpeg")
    assert rendered() == before
    check(folder, [0, 1, 2])


async def test_another_version_of_blender_is_refused(make: Make, folder: Path) -> None:
    """Its pixels may differ. What is there stays, and the fleet ends; only what is missing needs a Blender."""
    stream = make(length=4)
    writer = Writer(folder, about(stream.config, Images()), ShardSize(2))
    writer.open()
    for index in range(2):
        files = encode({"n": index}, index=index, instance=0, params={}, images=Images())
        writer.add(index, files, blender="4.2.0 LTS")
    writer.close()
    for entered in (False, True):
        async with make(length=4) if entered else contextlib.nullcontext(make(length=4)) as again:
            with pytest.raises(
                ab.ConfigError, match=r"recording of Blender 4\.2\.0 LTS, and this is one of none, whose"
            ):
                await again.record(folder)
    assert Recording(folder).indices.tolist() == [0, 1]
    assert await make(length=4).record(folder, length=2) == 2


async def test_wrong_options_are_told_at_once(make: Make, folder: Path) -> None:
    """They are ConfigErrors of `record` itself, before the folder is made."""
    for stream, options, message in (
        (make(), {}, "an endless stream is recorded up to a length"),
        (make(length=5), {"length": 6}, "length=6 is more than the stream has, which is 5"),
        (make(length=5), {"length": -1}, "length must be a whole number"),
        (make(length=5), {"shard_size": 0}, "shard_size must be"),
        (make(length=5), {"image_format": "gif"}, "image_format must be"),
        (make(length=5), {"quality": 5}, "quality goes with"),
    ):
        with pytest.raises(ab.ConfigError, match=message):
            stream.record(folder, **options)
    stream = make(length=5)
    stream.record(folder)
    with pytest.raises(ab.ConfigError, match="is being recorded already"):
        stream.record(folder)
    assert not folder.exists()


async def test_a_closed_stream_is_told(make: Make, folder: Path) -> None:
    """Recording a closed stream raises StreamClosed, as iterating over it does."""
    stream = make(length=5)
    await stream.aclose()
    with pytest.raises(ab.StreamClosed):
        await stream.record(folder)


async def test_the_loop_goes_on_while_files_are_written(
    make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that does not answer stops the iteration after two frames for each thread, and nothing else."""
    answer, real = threading.Event(), os.fsync

    def fsync(descriptor: int) -> None:
        answer.wait(LIMIT)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    given = 0
    async with asyncio.timeout(LIMIT), make(length=100) as stream:

        async def work() -> None:
            nonlocal given
            async for _ in stream.record(folder, shard_size=1):
                given += 1

        task = asyncio.create_task(work())
        try:
            while given < 2 * cores() or stream.stats().queued < stream.config.queue_size:
                await asyncio.sleep(0)  # this loop goes on
            for _ in range(100):
                await asyncio.sleep(0)
            assert given == 2 * cores()
        finally:
            answer.set()
        await task
    check(folder, list(range(100)))


async def test_a_shard_is_whole_before_the_blenders_end(
    make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second Ctrl-C while they end cancels all tasks, and nothing that was counted is lost by it."""
    stream = make(length=1000)
    recorded: list[int] = []

    async def aclose() -> None:
        recorded.extend(Recording(folder).indices.tolist())

    recorder = stream.record(folder)
    async with asyncio.timeout(LIMIT):
        try:
            for _ in range(5):
                await anext(recorder)
            with monkeypatch.context() as patched:
                patched.setattr(stream, "aclose", aclose)
                await recorder.aclose()
        finally:
            await stream.aclose()
    assert len(recorded) == recorder.recorded == 5
    check(folder, recorded)
