"""Whole episodes and clips: `episodes` and `clips`, with asyncio and without, and how a state sees them."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asyncblend as ab
from asyncblend.stream.clips import Clip
from asyncblend.testing import fake_blender

Make = Callable[..., ab.BlenderStream]

LIMIT = 60.0  # seconds; the bound of failure of every wait here
PATIENT = ab.RestartPolicy(max_restarts=10_000, backoff=0.001, max_backoff=0.001, max_sample_deaths=1_000)

COUNT = """
import numpy as np
def sample(task):
    for t in range(4 + task.index % 3):
        yield {"image": np.full((6, 5, 3), 10 * task.index + t, np.uint8), "t": t, "name": f"frame {t}"}
"""


def frames_of(index: int) -> int:
    return 4 + index % 3


async def test_episodes_come_whole(make: Make, tmp_path: Path) -> None:
    """Each one is the list of its frames, also when Blenders die; `ordered` holds for them."""
    dying = fake_blender(tmp_path / "dying", crash_after=9)
    for options in ({}, {"ordered": True}, {"ordered": True, "blender": dying, "restart": PATIENT, "queue_size": 3}):
        async with asyncio.timeout(LIMIT), make(COUNT, length=8, **options) as stream:
            episodes = [episode async for episode in stream.episodes()]
        for episode in episodes:
            assert [frame.step for frame in episode] == list(range(frames_of(episode[0].index)))
            assert {frame.index for frame in episode} == {episode[0].index}
            assert [frame.last for frame in episode] == [False] * (len(episode) - 1) + [True]
        indices = [episode[0].index for episode in episodes]
        assert sorted(indices) == list(range(8))
        assert indices == sorted(indices) or not options.get("ordered")


async def test_samples_of_one_frame_are_episodes(make: Make) -> None:
    """They are lists of one."""
    async with asyncio.timeout(LIMIT), make(length=3, ordered=True) as stream:
        assert [[frame.index for frame in episode] async for episode in stream.episodes()] == [[0], [1], [2]]


async def test_clips_have_time_as_their_first_axis(make: Make) -> None:
    """They are cut one after another; what is left is too short. Values other than arrays are batched as `collate` does."""
    async with asyncio.timeout(LIMIT), make(COUNT, ordered=True, params=lambda index: {"level": index}) as stream:
        for length, stride in ((1, 1), (2, 1), (3, 1), (4, 1), (2, 2), (2, 3)):
            span = (length - 1) * stride + 1
            clips = [clip async for clip in stream.frames(range(4), ordered=True).clips(length, stride)]
            starts = [(index, start) for index in range(4) for start in range(0, frames_of(index) - span + 1, span)]
            assert [(clip.index, clip.step) for clip in clips] == starts
            for clip in clips:
                steps = np.arange(clip.step, clip.step + span, stride)
                assert (clip["image"].shape, clip["image"].dtype) == ((length, 6, 5, 3), np.uint8)
                assert (clip["image"][:, 0, 0, 0] == 10 * clip.index + steps).all()
                assert clip["image"].flags.writeable
                np.testing.assert_array_equal(clip["t"], steps)
                assert clip["name"] == [f"frame {t}" for t in steps]
                assert (clip.length, clip.stride, clip.params["level"]) == (length, stride, clip.index)
                assert clip.last == (steps[-1] == frames_of(clip.index) - 1)


async def test_a_clip_survives_pickling(make: Make) -> None:
    """A DataLoader's workers send them."""
    async with asyncio.timeout(LIMIT), make(COUNT, length=1) as stream:
        clip = await anext(stream.clips(4))
    again = pickle.loads(pickle.dumps(clip))
    assert repr(again) == repr(clip) == "<Clip of 4 frames from step 0 of 0: image, t, name>"
    assert (again.index, again.length, again.last, again["name"]) == (0, 4, True, clip["name"])
    np.testing.assert_array_equal(again["image"], clip["image"])


async def test_a_clip_longer_than_its_episode(make: Make) -> None:
    """The error says how long both are, and shorter clips lose nothing."""
    async with asyncio.timeout(LIMIT), make(COUNT, length=4, ordered=True) as stream:
        with pytest.raises(ab.ConfigError, match="spans 5 steps, but episode 0 has only 4; ask for shorter clips"):
            await anext(stream.clips(5))
        with pytest.raises(ab.ConfigError, match="spans 7 steps"):
            await anext(stream.clips(3, 3))
        assert [clip.index async for clip in stream.clips(4)] == [0, 1, 2, 3]
    for length, stride in ((0, 1), (1, 0), (True, 1), (2, 1.0)):
        async with asyncio.timeout(LIMIT), make(COUNT, length=1) as stream:
            with pytest.raises(ab.ConfigError, match=r"^(length|stride) must be a whole number"):
                await anext(stream.clips(length, stride))  # type: ignore[arg-type]


