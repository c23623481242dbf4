"""The labels in samples: whether those that a format needs are there, and in which form."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ..errors import ConfigError

_ANNOTATE = "bl.annotate(objects)"
_SILHOUETTES = "bl.annotate(objects, silhouettes=True)"
_SOURCES = {
    "image": "bl.render()",
    "instance": 'bl.render(("instance",))',
    "depth": 'bl.render(("depth",))',
    **dict.fromkeys(("id", "class_id", "class_name", "pose"), _ANNOTATE),
    "keypoints": "bl.annotate(objects, keypoints)",
    **dict.fromkeys(("silhouette", "silhouette_bbox", "silhouette_pixels"), _SILHOUETTES),
    "K": '{"K": bl.Camera().K}',
}
"""What gives each value."""


def check_labels(item: Mapping[str, Any], needed: Iterable[str], reader: str) -> None:
    """Raise ConfigError if a value that is needed is missing, or is not what its source gives.

    Args:
        reader: Who needs them, for the message, such as "COCO".
    """
    index = int(item["index"])
    if missing := [name for name in needed if item.get(name) is None]:
        by_source = itertools.groupby(missing, _SOURCES.__getitem__)
        how = ", ".join(" ".join(f"`{name}`" for name in names) + f" from {source}" for source, names in by_source)
        example = f'{{**bl.render(("instance",)), **{_SILHOUETTES if "silhouette" in missing else _ANNOTATE}}}'
        raise ConfigError(
            f"sample {index} has no {', '.join(repr(name) for name in missing)}, which {reader} needs: let the "
            f"script's sample return {how}, such as {example}; then record, or export, again. It has "
            f"{', '.join(repr(name) for name in item if item[name] is not None)}"
        )
    if wrong := [name for name in needed if name in _FORMS and not _FORMS[name](item[name], np.size(item["id"]))]:
        raise ConfigError(_wrong_form(index, wrong[0]))


def row_of(item: Mapping[str, Any], name: str, row: int, rank: int) -> Any:
    """Return an object's row of an optional array. None if the item does not have the array.

    Raises ConfigError if the array is not as `bl.annotate` gives it.
    """
    value = item.get(name)
    if value is None:
        return None
    right = is_array(value, rank, "biuf", len(item["id"])) and (rank < 3 or value.shape[2] == 3)
    if not right or not np.isfinite(value[row]).all():  # JSON has no NaN
        raise ConfigError(_wrong_form(int(item["index"]), name))
    return value[row]


def check_size(item: Mapping[str, Any], name: str, size: tuple[int, int]) -> None:
    """Raise ConfigError if a mask or a depth has another height and width than the image."""
    height, width = item[name].shape[-2:]
    if (height, width) != size:
        raise ConfigError(
            f"sample {item['index']}: the image has {size[1]} x {size[0]} pixels, but `{name}` {width} x {height}; "
            f"render both in one call of bl.render"
        )


def is_array(value: Any, rank: int, kinds: str, length: int | None = None) -> bool:
    """Return whether this is a numpy array of that many axes, of a kind of numbers, and, if given, of that length."""
    right = isinstance(value, np.ndarray) and value.ndim == rank and value.dtype.kind in kinds
    return right and length in (None, len(value))


_FORMS: dict[str, Callable[[Any, int], bool]] = {
    "instance": lambda value, count: is_array(value, 2, "iu"),
    "id": lambda value, count: is_array(value, 1, "iu"),
    "class_id": lambda value, count: is_array(value, 1, "iu", count),
    "class_name": lambda value, count: isinstance(value, list) and len(value) == count,
    "depth": lambda value, count: is_array(value, 2, "f"),
    "pose": lambda value, count: is_array(value, 3, "f", count) and value.shape[1:] == (4, 4),
    "silhouette": lambda value, count: is_array(value, 3, "b", count),
    "silhouette_bbox": lambda value, count: is_array(value, 2, "f", count) and value.shape[1] == 4,
    "silhouette_pixels": lambda value, count: is_array(value, 1, "iu", count),
    "K": lambda value, count: np.shape(value) == (3, 3) and bool(np.isfinite(np.asarray(value, float)).all()),
}
"""By value whether it is in the form that its source gives, for so many objects."""


def _wrong_form(index: int, name: str) -> str:
    return (
        f"sample {index}: {name!r} is not as {_SOURCES.get(name, _ANNOTATE)} gives it, for as many "
        f"objects as `id` has; does the script return something else under this name?"
    )
