"""What the examples that train a network share: a network, its training within a budget, checkpoints, and the options.

`train_keypoints.py` and `train_detector.py` import it from their own folder.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn

import asyncblend as ab

SCRIPTS = Path(__file__).parents[1] / "blender_scripts"
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
HELD_OUT_SEED = 987_654_321
"""The stream's seed of the held-out samples. No training has it, so no training sees one of them."""


# -- the network ---------------------------------------------------------------------------------------------------


def convolution(channels: int, wanted: int, stride: int = 1) -> nn.Module:
    """Return a 3 x 3 convolution with batch normalisation and ReLU."""
    layer = nn.Conv2d(channels, wanted, 3, stride, 1, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(wanted), nn.ReLU(inplace=True))


class Residual(nn.Module):
    """Two convolutions whose result is added to what they were given."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        last = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.body = nn.Sequential(convolution(channels, channels), last, nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.body(x))


class UNet(nn.Module):
    """A small U-Net: from images to maps of half their width and height.

    Args:
        maps: How many maps.
        widths: The channels at a half, a quarter, ... of the image's size. Width and height of an image must be
            multiples of 2 to the power of their number.
    """

    def __init__(self, maps: int, widths: tuple[int, ...] = (24, 48, 96, 128)) -> None:
        super().__init__()
        first, deeper = widths[0], list(itertools.pairwise(widths))
        self.stem = convolution(3, first, 2)
        self.down = nn.ModuleList(nn.Sequential(convolution(a, b, 2), Residual(b)) for a, b in deeper)
        self.bottom = Residual(widths[-1])
        self.narrow = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in reversed(deeper))
        self.up = nn.ModuleList(Residual(a) if a != first else convolution(a, a) for a, _ in reversed(deeper))
        self.maps = nn.Conv2d(first, maps, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return N x maps x H/2 x W/2 float32.

        Args:
            images: N x H x W x 3 or 4 uint8, as Blender renders them.
        """
        x = images[..., :3].permute(0, 3, 1, 2).float() / 64 - 2  # channels stay last in memory, which is fast
        levels = [self.stem(x)]
        for down in self.down:
            levels.append(down(levels[-1]))
        x = self.bottom(levels.pop())
        for narrow, up in zip(self.narrow, self.up, strict=True):
            x = up(levels.pop() + F.interpolate(narrow(x), scale_factor=2.0))
        maps: torch.Tensor = self.maps(x)
        return maps


# -- the budget ----------------------------------------------------------------------------------------------------


def processor_seconds() -> float:
    """Return what this process and its children, such as Blenders, have used of the processor. Linux only."""
    own, ticks = os.times(), os.sysconf("SC_CLK_TCK")
    seconds = own.user + own.system + own.children_user + own.children_system  # of children that have ended
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[1]) == os.getpid():
                seconds += (int(fields[11]) + int(fields[12])) / ticks
    return seconds


@dataclass
class Budget:
    """How long a training goes on, and how much of that it has spent."""

    seconds: float
    steps: int | None = None
    """Steps of the optimizer, in place of seconds."""
    processor: bool = False
    """Count the seconds of the processor, divided by the number of cores, in place of those of the clock. On a busy
    machine these are the same as on a quiet one."""
    spent: float = 0.0
    """Seconds."""
    share: float = 0.0
    """What part of it is spent, from 0 to 1."""
    _read: float | None = None

    def update(self, steps: int) -> None:
        """Note that this number of steps is done. The time runs from the first call on."""
        now = self.now()
        self.spent, self._read = self.spent + now - (now if self._read is None else self._read), now
        self.share = min(1.0, self.spent / self.seconds if self.steps is None else steps / self.steps)

    def now(self) -> float:
        """Return the seconds that its clock shows."""
        return processor_seconds() / CORES if self.processor else time.perf_counter()


