"""Several passes at once over one fleet whose Blenders are killed and stopped: each keeps every promise of its own."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import asyncblend as ab
from asyncblend.testing import fake_blender
from benchmarks.soak.processes import blenders
from tests.faults.common import FAST, LIMIT, PATIENT, PLAIN, Write, check_noise, until

# Sends back what it was made with, so that a frame of another pass would be noticed.
ECHO = "def sample(task): return {'noise': task.rng.random(3), 'who': task.params['who'], 'draw': task.params['draw']}"


class Draws:
    """The params of one pass: its name, and how often an index was drawn."""

    def __init__(self, who: str) -> None:
        self.who = who
        self.counts: dict[int, int] = {}

    def __call__(self, index: int) -> dict[str, Any]:
        self.counts[index] = self.counts.get(index, 0) + 1
        return {"who": self.who, "draw": self.counts[index]}

    def check(self, frames: list[ab.Frame]) -> None:
        """Check that all frames are of this pass, and were made with the params of their first lease."""
        assert {frame["who"] for frame in frames} <= {self.who}
        assert set(self.counts.values()) <= {1}
        assert all(frame["draw"] == 1 for frame in frames)


def hurt(stream: ab.BlenderStream, rng: random.Random, *, stop: bool = False) -> signal.Signals | None:
    """Kill or stop a Blender that serves. Return the signal that was sent, or None if there is no such Blender."""
    states = stream.stats().state
    serving = [one.process for one in blenders() if states[one.instance] in ("idle", "ready")]
    number = signal.SIGSTOP if stop else signal.SIGKILL
    with contextlib.suppress(psutil.Error):
        if serving:
            rng.choice(serving).send_signal(number)
            return number
    return None


@contextlib.asynccontextmanager
async def chaos(stream: ab.BlenderStream) -> AsyncIterator[list[signal.Signals | None]]:
    """Kill and stop Blenders at random while the block runs. The list has the signals that were sent."""
    rng, sent = random.Random(1), list[signal.Signals | None]()

    async def go_on() -> None:
        while True:
            await asyncio.sleep(rng.expovariate(1 / 0.15))
            sent.append(hurt(stream, rng, stop=rng.random() < 0.3))

    task = asyncio.create_task(go_on())
    try:
        yield sent
    finally:
        task.cancel()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("shared_memory", [False, True], ids=["socket", "shared memory"])
async def test_three_passes_while_blenders_are_killed_and_stopped(
    shared_memory: bool, fake: str, write_script: Write
) -> None:
    """One is slow, one is cancelled and begun anew: each index comes once, in order, with its first params."""
    config = ab.StreamConfig(
        script=write_script(ECHO),
        blender=fake,
        instances=3,
        queue_size=6,
        restart=PATIENT,
        timeouts=ab.Timeouts(beat=1.5),
        shared_memory=shared_memory,
    )
    async with asyncio.timeout(250), ab.BlenderStream(config) as stream, chaos(stream) as sent:

        async def quick() -> None:
            """Consume passes until Blenders were killed and stopped several times."""
            number = 0
            while sent.count(signal.SIGKILL) < 6 or sent.count(signal.SIGSTOP) < 2 or number < 3:
                draws, indices = Draws(f"quick {number}"), range(100 * number, 100 * number + 300)
                frames = [frame async for frame in stream.frames(indices, params=draws, ordered=True)]
                assert [frame.index for frame in frames] == list(indices)
                check_noise(frames, indices)
                draws.check(frames)
                number += 1

        async def slow() -> None:
            draws = Draws("slow")
            frames: list[ab.Frame] = []
            own = stream.frames(range(1000, 1040), params=draws, queue_size=3)
            async for frame in own:
                frames.append(frame)
                stats = own.stats()
                assert stats.rendering + stats.queued <= 3
                assert len(draws.counts) <= len(frames) + 3
                await asyncio.sleep(0.02)
            check_noise(frames, range(1000, 1040))
            draws.check(frames)

        async def cancelled() -> None:
            rng = random.Random(2)
            for number in range(12):
                draws, frames = Draws(f"cancelled {number}"), list[ab.Frame]()
                async with stream.frames(range(500), params=draws, queue_size=4) as own:
                    for _ in range(rng.randrange(40)):
                        frames.append(await anext(own))
                with pytest.raises(ab.StreamClosed):
                    await anext(own)
                check_noise(frames, {frame.index for frame in frames})
                assert len(frames) == len({frame.index for frame in frames}) == own.stats().delivered
                draws.check(frames)

        async with asyncio.TaskGroup() as group:
            for consume in (quick, slow, cancelled):
                group.create_task(consume())
        stats = stream.stats()
        assert stats.restarts > 0
        assert (stats.rendering, stats.queued, stats.skipped) == (0, 0, 0)


@pytest.mark.timeout(400)
@pytest.mark.exhaustive
@pytest.mark.slow
async def test_render_and_flush_while_blenders_are_killed(fake: str, write_script: Write) -> None:
    """A sample that is wanted now comes with its own params; flushed samples come once, with one of their params."""
    config = ab.StreamConfig(script=write_script(ECHO), blender=fake, instances=2, queue_size=8, restart=PATIENT)
    rng = random.Random(3)
    async with asyncio.timeout(250), ab.BlenderStream(config) as stream:
        draws, frames = Draws("flushed"), list[ab.Frame]()
        own = stream.frames(range(400), params=draws)
        number = 0
        async for frame in own:
            frames.append(frame)
            assert frame["draw"] == frame.params["draw"] <= draws.counts[frame.index]
            if frame.index % 10 == 0:
                hurt(stream, rng)
                own.flush()
                number += 1
                one = await stream.render(7, {"who": "me", "draw": number})
                assert (one.index, one["who"], one["draw"]) == (7, "me", number)
                check_noise([one], [7])
    check_noise(frames, range(400))
    assert {frame["who"] for frame in frames} == {"flushed"}
    assert number == 40
    assert stream.stats().restarts > 0


async def test_a_bad_sample_ends_its_own_pass_only(tmp_path: Path, write_script: Write) -> None:
    """Raising and killing samples, in passes that raise and that skip: all others get all that they want."""
    script = write_script("""
