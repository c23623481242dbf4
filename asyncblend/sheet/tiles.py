"""Tiles: each label of a sample as a picture of its own, on scales that all samples of a sheet share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

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
)
from .shown import Shown

__all__ = ["Scales", "metres", "tile"]

Array = np.ndarray[Any, Any]


class Scales(NamedTuple):
    """What the colours of a sheet mean."""

    lengths: dict[str, Scale]
    """Of "depth" and "distance", where a sample has a finite one."""
    flow: float
    """Length in pixels of what has full colour: the longest motion, but at least a pixel."""

    @classmethod
    def of(cls, samples: Sequence[Shown]) -> Scales:
        """Scales on which all samples fit."""
        lengths = {}
        for name in ("depth", "distance"):
            ends = [
                (scale.near, scale.far)
                for sample in samples
                if name in sample.labels and (scale := depth_scale(sample.labels[name])) is not None
            ]
            if ends and (scale := depth_scale(np.array(ends))) is not None:
                lengths[name] = scale
        flows = [flow_longest(sample.labels[n]) for sample in samples for n in _FLOWS if n in sample.labels]
        return cls(lengths, max([_LEAST_FLOW, *flows]))


_FLOWS = ("flow_forward", "flow_backward")
_LEAST_FLOW = 1.0  # else what is only rounding would be as colourful as motion


def tile(sample: Shown, name: str, scales: Scales) -> tuple[Array, str]:
    """The picture of a label, H x W x 3 uint8, and what to say about it."""
    label = sample.labels[name]
    if name in ("depth", "distance"):
        own = depth_scale(label)
        picture = depth_picture(label, scales.lengths.get(name))
        return picture, "nothing there" if own is None else _range(own)
    if name in _FLOWS:
        return flow_picture(label, scales.flow), f"up to {flow_longest(label):.3g} px"
    if name == "instance":
        return id_picture(label), _count(label, "id")
    if name == "semantic":
        return id_picture(label, class_colour_of), _count(label, "class", "classes")
    if name == "albedo":
        # Linear light; shown as Blender shows a base colour.
        light = np.clip(np.nan_to_num(label.astype(np.float32)), 0, 1)
        return np.rint(light ** (1 / 2.2) * 255).astype(np.uint8), ""
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
