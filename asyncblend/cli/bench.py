"""`asyncblend bench`: find the number of instances and threads that is best for a script."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .config_file import load_config
from .needs import is_missing, pip
from .options import BlenderOption, ConfigArgument
from .tuning import Trial, best, draw, settings, trial


def bench(
    config: ConfigArgument,
    instances: Annotated[str, typer.Option(help="The numbers of Blender processes to try, such as 1,2,4.")] = "",
    threads: Annotated[str, typer.Option(help="The numbers of threads of each process to try, such as 1,2.")] = "",
    seconds: Annotated[float, typer.Option(help="How long each setting is measured, after a warm-up.", min=0.05)] = 5.0,
    blender: BlenderOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="Get a first impression: 1 second for each setting.")] = False,
    json_: Annotated[Path | None, typer.Option("--json", help="A file for all figures.", dir_okay=False)] = None,
    out: Annotated[Path | None, typer.Option(help="A folder for the plot, bench.png.", file_okay=False)] = None,
) -> None:
    """Run your script with several numbers of instances and threads, one after another, and say which is best.

    The figure that counts is frames per second at a consumer that takes each frame at once. By default the numbers of
    instances are 1, 2, 4, ... up to twice the cores of this machine, each with the cores divided among the instances,
    and with all cores for each of them. The plot needs matplotlib.
    """
    console = Console()
    chosen = load_config(config, blender=blender)
    trials: list[Trial] = []
    tried = settings(_numbers(instances, "--instances"), _numbers(threads, "--threads"))
    for setting in tried:
        with console.status(f"{setting} ({len(trials) + 1} of {len(tried)})"):
            trials.append(trial(chosen, setting, min(seconds, 1.0) if quick else seconds))
    console.print(_table(trials))
    winner = best(trials).setting
    threads_each = "" if winner.threads is None else f", threads = {winner.threads}"
    console.print(f"Best: instances = {winner.instances}{threads_each}", style="green", highlight=False)
    if json_ is not None:
        json_.write_text(json.dumps(_figures(trials), indent=1) + "\n", encoding="utf-8")
    if is_missing("matplotlib"):
        line = f"For a plot, type {pip('asyncblend[plot]')}, and add --out FOLDER here."
        console.print(line, style="dim", soft_wrap=True, markup=False, highlight=False)
    elif out is not None:
        out.mkdir(parents=True, exist_ok=True)
        picture = out / "bench.png"
        draw(picture, trials, config.name)
        console.print(f"plot: {picture}", soft_wrap=True, highlight=False)


def _numbers(text: str, option: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no list of numbers", param_hint=option) from None


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
