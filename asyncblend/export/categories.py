"""Categories: the classes that occur in samples, with their keypoints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..pictures.skeleton import skeleton_of


class Categories:
    """COCO's categories, learnt from one object after another. Classes have numbers: their `class_id`, or 0 for none."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._counts: Counter[int] = Counter()
        self._used_keypoints: Counter[int] = Counter()  # the most that an object of the class has had
        self._keypoint_names: dict[int, list[str] | None] = {}
        self._skeletons: dict[int, list[list[int]]] = {}
        self.notes: list[str] = []  # what is odd about the classes, each fact once

    def add(self, item: Mapping[str, Any], row: int, points: np.ndarray[Any, Any] | None) -> int:
        """Count an object of a sample, and return its class's number.

        Args:
            points: Its keypoints, K x 3, from `row_of`. None: it has none that matter.

        Raises:
            ConfigError: The number is below 0, or the sample's "keypoint_names" or "skeleton" have a wrong form.
        """
        number, name = int(item["class_id"][row]), item["class_name"][row]
        if number < 0:
            raise ConfigError(f"sample {item['index']}: class_id {number}; classes count from 1, and 0 is none")
        if number not in self._names:
            self._names[number] = (name or str(number)) if number else ""
            self._keypoint_names[number] = _keypoint_names(item, name)
            self._skeletons[number] = skeleton_of(item, name)
        elif number and name and self._names[number] != name:
            note = f"class {number} is called {self._names[number]!r} and {name!r}; the first is taken"
            if note not in self.notes:
                self.notes.append(note)
        self._counts[number] += 1
        if points is not None:
            used = np.flatnonzero(points.any(axis=1))
            count = int(used[-1]) + 1 if len(used) else 0
            self._used_keypoints[number] = max(self._used_keypoints[number], count)
            names = self._keypoint_names[number]
            if names is not None and count > len(names):
                raise ConfigError(
                    f"sample {item['index']}: an object of class {self._names[number]!r} has {count} keypoints, but "
                    f"'keypoint_names' has {len(names)} for it"
                )
        return number

    def id_of(self, number: int) -> int:
        """Return the id of a class's category. Call it only when all objects have been added."""
        return number or max(self._names) + 1

    def keypoints_of(self, number: int) -> int:
        """Return how many keypoints a class's category has."""
        names = self._keypoint_names[number]
        return self._used_keypoints[number] if names is None else len(names)

    def counts(self) -> list[tuple[str, int]]:
        """Return each category's name, or "class 3" where it is only a number, and the number of its objects, by id."""
        found = [(number, self._name_of(number)) for number in sorted(self._names, key=self.id_of)]
        return [(f"class {name}" if name == str(number) else name, self._counts[number]) for number, name in found]

    def finish(self) -> list[dict[str, Any]]:
        """Return COCO's list of categories, by id."""
        found = []
        for number in sorted(self._names, key=self.id_of):
            category: dict[str, Any] = {"id": self.id_of(number), "name": self._name_of(number), "supercategory": ""}
            if count := self.keypoints_of(number):
                names = self._keypoint_names[number]
                category["keypoints"] = names or [f"keypoint_{i}" for i in range(1, count + 1)]
                category["skeleton"] = [pair for pair in self._skeletons[number] if max(pair) <= count]
            found.append(category)
        return found

    def _name_of(self, number: int) -> str:
        if number:
            return self._names[number]
        return "without a class" if "object" in self._names.values() else "object"


def _keypoint_names(item: Mapping[str, Any], class_name: str) -> list[str] | None:
    value = item.get("keypoint_names")
    names = value.get(class_name) if isinstance(value, Mapping) else value
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ConfigError(
            f"sample {item['index']}: 'keypoint_names' is a list of strings, for all classes or in a dict by "
            f"class_name; got {names!r:.80}"
        )
    return names
