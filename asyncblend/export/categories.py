"""Categories: the classes that occur in samples, with their keypoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ..errors import ConfigError
from ..pictures.skeleton import skeleton_of

__all__ = ["Categories"]

_NO_CLASS = ("object", "without a class")  # the second, where a class is called as the first


class _Skeleton(NamedTuple):
    names: list[str] | None
    """None: not given."""
    pairs: list[list[int]]


class Categories:
    """Learnt from one object after another. A class's id is its `class_id`; 0 stands for objects without a class."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._counts: dict[int, int] = {}
        self._rows: dict[int, int] = {}  # keypoints that an object of the class has had
        self._skeletons: dict[int, _Skeleton] = {}
        self.notes: list[str] = []
        """What is not as it should be, each once."""

    def add(self, item: Mapping[str, Any], row: int) -> int:
        """Count an object of a sample, and give its class.

        Raises:
            ConfigError: its class is below 0; the sample's "keypoint_names" or "skeleton" have a wrong form.
        """
        number, name = int(item["class_id"][row]), item["class_name"][row]
        if number < 0:
            raise ConfigError(f"sample {item['index']}: class_id {number}; classes count from 1, and 0 is none")
        if number not in self._names:
            self._names[number] = (name or str(number)) if number else ""
            self._skeletons[number] = _skeleton(item, name)
        elif number and name and self._names[number] != name:
            self._note(f"class {number} is called {self._names[number]!r} and {name!r}; the first is taken")
        self._counts[number] = self._counts.get(number, 0) + 1
        if item.get("keypoints") is not None:
            used = np.flatnonzero(item["keypoints"][row].any(axis=1))
            count = int(used[-1]) + 1 if len(used) else 0
            self._rows[number] = max(self._rows.get(number, 0), count)
            names = self._skeletons[number].names
            if names is not None and count > len(names):
                raise ConfigError(
                    f"sample {item['index']}: an object of class {self._names[number]!r} has {count} keypoints, but "
                    f"'keypoint_names' has {len(names)} for it"
                )
        return number

    def id_of(self, number: int) -> int:
        """The id of a class's category, once all objects are known."""
        return number or max(self._names) + 1

    def keypoints_of(self, number: int) -> int:
        """How many keypoints its category has."""
        names = self._skeletons[number].names
        return self._rows.get(number, 0) if names is None else len(names)

    def counts(self) -> list[tuple[str, int]]:
        """Of each category its name, and its objects."""
        return [(category["name"], self._counts[number]) for number, category in self._all()]

    def finish(self) -> list[dict[str, Any]]:
        """COCO's list, by id."""
        return [category for _, category in self._all()]

    def _all(self) -> list[tuple[int, dict[str, Any]]]:
        found = []
        for number in sorted(self._names, key=self.id_of):
            name = self._names[number] if number else _NO_CLASS[_NO_CLASS[0] in self._names.values()]
            category: dict[str, Any] = {"id": self.id_of(number), "name": name, "supercategory": ""}
            if count := self.keypoints_of(number):
                names, pairs = self._skeletons[number]
                category["keypoints"] = names or [f"keypoint_{i}" for i in range(1, count + 1)]
                category["skeleton"] = [pair for pair in pairs if max(pair) <= count]
            found.append((number, category))
        return found

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _skeleton(item: Mapping[str, Any], class_name: str) -> _Skeleton:
    value = item.get("keypoint_names")
    names = value.get(class_name) if isinstance(value, Mapping) else value
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ConfigError(
            f"sample {item['index']}: 'keypoint_names' is a list of strings, for all classes or in a dict by "
            f"class_name; got {names!r:.80}"
        )
    return _Skeleton(names, skeleton_of(item, class_name))
