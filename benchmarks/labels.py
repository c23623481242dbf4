"""`python -m benchmarks labels`: what labels cost on top of the image."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from asyncblend.scripts import script

from .machine import blender_name, own_view
from .measuring import Effort, Way, in_turn
from .report import Metric, Report
from .streams import async_for

__all__ = ["measure"]

_METHOD = (
    "`shapes.py`: 12 objects of six classes among clutter, 640x480, Cycles with 2 samples a pixel, one Blender. *all "
    "labels*: depth, normal, albedo, instances, classes, and of each object boxes, pose, visibility and keypoints. *per "
    "pixel*: without those of the objects. *image alone (limit)*: the same scene without labels."
)


def measure(how: Effort, blender: str | None = None) -> Report:
    """Count images per second of `shapes.py` with all labels, with those of pixels alone, and without labels.

    Without labels is the limit. `shapes.py` has its own resolution, or, with --quick, a small one.
    """
    metrics = [Metric("images/s", lambda timed: timed.rate, 1), Metric("ms/image", lambda timed: 1000 / timed.rate, 1)]
    title = f"Labels of shapes.py, by {blender_name(blender)}"
    report = Report("labels", title, _METHOD, metrics, "all labels", own=["per pixel"])
    size = (64, 48) if how.quick else (640, 480)
    view = own_view(blender)
    case = f"{view}, {size[0]}x{size[1]}"
    how.say(case)
    with _ways(blender, size, view) as ways:
        report.add(case, in_turn(ways, how))
    return report


@contextlib.contextmanager
def _ways(blender: str | None, size: tuple[int, int], view: str) -> Iterator[Mapping[str, Way]]:
    with contextlib.ExitStack() as stack:

        def way(which: str) -> Way:
            arguments = ("--labels", which, "--width", str(size[0]), "--height", str(size[1]), "--view", view)
            return stack.enter_context(
                # The queue is short, because a way first takes the frames that it has rendered before its turn.
                async_for(script=script("shapes.py"), script_args=arguments, blender=blender, instances=1, queue_size=2)
            )

        yield {"all labels": way("all"), "per pixel": way("pixels"), "image alone (limit)": way("none")}
