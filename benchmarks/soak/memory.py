"""Samples the memory of the host and of the Blenders over time."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import psutil

__all__ = ["Memory", "Sample", "Trend"]

_MIB = 1 << 20


class Sample(NamedTuple):
    """Resident memory at one moment, in MiB."""

    at: float
    """Seconds since the start."""
    host: float
    fleet: float
    largest: float
    """The largest Blender: unlike the fleet's sum, it does not jump when a Blender dies."""


class Trend(NamedTuple):
    """Medians of the second and of the last quarter of a run, in MiB. In the first quarter the run warms up."""

    early: float
    late: float

    @property
    def flat(self) -> bool:
        """Whether the memory did not grow."""
        return self.late <= 1.1 * self.early + 10

    @classmethod
    def of(cls, values: Sequence[float]) -> Trend:
        """Return the trend of equally spaced samples. It is flat if there are too few of them."""
        quarter = len(values) // 4
        if quarter == 0:
            return cls(0.0, 0.0)
        return cls(statistics.median(values[quarter : 2 * quarter]), statistics.median(values[-quarter:]))


class Memory:
    """The samples of one run."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []

    def take(self, at: float, fleet: Iterable[psutil.Process]) -> None:
        """Add a sample of this process and of the fleet's, `at` seconds after the start."""
        sizes = []
        for process in fleet:
            with contextlib.suppress(psutil.Error):
                sizes.append(_resident(process))
        self.samples.append(Sample(at, _resident(psutil.Process()), sum(sizes), max(sizes, default=0.0)))

    def trends(self) -> dict[str, Trend]:
        """Return the trends that must be flat, by whose memory it is."""
        return {
            "the host": Trend.of([sample.host for sample in self.samples]),
            "one Blender": Trend.of([sample.largest for sample in self.samples]),
        }


def _resident(process: psutil.Process) -> float:
    return float(process.memory_info().rss / _MIB)
