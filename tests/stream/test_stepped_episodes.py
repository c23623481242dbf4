"""Episodes whose every step is asked for: `BlenderStream.episode` and `SyncStream.episode`."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asyncblend as ab
from asyncblend.testing import fake_blender

Make = Callable[..., ab.BlenderStream]

LIMIT = 60.0  # seconds; the bound of failure of every wait here
PATIENT = ab.RestartPolicy(max_restarts=10_000, backoff=0.001, max_backoff=0.001, max_sample_deaths=1_000)

ADD = """
import numpy as np
def sample(task):
    total, noise = task.params.get("start", 0), 0.0
    while total < 1000:
        params = yield {"total": total, "noise": noise, "history": np.arange(total)}
        total += params.get("add", 0)
        noise = task.rng.random()
"""


def pid_of(stream: Any, number: int) -> int:
    """Return the process of an instance."""
    return int(stream._run._fleet._children[number].pid)


async def test_each_step_has_its_params(make: Make) -> None:
    """The generator gets the params of the step, and the frame says which they were."""
    start = {"start": 3}
    async with asyncio.timeout(LIMIT), make(ADD, instances=1) as stream, await stream.episode(5, start) as episode:
        assert (episode.frame["total"], episode.frame.step, dict(episode.frame.params)) == (3, 0, start)
        for step, add in enumerate((1, 10, 0), 1):
            frame = await episode.step({"add": add})
            assert frame is episode.frame
            assert (frame.index, frame.step, frame.last, frame.params["add"]) == (5, step, False, add)
        assert frame["total"] == 14
        frame = await episode.step()
        assert frame["total"] == 14
        np.testing.assert_array_equal(frame["history"], np.arange(14))


async def test_the_end_of_the_generator(make: Make) -> None:
    """The step that it does not make raises EpisodeOver, and so does each later one. The Blender makes other samples."""
    async with asyncio.timeout(LIMIT), make(ADD, instances=1) as stream:
        episode = await stream.episode(0)
        for _ in range(2):
            with pytest.raises(ab.EpisodeOver, match="its generator has returned"):
                await episode.step({"add": 5000})
        async with await stream.episode(1) as other:
            assert other.frame["total"] == 0
        for _ in range(2):
            with pytest.raises(ab.EpisodeOver, match="the episode was closed"):
                await other.step()


async def test_a_sample_of_one_frame_is_an_episode_too(make: Make) -> None:
    """It is over after its first frame."""
    async with asyncio.timeout(LIMIT), make(instances=1) as stream:
        episode = await stream.episode(4)
        assert (episode.frame.step, episode.frame.last) == (0, True)
        with pytest.raises(ab.EpisodeOver, match="its sample function is no generator"):
            await episode.step()


async def test_episodes_have_a_blender_each(make: Make) -> None:
    """As many as there are instances go on at once; the next one begins when one of them ends."""
    async with asyncio.timeout(LIMIT), make(ADD, instances=2) as stream:
        first, second = await stream.episode(0), await stream.episode(1)
        third = asyncio.ensure_future(stream.episode(2))
        for add in range(5):
            first.send({"add": add})
            second.send({"add": 10 * add})
            assert (await first.receive())["total"] * 10 == (await second.receive())["total"]
        assert first.frame.instance != second.frame.instance
        assert not third.done()
        await first.aclose()
        assert (await third).frame.instance == first.frame.instance
        await second.aclose()


async def test_episodes_beside_a_stream(make: Make) -> None:
    """What is leased to a Blender before is made first, and nothing waits behind the episode."""
    async with asyncio.timeout(LIMIT), make(ADD.replace("while", "if"), instances=2, length=200) as stream:
        frames = [await anext(stream)]
        episode = await stream.episode(1000, {"start": 7})
        frames += [frame async for frame in stream]
        assert sorted(frame.index for frame in frames) == list(range(200))
        assert episode.frame["total"] == 7
        with pytest.raises(ab.EpisodeOver):
            await episode.step()


@pytest.mark.parametrize("moment", ["between", "before the frame"])
async def test_a_blender_that_dies_is_replaced(make: Make, moment: str) -> None:
    """The same steps are made again, with the same params and the same random numbers, and the episode goes on."""
    wanted = []
    async with asyncio.timeout(LIMIT), make(ADD, instances=1) as stream, await stream.episode(9) as episode:
        for add in range(6):
            wanted.append(((await episode.step({"add": add}))["total"], episode.frame["noise"]))
    async with asyncio.timeout(LIMIT), make(ADD, instances=1, restart=PATIENT) as stream:
        async with await stream.episode(9) as episode:
            for add in range(6):
                if moment == "between":
                    os.kill(pid_of(stream, 0), signal.SIGKILL)
                episode.send({"add": add})
                if moment != "between" and add in (0, 3):
                    os.kill(pid_of(stream, 0), signal.SIGKILL)
                frame = await episode.receive()
                assert (frame["total"], frame["noise"], frame.step) == (*wanted[add], add + 1)
        assert stream.stats().restarts >= 2


async def test_replaying_has_a_limit(make: Make) -> None:
    """An episode with more steps is lost, and the error says so. Another one can be begun."""
    async with asyncio.timeout(LIMIT), make(ADD, instances=1, restart=PATIENT) as stream:
        for steps, limit in ((0, 0), (3, 3), (3, 5)):
            async with await stream.episode(1, max_replay=limit) as episode:
                for _ in range(steps):
                    await episode.step({"add": 1})
                os.kill(pid_of(stream, 0), signal.SIGKILL)
                assert (await episode.step())["total"] == steps
        for steps, limit in ((1, 0), (4, 3)):
            async with await stream.episode(1, max_replay=limit) as episode:
                for _ in range(steps):
                    await episode.step({"add": 1})
                os.kill(pid_of(stream, 0), signal.SIGKILL)
                with pytest.raises(ab.EpisodeLost, match=f"died after {steps} steps, .* at most {limit} ") as caught:
                    await episode.step()
                assert caught.value.step == steps
                with pytest.raises(ab.EpisodeLost) as again:
                    await episode.step()
                assert again.value is caught.value
        assert (await stream.episode(2)).frame["total"] == 0


@pytest.mark.parametrize(("limit", "goes_on"), [(0, False), (1, True)])
async def test_a_step_under_way_is_not_replayed(make: Make, tmp_path: Path, limit: int, *, goes_on: bool) -> None:
    """When a Blender dies in the second step, one has been made."""
    dying = fake_blender(tmp_path / "dying", crash_after=2, lives=1)
    stream = make(ADD, instances=1, restart=PATIENT, blender=dying)
    async with asyncio.timeout(LIMIT), stream, await stream.episode(1, max_replay=limit) as episode:
        await episode.step({"add": 1})
        if goes_on:
            assert (await episode.step({"add": 1}))["total"] == 2
        else:
            with pytest.raises(ab.EpisodeLost, match=r"died after 1 steps, .* at most 0 steps are replayed"):
                await episode.step({"add": 1})


@pytest.mark.parametrize(("limit", "goes_on"), [(2, False), (10, True)])
async def test_a_connection_that_is_lost(make: Make, limit: int, *, goes_on: bool) -> None:
    """A frame is lost with it. An episode that is too long to be replayed is not begun anew without its first steps."""
    body = """
