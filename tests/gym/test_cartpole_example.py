"""The example that trains a policy: short, to see that it works, and whole, to see that the policy learns."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytestmark = [
    pytest.mark.blender,
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("stable_baselines3") is None,
        reason='needs Stable-Baselines3; type: pip install "asyncblend[train]"',
    ),
]
EXAMPLE = Path(__file__).parents[2] / "examples" / "cartpole.py"


def run(folder: Path, *options: str) -> str:
    """Run the example, check that both pictures are there, and return what it prints."""
    command = [sys.executable, str(EXAMPLE), "--blender", "bpy", "--out", str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    with Image.open(folder / "learning.png") as picture:
        assert picture.size == (960, 540)
    with Image.open(folder / "policy.gif") as film:
        assert film.size == (320, 216)
        assert film.n_frames > 1  # type: ignore[attr-defined]
    return done.stdout


def test_the_example_runs(tmp_path: Path) -> None:
    """With few steps it trains both, draws and films."""
    printed = run(tmp_path, "--steps", "512", "--seeds", "0", "--envs", "2")
    assert re.search(r"asyncblend/CartPole-v0, seed 0: \d+ episodes", printed)
    assert re.search(r"the best policy balances for \d+ steps", printed)


@pytest.mark.exhaustive
@pytest.mark.timeout(1600)
def test_a_policy_learns(tmp_path: Path) -> None:
    """With its usual steps, the mean of the last episodes is far above what chance gives, which is about 20."""
    printed = run(tmp_path, "--seeds", "0")
    reached = re.search(r"asyncblend/CartPole-v0, seed 0: .* at last (\d+)", printed)
    assert reached is not None
    assert int(reached[1]) > 100
