"""The arrays of a scenario, which are the same for every way that carries them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["Arrays", "Spec", "frame_bytes", "made_ahead", "prepared", "script", "stamp"]

Spec = Mapping[str, tuple[str, Sequence[int]]]
"""Dtype and shape of each array, by its name."""

_SYSTEM = 16 << 20  # bytes that the operating system may buffer for a tcp connection

Arrays = dict[str, npt.NDArray[np.generic]]


def prepared(spec: Spec) -> Arrays:
    """Return arrays full of random numbers, because pages that were never written cost nothing."""
    rng = np.random.default_rng(0)
    return {name: (255 * rng.random(tuple(shape), np.float32)).astype(dtype) for name, (dtype, shape) in spec.items()}


def stamp(arrays: Arrays, index: int) -> Arrays:
    """Change one number of each array, so that it is another frame."""
    for array in arrays.values():
        array[(0,) * array.ndim] = index & 127
    return arrays


def frame_bytes(spec: Spec) -> int:
    """Return the size of one frame in bytes."""
    return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for dtype, shape in spec.values())


def made_ahead(spec: Spec, in_flight: int) -> int:
    """Return how many frames may lie ready when a way has its turn again. The system buffers more than `in_flight`."""
    return 2 * in_flight + _SYSTEM // frame_bytes(spec)


def script(spec: Spec) -> str:
    """Return a scene script that makes the same arrays in a fake Blender."""
    plain = {name: (dtype, tuple(shape)) for name, (dtype, shape) in spec.items()}
    return f"""\
import numpy as np

from asyncblend import blender as bl

rng = np.random.default_rng(0)
arrays = {{
    name: (255 * rng.random(shape, np.float32)).astype(dtype) for name, (dtype, shape) in {plain!r}.items()
}}


def sample(task):
    for array in arrays.values():
        array[(0,) * array.ndim] = task.index & 127
    return arrays


bl.serve(sample)
"""