import gc
from asyncblend.blender.serving.worker import Worker
def sample(task):
    worker = next(one for one in gc.get_objects() if isinstance(one, Worker))
    total, torn = 0, False
    while True:
        params = yield {"total": total}
        total += params["add"]
        if total == 5 and not hasattr(worker, "torn"):
            worker.torn = True
            worker._socket.disconnect(worker._launch.endpoint)
            worker._socket.connect(worker._launch.endpoint)
"""
    async with asyncio.timeout(LIMIT), make(body, instances=1) as stream:
        async with await stream.episode(1, max_replay=limit) as episode:
            for total in range(1, 5):
                assert (await episode.step({"add": 1}))["total"] == total
            if goes_on:
                assert [(await episode.step({"add": 1}))["total"] for _ in range(3)] == [5, 6, 7]
            else:
                with pytest.raises(ab.EpisodeLost, match="after 4 steps, or a message was lost") as caught:
                    await episode.step({"add": 1})
                assert caught.value.step == 4
        async with await stream.episode(2) as other:  # by the same Blender
            assert other.frame["total"] == 0
        assert stream.stats().restarts == 0


async def test_a_step_that_is_cancelled_is_made(make: Make, gates: Any) -> None:
    """Its frame waits to be received; the next step is refused until then."""
    body = gates.script.replace("    return {", "    params = yield {}\n    yield {'sum': sum(params['x']), ")
    async with asyncio.timeout(LIMIT), make(body, instances=1) as stream:
        gates.let_go(0)
        async with await stream.episode(0) as episode:
            stepping = asyncio.ensure_future(episode.step({"x": [1, 2]}))
            await asyncio.sleep(0)
            stepping.cancel()
            await asyncio.wait([stepping])
            if stepping.cancelled():
                with pytest.raises(ab.ConfigError, match=r"call receive\(\) first"):
                    await episode.step()
                assert (await episode.receive())["sum"] == 3
            assert episode.frame["sum"] == 3


async def test_bad_arguments(make: Make) -> None:
    """Each is an error of the call, and changes nothing."""
    async with asyncio.timeout(LIMIT), make(ADD, instances=1) as stream:
        with pytest.raises(ab.ConfigError, match="max_replay"):
            await stream.episode(0, max_replay=-1)
        with pytest.raises(ab.ConfigError, match="indices must be"):
            await stream.episode(-1)
        async with await stream.episode(0) as episode:
            with pytest.raises(ab.ConfigError, match="params of step 1 of index 0"):
                await episode.step({"add": object()})
            assert (await episode.step({"add": 1}))["total"] == 1
            with pytest.raises(ab.ConfigError, match=r"no step was begun; call send\(\) first"):
                await episode.receive()
            assert (await episode.step({"add": 1}))["total"] == 2
    with pytest.raises(ab.StreamClosed):
        await stream.episode(0)


async def test_an_error_in_a_step(make: Make) -> None:
    """It is a SampleError with Blender's traceback. The Blender goes on to serve."""
    async with asyncio.timeout(LIMIT), make(ADD, instances=1) as stream:
        episode = await stream.episode(3)
        with pytest.raises(ab.SampleError, match="unsupported operand") as caught:
            await episode.step({"add": "text"})
        assert caught.value.index == 3
        assert 'total += params.get("add", 0)' in caught.value.traceback
        with pytest.raises(ab.SampleError) as again:
            await episode.step({"add": 1})
        assert again.value is caught.value
        assert (await stream.episode(3)).frame["total"] == 0
        assert stream.stats().restarts == 0


