"""Samples that are generators, as a stream delivers them: every frame once, in order, also when their Blenders die."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asyncblend as ab
from asyncblend.blender.serving.fingerprint import fingerprint_of, same
from asyncblend.testing import fake_blender

Make = Callable[..., ab.BlenderStream]
Seen = dict[int, list[tuple[int, bool, float, int]]]

LIMIT = 60.0  # seconds; the bound of failure of every wait here
PATIENT = ab.RestartPolicy(max_restarts=10_000, backoff=0.001, max_backoff=0.001, max_sample_deaths=1_000)

WALK = """
import numpy as np
def sample(task):
    picture = np.zeros((70, 70), np.uint32)  # large enough for the shared memory, and written again for each frame
    at = 0.0
    for _ in range(2 + task.index % 4):
        at += task.rng.normal()
        picture[:] = task.rng.integers(2**32)
        params = yield {"at": at, "picture": picture, "level": task.params.get("level")}
        assert params == task.params
"""
LENGTH = 12


def frames_of(index: int) -> int:
    return 2 + index % 4


async def walked(frames: Any, check: Callable[[ab.Frame], None] = lambda _: None) -> Seen:
    """Return what came of each index, in the order in which it came."""
    seen: Seen = defaultdict(list)
    async for frame in frames:
        check(frame)
        assert (frame["picture"] == frame["picture"][0, 0]).all(), "a frame that was written over"
        seen[frame.index].append((frame.step, frame.last, frame["at"], int(frame["picture"][0, 0])))
    return seen


def expected(indices: Any, seed: int = 0) -> Seen:
    """Return what must come, drawn anew as the script draws it."""
    seen: Seen = {}
    for index in indices:
        rng, at, count = np.random.default_rng([seed, index]), 0.0, frames_of(index)
        own = seen[index] = []
        for step in range(count):
            at += rng.normal()
            own.append((step, step == count - 1, at, int(rng.integers(2**32))))
    return seen


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(("instances", "queue_size"), [(1, 1), (1, 3), (2, 1), (3, 2), (2, 16)])
@pytest.mark.exhaustive
async def test_every_frame_comes_once(make: Make, instances: int, queue_size: int, *, ordered: bool) -> None:
    """The steps of an episode come in order, the last one says so, and no more slots are occupied than there are."""
    stream = make(WALK, length=LENGTH, instances=instances, queue_size=queue_size, ordered=ordered)
    order = []

    def check(frame: ab.Frame) -> None:
        order.append((frame.index, frame.step))
        stats = stream.stats()
        assert stats.rendering + stats.queued <= queue_size

    async with asyncio.timeout(LIMIT), stream:
        assert await walked(stream, check) == expected(range(LENGTH))
        stats = stream.stats()
    assert (stats.delivered, stats.rendering, stats.queued) == (sum(map(frames_of, range(LENGTH))), 0, 0)
    assert (stats.stale, stats.duplicates, stats.bad_messages, stats.restarts) == (0, 0, 0, 0)
    assert order == sorted(order) or not ordered


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("queue_size", [1, 4])
async def test_a_crash_in_mid_episode_is_not_noticed(
    make: Make, tmp_path: Path, queue_size: int, *, ordered: bool
) -> None:
    """Every Blender dies at its seventh frame. What comes is the same to the bit."""
    fake = fake_blender(tmp_path / "dying", crash_after=6)
    stream = make(
        WALK, length=LENGTH, instances=2, blender=fake, restart=PATIENT, queue_size=queue_size, ordered=ordered
    )
    async with asyncio.timeout(LIMIT), stream:
        assert await walked(stream) == expected(range(LENGTH))
        assert stream.stats().restarts > 2


async def test_a_sample_that_kills_in_mid_episode_is_named(make: Make) -> None:
    """It is given up after as many deaths as the policy allows. What was delivered of it stays delivered."""
    body = """
