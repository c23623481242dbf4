"""What a plainly launched Blender is told by the process that launched it, over its standard input and a pipe."""

import json
import os
import select
import sys
import sysconfig
import time
from collections.abc import Callable
from typing import Any

about = json.loads(sys.argv[-1])

_left = b""


def packages() -> None:
    """Make importable what Blender's Python lacks, where asyncblend has installed it."""
    sys.path.append(os.path.join(about["packages"], f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"))


def say(**words: Any) -> None:
    """To the launcher, as a line."""
    os.write(about["pipe"], json.dumps(words).encode() + b"\n")


def loop(one: Callable[[Any], None]) -> None:
    """Call `one(scene)` again and again from a line "go" to the next line; then say how often, and how long it took.

    The first call after "go" is not counted. Does not return: the process ends with its launcher.
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
        while not _told():
            one(command["scene"])
            frames += 1
        say(frames=frames, seconds=time.perf_counter() - began)
        _line()


def _told() -> bool:
    return bool(_left) or bool(select.select([0], [], [], 0)[0])


def _line() -> dict[str, Any]:
    global _left
    while b"\n" not in _left:
        more = os.read(0, 4096)
        if not more:
            os._exit(0)
        _left += more
    line, _, _left = _left.partition(b"\n")
    words: dict[str, Any] = json.loads(line)
    return words
