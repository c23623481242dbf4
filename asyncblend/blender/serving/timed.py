"""timed: calls the user's code, and tells how long that took and how much of it was `bl.render`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from ...wire.protocol import Spent
from ..capture.spent import total

T = TypeVar("T")


def timed(call: Callable[[Callable[[], T]], T], function: Callable[[], T]) -> tuple[T, Spent]:
    """Return what the user's code returns, and what it took. Raises what it raises.

    Args:
        call: Calls the user's code, as `Worker._call` does, which also raises what Blender's handlers have raised.
        function: The user's code.
    """
    render, capture = total()
    began = time.perf_counter()
    made = call(function)
    took = time.perf_counter() - began
    now_render, now_capture = total()
    return made, Spent(took, now_render - render, now_capture - capture)
