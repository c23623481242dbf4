"""Programs that are cancelled, at every moment of a stream's life, once or twice."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import asyncblend as ab
from asyncblend.aio import loop_factory
from asyncblend.testing import fake_blender

Write = Callable[..., Path]
Scenario = Callable[[], Awaitable[None]]
LIMIT = 40  # seconds; the bound of failure of every wait


class Steps(selectors.DefaultSelector):
    """A selector that calls functions at given steps of the event loop, counted from `start`."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = 0
        self._at: dict[int, Callable[[], Any]] = {}

    def start(self, at: dict[int, Callable[[], Any]]) -> None:
        self.taken, self._at = 0, at

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if (then := self._at.pop(self.taken, None)) is not None:
            then()
            timeout = 0
        self.taken += 1
        return super().select(timeout)


def cancelled_at(step: int, scenario: Scenario, all_after: int | None = None) -> tuple[bool, list[Any]]:
    """Run a scenario, and cancel it at a step of the event loop.

    Args:
        step: When to cancel it.
        scenario: What to run.
        all_after: So many steps later cancel every task, as a second Ctrl-C does. None: never.

    Returns:
        Whether the scenario ended before it was cancelled, and what the event loop complained of.
    """
    selector = Steps()
    complaints: list[Any] = []

    async def main() -> bool:
        loop, me = asyncio.get_running_loop(), asyncio.current_task()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        task = asyncio.ensure_future(scenario())

        def cancel_all() -> None:
            for other in asyncio.all_tasks(loop) - {me}:
                other.cancel()

        selector.start({step: task.cancel} if all_after is None else {step: task.cancel, step + all_after: cancel_all})
        async with asyncio.timeout(LIMIT):
            await asyncio.wait([task])
            if all_after is not None and (others := asyncio.all_tasks() - {me}):
                await asyncio.wait(others)  # asyncio.run waits for the tasks that it cancelled, too
        selector.start({})
        assert asyncio.all_tasks() == {me}
        assert task.cancelled() or task.exception() is None
        return not task.cancelled()

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        return runner.run(main()), complaints


class Before:
    """The child processes that there were before a scenario: those of multiprocessing."""

    def __init__(self) -> None:
        self._children = set(psutil.Process().children())

    def check(self, complaints: list[Any], step: int, *, wait: bool = False) -> None:
        """Check that the scenario left no process, no zombie and no folder. `wait`: they may take a moment to end."""
        end = time.monotonic() + (LIMIT if wait else 0)
        while not set(psutil.Process().children()) <= self._children and time.monotonic() < end:
            threading.Event().wait(0.01)
        assert not complaints, step
        assert set(psutil.Process().children()) <= self._children, step
        assert not list(Path(tempfile.gettempdir()).glob("asyncblend*")), step


def every_step(scenario: Scenario, *, stride: int = 1, all_after: int | None = None) -> int:
    """Cancel a scenario at each n-th step until it ends by itself. Return the last step."""
    before, step, ended = Before(), 0, False
    while not ended:
        ended, complaints = cancelled_at(step, scenario, all_after)
        before.check(complaints, step, wait=all_after is not None)
        step += 1 if step < 10 else stride  # the launch is in the first ones
    return step


def three_frames(script: Path, blender: str | Path, **options: Any) -> Scenario:
    """Return the scenario that enters a stream, takes three frames and leaves."""
    config = ab.StreamConfig(script=script, blender=blender, instances=1, queue_size=4, **options)

    async def scenario() -> None:
        async with ab.BlenderStream(config) as stream:
            for _ in range(3):
                await anext(stream)

    return scenario


@pytest.fixture
def empty(write_script: Write) -> Path:
    return write_script("def sample(task): return {}")


@pytest.mark.timeout(900)
def test_cancelled_at_each_step(empty: Path, tmp_path: Path) -> None:
    """A program that is cancelled at any step, from before the start until after the end, leaves nothing."""
    assert every_step(three_frames(empty, fake_blender(tmp_path / "fake"))) > 10


@pytest.mark.exhaustive
@pytest.mark.slow
def test_cancelled_while_a_blender_is_restarted(empty: Path, tmp_path: Path) -> None:
    """A program that is cancelled while an instance crashes and starts again leaves nothing."""
    fake = fake_blender(tmp_path / "fake", crash_after=1, lives=1)
    scenario = three_frames(empty, fake, restart=ab.RestartPolicy(backoff=0.001))
    assert every_step(scenario, stride=5) > 15