async def test_closing_runs_the_scripts_finally(make: Make, tmp_path: Path) -> None:
    """What it raises there is in Blender's log, and ends nothing."""
    body = f"""
def sample(task):
    try:
        while True:
            yield {{}}
    finally:
        open({str(tmp_path / "closed")!r}, "a").write("x")
        raise ArithmeticError
"""
    async with asyncio.timeout(LIMIT), make(body, instances=1, timeouts=ab.Timeouts(stop=LIMIT)) as stream:
        for index in range(3):
            async with await stream.episode(index) as episode:
                await episode.step()
        await stream.render(5)
        assert stream.stats().restarts == 0
    assert (tmp_path / "closed").read_text() == "xxxx"


async def test_closing_while_a_frame_is_awaited(make: Make, gates: Any) -> None:
    """Who waits for it is told that the episode is over; closing the stream is told apart from that."""
    body = gates.script.replace("    open(", "    yield {}\n    open(").replace("    return {", "    yield {")
    async with asyncio.timeout(LIMIT):
        async with make(body, instances=2) as stream:
            one, two = await stream.episode(0), await stream.episode(1)
            steps = [asyncio.ensure_future(episode.step()) for episode in (one, two)]
            await gates.until_begun(0, 1)
            await one.aclose()
            with pytest.raises(ab.EpisodeOver, match="the episode was closed"):
                await steps[0]
            gates.let_all_go()
        await asyncio.wait(steps[1:])
        if steps[1].exception() is not None:  # else its frame came before the end
            assert isinstance(steps[1].exception(), ab.StreamClosed)
        with pytest.raises(ab.StreamClosed):
            await two.step()
        with pytest.raises(ab.EpisodeOver):
            await one.step()


def test_without_asyncio(make_sync: Any) -> None:
    """The same through a thread: several episodes are begun, stepped and received at once; one Blender is killed."""
    stream = make_sync(ADD, restart=PATIENT)
    episodes = [stream.begin_episode(index, {"start": index}) for index in (1, 2)]
    assert [episode.receive()["total"] for episode in episodes] == [1, 2]
    for step in range(1, 5):
        for episode in episodes:
            episode.send({"add": step})
            with pytest.raises(ab.ConfigError, match="receive"):
                episode.send()
        if step == 3:
            os.kill(pid_of(stream, 0), signal.SIGKILL)
        assert [episode.receive(LIMIT).step for episode in episodes] == [step, step]
    assert [episode.frame["total"] for episode in episodes] == [11, 12]
    with pytest.raises(ab.EpisodeOver):
        episodes[0].step({"add": 5000})
    episodes[1].close()
    with stream.episode(7) as episode:
        assert episode.step()["total"] == 0
        with pytest.raises(ab.ConfigError, match="no step was begun"):
            episode.receive(LIMIT)
    for _ in range(2):
        with pytest.raises(ab.EpisodeOver, match="the episode was closed"):
            episode.step()


def test_errors_without_asyncio(make_sync: Any, gates: Any) -> None:
    """What ended an episode is raised again by each later step; a frame that is late can be received later."""
    stream = make_sync(ADD)
    episode = stream.episode(3)
    with pytest.raises(ab.SampleError, match="unsupported operand") as caught:
        episode.step({"add": "text"})
    for _ in range(2):
        with pytest.raises(ab.SampleError) as again:
            episode.step()
        assert again.value is caught.value
    other = stream.episode(4)
    stream.close()
    for _ in range(2):
        with pytest.raises(ab.StreamClosed):
            other.step()
    body = gates.script.replace("    open(", "    yield {}\n    open(").replace("    return {", "    yield {")
    with make_sync(body).episode(0) as late:
        late.send()
        with pytest.raises(TimeoutError):
            late.receive(0.001)
        with pytest.raises(ab.ConfigError, match="call receive"):
            late.send()
        gates.let_all_go()
        assert late.receive(LIMIT).step == 1


def test_a_timeout_error_of_the_start_is_not_ones_own(make_sync: Any) -> None:
    """What has ended an episode is raised as itself by each call, though it is a TimeoutError too."""
    stream = make_sync(start=False, faults={"never_ready": True}, timeouts=ab.Timeouts(start=0.5, stop=0.1))
    stream.start(wait=False)
    episode = stream.begin_episode(3)
    for timeout in (None, LIMIT, 0.0):
        with pytest.raises(ab.StartTimeout, match="did not call serve within"):
            episode.receive(timeout)
