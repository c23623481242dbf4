"""`asyncblend bench`: find the number of instances and threads that is best for a script."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from ..errors import ConfigError
from .config_file import load_config
from .live import Waiting, doing
from .needs import is_missing, pip, require
from .options import BlenderOption, ConfigArgument, SceneOption
from .outputs import check_file, writing
from .terminal import Terminal
from .tuning import Setting, Trial, best, draw, settings, trial

if TYPE_CHECKING:
    from ..config import StreamConfig
    from ..stream.stream import BlenderStream


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
        float, typer.Option(metavar="SECONDS", help="How long each setting is measured, after a warm-up.", min=0.05)
    ] = 5.0,
    blender: BlenderOption = None,
    quick: Annotated[
        bool, typer.Option("--quick/--no-quick", help="Get a first impression: 1 second for each setting.")
    ] = False,
    json_: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="A file for all figures.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="A folder for the plot, bench.png.")] = None,
) -> None:
    """Find the numbers of instances and threads that are best.

    Your script runs with several of them, one after another. The figure that counts is frames per second at a consumer
    that takes each frame at once. By default the numbers of instances are 1, 2, 4, ... up to twice the cores of this
    machine, each with the cores divided among the instances, and with all cores for each of them. The plot needs
    matplotlib.

    Examples:

        asyncblend bench scene.py --quick
        asyncblend bench scene.py --instances 1,2,4 --threads 2 --json figures.json --out plots
        asyncblend bench scene.py --scene room.blend -- --level 3
    """
    console = Terminal()
    chosen = load_config(config, scene=scene, blender=blender, script_args=context.args)
    if chosen.fleet is not None:
        raise ConfigError(f"fleet {chosen.fleet!r} has its own number of instances; give a script to measure others")
    tried = settings(_numbers(instances, "--instances"), _numbers(threads, "--threads"))
    if json_ is not None:
        check_file("--json", json_)
    if out is not None:
        require("matplotlib")
        check_file("--out", out / "bench.png")
    trials = _measured(chosen, tried, min(seconds, 1.0) if quick else seconds)
    console.print(_table(trials))
    winner = best(trials).setting
    threads_each = "" if winner.threads is None else f", threads = {winner.threads}"
    console.print(f"Best: instances = {winner.instances}{threads_each}", style="green")
    if json_ is not None:
        with writing("--json", json_):
            json_.write_text(json.dumps(_figures(trials), indent=1) + "\n", encoding="utf-8")
    if out is None and is_missing("matplotlib"):
        console.print(f"For a plot, type {pip('asyncblend[plot]')}, and add --out FOLDER here.", style="dim")
    if out is not None:
        picture = out / "bench.png"
        with writing("--out", picture):
            out.mkdir(parents=True, exist_ok=True)
            draw(picture, trials, config.name)
        console.print(f"plot: {picture}")


def _numbers(text: str, option: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no list of numbers", param_hint=option) from None


def _measured(config: StreamConfig, tried: list[Setting], seconds: float) -> list[Trial]:
    trials: list[Trial] = []
    streams: list[BlenderStream] = []

    def said() -> str:
        stats = streams[-1].stats() if streams else None
        passed = time.perf_counter() - began
        return f"measuring {setting} ({len(trials) + 1} of {len(tried)}), {passed:.0f} s: {doing(stats)}"

    for setting in tried:
        streams.clear()
        began = time.perf_counter()
        with Waiting(said):
            trials.append(trial(config, setting, seconds, streams.append))
    return trials


def _table(trials: list[Trial]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("instances", "threads", "frames/s", "spread", "", "first frame"):
        table.add_column(heading, justify="right", no_wrap=True)
    winner = best(trials)
    for one in trials:
        table.add_row(
            str(one.setting.instances),
            "the scene's" if one.setting.threads is None else str(one.setting.threads),
            f"{one.rate:,.1f}",
            f"{min(one.rates):,.1f} to {max(one.rates):,.1f}",
            f"{one.rate / trials[0].rate:.2f}x",
            f"{one.first:.1f} s",
            style="green" if one is winner else "",
        )
    return table


def _figures(trials: list[Trial]) -> dict[str, object]:
    figures = [
        {**one.setting._asdict(), "frames_per_second": one.rate, "windows": list(one.rates), "first": one.first}
        for one in trials
    ]
    return {"best": best(trials).setting._asdict(), "trials": figures}
