"""Image files that exist only in memory: Blender writes one, and it is read as an array."""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["parse_exr", "parse_tiff", "render_result", "save_exr", "save_tiff"]

_EXR_TYPES = {0: "<u4", 1: "<f2", 2: "<f4"}
_EXR_ORDER = {channel: place for place, channel in enumerate("RrXUGgYVBbZAaW")}  # as in RGBA, XYZW, UVA


def render_result() -> Any:
    """Blender's image of the last render. There is none before the first one."""
    import bpy

    return next((image for image in bpy.data.images if image.type == "RENDER_RESULT"), None)


def save_tiff(scene: Any, image: Any, channels: str) -> npt.NDArray[np.uint8]:
    """The image as Blender would save it with the scene's view settings as an 8 bit file, with dither off.

    An uncompressed TIFF, because Blender (3.4 and 4.5) writes no other format of 8 bits so fast.

    Args:
        scene: the scene whose settings count.
        image: a Blender image; for a float image its pixels are scene-linear.
        channels: "RGB" or "RGBA".

    Returns:
        H x W x C uint8, top row first; alpha is straight (not multiplied into the colours). A view of read-only
        memory.

    Raises:
        RuntimeError: Blender wrote no image.
    """
    return parse_tiff(_save(scene, image, "TIFF", channels, "8", {"tiff_codec": "NONE"}))


def save_exr(scene: Any, image: Any, *, layers: bool) -> dict[str, npt.NDArray[np.float32]]:
    """The image as 32 bit scene-linear floats, without the view transform.

    Args:
        scene: the scene whose settings count.
        image: a Blender image.
        layers: all passes of all view layers; else the image alone.

    Returns:
        Without layers {"": H x W x C}. With layers by "LAYER.PASS". Top row first, channels in the order RGBA, XYZW.

    Raises:
        RuntimeError: Blender wrote no image.
    """
    file_format = "OPEN_EXR_MULTILAYER" if layers else "OPEN_EXR"
    return parse_exr(_save(scene, image, file_format, "RGBA", "32", {"exr_codec": "NONE", "use_exr_interleave": True}))


def _save(scene: Any, image: Any, file_format: str, mode: str, depth: str, more: Mapping[str, Any]) -> bytes:
    with _scratch_path() as path, _writing(scene, file_format, mode, depth, more):
        if image is not None:
            image.save_render(path, scene=scene)
        with open(path, "rb") as file:
            data = file.read()
    if not data:
        raise RuntimeError("Blender rendered, but wrote no image")
    return data


@contextlib.contextmanager
def _scratch_path() -> Iterator[str]:
    """The path of an empty file that nobody else sees and that is gone afterwards, even after a crash on Linux."""
    if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
        descriptor = os.memfd_create("asyncblend-render")
        try:
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        with tempfile.TemporaryDirectory(prefix="asyncblend-render-") as folder:
            path = os.path.join(folder, "frame")
            with open(path, "wb"):
                pass
            yield path


@contextlib.contextmanager
def _writing(scene: Any, file_format: str, mode: str, depth: str, more: Mapping[str, Any]) -> Iterator[None]:
    """Have images of `scene` saved in that format, without dither."""
    settings = scene.render.image_settings
    # In this order, there and back: the file format decides which colour modes and depths there are,
    # and from Blender 5.0 on the media type decides which formats.
    changes = [
        (scene.render, "dither_intensity", 0.0),
        (settings, "media_type", "MULTI_LAYER_IMAGE" if file_format.endswith("MULTILAYER") else "IMAGE"),
        (settings, "file_format", file_format),
        (settings, "color_mode", mode),
        (settings, "color_depth", depth),
        *((settings, name, value) for name, value in more.items()),
    ]
    saved = [(owner, name, getattr(owner, name)) for owner, name, _ in changes if hasattr(owner, name)]
    try:
        for owner, name, value in changes:
            if hasattr(owner, name):
                setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in saved:
            setattr(owner, name, value)


