"""BlenderVectorEnv: an environment in each Blender of a fleet, stepped all at once, for Gymnasium."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate

from ..checks import check_whole
from ..config import StreamConfig, StreamOptions, resolve
from ..errors import ConfigError
from .arena import Arena, OnCrash
from .player import Player, checked_options, checked_seed
from .spaces import Space

Bools = npt.NDArray[np.bool_]


class BlenderVectorEnv(VectorEnv[Any, Any, Any]):
    """Environments in several Blenders, as one. All of them take their steps at the same time:

        envs = BlenderVectorEnv(script="cartpole.py", instances=4)
        observations, infos = envs.reset(seed=7)
        observations, rewards, terminations, truncations, infos = envs.step(envs.action_space.sample())
        envs.close()

    Each is as a BlenderEnv is: environment i, reset with seed s + i, gives the same episodes.

    Args:
        config, render_mode, on_crash, max_replay_steps, observation_space, action_space, options: As for BlenderEnv.
        num_envs: The number of environments, and of Blenders. None: the config's `instances`.
        autoreset_mode: When an environment begins another episode. NEXT_STEP: with the step after the one that ended
            it, whose action counts for nothing. SAME_STEP: with that step; its last observation and info are in
            `infos["final_obs"]` and `infos["final_info"]`. DISABLED: when `reset` says so, with
            `options={"reset_mask": array of bool}`.

    Raises:
        ConfigError: An argument is wrong, or the script serves no environment.
        AsyncblendError: As entering a BlenderStream raises.
    """

    def __init__(
        self,
        config: StreamConfig | None = None,
        *,
        num_envs: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        on_crash: OnCrash = "replay",
        max_replay_steps: int = 1000,
        observation_space: Space | None = None,
        action_space: Space | None = None,
        **options: Unpack[StreamOptions],
    ) -> None:
        resolved = resolve(config, options)
        self.num_envs: int = resolved.instances if num_envs is None else num_envs
        check_whole("num_envs", self.num_envs, 1)
        try:
            self._mode = AutoresetMode(autoreset_mode)
        except ValueError:
            modes = [mode.value for mode in AutoresetMode]
            raise ConfigError(
                f"autoreset_mode must be an AutoresetMode or one of {modes}; got {autoreset_mode!r}"
            ) from None
        self._arena = Arena(
            resolved,
            self.num_envs,
            observation_space=observation_space,
            action_space=action_space,
            render_mode=render_mode,
            on_crash=on_crash,
            max_replay_steps=max_replay_steps,
        )
        self._players = [Player(self._arena) for _ in range(self.num_envs)]
        self._observations: list[Any] = [None] * self.num_envs
        self._ended = self._none()
        self.single_observation_space: gymnasium.Space[Any] = self._arena.observation_space
        self.single_action_space: gymnasium.Space[Any] = self._arena.action_space
        self.observation_space: gymnasium.Space[Any] = batch_space(self.single_observation_space, self.num_envs)
        self.action_space: gymnasium.Space[Any] = batch_space(self.single_action_space, self.num_envs)
        self.render_mode = render_mode
        self.metadata: dict[str, Any] = {
            "render_modes": ["rgb_array"],
            "render_fps": self._arena.render_fps,
            "autoreset_mode": self._mode,
        }

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin another episode in each environment.

        Args:
            seed: Environment i gets seed + i, or its own of a sequence of num_envs. None: go on drawing.
            options: Become `task.params["options"]`, without "reset_mask": an array of num_envs bools, which
                environments to reset. The others go on, and the first `reset` leaves none out.

        Returns:
            Observations, in `observation_space`: num_envs x the shape of one, in each part of a Dict or Tuple.
            Infos, as Gymnasium has them: `infos[name]` is an array of num_envs, and `infos["_" + name]`, num_envs
            bools, says which environments have it.

        Raises:
            ConfigError: An argument is wrong, or the options or the config's params cannot travel to Blender.
            AsyncblendError: As `BlenderEnv.reset` raises.
        """
        seeds = self._seeds(seed)
        own = checked_options(options)
        mask = self._mask(own.pop("reset_mask", None))
        if isinstance(seed, int | np.integer):
            super().reset(seed=int(seed))
        chosen = np.flatnonzero(mask).tolist()
        for i in chosen:
            self._players[i].seed(seeds[i])
        infos: dict[str, Any] = {}
        for i, info in self._begin(chosen, own):
            infos = self._add_info(infos, info, i)
        return self._batch(), infos

    def step(self, actions: Any) -> tuple[Any, npt.NDArray[np.float64], Bools, Bools, dict[str, Any]]:
        """Take a step in each environment, all at the same time.

        Args:
            actions: In `action_space`: num_envs x the shape of one, in each part of a Dict or Tuple.

        Returns:
            Observations and infos, as `reset` returns them; between them rewards (num_envs, float64), terminations and
            truncations (num_envs, bool).

        Raises:
            ConfigError: An action is not in the action space, there is not one for each environment, or the step before
                was interrupted, by Ctrl-C or an error in one environment. Nothing was sent.
            EpisodeOver: An environment was not reset: ever, after an error, or, in the mode DISABLED, after its end.
            AsyncblendError: As `BlenderEnv.step` raises. Then `reset` them all.
        """
        try:
            each = list(iterate(self.action_space, actions))
        except (TypeError, ValueError, LookupError) as error:
            raise ConfigError(
                f"actions must be {self.num_envs} in one, in {self.action_space}; got {actions!r:.100}: {error}"
            ) from error
        if len(each) != self.num_envs:
            raise ConfigError(f"{self.num_envs} environments need as many actions; got {len(each)}")
        again = [i for i in range(self.num_envs) if self._ended[i] and self._mode is AutoresetMode.NEXT_STEP]
        # Everything is checked before anything is sent, so that an error leaves no environment a step ahead.
        actions = {i: self._players[i].checked(each[i]) for i in range(self.num_envs) if i not in again}
        for i, action in actions.items():
            self._players[i].send(action)
        infos: dict[str, Any] = {}
        rewards, terminations, truncations = np.zeros(self.num_envs), self._none(), self._none()
        for i, info in self._begin(again, {}):
            infos = self._add_info(infos, info, i)
        for i in actions:  # while the first ones are read, the others are made
            step = self._players[i].receive()
            self._observations[i], rewards[i], terminations[i], truncations[i], info = step
            if (step.terminated or step.truncated) and self._mode is AutoresetMode.SAME_STEP:
                info = {"final_obs": step.observation, "final_info": info}
            if info:
                infos = self._add_info(infos, info, i)
        self._ended = terminations | truncations
        if self._mode is AutoresetMode.SAME_STEP:
            for i, info in self._begin(np.flatnonzero(self._ended).tolist(), {}):
                infos = self._add_info(infos, info, i)
        return self._batch(), rewards, terminations, truncations, infos

    def render(self) -> tuple[npt.NDArray[np.uint8], ...] | None:
        """Render how things are now in each environment. None without render_mode.

        Returns:
            num_envs pictures, each height x width x 3, uint8.

        Raises:
            EpisodeLost: As `BlenderEnv.render` raises it, for one of them. The others go on.
            AsyncblendError: As `BlenderEnv.render` raises. Then `reset` them all.
        """
        if self.render_mode is None:
            gymnasium.logger.warn("render() gives nothing without render_mode='rgb_array'")
            return None
        for player in self._players:
            player.ask_for_picture()
        for player in self._players:
            player.await_picture()
        return tuple(player.picture() for player in self._players)

    def close_extras(self, **kwargs: Any) -> None:
        """Stop the Blenders. Return when nothing of them is left."""
        if arena := self.__dict__.get("_arena"):
            arena.close()

    def _begin(self, chosen: Sequence[int], options: Mapping[str, Any]) -> list[tuple[int, dict[str, Any]]]:
        """Begin an episode in each of these environments, all at the same time, and return their infos."""
        for i in chosen:
            self._players[i].seed(None)
            self._players[i].begin(options)
        infos = []
        for i in chosen:
            self._observations[i], info = self._players[i].began()
            self._ended[i] = False
            infos.append((i, info))
        return infos

    def _batch(self) -> Any:
        """Return the observations of all environments as one, which is the caller's own."""
        space = self.single_observation_space
        batch: Any = create_empty_array(space, self.num_envs, np.empty)
        if not isinstance(batch, np.ndarray):
            return concatenate(space, self._observations, batch)
        # Each has the space's own shape and dtype, from the arena's reader. For small ones concatenate takes four times as
        # long.
        for i, observation in enumerate(self._observations):
            batch[i] = observation
        return batch

    def _none(self) -> Bools:
        return np.zeros(self.num_envs, np.bool_)

    def _seeds(self, seed: Any) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        one = isinstance(seed, int | np.integer)
        try:
            seeds = [int(seed) + i for i in range(self.num_envs)] if one else list(seed)
        except TypeError:
            raise ConfigError(
                f"seed must be a whole number, at least 0, or a sequence of {self.num_envs}; got {seed!r:.100}"
            ) from None
        if len(seeds) != self.num_envs:
            raise ConfigError(f"{self.num_envs} environments need as many seeds; got {len(seeds)}")
        return [checked_seed(each) for each in seeds]

    def _mask(self, mask: Any) -> Bools:
        """Return the environments to reset, as num_envs bools: those of the mask, or all if it is None.

        Raises:
            ConfigError: It is no such array, has no True, or leaves out an environment that has no observation yet.
        """
        if mask is None:
            return ~self._none()
        good = isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and mask.shape == (self.num_envs,)
        if not good or not mask.any():
            raise ConfigError(
                f"reset_mask must be {self.num_envs} bools in an array, one of them True; got {mask!r:.200}"
            )
        new = [i for i, observation in enumerate(self._observations) if observation is None and not mask[i]]
        if new:
            raise ConfigError(
                f"reset_mask leaves out environments {new}, which were never reset: reset all of them first, without a "
                f"reset_mask; got {mask!r:.200}"
            )
        return mask  # type: ignore[no-any-return]
