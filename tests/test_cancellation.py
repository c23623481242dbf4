"""Cancelled while it is being cancelled: what a second Ctrl-C does to a program."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

import asyncblend as ab
from asyncblend.aio import loop_factory
from asyncblend.testing import fake_blender

Write = Callable[..., Path]
LIMIT = 40  # seconds


async def cancelled_twice(config: ab.StreamConfig, turns_before: int | None, turns_between: int) -> None:
    """Cancel a loop over a stream, then every task there is, as `asyncio.run` does when it is left for good.

    Args:
        turns_before: of the event loop, before the first cancellation. None: the stream serves.
        turns_between: of the event loop, between the two.
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
def test_cancelled_twice_it_ends_and_nothing_is_left(
    between: int, before: int | None, loop: str, write_script: Write, tmp_path: Path
) -> None:
    """Wherever its cleanup is. The no_leaks fixture looks for processes and folders."""
    config = ab.StreamConfig(
        script=write_script("def sample(task): return {}"),
        blender=fake_blender(tmp_path / "fake"),
        instances=2,
    )
    factory = loop_factory() if loop == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner, contextlib.suppress(asyncio.CancelledError):
        runner.run(cancelled_twice(config, before, between))
