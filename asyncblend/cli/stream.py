"""`asyncblend stream`: run a config and watch it, without a training loop."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..aio import loop_factory
from ..config import StreamConfig
from .config_file import load_config
from .live import LiveLine

__all__ = ["stream"]


def stream(
    config: Annotated[Path, typer.Argument(help="A script.py, or a TOML file of StreamConfig's fields.")],
    length: Annotated[int | None, typer.Option(help="Samples; default: the config's, else endless.")] = None,
    instances: Annotated[int | None, typer.Option(help="Blender processes.")] = None,
    blender: Annotated[str | None, typer.Option(help='Executable, folder, or "bpy".')] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the stream.")] = None,
) -> None:
    """Stream frames and drop them: shows what a script returns, and how fast. Ctrl-C ends it.

    A TOML file has the fields of StreamConfig, tables for `timeouts`, `restart` and `params`, and paths relative to
    itself:

        script = "cube.py"
        instances = 2

        [timeouts]
        frame = 60
    """
    given = {"length": length, "instances": instances, "blender": blender, "seed": seed}
    options = {name: value for name, value in given.items() if value is not None}
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_stream(load_config(config, **options)))


async def _stream(config: StreamConfig) -> None:
    from ..stream.stream import BlenderStream  # not above: `doctor` must run where pyzmq is missing

    console = Console()
    frames = BlenderStream(config)
    line = LiveLine(console, frames.stats, config.queue_size, config.length)
    try:
        with line:
            async with frames:
                shown = False
                async for frame in frames:
                    line.frame_came()
                    if not shown:
                        console.print(repr(frame), markup=False)
                        shown = True
    finally:
        line.summary()
