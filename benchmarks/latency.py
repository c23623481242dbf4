"""`python -m benchmarks latency`: round trips of a lease and its frame."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from asyncblend.testing import fake_blender

from .measuring import Effort, in_turn
from .peers.arrays import script
from .peers.echo import echo
from .report import Metric, Report
from .streams import async_for, sync, written

__all__ = ["measure"]

_METHOD = (
    "One fake Blender that renders nothing. *async for*: the stream in the consumer's own event loop. *sync*: "
    "the event loop in a thread of its own, as a DataLoader uses it. *64x64 image*: each frame has one. *bare echo*: "
    "as many small messages in flight between a bare ROUTER in asyncio and a DEALER that sends each back."
)
_OTHERS = ("sync", "async for, 64x64 image", "sync, 64x64 image")
_EMPTY = "from asyncblend import blender as bl\n\n\ndef sample(task):\n    return {}\n\n\nbl.serve(sample)\n"


def measure(how: Effort) -> Report:
    """Count round trips per second, from a lease to its frame, with a process that renders nothing.

    This is what the framework itself costs. The limit is a bare ROUTER and a DEALER that echoes small messages, with as
    many in flight. Eight leases are in flight, then one.
    """
    metrics = [
        Metric("round trips/s", lambda timed: timed.rate),
        Metric("µs each", lambda timed: 1e6 / timed.rate, 1),
        Metric("host CPU µs each", lambda timed: timed.cpu_each, 1),
    ]
    report = Report("latency", "Round trips: a lease and its frame", _METHOD, metrics, "async for", own=_OTHERS)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        fake = fake_blender(folder / "fake")
        empty = written(folder, "empty.py", _EMPTY)
        image = written(folder, "image.py", script({"image": ("uint8", (64, 64, 3))}))
        for in_flight, queue_size in ((8, 16), (1, 1)):
            case = f"{in_flight} in flight" if in_flight > 1 else "one in flight"
            how.say(case)
            options = {"blender": fake, "instances": 1, "queue_size": queue_size, "prefetch": in_flight}
            with contextlib.ExitStack() as stack:
                enter = stack.enter_context
                ways = {
                    "async for": enter(async_for(script=empty, **options)),
                    "sync": enter(sync(script=empty, **options)),
                    "async for, 64x64 image": enter(async_for(script=image, **options)),
                    "sync, 64x64 image": enter(sync(script=image, **options)),
                    "bare echo (limit)": enter(echo(in_flight)),
                }
                report.add(case, in_turn(ways, how))
    return report
