"""`asyncblend record`: render samples into a folder, to train on them without Blender."""

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
from .config_file import load_config
from .needs import require
from .options import BlenderOption, ConfigArgument, InstancesOption, LengthOption, SeedOption

if TYPE_CHECKING:
    from ..config import StreamConfig
    from ..recording.recorder import Recorder

__all__ = ["record"]


def record(
    config: ConfigArgument,
    out: Annotated[Path, typer.Option(help="The folder to record into. A recording that is there is continued.")],
    length: LengthOption = None,
    instances: InstancesOption = None,
    blender: BlenderOption = None,
    seed: SeedOption = None,
    image_format: Annotated[
        str, typer.Option(help="How to store images: `png`, or `jpeg` for arrays whose name contains image.")
    ] = "png",
    quality: Annotated[int | None, typer.Option(help="The quality of JPEG images, 1 to 100. 95 by default.")] = None,
    shard_size: Annotated[
        str, typer.Option(help="How large a shard becomes: a number of samples, or of bytes, such as 500MB.")
    ] = "100",
) -> None:
    """Render samples and record them as WebDataset shards, to train on them without Blender.

    Type the same command again to continue a recording that was interrupted. A larger length adds samples.
    Ctrl-C ends a recording early: everything that was rendered is on the disk.
    """
    require("webdataset")  # the recorder would miss it only when Blenders run already
    chosen = load_config(config, length=length, instances=instances, blender=blender, seed=seed)
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
    from ..stream.stream import BlenderStream

    recorder = BlenderStream(config).record(out, **how)
    line = _Line(Console(), recorder, config.length or 0)
    complete = False
    try:
        with line:
            async with recorder:
                async for _ in recorder:
                    line.frame_came()
        complete = True
    finally:
        line.summary(out, complete=complete)


class _Line:
    """A progress line with samples, rate, bytes and the time that remains, and a summary at the end."""

    def __init__(self, console: Console, recorder: Recorder, length: int) -> None:
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
        self._frames = 0

    def __enter__(self) -> None:
        self._progress.start()

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def frame_came(self) -> None:
        """Note that one more frame is on its way to the disk."""
        now, before = time.perf_counter(), self._recorder.before
        if self._first is None:
            self._first = now
            if before:
                self._console.print(f"{before} of {self._length} samples are there already", highlight=False)
            self._progress.reset(self._task, total=self._length, completed=before, description="recording")
        self._frames += 1
        rate = (self._frames - 1) / max(now - self._first, 1e-9)
        self._progress.update(
            self._task,
            completed=self._recorder.recorded,
            rate=f"{rate:.1f}/s" if self._frames > 1 else "",
            written=f"{decimal(self._recorder.written)}  time left",
        )

    def summary(self, out: Path, *, complete: bool) -> None:
        """Print what the folder has now, and what to type next. Prints nothing if it has no sample."""
        recorder = self._recorder
        if not recorder.recorded:
            return
        text = f"{recorder.recorded} samples are in {out}"
        if self._first is not None and self._frames > 1:
            seconds = time.perf_counter() - self._first
            new = recorder.recorded - recorder.before
            text += f": {new} new ones in {seconds:.1f} s, {new / seconds:.1f}/s, {decimal(recorder.written)}"
        self._console.print(text, soft_wrap=True, highlight=False)
        inspect = f"Look at them: asyncblend inspect {shlex.quote(str(out))}"
        then = inspect if complete else "The same command goes on after them."
        self._console.print(then, soft_wrap=True, highlight=False)
