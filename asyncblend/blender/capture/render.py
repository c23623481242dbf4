"""render: the current scene as arrays, by the cheapest way that gives what Blender would save."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError
from . import spent
from .cycles import PassReader, pass_names, reading_passes
from .ids_alone import ids_alone
from .imagefile import render_result, save_exr, save_tiff
from .label_session import WITH_IDS, LabelSession, label_session
from .passes import passes_named
from .plan import has_strips, plan_capture, view_table
from .settings import changed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_Array = npt.NDArray[Any]

_LONG_NAME = 40  # bytes
_NOTHING = contextlib.nullcontext()
_NO_LABELS = contextlib.nullcontext(LabelSession([], [], {}, None, None))


class RenderInfo(NamedTuple):
    """How `render` got its last image."""

    backend: str
    """"memory" if the image was read from Cycles' memory, "file" if Blender wrote a file that existed only in memory."""
    reason: str
    """Why it had to be a file; "" for "memory"."""
    seconds_render: float
    """How long Blender itself rendered, the second render for ids included."""
    seconds_capture: float
    """How long all the rest of the call took: reading, view transform and file."""


_last: RenderInfo | None = None


def last_render() -> RenderInfo | None:
    """Return how the last `render` in this process got its image, and how long it took. None before the first one."""
    return _last


def render(
    passes: Sequence[str] = (), *, color: str = "display", channels: str = "RGB", dtype: Any = None
) -> dict[str, Any]:
    """Render `bpy.context.scene` as it is now, with its own engine and settings, and return arrays.

    A Cycles frame is read from the engine's memory. Otherwise it is read from a file that Blender writes, and that
    exists only in memory: with other engines; where Blender would save more than the engine's image (compositor nodes,
    sequencer strips, stamps, Freestyle, grease pencil, several view layers, a border without crop, tiles); and with a
    view transform that has many edges (False Color, and Standard with a white balance). `last_render` tells which of
    the two it was, and why.

    The first frame with a new view transform, look, gamma or curve (not exposure) takes up to 0.1 s longer, because a
    table is made for it. The table of a transform that mixes the channels (AgX, Filmic) holds only the colours that were
    seen so far, so later frames with new ones take longer too. If such a setting is drawn anew for each frame, each takes
    that much longer.

    All settings that are changed for the render are put back, also when it fails. A compositor without nodes is off
    meanwhile. `scene.render.use_persistent_data` is left alone: it saves a tenth to a third of a fast frame, so set it
    once you have checked that your frames stay the same. With it, Blender keeps showing the old state of whatever it was
    not told about: `obj["name"] = x` without `obj.update_tag()`, `mesh.vertices.foreach_set` without `mesh.update()`, and
    new pixels of an image even with `image.update()`. A new seed of Cycles is always noticed.

    Labels are exact: a pixel has the value of the one surface that is seen through its centre (with depth of field or
    motion blur, by its first ray). A surface is what Cycles shades: glass itself and not what is behind it, no volume
    and no holdout. A surface whose alpha is below the view layer's `pass_alpha_threshold` is seen in that share of its
    pixels. Pixels that show no surface are background. The labels are:

    - "depth": H x W float32, Blender units along the camera's axis, or from its centre if it is panoramic; background
      +inf.
    - "distance": H x W float32, Blender units from the camera's centre; background +inf. Equal to the depth for an
      orthographic camera.
    - "normal": H x W x 3 float32 of length 1, in world space; background 0. The shading normal, with smoothing and bump
      maps, on the side of the camera. It is the mean of the pixel's samples, so it is mixed on edges.
    - "normal_camera": the same in the camera's space: x right, y down, z forward, as in OpenCV.
    - "instance": H x W int32, the ids of objects; background 0. The view layer's objects that have a surface, also
      hidden ones, have the ids 1 to N in order of name. What an instance of a collection, of particles or of geometry
      nodes shows has the id of its source object. Sources outside the view layer follow after N, if they are seen.
      `annotate(..., instances=True)` gives each copy an id, and the class of the empty that shows it.
    - "semantic": H x W int32, the objects' custom property `class_id`, a whole number from 1 on; 0 for objects without
      one and for the background.
    - "flow_forward", "flow_backward": H x W x 2 float32, pixels, x right, y down: from here to where the point that the
      pixel shows will be in the next frame of the scene, or was in the frame before; background 0. It is the mean of
      the pixel's samples. Blender evaluates both frames and calls their handlers; what a script moves without keyframes
      or handlers stands still. It needs Cycles, without motion blur.
    - "albedo": H x W x 3 float32, the diffuse colour, scene-linear, as smooth on edges as the image; 0 for the
      background, metals and glass.

    Engines other than Cycles have no ids. With them "instance" and "semantic" come from a second render, right after the
    image: by Cycles, with one sample in each pixel's centre, without motion blur and depth of field, and without the
    compositor. So Blender calls its handlers of renders twice. Such a mask shows what Cycles shows of the same scene.
    That differs from the image

    - in Workbench, which knows no materials: what their alpha cuts out is solid there, and what their displacement moves
      is unmoved. EEVEE follows a material's output for EEVEE, and its culling of back faces; Cycles follows neither;
    - where Cycles leaves out a surface (ray visibility, holdouts, shadow catchers), and the other engine draws it;
    - for hair and curves, which have another thickness in each engine;
    - on edges, where the image is a mean over the pixel. Grease pencil and volumes have no ids, as with Cycles.

    With "instance" or "semantic" each object has its id as `pass_index` during the render. Only the Object Index of a
    material's Object Info node and the compositor's ID masks can notice that.

    Args:
        passes: Names of labels, as above, and of passes of the view layer: "vector", "object_index", "material_index",
            "emission", "position", "uv", "mist", "combined" and others, or Blender's own names ("Depth", "Normal",
            "DiffCol", "CryptoObject00"), also those of AOVs. They are switched on for this render. With several view
            layers they are those of `bpy.context.view_layer`.
        color: "display" for what Blender would save as an 8 bit PNG with dither off; "linear" for scene-linear values.
        channels: "RGB", over black where the film is transparent, or "RGBA". Alpha is straight for "display", as in a
            PNG, and multiplied into the colours for "linear", as in an OpenEXR file.
        dtype: The dtype of a linear image: float32 (also for None) or float16. A display image is uint8.

    Returns:
        `{"image": H x W x C, ...}`, and each label and pass by the name by which it was asked for. All arrays are new,
        contiguous and writable, and have the top row first. A display image from memory is within 1/255 of what Blender
        would save; all other images are the same to the bit. A pass is float32, H x W or H x W x C with C > 1, in
        Blender's own units and with its own values for the background (a "Depth" of 1e10 in Cycles). With "instance" or
        "semantic" there is also "instances": a list with `{"id": 1, "name": "Cube", "class_id": 2, "class_name":
        "cube"}` for each id, in order, also for objects that are not seen. A linked object that shares its name with
        another is called "Cube [library.blend]". `class_name` is another custom property, and
        `str(class_id)` by default. An object without a class has 0 and "".

    Raises:
        ConfigError: An argument is wrong, or there is no such pass. A class_id is not a whole number from 1 on, or there
            are more objects than Blender can number (32767). Flow is asked for with motion blur, or with a camera whose
            movement Cycles leaves out of it: an animated shift or orthographic scale, in older Blenders an animated
            lens, in newer ones an orthographic camera that moves. The message says what to change.
        RuntimeError: Blender could not render (no camera, no denoiser, ...) or wrote no image. The message holds
            Blender's own message and says what to change.
    """
    global _last
    import bpy

    image_dtype = _image_dtype(color, channels, dtype)
    scene = bpy.context.scene
    layer = _layer_of(scene)
    names = [wanted.name for wanted in passes_named(passes)]
    ids = [name for name in names if name in WITH_IDS and scene.render.engine != "CYCLES"]
    others = [name for name in names if name not in ids]
    result, info = _rendered(scene, layer, others, color, channels, image_dtype)
    if ids:
        with ids_alone(scene, layer):
            # Its image is not wanted, and "linear" is the cheapest one.
            masks, more = _rendered(scene, layer, ids, "linear", "RGB", np.dtype(np.float32))
        found = {**masks, **result}
        result = {name: found[name] for name in ("image", *names, "instances")}
        info = info._replace(
            seconds_render=info.seconds_render + more.seconds_render,
            seconds_capture=info.seconds_capture + more.seconds_capture,
        )
    _last = info
    spent.add(info.seconds_render, info.seconds_capture)
    return result


