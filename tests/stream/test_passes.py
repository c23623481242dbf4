"""Pass: one consumer's indices, params, order, error, counters and saved state, without a dispatcher."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from asyncblend.config import RestartPolicy, StreamConfig
from asyncblend.errors import AsyncblendError, ConfigError, FrameTimeout, InstanceError, SampleError, StreamClosed
from asyncblend.stream.frame import Frame
from asyncblend.stream.indices import own_indices
from asyncblend.stream.leases import Lease
from asyncblend.stream.params import Drawn
from asyncblend.stream.passes import Guilt, Pass
from asyncblend.stream.queue import EndOfStream


def config_of(**options: Any) -> StreamConfig:
    return StreamConfig(script="scene.py", restart=RestartPolicy(max_sample_deaths=2), **options)


def pass_of(indices: Sequence[int] | None = None, *, config: StreamConfig | None = None, **options: Any) -> Pass:
    return Pass(config or config_of(), indices, **options)


def leased(source: Pass, count: int | None = None) -> list[Lease[Drawn]]:
    """Return so many leases, or all that there are."""
    leases: list[Lease[Drawn]] = []
    while source.may_lease and len(leases) != count:
        lease = source.book.lease()
        assert lease is not None
        leases.append(lease)
    assert count is None or len(leases) == count
    return leases


def arrive(source: Pass, *leases: Lease[Drawn]) -> None:
    for lease in leases:
        assert source.arrive(lease, Frame({}, index=lease.index, instance=0, params=lease.params.values))


def consumed(source: Pass) -> tuple[list[int], BaseException | None]:
    """Take all that is there. Return the indices, and the end if it was met."""
    indices: list[int] = []
    while True:
        get = source.queue.get()
        try:
            get.send(None)
        except StopIteration as done:
            indices.append(done.value.frame.index)
            source.consume(done.value)
        except (EndOfStream, AsyncblendError) as error:
            return indices, error
        else:
            get.close()
            return indices, None


# -- arguments ---------------------------------------------------------------------------------------------------


def test_wrong_arguments_are_named() -> None:
    """Each is a ConfigError that says what was expected and shows what was given."""
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"indices": 5}, "indices must be a sequence of whole numbers; got 5"),
        ({"indices": "12"}, "indices must be a sequence of whole numbers; got '12'"),
        ({"indices": b"12"}, "indices must be a sequence of whole numbers; got b'12'"),
        ({"indices": [1, 2.0]}, r"indices must be a sequence of whole numbers; got \[1, 2.0\]"),
        ({"indices": [1, "2"]}, "indices must be a sequence of whole numbers"),
        ({"indices": iter([1])}, "indices must be a sequence of whole numbers"),
        ({"indices": [0, True]}, r"indices must be a sequence of whole numbers; got \[0, True\]"),
        ({"indices": np.array([True])}, "indices must be a sequence of whole numbers"),
        ({"indices": {1: 2}}, "indices must be a sequence of whole numbers"),
        ({"indices": [3, -1]}, r"indices must be from 0 to 2\*\*63 - 2; got -1"),
        ({"indices": range(3, -3, -1)}, r"indices must be from 0 to 2\*\*63 - 2; got -2"),
        ({"indices": [2**63 - 1]}, rf"indices must be from 0 to 2\*\*63 - 2; got {2**63 - 1}"),
        ({"indices": range(2**70)}, r"indices must be from 0 to 2\*\*63 - 2"),
        ({"params": 3}, r"params must be a mapping, a callable\(index\) -> mapping, or an iterator .*; got 3$"),
        ({"params": [{}]}, r"got \[{}\]; iter\(\) makes one of it$"),
        ({"ordered": 1}, "ordered must be a bool; got 1"),
        ({"queue_size": 0}, "queue_size must be a whole number, at least 1; got 0"),
        ({"queue_size": True}, "queue_size must be a whole number, at least 1; got True"),
        ({"state": [1]}, r"not a saved state of a stream: \[1\]"),
        ({"state": {}}, "not a saved state of a stream: {}"),
    ]
    for options, message in wrong:
        with pytest.raises(ConfigError, match=message):
            pass_of(**options)


async def test_the_config_holds_where_the_pass_has_no_option_of_its_own() -> None:
    """Indices, params, order, slots and what to do about bad samples are the config's, else the pass's own."""
    config = config_of(
        start=10, length=6, shard=(1, 2), params={"level": 1}, ordered=True, queue_size=2, on_bad_sample="skip"
    )
    usual = pass_of(config=config)
    one, two = leased(usual)
    assert [(one.index, two.index), dict(one.params.values)] == [(11, 13), {"level": 1}]
    arrive(usual, two)
    usual.sample_failed(one, SampleError("no"))
    assert consumed(usual) == ([13], None)

    own = pass_of([5, 5, 4], config=config, params={"level": 2}, ordered=False, queue_size=3, on_bad_sample="raise")
    one, two, three = leased(own)
    assert ([one.index, two.index, three.index], dict(one.params.values)) == ([5, 5, 4], {"level": 2})
    arrive(own, three)
    error = SampleError("no")
    own.sample_failed(one, error)
    assert consumed(own) == ([4], error)


def test_numbers_of_numpy_are_indices() -> None:
    """An array of integers is a sequence of indices, and so is every other sequence of integers."""
    sequences: list[Any] = [np.array([3, 1]), [np.int64(3), np.uint8(1)], (3, 1)]
    for indices in sequences:
        source = pass_of(indices)
        assert [lease.index for lease in leased(source)] == [3, 1]
        assert all(type(lease.index) is int for lease in leased(pass_of(indices)))


def test_the_sequence_is_not_changed_from_outside() -> None:
    """A list that changes later changes nothing of the pass."""
    indices = [1, 2, 3]
    source = pass_of(indices)
    indices[:] = [9]
    assert [lease.index for lease in leased(source)] == [1, 2, 3]


def test_an_empty_pass_ends_at_once() -> None:
    """There is nothing to wait for."""
    empty: list[Sequence[int]] = [[], range(0), range(5, 2)]
    for indices in empty:
        source = pass_of(indices)
        assert not source.may_lease
        indices_, end = consumed(source)
        assert (indices_, type(end)) == ([], EndOfStream)


def test_the_indices_of_a_config() -> None:
    """A range from its start, of its length or up to 2**63 - 1, with the steps of its shard; a client may begin later."""
    assert own_indices(config_of()) == range(sys.maxsize)
    assert own_indices(config_of(start=5, length=7)) == range(5, 12)
    assert own_indices(config_of(start=5, length=7, shard=(1, 3))) == range(6, 12, 3)
    assert own_indices(config_of(shard=(2, 3))) == range(2, sys.maxsize, 3)
    assert own_indices(config_of(start=5, length=7), 100) == range(100, 107)
    with pytest.raises(ConfigError, match=f"begin at index {sys.maxsize - 3}; indices must be below"):
        own_indices(config_of(length=7), sys.maxsize - 3)


# -- params ------------------------------------------------------------------------------------------------------


def test_params_are_drawn_at_the_lease() -> None:
    """They are drawn once for each sample, not before its lease, and a lease after a crash has the first ones."""
    seen: list[int] = []

    def params(index: int) -> dict[str, int]:
        seen.append(index)
        return {"draw": len(seen)}

    source = pass_of([7, 8], params=params)
    assert seen == []
    (seven,) = leased(source, 1)
    assert seen == [7]
    source.give_back(seven)
    again, eight = leased(source)
    assert [again.params.values["draw"], eight.params.values["draw"]] == [1, 2]
    assert seen == [7, 8]


def test_params_are_a_snapshot() -> None:
    """The training loop may change its arrays: neither a lease after a crash nor the frame's params change."""
    weights, nested = np.arange(3.0), {"names": ["a"]}
    source = pass_of([1], params=lambda index: {"weights": weights, "nested": nested})
    (lease,) = leased(source)
    weights[:] = -1
    nested["names"].append("b")
    source.give_back(lease)
    (again,) = leased(source)
    for drawn in (lease.params, again.params):
        np.testing.assert_array_equal(drawn.values["weights"], [0, 1, 2])
        assert drawn.values["nested"] == {"names": ["a"]}
    assert again.params.parts == lease.params.parts
    with pytest.raises(TypeError):
        lease.params.values["weights"] = 1  # type: ignore[index]
    with pytest.raises(ValueError, match="read-only"):
        lease.params.values["weights"][0] = 1


