"""serve: gives the user's `sample` function to the host, or shows what it makes where there is none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

from ...errors import ConfigError
from .environment import Environment, episodes_of, is_environment
from .episode import first_frame
from .task import Task, encode_sample, make_task

Values = Mapping[str, Any]
Sample = Callable[[Task], Values | Iterator[Values]]
"""The iterators are generators. A generator function may be annotated with either."""

_run: Callable[[Sample], None] | None = None
"""The worker's loop. It is set before the script runs if a host started this Blender."""


def attach(run: Callable[[Sample], None]) -> None:
    """Let `serve` call `run` with the sample function. `run` returns when the host asks to stop."""
    global _run
    _run = run


def serve(sample: Sample | Environment | type[Environment]) -> None:
    """Make samples with `sample(task) -> dict` for as long as the host wants them. It is the last line of a script.

    A function that is a generator makes several frames of a sample; an environment, an object with `reset(task)` and
    `step(action)`, is played by `asyncblend.gym`.

    First it looks for what the open scene would render wrongly without a word: missing files, drivers that Blender did
    not execute, File Output nodes. The host's logger "asyncblend" warns of each once; without a host it is printed.

    In a Blender that a host started it does not return, but ends the process (by SystemExit, so `finally` blocks run).
    With a window (`StreamConfig.show`) it ends only the script, in the same way: its `finally` blocks run at once, and
    then Blender's main loop makes the samples.
    Without a host, for instance in Blender's text editor, it makes sample 0 with seed 0, prints the names, dtypes and
    shapes of what `sample` returned, saves the image beside the script, and returns.

    Raises:
        ConfigError: `sample` cannot be called, and is no environment.
    """
    environment = sample if is_environment(sample) else None
    function: Any = sample if environment is None else episodes_of(environment)
    if not callable(function):
        raise ConfigError(f"serve needs a function sample(task) -> dict; got {sample!r}")
    if _run is not None:
        _run(function)
        raise SystemExit(0)
    from .preview import preview

    if "bpy" in sys.modules:
        from .scene_check import scene_warnings

        for text in scene_warnings():
            print(f"asyncblend: warning: {text}", file=sys.stderr)
    made = function(make_task(index=0, seed=0, instance=0, params={"render": True} if environment else {}))
    values = first_frame(made) if isinstance(made, Generator) else made
    encode_sample(values)  # what cannot travel to a host is an error here too
    preview(dict(values), getattr(environment.reset if environment else sample, "__globals__", {}).get("__file__"))
