"""`asyncblend demo`: live frames from several Blenders through a DataLoader, with their keypoints drawn."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image
from rich.console import Console

from ..config import StreamConfig
from ..pictures.canvas import Canvas
from ..pictures.drawing import POINT_COLOURS, point_mark
from .live import LiveLine
from .scripts import script

__all__ = ["demo"]


def demo(
    instances: Annotated[int, typer.Option(help="Blender processes.")] = 4,
    batches: Annotated[int, typer.Option(help="Batches to take; each becomes one picture.")] = 10,
    batch_size: Annotated[int, typer.Option(help="Frames in a batch.")] = 4,
    seed: Annotated[int, typer.Option(help="One seed, the same pictures.")] = 0,
    blender: Annotated[
        str | None, typer.Option(help='Blender\'s executable, its folder, or "bpy"; default: what is found.')
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures output_##.png.")] = Path("tmp"),
) -> None:
    """Render randomly turned and coloured cubes live, and write each batch as a figure with the cubes' corners drawn.

    The scene is `blender_scripts/cube.py`, 640x480. Pictures of an earlier demo in the folder are replaced.
    """
    from ..data.dataset import BlenderDataset, DataLoader

    if batches < 1 or batch_size < 1:
        raise typer.BadParameter("--batches and --batch-size must be at least 1")
    config = StreamConfig(
        script=script("cube.py"),
        instances=instances,
        length=batches * batch_size,
        seed=seed,
        ordered=True,  # one seed, the same pictures
        blender=blender,
    )
    console = Console()

    def noted(item: dict[str, Any]) -> dict[str, Any]:
        line.frame_came()
        return item

    dataset = BlenderDataset(config, transform=noted)
    line = LiveLine(console, dataset.stats, config.queue_size, config.length)
    try:
        with line:
            for number, batch in enumerate(DataLoader(dataset, batch_size=batch_size)):
                if number == 0:
                    _make_room(out)
                figure(batch).save(out / f"output_{number:02d}.png")
        line.summary(pictures=str(out / f"output_##.png ({batches})"))
    finally:
        dataset.close()


def _make_room(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("output_*.png"):
        old.unlink()


def figure(batch: dict[str, Any]) -> Image.Image:
    """A batch as a grid of its images, as square as can be (four: 2x2), with the keypoints `xy` as coloured dots.

    Args:
        batch: "image", B x H x W x 3 uint8, and "xy", B x K x 2 float pixel coordinates.
    """
    images, keypoints = batch["image"].numpy(), batch["xy"].numpy()
    count, height, width, _ = images.shape
    columns = math.ceil(math.sqrt(count))
    sheet = Image.new("RGB", (columns * width, math.ceil(count / columns) * height))
    marks = Canvas(sheet.width, sheet.height, None)
    for i, (image, points) in enumerate(zip(images, keypoints, strict=True)):
        left, top = i % columns * width, i // columns * height
        sheet.paste(Image.fromarray(image), (left, top))
        for colour, (x, y) in zip(POINT_COLOURS, points.tolist(), strict=False):
            point_mark(marks, left + x, top + y, colour, 5)
    sheet.paste(layer := marks.picture(), (0, 0), layer)
    return sheet
