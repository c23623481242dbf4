"""What the examples say where a package of their extra is not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
HIDE = """
import pathlib, runpy, sys

sys.path.insert(0, str(pathlib.Path(sys.argv[1]).parent))

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError("No module named " + repr(name), name=name)

sys.meta_path.insert(0, Hide())
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("example", "extra"),
    [
        *(("cartpole.py", "train"), ("curriculum.py", "plot"), ("fit_parameters.py", "plot")),
        *(("train_detector.py", "plot"), ("train_keypoints.py", "plot")),
    ],
)
@pytest.mark.exhaustive
@pytest.mark.slow
def test_an_example_names_its_extra(example: str, extra: str) -> None:
    """One line says what is missing, and what to type."""
    line: list[str | Path] = [sys.executable, "-c", HIDE, EXAMPLES / example]
    done = subprocess.run(line, capture_output=True, text=True, timeout=100, check=False)
    said = f'matplotlib is not installed here. Type: pip install "asyncblend[{extra}]"\n'
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)
