"""BlenderEnv: an environment in a Blender, for Gymnasium."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

import gymnasium
import numpy as np
import numpy.typing as npt

from ..config import StreamConfig, StreamOptions, resolve
from .arena import Arena, OnCrash
from .player import Player, checked_options, checked_seed
from .spaces import Space


class BlenderEnv(gymnasium.Env[Any, Any]):
    """An environment that a script serves inside a Blender:

        env = BlenderEnv(script="cartpole.py", render_mode="rgb_array")
        observation, info = env.reset(seed=7)
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        env.close()

    The script ends in `bl.serve(environment)`, with an object that has `reset(task)` and `step(action)`; see
    `asyncblend.blender.Environment`. One Blender is started, whatever `instances` says, and the spaces are asked for.
    Closing, garbage collection and the end of the program stop it.

    The same `reset(seed=)`, followed by the same actions, gives the same episode, also in another process: the index of
    each episode, from which `task.rng` is seeded, is drawn from `np_random`. `reset(options=)` becomes
    `task.params["options"]`. What an observation has of arrays is the caller's own.

    A Blender that dies is replaced, and its episode is played again from the actions that were sent and the pictures
    that were rendered, up to `max_replay_steps` of both together; the agent notices a delay. A longer episode, or each
    with on_crash="truncate", ends with `truncated`, the last observation, a reward of 0 and `info["blender_died"]`. A
    fleet that dies again and again raises CrashLoop, as `restart` in the config says.

    Args:
        config: The options of the stream. `params` are passed to each episode too; what speaks of indices has no effect.
        render_mode: None, or "rgb_array". A picture is rendered only when `render` is called.
        on_crash: "replay" or "truncate".
        max_replay_steps: The most steps that are played again. Each picture that was rendered counts as a step.
        observation_space, action_space: Spaces of Gymnasium's. None: those that the script says.
        options: StreamConfig's fields. They override the config's.

    Raises:
        ConfigError: An argument is wrong, or the script serves no environment.
        AsyncblendError: As entering a BlenderStream raises.
    """

    # Never changed; gymnasium.make reads it.
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012

    def __init__(
        self,
        config: StreamConfig | None = None,
        *,
        render_mode: str | None = None,
        on_crash: OnCrash = "replay",
        max_replay_steps: int = 1000,
        observation_space: Space | None = None,
        action_space: Space | None = None,
        **options: Unpack[StreamOptions],
    ) -> None:
        self._arena = Arena(
            resolve(config, options),
            1,
            observation_space=observation_space,
            action_space=action_space,
            render_mode=render_mode,
            on_crash=on_crash,
            max_replay_steps=max_replay_steps,
        )
        self._player = Player(self._arena)
        self.observation_space: gymnasium.Space[Any] = self._arena.observation_space
        self.action_space: gymnasium.Space[Any] = self._arena.action_space
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": self._arena.render_fps}

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin another episode, and return its first observation, in `observation_space`, and info.

        Args:
            seed: A whole number, at least 0: draws this episode and those after it. None: go on drawing.
            options: Become `task.params["options"]` of the script's `reset`.

        Raises:
            ConfigError: An argument is wrong, or the options or the config's params cannot travel to Blender.
            SampleError: The script raised, or its observation is not in the space.
            StreamClosed: The environment was closed.
            AsyncblendError: Why there are no Blenders any more.
        """
        own = checked_options(options)
        super().reset(seed=checked_seed(seed))
        self._player.rng = self.np_random
        self._player.begin(own)
        return self._player.began()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take a step, and return observation, reward, terminated, truncated and info.

        Raises:
            ConfigError: The action is not in the action space, or Ctrl-C interrupted the step before. Nothing was sent.
            EpisodeOver: The episode has ended, or none was begun.
            SampleError: The script raised, or its observation is not in the space.
            StreamClosed: The environment was closed.
            AsyncblendError: Why there are no Blenders any more.
        """
        self._player.send(self._player.checked(action))
        return self._player.receive()

    def render(self) -> npt.NDArray[np.uint8] | None:
        """Render how things are now: height x width x 3, uint8. None without render_mode, as Gymnasium has it.

        Raises:
            EpisodeOver: No episode was begun, or an error has ended it. After a usual end there is still a picture.
            EpisodeLost: Its Blender died, and it is not played again. The next step says that it is truncated.
            SampleError: The script raised, or its picture is not height x width x 3, uint8.
            ConfigError: Ctrl-C interrupted the step before.
            StreamClosed: The environment was closed.
            AsyncblendError: Why there are no Blenders any more.
        """
        if self.render_mode is None:
            gymnasium.logger.warn("render() gives nothing without render_mode='rgb_array'")
            return None
        self._player.ask_for_picture()
        self._player.await_picture()
        return self._player.picture()

    def close(self) -> None:
        """Stop the Blender. Return when nothing of it is left. Also twice."""
        if arena := self.__dict__.get("_arena"):
            arena.close()
