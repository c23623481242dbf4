"""`python -m benchmarks ray`: what a fleet loses in an actor of Ray Data."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import asyncblend as ab
from asyncblend.testing import fake_blender

from .measuring import Effort, Timed, Way, in_turn
from .report import Metric, Report
from .streams import PATIENT, sync, written

__all__ = ["measure"]

_METHOD = (
    "Four fake Blenders, each of which waits for 20 ms and has an image of 640x480 then: what is lost, is lost to waiting or "
    "to Ray. *asyncblend.ray*: one actor of Ray Data has all Blenders, and begins a batch before the last one ends. *one "
    "batch after another*: a callable class that begins a batch when it has returned the last one. *one fleet (limit)*: "
    "the Blenders without Ray and without batches. Ray's clock starts when four batches have come."
)
_VALUES = {"image": ("uint8", (480, 640, 3))}
_INSTANCES = 4
_SLOW = 0.02  # seconds for a sample
_WARM = 4  # batches
_LENGTH = 20_000
_QUIET = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}


def measure(how: Effort) -> Report:
    """Images/s of an actor of Ray Data, beside the same fleet without Ray.

    With batches of 32 and of 8.
    """
    metrics = [Metric("images/s", lambda timed: timed.rate, 1)]
    report = Report("ray", "Ray Data", _METHOD, metrics, "asyncblend.ray", own=["one batch after another"], columns=2)
    for size in [8] if how.quick else [32, 8]:
        case = f"batches of {size}"
        how.say(case)
        with _ways(size) as ways:
            report.add(case, in_turn(ways, how))
    return report


@contextlib.contextmanager
def _ways(size: int) -> Iterator[Mapping[str, Way]]:
    import ray.data  # needs Ray, as this command alone does

    import asyncblend.ray

    def overlapping() -> ray.data.Dataset:
        return asyncblend.ray.dataset(
            config, length=_LENGTH, batch_size=size, actors=1, instances_per_actor=_INSTANCES, num_cpus=1
        )

    def apart() -> ray.data.Dataset:
        return ray.data.range(_LENGTH, override_num_blocks=_LENGTH // size).map_batches(
            _Apart,
            fn_constructor_args=(config,),
            batch_size=size,
            compute=ray.data.ActorPoolStrategy(size=1),
            runtime_env={"env_vars": {"RAY_kill_child_processes_on_worker_exit": "0"}},  # else folders stay
        )

    with tempfile.TemporaryDirectory(prefix="bench") as folder, mock.patch.dict(os.environ, _QUIET):
        script = written(Path(folder), "none.py", "")
        fake = fake_blender(Path(folder, "fake"), values=_VALUES, slow=_SLOW)
        config = ab.StreamConfig(script=script, blender=fake, instances=_INSTANCES, timeouts=PATIENT)
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
        try:
            with sync(script=script, blender=fake, instances=_INSTANCES) as fleet:
                yield {
                    "asyncblend.ray": _way(overlapping),
                    "one batch after another": _way(apart),
                    "one fleet (limit)": fleet,
                }
        finally:
            ray.shutdown()


class _Apart:
    """What is written first: no batch begins before the last one is returned."""

    def __init__(self, config: ab.StreamConfig) -> None:
        self._stream = ab.BlenderStream(config).sync()
        self._stream.start()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import numpy as np

        frames = list(self._stream.frames(batch["id"]))
        return {name: np.stack([frame[name] for frame in frames]) for name in frames[0]}


def _way(rows: Callable[[], Any]) -> Way:
    def way(seconds: float) -> Timed:
        blocks = iter(rows().iter_batches(batch_size=None, batch_format="pyarrow"))
        for _ in range(_WARM):
            next(blocks)
        count, began = 0, time.perf_counter()
        while True:
            count += next(blocks).num_rows
            if (passed := time.perf_counter() - began) >= seconds:
                return Timed(count, passed)

    return way
