"""Log: output of any kind and amount, in a file that stays small."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from asyncblend.fleet.log import Log
from asyncblend.fleet.process import ChildProcess


def test_a_large_log_is_cut_to_its_end(tmp_path: Path) -> None:
    """The newest lines stay complete, and a line says that earlier ones were dropped."""
    log = Log(tmp_path / "log.txt")
    with log.open() as file:
        for number in range(200_000):
            file.write(b"line %d\n" % number)
    log.trim()
    lines = log.path.read_text().splitlines()
    assert log.path.stat().st_size < 100_000
    assert lines[0] == "[earlier output was dropped]"
    assert lines[1].startswith("line 19")
    assert lines[-1] == "line 199999"
    assert log.tail().splitlines()[-1] == "line 199999"


def test_a_small_log_is_left_alone(tmp_path: Path) -> None:
    """A file that is small enough stays as it is."""
    log = Log(tmp_path / "log.txt")
    log.path.write_text("a\nb\n")
    log.trim()
    assert log.path.read_text() == "a\nb\n"


def test_a_log_that_is_gone(tmp_path: Path) -> None:
    """When somebody has removed the temporary folder, the tail is empty and nothing raises."""
    log = Log(tmp_path / "none" / "log.txt")
    log.trim()
    assert log.tail() == ""


async def test_what_is_written_after_trimming_goes_to_the_new_end(tmp_path: Path) -> None:
    """It is trimmed while a process writes 50 MB, a line of 1 MB and bytes that are no text."""
    code = """
import sys
out = sys.stdout.buffer
for _ in range(50): out.write(b"x" * 999_999 + b"\\n")
out.write(b"y" * 1_000_000)
out.write(b"\\xff\\xfe no text\\n"); out.flush()
print("ready", flush=True)
import os, time
while not os.path.exists(sys.argv[1]): time.sleep(0.005)  # until the test says so
print("after", flush=True)
"""
    folder = tmp_path / "life"
    folder.mkdir()
    process = await ChildProcess.start([sys.executable, "-c", code, str(tmp_path / "go")], os.environ, folder)
    try:
        async with asyncio.timeout(60):
            while not process.log.tail().endswith("ready"):
                await asyncio.sleep(0.01)
            process.log.trim()
            assert process.log.path.stat().st_size < 100_000
            (tmp_path / "go").touch()
            assert await process.wait() == 0
        assert process.log.tail().endswith("dropped]\nready\nafter")
        assert process.log.path.stat().st_size < 100_000
    finally:
        await process.stop(lambda: None, 0)
