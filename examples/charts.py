"""The pictures that the examples which train a network draw: learning curves, and predictions beside the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

try:
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    raise SystemExit(f'{error.name} is not installed here. Type: pip install "asyncblend[plot]"') from None

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


class Panel(NamedTuple):
    """One chart of learning curves."""

    score: str
    """What is drawn, in percent."""
    title: str
    options: Mapping[str, Any]
    """Of matplotlib's `Axes.set`."""
    goal: float | None = None


def learning(path: Path, curves: Mapping[str, Sequence[Any]], panels: Sequence[Panel], clock: str) -> None:
    """Write a picture of held-out scores over time.

    Args:
        path: A new file.
        curves: By name of a training what was seen of it: objects with `seconds` and `scores`.
        panels: The charts, from left to right.
        clock: What the seconds are.
    """
    figure = Figure(figsize=(5.5 * len(panels), 4.2), layout="constrained")
    for panel, axes in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
        for number, (name, looks) in enumerate(curves.items()):
            scores = [100 * look.scores[panel.score] for look in looks]
            style = {"color": COLOURS[number % len(COLOURS)], "linewidth": 1.5 if number else 2.5}
            axes.plot([look.seconds for look in looks], scores, label=name, **style)
        if panel.goal is not None:
            axes.axhline(panel.goal, color="0.6", linewidth=0.8, zorder=0)
        axes.set(xlabel=clock, xlim=(0, None), title=panel.title, **panel.options)
        axes.minorticks_off()
        axes.yaxis.set_major_formatter("{x:g}")
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def beside(path: Path, images: Any, draw: Mapping[str, Callable[[Any, int], None]]) -> None:
    """Write a picture with each of the images in each row, and what is known of it drawn over it.

    Args:
        path: A new file.
        images: N x H x W x C uint8.
        draw: By name of a row what draws into it, given matplotlib's axes, in pixels, and the number of the image.
    """
    count, height, width = images.shape[:3]
    figure = Figure(figsize=(1.6 * count, 1.75 * len(draw)), layout="constrained")
    cells = figure.subplots(len(draw), count, squeeze=False, gridspec_kw={"wspace": 0.02, "hspace": 0.02})
    for row, (name, own) in zip(cells, draw.items(), strict=True):
        row[0].set_ylabel(name)
        for number, axes in enumerate(row):
            axes.imshow(images[number], extent=(0, width, height, 0))
            own(axes, number)
            axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
            axes.spines[:].set_visible(False)
    figure.savefig(path, dpi=110)
