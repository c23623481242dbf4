"""The state of params: a resumed pass renders the rest with the params that it would have had."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

import asyncblend as ab
from asyncblend.config import RestartPolicy, StreamConfig
from asyncblend.errors import ConfigError
from asyncblend.stream.frame import Frame
from asyncblend.stream.leases import Lease
from asyncblend.stream.params import Drawn, EndOfParams
from asyncblend.stream.passes import Pass
from asyncblend.stream.queue import EndOfStream

LIMIT = 60.0
LEVEL = "def sample(task): return {'level': task.params.get('level')}"


class Walk:
    """A random walk: each draw depends on all draws before it, so that only an exact state gives the same again."""

    def __init__(self) -> None:
        self.rng, self.level, self.count = random.Random(3), 0, 0

    def step(self) -> dict[str, int]:
        self.count += 1
        self.level += self.rng.randrange(1, 1000)
        return {"level": self.level}

    def state_dict(self) -> dict[str, Any]:
        return {"level": self.level, "count": self.count, "rng": self.rng.getstate()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.level, self.count, (version, internal, gauss) = state["level"], state["count"], state["rng"]
        self.rng.setstate((version, tuple(internal), gauss))


class Called(Walk):
    def __call__(self, index: int) -> dict[str, int]:
        return self.step()


class Iterated(Walk):
    def __init__(self, end: int = 10**9) -> None:
        super().__init__()
        self.end = end

    def __next__(self) -> dict[str, int]:
        if self.count == self.end:
            raise StopIteration
        return self.step()


class Awaited(Walk):
    async def __anext__(self) -> dict[str, int]:
        await asyncio.sleep(0)
        return self.step()


def pass_of(params: Any, indices: Sequence[int] = range(40), **options: Any) -> Pass:
    config = StreamConfig(script="scene.py", restart=RestartPolicy(max_sample_deaths=2), queue_size=8)
    return Pass(config, indices, params=params, **options)


def leased(source: Pass, count: int | None = None) -> list[Lease[Drawn]]:
    """Return so many leases, or all that there are."""
    leases: list[Lease[Drawn]] = []
    while source.may_lease and len(leases) != count:
        lease = source.book.lease()
        assert lease is not None
        leases.append(lease)
    return leases


async def rendered(source: Pass, *leases: Lease[Drawn], consume: bool = True) -> None:
    """Let these samples arrive, and consume all that is there."""
    for lease in leases:
        source.arrive(lease, Frame({}, index=lease.index, instance=0, params=lease.params.values))
    while consume and source.queue._items:
        source.consume(await source.queue.get())


def levels(leases: Sequence[Lease[Drawn]]) -> list[tuple[int, int]]:
    return [(lease.index, lease.params.values["level"]) for lease in leases]


def through_json(state: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(state))


async def all_of(source: Pass) -> dict[int, int]:
    """Render all that is left, and return the levels by index."""
    found: dict[int, int] = {}
    while leases := leased(source):
        found |= levels(leases)
        await rendered(source, *leases)
    return found


@pytest.mark.parametrize("kind", [Called, Iterated])
@pytest.mark.parametrize("ordered", [False, True], ids=["by arrival", "in order"])
async def test_samples_that_were_not_delivered_keep_their_params(kind: Any, ordered: bool) -> None:
    """Those leased, given back and queued get them first; what is drawn later goes on from the params' own state."""
    source = pass_of(kind(), ordered=ordered)
    leases = leased(source)
    whole = dict(levels(leases))
    await rendered(source, leases[0], leases[2])  # in order, 2 waits for 1
    await rendered(source, leases[3], consume=False)
    source.give_back(leases[4])
    state = through_json(source.state_dict())
    resumed = pass_of(kind(), ordered=ordered, state=state)
    assert resumed.state_dict() == state

    await rendered(source, leases[1], *leases[5:])
    whole |= await all_of(source)
    assert sorted(whole) == list(range(40))
    rest = await all_of(resumed)
    assert rest == {index: level for index, level in whole.items() if index in rest}
    assert whole.keys() - rest.keys() == ({0} if ordered else {0, 2})


def test_a_given_up_sample_is_drawn_anew_after_resuming_too() -> None:
    """Its old params are not in the state; and a flush after resuming draws anew what was restored."""
    source = pass_of(Called())
    leases = leased(source, 4)
    source.book.flush(leases[2:])
    state = through_json(source.state_dict())
    assert [one["position"] for one in state["params"]["drawn"]] == [0, 1]
    resumed = pass_of(Called(), state=state)
    assert levels(leased(resumed, 2)) == levels(leases[:2])
    assert levels(leased(resumed, 2)) == levels(leased(source, 2))

    resumed = pass_of(Called(), state=state)
    resumed.book.flush([])
    assert not {level for _, level in levels(leased(resumed, 2))} & {level for _, level in levels(leases)}


def test_arrays_keep_every_bit() -> None:
    """Of each dtype, also those that JSON has no numbers for."""
    given: dict[str, Any] = {
        "floats": np.array([np.nan, -0.0, 1e-45], np.float32),
        "deep": [{"complex": np.array(1 + 2j)}, np.zeros((0, 3), np.uint8)],
        "inf": float("inf"),
    }
    (lease,) = leased(source := pass_of(lambda index: given), 1)
    (again,) = leased(pass_of(lambda index: {}, state=through_json(source.state_dict())), 1)
    assert [bytes(part) for part in again.params.parts] == [bytes(part) for part in lease.params.parts]
    np.testing.assert_array_equal(again.params.values["floats"], given["floats"])
    assert again.params.values["inf"] == float("inf")


