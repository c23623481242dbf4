"""Passes over one fleet, as an asynchronous program uses them: `stream.frames`, and what they share."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import asyncblend as ab

Make = Callable[..., ab.BlenderStream]

LIMIT = 60.0  # seconds; the bound of failure of every wait here


async def indices_of(frames: Any) -> list[int]:
    return [frame.index async for frame in frames]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what the fleet brings about."""
    while not condition():
        await asyncio.sleep(0.002)


# -- which samples, with which params, in which order ------------------------------------------------------------


async def test_any_sequence_of_indices(make: Make) -> None:
    """A pass renders the indices that it is given, each as often as it stands there, on the same warm Blenders."""
    async with asyncio.timeout(LIMIT), make(length=5, seed=3) as stream:
        sequences: list[Any] = [
            range(100, 112),
            range(20, 0, -3),
            [7],
            [3, 1, 3, 3, 9],
            (2**62, 0),
            np.array([4, 2, 4], np.uint8),
            np.arange(3),
            [],
            range(0),
            np.array([], np.int64),
        ]
        for indices in sequences:
            wanted = [int(index) for index in indices]
            frames = stream.frames(indices, ordered=True)
            got = [frame async for frame in frames]
            assert [frame.index for frame in got] == wanted
            for frame in got:
                assert type(frame.index) is int
                np.testing.assert_array_equal(frame["noise"], np.random.default_rng([3, frame.index]).random(4))
            assert frames.stats() == ab.PassStats(delivered=len(wanted), rendering=0, queued=0, skipped=0)
            assert sorted(await indices_of(stream.frames(indices))) == sorted(wanted)
        assert sorted(await indices_of(stream)) == list(range(5))  # the stream's own pass is as it was
        assert stream.stats().restarts == 0


async def test_without_arguments_a_pass_is_as_the_config_says(make: Make) -> None:
    """Its indices, order, params and slots are the config's, and each pass has all of them."""
    config: dict[str, Any] = {
        "start": 10, "length": 12, "shard": (1, 3), "ordered": True, "queue_size": 2, "params": lambda index: {"level": index},
    }  # fmt: skip
    async with asyncio.timeout(LIMIT), make(**config) as stream:
        for source in (stream.frames(), stream, stream.frames()):
            frames = [frame async for frame in source]
            assert [frame.index for frame in frames] == list(range(11, 22, 3))
            assert [frame["level"] for frame in frames] == list(range(11, 22, 3))
        stalled = stream.frames()
        await until(lambda: stalled.stats().queued == 2)
        assert stalled.stats().rendering == 0


async def test_params_of_a_pass(make: Make) -> None:
    """A mapping or a callable of a pass replaces the config's; None leaves the config's."""
    async with asyncio.timeout(LIMIT), make(params={"level": "config"}) as stream:
        for params, wanted in (
            (None, ["config"] * 3),
            ({"level": "own"}, ["own"] * 3),
            ({}, [None] * 3),
            (lambda index: {"level": index * index}, [16, 25, 36]),
        ):
            frames = [frame async for frame in stream.frames(range(4, 7), params=params, ordered=True)]
            assert [frame["level"] for frame in frames] == wanted
            assert [frame.params.get("level") for frame in frames] == wanted


async def test_what_params_raise_ends_their_pass_alone(make: Make) -> None:
    """The user's own exception comes after the good frames, again and again; other passes do not notice."""

    def params(index: int) -> Any:
        if index == 3:
            raise LookupError("no curriculum")
        return {"level": object()} if index == 1 else {}

    async with asyncio.timeout(LIMIT), make(length=30) as stream:
        failing, unsendable = stream.frames(params=params), stream.frames([1], params=params)
        failing_later = stream.frames([0, 2, 3, 4], params=params, ordered=True)
        assert sorted(await indices_of(stream)) == list(range(30))
        for _ in range(2):
            with pytest.raises(ab.ConfigError, match=r"params of index 1: .*level.* is a builtins\.object"):
                await indices_of(failing)
            with pytest.raises(ab.ConfigError, match="params of index 1"):
                await anext(unsendable)
        assert [(await anext(failing_later)).index for _ in range(2)] == [0, 2]
        for _ in range(2):
            with pytest.raises(LookupError, match="no curriculum"):
                await anext(failing_later)


