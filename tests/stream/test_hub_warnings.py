"""What Blenders say of their scene when they are ready: the hub logs it, each text once."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import pytest

from asyncblend.wire import protocol
from asyncblend.wire.launch import Life

from .hub_stage import ME, serving


async def test_each_text_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """Another instance, and another life, has the same scene and says the same."""
    with tempfile.TemporaryDirectory(prefix="h") as folder:
        async with serving(Path(folder)) as stage:
            for life, warnings in ((ME, ["a", "100 % b"]), (Life(2, 0), ["a", "c"])):
                peer = stage.peer()
                await peer.join(life)
                await peer.say(protocol.READY, warnings=warnings)
                await stage.handled(peer)
            assert ("ready", ME) in stage.told.events
    assert [record.getMessage() for record in caplog.records] == ["a", "100 % b", "c"]
    assert {(record.name, record.levelno) for record in caplog.records} == {("asyncblend", logging.WARNING)}


async def test_it_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """A Blender that says ever new things does not fill the log."""
    with tempfile.TemporaryDirectory(prefix="h") as folder:
        async with serving(Path(folder)) as stage:
            peer = stage.peer()
            await peer.join()
            await peer.say(protocol.READY, warnings=[30_000 * "x"])
            for start in range(0, 1000, 100):
                await peer.say(protocol.READY, warnings=[str(i) for i in range(start, start + 100)])
            await stage.handled(peer)
            assert stage.hub.bad_messages == 0
    assert len(caplog.records) == 64
    assert max(len(record.getMessage()) for record in caplog.records) == 6000


@pytest.mark.parametrize("warnings", ["text", [1], None, {"a": "b"}])
async def test_anything_else_is_a_bad_message(warnings: Any) -> None:
    with tempfile.TemporaryDirectory(prefix="h") as folder:
        async with serving(Path(folder)) as stage:
            peer = stage.peer()
            await peer.join()
            await peer.say(protocol.READY, warnings=warnings)
            await stage.handled(peer)
            assert stage.hub.bad_messages == 1
            assert ("ready", ME) not in stage.told.events
