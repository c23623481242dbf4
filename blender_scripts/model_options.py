"""What `model.py` can be told: its command line, and the ranges that `params` can set for each sample.

It needs no Blender, so that `python model_options.py --help` shows the options anywhere.
"""

import argparse
import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from asyncblend.errors import ConfigError


class Range(NamedTuple):
    """From where to where a number is drawn, both ends included."""

    low: float
    high: float


class Limits(NamedTuple):
    """What a range may be, and whether it is of whole numbers."""

    least: float
    most: float
    whole: bool = False


LIMITS = {
    "objects": Limits(1, 200, whole=True),
    "distractors": Limits(0, 500, whole=True),
    "distance": Limits(0.5, 1000),
    "elevation": Limits(-90, 90),
    "truncation": Limits(0, 1),
    "occlusion": Limits(0, 1),
}
"""The ranges that `params` can set, too."""

EPILOGUE = """\
A range is LO:HI, or one number. For curricula and closed loops, params of the host set these ranges anew for each
sample, as numbers or pairs: objects, distractors, distance, elevation, truncation and occlusion. The most objects and
distractors are those of the command line.

examples:
  asyncblend inspect model.py -- mug.glb
  asyncblend stream model.py -- mug.glb gear.stl --unit 0.001 --objects 2:6 --physics
  asyncblend record model.py --length 1000 --out mugs -- mug.glb --hdris skies --backgrounds photos
"""


def as_range(name: str, value: Any) -> Range:
    """Return a range that is given as "LO:HI", a number, or a pair of numbers. Raise ConfigError if it is wrong.

    True and False are no numbers here.
    """
    least, most, whole = LIMITS[name]
    try:
        ends = value.split(":") if isinstance(value, str) else value if hasattr(value, "__len__") else [value]
        fits = len(ends) in (1, 2) and not any(isinstance(end, bool) for end in ends)
        low, high = (float(ends[0]), float(ends[-1])) if fits else (math.nan, math.nan)
    except (LookupError, TypeError, ValueError):
        low = high = math.nan
    if not least <= low <= high <= most or (whole and (low % 1 or high % 1)):
        kind = "whole numbers" if whole else "numbers"
        raise ConfigError(f"{name} must be LO:HI, {kind} from {least:g} to {most:g}, or one of them; got {value!r}")
    return Range(low, high)


def ranges_of(options: argparse.Namespace, params: Mapping[str, Any]) -> dict[str, Range]:
    """Return all ranges of a sample: those of its params, and else those of the command line.

    Raises:
        ConfigError: A range is wrong, or there are more objects or distractors than the command line provides for.
    """
    found: dict[str, Range] = {name: getattr(options, name) for name in LIMITS}
    for name in LIMITS.keys() & params.keys():
        found[name] = as_range(name, params[name])
        most = getattr(options, name).high
        if LIMITS[name].whole and found[name].high > most:
            raise ConfigError(f"params[{name!r}] is {params[name]!r}, but the script has only {most:g}: give --{name}")
    return found


def options_of(arguments: Iterable[str]) -> argparse.Namespace:
    """Return the options of a command line. Models may be before, between and after them."""
    words: list[str] = []
    for word in arguments:
        if words and words[-1].startswith("--") and word[:1] == "-" and word[1:2].isdigit():
            words[-1] += f"={word}"  # else argparse would take a range such as -10:20 for an option
        else:
            words.append(word)
    return parser().parse_intermixed_args(words)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""

    def form(prog: str) -> argparse.RawDescriptionHelpFormatter:
        return argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=120)

    found = argparse.ArgumentParser(
        "model.py",
        usage="model.py MODEL [MODEL ...] [options]",
        description="Your own models, in random scenes, with all labels. Each model is a class, named as its file.",
        epilog=EPILOGUE,
        formatter_class=form,
    )
    add = found.add_argument
    add(
        "models",
        nargs="+",
        metavar="MODEL",
        help="GLB, glTF, OBJ, PLY, STL, FBX, USD or BLEND file, a folder of them, or FILE.blend/Collection/NAME",
    )
    add("--size", type=positive, metavar="M", help="longest side of each model in metres; else as in its file")
    add(
        "--unit",
        type=positive,
        metavar="M",
        default=1.0,
        help="metres of a unit of STL, PLY, OBJ and BLEND files: 0.001 for millimetres; others know theirs",
    )
    add_range(add, "objects", "1:4", "how many objects are in a sample")
    add_range(add, "distractors", "0:4", "how many other shapes, without a class, are added")
    add_range(add, "distance", "3:6", "of the objects from the camera, in sizes of the largest model")
    add_range(add, "elevation", "10:75", "of the camera above the horizon, in degrees")
    add_range(add, "truncation", "0:0.4", "how much of an object may be outside the image")
    add_range(add, "occlusion", "0:0.7", "how much of an object, of what is inside, others may hide")
    add("--physics", action="store_true", help="drop the objects onto a floor; else they float")
    add("--hdris", metavar="FOLDER", help="skies that light the scene, of which each sample takes one")
    add("--backgrounds", metavar="FOLDER", help="pictures behind everything, of which each sample takes one")
    add(
        "--materials",
        choices=("keep", "random", "mixed"),
        default="keep",
        help="the models' own, random ones, or either",
    )
    add("--keypoints", type=whole, metavar="N", default=8, help="how many keypoints are chosen on each model's surface")
    add(
        "--bop",
        action="store_true",
        help="add what `asyncblend export --format bop` needs: whole silhouettes, and the models, with sample 0",
    )
    add("--table", metavar="FILE", help="write the classes to this JSON file: names, sizes in metres, and keypoints")
    add("--width", type=whole, metavar="PIXELS", default=640)
    add("--height", type=whole, metavar="PIXELS", default=480)
    add("--samples", type=whole, metavar="N", default=8, help="Cycles' samples a pixel: fewer are faster, and noisier")
    add("--engine", choices=("cycles", "eevee", "workbench"), default="cycles", help="what renders; EEVEE wants a GPU")
    return found


def add_range(add: Any, name: str, usual: str, text: str) -> None:
    """Add an option for a range."""

    def parsed(value: str) -> Range:
        try:
            return as_range(name, value)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    add(f"--{name}", type=parsed, metavar="LO:HI", default=as_range(name, usual), help=f"{text} (default {usual})")


def positive(text: str) -> float:
    """Return a number above 0."""
    if not 0 < float(text) < math.inf:
        raise ValueError
    return float(text)


def whole(text: str) -> int:
    """Return a whole number from 1 on."""
    if int(text) < 1:
        raise ValueError
    return int(text)


if __name__ == "__main__":
    options_of(sys.argv[1:])
