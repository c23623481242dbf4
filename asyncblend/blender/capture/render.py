"""render: the current scene as arrays, by the cheapest way that gives what Blender would save."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError
from . import cycles, labels
from .display import display_table
from .imagefile import render_result, save_exr, save_tiff
from .passes import find, missing
from .steps import has_compositor, has_strips, only_steps

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from .display import DisplayTable

__all__ = ["RenderInfo", "last_render", "render"]

_Array = npt.NDArray[Any]


class RenderInfo(NamedTuple):
    """How `render` got its last image."""

    backend: str
    """"memory": read from Cycles. "file": Blender wrote a file that exists only in memory."""
    reason: str
    """Why it had to be a file; "" for memory."""
    seconds_render: float
    """What Blender's own render took."""
    seconds_capture: float
    """All the rest of the call: reading, view transform, file."""


_last: RenderInfo | None = None


def last_render() -> RenderInfo | None:
    """How the last `render` of this process got its image, and how long it took; None before the first one."""
    return _last


def render(
    passes: Sequence[str] = (), *, color: str = "display", channels: str = "RGB", dtype: Any = None
) -> dict[str, Any]:
    """Render `bpy.context.scene` as it is now, with its own engine and settings.

    A Cycles frame is read from the engine's memory. Where Blender would save something else than that (compositor
    nodes, sequencer strips, stamps, Freestyle, grease pencil, several view layers, a border without crop, tiles), for
    another engine, and for a view transform that mixes the channels (Filmic, AgX), Blender writes a file that exists
    only in memory. `last_render` tells which it was, and why. The first frame with a new view transform, look, gamma or
    curve (not exposure) takes up to 0.1 s longer, as its table is made.

    The settings that are changed meanwhile are put back, also when the render fails: file format, dither, the passes'
    switches, and compositing and sequencer, which are off where they have nothing to do, as that costs time.
    `scene.render.use_persistent_data` is left alone. It saves a tenth to a third of a fast frame, and is yours to set,
    after a check that your frames stay the same. With it, Blender shows the old state of what it was not told of:
    `obj["name"] = x` without `obj.update_tag()`, `mesh.vertices.foreach_set` without `mesh.update()`, new pixels of an
    image even with `image.update()`. A new seed of Cycles is taken care of.

    Labels are exact: one value of the surface that is seen through the pixel's centre, not mixed with what is beside it
    (with depth of field or motion blur, through the pixel's first ray). A surface is what Cycles shades: glass, but
    not what is behind it, and no volume and no holdout. One whose alpha is below the view layer's
    `pass_alpha_threshold` is seen in that share of its pixels. Where no surface is seen is the background:

    - "depth": H x W float32, Blender units along the camera's axis; background +inf. (For a panoramic camera, which has
      no axis, the distance.)
    - "distance": H x W float32, from the camera's centre; background +inf. For an orthographic camera the depth.
    - "normal": H x W x 3 float32 of length 1, in the world's space; background 0. The shading normal, with smoothing
      and bump maps, that looks to the camera; the mean of the pixel's samples, so that it is mixed on edges.
    - "normal_camera": the same in the camera's space: x right, y down, z forward, as in OpenCV.
    - "instance": H x W int32, ids of objects; background 0. The view layer's objects that have a surface, also those
      that are hidden, have 1 to N in order of name. What an instance shows (of a collection, of particles, of geometry
      nodes) has the id of its source object; sources outside the view layer come after N, if they are seen.
    - "semantic": H x W int32, the objects' custom property `class_id`, a whole number from 1 on; 0 without one, and for
      the background.
    - "flow_forward", "flow_backward": H x W x 2 float32, pixels, x right, y down: where what the pixel shows will be in
      the next frame of the scene, and where it was in the one before, minus where it is; background 0. The mean of the
      pixel's samples. Blender evaluates both frames for it, and their handlers are called: what a script moves without
      keyframes or handlers stands still. Needs Cycles, without motion blur.
    - "albedo": H x W x 3 float32, the diffuse colour, scene-linear, smooth on edges as the image is; background 0, and
      so are metals and glass.

    With "instance" or "semantic" each object has its id as `pass_index` during the render, which only the Object Index
    of a material's Object Info node and the compositor's ID masks could see.

    Args:
        passes: names of labels, as above, and of passes of the view layer as Blender has them: "vector",
            "object_index", "material_index", "emission", "position", "uv", "mist", "combined" and others, or Blender's
            own names ("Depth", "Normal", "DiffCol", "CryptoObject00"), also of AOVs. They are switched on for this
            render. With several view layers those of `bpy.context.view_layer`.
        color: "display" for what Blender would save as an 8 bit PNG with dither off; "linear" for scene-linear
            values, without the view transform.
        channels: "RGB", over black where the film is transparent, or "RGBA". Alpha is straight for "display", as in
            a PNG, and multiplied into the colours for "linear", as in an OpenEXR file.
        dtype: of a linear image: float32 (None means it) or float16. A display image is uint8.

    Returns:
        `{"image": H x W x C, ...}`, and each label and pass by the name that was asked for; a pass is float32 H x W, or
        H x W x C with C > 1, in Blender's own units and with its own values for the background (a "Depth" of 1e10 in
        Cycles). All have the top row first, and are new, contiguous and writable. A display image from memory is within
        1/255 of what Blender would save; all others are to the bit. With "instance" or "semantic" there is also
        "instances", a list with a `{"id": 1, "name": "Cube", "class_id": 2, "class_name": "cube"}` for each id, in
        order, also of objects that are not seen. `class_name` is another custom property; without it `str(class_id)`,
        and without a class 0 and "".

    Raises:
        ConfigError: an argument is wrong, or there is no such pass; the message says which there are, or which engine
            has it. A class_id is no whole number from 1 on, or there are more objects than Blender can number (32767).
            Flow is asked for with motion blur, or with a camera whose movement Cycles leaves out of it: an animated
            shift or orthographic scale, in older Blenders an animated lens, in newer ones an orthographic camera that
            moves.
        RuntimeError: Blender could not render (no camera, no denoiser, ...) or wrote no image. The message holds
            Blender's own and says what to change.
    """
    global _last
    import bpy

    start = time.perf_counter()
    asked = labels.request(passes)
    kind = _image_dtype(color, channels, dtype)
    scene = bpy.context.scene
    layer = scene.view_layers[0] if len(scene.view_layers) == 1 else bpy.context.view_layer
    steps = has_compositor(scene), has_strips(scene)
    way = _way(scene, color, channels, *steps)

    with contextlib.ExitStack() as stack:
        session = stack.enter_context(labels.session(asked, scene, layer))
        stack.enter_context(only_steps(scene.render, *steps))
        own = _own_names(asked, scene, cycles.pass_names(scene, layer)) if way.readable else {}
        names = list(dict.fromkeys(own.values())) + (["Combined"] if way.complete else [])
        caught = stack.enter_context(cycles.catching(layer.name, names)) if names else cycles.Caught()
        seconds_render = -time.perf_counter()
        _blender_renders(scene)
        seconds_render += time.perf_counter() - caught.seconds
        _check(scene, caught, names)

        image: _Array
        if way.table is not None:
            image = way.table.apply(caught.passes["Combined"], channels)
        elif not way.reason:
            image = _first(len(channels), caught.passes["Combined"][::-1], kind)
        else:
            opaque = way.complete and bool((caught.passes["Combined"][..., 3] == 1).all())
            image = _saved_image(scene, color, channels, opaque)
        if way.readable:
            read = {name: caught.passes[own[name]][::-1] for name in own}
        else:
            read = _saved_passes(asked, scene, layer.name) if asked.passes else {}
        result = {"image": np.require(image, kind, ["C", "W"])} | session.values(read)

    seconds_capture = time.perf_counter() - start - seconds_render
    _last = RenderInfo("file" if way.reason else "memory", way.reason, seconds_render, seconds_capture)
    return result


