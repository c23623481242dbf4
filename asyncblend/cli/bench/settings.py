"""Which fleets are tried: numbers of instances and threads, on the processor or on the GPU."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ...config import cores
from ...errors import ConfigError

_EACH_GPU = (1, 2, 3, 4)
"""How many instances share a GPU. While one of them prepares a sample or makes labels, another one renders."""
_NVIDIA = Path("/proc/driver/nvidia/gpus")


class Kind(NamedTuple):
    """What Blenders have in common that can be exchanged for each other in a fleet."""

    threads: int
    gpu: bool = False


class Setting(NamedTuple):
    """A fleet that is tried: how many instances, how many threads each of them has, and whether it uses the GPU."""

    instances: int
    threads: int
    gpu: bool = False

    @property
    def kind(self) -> Kind:
        """What its Blenders are."""
        return Kind(self.threads, self.gpu)

    def __str__(self) -> str:
        return f"{self.instances} x {self.threads} thread{'s' * (self.threads > 1)}{', GPU' * self.gpu}"


def settings(
    instances: Sequence[int] = (),
    threads: Sequence[int] = (),
    *,
    gpus: int = 0,
    processor: bool = True,
    count: int | None = None,
) -> list[Setting]:
    """Return the fleets to try.

    Args:
        instances: The numbers of instances. If it is empty, so many that their threads are as many as the cores, and
            twice as many, for scripts that compute in Python between two images.
        threads: The numbers of threads of each. If it is empty, the cores divided by 1, 2, 4, ...; for `instances` that
            are given, the cores divided among them, and all cores for each.
        gpus: How many GPUs there are. With some, up to four instances for each of them are tried too.
        processor: Whether rendering on the processor is tried.
        count: How many cores there are. None: those that this process may use.

    Raises:
        ConfigError: A number is below 1.
    """
    if any(number < 1 for number in (*instances, *threads)):
        raise ConfigError("instances and threads must be at least 1")
    count = count or cores()
    tried = list(_on_the_processor(instances, threads, count)) if processor else []
    if gpus:
        shared = threads or [max(1, count // (2 * gpus))]
        tried += [Setting(n, own, True) for n in instances or [each * gpus for each in _EACH_GPU] for own in shared]
    return list(dict.fromkeys(tried))


def _on_the_processor(instances: Sequence[int], threads: Sequence[int], count: int) -> Iterator[Setting]:
    for n in instances:
        yield from (Setting(n, own) for own in threads or (max(1, count // n), count))
    if instances:
        return
    for own in threads or [count >> halved for halved in range(count.bit_length())]:
        fitting = max(1, count // own)
        one_more = [fitting + 1] * (own == 1)  # while one waits for this program, another one renders
        yield from (Setting(n, own) for n in (fitting, *one_more, 2 * fitting))


def gpus_here(folder: Path = _NVIDIA) -> list[str]:
    """Return the NVIDIA GPUs that this process may use, as the option `gpus` takes them.

    Others are not looked for: they can be named in a TOML file.

    Args:
        folder: Where the driver lists them.
    """
    try:
        count = len(os.listdir(folder))
    except OSError:  # there is no driver
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count))))
    names = [name.strip() for name in visible.split(",") if name.strip()] if count else []
    return [*itertools.takewhile(lambda name: name != "-1", names)]  # CUDA takes none from there on