import os, signal
def sample(task):
    for step in range(4):
        if task.index == 3 and step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        yield {"step": step}
"""
    restart = ab.RestartPolicy(max_restarts=100, backoff=0.001, max_backoff=0.001, max_sample_deaths=2)
    async with asyncio.timeout(LIMIT), make(body, length=6, restart=restart, on_bad_sample="skip") as stream:
        seen = [(frame.index, frame.step) async for frame in stream]
        assert stream.stats().skipped == 1
    whole = [(index, step) for index in (0, 1, 2, 4, 5) for step in range(4)]
    assert sorted(seen) == sorted([*whole, (3, 0)])  # step 1 is sent once it is known not to be the last one
    async with asyncio.timeout(LIMIT), make(body, length=6, restart=restart) as stream:
        with pytest.raises(ab.SampleError, match="sample 3 killed its Blender 2 times"):
            await walk_all(stream)


async def walk_all(frames: Any) -> list[tuple[int, int]]:
    return [(frame.index, frame.step) async for frame in frames]


# -- what cannot be an episode ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("if False: yield", "a generator that yielded nothing"),
        ("yield {}; yield 3", "a sample must be a dict of values, .* got int"),
        ("yield None", "a sample must be a dict of values, .* got NoneType"),
        ("yield {'index': 1}", "'index' is reserved"),
        ("yield {}; raise ArithmeticError('in mid-episode')", "ArithmeticError: in mid-episode"),
    ],
)
async def test_bad_episodes_are_sample_errors(make: Make, body: str, text: str) -> None:
    """The error names the sample, and has the traceback. Frames before it are delivered first."""
    stream = make(f"def sample(task):\n    {body}", instances=1, length=1)
    seen = []
    async with asyncio.timeout(LIMIT), stream:
        with pytest.raises(ab.SampleError, match=text) as caught:
            async for frame in stream:
                seen.append((frame.step, frame.last))
    assert caught.value.index == 0
    assert seen == [(0, False)] * body.startswith("yield {};")


async def test_a_bad_episode_can_be_skipped(make: Make) -> None:
    """The frames before its error are delivered, none of them as the last one, and the others are whole."""
    body = """
def sample(task):
    for step in range(3):
        if task.index == 2 and step == 2:
            raise ArithmeticError
        yield {}
"""
    for ordered in (False, True):
        stream = make(body, length=5, on_bad_sample="skip", ordered=ordered)
        async with asyncio.timeout(LIMIT), stream:
            seen = await walk_all(stream)
            assert sorted(seen) == sorted([(i, step) for i in range(5) for step in range(2 if i == 2 else 3)])
            assert stream.stats().skipped == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("yield {'pid': os.getpid()}\n    yield {}\n    yield {}", "its first frame is not the one that was sent"),
        (
            "yield {'a': np.full((9, 9), os.getpid() % 997)}\n    yield {}\n    yield {}",
            "its first frame is not the one that was sent",
        ),
        ("for _ in range(1 if os.path.exists(mark) else 3): yield {}", "it ended after 1 frames instead of going on"),
    ],
)
async def test_what_cannot_be_replayed_is_noticed(make: Make, tmp_path: Path, value: str, text: str) -> None:
    """A script that is no function of its task must not give an episode that is put together from two."""
    mark = tmp_path / "mark"
    body = f"import os\nimport numpy as np\nmark = {str(mark)!r}\ndef sample(task):\n    {value}"
    stream = make(body, instances=1, length=1, queue_size=1, restart=PATIENT)
    async with asyncio.timeout(LIMIT), stream:
        first = await anext(stream)
        assert (first.step, first.last) == (0, False)
        mark.touch()
        os.kill(pid_of(stream), signal.SIGKILL)
        with pytest.raises(ab.SampleError, match=text) as caught:
            await walk_all(stream)
        assert caught.value.index == 0


async def test_going_on_with_a_sample_that_is_no_generator_any_more(make: Make) -> None:
    """It is the sample's error, found at once; its Blender is not to blame."""
    async with asyncio.timeout(LIMIT), make(WALK, length=2, ordered=True) as stream:
        assert (await anext(stream)).step == 0
        state = json.loads(json.dumps(stream.state_dict()))
    second = make(length=2, ordered=True, instances=1)
    second.load_state_dict(state)
    async with asyncio.timeout(LIMIT), second:
        with pytest.raises(ab.SampleError, match="its sample function is no generator any more") as caught:
            await anext(second)
        assert caught.value.index == 0
        assert second.stats().restarts == 0