class _Way(NamedTuple):
    """How an image is to be got."""

    readable: bool
    """Cycles has the passes in memory."""
    complete: bool
    """And its Combined is what Blender would save, but for the view transform."""
    table: DisplayTable | None
    """The view transform, where it is wanted and can be applied in memory."""
    reason: str
    """Why it must be a file; "" for memory."""


def _way(scene: Any, color: str, channels: str, compositing: bool, sequencing: bool) -> _Way:
    unreadable = cycles.passes_obstacle(scene)
    if unreadable is not None:
        return _Way(False, False, None, unreadable)
    other = cycles.saved_otherwise(scene, compositing=compositing, sequencing=sequencing)
    if other is not None:
        return _Way(True, False, None, other)
    if color == "linear":
        return _Way(True, True, None, "")
    view = scene.view_settings
    if view.use_curve_mapping and channels == "RGBA":
        return _Way(True, True, None, "the view's curves are applied while alpha is in the colours")
    table = display_table(scene)
    reason = "" if table else f"the view transform mixes the channels ({view.view_transform}, look {view.look})"
    return _Way(True, True, table, reason)


def _image_dtype(color: str, channels: str, dtype: Any) -> np.dtype[Any]:
    if color not in ("display", "linear"):
        raise ConfigError(f"color must be 'display' or 'linear', got {color!r}")
    if channels not in ("RGB", "RGBA"):
        raise ConfigError(f"channels must be 'RGB' or 'RGBA', got {channels!r}")
    kinds = ("uint8",) if color == "display" else ("float32", "float16")
    try:
        kind = np.dtype(kinds[0] if dtype is None else dtype)
    except TypeError:
        kind = np.dtype(object)
    if kind.name not in kinds:
        raise ConfigError(f"dtype of a {color} image must be {' or '.join(kinds)}, got {dtype!r}")
    return kind


