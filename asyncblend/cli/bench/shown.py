"""What `asyncblend bench` prints and draws."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from ..terminal import printable, styled
from .judging import ENOUGH
from .search import Found, Search

_BUSY = 0.1  # the share of the processor that others may take without being named


def progress(search: Search, seconds: float) -> list[Text]:
    """Return what a search does now, with the present figure of each fleet, and a shorter form for a narrow terminal."""
    turn = search.turn  # another thread goes on with the search
    if turn is None:
        have = "has" if search.starting == 1 else "have"
        return [styled(f"starting Blenders, {search.starting} {have} not rendered yet, {seconds:.0f} s")]
    now = f"round {search.round}, {seconds:.0f} s: {turn}"
    figures = ", ".join(f"{_rate(one.rate)} by {one.setting}" for one in search.left if one.turns)
    return [styled(now, (f"  frames/s: {figures}" if figures else "", "cyan")), styled(now)]


def table(found: Found) -> Table:
    """Return a table with a line for each fleet, in which the one that is advised is green."""
    shown = Table(box=SIMPLE_HEAD, pad_edge=False)
    shown.add_column("instances x threads", no_wrap=True)
    for heading in ("frames/s", "spread", "", "memory", "processor"):
        shown.add_column(heading, justify="right", no_wrap=True)
    level = [found.best, *found.level]
    for one in found.trials:
        shown.add_row(
            str(one.setting),
            _rate(one.rate),
            f"{_rate(min(one.rates))} to {_rate(max(one.rates))}",
            f"{one.ratio(found.best):.2f}x",
            "" if one.memory is None else f"{one.memory / 2**20:,.0f} MiB",
            "" if one.processor is None else f"{one.processor:.0%}",
            style="green" if one is found.best else "" if one in level else "dim",
        )
    return shown


def verdict(found: Found) -> list[Text]:
    """Return the lines that say which fleet is best, and why, and how sure that is."""
    best, turns = found.best, len(found.best.turns)
    lines = [styled((f"Best: {best.setting}, {_rate(best.rate)} frames/s.", "green"))]
    if found.level:
        others = ", ".join(str(one.setting) for one in found.level)
        more = any(one.setting.instances > best.setting.instances for one in found.level)
        why = " Fewer Blenders take less memory." if more else ""
        lines.append(styled(f"As fast, but for noise: {others}.{why}"))
    lines += [styled((f"Not tried: {setting}. {why}", "yellow")) for setting, why in found.left_out.items()]
    if found.others > _BUSY:
        text = f"Other programs took {found.others:.0%} of the processor meanwhile. The more Blenders, the more they get of"
        lines.append(styled((f"{text} the rest: try again when this machine has nothing else to do.", "yellow")))
    if len(found.trials) > 1 and turns < ENOUGH:
        often = f"{turns} turn{'s' * (turns > 1)}"
        lines.append(styled((f"It had only {often}, as its frames take long. Be sure with more --seconds.", "yellow")))
    return lines


def toml(found: Found, name: str, queue_size: int, gpus: Sequence[int | str] = ()) -> list[Text]:
    """Return the lines to write, after one that says where.

    Args:
        found: What was found.
        name: The file that the fleets were tried with, a script or a TOML file.
        queue_size: The one of its config. If it is too small for the fleet, there is a line for it too.
        gpus: The GPUs that fleets on the GPU use.
    """
    setting = found.best.setting
    options: dict[str, object] = {"instances": setting.instances, "threads": setting.threads}
    if setting.gpu:
        options["gpus"] = list(gpus)
    if (least := 2 * setting.instances) > queue_size:  # otherwise instances wait for a free slot
        options["queue_size"] = least
    where = f"Write into {name}" if name.endswith(".toml") else "Write into a TOML file, or give a stream as keywords"
    return [styled((f"{where}:", "dim")), *(styled(f"{key} = {json.dumps(value)}") for key, value in options.items())]


def figures(found: Found) -> dict[str, Any]:
    """Return all figures, as `json.dumps` takes them."""
    trials = [
        {
            **one.setting._asdict(),
            "frames_per_second": one.rate,
            "turns": {number: turn.rate for number, turn in one.turns.items()},
            "of_the_best": one.ratio(found.best),
            "memory": one.memory,
            "processor": one.processor,
        }
        for one in found.trials
    ]
    return {
        "best": found.best.setting._asdict(),
        "as_fast": [one.setting._asdict() for one in found.level],
        "not_tried": [{**setting._asdict(), "why": why} for setting, why in found.left_out.items()],
        "trials": trials,
    }


def draw(path: Path, found: Found, name: str) -> None:
    """Write a bar chart of all trials as a PNG file. `name` is the script's, for the title."""
    from matplotlib.figure import Figure  # without pyplot: no display and no global settings are touched

    ink, grey, best_colour = "#1f2328", "#b1b7be", "#0072b2"
    trials, chosen = found.trials, found.best
    figure = Figure(figsize=(9, 1.4 + 0.4 * len(trials)), dpi=130, facecolor="white")
    axes = figure.subplots()
    colours = [best_colour if one is chosen else grey for one in trials]
    spread = [[one.rate - min(one.rates) for one in trials], [max(one.rates) - one.rate for one in trials]]
    rates = [one.rate for one in trials]
    axes.barh(range(len(trials)), rates, 0.72, xerr=spread, color=colours, ecolor=ink, capsize=2.5)
    for place, one in enumerate(trials):
        text = f"{_rate(one.rate)}   {one.ratio(chosen):.2f}x"
        axes.annotate(text, (max(one.rates), place), (7, 0), textcoords="offset points", va="center", color=ink)
    axes.set_yticks(range(len(trials)), [str(one.setting) for one in trials])
    axes.set_ylim(len(trials) - 0.5, -0.5)
    axes.set_xticks([])  # the rates stand beside the bars
    axes.set_xlim(0, 1.3 * max(max(one.rates) for one in trials))
    axes.set_xlabel("frames/s (more is better); x: of the best, in the same rounds", color="#656d76", labelpad=10)
    title = f"{printable(name)}: best with {chosen.setting}"
    # A dollar sign in the name is no beginning of a formula.
    axes.set_title(title, loc="left", pad=14, fontsize=14, fontweight="bold", color=ink, parse_math=False)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    figure.savefig(path, format="png", bbox_inches="tight", pad_inches=0.25)


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 1000 else f"{rate:.1f}"