def test_what_is_the_same_frame() -> None:
    """A picture may differ a little, and so may a float that is computed from it. All else is compared exactly."""
    picture = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    other = picture.copy()
    other[0, 0, 0] += 1

    def values(image: Any, **more: Any) -> dict[str, Any]:
        mean = image.mean()
        means = [mean, {"deep": np.float32(mean), "none": float("nan"), "$float": float("inf")}]
        return {"image": image, "mean": float(mean), "means": means, "count": 3, **more}

    one = fingerprint_of(values(picture))
    assert json.loads(json.dumps(one)) == one
    assert same(one, fingerprint_of(values(other)))
    for more in ({"mean": 100.0}, {"mean": 1}, {"means": [1.0]}, {"count": 4}, {"count": 3.0}, {"mean": float("nan")}):
        assert not same(one, fingerprint_of(values(picture, **more)))


def pid_of(stream: ab.BlenderStream, number: int = 0) -> int:
    """Return the process of an instance."""
    child: Any = stream._run._fleet._children[number]
    return int(child.pid)


# -- episodes and what else a pass can do --------------------------------------------------------------------------


@pytest.mark.exhaustive
async def test_a_state_saved_in_mid_episode(make: Make) -> None:
    """Wherever a stream is left, another one that goes on from its state makes the rest, each frame once."""
    total = sum(map(frames_of, range(5)))
    for stop in range(0, total + 1, 3):
        async with asyncio.timeout(LIMIT), make(WALK, length=5, queue_size=3) as stream:
            first = [await anext(stream) for _ in range(stop)]
            state = json.loads(json.dumps(stream.state_dict()))
        second = make(WALK, length=5, queue_size=3)
        second.load_state_dict(state)
        async with asyncio.timeout(LIMIT), second:
            seen: Seen = defaultdict(list)
            for frame in [*first, *[frame async for frame in second]]:
                seen[frame.index].append((frame.step, frame.last, frame["at"], int(frame["picture"][0, 0])))
        assert seen == expected(range(5))


async def test_a_state_of_episodes_that_is_none(make: Make) -> None:
    """Nonsense in it is refused where it is loaded."""
    good = {**make(WALK, length=5).state_dict(), "watermark": 1, "above": [3], "steps": {"2": 1}}
    make(WALK, length=5).load_state_dict(good)
    bads: list[dict[str, Any]] = [
        {"steps": {"0": 1}},
        {"steps": {"3": 1}},
        {"steps": {"5": 1}},
        {"steps": {"2": 0}},
        {"steps": {"2": True}},
        {"steps": {"x": 1}},
        {"steps": [2]},
        {"fingerprints": []},
        {"fingerprints": {"2": 3}},
    ]
    for bad in bads:
        with pytest.raises(ab.ConfigError, match="not a saved state"):
            make(WALK, length=5).load_state_dict({**good, **bad})