import os, signal
def sample(task):
    if task.params["bad"] == "kills" and task.index == 3: os.kill(os.getpid(), signal.SIGKILL)
    if task.params["bad"] == "raises" and task.index == 3: raise ValueError("no cube")
    return {"noise": task.rng.random(3)}
""")
    config = ab.StreamConfig(
        script=script,
        blender=fake_blender(tmp_path / "fake"),
        instances=2,
        prefetch=1,  # else a frame that is lost with its Blender may be blamed for the next sample's crash
        restart=ab.RestartPolicy(backoff=0.01, max_restarts=100, max_sample_deaths=2),
    )
    for skips in (False, True):
        stream = ab.BlenderStream(config, on_bad_sample="skip" if skips else "raise")
        async with asyncio.timeout(LIMIT), stream:
            good = stream.frames(range(60), params={"bad": None}, queue_size=2)
            first = await anext(good)
            for bad, message in (("kills", "sample 3 killed its Blender 2 times"), ("raises", "no cube")):
                own = stream.frames(range(9), params={"bad": bad}, ordered=True)
                if skips:
                    frames = [frame async for frame in own]
                    check_noise(frames, [0, 1, 2, 4, 5, 6, 7, 8])
                    assert own.stats().skipped == 1
                else:
                    with pytest.raises(ab.SampleError, match=message) as caught:
                        async for _ in own:
                            pass
                    assert caught.value.index == 3
                    assert own.stats().delivered <= 3
            check_noise([first, *[frame async for frame in good]], range(60))


async def test_a_stalled_pass_holds_up_no_other(fake: str, write_script: Write) -> None:
    """Nobody consumes it, its Blenders are killed, and another one is served to its end; then it goes on."""
    config = ab.StreamConfig(script=write_script(PLAIN), blender=fake, instances=2, queue_size=4, restart=FAST)
    async with asyncio.timeout(LIMIT), ab.BlenderStream(config) as stream:
        stalled = stream.frames(range(40))
        await until(lambda: stalled.stats().queued == 4)
        for process in [one.process for one in blenders()]:
            process.kill()
        check_noise([frame async for frame in stream.frames(range(200))], range(200))
        assert stalled.stats().queued == 4
        check_noise([frame async for frame in stalled], range(40))


@pytest.mark.exhaustive
async def test_a_pass_resumes_in_another_fleet(fake: str, write_script: Write) -> None:
    """Saved in the midst of crashes beside another pass, its rest is rendered by the next run, and nothing twice."""
    config = ab.StreamConfig(
        script=write_script(PLAIN), blender=fake, instances=2, length=300, queue_size=8, restart=PATIENT
    )
    rng, first, rest = random.Random(4), list[ab.Frame](), list[ab.Frame]()
    async with asyncio.timeout(LIMIT), ab.BlenderStream(config) as stream:
        beside = stream.frames(range(10_000), queue_size=8)
        while len(first) < 120:
            first.append(await anext(stream))
            await anext(beside)
            if len(first) % 20 == 0:
                hurt(stream, rng)
        state = stream.state_dict()
    resumed = ab.BlenderStream(config)
    resumed.load_state_dict(state)
    async with asyncio.timeout(LIMIT), resumed:
        async for frame in resumed:
            rest.append(frame)
            if len(rest) % 20 == 0:
                hurt(resumed, rng)
    check_noise([*first, *rest], range(300))
    assert resumed.stats().delivered == 180
