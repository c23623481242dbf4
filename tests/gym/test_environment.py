"""What a script's environment may be, how it is played inside Blender, and what its author is told of mistakes."""

from __future__ import annotations

import asyncio
import dataclasses
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asyncblend as ab
from asyncblend import blender as bl
from asyncblend.blender.serving.environment import episodes_of
from asyncblend.blender.serving.task import make_task
from asyncblend.errors import ConfigError, SampleError
from asyncblend.testing import fake_blender


class Counter:
    """Counts its steps, and ends after three."""

    observation_space: Mapping[str, Any]

    def __init__(self) -> None:
        self.action_space = {"Discrete": {"n": 2}}
        self.rendered = 0

    def reset(self, task: bl.Task) -> dict[str, Any]:
        self.count = int(task.params.get("start", 0))
        return {"observation": self.count}

    def step(self, action: int) -> dict[str, Any]:
        self.count += action
        return {"observation": self.count, "terminated": self.count >= 3}

    def render(self) -> Any:
        self.rendered += 1
        return np.full((1, 1, 3), self.count, np.uint8)


def begin(environment: Any, **params: Any) -> Any:
    """Begin an episode, and return its generator."""
    return episodes_of(environment)(make_task(0, 0, 0, params))


def test_an_episode_is_reset_and_steps() -> None:
    """`reset` gives the first frame, and each action another; after the end there is none."""
    episode = begin(Counter(), start=1)
    assert next(episode) == {"observation": 1}
    assert episode.send({"action": 1}) == {"observation": 2, "terminated": False}
    assert episode.send({"action": 1})["terminated"]
    with pytest.raises(StopIteration):
        episode.send({"action": 1})


def test_pictures_are_rendered_when_they_are_asked_for() -> None:
    """A picture is no step, also after the end, and nothing is rendered unless it is asked for."""
    counter = Counter()
    episode = begin(counter)
    next(episode)
    episode.send({"action": 1})
    assert counter.rendered == 0
    assert episode.send({"render": True})["image"].tolist() == [[[1, 1, 1]]]
    assert episode.send({"action": 2, "render": True})["image"].tolist() == [[[3, 3, 3]]]
    assert episode.send({"render": True})["image"].tolist() == [[[3, 3, 3]]]
    assert counter.rendered == 3


def test_spaces_are_asked_for() -> None:
    """What an environment says of itself is asked for without playing it."""
    told = {"observation_space": None, "action_space": {"Discrete": {"n": 2}}, "render_fps": None, "render": True}
    for served in (Counter, Counter()):
        assert list(begin(served, spaces=True)) == [{"spaces": told}]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(3), "reset must return a dict with 'observation' and 'info'; got array"),
        ({}, "reset returned no 'observation', only "),
        ({"observation": 0, "reward": 1.0}, "reset returned 'reward', which means nothing here"),
        (({"observation": 0}, {}), "reset must return a dict"),
    ],
)
def test_wrong_values_are_named(values: Any, message: str) -> None:
    """The author is told what a method may return."""

    class Wrong(Counter):
        def reset(self, task: bl.Task) -> Any:
            return values

    with pytest.raises(ConfigError, match=message):
        next(begin(Wrong()))


def test_a_typing_error_ends_no_episode_in_silence() -> None:
    """A flag that nobody knows would never end an episode, so it is an error."""

    class Wrong(Counter):
        def step(self, action: int) -> dict[str, Any]:
            return {"observation": 0, "done": True}

    episode = begin(Wrong())
    next(episode)
    with pytest.raises(
        ConfigError, match=r"step returned 'done', which means nothing here; it may return .*'terminated'"
    ):
        episode.send({"action": 0})


def test_an_environment_is_shown_without_a_host(tmp_path: Path) -> None:
    """Without a host, its first observation is printed, and its picture saved beside the script."""
    script = tmp_path / "shown.py"
    script.write_text(
        "import numpy as np\nfrom asyncblend import blender as bl\nclass Shown:\n"
        "    def reset(self, task): return {'observation': 0}\n    def step(self, action): return {'observation': 1}\n"
        "    def render(self): return np.zeros((1, 1, 3), np.uint8)\nbl.serve(Shown)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=100, check=True)
    saved = tmp_path / "shown.png"
    assert done.stdout == f"observation: int, 0\nimage: uint8, shape (1, 1, 3)\n  saved as {saved}\n"
    assert saved.is_file()


SERVED = """
import numpy as np
from asyncblend import blender as bl
class Lamp:
    def reset(self, task):
        self.steps = 0
        return {"observation": task.index}
    def step(self, action):
        self.steps += action
        return {"observation": self.steps, "terminated": self.steps >= 3}
    def render(self):
        return np.full((16, 24, 3), 200, np.uint8)
bl.serve(Lamp)
"""


@pytest.fixture
def lamp(tmp_path: Path) -> ab.StreamConfig:
    """A stream of an environment in a fake Blender."""
    script = tmp_path / "lamp.py"
    script.write_text(SERVED)
    return ab.StreamConfig(script=script, blender=fake_blender(tmp_path / "fake"), instances=1, length=2, ordered=True)


async def test_a_stream_plays_no_environment(lamp: ab.StreamConfig) -> None:
    """After the first beginning it is an error that says what does, and not an episode without end."""
    with pytest.raises(SampleError, match=r"nobody takes its steps: play Lamp with asyncblend\.gym"):
        async with asyncio.timeout(100), ab.BlenderStream(lamp) as stream:
            async for frame in stream:
                assert frame.step == 0


@pytest.mark.parametrize(
    ("params", "steps", "names"),
    [({"render": True}, [0], {"observation", "image"}), ({"action": 2}, [0, 1, 2], {"observation"})],
)
async def test_a_stream_shows_beginnings_or_repeats_an_action(
    params: dict[str, Any], steps: list[int], names: set[str], lamp: ab.StreamConfig
) -> None:
    """With params that are one of the questions to an environment, a stream ends each episode."""
    async with asyncio.timeout(100), ab.BlenderStream(dataclasses.replace(lamp, params=params)) as stream:
        got = [frame async for frame in stream]
    assert [(frame.index, frame.step) for frame in got] == [(index, step) for index in (0, 1) for step in steps]
    assert set(got[0]) == names
    assert [frame.last for frame in got] == 2 * [*(len(steps) - 1) * [False], True]


@pytest.mark.parametrize("command", ["stream", "record", "bench", "inspect"])
@pytest.mark.exhaustive
@pytest.mark.slow
def test_commands_play_no_environment(command: str, lamp: ab.StreamConfig, tmp_path: Path) -> None:
    """They say so, and do not run for ever; inspect draws how each episode begins."""
    own = {"record": ["--length", "2", "--out", "recorded"], "bench": ["--instances", "1", "--seconds", "0.05"]}
    line = [sys.executable, "-m", "asyncblend", command, "lamp.py", "--blender", str(lamp.blender)]
    line += own.get(command, [])
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    if command == "inspect":
        assert done.stdout.startswith("4 samples in sheet.png"), done.stderr
    else:
        assert done.returncode == 1
        assert "the script serves an environment, and nobody takes its steps" in done.stderr