@pytest.mark.parametrize("error", [StopAsyncIteration, StopIteration, GeneratorExit, asyncio.CancelledError])
async def test_params_cannot_end_a_loop_in_silence(error: type[BaseException], make: Make) -> None:
    """What would end the consumer's loop, or cancel its task, is a RuntimeError with that as its cause."""

    def params(index: int) -> dict[str, Any]:
        if index == 2:
            raise error
        return {}

    seen = []
    async with asyncio.timeout(LIMIT), make(length=30, ordered=True, params=params) as stream:
        with pytest.raises(RuntimeError, match=f"params raised {error.__name__}") as caught:
            async for frame in stream:
                seen.append(frame.index)
        assert type(caught.value.__cause__) is error
        with pytest.raises(RuntimeError, match=f"params raised {error.__name__}"):
            await stream.render(2)
    assert seen == [0, 1]


async def test_order_is_each_passs_own(make: Make, gates: Any) -> None:
    """An unordered pass delivers what has arrived, while an ordered one holds it back for an earlier sample."""
    async with asyncio.timeout(LIMIT), make(gates.script, ordered=True, instances=3, prefetch=1) as stream:
        gates.let_go(1, 2, 3)  # the sample 0 of each pass occupies one Blender
        unordered = stream.frames(range(4), ordered=False)
        assert sorted([(await anext(unordered)).index for _ in range(3)]) == [1, 2, 3]
        ordered = stream.frames([0, 1, 2, 3])
        first = asyncio.ensure_future(anext(ordered))
        await until(lambda: ordered.stats().queued == 3)
        assert not first.done()
        gates.let_go(0)
        assert [(await first).index, *await indices_of(ordered)] == [0, 1, 2, 3]
        assert await indices_of(unordered) == [0]


# -- several at once ---------------------------------------------------------------------------------------------


async def test_a_stalled_pass_holds_up_no_other(make: Make) -> None:
    """It stops at its own queue_size, to the sample; when it is consumed later, nothing of it is missing."""
    drawn: list[int] = []

    def params(index: int) -> dict[str, Any]:
        drawn.append(index)
        return {}

    async with asyncio.timeout(LIMIT), make(length=40, queue_size=4) as stream:
        stalled = stream.frames(range(50), params=params, queue_size=3)
        others = [stream, stream.frames(range(500, 560)), stream.frames([8] * 30, queue_size=1)]
        got = await asyncio.gather(*map(indices_of, others))
        assert [sorted(one) for one in got] == [list(range(40)), list(range(500, 560)), [8] * 30]
        await until(lambda: stalled.stats().queued == 3)
        assert stalled.stats() == ab.PassStats(delivered=0, rendering=0, queued=3, skipped=0)
        assert drawn == [0, 1, 2]
        await anext(stalled)
        await until(lambda: stalled.stats().queued == 3)
        assert drawn == [0, 1, 2, 3]
        stats = stream.stats()
        assert (stats.delivered, stats.rendering, stats.queued) == (131, 0, 3)
        assert len(await indices_of(stalled)) == 49
        assert sorted(drawn) == list(range(50))
        assert stream.stats().delivered == sum(stream.stats().frames.values()) == 180


async def test_a_pass_that_is_closed_early_ends_alone(make: Make) -> None:
    """Whoever waits for its next frame gets StreamClosed, and so does every later call; the others are complete."""
    async with asyncio.timeout(LIMIT), make(length=60, queue_size=4) as stream:
        early = stream.frames(range(1000))
        others = [asyncio.create_task(indices_of(one)) for one in (stream, stream.frames(range(200, 260)))]
        for _ in range(10):
            await anext(early)
        await early.aclose()
        await early.aclose()
        for _ in range(2):
            with pytest.raises(ab.StreamClosed, match="this iteration was closed"):
                await anext(early)
        assert early.flush() == 0
        assert early.stats() == ab.PassStats(delivered=10, rendering=0, queued=0, skipped=0)
        state = early.state_dict()
        assert state["watermark"] + len(state["above"]) == 10
        assert [sorted(one) for one in await asyncio.gather(*others)] == [list(range(60)), list(range(200, 260))]


async def test_one_fleet_and_many_short_passes(make: Make) -> None:
    """Passes that are broken off at all moments never spoil a later one."""
    async with asyncio.timeout(LIMIT), make(queue_size=4) as stream:
        for n in range(300):
            frames = stream.frames(range(12), ordered=n % 2 == 0)
            for _ in range(n % 6):
                await anext(frames)
            if n % 20 == 0:
                rest = stream.frames(range(12))
                assert sorted(await indices_of(rest)) == list(range(12))
        assert stream.stats().restarts == 0


