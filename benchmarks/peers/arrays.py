"""The arrays of a scenario: alike for every way that carries them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["Arrays", "Spec", "frame_bytes", "made_ahead", "prepared", "script", "stamp"]

Spec = Mapping[str, tuple[str, Sequence[int]]]
"""By name: dtype and shape."""

_SYSTEM = 16 << 20  # bytes in the buffers of a tcp connection

Arrays = dict[str, npt.NDArray[np.generic]]


def prepared(spec: Spec) -> Arrays:
    """Filled with something: pages that were never written cost nothing."""
    rng = np.random.default_rng(0)
    return {name: (255 * rng.random(tuple(shape), np.float32)).astype(dtype) for name, (dtype, shape) in spec.items()}


def stamp(arrays: Arrays, index: int) -> Arrays:
    """Change one number of each array, as if it were another frame."""
    for array in arrays.values():
        array[(0,) * array.ndim] = index & 127
    return arrays


def frame_bytes(spec: Spec) -> int:
    """Of one frame."""
    return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for dtype, shape in spec.values())


def made_ahead(spec: Spec, in_flight: int) -> int:
    """Frames that may lie ready when a way has its turn again: more than `in_flight`, as the system has buffers too."""
    return 2 * in_flight + _SYSTEM // frame_bytes(spec)


def script(spec: Spec) -> str:
    """The same for asyncblend, for a fake Blender to run."""
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
