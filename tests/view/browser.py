"""Chromium without a screen, told by its DevTools protocol what to show."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import re
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from PIL import Image

_LIMIT = 200.0  # seconds; shaders are compiled in software
_OPTIONS = (
    *("--headless=new", "--no-sandbox", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-quic", "--remote-debugging-port=0", "about:blank"),
)


def looked_at(
    chromium: str, address: str, profile: Path, *, colour: tuple[int, int, int]
) -> tuple[Image.Image, list[str]]:
    """Open a page, wait until it shows many pixels of a colour, and return its picture and all that it asked for.

    Args:
        profile: A folder for Chromium's own files.
    """
    return asyncio.run(_looked_at(chromium, address, profile, np.array(colour)))


async def _looked_at(chromium: str, address: str, profile: Path, colour: Any) -> tuple[Image.Image, list[str]]:
    process = await asyncio.create_subprocess_exec(
        chromium, f"--user-data-dir={profile}", *_OPTIONS, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(_LIMIT):
            assert process.stderr is not None
            async for line in process.stderr:
                if found := re.search(rb"ws://([^/]+)/", line):
                    break
            async with aiohttp.ClientSession() as session:
                tabs = await (await session.get(f"http://{found[1].decode()}/json")).json()  # type: ignore[index]
                (tab,) = [tab for tab in tabs if tab["type"] == "page"]
                return await _pictured(session, tab["webSocketDebuggerUrl"], address, colour)
    finally:
        process.kill()
        await process.communicate()


async def _pictured(session: Any, tab: str, address: str, colour: Any) -> tuple[Image.Image, list[str]]:
    asked: dict[str, str] = {}
    numbers = itertools.count(1)
    async with session.ws_connect(tab, max_msg_size=0) as devtools:

        async def call(method: str, **params: Any) -> Any:
            number = next(numbers)
            await devtools.send_json({"id": number, "method": method, "params": params})
            while (said := await devtools.receive_json()).get("id") != number:
                about = said.get("params", {})
                if said.get("method") == "Network.requestWillBeSent":
                    asked[about["requestId"]] = about["request"]["url"]
                elif about.get("blockedReason") == "csp":
                    asked.pop(about["requestId"], None)  # the page's policy forbids it, so nothing was sent
            return said.get("result", {})

        await call("Network.enable")
        size = {"width": 1280, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        await call("Emulation.setDeviceMetricsOverride", **size)
        await call("Page.navigate", url=address)
        while True:
            shot = await call("Page.captureScreenshot", format="png")  # none while the page is being opened
            if "data" in shot:
                picture = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
                near = np.abs(np.asarray(picture).astype(int) - colour).max(axis=-1) <= 4
                if near.sum() > 10_000:
                    return picture, [*asked.values()]
            await asyncio.sleep(0.5)