# -- the training --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """What is seen of a training now and then."""

    seconds: float
    steps: int
    loss: float
    """The mean since the look before."""
    scores: dict[str, float]
    """Of the held-out samples."""


@dataclass
class Training:
    """A network that is trained until its budget is spent. The learning rate follows a half cosine down to zero."""

    model: nn.Module
    budget: Budget
    rate: float = 6e-3
    steps: int = 0
    looks: list[Look] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=self.rate, weight_decay=0.01)

    def run(
        self,
        batches: Iterable[Any],
        loss_of: Callable[[torch.Tensor, Any], torch.Tensor],
        scores_of: Callable[[nn.Module], dict[str, float]],
        looks: int = 16,
    ) -> Iterator[Look | None]:
        """Train, and yield after each step: a look, that many times until the budget is spent, or None.

        Raises:
            SystemExit: The budget was spent before, by the training that this one goes on from.
        """
        losses: list[torch.Tensor] = []
        self.model.train()
        self.budget.update(self.steps)
        if self.budget.share == 1:
            raise SystemExit("the budget is spent already: give more --minutes, or --steps")
        due = math.floor(self.budget.share * looks) + 1
        for batch in batches:
            falling = (1 + math.cos(math.pi * self.budget.share)) / 2
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * min(1, (self.steps + 1) / 100) * falling
            loss = loss_of(self.model(batch["image"]), batch)
            self.optimizer.zero_grad()
            torch.autograd.backward(loss)
            self.optimizer.step()
            self.steps += 1
            losses.append(loss.detach())
            self.budget.update(self.steps)
            if self.budget.share * looks < due:
                yield None
                continue
            due = min(looks, math.floor(self.budget.share * looks) + 1)
            self.model.eval()
            with torch.no_grad():
                scores = scores_of(self.model)
            self.model.train()
            self.looks.append(Look(self.budget.spent, self.steps, torch.stack(losses).mean().item(), scores))
            losses = []
            yield self.looks[-1]
            if self.budget.share == 1:
                return

    def state_dict(self) -> dict[str, Any]:
        """Return everything that training needs to go on, as `torch.save` writes it and `torch.load` reads it safely."""
        looks = [asdict(look) for look in self.looks]
        own = {"steps": self.steps, "spent": self.budget.spent, "looks": looks}
        return {**own, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another training has ended. What it had spent is spent."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps, self.budget.spent = state["steps"], state["spent"]
        self.looks = [Look(**look) for look in state["looks"]]


# -- the program ---------------------------------------------------------------------------------------------------


def positive(text: str) -> int:
    """Return a whole number from 1 on, for argparse."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"it must be at least 1, not {number}")
    return number


def sixteens(text: str) -> int:
    """Return a size that the network can halve four times, for argparse."""
    if (number := int(text)) < 16 or number % 16:
        raise argparse.ArgumentTypeError(f"it must be a multiple of 16, not {number}")
    return number


def options(about: str | None, minutes: float, script: str, size: int) -> argparse.ArgumentParser:
    """Return a parser with the options that all trainings have."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--minutes", type=float, default=minutes, help="of training, from the start of Blender on (%(default)g)"
    )
    parser.add_argument("--steps", type=positive, help="of the optimizer, in place of minutes")
    parser.add_argument(
        "--processor", action="store_true", help="count minutes of all cores, in place of those of the clock"
    )
    parser.add_argument("--batch", type=positive, default=32, help="samples of a step (%(default)s)")
    parser.add_argument(
        "--uses", type=positive, default=4, help="steps that a rendered image is used in, on average (%(default)s)"
    )
    parser.add_argument(
        "--size", type=sixteens, default=size, help="pixels of the image's edges, a multiple of 16 (%(default)s)"
    )
    parser.add_argument("--held-out", type=positive, default=500, help="samples that no training sees (%(default)s)")
    parser.add_argument("--looks", type=positive, default=16, help="how often these are predicted (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the network and of the stream (%(default)s)")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="the network's (%(default)s)"
    )
    parser.add_argument("--script", type=Path, default=SCRIPTS / script, help="renders the samples")
    parser.add_argument("--instances", type=positive, default=CORES, help="Blenders (%(default)s)")
    parser.add_argument("--blender", help="as the option of a stream: an executable, or `bpy`")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="go on from the model.pt of a training")
    parser.add_argument(
        "--out", type=Path, default=Path("tmp") / script.removesuffix(".py"), help="a folder (%(default)s)"
    )
    parser.add_argument("script_args", nargs="*", metavar="-- ARGS", help="the script's own options")
    return parser


