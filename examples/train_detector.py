"""Train a detector on images that are rendered while it trains: shapes of six classes among clutter, and their boxes.

    pip install "asyncblend[bpy,plot,coco]"
    python examples/train_detector.py

For each class a map says where the middle of a box is, and four more how far its sides are from there (CenterNet, Zhou
et al. 2019). It starts from scratch. pycocotools evaluates it on samples of another seed, which no training sees. AP50
is the average precision where a box counts as found if it overlaps the true one by half; AP is the mean over stricter
overlaps too, up to 95 %. Both are means over the classes.

These images take longer to render than to learn from. So each of them is trained on several times (`--uses`), beside
ever new ones. In the folder `--out` there are afterwards the network, a picture of what it predicts beside the truth,
and a chart. Training stops early with Ctrl-C, and `--resume` goes on from there.

Other scenes do too, if their samples have `image`, and `bbox`, `class_id`, `class_name` and `visible_fraction` as
`bl.annotate` gives them. They may have different numbers of objects.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from charts import COLOURS, Panel, beside, learning
from rich.console import Console
from rich.table import Table
from torch import nn
from training import (
    CORES,
    SCRIPTS,
    Budget,
    Training,
    UNet,
    config_of,
    held_out_samples,
    options,
    pieces,
    resume,
    reused,
    run,
    save,
    watched,
)

import asyncblend as ab

try:
    from matplotlib.patches import Rectangle
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
except ModuleNotFoundError as error:
    raise SystemExit(f'{error.name} is not installed here. Type: pip install "asyncblend[plot,coco]"') from None

Batch = dict[str, torch.Tensor]
SEEN = 0.15
"""What part of an object must be visible: the others are neither asked for nor counted as wrong."""
BOXES = 30
"""At most so many are found in an image."""
WIDTHS = (24, 48, 96, 128)
UNIT = 8
"""Pixels in a unit of the maps of distances."""
PANELS = (
    Panel("AP50", "AP50 of held-out samples, %", {"ylim": (0, 100)}),
    Panel("AP", "AP of held-out samples, %", {"ylim": (0, 100)}),
)


# -- what is learned -----------------------------------------------------------------------------------------------


def labelled(batch: Mapping[str, Any]) -> Batch:
    """Return what training needs of a batch: images, and for each object the box's edges x y x y, class and whether it counts."""
    bbox, class_id, fraction = (padded(batch[name]) for name in ("bbox", "class_id", "visible_fraction"))
    edges = torch.cat((bbox[..., :2], bbox[..., :2] + bbox[..., 2:]), dim=2)
    return {
        "image": batch["image"],
        "edges": edges,
        "class_id": class_id,
        "counts": (fraction >= SEEN) & (class_id > 0),
    }


def padded(values: Any) -> torch.Tensor:
    """Return the values of a batch's objects as one tensor. Samples of fewer objects than others get zeros: no class."""
    return values if isinstance(values, torch.Tensor) else torch.nn.utils.rnn.pad_sequence(values, batch_first=True)


def classes_of(samples: Mapping[str, Any]) -> dict[int, str]:
    """Return the names of the classes by their ids, in order; without 0, which is no class."""
    ids = [id_ for own in samples["class_id"] for id_ in own.tolist()]
    names = itertools.chain.from_iterable(samples["class_name"])
    return {id_: name for id_, name in sorted({*zip(ids, names, strict=True)}) if id_}


