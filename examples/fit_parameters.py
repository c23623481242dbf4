"""Learn how pictures were made: fit the distribution of a scene's parameters until its renders look like the targets.

    python examples/fit_parameters.py colour        # size and hue of a shape, and how much each of them varies
    python examples/fit_parameters.py supershape    # the twelve numbers of a shape, from how it looks

Blender's renders have no gradient. But the parameters are drawn from a normal distribution, and that has one: a step
along E[reward * grad log density], the score function (REINFORCE), makes likelier what was rewarded. The reward is given
by a discriminator that needs no training, the witness of the energy distance: how much closer a picture is to the
targets than to the other renders. Its baseline is the mean reward. The step is the natural gradient of mean and
covariance (this is xNES, Glasmachers et al. 2010). The params of each sample are drawn when a Blender is free for it.

At the end there is a table, and in the folder `--out` a chart. It needs `pip install "asyncblend[bpy,plot]"`.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import asyncblend as ab

try:
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    raise SystemExit(f'{error.name} is not installed here. Type: pip install "asyncblend[plot]"') from None

Array = npt.NDArray[np.float64]

SCRIPT = Path(__file__).parents[1] / "blender_scripts" / "supershape.py"
SMALL = ("--width", "64", "--height", "64", "--samples", "1", "--columns", "64", "--labels", "none")
LARGE = ("--width", "192", "--height", "192", "--samples", "16", "--labels", "none")
STAR = ((7, 1.15, 0.85, 1.0, 1.4, 1.2), (8, 1.05, 0.7, 2.0, 2.0, 1.8))
BALL = ((5, 1.0, 1.0, 2.0, 2.0, 2.0), (5, 1.0, 1.0, 2.0, 2.0, 2.0))
VIEW = (0.6, 0.4)
OURS, GOAL = "#0072b2", "#d55e00"
AIMS = 10**9
"""The first index of the target pictures. No fit comes so far: the rays of no two pictures are the same."""


# -- the distribution ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Normal:
    """A normal distribution over vectors. Its covariance is root @ root.T."""

    mean: Array
    root: Array

    @property
    def spread(self) -> Array:
        """The standard deviation of each number."""
        return np.asarray(np.sqrt((self.root**2).sum(axis=1)))

    def at(self, standard: Array) -> Array:
        """Return the vectors, one a row, at these places in units of the distribution."""
        return self.mean + standard @ self.root.T

    def standard(self, vectors: Array) -> Array:
        """Return where vectors are in units of the distribution: those that were drawn from it are standard normal."""
        return np.linalg.solve(self.root, (vectors - self.mean).T).T

    def log_density(self, vectors: Array) -> Array:
        """Return the logarithm of the density at each vector, but for a constant."""
        return np.asarray(-0.5 * (self.standard(vectors) ** 2).sum(axis=-1) - np.linalg.slogdet(self.root)[1])

    def step(self, vectors: Array, advantages: Array, rates: tuple[float, float]) -> Normal:
        """Return the distribution after a step along the natural gradient of the expected advantage."""
        z = self.standard(vectors)
        mean = self.mean + rates[0] * self.root @ (advantages @ z)
        growth, axes = np.linalg.eigh((advantages[:, None] * z).T @ z - advantages.sum() * np.eye(len(mean)))
        return Normal(mean, self.root @ (axes * np.exp(0.5 * rates[1] * growth)) @ axes.T)


def centred(rewards: Array, share: Array) -> Array:
    """Return what each sample counts: its reward less the mean, the baseline, in units of the standard deviation."""
    above = rewards - share @ rewards
    return np.asarray(share * above / np.sqrt(share @ above**2))


def ranked(rewards: Array, share: Array) -> Array:
    """Return what each sample counts, by the order of the rewards alone, so that no outlier outweighs the rest.

    It is a share among the better half, in which the best counts most, less the share among all: the baseline.
    """
    order = np.argsort(-rewards)
    share = share[order]
    worth = share * np.maximum(0, -np.log(2 * (share.cumsum() - share / 2)))
    found = np.empty(len(rewards))
    found[order] = worth / worth.sum() - share
    return found


# -- the two problems ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """What is to be found."""

    names: Sequence[str]
    """Of the parameters that are reported."""
    values: Callable[[Array], Array]
    """Returns the parameters, one row for each vector. The vectors are what is normally distributed."""
    scene: Callable[[Array], dict[str, Any]]
    """Returns the params of `supershape.py` for a row of parameters."""
    start: Normal
    target: Normal
    advantages: Callable[[Array, Array], Array]
    batch: int
    memory: int
    """Batches that a step learns from, the newest and those before it."""
    rates: tuple[float, float]
    steps: int
    targets: int
    """Target pictures."""
    varies: bool
    """Whether they differ. Else the reward needs no term that keeps the renders apart."""
    enough: float = 0.0
    """The spread at which the fit ends."""


def colour() -> Problem:
    """Return the problem of two parameters, size and hue, which vary from target to target."""
    return Problem(
        names=("size", "hue"),
        values=lambda vectors: np.stack((np.exp(vectors[:, 0]), vectors[:, 1]), axis=-1),
        scene=lambda row: {"shape": STAR, "size": row[0], "hue": row[1], "view": VIEW},
        start=Normal(np.array([math.log(1.2), 0.3]), np.diag([0.3, 0.15])),
        target=Normal(np.array([math.log(0.8), 0.6]), np.diag([0.12, 0.05])),
        advantages=centred,
        batch=32,
        memory=2,
        rates=(0.3, 0.15),
        steps=60,
        targets=64,
        varies=True,
    )


def supershape() -> Problem:
    """Return the problem of the twelve numbers of one shape.

    Many values of a, b, n1, n2 and n3 give nearly the same shape, and some give none that fits into the picture. So five
    others are drawn, one to one with these: the radius of the tips, a ** (n2 / n1), that of the valleys, b ** (n3 / n1),
    n1, which blends the two, and n2 / n1 and n3 / n1, how steep they are. The logarithm of each is between two bounds,
    by a sigmoid. For m, which may be negative with the same effect, it is the number itself.
    """
    low, high = np.log([0.4, 0.4, 0.4, 0.3, 0.3]), np.log([1.8, 1.8, 8, 3, 3])

    def values(vectors: Array) -> Array:
        share = 1 / (1 + np.exp(-vectors.reshape(-1, 2, 6)))
        m = 2 + 8 * share[..., 0]
        tip, valley, n1, steep, other = np.moveaxis(np.exp(low + (high - low) * share[..., 1:]), -1, 0)
        rows = (m, tip ** (1 / steep), valley ** (1 / other), n1, steep * n1, other * n1)
        return np.asarray(np.stack(rows, axis=-1).reshape(-1, 12))

    def vector(shape: Any) -> Array:
        m, a, b, n1, n2, n3 = np.array(shape).T
        logs = np.stack(
            (n2 / n1 * np.log(a), n3 / n1 * np.log(b), np.log(n1), np.log(n2 / n1), np.log(n3 / n1)), axis=-1
        )
        share = np.concatenate(((m[:, None] - 2) / 8, (logs - low) / (high - low)), axis=-1).ravel()
        return np.asarray(np.log(share / (1 - share)))

    return Problem(
        names=[f"{name} {where}" for where in ("round", "up") for name in ("m", "a", "b", "n1", "n2", "n3")],
        values=values,
        scene=lambda row: {"shape": row.reshape(2, 6), "size": 1.25, "hue": 0.5, "view": VIEW},
        start=Normal(vector(BALL), np.diag([1.2, 0.7, 0.7, 0.7, 0.7, 0.7] * 2)),
        target=Normal(vector(STAR), np.zeros((12, 12))),
        advantages=ranked,
        batch=32,
        memory=3,
        rates=(1.0, 0.2),
        steps=250,
        targets=16,
        varies=False,
        enough=0.01,
    )


# -- the fit -------------------------------------------------------------------------------------------------------


def features(image: npt.NDArray[np.uint8]) -> Array:
    """Return the picture at all scales, one after another, scaled so that each counts the same."""
    level, found = image / 255.0, []
    while True:
        found.append(level.ravel() / math.sqrt(level.size))
        height, width, channels = level.shape
        if height % 2 or width % 2:
            return np.concatenate(found)
        level = level.reshape(height // 2, 2, width // 2, 2, channels).mean(axis=(1, 3))


def distances(one: Array, other: Array) -> Array:
    """Return the distance between each row of one and each row of the other."""
    squares = (one**2).sum(axis=1)[:, None] + (other**2).sum(axis=1) - 2 * one @ other.T
    return np.asarray(np.sqrt(np.maximum(squares, 0)))


def pixel_error(images: Array, others: Array) -> float:
    """Return the mean absolute difference between the pixels of any of the one and any of the other pictures."""
    return float(np.mean([np.abs(images - other).mean() for other in others]))


@dataclass
class Run:
    """What a fit went through."""

    path: list[Normal]
    """The distribution at the start, and after each step."""
    floor: float
    """The pixel error of targets against others."""
    errors: list[float] = field(default_factory=list)
    """The pixel error of renders against targets in each step, of 255."""
    seconds: float = 0.0


async def fit(
    stream: ab.BlenderStream, problem: Problem, seed: int, steps: int, told: Callable[[Run, float], None]
) -> Run:
    """Fit the distribution to pictures of the target. `told` is called in each step, also with the effective samples."""
    size = len(problem.start.mean)
    shown = problem.values(problem.target.at(np.random.default_rng(seed).standard_normal((problem.targets, size))))
    aims = stream.frames(range(AIMS, AIMS + len(shown)), params=lambda index: problem.scene(shown[index - AIMS]))
    targets = np.array([frame["image"].astype(float) async for frame in aims])
    goals, few = np.array([features(image) for image in targets]), targets[:8]
    run = Run([problem.start], pixel_error(targets[8:16], few))

    def params(index: int) -> dict[str, Any]:
        normal = run.path[-1]
        z = np.random.default_rng((seed, index // 2)).standard_normal(size)
        vector = normal.at(z if index % 2 else -z)  # pairs on both sides steady the mean
        extra = {"vector": vector, "log_density": float(normal.log_density(vector))}  # for us: the script ignores them
        return {**problem.scene(problem.values(vector[None])[0]), **extra}

    began, kept, images = time.perf_counter(), [], []
    ahead = 3 * stream.config.instances  # enough that no Blender waits, and few are drawn before a step that counts
    async with stream.frames(range(steps * problem.batch), params=params, queue_size=ahead) as frames:
        async for frame in frames:
            images.append(frame["image"].astype(float))
            kept.append((frame.params["vector"], frame.params["log_density"], features(frame["image"])))
            if len(images) < problem.batch:
                continue
            kept = kept[-problem.memory * problem.batch :]
            vectors, before, seen = (np.array(each) for each in zip(*kept, strict=True))
            # These were drawn from earlier distributions: those of the memory, and what was leased before the last step.
            # Weighted by now / then they stand for the present one. The bound keeps few from counting for all.
            weights = np.exp(np.minimum(run.path[-1].log_density(vectors) - before, math.log(2)))
            share = weights / weights.sum()
            rewards = -distances(seen, goals).mean(axis=1)
            if problem.varies:
                rewards += distances(seen, seen) @ share / (1 - share)  # to each of the others
            run.errors.append(pixel_error(np.array(images), few))
            run.path.append(run.path[-1].step(vectors, problem.advantages(rewards, share), problem.rates))
            run.seconds, images = time.perf_counter() - began, []
            told(run, 1 / (share**2).sum())
            if run.path[-1].spread.max() < problem.enough:
                break
    return run


# -- what is shown -------------------------------------------------------------------------------------------------


def described(problem: Problem, normal: Normal) -> tuple[Array, Array]:
    """Return the mean and the standard deviation of each parameter."""
    rows = problem.values(normal.at(np.random.default_rng(0).standard_normal((400, len(normal.mean)))))
    return rows.mean(axis=0), rows.std(axis=0)


def table(problem: Problem, runs: Sequence[Run]) -> Table:
    """Return a table of the parameters against the target's; of several runs the mean, and how far they are apart."""
    shown = Table(*("", "start", "target", "found", "error"), box=None, header_style="bold", title_justify="left")
    if len(runs) > 1:
        shown.add_column(f"{len(runs)} runs differ by")
    ends = np.array([described(problem, run.path[-1]) for run in runs])
    columns = (described(problem, problem.start), described(problem, problem.target), ends.mean(axis=0))
    goal, apart = columns[1][0], ends[:, 0].std(axis=0)
    for row, name in enumerate(problem.names):
        cells = [f"{mean[row]:.3f} ± {std[row]:.3f}" for mean, std in columns]
        errors = [f"{np.abs(ends[:, 0, row] - goal[row]).mean():.3f}"]
        shown.add_row(name, *cells, *errors, *([f"{apart[row]:.3f}"] if len(runs) > 1 else []))
    first, last = (np.mean([run.errors[at] for run in runs]) for at in (0, -1))
    shown.add_row("pixel error", f"{first:.2f}", f"{np.mean([run.floor for run in runs]):.2f}", f"{last:.2f}")
    return shown


