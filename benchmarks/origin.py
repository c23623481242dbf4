"""`python -m benchmarks origin`: the table of blendtorch's README, for its method and for asyncblend."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .machine import blender_name, own_view
from .measuring import Effort, Timed, Way, in_turn, timed
from .peers.origin import Origin, receiver
from .peers.plain import INSIDE, Scene
from .render import CYCLES, NAMES, engines
from .report import Metric, Report
from .streams import PATIENT

__all__ = ["measure"]

_BATCH = 4
_METHOD = (
    "Milliseconds a batch of four 640x480 images of a cube, with Blender's own view transform, "
    "`DataLoader(batch_size=4, num_workers=0)`. *asyncblend*: a BlenderDataset. *blendtorch's method*: a dataset whose "
    "items are received from Blenders that render into a PNG file, read it, pickle and publish it."
)


def measure(how: Effort, blender: str | None = None) -> Report:
    """Measure milliseconds for a batch of four with one and two Blenders, beside the method of blendtorch.

    Each engine is measured.
    """
    metrics = [
        Metric("ms/batch", lambda timed: 1000 / timed.rate, 1, less_is_better=True),
        Metric("ms/image", lambda timed: 1000 / timed.rate / _BATCH, 1),
    ]
    report = Report(
        "origin", f"Origin: a batch of four 640x480 images, by {blender_name(blender)}", _METHOD, metrics, "asyncblend"
    )
    kinds = [CYCLES] if how.quick else engines(blender)
    size = (64, 48) if how.quick else (640, 480)
    for engine in kinds:
        for instances in (1,) if how.quick else (1, 2):
            case = f"{NAMES[engine]}, {own_view(blender)}, {instances} instance{'s' * (instances > 1)}"
            how.say(case)
            with _ways(blender, instances, (*size, engine)) as ways:
                report.add(case, in_turn(ways, how))
    return report


@contextlib.contextmanager
def _ways(blender: str | None, instances: int, scene: Scene) -> Iterator[Mapping[str, Way]]:
    from asyncblend.data.dataset import BlenderDataset, DataLoader

    dataset = BlenderDataset(
        script=INSIDE / "cube_stream.py",
        blender=blender,
        instances=instances,
        queue_size=2 * _BATCH,
        params={"scene": list(scene)},
        timeouts=PATIENT,
    )
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder, contextlib.ExitStack() as stack:
        stack.callback(dataset.close)
        batches = iter(DataLoader(dataset, batch_size=_BATCH, num_workers=0))
        next(batches)  # starts the fleet, and installs what Blender's Python lacks
        published = stack.enter_context(receiver(blender, instances, Path(folder)))
        source: Any = _Received(published)
        received = iter(DataLoader(source, batch_size=_BATCH, num_workers=0))

        def ours(seconds: float) -> Timed:
            for _ in range(3):  # these were made ahead
                next(batches)
            return timed(lambda: _one(batches), seconds)

        def theirs(seconds: float) -> Timed:
            published.go(scene)
            try:
                return timed(lambda: _one(received), seconds)
            finally:
                published.stop()

        yield {"asyncblend": ours, "blendtorch's method": theirs}


def _one(batches: Iterator[Any]) -> int:
    assert len(next(batches)["image"]) == _BATCH
    return 1


class _Received:
    """The dataset of blendtorch: its items are messages that Blenders publish."""

    def __init__(self, published: Origin) -> None:
        self._published = published

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._published.recv()
