"""What the tests of faults share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

import asyncblend as ab

Write = Callable[..., Path]

LIMIT = 60.0  # seconds; the bound of failure of every wait here
FAST = ab.RestartPolicy(backoff=0.01)
PATIENT = ab.RestartPolicy(backoff=0.01, max_backoff=0.05, max_restarts=10_000, max_sample_deaths=10_000)
MIB = 1 << 20
PLAIN = "def sample(task): return {'noise': task.rng.random(3)}"

# The worker that serves this script, to do to its socket what a network or a bug might do.
WORKER = """
import os, pathlib, signal, subprocess, sys, threading
from asyncblend.blender.serving import serve
worker = serve._run.__self__
"""


async def until(condition: Callable[[], Any]) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(LIMIT):
        while not condition():
            await asyncio.sleep(0.005)


async def throughout(seconds: float, condition: Callable[[], Any]) -> None:
    """Check that the condition holds all the time: for what must not happen."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert condition()
        await asyncio.sleep(0.01)


def check_noise(frames: Iterable[ab.Frame], indices: Iterable[int], seed: int = 0) -> None:
    """Check that each index is there once, with its own content."""
    frames = list(frames)
    assert sorted(frame.index for frame in frames) == sorted(indices)
    for frame in frames:
        expected = np.random.default_rng([seed, frame.index]).random(3)
        np.testing.assert_array_equal(frame["noise"], expected)