def parse_tiff(data: bytes) -> npt.NDArray[np.uint8]:
    """The pixels of an uncompressed 8 bit TIFF: H x W x C uint8, top row first.

    Raises:
        RuntimeError: it is another kind of TIFF.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 8:
        raise RuntimeError("Blender wrote no TIFF image")
    (start,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, start)
    fields = {}
    for place in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, length = struct.unpack_from(order + "HHI", data, place)
        code, size = {3: ("H", 2), 4: ("I", 4)}.get(kind, ("", 0))
        if code:
            if size * length > 4:
                (at,) = struct.unpack_from(order + "I", data, place + 8)
            else:
                at = place + 8
            fields[tag] = struct.unpack_from(f"{order}{length}{code}", data, at)
    width, height, channels = (fields[tag][0] for tag in (256, 257, 277))
    kind_of = (set(fields[258]), fields[259], fields.get(284, (1,)), fields.get(274, (1,)))
    if kind_of != ({8}, (1,), (1,), (1,)):
        raise RuntimeError(f"Blender wrote a TIFF image of an unknown kind: {kind_of}")
    offsets, sizes = fields[273], fields[279]
    if all(a + n == b for a, n, b in zip(offsets, sizes, offsets[1:], strict=False)):
        pixels = np.frombuffer(data, np.uint8, height * width * channels, offsets[0])
    else:
        strips = [data[at : at + size] for at, size in zip(offsets, sizes, strict=True)]
        pixels = np.frombuffer(b"".join(strips), np.uint8, height * width * channels)
    return pixels.reshape(height, width, channels)


def parse_exr(data: bytes) -> dict[str, npt.NDArray[np.float32]]:
    """The passes of an uncompressed OpenEXR file of one part, by the name before the channel's last dot.

    Each is H x W x C float32, top row first, C >= 1; "" is the name of channels without a dot.

    Raises:
        RuntimeError: it is another kind of file.
    """
    if data[:4] != b"\x76\x2f\x31\x01" or data[5] & ~0x04:
        raise RuntimeError("Blender wrote no OpenEXR file of one part in scan lines")
    at, header = 8, {}
    while data[at]:
        name, at = _word(data, at)
        _, at = _word(data, at)
        (size,) = struct.unpack_from("<i", data, at)
        header[name] = data[at + 4 : at + 4 + size]
        at += 4 + size
    if header["compression"] != b"\0":
        raise RuntimeError("Blender wrote a compressed OpenEXR file")
    left, top, right, bottom = struct.unpack("<4i", header["dataWindow"])
    width, height = right - left + 1, bottom - top + 1

    groups: dict[str, list[tuple[int, str, str, str]]] = {}
    place, offset, listing = 0, 8, header["channels"]  # each line begins with its number and its size
    while listing[place]:
        name, place = _word(listing, place)
        (kind,) = struct.unpack_from("<i", listing, place)
        place += 16
        group, _, channel = name.rpartition(".")
        code = _EXR_TYPES[kind]
        groups.setdefault(group, []).append((_EXR_ORDER.get(channel, 99), name, code, str(offset)))
        offset += width * int(code[-1])

    starts = np.frombuffer(data, "<u8", height, at + 1)
    if height > 1 and not (np.diff(starts.astype(np.int64)) == offset).all():
        raise RuntimeError("Blender wrote an OpenEXR file with its lines out of order")
    lines = np.frombuffer(data, np.uint8, height * offset, int(starts[0])).reshape(height, offset)
    found = {}
    for group, channels in groups.items():
        array = np.empty((height, width, len(channels)), np.float32)
        for i, (_, _, code, where) in enumerate(sorted(channels)):
            line = lines[:, int(where) : int(where) + width * int(code[-1])]
            array[..., i] = np.ascontiguousarray(line).view(code)
        found[group] = array
    return found


def _word(data: bytes, at: int) -> tuple[str, int]:
    """A string that ends with a zero byte, and where the next thing starts."""
    end = data.index(b"\0", at)
    return data[at:end].decode(), end + 1
