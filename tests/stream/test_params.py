"""Params of every kind: when they are drawn, how they end, and that nothing waits for them but leases."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import pytest

import asyncblend as ab
from asyncblend.stream.params import Feeds, ParamsSource

LIMIT = 60.0
LEVEL = "def sample(task): return {'level': task.params.get('level')}"


def levels(*values: int) -> Iterator[dict[str, int]]:
    for value in values or itertools.count():
        yield {"level": value}


async def levels_awaited(*values: int) -> AsyncIterator[dict[str, int]]:
    for value in values or itertools.count():
        await asyncio.sleep(0)
        yield {"level": value}


BOTH = pytest.mark.parametrize("of", [levels, levels_awaited], ids=["iterator", "async"])
Of = Callable[..., Any]


async def taken(frames: Any) -> list[Any]:
    return [frame async for frame in frames]


# -- drawing -----------------------------------------------------------------------------------------------------


@BOTH
async def test_one_is_taken_at_each_lease_in_the_order_of_leases(make: Callable[..., Any], of: Of) -> None:
    """Indices of one pass are leased in order, so sample i has what comes i-th."""
    async with asyncio.timeout(LIMIT), make(LEVEL, length=30, params=of()) as stream:
        frames = await taken(stream)
    assert sorted(frame.index for frame in frames) == list(range(30))
    assert all(frame["level"] == frame.params["level"] == frame.index for frame in frames)


async def test_what_can_be_called_is_called(make: Callable[..., Any]) -> None:
    """An object with both is called, so that its place in the order of leases does not matter."""

    class Both:
        def __call__(self, index: int) -> dict[str, int]:
            return {"level": -index}

        def __next__(self) -> dict[str, int]:
            raise AssertionError

    async with asyncio.timeout(LIMIT), make(LEVEL, length=4, params=Both()) as stream:
        assert sorted([frame["level"] for frame in await taken(stream)]) == [-3, -2, -1, 0]


@BOTH
async def test_a_sample_of_a_dead_blender_keeps_its_params(make: Callable[..., Any], of: Of, tmp_path: Any) -> None:
    """Each mapping belongs to one sample, however often that is rendered."""
    fake = ab.testing.fake_blender(tmp_path / "dying", crash_after=3, lives=2)
    restart = ab.RestartPolicy(backoff=0.0, max_restarts=20)
    async with asyncio.timeout(LIMIT), make(LEVEL, length=24, params=of(), blender=fake, restart=restart) as stream:
        frames = await taken(stream)
        assert stream.stats().restarts
    assert all(frame["level"] == frame.index for frame in frames)
    assert len(frames) == 24


async def test_the_age_of_params_is_known(make: Callable[..., Any], gates: Any) -> None:
    """It counts the leases of the pass since they were drawn, without the sample's own."""
    async with asyncio.timeout(LIMIT), make(gates.script, length=3, instances=1, prefetch=3) as stream:
        frames = stream.frames(params=levels())
        await gates.until_begun(0)  # 1 and 2 are leased with it
        gates.let_all_go()
        assert [frame.params_age for frame in await taken(frames)] == [2, 1, 0]
        assert (await stream.render(9, {"level": 1})).params_age == 0


# -- ends --------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("options", [{"length": None}, {"length": 50, "ordered": True}], ids=str)
async def test_a_pass_ends_with_its_iterator(make: Callable[..., Any], of: Of, options: dict[str, Any]) -> None:
    """All samples that were drawn come, and no error."""
    async with asyncio.timeout(LIMIT), make(LEVEL, params=of(*range(7)), **options) as stream:
        assert sorted([frame["level"] for frame in await taken(stream)]) == list(range(7))
        with pytest.raises(ab.ConfigError, match="the iterator that gives the params has ended"):
            await stream.render(20)
        assert (await stream.render(20, {"level": 5}))["level"] == 5