def test_the_age_goes_on_counting() -> None:
    """Leases before the state was saved count as much as those after it."""
    source = pass_of(Called())
    leases = leased(source, 3)
    assert [source.age(lease) for lease in leases] == [2, 1, 0]
    resumed = pass_of(Called(), state=through_json(source.state_dict()))
    (first,) = leased(resumed, 1)
    assert resumed.age(first) == 3  # as if it had been leased again


@pytest.mark.parametrize("ordered", [False, True], ids=["by arrival", "in order"])
async def test_an_ended_iterator_ends_a_resumed_pass_with_the_same_samples(ordered: bool) -> None:
    """Also where a sample that lost its params stands before those that have some."""
    source = pass_of(Iterated(4), ordered=ordered)
    leases = leased(source, 4)
    source.book.flush([leases[1]])
    state = through_json(source.state_dict())
    resumed = pass_of(Iterated(4), ordered=ordered, state=state)
    restored = leased(resumed, 1)
    for one in (source, resumed):
        with pytest.raises(EndOfParams) as end:
            one.book.lease()
        one.finish(end.value)
    restored += leased(resumed)
    held = [leases[0], *leases[2:]]
    assert levels(restored) == levels(held)
    for one, its in ((source, held), (resumed, restored)):
        await rendered(one, *its)
        assert one.stats() == ab.PassStats(delivered=3, rendering=0, queued=0, skipped=0)
        with pytest.raises(EndOfStream):
            await one.queue.get()


async def test_what_an_asynchronous_iterator_gave_is_not_lost(make: Callable[..., Any]) -> None:
    """A stream, closed with samples in flight, is resumed by another one: each sample is as in a run of one piece."""
    seen: dict[int, int] = {}
    params = Awaited()
    whole = [params.step()["level"] for _ in range(30)]
    async with asyncio.timeout(LIMIT):
        state: Any = None
        while len(seen) < 30:
            stream = make(LEVEL, length=30, params=Awaited())
            if state is not None:
                stream.load_state_dict(state)
            async with stream:
                for _ in range(min(7, 30 - len(seen))):
                    frame = await anext(stream)
                    assert frame.index not in seen
                    seen[frame.index] = frame["level"]
                state = through_json(stream.state_dict())
    assert seen == dict(enumerate(whole))


def test_a_state_that_params_cannot_go_on_from_is_refused(make: Callable[..., Any]) -> None:
    """The error says what is missing."""

    def plain() -> Iterator[dict[str, int]]:
        yield from ({"level": level} for level in range(9))

    async def awaited() -> AsyncIterator[dict[str, int]]:
        yield {}

    class Broken(Called):
        def load_state_dict(self, state: dict[str, Any]) -> None:
            raise KeyError("level")

    class Unsaved(Called):
        def state_dict(self) -> dict[str, Any]:
            return {"rng": self.rng}

    iterated, called = pass_of(plain()), pass_of(Called())
    leased(iterated, 2), leased(called, 2)
    cases: list[tuple[Pass, Any, str]] = [
        (
            iterated,
            plain(),
            r"saved after 2 params had come from an iterator without state_dict\(\), which cannot be set",
        ),
        (iterated, awaited(), "after 2 params had come from an iterator"),
        (called, plain(), r"these params have no load_state_dict\(\) and state_dict\(\): <generator object"),
        (called, {"level": 1}, "these params have no load_state_dict"),
        (called, None, "the saved state has params, this stream has none"),
        (called, Broken(), "params cannot go on from their saved state .*KeyError: 'level'"),
    ]
    for source, params, message in cases:
        with pytest.raises(ConfigError, match=message):
            pass_of(params, state=source.state_dict())
    with pytest.raises(
        ConfigError, match=r"params.state_dict\(\) must return what JSON can hold .*got {'rng': <random"
    ):
        pass_of(Unsaved()).state_dict()

    good = called.state_dict()
    damaged: list[Any] = [
        {},
        {**good["params"], "drawn": [{}]},
        {**good["params"], "drawn": 5},
        {**good["params"], "taken": "2"},
        {
            **good["params"],
            "ahead": [{"age": 0, "tree": {"arrays": [["int8", [3]]], "values": {}}, "arrays": ["AA=="]}],
        },
        {**good["params"], "ahead": [{"age": 0, "tree": {"arrays": [], "values": {}}, "arrays": ["*"]}]},
    ]
    for params_state in damaged:
        with pytest.raises(ConfigError, match="not a saved state of params"):
            pass_of(Called(), state={**good, "params": params_state})
    for position in (-1, 40):
        drawn = [{**good["params"]["drawn"][0], "position": position}]
        with pytest.raises(ConfigError, match=f"params of position {position}, which is not among the rest"):
            pass_of(Called(), state={**good, "params": {**good["params"], "drawn": drawn}})
    assert "params" not in pass_of(None).state_dict()
