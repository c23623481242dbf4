"""Skeletons: which keypoints of an object are joined, as a sample says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import ConfigError


def skeleton_of(item: Mapping[str, Any], class_name: str) -> list[list[int]]:
    """Return the pairs of keypoints, counted from 1, that a sample's "skeleton" joins in objects of a class.

    Raises ConfigError if it is neither such pairs, for all classes, nor a dict of them by class name.
    """
    value = item.get("skeleton")
    pairs = value.get(class_name) if isinstance(value, Mapping) else value
    if isinstance(pairs, np.ndarray):
        pairs = pairs.tolist()
    try:
        joined = [[int(a), int(b)] for a, b in pairs or ()]
    except (TypeError, ValueError, OverflowError):
        joined = [[0, 0]]
    if any(min(pair) < 1 for pair in joined):
        raise ConfigError(
            f"sample {item.get('index', '')}: 'skeleton' is pairs of keypoints, counted from 1, such as "
            f"[[1, 2], [2, 3]], for all classes or in a dict by class_name; got {pairs!r:.80}"
        )
    return joined