def test_a_pass_of_another_thread_ends_likewise(make_sync: Callable[..., ab.SyncStream]) -> None:
    """The end is the same through the bridge, and an ended iterator renders no single sample."""
    stream = make_sync(LEVEL, length=None, params=levels_awaited(1, 2, 3))
    assert sorted(frame["level"] for frame in stream) == [1, 2, 3]
    with pytest.raises(ab.ConfigError, match="has ended"):
        stream.render(20)


@BOTH
async def test_an_error_comes_after_the_frames_leased_before(make: Callable[..., Any], of: Of) -> None:
    """What the iterator raises is raised to the consumer, in its turn; what would end its loop is wrapped."""

    async def awaited(error: BaseException) -> AsyncIterator[dict[str, int]]:
        async for params in levels_awaited(0, 1, 2):
            yield params
        raise error

    def plain(error: BaseException) -> Iterator[dict[str, int]]:
        yield from levels(0, 1, 2)
        raise error

    raising: Any = plain if of is levels else awaited
    for error, shown in ((LookupError("no more"), LookupError), (asyncio.CancelledError(), RuntimeError)):
        came: list[int] = []
        async with asyncio.timeout(LIMIT), make(LEVEL, length=9, params=raising(error)) as stream:
            with pytest.raises(shown):
                async for frame in stream:
                    came.append(frame["level"])
        assert sorted(came) == [0, 1, 2]


async def test_a_dict_that_changes_while_it_is_drawn(make: Callable[..., Any]) -> None:
    """Another thread may give it a key just then; each sample has the dict as it was at one moment."""
    params: dict[str, Any] = {}

    class Changing(Mapping[str, int]):
        def __getitem__(self, key: str) -> int:
            return len(params)

        def __iter__(self) -> Iterator[str]:
            params[f"new {len(params)}"] = 0
            return iter("n")

        def __len__(self) -> int:
            return 1

    params["first"] = Changing()
    async with (
        asyncio.timeout(LIMIT),
        make("def sample(task): return {}", params=params, length=3, ordered=True) as stream,
    ):
        assert [len(frame.params) async for frame in stream] == [1, 2, 3]


async def test_what_is_no_mapping_is_named(make: Callable[..., Any]) -> None:
    """Also what somebody forgot to await or to call."""

    async def coroutine(index: int) -> dict[str, int]:
        return {"level": index}

    async def generator(index: int) -> AsyncIterator[dict[str, int]]:
        yield {"level": index}

    wrong: list[tuple[Any, str]] = [
        (coroutine, "params of index 0: expected a dict of values, got coroutine; where params are awaited, give an"),
        (generator, "params of index 0: expected a dict of values, got async_generator; where params are awaited"),
        (iter([5]), "params of index 0: expected a dict of values, got int$"),
        (iter([{"level": {1}}]), "params of index 0: value 'level' is a builtins.set, which cannot travel"),
    ]
    for params, message in wrong:
        async with asyncio.timeout(LIMIT), make(LEVEL, length=9, params=params) as stream:
            with pytest.raises(ab.ConfigError, match=message):
                await anext(stream)


# -- awaiting ----------------------------------------------------------------------------------------------------


async def test_leases_wait_for_params_and_nothing_else_does(make: Callable[..., Any]) -> None:
    """Another pass and single samples go on; each mapping that comes is rendered at once."""
    queue: asyncio.Queue[int] = asyncio.Queue()

    async def fed() -> AsyncIterator[dict[str, int]]:
        while True:
            yield {"level": await queue.get()}

    async with asyncio.timeout(LIMIT), make(LEVEL, length=6, params={"level": -1}) as stream:
        steered = stream.frames(range(100, 110), params=fed())
        waiting = asyncio.ensure_future(anext(steered))
        assert [frame["level"] for frame in await taken(stream)] == [-1] * 6
        assert (await stream.render(3))["level"] == -1
        assert not waiting.done()
        for level in (5, 6):
            queue.put_nowait(level)
            frame = await waiting
            assert (frame["level"], frame.params_age) == (level, 0)
            waiting = asyncio.ensure_future(anext(steered))
        waiting.cancel()


