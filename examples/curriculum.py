"""Train on what is hard: a network learns which way a cone points, with a curriculum and without one.

    pip install "asyncblend[bpy,plot]"
    python examples/curriculum.py

The cone is turned by an angle from one of eight ranges. Seven of them are narrow and soon learned, and without a
curriculum seven of eight samples come from them all the same. With one, the losses of each batch decide what is rendered
next. Both kinds of training see as many samples and are evaluated on the same held-out ones, of all ranges alike. A
table and a chart tell what became of it: also what the curriculum costs at first, when all ranges are still hard.

The goal, the chart's grey line, is the mean loss with which the training without a curriculum ends. The table's last
column says after how many samples the mean loss of each kind has come to the goal and stays there.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader

import asyncblend as ab

try:
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    raise SystemExit(f'{error.name} is not installed here. Type: pip install "asyncblend[plot]"') from None

SCRIPT = Path(__file__).parents[1] / "blender_scripts" / "pointer.py"
TURNS = [(-limit, limit) for limit in (8, 12, 16, 20, 25, 30, 40, 180)]  # degrees
BATCH = 16
HELD_OUT = 10**9
"""The first index of the held-out samples. No training comes so far."""
FLOORS = {"all ranges alike": 1.0, "curriculum": 0.2}
COLOURS = {"all ranges alike": "#d55e00", "curriculum": "#0072b2"}


class Look(NamedTuple):
    """What is seen of a training now and then."""

    samples: int
    """How many it has seen."""
    loss: float
    """Of the held-out samples."""
    weights: list[float]
    """The probability of each range."""


def network() -> nn.Module:
    """Return a small convolutional network from 32 x 32 pixels to a direction."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 2)),
    )


