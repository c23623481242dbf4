"""An id of its own for each copy of an object: the mask, and the table of ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..capture.object_ids import class_of
from .copy_ids import told_apart
from .occurrences import Occurrence, occurrences_in
from .rendered_ids import Entry, RenderedIds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..scene.lens import View

_Ids = npt.NDArray[np.int32]


class Row(NamedTuple):
    """What is shown, and the id and the class that it has."""

    shown: Occurrence
    entry: Entry


class Copies(NamedTuple):
    """All that is shown, each with an id of its own."""

    rows: list[Row]
    mask: _Ids  # H x W
    table: list[dict[str, Any]]  # as "instances" of `render`, and for copies "instancer" and "persistent_id"

    def of(self, objects: Sequence[Any]) -> list[Row]:
        """Return what shows these objects, or is shown by them, each once, in the order of the objects."""
        showing: dict[Any, list[Row]] = {}
        for row in self.rows:
            for obj in {row.shown.source, row.shown.instancer}:
                showing.setdefault(obj, []).append(row)
        found = {row.entry.id: row for obj in objects for row in showing.get(obj, ())}
        return list(found.values())

    def labels(self, objects: Sequence[Any], names: Mapping[Any, str]) -> dict[str, Any]:
        """Return the labels that tell the copies of the objects apart, and the masks."""
        shown = [row.shown for row in self.of(objects)]
        class_of_id = np.zeros(max((row["id"] for row in self.table), default=0) + 1, np.int32)
        for row in self.table:
            class_of_id[row["id"]] = row["class_id"]
        return {
            "instancer": [names.get(one.instancer, "") for one in shown],
            "persistent_id": np.array([one.persistent_id for one in shown], np.int32).reshape(-1, 8),
            "instance": self.mask,
            "semantic": class_of_id[self.mask],
            "instances": self.table,
        }


def copies_in(depsgraph: Any, ids: RenderedIds, layer: Any, names: Mapping[Any, str], view: View) -> Copies:
    """Return all that the depsgraph of a render shows, and a mask of it.

    Ids of the view layer's objects stay as they are. Those of copies follow, of all copies, also of those that cannot be
    seen. What is in the image, but has no mesh, and is not in the view layer, comes last, with the id of its object.
    """
    inside = {names[obj] for obj in layer.objects}
    table = [_table_row(name, entry) for name, entry in ids.entries.items() if name in inside]
    last = max((entry.id for name, entry in ids.entries.items() if name in inside), default=0)
    rows: list[Row] = []
    for one in occurrences_in(depsgraph, names):
        known = ids.entries.get(names[one.source])
        if one.instancer is None:
            if known is not None:  # otherwise it was linked after the render
                rows.append(Row(one, known))
            continue
        last += 1
        entry = Entry(last, *_class_of(one, known))
        rows.append(Row(one, entry))
        table.append(
            _table_row(names[one.source], entry)
            | {"instancer": names[one.instancer], "persistent_id": list(one.persistent_id)}
        )

    by_source: dict[str, list[Row]] = {}
    for row in rows:
        by_source.setdefault(names[row.shown.source], []).append(row)
    mask = np.array(ids.mask, np.int32, order="C")
    flat, old = mask.reshape(-1), ids.mask.reshape(-1)
    for name, entry in ids.entries.items():
        candidates = by_source.get(name, [])
        if name in inside and [row.entry.id for row in candidates] in ([], [entry.id]):
            continue
        pixels = np.flatnonzero(old == entry.id)
        if not len(pixels):
            continue
        if not candidates:
            last += 1
            table.append(_table_row(name, Entry(last, entry.class_id, entry.class_name)))
            flat[pixels] = last
            continue
        numbers = np.array([row.entry.id for row in candidates], np.int32)
        if len(candidates) == 1 or ids.depth is None:
            flat[pixels] = numbers[0]
        else:
            flat[pixels] = numbers[told_apart(pixels, ids.depth, [row.shown for row in candidates], view)]
    return Copies(rows, mask, table)


def _table_row(name: str, entry: Entry) -> dict[str, Any]:
    return {"id": entry.id, "name": name, "class_id": entry.class_id, "class_name": entry.class_name}


def _class_of(copy: Occurrence, source: Entry | None) -> tuple[int, str]:
    """Return the class of a copy: that of an empty that shows a collection, if it has one, and else its source's."""
    if copy.instancer.type == "EMPTY" and (found := class_of(copy.instancer))[0]:
        return found
    return class_of(copy.source) if source is None else (source.class_id, source.class_name)