def loss_of(maps: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the loss: of the middles a focal one for each pixel, and of the boxes the distance of each side."""
    height, width = maps.shape[2:]
    middles, sides = maps[:, :-4], maps[:, -4:]
    edges, counts = batch["edges"] / 2, batch["counts"]  # in pixels of the maps
    middle, spread = (edges[..., :2] + edges[..., 2:]) / 2, (edges[..., 2:] - edges[..., :2]).clamp_min(1) / 8
    column, row = (middle[..., 0].long().clamp(0, width - 1), middle[..., 1].long().clamp(0, height - 1))

    # A spot of the box's size for each object. Its peak is the pixel that the middle is in.
    x, y = (torch.arange(length, device=maps.device) for length in (width, height))
    across = torch.exp(-(((x - column[..., None]) / spread[..., :1]) ** 2) / 2)
    down = torch.exp(-(((y - row[..., None]) / spread[..., 1:]) ** 2) / 2)
    spots = down[..., :, None] * across[..., None, :] * counts[..., None, None]
    classes = torch.arange(1, middles.shape[1] + 1, device=maps.device)
    of_class = batch["class_id"][:, None] == classes[:, None]
    wanted = torch.stack([(spots * own[..., None, None]).amax(dim=1) for own in of_class.unbind(dim=1)], dim=1)
    chance = middles.sigmoid()
    hits = (1 - chance) ** 2 * F.logsigmoid(middles) * (wanted == 1)
    misses = (1 - wanted) ** 4 * chance**2 * F.logsigmoid(-middles) * (wanted < 1)
    number = counts.sum().clamp_min(1)

    image = torch.arange(len(maps), device=maps.device)[:, None]
    found = sides[image, :, row, column]
    here = torch.stack((column, row, column, row), dim=2) + 0.5
    apart = F.smooth_l1_loss(found, (edges - here) * 2 / UNIT, reduction="none", beta=0.2).sum(dim=2)
    loss: torch.Tensor = ((apart * counts).sum() - hits.sum() - misses.sum()) / number
    return loss


def boxes_of(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return for each image the likeliest boxes: N x B x 4 float32 edges in pixels, N x B chances, N x B classes."""
    height, width = maps.shape[2:]
    chance = maps[:, :-4].sigmoid()
    chance = chance * (chance == F.max_pool2d(chance, 3, 1, 1))  # peaks alone
    best, place = chance.flatten(1).topk(BOXES, dim=1)
    row, column = place % (height * width) // width, place % width
    image = torch.arange(len(maps), device=maps.device)[:, None]
    here = torch.stack((column, row, column, row), dim=2) * 2 + 1
    return here + UNIT * maps[image, -4:, row, column], best, place // (height * width) + 1


def truth_of(held_out: Batch) -> COCO:
    """Return the true boxes as pycocotools has them. Those of objects that hardly show are neither right nor wrong."""
    coco, annotations = COCO(), list[dict[str, Any]]()
    values = (held_out[name].tolist() for name in ("edges", "class_id", "counts"))
    for image, objects in enumerate(zip(*values, strict=True)):
        for (left, top, right, bottom), category, counts in zip(*objects, strict=True):
            if right > left and category:
                box = {"bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top)}
                box |= {"id": len(annotations) + 1, "image_id": image, "category_id": category}
                annotations.append({**box, "iscrowd": int(not counts)})
    categories = [{"id": category} for category in {*held_out["class_id"].flatten().tolist()} - {0}]
    images = [{"id": image} for image in range(len(held_out["image"]))]
    coco.dataset = {"images": images, "annotations": annotations, "categories": categories}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def precision(model: nn.Module, held_out: Batch, truth: COCO) -> Any:
    """Return the average precision of each class at ten overlaps, from 50 % to 95 %: 10 x classes float64."""
    found = boxes_of(pieces(model, held_out["image"]))
    rows = [
        [image, left, top, right - left, bottom - top, chance, category]
        for image, boxes in enumerate(zip(*(each.cpu().tolist() for each in found), strict=True))
        for (left, top, right, bottom), chance, category in zip(*boxes, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(np.array(rows)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    every = evaluation.eval["precision"][:, :, :, 0, -1]  # overlaps x recalls x classes, for boxes of all sizes
    return every.mean(axis=1)  # -1 for a class that no held-out object has


def mean_of(own: Any) -> float:
    """Return the mean over the classes that there are."""
    return float(own[own >= 0].mean())


# -- what it is learned from ---------------------------------------------------------------------------------------


def varied(batches: Iterable[Batch], seed: int) -> Iterator[Batch]:
    """Yield each batch as it is, or mirrored."""
    draw = random.Random(seed)
    for batch in batches:
        yield draw.choice((batch, mirrored(batch)))


def mirrored(batch: Batch) -> Batch:
    """Return a batch whose images are mirrored, with their boxes."""
    width, edges = batch["image"].shape[2], batch["edges"].clone()
    edges[..., [2, 0]] = width - batch["edges"][..., [0, 2]]
    return {**batch, "image": batch["image"].flip(2), "edges": edges}


# -- what is shown -------------------------------------------------------------------------------------------------


def portraits(path: Path, model: nn.Module, held_out: Batch, count: int = 6) -> None:
    """Write a picture of the first held-out images: above with the true boxes, below with those of a chance above 40 %."""
    images = held_out["image"][:count]
    with torch.no_grad():
        edges, chances, classes = (each.cpu() for each in boxes_of(model.eval()(images)))
    truth = [held_out[name][:count].cpu() for name in ("edges", "class_id", "counts")]

    def drawn(edges: Any, classes: Any, shown: Any) -> Callable[[Any, int], None]:
        def draw(axes: Any, number: int) -> None:
            own = shown[number]
            for (left, top, right, bottom), category in zip(edges[number, own], classes[number, own], strict=True):
                style = {"edgecolor": COLOURS[(int(category) - 1) % len(COLOURS)], "fill": False, "linewidth": 1.2}
                axes.add_patch(Rectangle((left, top), right - left, bottom - top, **style))

        return draw

    rows = {"truth": drawn(*truth), "predicted": drawn(edges, classes, chances > 0.4)}
    beside(path, images.cpu().numpy(), rows)


def table(names: dict[int, str], own: Any) -> Table:
    """Return the average precision of each class, given the names in order and what `precision` returns."""
    shown = Table("held-out samples", "AP50", "AP", box=None, header_style="bold")
    for (_, name), column in zip(names.items(), own.T, strict=True):
        shown.add_row(name, f"{column[0]:.1%}", f"{column.mean():.1%}")
    shown.add_row("mean", f"{mean_of(own[:1]):.1%}", f"{mean_of(own):.1%}", style="bold")
    return shown


# -- the program ---------------------------------------------------------------------------------------------------


def main(given: argparse.Namespace) -> bool:
    """Train, and show what it came to. Return False if a Ctrl-C has ended it."""
    console, config = Console(), config_of(given)
    given.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(given.seed)
    torch.set_num_threads(max(1, CORES // 4))  # most of the work is Blender's
    with console.status("rendering the held-out samples"):
        samples = held_out_samples(config, given.held_out, given.device)
    held_out = labelled(samples)
    names, truth = classes_of(samples), truth_of(held_out)

    def scores_of(model: nn.Module) -> dict[str, float]:
        own = precision(model, held_out, truth)
        return {"AP50": mean_of(own[:1]), "AP": mean_of(own)}

    network = UNet(max(names) + 4, WIDTHS)
    nn.init.constant_(network.maps.bias[:-4], -4.0)  # middles are rare
    training = Training(network.to(given.device), Budget(60 * given.minutes, given.steps, given.processor), rate=2e-3)
    with contextlib.closing(ab.BlenderDataset(config, batch_size=given.batch, device=given.device)) as dataset:
        if given.resume:
            resume(given.resume, training, dataset)
        batches = varied(reused(map(labelled, dataset), given.uses, given.seed), given.seed)
        whole: bool = watched("streamed", training, training.run(batches, loss_of, scores_of, given.looks), console)
        save(given.out / "model.pt", training, dataset)
    with torch.no_grad():
        console.print(table(names, precision(network.eval(), held_out, truth)))
    clock = "seconds of all cores" if given.processor else "seconds"
    console.print(f"{training.steps:,} steps in {training.budget.spent:.0f} {clock}")
    learning(given.out / "learning.png", {"streamed": training.looks}, PANELS, clock)
    portraits(given.out / "predictions.png", network, held_out)
    console.print(", ".join(sorted(str(path) for path in given.out.iterdir())))
    return whole


if __name__ == "__main__":
    parser = options(__doc__, minutes=4.5, script="shapes.py", size=128)
    given = parser.parse_args()
    if given.script == SCRIPTS / "shapes.py":
        given.script_args = ["--labels", "boxes", *given.script_args]
    run(main, given)
