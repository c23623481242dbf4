"""`asyncblend record`: samples into a folder, to train on without Blender."""

from __future__ import annotations

import asyncio
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from ..aio import loop_factory
from ..config import StreamConfig
from .config_file import load_config

if TYPE_CHECKING:
    from ..recording.recorder import Recorder

__all__ = ["record"]


def record(
    config: Annotated[Path, typer.Argument(help="A script.py, or a TOML file of StreamConfig's fields.")],
    out: Annotated[Path, typer.Option(help="Folder for the recording; one that is begun is gone on with.")],
    length: Annotated[int | None, typer.Option(help="Samples in all; default: the config's.")] = None,
    instances: Annotated[int | None, typer.Option(help="Blender processes.")] = None,
    blender: Annotated[str | None, typer.Option(help='Executable, folder, or "bpy".')] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the stream.")] = None,
    image_format: Annotated[str, typer.Option(help='"png", or "jpeg" for what is named image.')] = "png",
    quality: Annotated[int | None, typer.Option(help="Of JPEG, 1 to 100; default: 95.")] = None,
    shard_size: Annotated[str, typer.Option(help='Samples in a shard, or bytes, as "500MB".')] = "100",
) -> None:
    """Render samples, and record them into WebDataset shards, to train on without Blender.

    The same command again goes on where the last one ended, however that was; with a larger length it adds samples.
    Ctrl-C ends it with all that was made on the disk.
    """
    given = {"length": length, "instances": instances, "blender": blender, "seed": seed}
    options = {name: value for name, value in given.items() if value is not None}
    chosen = load_config(config, **options)
    if chosen.length is None:
        raise typer.BadParameter("how many samples? Such as --length 1000", param_hint="--length")
    how: dict[str, Any] = {
        "image_format": image_format,
        "quality": quality,
        "shard_size": int(shard_size) if shard_size.isdecimal() else shard_size,
    }
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_record(chosen, out, how))


async def _record(config: StreamConfig, out: Path, how: dict[str, Any]) -> None:
    from ..stream.stream import BlenderStream  # not above: `doctor` must run where pyzmq is missing

    console = Console()
    recorder = BlenderStream(config).record(out, **how)
    line = _Line(console, recorder, config.length or 0)
    whole = False
    try:
        with line:
            async with recorder:
                async for _ in recorder:
                    line.frame_came()
        whole = True
    finally:
        line.summary(out, whole=whole)


class _Line:
    """Samples, rate, bytes and the time that is left, while they come and at the end."""

    def __init__(self, console: Console, recorder: Recorder[Any], length: int) -> None:
        self._console, self._recorder, self._length = console, recorder, length
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("samples  {task.fields[rate]}  {task.fields[written]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("waiting for the first frame", total=None, rate="", written="")
        self._first: float | None = None
        self._before = 0  # samples that were there already
        self._frames = 0

    def __enter__(self) -> None:
        self._progress.start()

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def frame_came(self) -> None:
        """Note that one more is on its way to the disk."""
        now, recorder = time.perf_counter(), self._recorder
        if self._first is None:
            self._first, self._before = now, recorder.before
            if self._before:
                self._console.print(f"{self._before} of {self._length} samples are there already", highlight=False)
            self._progress.reset(self._task, total=self._length, completed=self._before, description="recording")
        self._frames += 1
        rate = (self._frames - 1) / max(now - self._first, 1e-9)
        self._progress.update(
            self._task,
            completed=recorder.recorded,
            rate=f"{rate:.1f}/s" if self._frames > 1 else "",
            written=f"{decimal(recorder.written)}  time left",
        )

    def summary(self, out: Path, *, whole: bool) -> None:
        """Print what there is now, and what to type next. `whole`: nothing came in between."""
        recorder = self._recorder
        if not recorder.recorded:
            return  # an error says why
        text = f"{recorder.recorded} samples are in {out}"
        if self._first is not None and self._frames > 1:
            seconds = time.perf_counter() - self._first
            new = recorder.recorded - recorder.before
            text += f": {new} new ones in {seconds:.1f} s, {new / seconds:.1f}/s"
            text += f", {decimal(recorder.written)}"
        self._console.print(text, soft_wrap=True, highlight=False)
        if whole:
            self._console.print(
                f"Look at them: asyncblend inspect {shlex.quote(str(out))}", soft_wrap=True, highlight=False
            )
        else:
            self._console.print("The same command goes on after them.", soft_wrap=True, highlight=False)
