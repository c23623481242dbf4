"""`python -m benchmarks transport`: frames that are only carried, not rendered."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from asyncblend.testing import fake_blender

from .measuring import Effort, Timed, Way, in_turn
from .peers.arrays import Spec, frame_bytes, script
from .peers.memcpy import memcpy
from .peers.pickled import pickled
from .peers.raw import raw
from .report import Metric, Report
from .streams import async_for, written

__all__ = ["measure"]


@dataclass(frozen=True)
class _Scenario:
    name: str
    spec: Spec
    in_flight: int


_SCENARIOS = (
    _Scenario("640x480 RGBA", {"image": ("uint8", (480, 640, 4))}, 16),
    _Scenario(
        "1920x1080 RGBA, depth, normal",
        {
            "image": ("uint8", (1080, 1920, 4)),
            "depth": ("float32", (1080, 1920)),
            "normal": ("float32", (1080, 1920, 3)),
        },
        8,
    ),
    _Scenario("64x64 RGB", {"image": ("uint8", (64, 64, 3))}, 16),
)
_METHOD = (
    "Nothing is rendered: producers change one number of prepared arrays, the receiver only takes. 16 frames are in "
    "flight (8 of the largest), shared out among the producers. *asyncblend*: fake Blenders, `async for`. *over the "
    "socket*: the same with `shared_memory=False`. *pickled*: `send_pyobj`, PUSH/PULL on tcp. *raw multipart*: "
    "`copy=False` on both ends, PUSH/PULL on ipc. *torch queue*: `torch.multiprocessing`. *memcpy*: the same bytes "
    "within one process, into the same place."
)


def measure(how: Effort) -> Report:
    """Count frames per second that are only carried, beside other ways to carry them.

    GB/s and the host's processor time are shown too. The limit is a memcpy of the same bytes. With 1, 2 and 4
    producers.
    """
    report = Report(
        "transport",
        "Transport: frames that are only carried",
        _METHOD,
        [],
        "asyncblend",
        own=["over the socket"],
        columns=3,
    )
    for scenario in _SCENARIOS[:1] if how.quick else _SCENARIOS:
        size = frame_bytes(scenario.spec)
        for producers in (2,) if how.quick else (1, 2, 4):
            case = f"{scenario.name}, {producers} producer{'s' * (producers > 1)}"
            how.say(case)
            report.metrics = _metrics(size)
            with _ways(scenario, producers) as ways:
                report.add(case, in_turn(ways, how))
    if how.quick:
        report.columns = 1
    return report


def _metrics(size: int) -> list[Metric]:
    def gigabytes(timed: Timed) -> float:
        return timed.rate * size / 1e9

    return [
        Metric("frames/s", lambda timed: timed.rate),
        Metric("GB/s", gigabytes, 2),
        Metric("host CPU µs/frame", lambda timed: timed.cpu_each, 1),
    ]


@contextlib.contextmanager
def _ways(scenario: _Scenario, producers: int) -> Iterator[Mapping[str, Way]]:
    from .peers.torch_queue import torch_queue  # imports torch, which would weigh on the host of the other questions

    spec, in_flight = scenario.spec, scenario.in_flight
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder, contextlib.ExitStack() as stack:
        options = {
            "script": written(Path(folder), "arrays.py", script(spec)),
            "blender": fake_blender(Path(folder) / "fake"),
            "instances": producers,
            "queue_size": in_flight,
            "prefetch": in_flight // producers,
        }
        yield {
            "asyncblend": stack.enter_context(async_for(**options)),
            "over the socket": stack.enter_context(async_for(**options, shared_memory=False)),
            "pickled": stack.enter_context(pickled(spec, producers, in_flight)),
            "raw multipart": stack.enter_context(raw(spec, producers, in_flight)),
            "torch queue": stack.enter_context(torch_queue(spec, producers, in_flight)),
            "memcpy (limit)": stack.enter_context(memcpy(spec)),
        }
