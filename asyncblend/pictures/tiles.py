"""Tiles: each label of a sample as a picture of its own.

Lengths have one scale for all samples of a sheet, so that a colour is a depth. Flows have each their own, as one fast
object would leave all others white.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .colours import (
    Scale,
    class_colour_of,
    depth_picture,
    depth_scale,
    flow_longest,
    flow_picture,
    id_picture,
    normal_picture,
    srgb,
)
from .shown import Shown

__all__ = ["metres", "scales_of", "tile"]

Array = np.ndarray[Any, Any]


_FLOWS = ("flow_forward", "flow_backward")
_STILL = 0.01  # pixels
_LEAST_FLOW = 1.0  # pixels; else what is only rounding would be as colourful as motion


def scales_of(samples: Sequence[Shown]) -> dict[str, Scale]:
    """Scales of "depth" and "distance" on which all samples fit, where a sample has a finite one."""
    scales = {}
    for name in ("depth", "distance"):
        ends = [
            (scale.near, scale.far)
            for sample in samples
            if name in sample.labels and (scale := depth_scale(sample.labels[name])) is not None
        ]
        if ends and (scale := depth_scale(np.array(ends))) is not None:
            scales[name] = scale
    return scales


def tile(sample: Shown, name: str, scales: Mapping[str, Scale]) -> tuple[Array, str]:
    """The picture of a label, H x W x 3 uint8, and what to say about it."""
    label = sample.labels[name]
    if name in ("depth", "distance"):
        own = depth_scale(label)
        picture = depth_picture(label, scales.get(name))
        return picture, "nothing there" if own is None else _range(own)
    if name in _FLOWS:
        longest = flow_longest(label)
        note = f"up to {longest:.3g} px" if longest >= _STILL else "no motion"
        return flow_picture(label, max(longest, _LEAST_FLOW)), note
    if name == "instance":
        return id_picture(label), _count(label, "id")
    if name == "semantic":
        return id_picture(label, class_colour_of), _count(label, "class", "classes")
    if name == "albedo":
        return srgb(label), ""
    return normal_picture(label), ""


def metres(length: float) -> str:
    """A length with its unit."""
    return f"{length:.3g} m"


def _range(scale: Scale) -> str:
    near, far = f"{scale.near:.3g}", metres(scale.far)
    return far if far == f"{near} m" else f"{near} to {far}"


def _count(ids: Array, one: str, many: str | None = None) -> str:
    count = int((np.unique(ids) > 0).sum())
    return f"{count} {one if count == 1 else many or one + 's'}"
