"""Reads the passes that Cycles has rendered from its memory, inside its own render: no file, no compositor."""

from __future__ import annotations

import contextlib
import ctypes
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

_buffers: dict[str, npt.NDArray[np.float32]] = {}


class PassReader:
    """What has been read from one render."""

    def __init__(self) -> None:
        # By Blender's name: H x W x C float32, contiguous, bottom row first. The next render overwrites them.
        self.passes: dict[str, npt.NDArray[np.float32]] = {}
        self.seconds: float = 0.0  # how long reading took
        self.error: Exception | None = None  # of a failed read; Blender only logs what an engine raises


@contextlib.contextmanager
def reading_passes(scene: str, layer: str, names: Sequence[str]) -> Iterator[PassReader]:
    """Read passes of a scene's view layer from each Cycles render within the `with` block.

    The engine's `render` is a Python function that calls into C++. Once it returns, `RenderEngine.get_result` holds the
    denoised passes. Their `rect.foreach_get` fills a float32 buffer in 0.3 ms for 640 x 480 RGBA; every other way to
    make an array of `rect` takes minutes. `names` are Blender's own names of the passes.
    """
    import cycles

    engine = cycles.CyclesRender
    original = engine.render
    reader = PassReader()

    def render(self: Any, depsgraph: Any) -> None:
        # The compositor may have other scenes rendered too, whose view layers have the same names.
        wanted = not self.is_preview and (depsgraph.scene.name, depsgraph.view_layer.name) == (scene, layer)
        original(self, depsgraph)
        # Do not touch the depsgraph from here on: in background mode Cycles has freed it.
        if not wanted:
            return
        start = time.perf_counter()
        try:
            result = self.get_result()
            rendered = next(found for found in result.layers if found.name == layer).passes
            for name in names:
                reader.passes[name] = _read(rendered[name], result.resolution_x, result.resolution_y)
        except Exception as error:
            reader.error = error
        reader.seconds = time.perf_counter() - start

    engine.render = render
    try:
        yield reader
    finally:
        engine.render = original


def _read(render_pass: Any, width: int, height: int) -> npt.NDArray[np.float32]:
    if not _has_pixels(render_pass, width, height):
        raise RuntimeError("Cycles rendered nothing")
    channels = render_pass.channels
    size = height * width * channels
    buffer = _buffers.get(render_pass.name)
    if buffer is None or len(buffer) != size:  # kept, because fresh memory costs more than reading does
        buffer = _buffers[render_pass.name] = np.empty(size, np.float32)
    try:
        render_pass.rect.foreach_get(buffer)
    except TypeError:  # Blender 3.4 wants the shape (pixels, channels), 4.5 and 5.0 want a flat buffer
        render_pass.rect.foreach_get(buffer.reshape(-1, channels))
    return buffer.reshape(height, width, channels)


def _has_pixels(render_pass: Any, width: int, height: int) -> bool:
    """Whether a pass may be read. It has no pixels after an error in the engine: then 3.4 crashes, and 4.5 gives zeros.

    Python has no way to tell, so this looks into the C struct: next, prev, int channels, char name[64], chan_id[8],
    float *rect, int rectx, recty (`RenderPass` in Blender 3.4's RE_pipeline.h). If the size of the image is not found
    at its offset, this Blender has another struct, and the pass is assumed to have pixels.
    """
    import bpy

    if bpy.app.version >= (4, 0):
        return True
    address = render_pass.as_pointer()
    if tuple((ctypes.c_int * 2).from_address(address + 104)) != (width, height):
        return True
    return bool(ctypes.c_void_p.from_address(address + 96).value)


def pass_names(scene: Any, view_layer: Any) -> Collection[str]:
    """Return Blender's own names of the passes that Cycles renders with the current settings."""
    from cycles import engine

    return [name for name, *_ in engine.list_render_passes(scene, view_layer)]
