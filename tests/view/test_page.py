"""The server of rerun's page, without rerun."""

from __future__ import annotations

import subprocess
import sys

IDLE = """
import asyncio, socket
from asyncblend.viewer.page import served_page

async def main():
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port = trial.getsockname()[1]
    async with served_page(port, 1, 1):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET")
        await asyncio.sleep(0.1)

asyncio.run(main())
"""


def test_an_idle_browser_ends_without_a_word() -> None:
    """A connection on which nothing was asked yet is cancelled at the end, of which nobody needs to know."""
    done = subprocess.run([sys.executable, "-c", IDLE], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
