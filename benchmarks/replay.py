"""`python -m benchmarks replay`: how fast recorded samples come back, and what comparing their checksums costs."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from asyncblend.recording import Recording
from asyncblend.recording.codec import Images, encode
from asyncblend.recording.shards import Span, find_shard, read_sample, tar_of
from asyncblend.recording.writer import ShardSize, Writer

from .measuring import Effort, Way, in_turn, timed
from .report import Metric, Report

__all__ = ["measure"]

_SAMPLES = 32
_METHOD = (
    "Samples of 640x480 of one shard, which the system has in its cache, read one after another by one thread. *checked*: "
    "as `RecordedDataset` reads them. *not checked*: without comparing checksums, as recordings of format 2. *bytes alone "
    "(limit)*: the same stretches of the file, which are dropped."
)


def measure(how: Effort) -> Report:
    """Count recorded samples read per second, with and without their checksums.

    Images as PNG, arrays as npy.gz, and both together.
    """
    report = Report("replay", "Replay: samples from the disk", _METHOD, [Metric("samples/s", lambda timed: timed.rate)])
    report.ours, report.own = "checked", ["not checked"]
    rng = np.random.default_rng(0)
    # A smooth picture with noise of 4 in 255, as of few samples a pixel.
    smooth = np.hypot(*np.mgrid[-1:1:480j, -1:1:640j])[..., None] * [90, 120, 150]
    image = (smooth + rng.integers(0, 4, (480, 640, 3))).astype(np.uint8)
    depth = np.hypot(*np.mgrid[1:4:480j, -3:3:640j]).astype(np.float32)  # of a plain floor
    for case, values in {
        "image, as PNG": {"image": image},
        "depth in float32, as npy.gz": {"depth": depth},
        "both": {"image": image, "depth": depth},
    }.items():
        how.say(case)
        with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
            report.add(case, in_turn(_ways(Path(folder), values), how))
    return report


def _ways(folder: Path, values: dict[str, Any]) -> dict[str, Way]:
    writer = Writer(folder, {"seed": 0}, ShardSize(_SAMPLES))
    writer.open()
    for index in range(_SAMPLES):
        writer.add(index, encode(values, index=index, instance=0, params={}, images=Images()))
    writer.close()
    shard = find_shard(folder, 0)
    assert len(Recording(folder)) == _SAMPLES
    spans = itertools.cycle(shard.spans)

    def raw(span: Span) -> None:
        with tar_of(folder, 0).open("rb") as file:
            file.seek(span.start)
            file.read(span.end - span.start)

    def one(read: Callable[[Span], Any]) -> int:
        read(next(spans))
        return 1

    reads: dict[str, Callable[[Span], Any]] = {
        "checked": partial(read_sample, shard.path, checked=True),
        "not checked": partial(read_sample, shard.path, checked=False),
        "bytes alone (limit)": raw,
    }
    return {name: partial(timed, partial(one, read)) for name, read in reads.items()}
