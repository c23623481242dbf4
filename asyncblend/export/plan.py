"""What an export is asked to be, and the Report of what it became."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from ..errors import ConfigError

TASKS = ("detect", "segment", "pose")
"""What a YOLO network learns, and so what its labels are."""

_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the writer of a format is asked for. Raises ConfigError if an option is wrong."""

    info: Mapping[str, Any] = field(default_factory=dict)
    """Facts about the whole export, as JSON values."""
    val: float = 0.0
    """The share of samples that are for validation, 0 to less than 1."""
    task: str = "detect"
    """One of TASKS."""

    def __post_init__(self) -> None:
        number = isinstance(self.val, (int, float)) and not isinstance(self.val, bool)
        if not number or not 0 <= self.val < 1 or math.isnan(self.val):
            raise ConfigError(f"val is the share of samples for validation, from 0 to less than 1; got {self.val!r}")
        if self.task not in TASKS:
            raise ConfigError(f"task must be one of {', '.join(TASKS)}; got {self.task!r}")
        try:
            json.dumps(dict(self.info))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"info is a dict of JSON values, such as strings and numbers; {error}") from None

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits."""
        return ("train", "val") if self.val else ("train",)

    def split_of(self, index: int) -> str:
        """Return the split that a sample belongs to, which depends on its index and `val` alone.

        A longer export of the same stream so keeps each sample where it was, and a larger `val` only adds samples to
        "val". The multiples of the golden ratio lie more evenly than random numbers: of any run of indices, also of
        each second or third one, the share is `val` but for a sample or two.
        """
        return "val" if index * _GOLDEN % 2**64 < self.val * 2**64 else "train"

    def check(self, indices: Sequence[int]) -> None:
        """Raise ConfigError if one of the splits has none of these indices. The first ones that fill them suffice."""
        left = set(self.splits)
        for index in indices:
            left.discard(self.split_of(index))
            if not left:
                return
        self.refuse_empty(min(left), len(indices))

    def refuse_empty(self, split: str, count: int) -> NoReturn:
        """Raise the ConfigError for a split that has none of `count` samples."""
        raise ConfigError(
            f"of {count} samples, none is in the split {split!r} with val={self.val}; export more of them, or leave "
            f"val out"
        )


@dataclass
class Report:
    """What an export wrote, and what it left out."""

    entry: str = ""  # the file or folder, below the export's own, that a trainer is given
    images: int = 0
    splits: Counter[str] = field(default_factory=Counter)  # how many of the images are in each split
    objects: int = 0  # with an annotation
    hidden: int = 0  # objects without an annotation, because no pixel of them is visible
    keypoints: int = 0  # inside an image, with the occluded ones
    classes: list[tuple[str, int]] = field(default_factory=list)  # for each class its name and number of objects
    notes: list[str] = field(default_factory=list)  # what the user should know about the labels

    def add_image(self, split: str) -> None:
        """Count one image."""
        self.images += 1
        self.splits[split] += 1

    def check(self, plan: Plan) -> None:
        """Raise ConfigError if there was no sample, or none for one of the splits."""
        if not self.images:
            raise ConfigError("there is no sample to export")
        if empty := [split for split in plan.splits if not self.splits[split]]:
            plan.refuse_empty(empty[0], self.images)
