"""The command: plans its time, measures, and saves after each table."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from asyncblend.errors import AsyncblendError

from ..machine import machine
from ..measuring import Effort
from ..options import BlenderOption, JsonOption
from ..render import CYCLES, WORKBENCH
from ..report import Report
from ..results import write
from .images import Images, Setup, first_frame, several
from .seen import Seen, cards, check_torch, choose, look, visible
from .training import copies

__all__ = ["Run", "gpu"]

_HERE = Path(__file__).parents[1]
_NAME = "RESULTS-GPU.md"
_ROUNDS = 3
_WAYS = 3  # of the table of images/s
_KEPT = 0.1  # of the time, for the table of copies
_SHORTEST_TURN, _LONGEST_TURN = 0.1, 3.0  # seconds
_HEADING = "# Results of GPUs\n\n"
_ABOUT = (
    "By `python -m benchmarks gpu`. All ways of a table ran in the same run and in turns; the figures are medians of the "
    "rounds, with the lowest and the highest."
)
_TRIED = (
    "The command was only tried, with --processor: tiny images, Cycles on the processor, and Workbench in the place of "
    "EEVEE, whose shaders would take half a minute to build. These figures say nothing about a GPU."
)
_console = Console(soft_wrap=True, highlight=False, markup=False)


def gpu(
    blender: BlenderOption = None,
    processor: Annotated[bool, typer.Option("--processor", help="Try the command without a GPU.")] = False,
    minutes: Annotated[float, typer.Option(help="About how long it may take.", min=0.1)] = 8.0,
    json_: JsonOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help=f"The folder for {_NAME} and its pictures. With --processor, a temporary one."),
    ] = None,
) -> None:
    """Count images per second from GPUs to `async for` and to a training step, and write RESULTS-GPU.md.

    EEVEE and Cycles render a cube with 1 to 8 Blenders, beside the bare render loop and what blendtorch claims. Another
    table shows whether copies to the GPU hide behind the step, and where there are several GPUs, one compares them.

    It is saved after each table and after each number of instances, so what was measured is kept when it is cut off. It
    needs NVIDIA's driver, a build of PyTorch for CUDA, and a Blender: the bpy module, or an executable. The exit status
    is 1 if something could not be measured.
    """
    end = time.monotonic() + 60 * minutes
    try:
        seen = look(blender)
        chosen = choose(seen, processor=processor)
        setup = _tried(chosen) if processor else _setup(chosen)
        folder = out or (Path(tempfile.mkdtemp(prefix="benchmark-")) if processor else _HERE)
        introduction = _HEADING + (_TRIED if processor else _ABOUT)
        about = machine() | _gpus() | {one.name: str(one) for one in seen} | {"measured": chosen.name}

        def save(reports: Sequence[Report], about: Mapping[str, str]) -> None:
            write(folder, reports, about, json_, name=_NAME, introduction=introduction)

        for name, value in about.items():
            _console.print(f"{name}: {value}")
        run = Run(setup, about, end, save)
        for report in run.run():
            for table in report.tables():
                _console.print(table)
        _console.print(folder / _NAME)
    except AsyncblendError as error:
        _console.print(f"{type(error).__name__}: {error}", style="red")
        raise typer.Exit(1) from None
    if run.failed:
        raise typer.Exit(1)


def _setup(chosen: Seen) -> Setup:
    check_torch()
    engines = {chosen.eevee: "EEVEE, 1 sample"} if chosen.eevee_has_gpu else {}
    if chosen.cycles:
        engines[CYCLES] = "Cycles, 16 samples"
    gpus = visible(cards()) if chosen.cycles else []
    fleets: dict[str, Any] = {
        f"{n} GPU{'s' * (n > 1)}": {"gpus": gpus[:n], "instances": 2 * n} for n in (1, len(gpus)) if len(gpus) > 1
    }
    return Setup(chosen.blender, engines, gpus, "cuda", 640, 480, 16, (1, 8, 5, 4, 2), fleets)


def _tried(chosen: Seen) -> Setup:
    engines = {WORKBENCH: "Workbench in EEVEE's place"} if chosen.renderer else {}
    engines[CYCLES] = "Cycles, 1 sample"
    fleets = {"1 Blender": {"instances": 1}, "2 Blenders": {"instances": 2}}
    return Setup(chosen.blender, engines, (), "cpu", 64, 48, 1, (1, 2), fleets)


class Run:
    """One run of the command.

    Args:
        setup: What to measure.
        about: The machine, which the file begins with.
        end: When it should be over, by the monotonic clock.
        save: Writes the reports and what is known about the machine.
    """

    def __init__(
        self, setup: Setup, about: dict[str, str], end: float, save: Callable[[Sequence[Report], dict[str, str]], None]
    ) -> None:
        self._setup, self._about, self._end, self._write = setup, about, end, save
        self._reports: dict[str, Report] = {}
        self._longest = 0.0  # seconds that one number of instances took
        self.failed = False
        """Whether something could not be measured."""

    def run(self) -> list[Report]:
        """Measure what there is time for, and save it as it comes.

        Raises:
            AsyncblendError: No engine can render.
        """
        self._first_frames()
        self._save()
        setup = self._setup
        turns = _ROUNDS * _WAYS * len(setup.engines) * len(setup.counts)
        # Four tenths of the time are for the largest table; its Blenders take as much to start.
        seconds = min(_LONGEST_TURN, max(_SHORTEST_TURN, 0.4 * self._left / turns))
        how = Effort(_ROUNDS, seconds, say=_say)
        images = Images(setup, f"Images into a loop and into training, by {self._about['measured']}")
        kept = _KEPT * self._left
        for instances in setup.counts:
            if self._has_time(what := f"{instances} instance{'s' * (instances > 1)}", kept):
                began = time.monotonic()
                with self._noting(what):
                    images.measure(instances, how)
                self._longest = max(self._longest, time.monotonic() - began)
                self._save(images.report())
        _say("copies to the GPU")
        with self._noting("copies"):
            self._save(copies(how, setup.device, setup.width, setup.height))
        if setup.fleets and CYCLES in setup.engines and self._has_time("several GPUs"):
            with self._noting("several GPUs"):
                self._save(several(setup, how))
        self._save()
        return list(self._reports.values())

    @property
    def _left(self) -> float:
        """Seconds that are left."""
        return self._end - time.monotonic()

    def _first_frames(self) -> None:
        """Render once with each engine, which also compiles kernels and shaders for all that follows.

        Raises:
            AsyncblendError: None of them can render.
        """
        able = {}
        for engine, name in self._setup.engines.items():
            _say(f"first frame: {name}")
            try:
                seconds = first_frame(self._setup, engine, max(60.0, self._left))
            except AsyncblendError as error:
                self._about[f"first frame: {name}"] = _told(error)
                failed = error
            else:
                self._about[f"first frame: {name}"] = f"after {seconds:.1f} s, the start of Blender included"
                able[engine] = name
        if not able:
            raise failed
        self._setup = dataclasses.replace(self._setup, engines=able)

    def _has_time(self, what: str, kept: float = 0.0) -> bool:
        """Return whether there is time for another fleet, with some seconds kept; note what is left out."""
        if self._left - kept > 1.5 * self._longest:  # another number of instances may take longer
            return True
        before = self._about.get("left out, for time")
        self._about["left out, for time"] = what if before is None else f"{before}, {what}"
        return False

    @contextlib.contextmanager
    def _noting(self, what: str) -> Iterator[None]:
        """Note what fails in this block, such as a GPU's memory being full, and let the rest be measured."""
        try:
            yield
        except (AsyncblendError, RuntimeError) as error:  # those of PyTorch and of the bare loop are RuntimeErrors
            self.failed = True
            self._about[f"failed: {what}"] = _told(error)
            _console.print(f"{what}: {error}", style="red")

    def _save(self, report: Report | None = None) -> None:
        if report is not None:
            self._reports[report.name] = report
        self._write([one for one in self._reports.values() if one.rows], self._about)


def _told(error: Exception) -> str:
    """Return an error in one line."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def _gpus() -> dict[str, str]:
    """Return the GPUs and their driver, as far as NVIDIA's own tool tells."""
    found = cards()
    if not found:
        return {"GPU": "none that nvidia-smi knows"}
    return {"GPU": "; ".join(f"{card.name}, {card.memory}" for card in found), "driver": found[0].driver}


def _say(text: str) -> None:
    _console.print(f"{text} ...")
