"""preview: what `serve` does without a host, for the one who writes the script: shows one sample."""

from __future__ import annotations

import re
import reprlib
import struct
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["preview"]

_PNG_COLOUR = {1: 0, 3: 2, 4: 6}  # channels: PNG's colour type (grey, RGB, RGBA)


def preview(values: Mapping[str, Any], script: str | None) -> None:
    """Print a line about each value of a sample, and save its images as PNG.

    An image is a uint8 array of shape H x W, H x W x 3 or H x W x 4. For the script `cube.py` the value "image"
    goes to `cube.png` beside it, and any other, say "mask", to `cube.mask.png`; values in nested dicts count with
    dotted names. Without a script file the images go beside the open .blend file, or else into the current folder.
    An image that cannot be written is no error: the reason is printed instead.

    Args:
        values: what the user's `sample` function returned.
        script: path of the script; None, or a path where there is no file (a text inside a .blend), for no script.
    """
    stem = _stem(script)
    for name, value in _flatten(values):
        print(f"{name}: {_describe(value)}")
        if _is_image(value):
            path = stem.with_name(f"{stem.name}{'' if name == 'image' else '.' + _safe(name)}.png")
            try:
                path.write_bytes(_png(value))
            except OSError as error:
                print(f"  not saved: {error}")
            else:
                print(f"  saved as {path}")


def _stem(script: str | None) -> Path:
    """Path of the images without the suffix."""
    if script is not None and Path(script).is_file():
        return Path(script).with_suffix("")
    blend = sys.modules["bpy"].data.filepath if "bpy" in sys.modules else ""
    return Path(blend).with_suffix("") if blend else Path.cwd() / "sample"


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}, shape {value.shape}"
    return f"{type(value).__name__}, {reprlib.repr(value)}"


def _safe(name: str) -> str:
    """The name of a value as part of a file name."""
    return re.sub(r"[^\w.-]", "_", name)


def _is_image(value: Any) -> bool:
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.size == 0:
        return False
    return value.ndim == 2 or (value.ndim == 3 and value.shape[2] in (3, 4))


def _png(image: npt.NDArray[np.uint8]) -> bytes:
    """A PNG file of an H x W, H x W x 3 or H x W x 4 uint8 array."""
    height, width = image.shape[:2]
    channels = image.shape[2] if image.ndim == 3 else 1
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # each row starts with its filter: 0, none
    rows[:, 1:] = image.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, _PNG_COLOUR[channels], 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
