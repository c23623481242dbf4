"""`asyncblend export`: write a recording in the format of other tools."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from .. import __version__
from .live import facts_table

if TYPE_CHECKING:
    from ..export import Report


def export(
    recording: Annotated[Path, typer.Argument(help="A folder that `asyncblend record` wrote.")],
    out: Annotated[Path, typer.Option(help="The folder to write into. It must be empty, or not exist yet.")],
    format: Annotated[str, typer.Option(help="The format to write. There is one: coco.")] = "coco",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export in the folder.")] = False,
) -> None:
    """Write a recording's images and labels as COCO's annotations.json and images.

    The samples must have the labels of `bl.render(("instance",))` and of `bl.annotate(objects)`. After an error, or
    Ctrl-C, the folder is as it was before.
    """
    from ..export import check_format
    from ..export import export as export_items
    from ..recording import Recording

    check_format(format)
    samples = Recording(recording)
    console = Console()
    with Progress(console=console, transient=True) as progress:
        items = progress.track(samples, total=len(samples), description="exporting")
        report = export_items(items, out, format, overwrite=overwrite, info=_info(recording, samples.about))
    console.print(_table(report, out))
    for note in report.notes:
        console.print(f"note: {note}", style="yellow", markup=False, highlight=False)


def _info(recording: Path, about: Any) -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC)
    made_of = ", ".join(f"{name} {about[name]}" for name in ("script", "seed") if about.get(name) is not None)
    return {
        "description": f"{recording.resolve().name}: synthetic images by asyncblend {__version__}, {made_of}",
        "version": "1.0",
        "year": now.year,
        "date_created": now.strftime("%Y/%m/%d"),
    }


def _table(report: Report, out: Path) -> Table:
    classes = ", ".join(f"{name} {count:,}" for name, count in report.classes)
    facts = {"images": f"{report.images:,}", "objects": f"{report.objects:,}" + (f"  ({classes})" if classes else "")}
    if report.hidden:
        facts["left out"] = f"{report.hidden:,} without a visible pixel"
    if report.keypoints:
        facts["keypoints"] = f"{report.keypoints:,} in the images"
    return facts_table({**facts, "written to": str(out / "annotations.json")})
