"""`asyncblend inspect`: see what is trained on, as one picture."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image
from rich.console import Console

from ..aio import loop_factory
from ..config import StreamConfig, check_whole
from ..errors import ConfigError
from ..pictures import contact_sheet
from ..recording import Recording, is_recording
from .config_file import load_config
from .live import LiveLine

__all__ = ["inspect"]

_MOST = 100  # samples: more would not be looked at, and the picture would not fit into memory


def inspect(
    source: Annotated[
        Path,
        typer.Argument(help="A script.py, a TOML file of StreamConfig's fields, or a recording's folder."),
    ],
    out: Annotated[Path, typer.Option(help="The picture: .png, .jpg or .webp.")] = Path("sheet.png"),
    samples: Annotated[int, typer.Option(help="How many, from the first on.")] = 4,
    instances: Annotated[int | None, typer.Option(help="Blender processes.")] = None,
    blender: Annotated[str | None, typer.Option(help='Executable, folder, or "bpy".')] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the stream.")] = None,
) -> None:
    """Draw samples with their labels into one picture: boxes, names, keypoints and masks on the image, and a tile for
    each label of `bl.render`. What else a sample has is listed as text.

    3D boxes are drawn if the sample also has its camera's K and world_to_camera; of an orthographic camera, then also
    "orthographic": True.
    """
    check_whole("--samples", samples, 1)
    if samples > _MOST:
        raise ConfigError(f"--samples can be {_MOST} at most; got {samples}")
    _check_picture(out)
    console = Console()
    given = {"instances": instances, "blender": blender, "seed": seed}
    options = {name: value for name, value in given.items() if value is not None}
    if source.is_dir():
        if options:
            raise ConfigError(
                f"{source} is a folder, so nothing is rendered: leave out {', '.join('--' + name for name in options)}"
            )
        if not is_recording(source):
            raise ConfigError(
                f"{source} is a folder, but no recording; inspect takes a script, a TOML file, or a folder that "
                f"`asyncblend record` wrote"
            )
        items, seed = _recorded(source, samples)
    else:
        if source.suffix != ".toml":
            options.setdefault("instances", min(2, samples))  # for a few samples, starting Blenders takes longest
        config = load_config(source, **options)
        length = samples if config.length is None else min(samples, config.length)
        config = dataclasses.replace(config, length=length, ordered=True)
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            items = runner.run(_rendered(config, console))
        seed = config.seed
    count = f"{len(items)} sample{'s' if len(items) > 1 else ''}"
    sheet = contact_sheet(items, source.resolve().name, f"{count}, seed {seed}")
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out)
    console.print(f"{count} in {out}, {sheet.width} x {sheet.height} pixels", markup=False, highlight=False)


def _check_picture(out: Path) -> None:
    """
    Raises:
        ConfigError: Pillow cannot write such a file.
    """
    known = Image.registered_extensions()
    if known.get(out.suffix.lower()) not in Image.SAVE:
        raise ConfigError(f"--out {str(out)!r} is no name of a picture; take one that ends with .png, .jpg or .webp")


def _recorded(folder: Path, count: int) -> tuple[list[dict[str, Any]], Any]:
    """The first samples of a recording, and its seed."""
    recording = Recording(folder)
    items = [_item(sample, sample.index, sample.params) for sample in itertools.islice(recording, count)]
    return items, recording.about.get("seed")


async def _rendered(config: StreamConfig, console: Console) -> list[dict[str, Any]]:
    from ..stream.stream import BlenderStream  # not above: `doctor` must run where pyzmq is missing

    frames = BlenderStream(config)
    line = LiveLine(console, frames.stats, config.queue_size, config.length)
    items = []
    with line:
        async with frames:
            async for frame in frames:
                line.frame_came()
                items.append(_item(frame, frame.index, frame.params))
    return items


def _item(values: Mapping[str, Any], index: int, params: Mapping[str, Any]) -> dict[str, Any]:
    return {"params": dict(params), **values, "index": index}
