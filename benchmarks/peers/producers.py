"""Processes that run one of these modules, and end with the process that started them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["end_with_parent", "producers", "task"]

_ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def producers(module: str, count: int, **about: Any) -> Iterator[None]:
    """Run `count` processes of `python -m module`. Each of them gets `about` from `task`."""
    command = [sys.executable, "-m", module, json.dumps(about)]
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            process = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=_ROOT)
            stack.enter_context(process)
            stack.callback(process.kill)
        yield


def task() -> dict[str, Any]:
    """Return what this producer is to do. From now on it ends when its parent does."""
    end_with_parent()
    about: dict[str, Any] = json.loads(sys.argv[1])
    return about


def end_with_parent() -> None:
    """End this process when its standard input ends, from now on."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os._exit(0)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