def _rendered(
    scene: Any, layer: Any, passes: Sequence[str], color: str, channels: str, image_dtype: np.dtype[Any]
) -> tuple[dict[str, Any], RenderInfo]:
    """Render once, with the engine that is set."""
    start = time.perf_counter()
    plan = plan_capture(scene)
    # A change of a setting has Blender evaluate the scene once more, and it is a large part of a small frame to prepare
    # for labels that nobody wants.
    off = changed([(scene.render, "use_compositing", False)]) if plan.compositor_off else _NOTHING
    with label_session(passes, scene, layer) if passes else _NO_LABELS as session, off:
        own_names = session.own_names(pass_names(scene, layer)) if passes and plan.passes_in_memory else {}
        names = list(dict.fromkeys(own_names.values())) + (["Combined"] if plan.image_in_memory else [])
        with reading_passes(scene.name, layer.name, names) if names else contextlib.nullcontext(PassReader()) as reader:
            render_start = time.perf_counter()
            _run_blender(scene)
            seconds_render = time.perf_counter() - render_start - reader.seconds
        if reader.error is not None:
            raise reader.error
        if missing := set(names) - set(reader.passes):
            raise RuntimeError(_explain(scene, f"Cycles gave no {', '.join(sorted(missing))}"))

        combined: Any = reader.passes.get("Combined")
        table, reason = None, plan.reason
        if color == "display" and not reason:
            table, reason = view_table(scene, channels)
        if table is not None:
            image: _Array = table.apply(combined, channels)
        elif not reason:
            image = _first_channels(len(channels), combined[::-1], image_dtype)
        else:
            opaque = bool((combined[..., 3] == 1).all()) if plan.image_in_memory else plan.opaque
            image = np.require(_saved_image(scene, color, channels, opaque), image_dtype, ["C", "W"])
        result: dict[str, Any] = {"image": image}
        if passes:
            if plan.passes_in_memory:
                arrays = {name: reader.passes[own][::-1] for name, own in own_names.items()}
            else:
                arrays = _saved_passes(session, scene, layer.name) if session.passes else {}
            result |= session.values(arrays)

    seconds_capture = time.perf_counter() - start - seconds_render
    return result, RenderInfo("file" if reason else "memory", reason, seconds_render, seconds_capture)


