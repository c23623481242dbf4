"""`python -m benchmarks pixels`: what labels of pixels cost on a fast frame."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from .machine import blender_name
from .measuring import Effort, Way, in_turn
from .peers.plain import INSIDE
from .render import CYCLES
from .report import Metric, Report
from .streams import async_for

__all__ = ["measure"]

_THREE = ("depth", "normal", "instance")
_NINE = (*_THREE, "distance", "normal_camera", "semantic", "flow_forward", "flow_backward", "albedo")
_METHOD = (
    "A cube, Cycles with one sample a pixel, one Blender. *all nine labels*: all labels of pixels, with flow in both "
    "directions. *depth, normal, instance*: these three. *image alone (limit)*: the same scene without labels."
)


def measure(how: Effort, blender: str | None = None) -> Report:
    """Count images per second of a cube with all labels of pixels, with three of them, and without.

    The difference in milliseconds an image is what they cost, most of which is Blender's own work.
    """
    metrics = [Metric("images/s", lambda timed: timed.rate, 1), Metric("ms/image", lambda timed: 1000 / timed.rate, 1)]
    title = f"Labels of pixels on fast frames, by {blender_name(blender)}"
    report = Report("pixels", title, _METHOD, metrics, "all nine labels", own=["depth, normal, instance"])
    for width, height in [(128, 96)] if how.quick else [(128, 96), (640, 480)]:
        case = f"{width}x{height}"
        how.say(case)
        with _ways(blender, (width, height)) as ways:
            report.add(case, in_turn(ways, how))
    return report


@contextlib.contextmanager
def _ways(blender: str | None, size: tuple[int, int]) -> Iterator[Mapping[str, Way]]:
    with contextlib.ExitStack() as stack:

        def way(labels: tuple[str, ...]) -> Way:
            params = {"scene": [*size, CYCLES], "labels": list(labels)}
            options = {"script": INSIDE / "cube_stream.py", "blender": blender, "params": params}
            # The queue is short, because a way first takes the frames that it has rendered before its turn.
            return stack.enter_context(async_for(**options, instances=1, queue_size=2))

        yield {"all nine labels": way(_NINE), "depth, normal, instance": way(_THREE), "image alone (limit)": way(())}
