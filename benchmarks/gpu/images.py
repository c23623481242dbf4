"""The tables of images/s, from one GPU and from several."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncblend as ab

from ..measuring import Effort, Timed, Way, in_turn
from ..peers.bare import bare
from ..peers.plain import INSIDE, Scene
from ..render import CYCLES, rendered
from ..report import Metric, Report, Row
from .training import Training

__all__ = ["Images", "Setup", "first_frame", "several"]

_OURS, _RATE, _EACH = "async for", "images/s", "ms/image"
_METRICS = (Metric(_RATE, lambda timed: timed.rate, 1), Metric(_EACH, lambda timed: 1000 / timed.rate, 2))
_BATCH = 8
_CLAIM, _CLAIMED, _CLAIMED_INSTANCES = "blendtorch's claim", 94.0, 5
_METHOD = (
    "A cube of random rotation and colour, with the pixel coordinates of its corners, on the first GPU. *async for*: the "
    f"stream's frames. *training*: a `BlenderDataset(batch_size={_BATCH}, pin_memory=True, device=...)`, and forward, "
    "backward and SGD of a small network that learns the corners. *bare render*: as many processes that call "
    "`bpy.ops.render.render(write_still=False)` in a loop, and send nothing. All with `use_persistent_data`. "
    f"*{_CLAIM}*: {_CLAIMED:.0f} images/s, on its authors' machine, of a cube with EEVEE from {_CLAIMED_INSTANCES} "
    "instances; it reads a viewport, which draws one sample."
)
_SEVERAL = (
    "`gpus=` with one GPU and with all, two instances on each of them. Frames are only taken. Only Cycles, because EEVEE "
    "draws on the first GPU whatever `gpus` says."
)


@dataclass(frozen=True)
class Setup:
    """What is rendered, with what, and on what."""

    blender: str
    engines: Mapping[str, str]
    """What the table calls each engine, by Blender's name of it."""
    gpus: Sequence[str]
    """What Cycles renders on. Empty: the processor, or nothing if there is no Cycles among the engines."""
    device: str
    """What PyTorch trains on."""
    width: int
    height: int
    samples: int
    """Of Cycles, in each pixel."""
    counts: Sequence[int]
    """Numbers of instances, in the order in which they are measured: what would be missed least comes last."""
    fleets: Mapping[str, Mapping[str, Any]]
    """Options of fleets on one GPU and on several, by name. Empty: there is one GPU."""

    def options(self) -> dict[str, Any]:
        """Return options of a stream, beside those that `rendered` gives it."""
        return {"script_args": [str(self.samples)], "gpus": self.gpus[:1] or None}

    def scene(self, engine: str) -> Scene:
        """Return what the scripts are told to render."""
        return (self.width, self.height, engine)


def first_frame(setup: Setup, engine: str, patience: float) -> float:
    """Start one Blender, and return the seconds until it has rendered one frame. The first one compiles kernels.

    Raises:
        AsyncblendError: It cannot render with this engine.
    """
    began = time.perf_counter()
    stream = ab.BlenderStream(
        script=INSIDE / "cube_stream.py",
        blender=setup.blender,
        instances=1,
        length=1,
        params={"scene": list(setup.scene(engine))},
        timeouts=ab.Timeouts(start=patience, frame=patience),
        **setup.options(),
    )
    with stream.sync() as frames:
        next(frames)
        return time.perf_counter() - began


class Images:
    """The table of images/s from one GPU, which grows by one number of instances at a time."""

    def __init__(self, setup: Setup, title: str) -> None:
        self._setup, self._title = setup, title
        self.found: dict[tuple[str, int], dict[str, list[Timed]]] = {}
        """By engine and number of instances: for each way, what its rounds did."""

    def measure(self, instances: int, how: Effort) -> None:
        """Measure each engine with that many instances."""
        setup = self._setup
        now = [setup.scene(next(iter(setup.engines)))]
        how.say(f"{instances} Blender{'s' * (instances > 1)} for each way")
        with _ways(setup, instances, lambda: now[0]) as ways:
            for engine, name in setup.engines.items():
                now[0] = setup.scene(engine)
                how.say(name)
                self.found[engine, instances] = in_turn(ways, how)

    def report(self) -> Report:
        """Return what was measured until now."""
        report = Report("gpu-images", self._title, _METHOD, _METRICS, _OURS, own=["training"])
        for engine, name in self._setup.engines.items():
            for (own, instances), found in sorted(self.found.items()):
                if own != engine:
                    continue
                case = f"{name}, {self._setup.width}x{self._setup.height}, {instances} instance{'s' * (instances > 1)}"
                report.add(case, found)
                if engine.startswith("BLENDER_EEVEE") and instances == _CLAIMED_INSTANCES:
                    report.rows.append(Row(case, _CLAIM, {_RATE: [_CLAIMED], _EACH: [1000 / _CLAIMED]}))
        return report


@contextlib.contextmanager
def _ways(setup: Setup, instances: int, scene: Callable[[], Scene]) -> Iterator[Mapping[str, Way]]:
    gpu = setup.gpus[0] if setup.gpus else None
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder, contextlib.ExitStack() as stack:
        # This way is the first, because it installs what Blender's Python lacks.
        ours = stack.enter_context(rendered(setup.blender, instances, scene, **setup.options()))
        yield {
            _OURS: ours,
            "training": stack.enter_context(_trained(setup, instances, scene)),
            "bare render (limit)": stack.enter_context(
                bare(setup.blender, instances, Path(folder), scene, gpu=gpu, samples=setup.samples)
            ),
        }


@contextlib.contextmanager
def _trained(setup: Setup, instances: int, scene: Callable[[], Scene]) -> Iterator[Way]:
    """Open a dataset, and give a way that trains on its batches."""
    from asyncblend.data.dataset import BlenderDataset

    from ..streams import PATIENT

    dataset = BlenderDataset(
        script=INSIDE / "cube_stream.py",
        blender=setup.blender,
        instances=instances,
        queue_size=2 * (_BATCH + instances),
        params=lambda index: {"scene": list(scene())},
        timeouts=PATIENT,
        batch_size=_BATCH,
        pin_memory=True,
        device=setup.device,
        **setup.options(),
    )
    training = Training(setup.device, setup.width)
    batches = iter(dataset)

    def step() -> int:
        training.step(next(batches))
        return _BATCH

    def way(seconds: float) -> Timed:
        wanted = list(scene())
        while any(one != wanted for one in next(batches)["params"]["scene"]):  # of the case before
            pass
        for _ in range(3):  # these were rendered while another way had its turn
            step()
        training.wait()
        done = training.timed(step, seconds)
        while (stats := dataset.stats()) is not None and stats.rendering:  # the next turn begins when Blenders are idle
            time.sleep(0.002)
        return done

    try:
        yield way
    finally:
        dataset.close()


def several(setup: Setup, how: Effort) -> Report:
    """Compare fleets on several GPUs by Cycles."""
    scene = setup.scene(CYCLES)
    report = Report("gpu-several", "Several GPUs", _SEVERAL, _METRICS, list(setup.fleets)[-1])
    with contextlib.ExitStack() as stack:
        ways = {}
        for name, options in setup.fleets.items():
            how.say(name)
            own = {**setup.options(), **options}
            ways[name] = stack.enter_context(rendered(setup.blender, scene=lambda: scene, **own))
        report.add(f"{setup.engines[CYCLES]}, {setup.width}x{setup.height}", in_turn(ways, how))
    return report
