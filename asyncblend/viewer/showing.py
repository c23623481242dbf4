"""Showing: takes moments from a source to the screen until one of them ends, and keeps rerun's program beside it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import webbrowser
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..aio import apart, finish
from ..errors import AsyncblendError
from ..ports import PAGE
from ..tap.moment import Moment
from .activity import Activity
from .program import Program, native, page
from .screen import Screen, ScreenLost

_CLOSING = 2.0  # seconds in which a viewer that takes nothing any more turns out to have ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Where it is shown."""

    file: Path | None = None
    """The .rrd file to write."""
    web: bool = False
    """Whether rerun's web page is served. Without it and without a file, rerun's window opens."""
    port: int = PAGE
    """Of the web page."""
    browser: bool = False
    """Whether the page is opened in this machine's browser."""


async def show(
    moments: Callable[[threading.Event], Generator[Moment, None, None]],
    where: Where,
    say: Callable[[str], None],
    *,
    live: bool,
) -> Activity:
    """Draw the moments of a source to its end; with a viewer, until that is closed.

    On every path the source is closed, the file is whole, and nothing is left running.

    Args:
        moments: Begins the source, given an event at which it is to end.
        say: Called with what there is to tell the user.
        live: As `Screen` takes it.

    Returns:
        How many frames were shown and how many were not.

    Raises:
        ConfigError: There is no display, or a port is taken, or the file cannot be written.
        AsyncblendError: What the source raises; or the viewer, or the file, does not take any more.
    """
    stop = threading.Event()
    activity: list[Activity] = []

    def draw(url: str | None) -> None:
        screen = Screen(url=url, file=where.file, live=live)
        activity.append(screen.activity)
        with screen, contextlib.closing(moments(stop)) as source:
            for moment in source:
                screen.show(moment)

    async with contextlib.AsyncExitStack() as stack:
        program: Program | None = None
        if where.web:
            program = await stack.enter_async_context(page(where.port))
            say(f"The view is at {program.address}")
            if where.browser:
                webbrowser.open(program.address)
        elif where.file is None:
            program = await stack.enter_async_context(native())
        drawing = apart(lambda: draw(None if program is None else program.url))
        try:
            await _until_closed(drawing, program, say)
        finally:
            stop.set()
            await finish(_ended(drawing))
    return activity[0] if activity else Activity()


async def _until_closed(drawing: asyncio.Future[None], program: Program | None, say: Callable[[str], None]) -> None:
    """Wait until all is drawn, and the program has been closed if there is one."""
    if program is None:
        try:
            await asyncio.shield(drawing)
        except ScreenLost as lost:
            raise AsyncblendError(f"the file takes no more: {lost}") from None
        return
    closed = asyncio.ensure_future(program.closed())  # awaited below on each path
    try:
        both: list[asyncio.Future[Any]] = [drawing, closed]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not closed.done():
            try:
                drawing.result()
                say("All is shown. Close the viewer, or press Ctrl-C, to end.")
                await asyncio.shield(closed)
            except ScreenLost as lost:
                await asyncio.wait([closed], timeout=_CLOSING)
                if not closed.done():
                    raise AsyncblendError(f"rerun's viewer takes no more: {lost}") from None
        closed.result()
    finally:
        closed.cancel()


async def _ended(drawing: asyncio.Future[None]) -> None:
    """Wait until a source that was told to stop has, whatever it raises: that was told already, or is of the stop."""
    await asyncio.wait([drawing])
    with contextlib.suppress(Exception):
        drawing.result()
