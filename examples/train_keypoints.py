"""Train on images that are rendered while it trains: a network learns where the corners of a cube are.

    pip install "asyncblend[bpy,plot,record]"
    python examples/train_keypoints.py                       # on a stream: no image is seen twice
    python examples/train_keypoints.py --fixed 500           # on 500 recorded samples, again and again
    python examples/train_keypoints.py --compare 500 4000    # on a stream, and as long on each of these recordings

It starts from scratch, and is evaluated on samples of another seed, which no training sees. What counts is the part of
the visible corners that it finds within 5 % of the object's size, which is the longer edge of the box around its visible
pixels. In the folder `--out` there are afterwards the network, a picture of what it predicts beside the truth, and a
chart of the held-out error. Training stops early with Ctrl-C, and `--resume` goes on from there.

Other scenes do too, if their samples have `image`, `keypoints` and `bbox` as `bl.annotate` gives them; the keypoints are
those of the first object: `python examples/train_keypoints.py --script my_scene.py -- --my-option 3`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from training import (
    CORES,
    Budget,
    Training,
    UNet,
    config_of,
    held_out_samples,
    options,
    pieces,
    processor_seconds,
    to_device,
    watched,
)

import asyncblend as ab

try:
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    raise SystemExit(f'{error.name} is not installed here. Type: pip install "asyncblend[plot]"') from None

Batch = dict[str, Any]
NEAR = 0.05
"""Of the object's size: what is closer to the truth counts as found."""
HIDDEN = 0.3
"""How much a hidden keypoint counts in training, where a visible one counts 1. It is a guess, but often a good one."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


# -- what is learned -----------------------------------------------------------------------------------------------


def labelled(batch: Batch) -> Batch:
    """Return what training needs of a batch: images, the first object's keypoints, and its size in pixels."""
    size = batch["bbox"][:, 0, 2:].amax(dim=1)
    return {"image": batch["image"], "keypoints": batch["keypoints"][:, 0], "size": size}


