"""`python -m benchmarks environment`: steps of environments a second."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from asyncblend.testing import fake_blender

from .measuring import Effort, Way, in_turn, timed
from .peers.req_rep import req_rep, req_rep_in_gymnasium
from .peers.sockets import sockets
from .peers.turns import turns
from .report import Metric, Report
from .streams import PATIENT, written

__all__ = ["measure"]

_METHOD = (
    "Fake Blenders that render nothing: an observation is four numbers, or an image of 64x64 that is there already. "
    "*BlenderVectorEnv*: all environments take a step at once. *BlenderEnv*: each takes its step after the other. "
    "*episodes*: all at once by `send` and `receive` of `stream.episode`, without Gymnasium. "
    "*REQ/REP in Gymnasium*: blendtorch's way, an environment for each Blender, in a SyncVectorEnv. *REQ/REP, all at once*: "
    "the same pickles without Gymnasium, and with all requests sent before the first reply is awaited. *ZeroMQ's echo*: small messages, or those "
    "with the bytes of an image, between a bare ROUTER in asyncio and DEALERs. *sockets' echo*: the same between bare "
    "sockets of the system. Both neither pack nor check anything."
)
_SCRIPT = """\
import numpy as np

from asyncblend import blender as bl


class Still:
    def __init__(self):
        self.shape = {shape!r}
        self.action_space = {{"Discrete": {{"n": 2}}}}
        number = {{"low": -1.0, "high": 1.0, "shape": (4,)}}
        image = {{"low": 0, "high": 255, "shape": self.shape, "dtype": "uint8"}}
        self.observation_space = {{"Box": image if self.shape else number}}
        self.observation = np.zeros(self.shape or 4, np.uint8 if self.shape else np.float32)

    def reset(self, task):
        return {{"observation": self.observation}}

    def step(self, action):
        self.observation.flat[0] = action
        return {{"observation": self.observation, "reward": 1.0, "terminated": False, "truncated": False}}


bl.serve(Still())
"""


def measure(how: Effort) -> Report:
    """Count steps per second of one and of four environments, without and with an image.

    The limits are bare sockets, of ZeroMQ and of the system, that answer each message. Beside them stands blendtorch's
    way, with Gymnasium and without.
    """
    metrics = [
        Metric("steps/s", lambda timed: timed.rate),
        Metric("µs each", lambda timed: 1e6 / timed.rate, 1),
        Metric("host CPU µs each", lambda timed: timed.cpu_each, 1),
    ]
    report = Report(
        "environment",
        "Environments: steps",
        _METHOD,
        metrics,
        "BlenderVectorEnv",
        own=["BlenderEnv", "episodes"],
        columns=2,
    )
    for shape in (None, (64, 64, 3)):
        for count in (1, 4):
            case = f"{count} environment{'s' * (count > 1)}, {'64x64 image' if shape else 'no image'}"
            how.say(case)
            with _ways(count, shape) as ways:
                report.add(case, in_turn(ways, how))
    return report


@contextlib.contextmanager
def _ways(count: int, shape: tuple[int, ...] | None) -> Iterator[Mapping[str, Way]]:
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        script = written(folder, "still.py", _SCRIPT.format(shape=shape))
        options: dict[str, Any] = {"script": script, "blender": fake_blender(folder / "fake"), "timeouts": PATIENT}
        yield {
            "BlenderVectorEnv": stack.enter_context(_at_once(count, options)),
            "BlenderEnv": stack.enter_context(_one_by_one(count, options)),
            "episodes": stack.enter_context(_episodes(count, options)),
            "REQ/REP in Gymnasium": stack.enter_context(req_rep_in_gymnasium(count, shape)),
            "REQ/REP, all at once": stack.enter_context(req_rep(count, shape)),
            "ZeroMQ's echo": stack.enter_context(turns(count, math.prod(shape or (1,)))),
            "sockets' echo (limit)": stack.enter_context(sockets(count, math.prod(shape or (1,)))),
        }


@contextlib.contextmanager
def _at_once(count: int, options: Mapping[str, Any]) -> Iterator[Way]:
    from asyncblend.gym import BlenderVectorEnv  # needs Gymnasium, as this command alone does

    with contextlib.closing(BlenderVectorEnv(num_envs=count, **options)) as envs:
        envs.reset(seed=0)
        actions = envs.action_space.sample()

        def step() -> int:
            envs.step(actions)
            return count

        yield _way(step)


@contextlib.contextmanager
def _one_by_one(count: int, options: Mapping[str, Any]) -> Iterator[Way]:
    from asyncblend.gym import BlenderEnv

    with contextlib.ExitStack() as stack:
        envs = [stack.enter_context(contextlib.closing(BlenderEnv(**options))) for _ in range(count)]
        for env in envs:
            env.reset(seed=0)

        def step() -> int:
            for env in envs:
                env.step(1)
            return count

        yield _way(step)


@contextlib.contextmanager
def _episodes(count: int, options: Mapping[str, Any]) -> Iterator[Way]:
    import asyncblend as ab

    with ab.BlenderStream(instances=count, **options).sync() as stream, contextlib.ExitStack() as stack:
        episodes = [stack.enter_context(stream.episode(index)) for index in range(count)]

        def step() -> int:
            for episode in episodes:
                episode.send({"action": 1})
            for episode in episodes:
                episode.receive()
            return count

        yield _way(step)


def _way(step: Callable[[], int]) -> Way:
    return lambda seconds: timed(step, seconds)