def _own_names(asked: labels.Request, scene: Any, there: Collection[str]) -> dict[str, str]:
    """What the engine calls the passes, by the name of the request."""
    found = {}
    for each in asked.passes:
        own = find(each, there)
        if own is None:
            raise missing(asked.reasons[each.name], each, scene.render.engine, there, labels.LABELS)
        found[each.name] = own
    return found


def _blender_renders(scene: Any) -> None:
    import bpy

    if scene.render.use_persistent_data:
        scene.update_tag()  # else a new seed of Cycles goes unnoticed
    try:
        bpy.ops.render.render(write_still=False)
    except RuntimeError as error:
        raise RuntimeError(_explain(scene, str(error).strip())) from error


def _check(scene: Any, caught: cycles.Caught, names: Sequence[str]) -> None:
    if caught.error is not None:
        raise caught.error
    if missing := set(names) - set(caught.passes):
        raise RuntimeError(_explain(scene, f"Cycles gave no {', '.join(sorted(missing))}"))


def _saved_image(scene: Any, color: str, channels: str, opaque: bool) -> _Array:
    try:
        if color == "linear":
            return save_exr(scene, render_result(), layers=False)[""][..., : len(channels)]
        if channels == "RGBA" or not opaque:
            return save_tiff(scene, render_result(), channels)
        saved = save_tiff(scene, render_result(), "RGBA")  # for RGB, Blender would first lay a copy over black
    except RuntimeError as error:
        raise RuntimeError(_explain(scene, str(error).strip())) from error
    return _first(3, saved, saved.dtype)


def _saved_passes(asked: labels.Request, scene: Any, layer: str) -> dict[str, _Array]:
    start = f"{layer}."
    saved = save_exr(scene, render_result(), layers=True)
    there = {name.removeprefix(start): array for name, array in saved.items() if name.startswith(start)}
    return {name: there[own] for name, own in _own_names(asked, scene, there).items()}


def _first(count: int, array: _Array, kind: np.dtype[Any]) -> _Array:
    """A copy of the first channels."""
    image = np.empty((*array.shape[:2], count), kind)
    for channel in range(count):  # several times faster than copying array[..., :count]
        image[..., channel] = array[..., channel]
    return image


def _explain(scene: Any, message: str) -> str:
    """Blender's message, with what to do about it where we know."""
    if "denois" in message.lower():
        return f"{message}. This Blender has no denoiser: set scene.cycles.use_denoising = False"
    if scene.camera is None:
        return f"{message}. Scene {scene.name!r} has no camera: set scene.camera to a camera object"
    if scene.render.use_multiview:
        return f"{message}. Stereo is not supported: set scene.render.use_multiview = False"
    return f"{message}. Scene {scene.name!r}, engine {scene.render.engine}: Blender's output above may say more"
