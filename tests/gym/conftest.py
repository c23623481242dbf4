"""An environment to test with: a random walk whose script runs in a fake Blender."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asyncblend.gym import BlenderEnv, BlenderVectorEnv
from asyncblend.testing import fake_blender

WALK = """
import os

class Walk:
    '''Random steps, pushed by the action. It ends far from zero, and is truncated after twelve steps.'''

    action_space = {"Box": {"low": -1.0, "high": 1.0, "shape": (1,)}}
    observation_space = {"Box": {"low": -9.0, "high": 9.0, "shape": (2,)}}

    def reset(self, task):
        self.rng, self.steps = task.rng, 0
        self.x = self.rng.normal() + task.params.get("options", {}).get("from", 0.0) + task.params.get("all", 0.0)
        return {"observation": np.array([self.x, 0]), "info": {"params": dict(task.params)}}

    def step(self, action):
        self.steps += 1
        self.x = min(9.0, max(-9.0, self.x + self.rng.normal() + float(action[0])))
        return {
            "observation": np.array([self.x, self.steps / 2]),
            "reward": -abs(self.x),
            "terminated": abs(self.x) > 4,
            "truncated": self.steps == 12,
            "info": {"pid": os.getpid(), "place": np.array([self.x])},
        }

    def render(self):
        return np.full((2, 3, 3), self.steps, np.uint8)

bl.serve(Walk)
"""


class Make:
    """Makes environments of a script in fake Blenders, and closes them."""

    def __init__(self, folder: Path, write_script: Callable[..., Path]) -> None:
        self._write, self._folder = write_script, folder
        self.made: list[BlenderEnv | BlenderVectorEnv] = []

    def options(self, body: str, options: dict[str, Any]) -> dict[str, Any]:
        name = f"script-{len(self.made)}.py"
        return {
            "blender": fake_blender(self._folder / "fake"),
            "script": self._write(body, name=name, serve=False),
            **options,
        }

    def env(self, body: str = WALK, **options: Any) -> BlenderEnv:
        self.made.append(env := BlenderEnv(**self.options(body, options)))
        return env

    def vector(self, body: str = WALK, **options: Any) -> BlenderVectorEnv:
        self.made.append(envs := BlenderVectorEnv(**self.options(body, options)))
        return envs


@pytest.fixture
def make(tmp_path: Path, write_script: Callable[..., Path]) -> Iterator[Make]:
    """Make environments of fakes: `make.env(body, **options)`, `make.vector(...)`."""
    made = Make(tmp_path, write_script)
    yield made
    for env in made.made:
        env.close()
