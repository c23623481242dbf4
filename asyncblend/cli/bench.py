"""`asyncblend bench`: which number of instances and threads is best for a script."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .config_file import load_config
from .tuning import Trial, best, draw, settings, trial

__all__ = ["bench"]


def bench(
    config: Annotated[Path, typer.Argument(help="A script.py, or a TOML file of StreamConfig's fields.")],
    instances: Annotated[str, typer.Option(help="Numbers to try, as 1,2,4; default: up to twice the cores.")] = "",
    threads: Annotated[
        str,
        typer.Option(help="Threads of each to try, as 1,2; default: the cores shared out, and all of them."),
    ] = "",
    seconds: Annotated[float, typer.Option(help="Of each setting, after a warm-up.", min=0.05)] = 5.0,
    blender: Annotated[str | None, typer.Option(help='Executable, folder, or "bpy".')] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A first impression: 1 second each.")] = False,
    json_: Annotated[Path | None, typer.Option("--json", help="File for the figures.", dir_okay=False)] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the plot.", file_okay=False)] = None,
) -> None:
    """Try numbers of instances and threads on your own script, one after another, and say which is best.

    What counts is frames/s at a consumer that takes each at once.
    """
    console = Console()
    given = {} if blender is None else {"blender": blender}
    chosen = load_config(config, **given)
    trials: list[Trial] = []
    tried = settings(_numbers(instances, "--instances"), _numbers(threads, "--threads"))
    for setting in tried:
        with console.status(f"{setting} ({len(trials) + 1} of {len(tried)})"):
            trials.append(trial(chosen, setting, min(seconds, 1.0) if quick else seconds))
    console.print(_table(trials))
    winner = best(trials)
    lines = [f"instances = {winner.setting.instances}"]
    if winner.setting.threads is not None:
        lines.append(f"threads = {winner.setting.threads}")
    console.print("Best:", ", ".join(lines), style="green", highlight=False)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        picture = out / "bench.png"
        draw(picture, trials, config.name)
        console.print(f"plot: {picture}", soft_wrap=True, highlight=False)
    if json_ is not None:
        json_.write_text(json.dumps(_figures(trials), indent=1) + "\n", encoding="utf-8")


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
    return {
        "best": best(trials).setting._asdict(),
        "trials": [
            {
                **one.setting._asdict(),
                "frames_per_second": one.rate,
                "windows": list(one.rates),
                "first": one.first,
            }
            for one in trials
        ],
    }