async def test_a_skipped_episode_is_left_out(make: Make) -> None:
    """The frames of it that came before its error are not kept."""
    body = COUNT.replace("yield", "1 // (task.index * 10 + t != 12); yield")
    async with asyncio.timeout(LIMIT), make(body, length=5, on_bad_sample="skip") as stream:
        assert sorted([episode[0].index async for episode in stream.episodes()]) == [0, 2, 3, 4]
        assert stream.stats().skipped == 1


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.exhaustive
@pytest.mark.slow
async def test_a_state_counts_what_was_given_out(make: Make, whole: bool) -> None:
    """Wherever the loop over episodes or clips is left, another stream gives the rest, each of them once."""

    def parts(stream: ab.BlenderStream) -> Any:
        return stream.episodes() if whole else stream.clips(2)

    def name(part: Any) -> tuple[int, int]:
        return (part[0].index, len(part)) if whole else (part.index, part.step)

    async with asyncio.timeout(LIMIT), make(COUNT, length=5) as stream:
        everything = sorted([name(part) async for part in parts(stream)])
    for stop in range(len(everything) + 1):
        async with asyncio.timeout(LIMIT), make(COUNT, length=5, queue_size=4) as stream:
            own = parts(stream)
            first = [name(await anext(own)) for _ in range(stop)]
            state = json.loads(json.dumps(stream.state_dict()))
        second = make(COUNT, length=5)
        second.load_state_dict(state)
        async with asyncio.timeout(LIMIT), second:
            assert sorted([*first, *[name(part) async for part in parts(second)]]) == everything


async def test_a_state_in_mid_episode_is_none_of_whole_ones(make: Make) -> None:
    """Frames that were delivered one by one cannot be part of a whole episode; a clear error says so."""
    async with asyncio.timeout(LIMIT), make(COUNT, length=3, ordered=True) as stream:
        for _ in range(2):
            await anext(stream)
        state = stream.state_dict()
    stream = make(COUNT, length=3, ordered=True)
    stream.load_state_dict(state)
    async with asyncio.timeout(LIMIT), stream:
        with pytest.raises(ab.ConfigError, match="episode 0 begins at step 2"):
            await anext(stream.episodes())


def test_without_asyncio(make_sync: Any) -> None:
    """The same through a thread."""
    stream = make_sync(COUNT, length=5)
    assert sorted(len(episode) for episode in stream.frames(range(5)).episodes()) == [4, 4, 5, 5, 6]
    clips = list(stream.frames(range(5)).clips(2, 2))
    assert len(clips) == 1 + 1 + 2 + 1 + 1
    assert {clip["image"].shape for clip in clips} == {(2, 6, 5, 3)}
    with pytest.raises(ab.ConfigError, match="spans 9 steps"):
        next(stream.frames([0]).clips(9))
    with pytest.raises(ab.ConfigError, match="length must be a whole number"):
        stream.frames([0]).clips(0)  # at once, and not when it is iterated


BAD = """
import numpy as np
def sample(task):
    for t in range(3):
        yield {"t": t}
    if task.index % 4 == 1:
        raise ValueError("a bad sample")
"""


async def test_a_skipped_episode_leaves_nothing(make: Make) -> None:
    """Frames of it that are queued already are dropped, no other episode suffers, and the state goes on."""
    async with asyncio.timeout(LIMIT), make(BAD, length=8, on_bad_sample="skip", queue_size=24, instances=1) as stream:
        frames = stream.frames()
        while frames.stats().skipped < 2:
            await asyncio.sleep(0.01)
        episodes = [[frame["t"] for frame in episode] async for episode in frames.episodes()]
        state = frames.state_dict()
    assert episodes == [[0, 1, 2]] * 6
    assert (state["watermark"], state["above"]) == (8, [])
    assert "steps" not in state


def test_a_skipped_episode_leaves_nothing_without_asyncio(make_sync: Any) -> None:
    """The same, where frames cross a thread."""
    stream = make_sync(BAD, on_bad_sample="skip", queue_size=6, instances=2)
    frames = stream.frames(range(40))
    assert len(list(frames.clips(3))) == 30
    state = frames.state_dict()
    assert (state["watermark"], state["above"], state.get("steps")) == (40, [], None)


