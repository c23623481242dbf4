"""A training step, and the table that shows whether copies to the GPU hide behind it."""

from __future__ import annotations

import contextlib
import itertools
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncblend.testing import fake_blender

from ..measuring import Effort, Timed, Way, in_turn, timed
from ..peers.arrays import Spec, script
from ..report import Metric, Report
from ..streams import PATIENT, written

if TYPE_CHECKING:
    from torch import Tensor

    from asyncblend.data.dataset import BlenderDataset

__all__ = ["Training", "copies", "hidden", "overlap"]

_BATCH = 32
_INSTANCES = 2
_MOST_REPEATED = 200
_METHOD = (
    f"Fakes send prepared images as fast as they are carried, in batches of {_BATCH}. A step is forward, backward and SGD "
    f"of a small network, repeated until it takes twice as long as a batch takes to come, so that only copies can delay "
    f'it. *streamed*: `BlenderDataset(batch_size={_BATCH}, pin_memory=True, device="cuda")`. *copied first*: the same '
    f"without the two options, and `.to(device)` at the beginning of a step. *there already (limit)*: batches that stay "
    f"on the GPU."
)

Batch = Mapping[str, Any]


class Training:
    """A small network that learns where the corners of the cube are.

    Args:
        device: PyTorch's name of where it trains.
        width: Of the images, in pixels.
    """

    def __init__(self, device: str, width: int) -> None:
        import torch
        from torch import nn

        if device == "cpu":
            torch.set_num_threads(1)  # on all cores, it would wait for those that the Blenders use
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise((3, 16, 32, 64)):
            layers += [nn.Conv2d(before, after, 5, stride=2, padding=2), nn.ReLU()]
        self._network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(1024, 16)).to(device)
        self._optimiser = torch.optim.SGD(self._network.parameters(), lr=1e-3)
        self._loss = nn.MSELoss()
        self._device, self._width = device, width

    def step(self, batch: Batch) -> Tensor:
        """Learn from a batch, and return its loss. On a GPU this returns before it is done."""
        images = batch["image"].permute(0, 3, 1, 2).float() / 255
        corners = batch["xy"].float().flatten(1) / self._width
        self._optimiser.zero_grad()
        loss: Tensor = self._loss(self._network(images), corners)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        return loss.detach()

    def wait(self) -> None:
        """Wait until all steps are done."""
        import torch

        if self._device != "cpu":
            torch.cuda.synchronize(self._device)

    def timed(self, work: Callable[[], int], seconds: float) -> Timed:
        """Call `work` for a number of seconds, and wait for the steps that it has begun."""
        began = time.perf_counter()
        done = timed(work, seconds)
        self.wait()
        return done._replace(seconds=time.perf_counter() - began)


def copies(how: Effort, device: str, width: int, height: int) -> Report:
    """Compare a step on streamed batches with the same step on batches that are on the device already."""
    metrics = [Metric("ms/step", lambda timed: 1000 / timed.rate, 2, less_is_better=True)]
    report = Report("gpu-copies", "Copies to the GPU beside a training step", _METHOD, metrics, "streamed")
    training = Training(device, width)
    with _datasets(device, width, height) as (streamed, plain):
        here, there = iter(streamed), iter(plain)
        held = [next(here) for _ in range(4)]
        repeats = _repeats(training, held, here)

        def way(batches: Iterator[Batch], prepared: Callable[[Batch], Batch] = lambda batch: batch) -> Way:
            def step() -> int:
                batch = prepared(next(batches))
                for _ in range(repeats):
                    training.step(batch)
                return 1

            return lambda seconds: training.timed(step, seconds)

        def copied(batch: Batch) -> Batch:
            return {name: batch[name].to(device) for name in ("image", "xy")}

        ways = {
            "streamed": way(here),
            "copied first": way(there, copied),
            "there already (limit)": way(itertools.cycle(held)),
        }
        case = f"{width}x{height}, the network {repeats} time{'s' * (repeats > 1)} a step"
        report.add(case, in_turn(ways, how))
        if device != "cpu":
            report.method += " " + _profiled(ways["streamed"], training)
    return report


@contextlib.contextmanager
def _datasets(device: str, width: int, height: int) -> Iterator[tuple[BlenderDataset, BlenderDataset]]:
    """Give a dataset whose batches are copied to the device while it computes, and one whose batches are not."""
    from asyncblend.data.dataset import BlenderDataset

    spec: Spec = {"image": ("uint8", (height, width, 3)), "xy": ("float32", (8, 2))}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name, contextlib.ExitStack() as stack:
        options: dict[str, Any] = {
            "script": written(Path(name), "images.py", script(spec)),
            "blender": fake_blender(Path(name) / "fake"),
            "instances": _INSTANCES,
            "queue_size": 2 * _BATCH,
            "batch_size": _BATCH,
            "timeouts": PATIENT,
        }
        both = BlenderDataset(**options, pin_memory=True, device=device), BlenderDataset(**options)
        for dataset in both:
            stack.callback(dataset.close)
        yield both


def _repeats(training: Training, held: Sequence[Batch], batches: Iterator[Batch]) -> int:
    """Return how often a batch must be learned from to take twice as long as the next one takes to come."""

    def learn() -> int:
        training.step(held[0])
        return 1

    def take() -> int:
        next(batches)
        return 1

    training.timed(learn, 0.3)  # the first steps choose their kernels
    alone, coming = training.timed(learn, 0.3), training.timed(take, 0.3)
    return min(_MOST_REPEATED, math.ceil(2 * alone.rate / coming.rate))


def _profiled(way: Way, training: Training) -> str:
    """Return a sentence that says how much of the time of copies passed while the GPU computed."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        way(0.3)
        training.wait()
    share = hidden(profiled.events() or ())
    if share is None:
        return "PyTorch's profiler saw no copies to the GPU."
    return f"By PyTorch's profiler, {share:.0%} of the time of copies to the GPU passed while it computed."


def hidden(events: Iterable[Any]) -> float | None:
    """Return which share of the time of copies to the GPU passed while it computed. None: there were no copies.

    Args:
        events: FunctionEvents of PyTorch's profiler.
    """
    copied: list[tuple[float, float]] = []
    computed: list[tuple[float, float]] = []
    for event in events:
        if event.device_type.name == "CUDA":
            span = (event.time_range.start, event.time_range.end)
            if event.name.startswith("Memcpy HtoD"):
                copied.append(span)
            elif not event.name.startswith(("Memcpy", "Memset")):
                computed.append(span)
    return overlap(copied, computed) if copied else None


def overlap(inner: Sequence[tuple[float, float]], outer: Sequence[tuple[float, float]]) -> float:
    """Return the share of the time of some spans that passed within others. Each span has a beginning and an end."""
    whole = sum(end - begin for begin, end in inner)
    shared, reached = 0.0, -math.inf
    for begin, end in sorted(outer):  # what lies within an earlier one counts once
        begin, reached = max(begin, reached), max(end, reached)
        shared += sum(max(0.0, min(end, stop) - max(begin, start)) for start, stop in inner)
    return shared / whole if whole else 0.0