def test_params_that_cannot_travel_are_named() -> None:
    """The error names the index and what is wrong."""
    for value, message in (({"x": object()}, "params of index 4: .*object"), (3, "params of index 4: ")):
        source = pass_of([4], params=lambda index, value=value: value)
        with pytest.raises(ConfigError, match=message):
            source.book.lease()


def test_without_params_they_are_empty() -> None:
    """Both Blender and the frame get an empty mapping."""
    (lease,) = leased(pass_of([4]))
    assert lease.params.values == {}


# -- frames ------------------------------------------------------------------------------------------------------


async def test_order() -> None:
    """An ordered pass delivers in the order of its indices, any other by arrival."""
    for ordered, expected in ((True, [9, 2, 5]), (False, [5, 2, 9])):
        source = pass_of([9, 2, 5], ordered=ordered)
        one, two, three = leased(source)
        arrive(source, three, two)
        assert source.stats().queued == 2
        assert consumed(source)[0] == ([] if ordered else [5, 2])
        arrive(source, one)
        assert [*([] if ordered else [5, 2]), *consumed(source)[0]] == expected
        assert source.stats().delivered == 3


async def test_a_pass_ends_after_its_last_frame() -> None:
    """The end comes when the last frame is consumed, and each time from then on."""
    source = pass_of([3, 4])
    arrive(source, *leased(source))
    for expected in ([3, 4], [], []):
        indices, end = consumed(source)
        assert (indices, type(end)) == (expected, EndOfStream)