def moments(run: Run) -> list[int]:
    """Return steps to look at, the closer the earlier they are."""
    return sorted({round((part / 6) ** 2 * len(run.errors)) for part in range(7)})


async def portraits(problem: Problem, run: Run, blender: str | None) -> list[list[npt.NDArray[np.uint8]]]:
    """Return rows of large pictures, the mean and two draws on both sides of it: at some moments of a run, and last of the target."""
    signs = np.sign(np.random.default_rng(1).standard_normal(len(problem.start.mean)))
    draws = (0 * signs, signs, -signs)
    normals = [*(run.path[moment] for moment in moments(run)), problem.target]
    scenes = [problem.scene(row) for z in draws for row in problem.values(np.array([each.at(z) for each in normals]))]
    options: dict[str, Any] = {"script_args": LARGE, "instances": 1, "length": len(scenes), "ordered": True}
    async with ab.BlenderStream(script=SCRIPT, blender=blender, params=scenes.__getitem__, **options) as stream:
        images = [frame["image"].copy() async for frame in stream]
    return [images[first : first + len(normals)] for first in range(0, len(images), len(normals))]


def chart(path: Path, problem: Problem, runs: Sequence[Run], pictures: Sequence[Sequence[Any]]) -> None:
    """Write a picture: how the renders of the first run became like the targets, and the parameters of all runs."""
    rows, columns = math.ceil(len(problem.names) / 6), min(len(problem.names), 6) + 1
    figure = Figure(figsize=(13, 5.1 + 2.1 * rows), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[5.1, 2.1 * rows], squeeze=False).ravel()
    cells = above.subplots(len(pictures), len(pictures[0]), gridspec_kw={"wspace": 0, "hspace": 0})
    heads = [f"{moment * problem.batch:,} renders" if moment else "start" for moment in moments(runs[0])]
    for row, (name, images) in enumerate(zip(("mean", "a draw", "its opposite"), pictures, strict=True)):
        for cell, image, head in zip(cells[row], images, [*heads, "target"], strict=True):
            cell.imshow(image)
            cell.set(xticks=[], yticks=[], title=head if row == 0 else "")
            cell.spines[:].set_visible(False)
        cells[row, 0].set_ylabel(name)
    cells[0, -1].set_title("target", color=GOAL, fontweight="bold")

    grid = below.subplots(rows, columns, squeeze=False, sharex=True)
    panels, (goal, vary) = grid[:, :-1].ravel(), described(problem, problem.target)
    for run in runs:
        renders = problem.batch * np.arange(len(run.path))
        means, stds = np.swapaxes(np.array([described(problem, normal) for normal in run.path]), 0, 1)
        for panel, mean, std in zip(panels, means.T, stds.T, strict=True):
            panel.fill_between(renders, mean - std, mean + std, color=OURS, alpha=0.3 / len(runs), linewidth=0)
            panel.plot(renders, mean, color=OURS)
        grid[0, -1].plot(renders[1:], run.errors, color=OURS)
        grid[0, -1].axhline(run.floor, color=GOAL, linestyle="--")
        if rows > 1:
            grid[1, -1].semilogy(renders, [normal.spread.max() for normal in run.path], color=OURS)
            grid[1, -1].set_title("largest spread")
    for panel, name, mean, std in zip(panels, problem.names, goal, vary, strict=True):
        panel.axhspan(mean - std, mean + std, color=GOAL, alpha=0.15, linewidth=0)
        panel.axhline(mean, color=GOAL, linestyle="--")
        panel.set_title(name)
    grid[0, -1].set(title="pixel error", ylim=(0, None))
    for panel in grid.ravel():
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    below.supxlabel("renders", fontsize=10)
    figure.savefig(path, dpi=110)


