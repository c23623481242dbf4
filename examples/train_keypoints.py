"""Train on images that are rendered while it trains: a network learns where the corners of a cube are.

    pip install "asyncblend[bpy,plot,record]"
    python examples/train_keypoints.py                       # on a stream: ever new images
    python examples/train_keypoints.py --fixed 500           # on 500 recorded ones, again and again
    python examples/train_keypoints.py --compare 500 4000    # on a stream, and as long on each of these recordings

It starts from scratch, and is evaluated on samples of another seed, which no training sees. What counts is the part of
the visible corners that it finds within 5 % of the object's size, which is the longer edge of the box around its visible
pixels. In the folder `--out` there are afterwards the network, a picture of what it predicts beside the truth, and a
chart of the held-out error. Training stops early with Ctrl-C, and `--resume` goes on from there.

Streamed images are rendered while it trains, in the same time and on the same cores; each is used in some four steps
(`--uses`). A recording is made before, and loaded into memory. That takes none of the time of training, which has all
cores for itself then; in the chart, its curve begins when the recording is made.

Other scenes do too, if their samples have `image`, `keypoints` and `bbox` as `bl.annotate` gives them; the keypoints are
those of the first object: `python examples/train_keypoints.py --script my_scene.py -- --my-option 3`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from charts import Panel, beside, learning
from rich.console import Console
from rich.table import Table
from torch import nn
from training import (
    CORES,
    Budget,
    Look,
    Training,
    UNet,
    config_of,
    held_out_samples,
    options,
    pieces,
    positive,
    processor_seconds,
    resume,
    reused,
    run,
    save,
    watched,
)

import asyncblend as ab

Batch = dict[str, torch.Tensor]
NEAR = 0.05
"""Of the object's size: what is closer to the truth counts as found."""
HIDDEN = 0.3
"""How much a hidden keypoint counts in training, where a visible one counts 1. It is a guess, but often a good one."""
PANELS = (
    Panel(
        "error",
        "Median error of visible corners, % of the object's size",
        {"yscale": "log", "yticks": (1, 2, 5, 10, 20, 50)},
    ),
    Panel("found", f"Visible corners found within {NEAR:.0%} of the object's size, %", {"ylim": (0, 100)}, goal=90),
)


# -- what is learned -----------------------------------------------------------------------------------------------


def labelled(batch: Mapping[str, Any]) -> Batch:
    """Return what training needs of a batch: images, each one's first object's keypoints, and its size in pixels."""
    boxes, keypoints = (torch.stack([own[0] for own in batch[name]]) for name in ("bbox", "keypoints"))
    return {"image": batch["image"], "keypoints": keypoints, "size": boxes[:, 2:].amax(dim=1)}


