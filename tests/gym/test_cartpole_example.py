"""The example that trains a policy: short, to see that it works, and whole, to see that the policy learns."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
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


@pytest.mark.exhaustive
def test_the_example_runs(tmp_path: Path) -> None:
    """With few steps it trains both, draws and films."""
    printed = run(tmp_path, "--steps", "512", "--seeds", "0", "--envs", "2")
    assert re.search(r"asyncblend/CartPole-v0, seed 0: \d+ episodes", printed)
    assert re.search(r"the best policy balances for \d+ steps", printed)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.exhaustive
def test_a_training_is_the_same_though_its_blenders_are_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """PPO gets the same episodes and ends with the same weights, to the bit, with and without SIGKILLs."""
    from examples import cartpole as example

    policy, episodes = example.train(example.NAME, 0, 1536, 2, "bpy")
    make, over, killed, killers = example.make, threading.Event(), list[int](), list[threading.Thread]()

    def spoilt(*options: Any) -> Any:
        envs: Any = make(*options)
        killers.append(threading.Thread(target=kill, args=(envs.envs.unwrapped._arena.stream,)))
        killers[0].start()
        return envs

    def kill(stream: Any) -> None:
        while len(killed) < 3 and not over.wait(0.2):
            stats, children = stream.stats(), stream._run._fleet._children
            if stats.restarts == len(killed) and set(stats.state.values()) <= {"ready", "idle"}:
                killed.append(children[len(killed) % 2].pid)
                os.kill(killed[-1], signal.SIGKILL)

    monkeypatch.setattr(example, "make", spoilt)
    try:
        other, same = example.train(example.NAME, 0, 1536, 2, "bpy")
    finally:
        over.set()
        killers[0].join()
    assert killed
    assert same == episodes
    theirs = other.policy.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in policy.policy.state_dict().items())


@pytest.mark.exhaustive
@pytest.mark.timeout(1600)
def test_a_policy_learns(tmp_path: Path) -> None:
    """With its usual steps, the mean of the last episodes is far above what chance gives, which is about 20."""
    printed = run(tmp_path, "--seeds", "0")
    reached = re.search(r"asyncblend/CartPole-v0, seed 0: .* at last (\d+)", printed)
    assert reached is not None
    assert int(reached[1]) > 100
