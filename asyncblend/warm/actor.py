"""WarmFleet: the actor of Ray that a warm fleet is, as programs see it.

Ray imports the class of an actor wherever that is looked up by its name. So this one imports nothing, while what it
runs, `ray.serving`, needs all of Ray Data and all that runs Blenders: that would take longer than the first frame may.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class WarmFleet:
    """Passes calls on.

    Args:
        serving: The class of what answers them.
        arguments: For it.
    """

    def __init__(self, serving: Callable[..., Any], *arguments: Any) -> None:
        self._serving = serving(*arguments)

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method, and return what it returns. Calls overlap."""
        return await getattr(self._serving, method)(*arguments)
