"""Image files that exist only in memory: Blender writes one, and it is read as an array."""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .settings import changed

if TYPE_CHECKING:
    from collections.abc import Iterator

_EXR_TYPES = {0: "<u4", 1: "<f2", 2: "<f4"}
_EXR_ORDER = {channel: rank for rank, channel in enumerate("RrXUGgYVBbZAaW")}  # gives RGBA, XYZW and UVA


def render_result() -> Any:
    """Return Blender's image of the last render, or None before the first one."""
    import bpy

    return next((image for image in bpy.data.images if image.type == "RENDER_RESULT"), None)


def save_tiff(scene: Any, image: Any, channels: str, bits: int = 8) -> npt.NDArray[Any]:
    """Return an image as Blender would save it as a file of 8 or 16 bits with the scene's view settings and dither off.

    The file is an uncompressed TIFF, because Blender (3.4 and 4.5) writes no other 8 bit format as fast.

    Returns:
        H x W x C uint8 or uint16, top row first, read-only. Alpha is straight, which means not multiplied into the colours.
    """
    return parse_tiff(_save(scene, image, "TIFF", channels, str(bits), tiff_codec="NONE"))


def save_exr(scene: Any, image: Any, *, layers: bool) -> dict[str, npt.NDArray[np.float32]]:
    """Return an image as 32 bit scene-linear floats, without the view transform.

    Returns:
        H x W x C arrays, top row first, with channels in the order RGBA or XYZW: {"": image}, or with `layers` all
        passes of all view layers by "LAYER.PASS".
    """
    kind = "OPEN_EXR_MULTILAYER" if layers else "OPEN_EXR"
    return parse_exr(_save(scene, image, kind, "RGBA", "32", exr_codec="NONE", use_exr_interleave=True))


def _save(scene: Any, image: Any, file_format: str, mode: str, depth: str, **more: Any) -> mmap.mmap:
    """Have Blender write an image. Return the file, which is gone with the last array that shows its memory."""
    settings = scene.render.image_settings
    changes = [
        (scene.render, "dither_intensity", 0.0),
        # From Blender 5.0 on the media type decides which formats there are, and the format decides modes and depths.
        (settings, "media_type", "MULTI_LAYER_IMAGE" if file_format.endswith("MULTILAYER") else "IMAGE"),
        (settings, "file_format", file_format),
        (settings, "color_mode", mode),
        (settings, "color_depth", depth),
        *((settings, name, value) for name, value in more.items()),
    ]
    with _scratch_path() as path, changed(changes):
        if image is not None:
            image.save_render(path, scene=scene)
        if not os.path.getsize(path):
            raise RuntimeError("Blender rendered, but wrote no image")
        with open(path, "rb", buffering=0) as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # to read it would be a copy into fresh memory


@contextlib.contextmanager
def _scratch_path() -> Iterator[str]:
    """Give the path of an empty private file, which is gone afterwards; on Linux even after a crash."""
    if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
        descriptor = os.memfd_create("asyncblend-render")
        try:
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        with tempfile.TemporaryDirectory(prefix="asyncblend-render-") as folder:
            path = Path(folder, "frame")
            path.touch()
            yield str(path)


def parse_tiff(data: bytes | mmap.mmap) -> npt.NDArray[Any]:
    """Return the pixels of an uncompressed TIFF: H x W x C uint8 or uint16, top row first. Else it is a RuntimeError."""
    if data[:4] != b"II*\0" or len(data) < 8:
        raise RuntimeError("Blender wrote no TIFF image")
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    fields = {}
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, length, _ = struct.unpack_from("<HHII", data, entry)
        if code := {3: "H", 4: "I"}.get(kind):
            layout = f"<{length}{code}"
            at = entry + 8  # up to four bytes of values are in the entry itself, more are elsewhere
            if struct.calcsize(layout) > 4:
                (at,) = struct.unpack_from("<I", data, at)
            fields[tag] = struct.unpack_from(layout, data, at)
    width, height, channels = (fields[tag][0] for tag in (256, 257, 277))
    offsets, sizes = fields[273], fields[279]
    gaps = any(a + size != b for a, size, b in zip(offsets, sizes, offsets[1:], strict=False))
    bits = set(fields[258])
    found = (fields[259], fields.get(284, (1,)), fields.get(274, (1,)), gaps)
    if bits not in ({8}, {16}) or found != ((1,), (1,), (1,), False):
        raise RuntimeError(f"Blender wrote a TIFF image of an unknown kind: {bits} bits, {found}")
    dtype = np.uint8 if bits == {8} else "<u2"
    return np.frombuffer(data, dtype, height * width * channels, offsets[0]).reshape(height, width, channels)


def parse_exr(data: bytes | mmap.mmap) -> dict[str, npt.NDArray[np.float32]]:
    """Return the passes of an uncompressed OpenEXR file with one part.

    Returns:
        H x W x C float32 arrays, top row first, C >= 1, by what stands before the last dot of the channels' names; ""
        for channels without a dot.

    Raises:
        RuntimeError: The data are something else.
    """
    if data[:4] != b"\x76\x2f\x31\x01" or data[5] & ~0x04:
        raise RuntimeError("Blender wrote no OpenEXR file of one part in scan lines")
    at, header = 8, {}
    while data[at]:
        name, at = _string(data, at)
        _, at = _string(data, at)
        (size,) = struct.unpack_from("<i", data, at)
        header[name] = data[at + 4 : at + 4 + size]
        at += 4 + size
    if header["compression"] != b"\0":
        raise RuntimeError("Blender wrote a compressed OpenEXR file")
    left, top, right, bottom = struct.unpack("<4i", header["dataWindow"])
    width, height = right - left + 1, bottom - top + 1

    line_fields: list[Any] = [("number and size of the line", "<u8")]
    position, channels = 0, header["channels"]
    while channels[position]:
        name, position = _string(channels, position)
        (kind,) = struct.unpack_from("<i", channels, position)
        line_fields.append((name, _EXR_TYPES[kind], (width,)))
        position += 16
    line = np.dtype(line_fields)
    starts = np.frombuffer(data, "<u8", height, at + 1)
    if height > 1 and not (np.diff(starts.astype(np.int64)) == line.itemsize).all():
        raise RuntimeError("Blender wrote an OpenEXR file with its lines out of order")
    lines = np.frombuffer(data, line, height, int(starts[0]))

    groups: dict[str, list[tuple[int, str]]] = {}
    for name, *_ in line_fields[1:]:
        group, _, channel = name.rpartition(".")
        groups.setdefault(group, []).append((_EXR_ORDER.get(channel, 99), name))
    found = {}
    for group, members in groups.items():
        found[group] = np.empty((height, width, len(members)), np.float32)
        for i, (_, name) in enumerate(sorted(members)):
            found[group][..., i] = lines[name]
    return found


def _string(data: bytes | mmap.mmap, at: int) -> tuple[str, int]:
    """Read a string that ends with a zero byte. Return it, and the position after that byte."""
    end = data.find(b"\0", at)
    if end < 0:
        raise RuntimeError("Blender wrote an OpenEXR file that ends in its header")
    return data[at:end].decode(), end + 1