async def test_a_flush_keeps_what_has_begun(make: Make, gates: Any) -> None:
    """An episode goes on with the params that it began with; those behind it get new ones."""
    level = 0
    body = gates.script.replace("    return {{", "    return {{").replace(
        "    return {", "    yield {'level': task.params.get('level')}\n    yield {"
    )
    stream = make(body, instances=1, length=3, params=lambda _: {"level": level})
    async with asyncio.timeout(LIMIT), stream:
        reading = asyncio.ensure_future(anext(stream))
        await gates.until_begun(0)
        level = 1
        assert stream.flush() > 0
        gates.let_all_go()
        first = await reading
        rest = [frame async for frame in stream]
    assert [(frame.index, frame.step, frame["level"]) for frame in (first, *rest)] == [
        *((0, 0, 0), (0, 1, 0), (1, 0, 1), (1, 1, 1), (2, 0, 1), (2, 1, 1))
    ]


async def test_an_episode_that_nobody_consumes_holds_up_no_other_pass(make: Make) -> None:
    """The only Blender is at an episode that has no slot. It lets go of it for others, and replays it later."""
    stream = make(WALK, instances=1, queue_size=1)
    async with asyncio.timeout(LIMIT), stream:
        slow = stream.frames(range(3, 6))
        seen = [await anext(slow)]
        assert (await stream.render(2))["at"] == expected([2])[2][0][2]
        assert await walked(stream.frames(range(10, 14))) == expected(range(10, 14))
        seen += [frame async for frame in slow]
        assert stream.stats().restarts == 0
    assert [(frame.index, frame.step, frame["at"]) for frame in seen] == [
        (index, step, at) for index, own in expected(range(3, 6)).items() for step, _, at, _ in own
    ]


async def test_a_pass_that_ends_in_mid_episode_frees_its_blender(make: Make, tmp_path: Path) -> None:
    """The generator is closed, so that its `finally` block runs, and the same Blender makes other samples."""
    body = f"""
def sample(task):
    try:
        while True:
            yield {{}}
    finally:
        open({str(tmp_path / "closed")!r}, "a").write(f"{{task.index}} ")
"""
    stream = make(body, instances=1, timeouts=ab.Timeouts(stop=LIMIT))
    async with asyncio.timeout(LIMIT), stream:
        for index in range(3):
            async with stream.frames([index]) as frames:
                for step in range(20):
                    assert (await anext(frames)).step == step
        assert (await stream.render(7)).step == 0
        assert stream.stats().restarts == 0
    assert (tmp_path / "closed").read_text().split() == ["0", "1", "2", "7"]


async def test_rendering_one_sample_gives_its_first_frame(make: Make) -> None:
    """`render` of an episode returns one frame, and ends it."""
    async with asyncio.timeout(LIMIT), make(WALK, instances=1) as stream:
        for index in (3, 3, 4):
            frame = await stream.render(index)
            assert (frame.step, frame.last, frame["at"]) == (0, False, expected([index])[index][0][2])


def test_episodes_without_asyncio(make_sync: Any) -> None:
    """The same frames come through a thread."""
    stream = make_sync(WALK, length=LENGTH, queue_size=3)
    seen: Seen = defaultdict(list)
    for frame in stream:
        seen[frame.index].append((frame.step, frame.last, frame["at"], int(frame["picture"][0, 0])))
    assert seen == expected(range(LENGTH))


@pytest.mark.exhaustive
@pytest.mark.slow
async def test_slow_episodes_are_no_hang(make: Make) -> None:
    """The budget of a frame is one of each step, also of steps that are replayed, and none while nobody consumes."""
    body = """
import threading
def sample(task):
    for step in range(6):
        threading.Event().wait(0.4)
        yield {"step": step}
"""
    stream = make(body, instances=1, length=1, queue_size=1, timeouts=ab.Timeouts(frame=1.0), restart=PATIENT)
    async with asyncio.timeout(LIMIT), stream:
        for step in range(4):
            assert (await anext(stream))["step"] == step
        await asyncio.sleep(1.5)
        assert stream.stats().restarts == 0
        os.kill(pid_of(stream), signal.SIGKILL)
        assert [frame["step"] async for frame in stream] == [4, 5]
        assert stream.stats().restarts == 1