@pytest.mark.parametrize("way", ["aclose", "async with", "left loop", "dropped", "dropped in another thread"])
async def test_an_ended_pass_frees_its_slots(way: str, make: Make, gates: Any) -> None:
    """Its frames are dropped, and no Blender begins another sample of it."""
    stream = make(gates.script, instances=1, prefetch=8)
    async with asyncio.timeout(LIMIT), stream:
        gates.let_go(0)
        frames: Any = stream.frames(range(20), queue_size=8)
        if way == "left loop":
            async for _ in frames:
                break
        await gates.until_begun(1)
        await until(lambda: frames.stats().rendering == 7)
        if way == "aclose":
            await frames.aclose()
        elif way == "async with":
            async with frames:
                pass
        elif way == "dropped in another thread":
            holder = [frames]
            del frames
            await asyncio.to_thread(holder.clear)
        else:
            del frames
            gc.collect()
        await until(lambda: stream.stats().rendering == 0)
        assert stream.stats().queued == 0
        other = asyncio.ensure_future(anext(stream.frames([500])))
        await until(lambda: stream.stats().rendering == 1)
        await gates.next_is(500, iter(range(1, 8)))
        gates.let_all_go()
        assert (await other).index == 500


async def test_an_exhausted_pass_stays_ended(make: Make) -> None:
    """Its end is an end for every later call, also for those of `aclose` and `flush`."""
    async with asyncio.timeout(LIMIT), make() as stream:
        frames = stream.frames(range(3))
        assert len(await indices_of(frames)) == 3
        assert await indices_of(frames) == []
        assert frames.flush() == 0
        await frames.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(frames)


async def test_several_tasks_share_a_pass(make: Make) -> None:
    """Each frame goes to one of them, and all of them meet the end; so it is with the stream's own pass."""
    async with asyncio.timeout(LIMIT), make(length=50, queue_size=4) as stream:
        for source, wanted in ((stream, range(50)), (stream.frames(range(50, 100)), range(50, 100))):
            shares = await asyncio.gather(*(indices_of(source) for _ in range(4)))
            assert sorted(index for share in shares for index in share) == list(wanted)


async def test_a_cancelled_wait_loses_no_frame(make: Make) -> None:
    """A timeout around the next frame, at any moment, leaves the pass as it was."""
    async with asyncio.timeout(LIMIT), make() as stream:
        frames, got = stream.frames(range(60), queue_size=3), []
        while True:
            try:
                async with asyncio.timeout(0.001):
                    got.append((await anext(frames)).index)
            except TimeoutError:
                continue
            except StopAsyncIteration:
                break
        assert sorted(got) == list(range(60))


async def test_batches_of_a_pass(make: Make) -> None:
    """They are as a stream's: arrays that are copied together, with the indices; the last one is shorter, or left out."""
    async with asyncio.timeout(LIMIT), make(seed=3) as stream:
        for drop_last, wanted in ((False, [[9, 8, 7], [6, 5, 4], [3]]), (True, [[9, 8, 7], [6, 5, 4]])):
            frames = stream.frames(range(9, 2, -1), ordered=True)
            batches = [batch async for batch in frames.batches(3, drop_last=drop_last)]
            assert [batch["index"].tolist() for batch in batches] == wanted
            for batch in batches:
                noise = [np.random.default_rng([3, int(index)]).random(4) for index in batch["index"]]
                np.testing.assert_array_equal(batch["noise"], noise)
                assert batch["noise"].flags.writeable
        with pytest.raises(ab.ConfigError, match="size must be a whole number, at least 1; got 0"):
            stream.frames([1]).batches(0)


async def test_several_tasks_take_batches(make: Make) -> None:
    """Each batch goes to one of them, and the state counts all that were given out."""
    async with asyncio.timeout(LIMIT), make("def sample(task): return {'x': task.index}") as stream:
        frames = stream.frames(range(40))
        batches, got = frames.batches(4), []

        async def take() -> None:
            async for batch in batches:
                got.extend(batch["index"].tolist())
                await asyncio.sleep(0)

        await asyncio.gather(take(), take(), take())
        assert sorted(got) == list(range(40))
        assert frames.state_dict() == {**frames.state_dict(), "watermark": 40, "above": []}


