"""Lets a Blender that was launched without asyncblend talk with the process that launched it.

Commands come over the standard input, and answers go over a pipe.
"""

import json
import os
import select
import sys
import sysconfig
import time
from collections.abc import Callable
from typing import Any

about = json.loads(sys.argv[-1])

_unread = b""


def packages() -> None:
    """Make the packages importable that Blender's Python lacks and that asyncblend has installed."""
    sys.path.append(os.path.join(about["packages"], f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"))


def asyncblend_too() -> None:
    """Make asyncblend importable, for what it knows about GPUs."""
    sys.path.append(about["root"])


def say(**words: Any) -> None:
    """Send a line of JSON to the launcher."""
    os.write(about["pipe"], json.dumps(words).encode() + b"\n")


def loop(one: Callable[[Any], None]) -> None:
    """Call `one(scene)` repeatedly from a line with a scene until the next line; then send how often, and how long it took.

    The first call is not counted. This function does not return: the process ends with its launcher.
    """
    say(ready=True)
    while True:
        command = _line()
        if "scene" not in command:
            say(frames=0, seconds=0)
            continue
        one(command["scene"])
        say(first=True)
        began, frames = time.perf_counter(), 0
        while not _has_line():
            one(command["scene"])
            frames += 1
        say(frames=frames, seconds=time.perf_counter() - began)
        _line()


def _has_line() -> bool:
    return bool(_unread) or bool(select.select([0], [], [], 0)[0])


def _line() -> dict[str, Any]:
    global _unread
    while b"\n" not in _unread:
        more = os.read(0, 4096)
        if not more:
            os._exit(0)
        _unread += more
    line, _, _unread = _unread.partition(b"\n")
    words: dict[str, Any] = json.loads(line)
    return words
