"""`asyncblend demo`: live frames from several Blenders through a DataLoader, with their keypoints drawn."""

from __future__ import annotations

import math
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config import StreamConfig
from ..scripts import script
from .live import LiveLine
from .needs import require
from .options import BlenderOption
from .outputs import check_file, writing
from .terminal import Terminal

if TYPE_CHECKING:
    from PIL import Image

_WRITTEN = re.compile(r"output_([0-9]{2}|[1-9][0-9]{2,})\.png")
"""The names of the pictures. Others are the user's own files."""


def demo(
    instances: Annotated[
        int, typer.Option(metavar="N", help="How many Blender processes render at the same time.")
    ] = 4,
    batches: Annotated[
        int, typer.Option(metavar="N", help="How many batches to render. Each becomes one picture.")
    ] = 10,
    batch_size: Annotated[int, typer.Option(metavar="N", help="How many frames a batch has.")] = 4,
    seed: Annotated[int, typer.Option(metavar="N", help="The same seed gives the same pictures.")] = 0,
    blender: BlenderOption = None,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="The folder for the pictures, output_00.png and so on.")
    ] = Path("tmp"),
) -> None:
    """Render cubes, and mark their corners.

    It shows a sample's whole way, from Blender to PyTorch: Blender renders `blender_scripts/cube.py` at 640x480, with
    another turn and colour each time, and a PyTorch DataLoader receives the frames while they come. Each batch becomes
    a picture. Pictures of an earlier demo in the folder are replaced.

    Examples:

        asyncblend demo
        asyncblend demo --instances 2 --batches 3 --out pictures
    """
    require("torch", "PIL")
    if batches < 1 or batch_size < 1:
        raise typer.BadParameter("--batches and --batch-size must be at least 1")
    check_file("--out", out / "output_00.png")
    try:
        from ..data.dataset import BlenderDataset, DataLoader
    except OSError as error:  # torch says so of a shared library
        raise ImportError(str(error), name="torch") from error

    options: dict[str, Any] = {"instances": instances, "length": batches * batch_size, "seed": seed, "blender": blender}
    # Without an order, the same seed would give the same frames in other pictures.
    config = StreamConfig(script=script("cube.py"), ordered=True, **options)

    def counted(item: dict[str, Any]) -> dict[str, Any]:
        line.frame_came()
        return item

    dataset = BlenderDataset(config, transform=counted)
    line, saved = LiveLine(config, dataset.stats), 0
    try:
        with line:
            for number, batch in enumerate(DataLoader(dataset, batch_size=batch_size)):
                picture = figure(batch)
                with writing("--out", out):
                    if number == 0:
                        out.mkdir(parents=True, exist_ok=True)
                        for old in [one for one in out.iterdir() if _WRITTEN.fullmatch(one.name)]:
                            old.unlink()
                    picture.save(out / f"output_{number:02d}.png")
                saved += 1
    finally:
        if saved:  # after Ctrl-C, those that are finished
            line.summary(pictures=str(out / f"output_##.png ({saved})"))
        dataset.close()
    _print_next_steps(out, blender)


def _print_next_steps(out: Path, blender: str | None) -> None:
    """Print what to do next, with the same Blender."""
    options = "" if blender is None else f" --blender {shlex.quote(blender)}"
    program = "asyncblend" if shutil.which("asyncblend") else _as_called()
    Terminal().print(
        f"""
Look at {out / "output_00.png"}. Then go on:

  {program} inspect shapes.py{options}
      draws the labels that there are into sheet.png
  {program} inspect model.py{options} -- part.glb
      does so with your own mesh, in random scenes: GLB, OBJ, STL and others
  docs/getting-started.md
      leads from here to a network that is trained"""
    )


def _as_called() -> str:
    """Return how this program was started, such as .venv/bin/asyncblend, where the PATH does not have it."""
    if Path(sys.argv[0]).name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m asyncblend"
    return shlex.quote(sys.argv[0])


def figure(batch: dict[str, Any]) -> Image.Image:
    """Return the images of a batch in a grid, as square as possible, with a coloured dot at each keypoint.

    The batch has "image", B x H x W x 3 uint8, and "xy", B x K x 2 float pixel coordinates.
    """
    from PIL import Image

    from ..pictures.canvas import Canvas
    from ..pictures.drawing import POINT_COLOURS, point_mark

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
