"""Tiles: each label of a sample as a picture of its own.

Depths have one scale for all samples of a sheet, so that a colour is a depth. Each flow has a scale of its own, because
one fast object would leave all others white.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from . import colours
from .colours import Array, Scale, depth_scale, flow_longest
from .shown import Shown

_NO_MOTION = 0.01  # pixels
_LEAST_FLOW = 1.0  # pixels; on a smaller scale rounding errors would be as colourful as motion


def scales_of(samples: Sequence[Shown]) -> dict[str, Scale]:
    """Return scales for "depth" and "distance" on which all samples fit. A label without finite values has none."""
    scales = {}
    for name in ("depth", "distance"):
        own = [depth_scale(sample.labels[name]) for sample in samples if name in sample.labels]
        ends = np.array([(scale.near, scale.far) for scale in own if scale is not None])
        if (scale := depth_scale(ends)) is not None:
            scales[name] = scale
    return scales


def tile(sample: Shown, name: str, scales: Mapping[str, Scale]) -> tuple[Array, str]:
    """Return the picture of a label, H x W x 3 uint8, and what to say about it."""
    label = sample.labels[name]
    if name in ("depth", "distance"):
        own = depth_scale(label)
        return colours.depth_picture(label, scales.get(name)), "nothing there" if own is None else _range(own)
    if name in ("flow_forward", "flow_backward"):
        longest = flow_longest(label)
        note = f"up to {longest:.3g} px" if longest >= _NO_MOTION else "no motion"
        return colours.flow_picture(label, max(longest, _LEAST_FLOW)), note
    if name == "instance":
        return colours.id_picture(label), _count(label, "id", "ids")
    if name == "semantic":
        return colours.id_picture(label, colours.class_colour_of), _count(label, "class", "classes")
    return (colours.srgb if name == "albedo" else colours.normal_picture)(label), ""


def _range(scale: Scale) -> str:
    near, far = f"{scale.near:.3g}", f"{scale.far:.3g} m"
    return far if far == f"{near} m" else f"{near} to {far}"


def _count(ids: Array, one: str, many: str) -> str:
    count = int((np.unique(ids) > 0).sum())
    return f"{count} {one if count == 1 else many}"