def save(path: Path, training: Training, dataset: ab.BlenderDataset) -> None:
    """Write a checkpoint: the network, and what `resume` needs to go on."""
    torch.save({"training": training.state_dict(), "stream": dataset.state_dict()}, path)


def resume(path: Path, training: Training, dataset: ab.BlenderDataset) -> None:
    """Go on from a checkpoint: with the same weights, at the same sample of the stream, after the same time."""
    state = torch.load(path, map_location=next(training.model.parameters()).device, weights_only=True)
    training.load_state_dict(state["training"])
    dataset.load_state_dict(state["stream"])


def config_of(given: argparse.Namespace) -> ab.StreamConfig:
    """Return the stream that the options ask for. The script gets the size of the images first."""
    size = ("--width", str(given.size), "--height", str(given.size))
    return ab.StreamConfig(
        script=given.script,
        script_args=(*size, *given.script_args),
        instances=given.instances,
        blender=given.blender,
        seed=given.seed,
    )


def held_out_samples(config: ab.StreamConfig, count: int, device: str) -> dict[str, Any]:
    """Render samples that no training sees, as one batch."""
    dataset = ab.BlenderDataset(config, seed=HELD_OUT_SEED, length=count, batch_size=count, device=device, ordered=True)
    with contextlib.closing(dataset):
        return dict(next(iter(dataset)))


def reused(batches: Iterable[dict[str, Any]], uses: int, seed: int, kept: int = 64) -> Iterator[dict[str, Any]]:
    """Yield each batch, and after it some of the last ones again, so that each comes `uses` times on average.

    Rendering an image takes several times as long as a step of training on it, and one step does not learn all of it.
    """
    draw, last = random.Random(seed), list[dict[str, Any]]()
    for batch in batches:
        last = [*last[1 - kept :], batch]
        yield batch
        yield from draw.choices(last, k=uses - 1)


def pieces(model: nn.Module, images: torch.Tensor, size: int = 100) -> torch.Tensor:
    """Return what the network makes of many images, a hundred at a time."""
    return torch.cat([model(images[first : first + size]) for first in range(0, len(images), size)])


def run(main: Callable[[argparse.Namespace], bool], given: argparse.Namespace) -> NoReturn:
    """Run a program, and exit as it ends: with 0, or with 130 after a Ctrl-C, of which it returns False."""
    try:
        code = 0 if main(given) else 130
    except KeyboardInterrupt:
        code = 130
    raise SystemExit(code)


def watched(title: str, training: Training, looks: Iterable[Look | None], console: Console) -> bool:
    """Go through a training, and show how far it is. Return False if a Ctrl-C ends it early."""
    columns = (TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[said]}"), TimeElapsedColumn())
    said = "starting"
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=1.0, said=said)
        try:
            for look in looks:
                if look is not None:
                    said = "  ".join(
                        f"{name} {value:.3f}" for name, value in {"loss": look.loss, **look.scores}.items()
                    )
                    if not console.is_terminal:
                        console.print(f"{title}, {look.seconds:.0f} s, {look.steps} steps:  {said}")
                progress.update(task, completed=training.budget.share, said=said)
        except KeyboardInterrupt:
            console.print(f"{title}: stopped after {training.steps} steps")
            return False
    return True
