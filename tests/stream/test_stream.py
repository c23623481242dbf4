"""A BlenderStream's calls: `render`, wrong arguments, and calls before, after and outside its time."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import asyncblend as ab

Make = Callable[..., ab.BlenderStream]

LIMIT = 60.0  # seconds; the bound of failure of every wait here


async def indices_of(frames: Any) -> list[int]:
    return [frame.index async for frame in frames]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what the fleet brings about."""
    while not condition():
        await asyncio.sleep(0.002)


# -- render ------------------------------------------------------------------------------------------------------


async def test_render_makes_one_sample(make: Make) -> None:
    """Any index, with its own params or the config's; the same index and params give the same bits."""
    async with asyncio.timeout(LIMIT), make(seed=3, length=4, params=lambda index: {"level": 2 * index}) as stream:
        frames = [
            await stream.render(17),
            await stream.render(17, {"level": "own"}),
            await stream.render(2**62),
            await stream.render(index=17, params={}),
            *[frame async for frame in stream.frames([17])],
        ]
        assert [frame.index for frame in frames] == [17, 17, 2**62, 17, 17]
        assert [frame["level"] for frame in frames] == [34, "own", 2**63, None, 34]
        assert [frame.params.get("level") for frame in frames] == [34, "own", 2**63, None, 34]
        for frame in frames:
            np.testing.assert_array_equal(frame["noise"], np.random.default_rng([3, frame.index]).random(4))
        assert stream.stats().delivered == 5
        assert sorted(await indices_of(stream)) == [0, 1, 2, 3]  # rendering took nothing from the stream's own pass


async def test_render_while_the_own_pass_is_stalled(make: Make) -> None:
    """A stream whose slots are all full renders all the same, and is complete afterwards."""
    async with asyncio.timeout(LIMIT), make(queue_size=2, length=20) as stream:
        got = [(await anext(stream)).index]
        for index in (3, 1000):
            await until(lambda: stream.stats().queued == 2)
            assert (await stream.render(index)).index == index
        got += await indices_of(stream)
        assert sorted(got) == list(range(20))


async def test_render_goes_before_what_is_not_begun(make: Make, gates: Any) -> None:
    """A sample that is wanted now overtakes all that its Blender holds, but the one that the Blender is at."""
    stream = make(gates.script, instances=1, prefetch=8, length=12)
    async with asyncio.timeout(LIMIT), stream:
        running = asyncio.ensure_future(indices_of(stream))
        await gates.until_begun(0)
        wanted = asyncio.ensure_future(stream.render(99, {"level": 5}))
        await until(lambda: stream.stats().rendering == 9)
        await gates.next_is(99, iter(range(8)))
        gates.let_go(99)
        frame = await wanted
        assert (frame.index, frame["level"]) == (99, 5)
        assert not running.done()
        gates.let_all_go()
        assert sorted(await running) == list(range(12))