@pytest.mark.exhaustive
@pytest.mark.slow
def test_cancelled_with_several_passes(empty: Path, tmp_path: Path) -> None:
    """A program that is cancelled while several tasks consume passes, render, flush and close leaves nothing."""
    config = ab.StreamConfig(script=empty, blender=fake_blender(tmp_path / "fake"), instances=2, queue_size=3)

    async def scenario() -> None:
        async with ab.BlenderStream(config) as stream, asyncio.TaskGroup() as group:

            async def all_of(indices: range) -> None:
                assert sorted([frame.index async for frame in stream.frames(indices)]) == list(indices)

            async def broken_off() -> None:
                async with stream.frames(range(500)) as frames:
                    await anext(frames)
                    frames.flush()

            for begin in (100, 200):
                group.create_task(all_of(range(begin, begin + 5)))
            group.create_task(broken_off())
            group.create_task(stream.render(17))
            await anext(stream)
            stream.flush()
            await anext(stream)

    assert every_step(scenario, stride=4) > 15


@pytest.mark.exhaustive
@pytest.mark.slow
def test_cancelled_while_it_records(empty: Path, tmp_path: Path) -> None:
    """A program that is cancelled while it records leaves nothing but whole samples, which the next run completes."""
    config = ab.StreamConfig(script=empty, blender=fake_blender(tmp_path / "fake"), instances=1, length=8)
    before, step, ended = Before(), 0, False
    while not ended:
        folder = tmp_path / str(step)

        async def scenario(folder: Path = folder) -> None:
            await ab.BlenderStream(config).record(folder, shard_size=3)

        ended, complaints = cancelled_at(step, scenario)
        before.check(complaints, step)
        there = recorded_in(folder)
        assert len(there) == len(set(there)) == (8 if ended else len(there))
        if step % 12 == 0:
            asyncio.run(scenario())
            assert sorted(recorded_in(folder)) == list(range(8))
        step += 3
    assert step > 12


def recorded_in(folder: Path) -> list[int]:
    """Return the indices of the samples in a folder."""
    return [item["index"] for item in ab.RecordedDataset(folder)] if list(folder.glob("*.tar")) else []


# asyncio's own coroutines complain when they are collected after they were cancelled half-way.
@pytest.mark.exhaustive
def test_cancelled_and_then_all_tasks_at_once(empty: Path, tmp_path: Path) -> None:
    """A second Ctrl-C right after the first, which cancels also the tasks that clean up, leaves nothing."""
    assert every_step(three_frames(empty, fake_blender(tmp_path / "fake")), stride=5, all_after=1) > 10


@pytest.mark.parametrize("step", [5, 12, 20, 30])
def test_cancelled_with_a_real_blender(step: int, bpy_kind: Any, empty: Path) -> None:
    """A program with a real Blender leaves nothing when it is cancelled at a step of its start, frames or stop."""
    scenario = three_frames(empty, bpy_kind.blender)
    before = Before()
    _, complaints = cancelled_at(step, scenario)
    before.check(complaints, step)


async def cancel_twice(config: ab.StreamConfig, turns_before: int | None, turns_between: int) -> None:
    """Cancel a loop over a stream, then all tasks, as `asyncio.run` does after a second Ctrl-C.

    Args:
        config: Of the stream.
        turns_before: Turns of the event loop before the first cancellation. None: until the stream serves.
        turns_between: Turns of the event loop between the two.
    """
    serves = asyncio.Event()

    async def use() -> None:
        async with ab.BlenderStream(config) as stream:
            serves.set()
            async for _ in stream:
                pass

    using = asyncio.ensure_future(use())
    if turns_before is None:
        await serves.wait()
    for _ in range(turns_before or 0):
        await asyncio.sleep(0)
    using.cancel()
    for _ in range(turns_between):
        await asyncio.sleep(0)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    async with asyncio.timeout(LIMIT):
        await asyncio.wait([using])


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("before", [0, 5, 12, None])
@pytest.mark.parametrize("between", [0, 1, 3, 8, 20, 45])
@pytest.mark.exhaustive
def test_cancelled_twice(between: int, before: int | None, loop: str, empty: Path, tmp_path: Path) -> None:
    """A stream that is cancelled while it handles a cancellation leaves nothing, as the no_leaks fixture checks."""
    config = ab.StreamConfig(script=empty, blender=fake_blender(tmp_path / "fake"), instances=2)
    factory = loop_factory() if loop == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner, contextlib.suppress(asyncio.CancelledError):
        runner.run(cancel_twice(config, before, between))
