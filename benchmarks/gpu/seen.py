"""Which GPUs there are, and which Blenders can render on them."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from asyncblend.errors import ConfigError
from asyncblend.fleet.discovery import all_blenders, find_blender

from ..machine import blender_name
from ..peers.plain import PlainBlenders

__all__ = ["Seen", "cards", "check_torch", "choose", "look", "visible"]

_SMI = ("nvidia-smi", "--query-gpu=index,name,memory.total,driver_version", "--format=csv,noheader")
_PATIENCE = 60.0  # seconds; the driver of a broken GPU may never answer
_TRY = "run it with --processor to try the command itself"


@dataclass(frozen=True)
class Seen:
    """A Blender, and what it can render on."""

    name: str
    """Its name and version."""
    blender: str
    """What the stream's option `blender` is for it."""
    cycles: str = ""
    """The kind and the names of the GPUs that `gpus` gives to Cycles. Empty: none."""
    eevee: str = ""
    """What this Blender calls EEVEE."""
    renderer: str = ""
    """What draws for EEVEE and Workbench. Empty: nothing does."""
    software: bool = True
    """Whether that is the processor."""
    ended: str = ""
    """The last words of a Blender that ended before it had said all this."""

    @property
    def eevee_has_gpu(self) -> bool:
        """Whether EEVEE draws on a GPU."""
        return bool(self.renderer) and not self.software

    def __str__(self) -> str:
        renderer = self.renderer or f"nothing, as drawing ended it: {self.ended!r}"
        if self.renderer and self.software:
            renderer = f"the processor: {self.renderer}"
        return f"Cycles on {self.cycles or 'no GPU'}, EEVEE by {renderer}"


class Card(NamedTuple):
    """One of NVIDIA's GPUs, in the words of its driver."""

    number: str
    name: str
    memory: str
    driver: str


def cards() -> list[Card]:
    """Return NVIDIA's GPUs. Empty where there is no driver, or one that does not answer."""
    try:
        done = subprocess.run(_SMI, capture_output=True, text=True, check=False, timeout=_PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = [line.split(",") for line in done.stdout.splitlines()] if done.returncode == 0 else []
    return [Card(*(field.strip() for field in line)) for line in lines if len(line) == len(Card._fields)]


def visible(found: Sequence[Card]) -> list[str]:
    """Return the GPUs that this process may use, as the option `gpus` takes them. `found` are all that there are."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return chosen.split(",") if chosen else [card.number for card in found] or ["0"]


def look(blender: str | None) -> list[Seen]:
    """Ask Blenders what they can render on: the given one, or else all that `find_blender` finds here.

    Raises:
        BlenderNotFound: There is none.
    """
    find_blender(blender)
    asked = [one.path for one in all_blenders()] if blender is None else [blender]
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        return [_ask(one, Path(folder)) for one in asked]


def _ask(blender: str, folder: Path) -> Seen:
    told: dict[str, Any] = {}
    with PlainBlenders("devices.py", blender, 1, folder) as one:
        try:
            for _ in range(2):
                told |= one.answers()[0]
        except RuntimeError as error:  # some Blenders die of drawing without a display
            told["ended"] = str(error).splitlines()[-1]
    return Seen(blender_name(blender), blender, **told)


def choose(found: Sequence[Seen], *, processor: bool) -> Seen:
    """Return the Blender that has the most use of GPUs; with `processor`, the one that draws without any.

    Raises:
        ConfigError: No Blender can use a GPU, and one is needed.
    """
    if processor:
        return max(found, key=lambda one: bool(one.renderer))
    # Kernels for OptiX come with Blender. Those for CUDA do not with every build, and may have to be compiled.
    best = max(found, key=lambda one: (bool(one.cycles) + one.eevee_has_gpu, one.cycles.startswith("OPTIX")))
    if best.cycles or best.eevee_has_gpu:
        return best
    driver = "nvidia-smi lists GPUs" if cards() else "nvidia-smi lists none"
    raise ConfigError(
        f"no device that Cycles or EEVEE could render on: {'; '.join(f'{one.name} has {one}' for one in found)}; {driver}. "
        f"In a container, the driver's parts for graphics are needed too: NVIDIA_DRIVER_CAPABILITIES=compute,utility,"
        f"graphics. Run it on a machine with a GPU, or {_TRY}"
    )


def check_torch() -> None:
    """Check that PyTorch can train on a GPU.

    Raises:
        ConfigError: It cannot.
    """
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(
            f"PyTorch {torch.__version__} finds no GPU to train on: install its build for the driver's CUDA "
            f"(https://pytorch.org/get-started/locally), or {_TRY}"
        )
