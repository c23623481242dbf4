"""Arena: a fleet whose Blenders play episodes of one environment, and what the script says about it."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Literal

from ..checks import check_whole
from ..config import StreamConfig
from ..errors import ConfigError, EpisodeLost, StreamClosed
from ..stream.sync import SyncStream
from .spaces import Space, reader, space_of

OnCrash = Literal["replay", "truncate"]

_RENDER_MODES = ("rgb_array",)
_NO_ENVIRONMENT = (
    "the script serves no environment: its last line must be bl.serve(environment), with an object that has reset(task) "
    "and step(action); or give observation_space and action_space, if a generator of its own understands the same params"
)


class Arena:
    """Starts the fleet, and asks the script for its spaces. `close` it; garbage collection and exit close it too.

    Args:
        config: The options of the fleet.
        instances: The number of Blenders, which is that of the episodes at once.
        observation_space, action_space: As for BlenderEnv.
        render_mode: As for BlenderEnv.
        on_crash, max_replay_steps: As for BlenderEnv.

    Raises:
        ConfigError: An argument is wrong, the script serves no environment, or has no space.
        AsyncblendError: As starting a stream raises. Nothing is left running.
    """

    def __init__(
        self,
        config: StreamConfig,
        instances: int,
        *,
        observation_space: Space | None,
        action_space: Space | None,
        render_mode: str | None,
        on_crash: OnCrash,
        max_replay_steps: int,
    ) -> None:
        if render_mode is not None and render_mode not in _RENDER_MODES:
            raise ConfigError(f"render_mode must be None or one of {_RENDER_MODES}; got {render_mode!r}")
        if on_crash not in ("replay", "truncate"):
            raise ConfigError(f"on_crash must be 'replay' or 'truncate'; got {on_crash!r}")
        check_whole("max_replay_steps", max_replay_steps, 0)
        fewest = config.restart.min_instances
        if fewest is not None and fewest < instances:
            raise ConfigError(
                f"restart has min_instances={fewest}, but each of the {instances} environments needs a Blender of its own "
                f"and would wait for ever for one that was given up; leave min_instances out"
            )
        self._config = dataclasses.replace(config, instances=instances)
        self.max_replay: int = max_replay_steps if on_crash == "replay" else 0
        self.stream: SyncStream = SyncStream(self._config)
        self._finalizer = weakref.finalize(self, self.stream.close)
        self._finalizer.atexit = False  # the stream closes itself at exit, before the interpreter waits for its thread
        try:
            self.stream.start()
            said = self._what_the_script_says()
            self.observation_space: Space = observation_space or _space(said, "observation_space")
            self.action_space: Space = action_space or _space(said, "action_space")
            self.read_observation: Callable[[Any], Any] = reader(self.observation_space, "observation")
            self.read_action: Callable[[Any], Any] = reader(self.action_space, "action")
            if render_mode is not None and not said.get("render"):
                raise ConfigError(f"render_mode is {render_mode!r}, but the script's environment has no method render")
        except BaseException:
            self.close()
            raise
        self.render_fps: int = said.get("render_fps") or 30

    def params(self, index: int, **own: Any) -> dict[str, Any]:
        """Return the params of an episode's beginning: the config's, and those of the environment's own."""
        drawn = self._config.params
        values = drawn(index) if callable(drawn) else drawn or {}
        if not isinstance(values, Mapping):
            raise ConfigError(f"params of an environment must be a mapping, or a callable(index); got {drawn!r:.100}")
        return {**values, **own}

    def lost(self, steps: int) -> EpisodeLost:
        """Return the error that tells of an episode whose Blender died after so many steps, in the words of an environment."""
        why = (
            f"at most {self.max_replay} are played again: raise max_replay_steps"
            if self.max_replay
            else "on_crash or max_replay_steps say that none is played again"
        )
        return EpisodeLost(f"the Blender of this episode died after {steps} steps, and {why}", step=steps)

    def check_open(self) -> None:
        """Raise StreamClosed after `close`."""
        if not self._finalizer.alive:
            raise StreamClosed("the environment was closed; make another one")

    def close(self) -> None:
        """Stop the fleet. Return when nothing of it is left. Also twice."""
        self._finalizer()

    def _what_the_script_says(self) -> Mapping[str, Any]:
        with self.stream.episode(0, self.params(0, spaces=True)) as episode:
            said = episode.frame.get("spaces", {})
        return said if isinstance(said, Mapping) else {}


def _space(said: Mapping[str, Any], name: str) -> Space:
    if not said:
        raise ConfigError(_NO_ENVIRONMENT)
    if said.get(name) is None:
        raise ConfigError(f"the script's environment has no {name}; give it that attribute, or give {name} here")
    return space_of(said[name], f"the script's {name}")
