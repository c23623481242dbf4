"""What `serve` does without a host: shows one sample to whoever writes the script."""

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

_PNG_COLOUR = {1: 0, 3: 2, 4: 6}  # channels: PNG's colour type (grey, RGB, RGBA)


def preview(values: Mapping[str, Any], script: str | None) -> None:
    """Print a line about each value of a sample, and save its images as PNG.

    An image is a uint8 array of shape H x W, H x W x 3 or H x W x 4. For the script `cube.py` the value "image" is
    saved as `cube.png` beside it, and any other, say "mask", as `cube.mask.png`; values in nested dicts have dotted
    names. Without a script file the images are saved beside the open .blend file, or else in the current folder. The
    reason is printed if an image cannot be written, or an array that may be meant as one is none.

    Args:
        values: What the user's `sample` function returned.
        script: Path of the script. There may be no such file, as for a text inside a .blend.
    """
    stem = _path_without_suffix(script)
    for name, value in _flatten(values):
        if not isinstance(value, np.ndarray):
            print(f"{name}: {type(value).__name__}, {reprlib.repr(value)}")
            continue
        print(f"{name}: {value.dtype}, shape {value.shape}")
        if value.dtype == np.uint8 and value.size and (value.ndim == 2 or value.shape[2:] in ((3,), (4,))):
            part = "" if name == "image" else "." + re.sub(r"[^\w.-]", "_", name)
            path = stem.with_name(f"{stem.name}{part}.png")
            try:
                path.write_bytes(_png(value))
            except OSError as error:
                print(f"  not saved: {error}")
            else:
                print(f"  saved as {path}")
        elif name == "image" or (value.dtype == np.uint8 and value.ndim > 1):
            print("  not saved: a picture is uint8 and H x W, H x W x 3 or H x W x 4; `asyncblend inspect` draws more")


def _path_without_suffix(script: str | None) -> Path:
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


def _png(image: npt.NDArray[np.uint8]) -> bytes:
    height, width = image.shape[:2]
    channels = image.shape[2] if image.ndim == 3 else 1
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # each row starts with its filter: 0, none
    rows[:, 1:] = image.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, _PNG_COLOUR[channels], 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
