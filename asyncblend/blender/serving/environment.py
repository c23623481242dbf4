"""environment: lets an object with `reset` and `step`, as reinforcement learning knows it, be served as episodes.

The episode of an index begins with `reset`. What the host sends then, as params, is one of these:

    {"action": ...}   take a step, and answer with its values
    {"render": True}  answer with a picture of how things are, and take no step. With an action: of how they are then
    {"spaces": True}  only at an episode's beginning: say which spaces there are, and play nothing

A stream plays nothing: it takes no steps, so it cannot have episodes, unless its own params are one of these. With
{"render": True} it has the picture of each beginning, and with {"action": ...} this action is taken until the end.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Mapping
from typing import Any, Protocol, TypeGuard

from ...errors import NOBODY_STEPS, ConfigError
from .task import Task

Episode = Generator[Mapping[str, Any], Mapping[str, Any], None]

_OF_RESET = ("observation", "info")
_OF_STEP = ("observation", "reward", "terminated", "truncated", "info")


class Environment(Protocol):
    """What `serve` takes in place of a `sample` function: an object of this form, or its class.

    All that is random must come from `task.rng`, or from what else is seeded for a sample, so that the same index and
    actions give the same episode. Then an episode whose Blender died can be played again by another.

    It may also have the method `render() -> H x W x 3 uint8`, called only when somebody wants a picture, and the
    attributes `observation_space`, `action_space` and `render_fps`. A space is the name of Gymnasium's class, with its
    arguments: `{"Discrete": {"n": 2}}`, `{"Box": {"low": 0, "high": 255, "shape": (48, 64, 3), "dtype": "uint8"}}`,
    `{"Dict": {"image": ..., "speed": ...}}`, `{"Tuple": [..., ...]}`, `MultiDiscrete` and `MultiBinary`.
    """

    def reset(self, task: Task) -> Mapping[str, Any]:
        """Begin an episode. Return `{"observation": ..., "info": {...}}`, or without info.

        The options of Gymnasium's `reset` are `task.params["options"]`, if it was given any.
        """

    def step(self, action: Any) -> Mapping[str, Any]:
        """Take a step. Return `{"observation": ..., "reward": 1.0, "terminated": False, "truncated": False}`.

        "info", a dict, may be there too. What is left out is 0, False or {}. No step follows the one that ends it.
        """


def is_environment(served: object) -> TypeGuard[Environment | type[Environment]]:
    """Tell whether it is an environment, or the class of one."""
    return callable(getattr(served, "reset", None)) and callable(getattr(served, "step", None))


def episodes_of(environment: Environment | type[Environment]) -> Callable[[Task], Episode]:
    """Return a generator function that plays the episode of a task."""
    played: Any = environment() if inspect.isclass(environment) else environment

    def episode(task: Task) -> Episode:
        params: Mapping[str, Any] = task.params
        if params.get("spaces"):
            yield {"spaces": _spaces(played)}
            return
        values = _checked("reset", played.reset(task), _OF_RESET)
        over = False
        while True:
            if params.get("render") and hasattr(played, "render"):
                values = {**values, "image": played.render()}
            params = yield values
            if params is task.params and "action" not in params:  # of a stream; who takes steps sends other params
                if params.get("render"):
                    return
                raise ConfigError(
                    f"{NOBODY_STEPS}: play {type(played).__name__} with asyncblend.gym (BlenderEnv, BlenderVectorEnv) or "
                    f"with stream.episode(index). With params={{'render': True}} a stream has the picture of each beginning"
                )
            if "action" not in params:
                values = {}
            elif over:
                return
            else:
                values = _checked("step", played.step(params["action"]), _OF_STEP)
                over = bool(values.get("terminated") or values.get("truncated"))

    return episode


def _spaces(environment: Any) -> dict[str, Any]:
    names = ("observation_space", "action_space", "render_fps")
    return {**{name: getattr(environment, name, None) for name in names}, "render": hasattr(environment, "render")}


def _checked(method: str, values: Any, names: tuple[str, ...]) -> Mapping[str, Any]:
    # To ask an abstract class is slow, and nearly all values are plain dicts.
    if type(values) is not dict and not isinstance(values, Mapping):
        raise ConfigError(f"{method} must return a dict with {' and '.join(map(repr, names))}; got {values!r:.200}")
    for name in values:
        if name not in names:
            raise ConfigError(f"{method} returned {name!r}, which means nothing here; it may return {names}")
    if "observation" not in values:
        raise ConfigError(f"{method} returned no 'observation', only {list(values)}")
    return values