def places(maps: torch.Tensor, reach: int = 2) -> torch.Tensor:
    """Return N x K x 2 float32, the pixel that each map points at: its mean near its highest place, in pixels."""
    height, width = maps.shape[2:]
    chance = maps.flatten(2).softmax(dim=2)
    top = chance.argmax(dim=2)
    x, y = (torch.arange(length, device=maps.device) for length in (width, height))
    near_x = ((x - (top % width)[..., None]).abs() <= reach)[..., None, :]
    near_y = ((y - (top // width)[..., None]).abs() <= reach)[..., :, None]
    chance = chance.reshape(maps.shape) * near_x * near_y
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
    found = places(pieces(model, batch["image"]))
    apart: torch.Tensor = torch.linalg.vector_norm(found - batch["keypoints"][..., :2], dim=2)
    return (apart / batch["size"][:, None])[batch["keypoints"][..., 2] == 2]


def scores_of(model: nn.Module, held_out: Batch) -> dict[str, float]:
    """Return what the held-out samples tell of a network."""
    errors = errors_of(model, held_out)
    return {"error": errors.median().item(), "found": (errors < NEAR).float().mean().item()}


# -- what it is learned from ---------------------------------------------------------------------------------------


def recorded(config: ab.StreamConfig, count: int, device: str) -> Batch:
    """Record the first samples of a stream, and return all of them, in memory."""

    async def record(folder: Path) -> None:
        async with ab.BlenderStream(config, length=count) as stream:
            await stream.record(folder)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(record(Path(folder, "samples")))
        recording = ab.RecordedDataset(Path(folder, "samples"), batch_size=count, device=device)
        return labelled(next(iter(recording)))


def repeated(samples: Batch, size: int, seed: int) -> Iterator[Batch]:
    """Yield batches of the same samples for ever, in each epoch in another order."""
    generator, count = torch.Generator().manual_seed(seed), len(samples["image"])
    size = min(size, count)
    while True:
        order = torch.randperm(count, generator=generator).to(samples["image"].device)
        for first in range(0, count - size + 1, size):
            yield {name: value[order[first : first + size]] for name, value in samples.items()}


# -- what is shown -------------------------------------------------------------------------------------------------


def portraits(path: Path, model: nn.Module, held_out: Batch, count: int = 8) -> None:
    """Write a picture of the first held-out images: above with the true keypoints, below with the predicted ones."""
    images, keypoints = held_out["image"][:count], held_out["keypoints"][:count].cpu()
    with torch.no_grad():
        found = places(model.eval()(images)).cpu()
    hues = torch.arange(keypoints.shape[1])

    def drawn(points: torch.Tensor) -> Callable[[Any, int], None]:
        def draw(axes: Any, number: int) -> None:
            seen = keypoints[number, :, 2] == 2  # of a hidden corner the prediction is a guess
            style = {"cmap": "hsv", "vmin": 0, "vmax": len(hues), "s": 28, "edgecolors": "white", "linewidths": 1}
            axes.scatter(*points[number, seen].T, c=hues[seen], **style)

        return draw

    beside(path, images.cpu().numpy(), {"truth": drawn(keypoints[..., :2]), "predicted": drawn(found)})


@dataclass
class Kind:
    """A kind of training, and what it took."""

    name: str
    training: Training
    recording: float = 0.0
    """Seconds that recording took before."""
    clock: float = 0.0
    processor: float = 0.0
    """Seconds of the training, by the clock and of the processor."""

    def curve(self) -> list[Look]:
        """Return what was seen of it, with the seconds from the start of the recording on."""
        return [dataclasses.replace(look, seconds=look.seconds + self.recording) for look in self.training.looks]


def table(kinds: Iterable[Kind], batch: int) -> Table:
    """Return what each training came to."""
    columns = ("steps", "samples", "error", f"within {NEAR:.0%}", "recording", "training", "processor")
    shown = Table("", *columns, box=None, header_style="bold")
    for kind in kinds:
        look = kind.training.looks[-1]
        scores = (f"{look.scores['error']:.2%}", f"{look.scores['found']:.1%}")
        seconds = (f"{value:.0f} s" for value in (kind.recording, kind.clock, kind.processor))
        shown.add_row(kind.name, f"{kind.training.steps:,}", f"{kind.training.steps * batch:,}", *scores, *seconds)
    return shown


# -- the program ---------------------------------------------------------------------------------------------------


def train(given: argparse.Namespace, held_out: Batch, count: int, console: Console) -> tuple[Kind, bool]:
    """Train on a stream, or on so many recorded samples. Return False if a Ctrl-C has ended it."""
    torch.manual_seed(given.seed)
    config, budget = config_of(given), Budget(60 * given.minutes, given.steps, given.processor)
    training = Training(UNet(held_out["keypoints"].shape[1]).to(given.device), budget)
    kind = Kind(f"{count:,} recorded" if count else "streamed", training)
    with contextlib.closing(ab.BlenderDataset(config, batch_size=given.batch, device=given.device)) as dataset:
        if given.resume:
            resume(given.resume, training, dataset)
        if count:
            began = budget.now()
            with console.status(f"recording {count:,} samples"):
                samples = recorded(config, count, given.device)
            kind.recording = budget.now() - began
            torch.set_num_threads(CORES)
            batches = repeated(samples, given.batch, given.seed)
        else:
            torch.set_num_threads(max(1, CORES // 4))  # most of the work is Blender's
            batches = reused(map(labelled, dataset), given.uses, given.seed)
        began, used = time.perf_counter(), processor_seconds()
        looks = training.run(batches, loss_of, lambda model: scores_of(model, held_out), given.looks)
        whole = watched(kind.name, training, looks, console)
        kind.clock, kind.processor = time.perf_counter() - began, processor_seconds() - used
        if not count or given.fixed:
            save(given.out / "model.pt", training, dataset)
    return kind, whole


def main(given: argparse.Namespace) -> bool:
    """Run the trainings, and show what they came to. Return False if a Ctrl-C has ended one of them."""
    console, kinds, whole = Console(), list[Kind](), True
    given.out.mkdir(parents=True, exist_ok=True)
    with console.status("rendering the held-out samples"):
        held_out = labelled(held_out_samples(config_of(given), given.held_out, given.device))
    for count in [given.fixed] if given.fixed else [0, *given.compare]:
        try:
            kind, whole = train(given, held_out, count, console)
        except KeyboardInterrupt:  # while it was recorded; what others came to is shown all the same
            whole = False
            break
        kinds += [kind] if kind.training.looks else []
        if not count or given.fixed:
            portraits(given.out / "predictions.png", kind.training.model, held_out)
        if not whole:
            break
    if kinds:
        console.print(table(kinds, given.batch))
        clock = "seconds of all cores" if given.processor else "seconds"
        learning(given.out / "learning.png", {kind.name: kind.curve() for kind in kinds}, PANELS, clock)
    console.print(", ".join(sorted(str(path) for path in given.out.iterdir())))
    return whole


if __name__ == "__main__":
    parser = options(__doc__, minutes=4.5, script="painted_cube.py", size=64)
    parser.add_argument("--fixed", type=positive, metavar="N", help="train on N recorded samples")
    parser.add_argument("--compare", type=positive, nargs="+", default=[], metavar="N", help="train on both, in turns")
    given = parser.parse_args()
    if given.compare and (given.fixed or given.resume):
        parser.error("--compare begins several trainings; --fixed and --resume are for one")
    run(main, given)
