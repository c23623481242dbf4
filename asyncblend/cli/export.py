"""`asyncblend export`: write a recording, or what a script renders, in the format of other tools."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from .. import __version__
from .config_file import completed, load_config
from .live import LiveLine, Waiting, facts_table
from .options import (
    BlenderOption,
    InstancesOption,
    LengthOption,
    SceneOption,
    SeedOption,
    check_source,
    refuse_rendering,
)
from .terminal import STDERR, Terminal

if TYPE_CHECKING:
    from ..config import StreamConfig
    from ..export import Report
    from ..recording import Recording

Items = Generator[Any, None, None]


def export(
    context: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A folder that `asyncblend record` wrote, a script.py, or a TOML file with StreamConfig's fields.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="The folder to write into. It must be empty, or not exist yet.")
    ],
    format: Annotated[
        str,
        typer.Option(
            metavar="FORMAT", help="The format to write: bop, coco, parquet or yolo.", autocompletion=lambda: _formats()
        ),
    ] = "coco",
    val: Annotated[
        float,
        typer.Option(
            metavar="SHARE", help="The share of samples for validation, such as 0.1. A sample's index alone decides."
        ),
    ] = 0.0,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="TASK",
            help="With --format yolo: detect (the default), segment or pose.",
            autocompletion=lambda: _tasks(),
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite/--no-overwrite", help="Replace an earlier export in the folder.")
    ] = False,
    scene: SceneOption = None,
    length: LengthOption = None,
    instances: InstancesOption = None,
    blender: BlenderOption = None,
    seed: SeedOption = None,
) -> None:
    """Write images and labels for other tools.

    They come from a recording, or are rendered now, each once, without a recording. For all formats but parquet, which
    takes any values, the samples must have the labels of `bl.render(("instance",))` and of `bl.annotate(objects)`; if
    something is missing, an error says what gives it.
    After an error, or Ctrl-C, the folder is as it was before: an export is there as a whole or not at all.

    The formats:

        coco     JSON with boxes, masks and keypoints, and images: for pycocotools and most detectors
        yolo     text files and data.yaml: `yolo detect train data=FOLDER/data.yaml`
        bop      6D poses, masks and depth in BOP's scenes; needs bl.annotate(..., silhouettes=True) and K
        parquet  all values, in typed columns: `datasets.load_dataset("FOLDER")`

    Examples:

        asyncblend export recording --out coco
        asyncblend export scene.py --length 100 --out coco --val 0.1 --overwrite
        asyncblend export recording --format yolo --task segment --val 0.1 --out yolo
        asyncblend export scene.py --scene room.blend --length 100 --format parquet --out rooms -- --level 3
    """
    from ..export import check_format
    from ..export import export as export_items
    from ..export.plan import Plan
    from ..recording import Recording
    from ..stream.indices import own_indices

    check_format(format)
    check_source(source)
    options = {"scene": scene, "length": length, "instances": instances, "blender": blender, "seed": seed}
    if source.is_file() or source.suffix in (".py", ".toml"):
        config = load_config(source, script_args=context.args, **options)
        if config.length is None:
            raise typer.BadParameter("how many samples? Such as --length 1000", param_hint="--length")
        Plan(val=val).check(own_indices(config))  # before anything is rendered
        items = _rendered(dataclasses.replace(config, ordered=True))
        whole = completed(config)
        made_of: Mapping[str, Any] = {"script": Path(whole.script).name, "seed": whole.seed}
    else:
        refuse_rendering(source, options, context.args)
        samples = Recording(source)
        items, made_of = _recorded(samples), samples.about
    done, before = _Counted(items), _identity(out)
    try:
        with contextlib.closing(items):
            info = _info(source, made_of)
            report = export_items(done, out, format, val=val, task=task, overwrite=overwrite, info=info)
    except KeyboardInterrupt:
        if _identity(out) == before:
            STDERR.print(f"Stopped after {done.count} samples: none of them is in {out}, which is as it was before.")
        else:
            STDERR.print(f"Stopped when all {done.count} samples were in {out}: the export is whole.")
        raise
    console = Terminal()
    console.print(_table(report, out))
    for note in report.notes:
        console.print(f"note: {note}", style="yellow")


def _formats() -> list[str]:
    from ..export import FORMATS

    return list(FORMATS)


def _tasks() -> list[str]:
    from ..export import TASKS

    return list(TASKS)


def _recorded(samples: Recording) -> Items:
    """Yield the samples of a recording, which are counted meanwhile."""
    with Waiting("exporting", unit="samples", total=len(samples)) as line:
        for done, sample in enumerate(samples, 1):
            yield sample
            line.step(done)


def _rendered(config: StreamConfig) -> Items:
    """Yield samples while they are rendered. Nothing is started before the first one is asked for."""
    from ..stream.stream import BlenderStream

    frames = BlenderStream(config).sync()
    frames.consumer = "the export"
    line = LiveLine(config, frames.stats)
    with line, frames:
        for frame in frames:
            line.frame_came(whole=frame.step == 0 and frame.last)
            yield frame


def _identity(folder: Path) -> int | None:
    """Return what changes when another folder takes the place of this one. None if there is none."""
    try:
        return folder.stat().st_ino
    except OSError:  # the export itself tells what is wrong with it
        return None


class _Counted:
    """The samples, and how many of them came."""

    def __init__(self, items: Items) -> None:
        self._items, self.count = items, 0

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            yield item
            self.count += 1


def _info(source: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC)
    made_of = ", ".join(f"{name} {about[name]}" for name in ("script", "seed") if about.get(name) is not None)
    return {
        "description": f"{source.resolve().name}: synthetic images by asyncblend {__version__}, {made_of}",
        "version": "1.0",
        "year": now.year,
        "date_created": now.strftime("%Y/%m/%d"),
    }


def _table(report: Report, out: Path) -> Table:
    classes = ", ".join(f"{name}: {count:,}" for name, count in report.classes)
    images = f"{report.images:,}"
    if len(report.splits) > 1:
        images += f"  ({', '.join(f'{split}: {count:,}' for split, count in sorted(report.splits.items()))})"
    facts = {"images": images, "objects": f"{report.objects:,}" + (f"  ({classes})" if classes else "")}
    if report.hidden:
        facts["left out"] = f"{report.hidden:,} without a visible pixel"
    if report.keypoints:
        facts["keypoints"] = f"{report.keypoints:,} in the images"
    return facts_table({**facts, "written to": str(out / report.entry)})