async def test_several_tasks_share_the_clips(make: Make) -> None:
    """Each clip goes to one of them."""
    async with asyncio.timeout(LIMIT), make(COUNT, length=6) as stream:
        clips, found = stream.clips(2), list[tuple[int, int]]()

        async def take() -> None:
            async for clip in clips:
                found.append((clip.index, clip.step))
                await asyncio.sleep(0)

        await asyncio.gather(*(take() for _ in range(3)))
        state = stream.state_dict()
    assert sorted(found) == [(index, step) for index in range(6) for step in range(0, frames_of(index) - 1, 2)]
    assert (state["watermark"], state.get("steps")) == (6, None)


async def test_leaving_the_loop_loses_no_clip(make: Make) -> None:
    """Iterating again goes on, also with clips of another length."""
    async with asyncio.timeout(LIMIT), make(COUNT, length=6, queue_size=6) as stream:
        found = []
        for _ in range(40):
            async for clip in stream.clips(2):
                found.append((clip.index, clip.step))
                break
        assert sorted(found) == [(index, step) for index in range(6) for step in range(0, frames_of(index) - 1, 2)]
        frames = stream.frames([2])  # of six frames
        assert [(await anext(frames.clips(2))).step, (await anext(frames.clips(4))).step] == [0, 2]


def test_leaving_the_loop_loses_no_clip_without_asyncio(make_sync: Any) -> None:
    """The same through a thread."""
    stream, found = make_sync(COUNT), []
    frames = stream.frames(range(6))
    for _ in range(40):
        for clip in frames.clips(2):
            found.append((clip.index, clip.step))
            break
    assert sorted(found) == [(index, step) for index in range(6) for step in range(0, frames_of(index) - 1, 2)]


async def test_a_state_of_clips_goes_on_in_any_way(make: Make) -> None:
    """After two clips of two frames, what is left of the episode comes frame by frame, or in clips of another length."""
    async with asyncio.timeout(LIMIT), make(COUNT, length=3, ordered=True) as stream:
        clips = stream.clips(2)
        assert [(clip.index, clip.step) for clip in [await anext(clips) for _ in range(3)]] == [(0, 0), (0, 2), (1, 0)]
        state = json.loads(json.dumps(stream.state_dict()))
    assert state["steps"] == {"1": 2}
    for length, starts in (
        (None, [(1, 2), (1, 3), (1, 4), *((2, t) for t in range(6))]),
        (3, [(1, 2), (2, 0), (2, 3)]),
    ):
        stream = make(COUNT, length=3, ordered=True)
        stream.load_state_dict(state)
        async with asyncio.timeout(LIMIT), stream:
            parts = stream if length is None else stream.clips(length)
            assert [(part.index, part.step) async for part in parts] == starts
            end = stream.state_dict()
        assert (end["watermark"], end.get("steps")) == (3, None)


def test_frames_that_do_not_fit_together_are_named_by_their_steps() -> None:
    """All of them have the index of their episode."""
    values: list[dict[str, Any]] = [{"x": np.zeros(2)}, {"x": np.zeros(2)}, {"x": "none"}]
    frames = [ab.Frame(one, index=6, instance=0, step=step, last=step == 2) for step, one in enumerate(values)]
    with pytest.raises(
        ab.SampleError, match=r"^step 2 of sample 6 cannot be in one batch with step 0 of sample 6: .*step$"
    ):
        Clip(frames, 1)


def test_a_clip_has_the_age_of_its_params() -> None:
    """It is that of its first frame."""
    frames = [ab.Frame({"t": step}, index=7, instance=0, params_age=5 + step, step=step) for step in range(4)]
    assert [Clip(frames[first:], 1).params_age for first in range(3)] == [5, 6, 7]


@pytest.mark.parametrize(
    "wrong",
    [
        {"fingerprints": {"x": []}},
        {"fingerprints": {"1": 5}},
        {"fingerprints": 3},
        {"steps": {"-5": 1}},
        {"steps": {"x": 1}},
    ],
)
async def test_a_state_that_none_has_saved(wrong: dict[str, Any], make: Make) -> None:
    """It is a ConfigError, and no other one."""
    state = {**make(COUNT, length=3).state_dict(), **wrong}
    with pytest.raises(ab.ConfigError, match="not a saved state"):
        make(COUNT, length=3).load_state_dict(state)
