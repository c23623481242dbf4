"""serve: hands the user's `sample` function to the host, or, without one, shows what it makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...errors import ConfigError
from .task import Task, encode_sample, make_task

__all__ = ["Sample", "attach", "serve"]

Sample = Callable[[Task], Mapping[str, Any]]

_run: Callable[[Sample], None] | None = None
"""The worker's loop. Set before the script runs, when a host started this Blender."""


def attach(run: Callable[[Sample], None]) -> None:
    """Let `serve` hand the sample function to `run`, which returns when the host asks to stop."""
    global _run
    _run = run


def serve(sample: Sample) -> None:
    """Make samples with `sample(task) -> dict` for as long as the host wants them. The last line of a script.

    Started by a host it does not return: it ends the process (SystemExit, so `finally` blocks run).
    Without a host, for instance in Blender's text editor, it makes sample 0 with seed 0, prints the names, dtypes
    and shapes of what it returned, saves the image beside the script, and returns.

    Raises:
        ConfigError: `sample` cannot be called.
    """
    if not callable(sample):
        raise ConfigError(f"serve needs a function sample(task) -> dict; got {sample!r}")
    if _run is None:
        _show(sample)
        return
    _run(sample)
    raise SystemExit(0)


def _show(sample: Sample) -> None:
    from .preview import preview

    values = sample(make_task(index=0, seed=0, instance=0, params={}))
    encode_sample(values)  # what could not travel to a host is an error here too
    preview(dict(values), getattr(sample, "__globals__", {}).get("__file__"))