async def test_a_slot_is_free_when_the_frame_is_consumed() -> None:
    """`free` is the share of the slots that are free."""
    source = pass_of(range(9), queue_size=4)
    (lease,) = leased(source, 1)
    assert source.free == 0.75
    arrive(source, lease)
    assert source.free == 0.75
    consumed(source)
    assert source.free == 1.0


# -- bad samples -------------------------------------------------------------------------------------------------


async def test_an_error_comes_after_the_good_frames() -> None:
    """Nothing is leased any more; the first error is the one that counts, and comes each time."""
    source = pass_of(range(6), queue_size=5)
    one, two, three = leased(source, 3)
    assert source.may_lease
    arrive(source, one)
    first = InstanceError("first")
    source.fail(first)
    source.fail(InstanceError("second"))
    source.sample_failed(two, SampleError("third"))
    assert not source.may_lease
    assert source.error is first
    arrive(source, three)  # too late
    assert consumed(source) == ([0], first)
    assert consumed(source) == ([], first)


async def test_an_error_after_all_has_arrived_is_none() -> None:
    """The consumer has all frames, so it does not matter that the fleet has failed."""
    source = pass_of(range(2))
    arrive(source, *leased(source))
    source.fail(InstanceError("late"))
    indices, end = consumed(source)
    assert (indices, type(end)) == ([0, 1], EndOfStream)


async def test_a_bad_sample_is_skipped(caplog: pytest.LogCaptureFixture) -> None:
    """With on_bad_sample="skip" it is counted, logged and settled; in an ordered pass the next ones follow at once."""
    for ordered in (True, False):
        caplog.clear()
        source = pass_of(range(4), ordered=ordered, queue_size=4, on_bad_sample="skip")
        zero, one, two, three = leased(source)
        arrive(source, one, three)
        source.sample_failed(zero, SampleError("sample 0 failed\nwith a traceback"))
        source.sample_failed(two, SampleError("sample 2 failed"))
        indices, end = consumed(source)
        assert (indices, type(end)) == ([1, 3], EndOfStream)
        assert (source.stats().skipped, source.stats().delivered) == (2, 2)
        assert caplog.messages == ["Skipped a sample: sample 0 failed", "Skipped a sample: sample 2 failed"]
        assert (source.state_dict()["watermark"], source.state_dict()["above"]) == (4, [])


async def test_a_last_sample_that_is_skipped_ends_the_pass() -> None:
    """The consumer that waits for it meets the end."""
    source = pass_of([3, 4], on_bad_sample="skip")
    three, four = leased(source)
    arrive(source, three)
    assert consumed(source) == ([3], None)
    source.sample_failed(four, SampleError("no"))
    indices, end = consumed(source)
    assert (indices, type(end)) == ([], EndOfStream)


async def test_a_sample_may_kill_so_many_blenders() -> None:
    """Crashes are counted for each sample by itself, and only those that it is blamed for."""
    for skips in (False, True):
        source = pass_of([7, 7], params={"level": 3}, on_bad_sample="skip" if skips else "raise")
        guilts: list[Guilt] = ["none", "likely", "possible"]
        for guilt in guilts:
            for lease in leased(source):
                source.give_back(lease, guilt if lease.position == 0 else "possible")
        first, second = leased(source)
        source.give_back(second, "certain")
        source.give_back(first, "likely")  # the second time, but it was not alone
        assert source.error is None
        source.give_back(leased(source, 1)[0], "certain", why := FrameTimeout("it hung"))
        if skips:
            assert source.stats().skipped == 1
            arrive(source, *leased(source, 1))
            indices, end = consumed(source)
            assert (indices, type(end)) == ([7], EndOfStream)
        else:
            assert isinstance(source.error, SampleError)
            assert source.error.index == 7
            text = "sample 7 killed its Blender 2 times; its params: {'level': 3}. The last time: it hung"
            assert str(source.error) == text
            assert source.error.__cause__ is why


# -- the end -----------------------------------------------------------------------------------------------------


async def test_what_is_queued_of_an_ended_pass_is_dropped() -> None:
    """Its consumer gets the error at once, and whatever still happens to its leases changes nothing."""
    source = pass_of(range(9), queue_size=5, ordered=True, on_bad_sample="skip")
    zero, one, two, three = leased(source, 4)
    arrive(source, zero, two)
    assert source.may_lease
    closed = StreamClosed("closed")
    source.end(closed)
    assert consumed(source) == ([], closed)
    assert not source.may_lease
    assert not source.arrive(one, Frame({}, index=1, instance=0))
    before = (source.stats(), source.state_dict())
    source.give_back(three, "certain")
    source.give_back(three, "certain")
    source.sample_failed(three, SampleError("no"))
    assert (source.stats(), source.state_dict()) == before
    assert (before[0].rendering, before[0].queued, before[0].skipped) == (0, 0, 0)