async def test_a_batch_that_is_not_given_out_is_not_delivered(make: Make, gates: Any) -> None:
    """A call that is cancelled leaves its frames to the next one; the state counts whole batches; so it is at an error."""
    async with asyncio.timeout(LIMIT), make(gates.script, instances=1, prefetch=1) as stream:
        frames = stream.frames(range(6), ordered=True, queue_size=6)
        batches = frames.batches(4)
        waiting = asyncio.ensure_future(anext(batches))
        gates.let_go(0, 1)
        await until(lambda: frames.stats().delivered == 2)
        assert frames.state_dict()["watermark"] == 0
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        gates.let_all_go()
        assert (await anext(batches))["index"].tolist() == [0, 1, 2, 3]
        await until(lambda: frames.stats().queued == 2)
        assert frames.state_dict()["watermark"] == 4
        assert [batch["index"].tolist() async for batch in batches] == [[4, 5]]
        assert frames.state_dict()["watermark"] == 6
    async with asyncio.timeout(LIMIT), make("def sample(task): return {'x': 1 / (task.index - 6)}", length=9) as stream:
        frames = stream.frames(range(9), ordered=True)
        got = []
        with pytest.raises(ab.SampleError, match="sample 6"):
            async for batch in frames.batches(4):
                got.append(batch["index"].tolist())
        assert got == [[0, 1, 2, 3]]
        assert frames.state_dict()["watermark"] == 4


async def test_a_tensor_is_no_list_of_anything_else(make: Make) -> None:
    """Its elements would pass for whole numbers: a mask and a matrix are refused, as numpy's are."""
    async with asyncio.timeout(LIMIT), make() as stream:
        assert await indices_of(stream.frames(torch.tensor([4, 2]), ordered=True)) == [4, 2]  # type: ignore[arg-type]
        for wrong in (torch.tensor([False, True]), torch.tensor([[3], [4]]), np.array([[3], [4]]), torch.tensor([1.0])):
            with pytest.raises(ab.ConfigError, match="indices must be a sequence of whole numbers"):
                stream.frames(wrong)  # type: ignore[arg-type]


def test_another_event_loop(make: Make) -> None:
    """Nothing of a stream would ever happen there, so waiting and closing there are errors."""
    one, other = asyncio.new_event_loop(), asyncio.new_event_loop()
    stream = make(length=3)
    one.run_until_complete(stream.__aenter__())
    try:
        for call in (lambda: anext(stream.frames([1])), lambda: stream.render(1), stream.aclose):
            with pytest.raises(ab.ConfigError, match="entered in another event loop"):
                other.run_until_complete(asyncio.wait_for(call(), LIMIT))
    finally:
        one.run_until_complete(stream.aclose())
        one.close()
    other.run_until_complete(stream.aclose())  # it is closed already
    other.close()


async def test_all_tasks_are_cancelled(make: Make) -> None:
    """As a shutdown handler does it. Whoever asks the stream for something then learns that it has ended."""
    async with asyncio.timeout(LIMIT), make() as stream:
        await anext(stream)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        for wanted in (lambda: indices_of(stream), lambda: stream.render(5), lambda: indices_of(stream.frames([1]))):
            with pytest.raises(ab.StreamClosed):
                await wanted()


# -- counters and states -----------------------------------------------------------------------------------------


async def test_stats_and_state_of_a_pass(make: Make, gates: Any) -> None:
    """They count this pass alone; the state is plain data, in positions of the sequence."""
    async with asyncio.timeout(LIMIT), make(gates.script, prefetch=1) as stream:
        frames, other = stream.frames([7, 5, 7, 6], queue_size=3), stream.frames([90])
        gates.let_go(5, 90)
        assert [(await anext(frames)).index, (await anext(other)).index] == [5, 90]
        await until(lambda: frames.stats().rendering == 2)  # each occupies a Blender
        assert frames.stats() == ab.PassStats(delivered=1, rendering=2, queued=0, skipped=0)
        state = frames.state_dict()
        assert json.loads(json.dumps(state)) == state
        assert (state["watermark"], state["above"], state["seed"]) == (0, [1], 0)
        gates.let_all_go()
        await until(lambda: frames.stats().queued == 3)
        assert frames.state_dict() == state  # what is queued is not consumed
        assert stream.stats().queued == 3
        assert stream.state_dict() == make(gates.script).state_dict()  # nothing was consumed of the stream's own
        await indices_of(frames)
        assert frames.state_dict() == {**state, "watermark": 4, "above": []}
        assert (frames.stats().delivered, other.stats().delivered, stream.stats().delivered) == (4, 1, 5)