async def test_many_renders_at_once(make: Make) -> None:
    """Fifty at a time, beside two passes, each with its own params."""
    async with asyncio.timeout(LIMIT), make(length=60, queue_size=4) as stream:
        other = stream.frames(range(100, 160), ordered=True)
        passes = [asyncio.ensure_future(indices_of(source)) for source in (stream, other)]
        frames = await asyncio.gather(*(stream.render(1000 + n // 2, {"level": n}) for n in range(50)))
        assert [(frame.index, frame["level"]) for frame in frames] == [(1000 + n // 2, n) for n in range(50)]
        own, others = await asyncio.gather(*passes)
        assert (sorted(own), others) == (list(range(60)), list(range(100, 160)))
        assert stream.stats().delivered == 170


@pytest.mark.parametrize("choice", ["raise", "skip"])
async def test_render_of_a_sample_that_raises(choice: str, make: Make) -> None:
    """It raises SampleError also where the stream skips bad samples; the stream goes on."""
    body = "def sample(task):\n    if task.index == 50: raise ValueError('no cube')\n    return {}"
    async with asyncio.timeout(LIMIT), make(body, length=30, queue_size=4, on_bad_sample=choice) as stream:
        got = [(await anext(stream)).index]
        for _ in range(2):
            with pytest.raises(ab.SampleError, match="no cube") as caught:
                await stream.render(50)
            assert caught.value.index == 50
            assert "in sample" in caught.value.traceback
        got += await indices_of(stream)
        assert sorted(got) == list(range(30))
        assert (await stream.render(51)).index == 51
        assert (stream.stats().skipped, stream.stats().restarts) == (0, 0)


async def test_render_of_a_sample_that_kills_its_blenders(make: Make) -> None:
    """It is given up after as many Blenders as the policy allows, and the stream goes on."""
    body = "import os\ndef sample(task):\n    if task.index == 50: os._exit(3)\n    return {}"
    policy = ab.RestartPolicy(max_sample_deaths=2, backoff=0.01)
    options: dict[str, Any] = {"length": 30, "queue_size": 4, "restart": policy, "on_bad_sample": "skip"}
    async with asyncio.timeout(LIMIT), make(body, **options) as stream:
        got = [(await anext(stream)).index]
        with pytest.raises(ab.SampleError, match="sample 50 killed its Blender 2 times") as caught:
            await stream.render(50)
        assert caught.value.index == 50
        got += await indices_of(stream)
        assert sorted(got) == list(range(30))
        assert stream.stats().restarts >= 1


async def test_render_takes_the_blame_for_its_own_sample(make: Make, gates: Any) -> None:
    """A sample that overtook others and killed its Blender is the bad one; what was held behind it is rendered later."""
    body = f"""{gates.script}
gated = sample
def sample(task):
    values = gated(task)
    return os._exit(3) if task.index == 50 else values
"""
    policy = ab.RestartPolicy(max_sample_deaths=1, backoff=0.01)
    options: dict[str, Any] = {"instances": 1, "prefetch": 4, "length": 12, "restart": policy, "on_bad_sample": "skip"}
    async with asyncio.timeout(LIMIT), make(body, **options) as stream:
        own = asyncio.ensure_future(indices_of(stream))
        await gates.until_begun(0)
        wanted = asyncio.ensure_future(stream.render(50))
        await until(lambda: stream.stats().rendering == 5)
        made = await gates.next_is(50, iter(range(4)))
        await until(lambda: stream.stats().delivered == made)  # a dying Blender would take these frames along
        gates.let_all_go()
        with pytest.raises(ab.SampleError, match="sample 50 killed its Blender 2 times"):
            await wanted
        assert sorted(await own) == list(range(12))
        # The first Blender held others too, so the sample was tried once more, alone.
        assert (stream.stats().skipped, stream.stats().restarts) == (0, 2)


async def test_a_cancelled_render_is_given_up(make: Make, gates: Any) -> None:
    """Its frame, should it still come, goes to nobody; others of the same index are served."""
    async with asyncio.timeout(LIMIT), make(gates.script, instances=1, prefetch=4) as stream:
        cancelled = [asyncio.ensure_future(stream.render(index, {"level": "old"})) for index in (7, 7, 8)]
        kept = asyncio.ensure_future(stream.render(8, {"level": "kept"}))
        await gates.until_begun(7)
        for one in cancelled:
            one.cancel()
        for one in cancelled:
            with pytest.raises(asyncio.CancelledError):
                await one
        assert stream.stats().rendering == 1
        again = asyncio.ensure_future(stream.render(7, {"level": "new"}))
        gates.let_all_go()
        assert (await kept)["level"] == "kept"
        assert (await again)["level"] == "new"
        stats = stream.stats()
        assert (stats.delivered, stats.rendering, stats.queued) == (2, 0, 0)
        assert stats.stale >= 1


async def test_render_when_the_fleet_is_lost(make: Make) -> None:
    """It raises why; a pass that is begun afterwards does too, and so does the stream's own."""
    body = "import os\ndef sample(task):\n    if task.index == 50: os._exit(3)\n    return {}"
    async with asyncio.timeout(LIMIT), make(body, restart=ab.RestartPolicy(max_restarts=0), instances=1) as stream:
        assert (await stream.render(1)).index == 1
        for index in (50, 1):
            with pytest.raises(ab.CrashLoop, match="status 3"):
                await stream.render(index)
        for source in (stream, stream.frames([2])):
            for _ in range(2):
                with pytest.raises(ab.CrashLoop, match="status 3"):
                    await anext(source)


# -- wrong calls -------------------------------------------------------------------------------------------------


async def test_a_wrong_argument_is_named(make: Make) -> None:
    """Each is a ConfigError with the value, and no pass is begun."""
    wrong_frames: list[tuple[dict[str, Any], str]] = [
        ({"indices": "123"}, "indices must be a sequence of whole numbers; got '123'"),
        ({"indices": b"1"}, "indices must be .*got b'1'"),
        ({"indices": 5}, "indices must be .*got 5"),
        ({"indices": [0, 1.5]}, r"indices must be .*got \[0, 1\.5\]"),
        ({"indices": [True, False]}, r"indices must be .*got \[True, False\]"),
        ({"indices": np.array([True])}, r"indices must be .*got array\(\[ True\]\)"),
        ({"indices": np.zeros((2, 2), int)}, "indices must be .*got array"),
        ({"indices": np.array(["a"])}, "indices must be .*got array"),
        ({"indices": {3, 4}}, "indices must be .*got {3, 4}"),
        ({"indices": {3: 4}}, "indices must be .*got {3: 4}"),
        ({"indices": iter([1])}, "indices must be .*got <list_iterator"),
        ({"indices": [3, -1]}, r"indices must be from 0 to 2\*\*63 - 2; got -1"),
        ({"indices": range(-2, 5)}, "indices must be from 0 .*got -2"),
        ({"indices": range(5, -2, -1)}, "indices must be from 0 .*got -1"),
        ({"indices": [2**63 - 1]}, f"indices must be from 0 .*got {2**63 - 1}"),
        ({"indices": range(2**63, 2**63 + 1)}, f"indices must be from 0 .*got {2**63}"),
        ({"params": 3}, "params must be a mapping, .*got 3"),
        ({"params": "level"}, "params must be .*got 'level'"),
        ({"ordered": 1}, "ordered must be a bool; got 1"),
        ({"ordered": "yes"}, "ordered must be a bool; got 'yes'"),
        ({"queue_size": 0}, "queue_size must be a whole number, at least 1; got 0"),
        ({"queue_size": 2.0}, r"queue_size must be .*got 2\.0"),
        ({"queue_size": True}, "queue_size must be .*got True"),
    ]
    wrong_renders: list[tuple[tuple[Any, ...], str]] = [
        ((-1,), "got -1"),
        ((2**63 - 1,), f"got {2**63 - 1}"),
        ((1.5,), r"got \[1\.5\]"),
        (("17",), r"got \['17'\]"),
        ((True,), r"got \[True\]"),
        ((None,), r"got \[None\]"),
        (([1],), r"got \[\[1\]\]"),
        ((1, 5), "params must be .*got 5"),
        ((1, {"a": b"x"}), r"params of index 1: value 'a' is a builtins\.bytes"),
        ((1, {"a": [object()]}), r"params of index 1: value 'a\[0\]' is a builtins\.object"),
    ]
    async with asyncio.timeout(LIMIT), make(length=3) as stream:
        for options, message in wrong_frames:
            with pytest.raises(ab.ConfigError, match=message):
                stream.frames(**options)
        for arguments, message in wrong_renders:
            with pytest.raises(ab.ConfigError, match=message):
                await stream.render(*arguments)
        assert stream.stats().rendering == 0
        assert sorted(await indices_of(stream)) == [0, 1, 2]


def calls(stream: ab.BlenderStream) -> dict[str, Callable[[], Any]]:
    """Everything that needs an open stream; what is returned must be awaited, if it can be."""
    return {
        "iterate": lambda: anext(stream),
        "frames": stream.frames,
        "render": lambda: stream.render(1),
        "flush": stream.flush,
        "batches": lambda: anext(stream.batches(2)),
    }


async def test_before_entering_and_after_closing(make: Make) -> None:
    """A stream that was never entered says so, one that was closed is StreamClosed, and neither can be entered again."""
    stream = make()
    for call in calls(stream).values():
        with pytest.raises(ab.ConfigError, match="not entered; use it as `async with`"):
            await call()
    async with asyncio.timeout(LIMIT), stream:
        frames, waiting = stream.frames(range(1000), queue_size=2), stream.frames([5])
        await anext(frames)
        await anext(waiting)
        with pytest.raises(ab.ConfigError, match="entered only once"):
            await stream.__aenter__()
    for call in calls(stream).values():
        with pytest.raises(ab.StreamClosed, match="the stream was closed"):
            await call()
    with pytest.raises(ab.StreamClosed):
        await anext(frames)
    assert frames.stats().delivered == 1
    assert frames.flush() == 0
    await frames.aclose()
    assert stream.stats().delivered == 2
    with pytest.raises(ab.ConfigError, match="entered only once"):
        await stream.__aenter__()
    never = make()
    await never.aclose()
    with pytest.raises(ab.ConfigError, match="entered only once"):
        await never.__aenter__()
    for call in calls(never).values():
        with pytest.raises(ab.StreamClosed):
            await call()


async def test_closing_the_stream_wakes_every_pass(make: Make, gates: Any) -> None:
    """Whoever waits for a frame, in any pass or in render, gets StreamClosed."""
    async with asyncio.timeout(LIMIT), make(gates.script) as stream:
        one, other = stream.frames(range(3)), stream.frames([50])
        calls = [anext(stream), anext(one), anext(other), stream.render(9)]
        waiting = [asyncio.ensure_future(call) for call in calls]
        await asyncio.sleep(0)
        await until(lambda: stream.stats().rendering > 4)  # prefetch of two Blenders, and the urgent sample
        await stream.aclose()
        for error in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(error, ab.StreamClosed)
            assert "the stream was closed" in str(error)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
async def test_a_forked_copy_is_told(make: Make) -> None:
    """Everything raises ForkedProcessError there, closing does nothing, and the parent's passes are undisturbed."""
    async with asyncio.timeout(LIMIT), make(length=30, queue_size=4) as stream:
        frames = stream.frames(range(100, 120), queue_size=3)
        got = [(await anext(stream)).index, (await anext(frames)).index]
        read, write = os.pipe()
        if (pid := os.fork()) == 0:
            # Whatever goes wrong, this copy of the test must not go on with the other tests.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(30)
            try:
                said = []
                of_frames: dict[str, Callable[[], Any]] = {"next": lambda: anext(frames), "frames.flush": frames.flush}
                for name, call in {**calls(stream), **of_frames}.items():
                    try:
                        call().__await__().send(None)
                        said.append(f"{name} went on")
                    except BaseException as error:
                        if type(error) is not ab.ForkedProcessError or "make a new one here" not in str(error):
                            said.append(f"{name} raised {error!r}")
                for close in (frames.aclose, stream.aclose):
                    try:
                        close().send(None)
                    except StopIteration:
                        continue
                    said.append("closing waits")
                said.append(f"delivered {stream.stats().delivered}")
                os.write(write, "; ".join(said).encode())
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read) as told:
            assert told.read() == "delivered 2"
        assert os.waitpid(pid, 0)[1] == 0  # noqa: ASYNC222
        got += await indices_of(stream) + await indices_of(frames)
        assert sorted(got) == [*range(30), *range(100, 120)]


async def test_a_closed_stream_is_not_kept_alive(make: Make) -> None:
    """Nor are its passes and what they hold, once nobody has them."""
    async with asyncio.timeout(LIMIT), make(length=3) as stream:
        frames = stream.frames(range(1000))
        assert len(await indices_of(stream)) == 3
        gone: list[Any] = [weakref.ref(stream), weakref.ref(frames), weakref.ref((await anext(frames))["noise"])]
    del stream, frames
    gc.collect()
    assert [ref() for ref in gone] == [None] * 3