def _layer_of(scene: Any) -> Any:
    """Return the view layer whose labels and passes are asked for."""
    import bpy

    return scene.view_layers[0] if len(scene.view_layers) == 1 else bpy.context.view_layer


def _image_dtype(color: str, channels: str, dtype: Any) -> np.dtype[Any]:
    if color not in ("display", "linear"):
        raise ConfigError(f"color must be 'display' or 'linear', got {color!r}")
    if channels not in ("RGB", "RGBA"):
        raise ConfigError(f"channels must be 'RGB' or 'RGBA', got {channels!r}")
    allowed = ("uint8",) if color == "display" else ("float32", "float16")
    try:
        found = np.dtype(allowed[0] if dtype is None else dtype)
    except TypeError:
        found = np.dtype(object)
    if found.name not in allowed:
        raise ConfigError(f"dtype of a {color} image must be {' or '.join(allowed)}, got {dtype!r}")
    return found


def _run_blender(scene: Any) -> None:
    import bpy

    if scene.render.use_persistent_data:
        scene.update_tag()  # otherwise Cycles does not notice a new seed
    handlers = bpy.app.handlers
    try:
        with _new_objects_noticed() if handlers.render_init or handlers.render_pre else _NOTHING:
            bpy.ops.render.render(write_still=False)
    except RuntimeError as error:
        raise RuntimeError(_explain(scene, str(error).strip())) from error


@contextlib.contextmanager
def _new_objects_noticed() -> Iterator[None]:
    """Let handlers of `render_pre` add objects to the scene within the `with` block: Blender 5.2 and 5.3 crash then.

    Blender goes on with a list of the view layer's objects that is out of date. Asking for the active object has it make
    the list anew, which takes no time where nothing was added.
    """
    import bpy

    def notice(scene: Any, *_: Any) -> None:
        for layer in scene.view_layers:
            _ = layer.objects.active

    handlers = bpy.app.handlers.render_pre
    handlers.append(notice)  # the last one, after the user's own
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # another handler may have cleared the list
            handlers.remove(notice)


def _saved_image(scene: Any, color: str, channels: str, opaque: bool) -> _Array:
    try:
        if color == "linear":
            return save_exr(scene, render_result(), layers=False)[""][..., : len(channels)]
        if channels == "RGB" and opaque:
            # To save RGB takes half as long again: Blender lays a copy over black, and then leaves out the alpha.
            saved = save_tiff(scene, render_result(), "RGBA")
            if saved[..., 3].min() == 255:
                return _first_channels(3, saved, saved.dtype)
        return save_tiff(scene, render_result(), channels)
    except RuntimeError as error:
        raise RuntimeError(_explain(scene, str(error).strip())) from error


def _saved_passes(session: LabelSession, scene: Any, layer: str) -> dict[str, _Array]:
    saved, prefix = save_exr(scene, render_result(), layers=True), f"{layer}."
    if len(layer.encode()) > _LONG_NAME and not any(name.startswith(prefix) for name in saved):
        raise ConfigError(
            f"the name of view layer {layer!r} is so long that Blender cuts the names of its passes in files, where engines "
            f"other than Cycles have them: shorten it to {_LONG_NAME} bytes"
        )
    available = {name.removeprefix(prefix): array for name, array in saved.items() if name.startswith(prefix)}
    return {name: available[own] for name, own in session.own_names(available).items()}


def _first_channels(count: int, array: _Array, dtype: np.dtype[Any]) -> _Array:
    """Return a copy of the first channels."""
    image = np.empty((*array.shape[:2], count), dtype)
    for channel in range(count):  # several times faster than to copy array[..., :count]
        image[..., channel] = array[..., channel]
    return image


def _explain(scene: Any, message: str) -> str:
    """Return Blender's message, with what to do about it where that is known."""
    if "denois" in message.lower():
        return f"{message}. This Blender has no denoiser: set scene.cycles.use_denoising = False"
    if scene.camera is None:
        return f"{message}. Scene {scene.name!r} has no camera: set scene.camera to a camera object"
    if not (layer := _layer_of(scene)).use:
        return f"{message}. View layer {layer.name!r} is not rendered: set its `use` to True"
    if has_strips(scene):
        return f"{message}. The sequencer shows strips in place of the scene: set scene.render.use_sequencer = False"
    if scene.render.use_multiview:
        return f"{message}. Stereo is not supported: set scene.render.use_multiview = False"
    return f"{message}. Scene {scene.name!r}, engine {scene.render.engine}: Blender's output above may say more"
