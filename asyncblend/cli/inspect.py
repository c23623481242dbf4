"""`asyncblend inspect`: draw samples with their labels into one picture."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from ..checks import check_whole
from ..errors import NOBODY_STEPS, ConfigError, SampleError
from .config_file import completed, load_config
from .live import watch
from .options import BlenderOption, InstancesOption, SceneOption, SeedOption, check_source, refuse_rendering
from .outputs import check_file, writing
from .terminal import Terminal

if TYPE_CHECKING:
    from ..recording import Recording
    from ..stream.frame import Frame

_MOST_SAMPLES = 100  # a picture of more would not fit into memory, and nobody could look at it


class _Drawn(NamedTuple):
    """What is drawn: the values of a frame, and which step of an episode it is, or None if it is a whole sample."""

    item: dict[str, Any]
    step: int | None


def inspect(
    context: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE", help="A script.py, a TOML file with StreamConfig's fields, or a folder with a recording."
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="The picture to write: a .png, .jpg, .webp or .gif file.")
    ] = Path("sheet.png"),
    samples: Annotated[
        int, typer.Option(metavar="N", help="How many samples to draw, or frames of episodes, from the first one on.")
    ] = 4,
    scene: SceneOption = None,
    instances: InstancesOption = None,
    blender: BlenderOption = None,
    seed: SeedOption = None,
) -> None:
    """Draw samples with their labels into one picture.

    Boxes, class names, keypoints and masks are drawn onto the image, each other image and label of pixels gets a tile
    of its own, whatever its name, and what else a sample has is listed as text. Points are drawn if they are named "xy",
    or if the sample declares their names: "points": ["corners"], or {"corners": "left"} for an image of another name.
    3D boxes need the camera in the sample: its K and world_to_camera, and "orthographic": True for an orthographic
    camera. Of an environment the beginnings of its episodes are drawn.

    Examples:

        asyncblend inspect scene.py --out sheet.png
        asyncblend inspect scene.py --scene room.blend -- --level 3
        asyncblend inspect model.py -- mug.glb --physics
        asyncblend inspect recording --samples 9
    """
    from ..pictures import contact_sheet

    check_whole("--samples", samples, 1)
    if samples > _MOST_SAMPLES:
        raise ConfigError(f"--samples can be {_MOST_SAMPLES} at most; got {samples}")
    _check_picture(out)
    check_source(source)
    options = {"scene": scene, "instances": instances, "blender": blender, "seed": seed}
    if source.is_dir():
        refuse_rendering(source, options, context.args)
        drawn, seed = _recorded(source, samples)
    else:
        drawn, seed = _rendered(source, samples, {**options, "script_args": context.args})
    what = "sample" if all(step is None for _, step in drawn) else "frame"
    count = f"{len(drawn)} {what}{'s' if len(drawn) > 1 else ''}"
    items, steps = [one.item for one in drawn], [one.step for one in drawn]
    sheet = contact_sheet(items, source.resolve().name, f"{count}, seed {seed}", steps=steps)
    with writing("--out", out):
        out.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(out)
    Terminal().print(f"{count} in {out}, {sheet.width} x {sheet.height} pixels")


def _check_picture(out: Path) -> None:
    """Raise a ConfigError if Pillow cannot write such a file, or nobody can: before rendering, not after it."""
    from PIL import Image

    if Image.registered_extensions().get(out.suffix.lower()) not in Image.SAVE:
        raise ConfigError(
            f"--out {str(out)!r} is no name of a picture; take one that ends with .png, .jpg, .webp or .gif"
        )
    check_file("--out", out)


def _recorded(folder: Path, count: int) -> tuple[list[_Drawn], Any]:
    """Return the first samples of a recording, or as many frames of episodes, and its seed."""
    from ..recording import Recording, is_recording

    if not is_recording(folder):
        raise ConfigError(
            f"{folder} is a folder, but no recording; inspect takes a script, a TOML file, or a folder that "
            f"`asyncblend record` wrote"
        )
    recording = Recording(folder)
    return list(itertools.islice(_frames(recording), count)), recording.about.get("seed")


def _frames(recording: Recording) -> Iterator[_Drawn]:
    """Yield all frames of a recording."""
    for sample in recording:
        for step in range(sample.steps):
            yield _drawn(sample.frame(step), sample.index, sample.params, step if sample.steps > 1 else None)


def _rendered(source: Path, count: int, options: dict[str, Any]) -> tuple[list[_Drawn], int]:
    """Render the first samples, or as many frames of episodes, and return them with the seed.

    Of an environment, whose steps nobody takes here, the beginnings of episodes are rendered.
    """
    if source.suffix != ".toml" and options["instances"] is None:
        options["instances"] = min(2, count)  # for a few samples, starting more Blenders takes longer than rendering
    config = load_config(source, **options)
    length = count if config.length is None else min(count, config.length)
    config = dataclasses.replace(config, length=length, ordered=True)
    drawn: list[_Drawn] = []

    def seen(frame: Frame) -> None:
        whole = frame.step == 0 and frame.last
        drawn.append(_drawn(frame, frame.index, frame.params, None if whole else frame.step))

    try:
        watch(config, seen, most=length)
    except SampleError as error:
        if NOBODY_STEPS not in str(error) or config.params is not None:
            raise
        drawn.clear()
        watch(dataclasses.replace(config, params={"render": True}), seen, most=length)
    return drawn, completed(config).seed


def _drawn(values: Mapping[str, Any], index: int, params: Mapping[str, Any], step: int | None) -> _Drawn:
    return _Drawn({"params": dict(params), **values, "index": index}, step)