def places(maps: torch.Tensor, reach: int = 2) -> torch.Tensor:
    """Return N x K x 2 float32, the pixel that each map points at: its mean near its highest place, in pixels."""
    height, width = maps.shape[2:]
    chance = maps.flatten(2).softmax(dim=2)
    top = chance.argmax(dim=2)
    x, y = (torch.arange(length, device=maps.device) for length in (width, height))
    near_x = ((x - (top % width)[..., None]).abs() <= reach)[..., None, :]
    near_y = ((y - (top // width)[..., None]).abs() <= reach)[..., :, None]
    chance = chance.unflatten(2, (height, width)) * near_x * near_y
    chance = chance / chance.sum(dim=(2, 3), keepdim=True)
    return 2 * torch.stack((chance.sum(dim=2) @ (x + 0.5), chance.sum(dim=3) @ (y + 0.5)), dim=2)


def loss_of(maps: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the loss: how far each map, as a distribution over places, is from a small spot at its keypoint."""
    x, y, visibility = batch["keypoints"].unbind(dim=2)
    height, width = maps.shape[2:]
    across, down = (
        torch.exp(-((torch.arange(length, device=maps.device) + 0.5 - at[..., None] / 2) ** 2) / 2)
        for length, at in ((width, x), (height, y))
    )
    wanted = (down[..., :, None] * across[..., None, :]).flatten(2)
    wanted = wanted / wanted.sum(dim=2, keepdim=True).clamp_min(1e-9)  # 0 for what is far outside the image
    each = -(wanted * maps.flatten(2).log_softmax(dim=2)).sum(dim=2)
    weight = (visibility == 2) + HIDDEN * (visibility == 1)
    return (weight * each).sum() / weight.sum().clamp_min(1)


def errors_of(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the error of each visible keypoint, as a part of its object's size."""
    apart = (places(pieces(model, batch["image"])) - batch["keypoints"][..., :2]).norm(dim=2)
    return (apart / batch["size"][:, None])[batch["keypoints"][..., 2] == 2]


def scores_of(model: nn.Module, held_out: Batch) -> dict[str, float]:
    """Return what the held-out samples tell of a network."""
    errors = errors_of(model, held_out)
    return {"error": errors.median().item(), "found": (errors < NEAR).float().mean().item()}


# -- what it is learned from ---------------------------------------------------------------------------------------


def streamed(dataset: ab.BlenderDataset, device: str) -> Iterator[Batch]:
    """Yield batches that are rendered meanwhile, each sample once."""
    for batch in dataset:
        yield labelled(to_device(batch, device))


def recorded(config: ab.StreamConfig, count: int, folder: Path) -> Batch:
    """Record the first samples of a stream, and return all of them, in memory."""

    async def record() -> None:
        async with ab.BlenderStream(config, length=count) as stream:
            await stream.record(folder)

    asyncio.run(record())
    return labelled(next(iter(ab.RecordedDataset(folder, batch_size=count))))


def repeated(samples: Batch, size: int, seed: int) -> Iterator[Batch]:
    """Yield batches of the same samples for ever, in each epoch in another order."""
    generator, count = torch.Generator().manual_seed(seed), len(samples["image"])
    while True:
        for chosen in torch.randperm(count, generator=generator).split(min(size, count)):
            if len(chosen) == min(size, count):
                yield {name: value[chosen.to(value.device)] for name, value in samples.items()}


# -- what is shown -------------------------------------------------------------------------------------------------


def portraits(path: Path, model: nn.Module, held_out: Batch, count: int = 8) -> None:
    """Write a picture of the first held-out images: above with the true keypoints, below with the predicted ones."""
    truth = held_out["keypoints"][:count].cpu()
    with torch.no_grad():
        found = places(model.eval()(held_out["image"][:count])).cpu()
    figure = Figure(figsize=(1.6 * len(truth), 3.5), layout="constrained")
    rows = figure.subplots(2, len(truth), squeeze=False, gridspec_kw={"wspace": 0.02, "hspace": 0.02})
    hues = torch.arange(truth.shape[1])
    for row, name, points in zip(rows, ("truth", "predicted"), (truth[..., :2], found), strict=True):
        row[0].set_ylabel(name)
        for panel, image, own, visibility in zip(row, held_out["image"].cpu(), points, truth[..., 2], strict=False):
            height, width = image.shape[:2]
            panel.imshow(image, extent=(0, width, height, 0))
            seen = visibility == 2  # of a hidden corner the prediction is a guess
            panel.scatter(
                *own[seen].T, c=hues[seen], cmap="hsv", vmin=0, vmax=len(hues), s=28, edgecolors="white", linewidths=1
            )
            panel.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
            panel.spines[:].set_visible(False)
    figure.savefig(path, dpi=110)


def chart(path: Path, trainings: dict[str, Training]) -> None:
    """Write a picture: the held-out samples over time, for each training."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, training), colour in zip(trainings.items(), COLOURS * len(trainings), strict=False):
        seconds = [look.seconds for look in training.looks]
        style = {"label": name, "color": colour, "linewidth": 2.5 if name == "streamed" else 1.5}
        left.plot(seconds, [100 * look.scores["error"] for look in training.looks], **style)
        right.plot(seconds, [100 * look.scores["found"] for look in training.looks], **style)
    left.set(yscale="log", title="Median error of visible corners, % of the object's size")
    right.set(ylim=(0, 100), title=f"Visible corners found within {NEAR:.0%} of the object's size, %")
    right.axhline(90, color="0.6", linewidth=0.8, zorder=0)
    right.legend(frameon=False)
    for panel in (left, right):
        panel.set(xlabel="seconds of all cores" if training.budget.processor else "seconds", xlim=(0, None))
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def table(trainings: dict[str, Training], spent: dict[str, tuple[float, float]], batch: int) -> Table:
    """Return what each training came to."""
    columns = ("steps", "images", "median error", f"found within {NEAR:.0%}", "seconds", "processor seconds")
    shown = Table("held-out samples", *columns, box=None, header_style="bold")
    for name, training in trainings.items():
        scores = training.looks[-1].scores
        error, found = f"{scores['error']:.2%}", f"{scores['found']:.1%}"
        seconds = (f"{value:.0f}" for value in spent[name])
        shown.add_row(name, f"{training.steps:,}", f"{training.steps * batch:,}", error, found, *seconds)
    return shown


# -- the program ---------------------------------------------------------------------------------------------------


def main(given: argparse.Namespace) -> bool:
    """Run the trainings, and show what they came to. Return False if a Ctrl-C has ended the last one."""
    console, config = Console(), config_of(given)
    counts = given.compare or ([given.fixed] if given.fixed else [])
    given.out.mkdir(parents=True, exist_ok=True)
    with console.status("rendering the held-out samples"):
        held_out = labelled(held_out_samples(config, given.held_out, given.device))
    trainings, spent, whole = dict[str, Training](), dict[str, tuple[float, float]](), True
    for count in [*([] if given.fixed else [0]), *counts]:
        name = f"{count:,} recorded" if count else "streamed"
        torch.manual_seed(given.seed)
        budget = Budget(60 * given.minutes, given.steps, given.processor)
        training = Training(UNet(held_out["keypoints"].shape[1]).to(given.device), budget)
        dataset = ab.BlenderDataset(config, batch_size=given.batch)
        if given.resume:
            state = torch.load(given.resume, map_location=given.device, weights_only=True)
            training.load_state_dict(state["training"])
            dataset.load_state_dict(state["stream"])
        with contextlib.ExitStack() as stack:
            stack.callback(dataset.close)
            if count:
                torch.set_num_threads(CORES)
                with console.status(f"recording {count:,} samples"):
                    folder = stack.enter_context(tempfile.TemporaryDirectory())
                    samples = to_device(recorded(config, count, Path(folder, "samples")), given.device)
                batches = repeated(samples, given.batch, given.seed)
            else:
                torch.set_num_threads(max(1, CORES - given.instances))
                batches = streamed(dataset, given.device)
            began, used = time.perf_counter(), processor_seconds()
            looks = training.run(batches, loss_of, lambda model: scores_of(model, held_out), given.looks)
            whole = watched(name, training, looks, console)
            spent[name] = (time.perf_counter() - began, processor_seconds() - used)
            state = {"training": training.state_dict(), "stream": dataset.state_dict()}
        if training.looks:
            trainings[name] = training
        if name == "streamed" or given.fixed:
            torch.save(state, given.out / "model.pt")
            portraits(given.out / "predictions.png", training.model, held_out)
        if not whole:
            break
    if trainings:
        console.print(table(trainings, spent, given.batch))
        chart(given.out / "learning.png", trainings)
    console.print(", ".join(sorted(str(path) for path in given.out.iterdir())))
    return whole


if __name__ == "__main__":
    parser = options(__doc__, minutes=4.5, script="painted_cube.py", size=64)
    parser.add_argument("--fixed", type=int, metavar="N", help="train on N recorded samples")
    parser.add_argument("--compare", type=int, nargs="+", metavar="N", help="on a stream, and on N recorded samples")
    if not main(parser.parse_args()):
        raise SystemExit(130)
