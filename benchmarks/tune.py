"""`python -m benchmarks tune`: instances and threads for a script, as `asyncblend bench` tries them."""

from __future__ import annotations

from pathlib import Path

from asyncblend.cli.config_file import load_config
from asyncblend.cli.options import ConfigArgument
from asyncblend.cli.tuning import Setting, best, draw, settings, trial

from .machine import blender_name
from .measuring import Effort
from .options import BlenderOption, JsonOption, OutOption, QuickOption, SecondsOption, effort, show
from .report import Metric, Report, Row

__all__ = ["CUBE", "measure", "tune"]

CUBE = Path(__file__).parents[1] / "blender_scripts" / "cube.py"
_RATE, _FIRST = "frames/s", "seconds to the first frame"
_METHOD = (
    "One fleet after another, each with a warm-up; frames/s at a consumer that takes each at once. `asyncblend bench "
    "script.py` does the same for your own script."
)


def tune(
    config: ConfigArgument = CUBE,
    blender: BlenderOption = None,
    quick: QuickOption = False,
    seconds: SecondsOption = None,
    json_: JsonOption = None,
    out: OutOption = None,
) -> None:
    """Count frames per second of a script with several numbers of instances and threads, and say which is best."""
    with effort(quick, None, seconds, default=(1, 3.0)) as how:
        report = measure(how, config, blender)
    show(report, out, json_)


def measure(how: Effort, config: Path = CUBE, blender: str | None = None) -> Report:
    """Try up to twice as many instances as there are cores."""
    metrics = [Metric(_RATE, lambda timed: timed.rate, 1), Metric(_FIRST, lambda timed: 0.0, 1)]
    chosen = load_config(config, blender=blender)
    trials = []
    for setting in [Setting(1, 1)] if how.quick else settings():
        how.say(str(setting))
        trials.append(trial(chosen, setting, how.seconds))
    winner = best(trials)
    report = Report("tune", f"Tune: {config.name} on {blender_name(blender)}", _METHOD, metrics, str(winner.setting))
    for one in trials:
        values = {_RATE: list(one.rates), _FIRST: [one.first]}
        report.rows.append(Row(f"{config.name}, instances x threads", str(one.setting), values))
    report.draw = lambda path: draw(path, trials, config.name)
    return report
