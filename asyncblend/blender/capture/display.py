"""The scene's view transform as a table, for images that are read from memory. Blender itself fills the table."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from .channel_table import fill_channel_table
from .colour_table import fill_colour_table
from .shown import shown, view_settings

if TYPE_CHECKING:
    from collections.abc import Callable

_BLOCK = 1 << 16  # pixels in one step, so that its arrays stay in the processor's cache and need no fresh memory


class Table(Protocol):
    """A view transform with exposure 0."""

    def write(self, linear: npt.NDArray[np.float32], image: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_] | None:
        """Write the display values of H x W x 4 pixels into an image's first three channels.

        Returns:
            H x W, true for pixels that the table does not have; None if it has them all.
        """


class DisplayTable:
    """A view transform with the scene's exposure.

    Args:
        table: The view transform.
        show: Returns the N x 3 display values of N x 3 scene-linear colours, for what is not in the table.
        exposure: By how many stops images are made brighter first.
    """

    def __init__(
        self, table: Table, show: Callable[[npt.NDArray[np.float32]], npt.NDArray[Any]], exposure: float = 0.0
    ) -> None:
        self._table = table
        self._show = show
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
        left = []
        for start in range(0, len(linear), rows):
            part = from_below[start : start + rows]
            pixels = self._prepared(linear[start : start + rows], part)
            missing = self._table.write(pixels, part)
            if missing is not None:
                left.append((part, missing, pixels[missing][:, :3]))
        if left:
            values = self._show(np.concatenate([colours for *_, colours in left]))
            for part, missing, colours in left:
                part[..., :3][missing], values = values[: len(colours)], values[len(colours) :]
        return image

    def _prepared(self, linear: npt.NDArray[np.float32], image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the pixels with exposure and straight alpha, if the image has alpha, which is written."""
        if image.shape[2] == 4:
            alpha = linear[..., 3]
            image[..., 3] = alpha.clip(0, 1) * np.float32(255) + np.float32(0.5)
            if not (alpha == 1).all():
                linear = linear / np.where(alpha == 0, np.float32(1), alpha)[..., None]
        return linear if self._scale == 1 else linear * self._scale


def display_table() -> DisplayTable | None:
    """Return the current scene's view transform with look, exposure, gamma, curves and display device as a table.

    Blender fills the table: a float image that holds the table's colours is saved in memory with the scene's settings.
    For a transform that treats each channel by itself that takes 50 to 100 ms, at once; for others, such as Filmic and
    AgX, it is done in pieces as images need them. It is done once for each combination of settings; the last few tables
    are kept. A change of exposure alone needs no new table. Use it at once: the colours that it lacks are shown with the
    settings of that moment.

    Returns:
        None for a transform with too many edges, such as False Color, or Standard with a white balance.
    """
    import bpy

    scene = bpy.context.scene
    view = scene.view_settings
    if view.view_transform == "False Color":  # of which Blender 3.4 cannot save 16 bits: it aborts
        return None
    if (table := _table(view_settings(scene))) is None:
        return None
    exposure = 0.0 if view.use_curve_mapping else view.exposure  # Blender applies the curves before the exposure
    return DisplayTable(table, _show, exposure)


@functools.lru_cache(maxsize=8)  # of half a megabyte each, or of up to 35 where the channels are mixed
def _table(settings: tuple[Any, ...]) -> Table | None:
    """Have Blender fill a table for the current scene, whose settings these are."""
    return fill_channel_table(_show) or fill_colour_table(_show)


def _show(colours: npt.NDArray[np.float32], bits: int = 8) -> npt.NDArray[Any]:
    import bpy

    return shown(bpy.context.scene, colours, bits)