def losses_of(model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    """Return the squared error of each sample."""
    images = batch["image"].permute(0, 3, 1, 2).float() / 255
    losses: torch.Tensor = (model(images) - batch["points_to"]).square().sum(dim=1)
    return losses


def train(
    dataset: ab.BlenderDataset, curriculum: ab.Curriculum, held_out: dict[str, Any], seed: int, every: int
) -> Iterator[Look]:
    """Train a new network on a dataset whose params the curriculum draws. Look at it after each `every` batches."""
    torch.manual_seed(seed)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step, batch in enumerate(DataLoader(dataset, batch_size=None), 1):
        losses = losses_of(model, batch)
        optimizer.zero_grad()
        torch.autograd.backward(losses.mean())
        optimizer.step()
        dataset.feedback(batch["index"], losses)  # what is hard is rendered more often from now on
        if step % every == 0:
            with torch.no_grad():
                yield Look(step * BATCH, losses_of(model, held_out).mean().item(), curriculum.weights()["turn"])


def held_out_samples(config: ab.StreamConfig, count: int) -> dict[str, Any]:
    """Render samples of all ranges alike, as one batch."""
    params = ({"turn": turn} for turn in itertools.cycle(TURNS))
    dataset = ab.BlenderDataset(config, start=HELD_OUT, length=count, params=params, batch_size=count)
    (batch,) = dataset
    dataset.close()
    return dict(batch)


def mean_loss(trainings: Sequence[Sequence[Look]]) -> Any:
    """Return the held-out loss at each look: the geometric mean of all trainings."""
    return np.exp(np.mean(np.log([[look.loss for look in looks] for looks in trainings]), axis=0))


def reached(trainings: Sequence[Sequence[Look]], goal: float) -> int | None:
    """Return after how many samples the mean loss comes to the goal and stays there, or None."""
    above = np.flatnonzero(mean_loss(trainings) > goal)
    first = above[-1] + 1 if len(above) else 0
    return trainings[0][first].samples if first < len(trainings[0]) else None


def table(found: dict[str, list[list[Look]]], goal: float) -> Table:
    """Return what each kind of training came to."""
    columns = ("held-out loss, mean", "its runs", f"comes to {goal:.3f} and stays there after")
    shown = Table("", *columns, box=None, header_style="bold")
    for name, trainings in found.items():
        each = ", ".join(f"{looks[-1].loss:.3f}" for looks in trainings)
        samples = reached(trainings, goal)
        shown.add_row(
            name, f"{mean_loss(trainings)[-1]:.3f}", each, f"{samples:,} samples" if samples else "more samples"
        )
    return shown


def chart(path: Path, found: dict[str, list[list[Look]]], goal: float) -> None:
    """Write a picture: the losses of all trainings and their mean, and what the curriculum rendered."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.3, 1])
    for name, trainings in found.items():
        samples = [look.samples for look in trainings[0]]
        for looks in trainings:
            left.plot(samples, [look.loss for look in looks], color=COLOURS[name], linewidth=0.7, alpha=0.4)
        left.plot(samples, mean_loss(trainings), color=COLOURS[name], linewidth=2.5, label=name)
    left.axhline(goal, color="0.6", linewidth=0.8, zorder=0, label="the goal: all ranges alike, at the end")
    left.set(yscale="log", xlabel="samples rendered", ylabel="held-out loss", title="Which way does the cone point?")
    left.legend(frameon=False)

    shares = np.mean([[look.weights for look in looks] for looks in found["curriculum"]], axis=0).T
    labels = [f"±{limit}°" for _, limit in TURNS]
    shades = [str(0.9 - 0.08 * k) for k in range(len(TURNS) - 1)]
    right.stackplot(samples, shares, labels=labels, colors=[*shades, COLOURS["curriculum"]])
    right.set(xlabel="samples rendered", ylabel="share of each range", title="What the curriculum renders")
    right.set(xlim=(samples[0], samples[-1]), ylim=(0, 1))
    handles, names = right.get_legend_handles_labels()
    right.legend(handles[::-1], names[::-1], frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    for panel in (left, right):
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main(arguments: argparse.Namespace) -> None:
    """Run the trainings in turns, and show what they came to."""
    config = ab.StreamConfig(script=SCRIPT, instances=arguments.instances, blender=arguments.blender)
    every = max(1, arguments.samples // BATCH // 24)
    torch.set_num_threads(1)  # the network is small, and the cores are for Blender
    console, found = Console(), {name: list[list[Look]]() for name in FLOORS}
    columns = (TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[said]}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        rendering = progress.add_task("held-out samples", total=None, said="")
        held_out = held_out_samples(config, arguments.held_out)
        progress.update(rendering, total=1, completed=1)
        for seed, name in itertools.product(range(arguments.runs), FLOORS):
            task = progress.add_task(f"{name} {seed + 1}/{arguments.runs}", total=arguments.samples, said="")
            curriculum = ab.Curriculum({"turn": TURNS}, floor=FLOORS[name], temperature=0.02, seed=seed)
            begin = seed * arguments.samples
            dataset = ab.BlenderDataset(
                config, start=begin, length=arguments.samples, params=curriculum, batch_size=BATCH
            )
            found[name].append([])
            for look in train(dataset, curriculum, held_out, seed, every):
                found[name][-1].append(look)
                progress.update(task, completed=look.samples, said=f"loss {look.loss:.3f}")
            dataset.close()
            progress.update(task, completed=arguments.samples)
            if not console.is_terminal:
                console.print(f"{name} {seed + 1}/{arguments.runs}: held-out loss {found[name][-1][-1].loss:.3f}")
    goal = float(mean_loss(found["all ranges alike"])[-1])
    console.print(table(found, goal))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    chart(arguments.out, found, goal)
    console.print(str(arguments.out))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=9600, help="of each training")
    parser.add_argument("--held-out", type=int, default=800)
    parser.add_argument("--runs", type=int, default=3, help="trainings of each kind, with other seeds")
    parser.add_argument("--instances", type=int, default=max(1, len(os.sched_getaffinity(0))), help="Blenders")
    parser.add_argument("--blender", help="as the option of a stream: an executable, or `bpy`")
    parser.add_argument("--out", type=Path, default=Path("tmp/curriculum.png"), help="the chart")
    given = parser.parse_args()
    if given.samples < BATCH or given.held_out < len(TURNS) or given.runs < 1 or given.instances < 1:
        parser.error(f"it needs at least {BATCH} samples, {len(TURNS)} held-out ones, a run and a Blender")
    main(given)