# -- the program ---------------------------------------------------------------------------------------------------


async def main(name: str, arguments: argparse.Namespace) -> None:
    """Run the fits, and show what they found."""
    problem, console, runs = PROBLEMS[name](), Console(), list[Run]()
    steps = arguments.steps or problem.steps
    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TextColumn("{task.fields[said]}"))
    options: dict[str, Any] = {"blender": arguments.blender, "instances": arguments.instances, "script_args": SMALL}
    async with ab.BlenderStream(script=SCRIPT, **options) as stream:
        with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
            for number in range(arguments.runs):
                title = f"{name} {number + 1}/{arguments.runs}" if arguments.runs > 1 else name
                task = progress.add_task(title, total=steps, said="")

                def told(run: Run, samples: float, task: Any = task, title: str = title) -> None:
                    done = len(run.errors)
                    said = f"error {run.errors[-1]:5.2f}  spread {run.path[-1].spread.max():.3f}"
                    said += f"  {problem.batch * done / run.seconds:.0f}/s"
                    progress.update(task, completed=done, said=said)
                    if not console.is_terminal and done % 10 == 0:
                        console.print(f"{title} {done}/{steps}  {said}  {samples:.0f} effective samples")

                runs.append(await fit(stream, problem, arguments.seed + number, steps, told))
                progress.update(task, total=len(runs[-1].errors))
    console.print(table(problem, runs))
    seconds, renders = sum(run.seconds for run in runs), sum(len(run.errors) for run in runs) * problem.batch
    of = f"{arguments.instances} Blenders, at a load of {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    console.print(f"{renders:,} renders in {seconds:.0f} s by {of}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    chart(arguments.out / f"{name}.png", problem, runs, await portraits(problem, runs[0], arguments.blender))
    console.print(f"{arguments.out / name}.png")


PROBLEMS = {"colour": colour, "supershape": supershape}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("problem", choices=PROBLEMS)
    parser.add_argument("--runs", type=int, default=1, help="how often, each time with other targets and other draws")
    parser.add_argument("--steps", type=int, help="the most steps of a run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--instances", type=int, default=max(1, len(os.sched_getaffinity(0))), help="Blenders")
    parser.add_argument("--blender", help="as the option of a stream: an executable, or `bpy`")
    parser.add_argument("--out", type=Path, default=Path("tmp/fit"), help="the folder for the chart")
    given = parser.parse_args()
    asyncio.run(main(given.problem, given))
