"""Prints what an .rrd file holds, by rerun's own reader, as JSON. Run by the Python of the environment with rerun.

By path of the entity a list of rows, each with the time lines that it is at, and its components by name. Numbers are
lists; the bytes of a picture are base64.
"""

from __future__ import annotations

import base64
import json
import sys
from typing import Any

from rerun.chunk import RrdReader


def plain(name: str, value: Any) -> Any:
    """Return a component of one row for JSON."""
    return base64.b64encode(bytes(value[0])).decode() if name.endswith((":buffer", ":blob")) else value


rows: dict[str, list[dict[str, Any]]] = {}
for chunk in RrdReader(sys.argv[1]).stream():
    batch = chunk.to_record_batch()
    names = [name for name in batch.schema.names if name not in ("rerun.controls.RowId", "log_time")]
    columns = {name: batch.column(name).to_pylist() for name in names}
    for row in range(chunk.num_rows):
        values = {name: plain(name, column[row]) for name, column in columns.items() if column[row] is not None}
        rows.setdefault(str(chunk.entity_path), []).append(values)
print(json.dumps(rows, default=str))
