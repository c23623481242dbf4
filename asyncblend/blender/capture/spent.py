"""How long `bl.render` has taken in this process. Its worker tells the host, sample by sample."""

from __future__ import annotations

_total = (0.0, 0.0)


def total() -> tuple[float, float]:
    """Return the seconds of all calls of `bl.render` so far: of Blender's rendering, and of all the rest."""
    return _total


def add(seconds_render: float, seconds_capture: float) -> None:
    """Note one more call."""
    global _total
    _total = _total[0] + seconds_render, _total[1] + seconds_capture