async def test_passes_share_an_iterator(make: Callable[..., Any]) -> None:
    """An asynchronous generator cannot be awaited twice at once; each mapping goes to one of the passes."""
    async with asyncio.timeout(LIMIT), make(LEVEL, length=10, params=levels_awaited()) as stream:
        other = stream.frames(range(100, 110))
        single = asyncio.ensure_future(stream.render(50))
        got = [frame["level"] for frames in await asyncio.gather(taken(stream), taken(other)) for frame in frames]
        assert sorted([*got, (await single)["level"]]) == list(range(21))


async def test_a_pass_that_ends_cancels_its_own_iterator_only(make: Callable[..., Any]) -> None:
    """What the config gave goes on with the stream, and is finished when the stream is closed."""
    ended: list[str] = []

    async def never(name: str) -> AsyncIterator[dict[str, int]]:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(name)
        yield {}

    async with asyncio.timeout(LIMIT), make(LEVEL, params=never("stream's")) as stream:
        for own in ("first", "second"):
            async with stream.frames(range(5), params=never(own)), stream.frames(range(5)):
                while not any(task.get_name() == "asyncblend params" for task in asyncio.all_tasks()):
                    await asyncio.sleep(0)
                await stream.render(1, {})
        while ended != ["first", "second"]:
            await asyncio.sleep(0)
    assert ended == ["first", "second", "stream's"]


async def test_a_flush_draws_anew(make: Callable[..., Any], gates: Any) -> None:
    """What is not begun gets what the iterator gives next."""
    async with asyncio.timeout(LIMIT), make(gates.script, instances=1, prefetch=3, length=3, params=levels()) as stream:
        first = asyncio.ensure_future(anext(stream))
        await gates.until_begun(0)
        assert stream.flush() == 2
        gates.let_all_go()
        frames = [await first, *await taken(stream)]
        assert [(frame.index, frame["level"]) for frame in frames] == [(0, 0), (1, 3), (2, 4)]


async def test_a_flush_at_the_end_of_an_iterator_ends_the_pass(make: Callable[..., Any], gates: Any) -> None:
    """Samples that were given up and get no params are passed over."""
    async with asyncio.timeout(LIMIT), make(gates.script, instances=1, prefetch=4, length=9, ordered=True) as stream:
        frames = stream.frames(params=levels(0, 1, 2, 3, 4, 5))
        await gates.until_begun(0)
        assert frames.flush() == 3
        gates.let_all_go()
        assert [frame["level"] for frame in await taken(frames)] == [0, 4, 5]
        assert frames.stats() == ab.PassStats(delivered=3, rendering=0, queued=0, skipped=0)


async def test_what_has_come_and_is_not_leased_is_forgotten_by_a_flush() -> None:
    """It was drawn before the params changed."""
    came = asyncio.Event()
    feeds = Feeds(came.set, None)
    source = ParamsSource(levels_awaited())
    source.begin(feeds)
    drawn: list[Any] = []
    for flush in (False, True, False):
        assert not source.ready()
        await came.wait()
        came.clear()
        assert source.ready()
        if flush:
            source.flush()
        else:
            drawn.append(dict(source.draw(0, 0).values))
    assert drawn == [{"level": 0}, {"level": 2}]
    source.end()
    await feeds.aclose(LIMIT)


async def test_a_generator_that_resists_holds_up_the_end_for_a_moment_only(
    make: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Closing the stream waits `timeouts.stop` for it, and says so."""
    go = asyncio.Event()

    async def stubborn() -> AsyncIterator[dict[str, int]]:
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                await go.wait()
        yield {}

    async with asyncio.timeout(LIMIT), make(LEVEL, params=stubborn()) as stream:
        frames = stream.frames(range(5))
        while not any(task.get_name() == "asyncblend params" for task in asyncio.all_tasks()):
            await asyncio.sleep(0)
        del frames
    assert "an asynchronous iterator goes on although it was cancelled" in caplog.text
    go.set()
    while any(task.get_name() == "asyncblend params" for task in asyncio.all_tasks()):
        await asyncio.sleep(0)
