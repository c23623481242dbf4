"""What Cycles has rendered, read in memory inside its own render: no file, no compositor."""

from __future__ import annotations

import contextlib
import ctypes
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

__all__ = ["Caught", "catching", "pass_names", "passes_obstacle", "saved_otherwise"]

_GREASE_PENCIL = {"GPENCIL", "GREASEPENCIL"}

_buffers: dict[str, npt.NDArray[np.float32]] = {}


class Caught:
    """The passes of one render."""

    def __init__(self) -> None:
        self.passes: dict[str, npt.NDArray[np.float32]] = {}
        """By Blender's own name: H x W x C float32, C contiguous, bottom row first. The next render overwrites them."""
        self.seconds = 0.0
        """What reading them took."""
        self.error: Exception | None = None
        """What went wrong: an error inside an engine only reaches Blender's log."""


@contextlib.contextmanager
def catching(layer: str, names: Sequence[str]) -> Iterator[Caught]:
    """Meanwhile, the passes of these names are read from each Cycles render of that view layer.

    The engine's `render` is Python that calls into C++. Once it returns, `RenderEngine.get_result` holds the passes,
    denoised. Their `rect.foreach_get` fills a float32 buffer in 0.3 ms for 640 x 480 RGBA; anything else that makes
    an array of `rect` takes minutes.
    """
    import cycles

    engine = cycles.CyclesRender
    original = engine.render
    caught = Caught()

    def render(self: Any, depsgraph: Any) -> None:
        asked_for = not self.is_preview and depsgraph.view_layer.name == layer
        original(self, depsgraph)
        # From here on the depsgraph must not be touched: in background mode Cycles has freed it.
        if not asked_for:
            return
        start = time.perf_counter()
        try:
            result = self.get_result()
            there = next(found for found in result.layers if found.name == layer).passes
            for name in names:
                caught.passes[name] = _read(there[name], result.resolution_x, result.resolution_y)
        except Exception as error:
            caught.error = error
        caught.seconds = time.perf_counter() - start

    engine.render = render
    try:
        yield caught
    finally:
        engine.render = original


def _read(render_pass: Any, width: int, height: int) -> npt.NDArray[np.float32]:
    if not _has_pixels(render_pass, width, height):
        raise RuntimeError("Cycles rendered nothing")
    channels = render_pass.channels
    buffer = _buffer(render_pass.name, height * width * channels)
    try:
        render_pass.rect.foreach_get(buffer)
    except TypeError:  # Blender 3.4 wants the shape (pixels, channels), 4.5 and 5.0 a flat one
        render_pass.rect.foreach_get(buffer.reshape(-1, channels))
    return buffer.reshape(height, width, channels)


def _buffer(name: str, size: int) -> npt.NDArray[np.float32]:
    """Memory for a pass, the same each time: fresh memory costs more than reading does."""
    buffer = _buffers.get(name)
    if buffer is None or len(buffer) != size:
        buffer = _buffers[name] = np.empty(size, np.float32)
    return buffer


def _has_pixels(render_pass: Any, width: int, height: int) -> bool:
    """Whether a pass may be read. After an error in the engine it has no pixels; 3.4 then crashes, 4.5 gives zeros.

    Nothing in Python tells, so this looks at the C struct: next, prev, int channels, char name[64], chan_id[8],
    float *rect, int rectx, recty (`RenderPass` in Blender 3.4's RE_pipeline.h). Where the size does not stand where
    it should, the struct is another, and the pass is taken to be sound.
    """
    import bpy

    if bpy.app.version >= (4, 0):
        return True
    address = render_pass.as_pointer()
    if tuple((ctypes.c_int * 2).from_address(address + 104)) != (width, height):
        return True
    return bool(ctypes.c_void_p.from_address(address + 96).value)


def pass_names(scene: Any, view_layer: Any) -> Collection[str]:
    """The passes that Cycles gives with the current settings."""
    from cycles import engine

    return [name for name, *_ in engine.list_render_passes(scene, view_layer)]


def passes_obstacle(scene: Any) -> str | None:
    """Why what Cycles has in memory is not yet the frame; None: it is."""
    render = scene.render
    if render.engine != "CYCLES":
        return f"the engine is {render.engine}"
    if render.use_multiview:
        return "render.use_multiview is on"
    if render.use_border and not render.use_crop_to_border:
        return "a border is rendered without cropping"
    scale = render.resolution_percentage / 100
    size = max(render.resolution_x, render.resolution_y) * scale
    if scene.cycles.use_auto_tile and size > scene.cycles.tile_size:
        return "Cycles renders in tiles (cycles.use_auto_tile), and puts them together later"
    return None


def saved_otherwise(scene: Any, *, compositing: bool, sequencing: bool) -> str | None:
    """Why Blender would save something else than what Cycles has in memory; None: the same.

    Args:
        scene: the scene.
        compositing: the scene has a compositor that is used.
        sequencing: the scene has strips that are used.
    """
    import bpy

    render = scene.render
    if compositing:
        return "the scene has compositor nodes"
    if sequencing:
        return "the scene has sequencer strips"
    if render.use_stamp:
        return "render.use_stamp writes into the image"
    if render.use_freestyle:
        return "Freestyle draws into the image"
    if len(scene.view_layers) > 1:
        return "the scene has several view layers"
    if getattr(render.image_settings, "color_management", "FOLLOW_SCENE") != "FOLLOW_SCENE":
        return "image_settings.color_management is not FOLLOW_SCENE"
    pencils = (getattr(bpy.data, name, ()) for name in ("grease_pencils", "grease_pencils_v3"))
    if any(pencils) and any(obj.type in _GREASE_PENCIL for obj in bpy.data.objects):
        return "grease pencil is drawn into the image"
    return None
