"""Task: one sample that a script is asked for."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from ...wire.payload import Shared, Unsendable, encode_values
from .seeding import seed_everything


@dataclass(frozen=True)
class Task:
    """The argument of the user's `sample` function."""

    index: int
    """Index of the sample in the stream."""
    params: Mapping[str, Any]
    """The host's `params` for this index; {} for none. Arrays are read-only."""
    seed: int
    """Seed of the stream."""
    instance: int
    """Number of this Blender. A sample that depends on it cannot be reproduced."""

    @functools.cached_property
    def rng(self) -> np.random.Generator:
        """`numpy.random.default_rng([seed, index])`. A sample that draws everything random from it can be reproduced."""
        return np.random.default_rng([self.seed, self.index])


def make_task(index: int, seed: int, instance: int, params: Mapping[str, Any]) -> Task:
    """Return the task of that index, and seed every random generator for it."""
    seed_everything(seed, index)
    return Task(index, MappingProxyType(dict(params)), seed, instance)


def encode_sample(values: Any, shared: Shared | None = None) -> list[Any]:
    """Return what the user's `sample` function returned as parts to send, without the arrays that `shared` takes.

    Raises:
        Unsendable: It is no dict, or a value cannot travel. The message names its key.
    """
    # To ask an abstract class is slow, and nearly all values are plain dicts.
    if type(values) is not dict and not isinstance(values, Mapping):
        raise Unsendable(
            f'a sample must be a dict of values, such as {{"image": bl.render()["image"]}}; got {type(values).__name__}'
        )
    for name in ("index", "params"):
        if name in values:
            raise Unsendable(
                f"value {name!r} is reserved: the frame's own {name} has this name in items and batches; take another"
            )
    return encode_values(values, shared)
