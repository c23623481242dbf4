"""Checksums: each file of a recording has a CRC-32, so that no changed byte is read in silence.

Those of a sample's images and arrays are in its JSON. A JSON file ends with its own, which is that of all bytes before:

    {"index":12,...,"files":{"depth.npy.gz":"8f0cd0b2","image.png":"1e5a70a9"},"crc32":"04a7c2f1"}

The headers of the tar have sums of their own. So a shard stays an ordinary tar file, and keeps its checksums when
another tool packs it again.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

from ..wire.json_text import dumps

FORMAT = 4
"""The version of the format of recordings. In format 3 arrays are not compressed; format 2 has no checksums either."""

CHECKED = (3, FORMAT)
"""The formats that have checksums."""

_SEAL = ',"crc32":"%s"}'
_LENGTH = len(_SEAL % "01234567")


class Damaged(Exception):
    """Bytes are not what a writer wrote. Caught where the shard is known, and raised as a RecordingError."""

    def __init__(self, text: str, *, file: str = "", at: int = 0) -> None:
        super().__init__(text)
        self.file = file  # The file of the sample that is damaged, if it is known
        self.at = at  # Otherwise where the damage is, in bytes from the beginning of what was read


def checksum(data: bytes | memoryview) -> str:
    """Return the CRC-32 of these bytes, as 8 hexadecimal digits."""
    return f"{zlib.crc32(data):08x}"


def sealed(fields: Mapping[str, Any]) -> bytes:
    """Return the fields, of which there must be some, as JSON that ends with its own checksum."""
    text = dumps(fields)[:-1]
    return (text + _SEAL % checksum(text.encode())).encode()


def unsealed(data: bytes, *, checked: bool) -> dict[str, Any]:
    """Return the fields of a JSON file.

    Args:
        checked: Whether the checksum must be there. One that is there must be right in any case; and it must be there
            if the fields say that they are of a format that has checksums.

    Raises:
        Damaged: It is no JSON object, or not as it was written.
    """
    try:
        fields = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise Damaged(f"its JSON cannot be read: {error}", file="json") from None
    if not isinstance(fields, dict):
        raise Damaged(f"its JSON cannot be read: it is a {type(fields).__name__}", file="json")
    found = fields.pop("crc32", None)
    wanted = checked or found is not None or fields.get("format") in CHECKED
    if wanted and found != checksum(data[:-_LENGTH]):
        raise Damaged("its JSON is not what was written: its checksum differs", file="json")
    return fields
