"""Report: what an export wrote, and what it left out."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Report"]


@dataclass
class Report:
    """Counts of one export."""

    images: int = 0
    objects: int = 0
    """Objects with an annotation."""
    hidden: int = 0
    """Objects left out, because no pixel of theirs is seen."""
    keypoints: int = 0
    """Keypoints inside an image, occluded ones included."""
    classes: list[tuple[str, int]] = field(default_factory=list)
    """Of each class its name, and its objects."""
    notes: list[str] = field(default_factory=list)
    """What a user should know."""
