"""FrameQueue: order, its two ends, and cancellation at any moment."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from asyncblend.errors import InstanceExited
from asyncblend.stream.queue import EndOfStream, FrameQueue

LIMIT = 30  # seconds; the bound of failure of every wait here


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


def getting(queue: FrameQueue[int]) -> asyncio.Task[int]:
    return asyncio.ensure_future(queue.get())


def has_item(queue: FrameQueue[int]) -> bool:
    """Return whether `get` returns at once. It takes the item."""
    get = queue.get()
    try:
        get.send(None)
    except StopIteration:
        return True
    get.close()
    return False


async def all_of(queue: FrameQueue[int]) -> list[int]:
    """Return the items that are left in a closed queue."""
    items = []
    while True:
        try:
            items.append(await queue.get())
        except EndOfStream:
            return items


async def test_items_come_in_order() -> None:
    """The first item put is the first item got, also when the getter had to wait."""
    queue: FrameQueue[int] = FrameQueue(4)
    for i in range(4):
        queue.put(i)
    assert [await queue.get() for _ in range(4)] == [0, 1, 2, 3]
    waiting = getting(queue)
    await settle()
    queue.put(4)
    queue.put(5)
    async with asyncio.timeout(LIMIT):
        assert [await waiting, await queue.get()] == [4, 5]


async def test_get_waits_for_an_item() -> None:
    """On an empty queue `get` waits until an item is put."""
    queue: FrameQueue[int] = FrameQueue(1)
    waiting = getting(queue)
    await settle()
    assert not waiting.done()
    queue.put(7)
    async with asyncio.timeout(LIMIT):
        assert await waiting == 7


async def test_get_returns_a_queued_item_at_once() -> None:
    """It needs no turn of the event loop."""
    queue: FrameQueue[int] = FrameQueue(1)
    queue.put(7)
    get = queue.get()
    with pytest.raises(StopIteration) as done:
        get.send(None)
    assert done.value.value == 7


async def test_a_frame_without_a_slot_is_a_bug() -> None:
    """The leases bound the queue, so one item too many is noticed at once."""
    queue: FrameQueue[int] = FrameQueue(2)
    queue.put(0)
    queue.put(1)
    with pytest.raises(AssertionError, match="without a slot"):
        queue.put(2)


async def test_items_come_before_the_end() -> None:
    """Closing loses no item; after the last one each `get` meets the end."""
    queue: FrameQueue[int] = FrameQueue(4)
    queue.put(0)
    queue.put(1)
    queue.close()
    assert [await queue.get(), await queue.get()] == [0, 1]
    for _ in range(2):
        with pytest.raises(EndOfStream):
            await queue.get()


async def test_items_come_before_the_error() -> None:
    """After the last item each `get` raises the very error."""
    queue: FrameQueue[int] = FrameQueue(4)
    error = InstanceExited("gone", instance=1)
    queue.put(0)
    queue.close(error)
    assert await queue.get() == 0
    for _ in range(2):
        with pytest.raises(InstanceExited) as caught:
            await queue.get()
        assert caught.value is error


async def test_only_the_first_close_counts() -> None:
    """An error after the end changes nothing, nor does a second error."""
    queue: FrameQueue[int] = FrameQueue(1)
    queue.close()
    queue.close(InstanceExited("late"))
    with pytest.raises(EndOfStream):
        await queue.get()
    first = InstanceExited("first")
    queue = FrameQueue(1)
    queue.close(first)
    queue.close()
    queue.close(InstanceExited("second"))
    with pytest.raises(InstanceExited, match="first"):
        await queue.get()


async def test_an_item_after_the_close_is_dropped() -> None:
    """It is a frame of a pass that has ended."""
    queue: FrameQueue[int] = FrameQueue(1)
    queue.put(0)
    queue.close()
    queue.put(1)
    queue.put(2)
    assert await all_of(queue) == [0]


async def test_clear_drops_what_is_queued() -> None:
    """A closed queue meets its end at once; an open one has room again."""
    queue: FrameQueue[int] = FrameQueue(1)
    queue.put(0)
    queue.clear()
    queue.put(1)
    assert await queue.get() == 1
    queue.put(2)
    queue.close()
    queue.clear()
    assert await all_of(queue) == []


@pytest.mark.parametrize("error", [None, InstanceExited("gone")])
async def test_close_wakes_all_who_wait(error: InstanceExited | None) -> None:
    """Each waiting getter meets the end."""
    queue: FrameQueue[int] = FrameQueue(1)
    waiting = [getting(queue) for _ in range(3)]
    await settle()
    queue.close(error)
    async with asyncio.timeout(LIMIT):
        ends = await asyncio.gather(*waiting, return_exceptions=True)
    if error is None:
        assert [type(end) for end in ends] == [EndOfStream] * 3
    else:
        assert ends == [error] * 3


async def test_several_getters_are_served_in_turn() -> None:
    """Each item goes to the getter that has waited longest."""
    queue: FrameQueue[int] = FrameQueue(3)
    waiting = [getting(queue) for _ in range(3)]
    await settle()
    for i in range(3):
        queue.put(i)
    async with asyncio.timeout(LIMIT):
        assert await asyncio.gather(*waiting) == [0, 1, 2]


async def test_items_and_the_end_are_shared_out() -> None:
    """Of three getters that wait for two items and the close, two get an item and one meets the end."""
    queue: FrameQueue[int] = FrameQueue(3)
    waiting = [getting(queue) for _ in range(3)]
    await settle()
    queue.put(0)
    queue.put(1)
    queue.close()
    async with asyncio.timeout(LIMIT):
        got = await asyncio.gather(*waiting, return_exceptions=True)
    assert got[:2] == [0, 1]
    assert isinstance(got[2], EndOfStream)


async def test_a_cancelled_getter_takes_no_item() -> None:
    """The next item goes to the next getter."""
    queue: FrameQueue[int] = FrameQueue(1)
    first, second = getting(queue), getting(queue)
    await settle()
    first.cancel()
    await settle()
    assert first.cancelled()
    queue.put(7)
    async with asyncio.timeout(LIMIT):
        assert await second == 7


async def test_cancelled_just_before_the_item() -> None:
    """The item comes while the cancellation is not delivered yet: the next getter has it."""
    queue: FrameQueue[int] = FrameQueue(1)
    first, second = getting(queue), getting(queue)
    await settle()
    first.cancel()
    queue.put(7)
    async with asyncio.timeout(LIMIT):
        assert await second == 7
    assert first.cancelled()


async def test_cancelled_just_after_the_item() -> None:
    """A getter that is woken and cancelled at once wakes the next one."""
    queue: FrameQueue[int] = FrameQueue(1)
    first, second = getting(queue), getting(queue)
    await settle()
    queue.put(7)
    first.cancel()
    async with asyncio.timeout(LIMIT):
        assert await second == 7
    assert first.cancelled()


async def test_cancelled_just_after_the_item_with_nobody_else() -> None:
    """The item stays in the queue."""
    queue: FrameQueue[int] = FrameQueue(1)
    waiting = getting(queue)
    await settle()
    queue.put(7)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    async with asyncio.timeout(LIMIT):
        assert await queue.get() == 7


async def test_cancelled_while_it_closes() -> None:
    """The other getters still meet the end."""
    queue: FrameQueue[int] = FrameQueue(1)
    first, second = getting(queue), getting(queue)
    await settle()
    queue.close()
    first.cancel()
    async with asyncio.timeout(LIMIT):
        ends = await asyncio.gather(first, second, return_exceptions=True)
    assert isinstance(ends[0], asyncio.CancelledError)
    assert isinstance(ends[1], EndOfStream)


async def test_a_woken_getter_that_comes_too_late_waits_on() -> None:
    """Another one took the item in between, so it waits for the next item."""
    queue: FrameQueue[int] = FrameQueue(1)
    waiting = getting(queue)
    await settle()
    queue.put(7)
    assert await queue.get() == 7  # without a turn of the loop
    await settle()
    assert not waiting.done()
    queue.put(8)
    async with asyncio.timeout(LIMIT):
        assert await waiting == 8


async def test_no_order_of_events_loses_an_item() -> None:
    """Each item is got once or stays, and no getter waits beside an item, whatever happens between two turns."""
    events = ["put", "put", "cancel first", "cancel last"]
    orders = {*itertools.permutations(events), *itertools.permutations([*events, "close"])}
    for order in sorted(orders):
        for turns in itertools.product([False, True], repeat=len(order)):
            queue: FrameQueue[int] = FrameQueue(4)
            waiting = [getting(queue) for _ in range(3)]
            await settle()
            put, closed = 0, False
            for event, turn in zip(order, turns, strict=True):
                if event == "put":
                    put += not closed
                    queue.put(put)
                elif event == "close":
                    closed = True
                    queue.close()
                else:
                    waiting[0 if event == "cancel first" else -1].cancel()
                if turn:
                    await asyncio.sleep(0)
            await settle()
            if not all(task.done() for task in waiting):
                assert not has_item(queue), "a getter waits though there is an item"
            queue.close()
            async with asyncio.timeout(LIMIT):
                got = await asyncio.gather(*waiting, return_exceptions=True)
            assert all(isinstance(end, int | EndOfStream | asyncio.CancelledError) for end in got)
            items = [item for item in got if isinstance(item, int)]
            assert sorted(items + await all_of(queue)) == list(range(1, put + 1))


class Noting:
    """A sink that notes what it gets."""

    def __init__(self) -> None:
        self.got: list[object] = []

    def put(self, item: str) -> None:
        self.got.append(item)

    def end(self, error: BaseException | None) -> None:
        self.got.append(("end", error))


def test_a_sink_gets_everything_at_once() -> None:
    """What is queued, what comes later and the end go to the sink, in order, without a task that waits."""
    queue, sink, error = FrameQueue[str](1), Noting(), RuntimeError("gone")
    queue.put("a")
    queue.hand_to(sink)
    for item in "bc":  # more than the queue would keep
        queue.put(item)
    queue.close(error)
    queue.put("late")
    queue.close()
    assert sink.got == ["a", "b", "c", ("end", error)]


def test_a_sink_learns_of_an_end_before_it() -> None:
    """A queue that was closed already tells its sink so."""
    queue, sink = FrameQueue[str](1), Noting()
    queue.put("a")
    queue.close()
    queue.hand_to(sink)
    assert sink.got == ["a", ("end", None)]


async def test_without_its_sink_a_queue_keeps_again() -> None:
    """A sink that is taken away hears of no more items, nor of the end."""
    queue, sink = FrameQueue[str](2), Noting()
    queue.hand_to(sink)
    queue.hand_to(None)
    queue.put("a")
    assert await queue.get() == "a"
    queue.close()
    assert not sink.got