# -- state -------------------------------------------------------------------------------------------------------


async def test_a_state_resumes_the_rest() -> None:
    """JSON holds it; what was consumed is excluded, what had only arrived is not."""
    sequences: list[Sequence[int] | None] = [None, range(20, 32, 2), [4, 4, 2, 9, 0, 7]]
    for indices in sequences:
        config = config_of(length=6)
        source = pass_of(indices, config=config)
        leases = leased(source)
        arrive(source, leases[0], leases[2])
        assert consumed(source)[0] == [leases[0].index, leases[2].index]
        arrive(source, leases[3])
        state = json.loads(json.dumps(source.state_dict()))
        resumed = pass_of(indices, config=config, state=state)
        assert resumed.state_dict() == state
        rest = leased(resumed)
        assert [lease.position for lease in rest] == [1, 3, 4, 5]
        assert (resumed.stats().delivered, resumed.stats().skipped) == (0, 0)
        arrive(resumed, *rest)
        consumed(resumed)
        done = pass_of(indices, config=config, state=resumed.state_dict())
        assert isinstance(consumed(done)[1], EndOfStream)


def test_a_state_that_does_not_fit_is_refused() -> None:
    """The error names what differs, and both values."""
    source = pass_of(config=config_of(seed=3, start=2, length=10, shard=(1, 2)))
    state = source.state_dict()
    assert state["indices"] == {"start": 3, "stop": 12, "step": 2}
    own = "the saved state has indices={'start': 3, 'stop': 12, 'step': 2}"
    others: list[tuple[dict[str, Any], Sequence[int] | None, str]] = [
        ({"seed": 4}, range(3, 12, 2), "the saved state has seed=3, this stream has 4"),
        ({}, range(4, 12, 2), f"{own}, this stream has {{'start': 4,"),
        ({}, range(3, 14, 2), f"{own}, this stream has {{'start': 3, 'stop': 14,"),
        ({}, range(3, 12, 3), f"{own}, this stream has .* 'step': 3}}"),
        ({"start": 3, "shard": (0, 2)}, None, f"{own}, this stream has .*'stop': None"),
        ({}, [3, 5, 7, 9, 11], f"{own}, this stream has {{'count': 5, 'crc32': "),
    ]
    for options, indices, message in others:
        config = config_of(**{"seed": 3, **options})
        with pytest.raises(ConfigError, match=message):
            pass_of(indices, config=config, state=state)
    assert pass_of(range(3, 12, 2), config=config_of(seed=3), state=state).state_dict() == state
    with pytest.raises(ConfigError, match="'crc32'"):
        pass_of([1, 2], state=pass_of([2, 1]).state_dict())


def test_a_state_without_its_positions_is_refused() -> None:
    """Whatever else is wrong with it is a ConfigError too."""
    state = pass_of(range(6)).state_dict()
    for name in state:
        with pytest.raises(ConfigError, match="saved state"):
            pass_of(range(6), state={key: value for key, value in state.items() if key != name})
    with pytest.raises(ConfigError, match="not a saved state of these 6 indices"):
        pass_of(range(6), state={**state, "above": [6]})


def test_params_go_on_from_a_state_once_though_the_seed_is_known_later() -> None:
    """What they have learned between loading and attaching is kept."""

    class Counted:
        n = 0

        def __call__(self, index: int) -> dict[str, int]:
            return {"n": self.n}

        def state_dict(self) -> dict[str, int]:
            return {"n": self.n}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.n = state["n"]

    params = Counted()
    config = StreamConfig(fleet="cubes", params=params)
    state = Pass(config).state_dict()
    source = Pass(config, state=state)
    params.n = 7
    source.know_seed(3)
    assert params.n == 7
    assert source.state_dict()["seed"] == 3
    with pytest.raises(ConfigError, match="the saved state has seed=3, this stream has 4"):
        source.know_seed(4)


def test_a_state_that_knows_no_seed_leaves_a_known_one() -> None:
    """A pass over a fleet that is not attached yet does not know the seed. Its state is checked no less later."""
    unknown = Pass(StreamConfig(fleet="cubes")).state_dict()
    assert unknown["seed"] is None
    known = Pass(StreamConfig(script="x.py", seed=3), state=unknown).state_dict()
    assert known["seed"] == 3
    with pytest.raises(ConfigError, match="the saved state has seed=3, this stream has 4"):
        Pass(StreamConfig(script="x.py", seed=4), state=known)
