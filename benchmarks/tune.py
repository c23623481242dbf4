"""`python -m benchmarks tune`: how fast the fleet is that `asyncblend bench` advises, beside the best one there is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

import asyncblend as ab
from asyncblend.aio import run
from asyncblend.cli.bench.judging import Trial, Turn, fastest
from asyncblend.cli.bench.search import Search
from asyncblend.cli.bench.settings import Setting, settings
from asyncblend.config import cores

from .machine import blender_name
from .measuring import Effort
from .options import BlenderOption, JsonOption, OutOption, QuickOption, RoundsOption, SecondsOption, effort, show
from .peers.plain import INSIDE
from .report import Metric, Report, Row
from .streams import PATIENT

__all__ = ["CUBE", "ROUNDS", "SECONDS", "measure", "tune"]

ROUNDS, SECONDS = 3, 1.0
"""Of the exhaustive search, unless an option says otherwise."""
_SCRIPTS = Path(__file__).parents[1] / "blender_scripts"
CUBE = _SCRIPTS / "cube.py"
_RATE = "frames/s"
_METHOD = (
    "*advised*: the fleet that `asyncblend bench` advises, with its own seconds. All fleets are streams as a program has "
    "them; each is started anew in each round, and measured until each of its Blenders has rendered for some seconds. "
    "The ratio is of the same rounds."
)
_SLOW = ("--width", "320", "--height", "240", "--samples", "8")


class _Case(NamedTuple):
    name: str
    script: Path
    arguments: tuple[str, ...] = ()


CASES = {
    "cube": _Case("cube.py, fast frames", CUBE),
    "shapes": _Case("shapes.py, 320x240, all labels, 8 samples a pixel", _SCRIPTS / "shapes.py", _SLOW),
    "python": _Case("Python alone, nothing is rendered", INSIDE / "python_alone.py"),
}


def tune(
    blender: BlenderOption = None,
    only: Annotated[str | None, typer.Option(help=f"One script alone: {', '.join(CASES)}.")] = None,
    quick: QuickOption = False,
    rounds: RoundsOption = None,
    seconds: SecondsOption = None,
    json_: JsonOption = None,
    out: OutOption = None,
) -> None:
    """Frames/s of the fleet that `asyncblend bench` advises, and of all others: an exhaustive search.

    For three scripts: one of fast frames, one of slow frames, and one whose time is Python's.
    """
    if only is not None and only not in CASES:
        raise typer.BadParameter(f"there is {', '.join(CASES)}", param_hint="--only")
    with effort(quick, rounds, seconds, default=(ROUNDS, SECONDS)) as how:
        report = measure(how, blender, [only] if only else None)
    show(report, out, json_)


def measure(how: Effort, blender: str | None = None, names: list[str] | None = None) -> Report:
    """Have each script's fleet advised, then measure it and all others."""
    report = Report(
        "tune",
        f"Tune: what `asyncblend bench` advises, by {blender_name(blender)}",
        _METHOD,
        [Metric(_RATE, lambda timed: timed.rate, 1)],
        "advised",
    )
    for name in names or (["python"] if how.quick else CASES):
        case = CASES[name]
        config = ab.StreamConfig(
            script=case.script, script_args=case.arguments, blender=blender, timeouts=PATIENT, instances=1
        )
        tried = [Setting(1, 1)] if how.quick else settings()
        search = Search(config, tried, how.seconds if how.quick else 5.0)
        how.say(f"{case.name}: asking for advice")
        advised = run(search.run()).best.setting
        trials = [Trial(setting) for setting in dict.fromkeys([*tried, *(_every() if not how.quick else ())])]
        for number in range(how.rounds):
            for one in trials if number % 2 else trials[::-1]:
                how.say(f"{case.name}: round {number + 1} of {how.rounds}, {one.setting}")
                one.turns[number] = Turn(run(_rate(config, one.setting, how.seconds)))
        _add(report, case.name, trials, advised)
    return report


def _every() -> list[Setting]:
    """Return all fleets from 1 instance to twice as many as there are cores, with 1 thread to as many as there are.

    On more than four cores both numbers are doubled from one to the next.
    """
    count = cores()
    doubled = [1 << n for n in range((2 * count).bit_length())]
    instances, threads = (range(1, 2 * count + 1), range(1, count + 1)) if count <= 4 else (doubled, doubled[:-1])
    return [Setting(n, own) for own in threads for n in instances]


def _add(report: Report, case: str, trials: list[Trial], advised: Setting) -> None:
    ours, top = next(one for one in trials if one.setting == advised), fastest(trials)
    case = f"{case}: advised {advised}, {ours.ratio(top):.2f} of the best"
    report.rows.append(Row(case, "advised", {_RATE: ours.rates}))
    for one in trials:
        way = f"{one.setting} (best)" if one is top else str(one.setting)
        report.rows.append(Row(case, way, {_RATE: one.rates}))


async def _rate(config: ab.StreamConfig, setting: Setting, seconds: float) -> float:
    """Return the frames per second of a stream, as the sum over its Blenders, once all of them render.

    That of each is counted from one of its frames to a later one, so that it does not depend on how many a second are.
    """
    options = {"instances": setting.instances, "threads": setting.threads, "queue_size": max(16, 2 * setting.instances)}
    seen: dict[int, list[float]] = {n: [] for n in range(setting.instances)}
    rates: dict[int, float] = {}
    warm: set[int] = set()
    async with ab.BlenderStream(config, **options) as stream:  # type: ignore[arg-type]
        stream.consumer = None
        async for frame in stream:
            warm.add(frame.instance)
            if len(warm) < setting.instances:
                continue
            times = seen[frame.instance]
            times.append(time.perf_counter())
            if (passed := times[-1] - times[0]) >= seconds and frame.instance not in rates:
                rates[frame.instance] = (len(times) - 1) / passed
                if len(rates) == setting.instances:
                    break
    return sum(rates.values())
