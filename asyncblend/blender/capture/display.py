"""The scene's view transform as a table, for images that are read from memory. Blender itself fills the table."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from .imagefile import save_tiff
from .settings import changed

# How many low bits of a float32 are ignored. 10 bits of the mantissa stay: half a step is 0.12 of 1/255 in sRGB.
_DROPPED = 13
_ENTRIES = 1 << (32 - _DROPPED)
_WIDTH = 1024
_BLOCK = 1 << 16  # pixels in one step, so that its arrays stay in the processor's cache and need no fresh memory


class DisplayTable:
    """A view transform that treats each channel by itself, such as Standard or Raw.

    The upper 19 bits of a float32 (sign, exponent and ten bits of the mantissa) are the index into the table. So every
    float has an entry, and an image of 640 x 480 takes about a millisecond.

    Args:
        tables: 3 x 2**19, for R, G and B.
        exposure: By how many stops images are made brighter first.
    """

    def __init__(self, tables: npt.NDArray[np.uint8], exposure: float = 0.0) -> None:
        self._tables = tables
        self._scale = np.float32(2.0**exposure)

    def apply(self, linear: npt.NDArray[np.float32], channels: str = "RGB") -> npt.NDArray[np.uint8]:
        """Return the display values of scene-linear pixels, within 1/255 of what Blender would save.

        Args:
            linear: H x W x 4 float32, contiguous, bottom row first, with alpha multiplied into the colours. It is not
                changed.
            channels: "RGB" (over black, as Blender saves it) or "RGBA" (straight alpha).

        Returns:
            H x W x C uint8, contiguous, top row first.
        """
        image = np.empty((*linear.shape[:2], len(channels)), np.uint8)
        from_below = image[::-1]
        rows = max(1, _BLOCK // max(1, linear.shape[1]))
        for start in range(0, len(linear), rows):
            self._apply(linear[start : start + rows], from_below[start : start + rows])
        return image

    def _apply(self, linear: npt.NDArray[np.float32], image: npt.NDArray[np.uint8]) -> None:
        if image.shape[2] == 4:
            alpha = linear[..., 3]
            image[..., 3] = alpha.clip(0, 1) * np.float32(255) + np.float32(0.5)
            if not (alpha == 1).all():
                linear = linear / np.where(alpha == 0, np.float32(1), alpha)[..., None]
        if self._scale != 1:
            linear = linear * self._scale
        indices = linear.view(np.uint32) >> _DROPPED
        for channel in range(3):
            image[..., channel] = self._tables[channel].take(indices[..., channel])


def display_table() -> DisplayTable | None:
    """Return the current scene's view transform with look, exposure, gamma, curves and display device as a table.

    Blender fills the table: a float image that holds one value for each entry is saved in memory with the scene's
    settings. That takes 50 to 100 ms, and is done once for each combination of settings; the last few tables are kept.
    A change of exposure alone needs no new table.

    Returns:
        None for a transform that mixes the channels, such as Filmic or AgX. (A table of all three channels was tried:
        with 65 entries a side it was off by up to 7/255 for AgX, and took 70 ms at 640 x 480. A file takes 9 ms.)
    """
    import bpy

    view = bpy.context.scene.view_settings
    tables = _tables(_settings(bpy.context.scene))
    exposure = 0.0 if view.use_curve_mapping else view.exposure  # Blender applies the curves before the exposure
    return None if tables is None else DisplayTable(tables, exposure)


def _settings(scene: Any) -> tuple[Any, ...]:
    """Return all settings that decide how colours are shown, also those that a later Blender adds."""
    view = scene.view_settings
    key: list[Any] = [scene.display_settings.display_device, *(getattr(view, name) for name in _setting_names())]
    if view.use_curve_mapping:
        curves = view.curve_mapping
        key += [view.exposure, curves.extend, curves.tone, tuple(curves.black_level), tuple(curves.white_level)]
        key += [(tuple(point.location), point.handle_type) for curve in curves.curves for point in curve.points]
    return tuple(key)


@functools.cache
def _setting_names() -> list[str]:
    import bpy

    kinds = ("BOOLEAN", "INT", "FLOAT", "ENUM")
    properties = bpy.types.ColorManagedViewSettings.bl_rna.properties
    single = [prop for prop in properties if prop.type in kinds and not getattr(prop, "is_array", False)]
    return [prop.identifier for prop in single if prop.identifier != "exposure"]


@functools.lru_cache(maxsize=16)  # of half a megabyte each, or three times that where the channels differ
def _tables(settings: tuple[Any, ...]) -> npt.NDArray[np.uint8] | None:
    """Have Blender fill the tables for the current scene. Its settings are only the key by which they are kept."""
    import bpy

    scene = bpy.context.scene
    if _mixes_channels(scene):
        return None
    bits = np.arange(_ENTRIES, dtype=np.uint32) << _DROPPED
    values = (bits | 1 << (_DROPPED - 1)).view(np.float32)  # the middle of the floats that share an entry
    infinite = np.isinf(bits.view(np.float32))
    values[infinite] = bits.view(np.float32)[infinite]
    tables = np.ascontiguousarray(_shown(scene, np.repeat(values[:, None], 3, axis=1)).T)
    return np.broadcast_to(tables[0].copy(), tables.shape) if (tables[0] == tables[1:]).all() else tables


def _mixes_channels(scene: Any) -> bool:
    """Whether a channel depends on another: random colours must look as each of their values does as a grey."""
    rng = np.random.default_rng(0)
    colours = np.float32(2) ** rng.uniform(-12, 5, (_WIDTH, 3)).astype(np.float32)
    colours[rng.random(colours.shape) < 0.1] = 0
    greys = np.repeat(colours.T.reshape(-1, 1), 3, axis=1)
    shown = _shown(scene, np.concatenate([colours, greys])).astype(int).reshape(4, _WIDTH, 3)
    separate = np.stack([shown[1 + channel, :, channel] for channel in range(3)], axis=1)
    return bool(np.abs(separate - shown[0]).max() > 1)


def _shown(scene: Any, colours: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Return the N x 3 display values of N x 3 scene-linear colours without the exposure; _WIDTH must divide N."""
    import bpy

    pixels = np.ones((len(colours), 4), np.float32)
    pixels[:, :3] = colours
    view = scene.view_settings
    exposure = [] if view.use_curve_mapping else [(view, "exposure", 0.0)]
    image = bpy.data.images.new("asyncblend display", _WIDTH, len(pixels) // _WIDTH, alpha=True, float_buffer=True)
    try:
        image.pixels.foreach_set(pixels.ravel())
        with changed(exposure):
            saved = save_tiff(scene, image, "RGB")
    finally:
        bpy.data.images.remove(image)
    return saved[::-1].reshape(-1, 3)