async def test_a_skipped_sample_is_counted_by_its_pass(make: Make) -> None:
    """A pass goes on without a sample that raises, if the config says so; the stream's counter keeps it."""
    bad = "def sample(task):\n    assert task.index != 4\n    return {}"
    async with asyncio.timeout(LIMIT), make(bad, on_bad_sample="skip") as stream:
        frames = stream.frames(range(8), ordered=True)
        assert await indices_of(frames) == [0, 1, 2, 3, 5, 6, 7]
        assert frames.stats() == ab.PassStats(delivered=7, rendering=0, queued=0, skipped=1)
        assert (stream.stats().skipped, stream.stats().delivered) == (1, 7)
        assert frames.state_dict()["watermark"] == 8


# -- flush -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [True, False])
async def test_flush_lets_changed_params_take_hold(own: bool, make: Make, gates: Any) -> None:
    """Only a sample that a Blender is at keeps its old params; each index still comes exactly once."""
    level, drawn = 0, 0

    def params(index: int) -> dict[str, Any]:
        nonlocal drawn
        drawn += 1
        return {"level": level}

    stream = make(gates.script, instances=2, prefetch=3, queue_size=20, length=12, params=params)
    async with asyncio.timeout(LIMIT), stream:
        await until(lambda: list(stream.stats().state.values()) == ["idle", "idle"])
        assert stream.flush() == 0  # nothing has begun
        source: Any = stream if own else stream.frames()
        if own:
            waiting = asyncio.ensure_future(anext(source))
        await until(lambda: stream.stats().rendering == 6)
        begun: list[int] = []
        while len(begun) < 2:  # one of each Blender
            begun = [index for index in range(12) if gates.begun(index)]
            await asyncio.sleep(0.002)
        level = 1
        assert source.flush() == 4
        assert drawn == 10  # those were drawn anew, at once
        level = 2
        assert source.flush() == 4
        gates.let_all_go()
        frames = [await waiting] if own else []
        frames += [frame async for frame in source]
        assert sorted(frame.index for frame in frames) == list(range(12))
        for frame in frames:
            assert frame["level"] == frame.params["level"] == (0 if frame.index in begun else 2)
        assert source.flush() == 0


async def test_flush_leaves_other_passes_alone(make: Make, gates: Any) -> None:
    """It gives up the samples of its own pass, and keeps what has arrived already."""
    levels: dict[str, int] = {"one": 0, "other": 0}
    async with asyncio.timeout(LIMIT), make(gates.script, instances=1, prefetch=6) as stream:
        gates.let_go(0)
        one = stream.frames(range(3), params=lambda index: {"level": levels["one"]})
        other = stream.frames(range(10, 13), params=lambda index: {"level": levels["other"]})
        await until(lambda: one.stats().queued == 1)
        await until(lambda: stream.stats().rendering == 5)
        levels = {"one": 1, "other": 1}
        assert one.flush() == 1
        gates.let_all_go()
        assert {frame.index: frame["level"] async for frame in one} == {0: 0, 1: 0, 2: 1}
        assert [frame["level"] async for frame in other] == [0, 0, 0]


async def test_params_may_call_flush(make: Make, gates: Any) -> None:
    """A curriculum that changes while params are drawn gives up what was drawn before, and keeps what is being drawn."""
    drawn: list[int] = []

    def params(index: int) -> dict[str, Any]:
        drawn.append(index)
        if drawn == [0, 1, 2]:
            assert stream.flush() == 1
        return {"level": len(drawn)}

    stream = make(gates.script, instances=1, prefetch=4, length=6, params=params)
    async with asyncio.timeout(LIMIT), stream:
        first = asyncio.ensure_future(anext(stream))
        await until(lambda: stream.stats().rendering == 4)
        assert drawn == [0, 1, 2, 1, 3]
        gates.let_all_go()
        frames = [await first, *[frame async for frame in stream]]
        assert {frame.index: frame["level"] for frame in frames} == {0: 1, 1: 4, 2: 3, 3: 5, 4: 6, 5: 7}


async def test_params_may_call_flush_each_time(make: Make) -> None:
    """Params that give up what was leased before, at every call, keep the event loop no longer than others."""
    calls = 0

    def params(index: int) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        assert calls < 10_000, "it would go on for ever"
        stream.flush()
        return {"level": index}

    stream = make(instances=1, prefetch=8, queue_size=8, params=params)
    async with asyncio.timeout(LIMIT), stream:
        assert sorted(await indices_of(stream.frames(range(12)))) == list(range(12))  # flush is of another pass
        own = [await anext(stream) for _ in range(12)]
        assert len({frame.index for frame in own}) == 12
