"""The command `asyncblend bench`."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from ...aio import run
from ...errors import ConfigError
from ..config_file import load_config
from ..live import Waiting
from ..needs import is_missing, pip, require
from ..options import BlenderOption, ConfigArgument, SceneOption
from ..outputs import check_file, write, writing
from ..terminal import Terminal
from .search import Search
from .settings import gpus_here, settings
from .shown import draw, figures, progress, table, toml, verdict

_QUICK = 1.0  # seconds


def bench(
    context: typer.Context,
    config: ConfigArgument,
    scene: SceneOption = None,
    instances: Annotated[
        str, typer.Option(metavar="N,...", help="The numbers of Blender processes to try, such as 1,2,4.")
    ] = "",
    threads: Annotated[
        str, typer.Option(metavar="N,...", help="The numbers of threads of each process to try, such as 1,2.")
    ] = "",
    seconds: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", help="Time to measure for each fleet; one that is slow leaves it to others.", min=0.05
        ),
    ] = 5.0,
    blender: BlenderOption = None,
    quick: Annotated[
        bool, typer.Option("--quick/--no-quick", help="Get a first impression: 1 second for each fleet.")
    ] = False,
    json_: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="A file for all figures.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="A folder for the plot, bench.png.")] = None,
) -> None:
    """Find the numbers of instances and threads that are best, and whether a GPU is.

    Your script runs with several fleets, which take turns, so that a slow minute of this machine meets all of them. The
    figure that counts is frames per second at a consumer that takes each frame at once. By default the threads of each
    instance are the cores of this machine divided by 1, 2, 4, ..., and the instances so many that all cores have work,
    and twice as many. GPUs are tried too: the `gpus` of a TOML file, or else NVIDIA's. Of fleets that are as fast, the
    one with the fewest Blenders is best. The plot needs matplotlib.

    Examples:

        asyncblend bench scene.py --quick
        asyncblend bench scene.py --instances 1,2,4 --threads 2 --json figures.json --out plots
        asyncblend bench scene.py --scene room.blend -- --level 3
    """
    console = Terminal()
    chosen = load_config(config, scene=scene, blender=blender, script_args=context.args)
    if chosen.fleet is not None:
        raise ConfigError(f"fleet {chosen.fleet!r} has its own number of instances; give a script to measure others")
    gpus = chosen.gpus or (gpus_here() if chosen.cluster is None else [])
    counts, own = _numbers(instances, "--instances"), _numbers(threads, "--threads")
    tried = settings(counts, own, gpus=len(gpus), processor=not chosen.gpus)
    if json_ is not None:
        check_file("--json", json_)
    if out is not None:
        require("matplotlib")
        check_file("--out", out / "bench.png")
    search = Search(chosen, tried, min(seconds, _QUICK) if quick else seconds, gpus=gpus)
    began = time.perf_counter()
    with Waiting(lambda: progress(search, time.perf_counter() - began)), _each_warning_once():
        found = run(search.run())
    for part in (table(found), *verdict(found)):
        console.print(part)
    if json_ is not None:
        write("--json", json_, json.dumps(figures(found), indent=1) + "\n")
    if out is None and is_missing("matplotlib"):
        console.print(f"For a plot, type {pip('asyncblend[plot]')}, and add --out FOLDER here.", style="dim")
    if out is not None:
        picture = out / "bench.png"
        with writing("--out", picture):
            out.mkdir(parents=True, exist_ok=True)
            draw(picture, found, config.name)
        console.print(f"plot: {picture}")
    for line in toml(found, config.name, chosen.queue_size, gpus):
        console.print(line)


def _numbers(text: str, option: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no list of numbers", param_hint=option) from None


@contextlib.contextmanager
def _each_warning_once() -> Iterator[None]:
    """Log what the streams say only once, as each Blender has its own, and nothing of their speed, as most of them wait."""
    said: set[str] = set()

    def new(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        known = text in said
        said.add(text)
        return record.levelno >= logging.WARNING and not known

    logger = logging.getLogger("asyncblend")
    logger.addFilter(new)
    try:
        yield
    finally:
        logger.removeFilter(new)
