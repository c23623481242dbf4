"""Player: plays one episode after another for one agent. A step may be sent and received apart from each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from gymnasium.utils import seeding

from ..checks import check_whole
from ..errors import AsyncblendError, ConfigError, EpisodeLost, EpisodeOver, SampleError
from ..stream.frame import Frame
from ..stream.sync_episode import SyncEpisode
from .arena import Arena
from .spaces import Outside

_INDICES = 2**62  # an episode's index is drawn from so many


class Step(NamedTuple):
    """What a step of Gymnasium's environments returns."""

    observation: Any
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]


class Player:
    """Plays on an arena: `begin` and `began`, then `send` and `receive` for each step.

    The index of each episode is drawn from `rng`: so an episode is a function of the stream's seed, the seed that was
    given here last, how many episodes were begun since, and its actions.
    """

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self.rng: np.random.Generator | None = None
        self._episode: SyncEpisode | None = None
        self._beginning: tuple[int, dict[str, Any]] = (0, {})
        self._owed = False  # whether a frame was asked for and not received
        self._over: str = "no episode was begun"  # why no step can be made; "" if one can
        self._latest: Frame | None = None  # with an observation
        self._lost: EpisodeLost | None = None
        self._picture: npt.NDArray[np.uint8] | None = None

    def seed(self, seed: int | None) -> None:
        """Draw the episodes from this seed from now on. None: go on, or begin with one that nobody knows."""
        if seed is not None or self.rng is None:
            self.rng, _ = seeding.np_random(seed)

    def begin(self, options: Mapping[str, Any]) -> None:
        """Begin another episode, and give up the present one.

        Raises:
            ConfigError: The options or the params cannot travel.
            StreamClosed: The environment was closed.
        """
        assert self.rng is not None, "seed comes first"
        index = int(self.rng.integers(_INDICES))
        self._beginning = index, self._arena.params(index, **({"options": options} if options else {}))
        self._begin()

    def began(self) -> tuple[Any, dict[str, Any]]:
        """Return the first observation and info of the episode that was begun."""
        while (frame := self._received()) is None:
            self._begin()  # its Blender died before there was anything to lose
        observation, info = self._observation(frame), _info(frame)
        self._over = ""
        return observation, info

    def checked(self, action: Any) -> Any:
        """Return an action as it is sent.

        Raises:
            ConfigError: The action is not in its space, or the step before was interrupted.
            EpisodeOver: The episode has ended, or none was begun.
            StreamClosed: The environment was closed.
        """
        self._arena.check_open()
        if self._over:
            raise EpisodeOver(f"{self._over}: call reset()")
        self._check_owed()
        try:
            return self._arena.read_action(action)
        except Outside as error:
            raise ConfigError(f"{error}, in {self._arena.action_space}") from None

    def send(self, action: Any) -> None:
        """Ask for a step with an action from `checked`."""
        self._ask({"action": action})

    def receive(self) -> Step:
        """Return the step that was asked for.

        Raises:
            SampleError: The script raised, or what it returned is not what a step returns.
            EpisodeOver: A generator of the script's own has ended.
        """
        frame = self._received()
        if frame is None:
            return self._truncated()
        step = Step(
            self._observation(frame),
            _reward(frame),
            _flag(frame, "terminated"),
            _flag(frame, "truncated"),
            _info(frame),
        )
        if step.terminated or step.truncated:
            self._over = "the episode has ended"
        return step

    def ask_for_picture(self) -> None:
        """Ask for a picture of how things are now.

        Raises:
            ConfigError: The step before was interrupted.
            EpisodeOver: No episode was begun, or an error has ended it.
            StreamClosed: The environment was closed.
        """
        self._arena.check_open()
        if self._latest is None:
            raise EpisodeOver(f"{self._over}, so there is nothing to render: call reset()")
        self._check_owed()
        if self._picture is None and self._lost is None:
            self._ask({"render": True})

    def await_picture(self) -> None:
        """Wait for the picture that was asked for.

        Raises:
            SampleError: The script raised, or gave something else.
            EpisodeOver: A generator of the script's own has ended.
        """
        if self._owed:
            frame = self._received()
            if frame is not None:
                self._picture = _image(frame)

    def picture(self) -> npt.NDArray[np.uint8]:
        """Return the picture that was waited for: H x W x 3, uint8.

        Raises:
            EpisodeLost: Its Blender died, and the episode is not played again.
        """
        if self._picture is None:
            assert self._lost is not None, "it was asked for"
            raise self._lost
        return self._picture.copy()

    def close(self) -> None:
        """Give the Blender back."""
        episode, self._episode = self._episode, None
        self._owed, self._over, self._latest, self._lost = False, "no episode was begun", None, None
        if episode is not None:
            episode.close()

    def _begin(self) -> None:
        self.close()
        index, params = self._beginning
        self._episode = self._arena.stream.begin_episode(index, params, max_replay=self._arena.max_replay)
        self._owed, self._picture = True, None

    def _check_owed(self) -> None:
        # An answer that nobody received would be taken for that of the next question.
        if self._owed:
            why = "by Ctrl-C or an error in another environment"
            raise ConfigError(f"the step before was interrupted, {why}, and its answer is still to come: call reset()")

    def _ask(self, params: dict[str, Any]) -> None:
        assert self._episode is not None, "an episode was begun"
        self._owed = True  # before it is sent: Ctrl-C may come right after, and then the answer comes nevertheless
        if self._lost is None:
            try:
                self._episode.send(params)
            except Exception:
                self._owed = False  # nothing was sent
                raise
        if "action" in params:
            self._picture = None

    def _received(self) -> Frame | None:
        """Return the frame that was asked for, or None if the episode is lost."""
        assert self._episode is not None, "an episode was begun"
        if self._lost is None:
            try:
                frame = self._episode.receive()
            except EpisodeLost as error:
                self._lost = self._arena.lost(error.step or 0)
            except AsyncblendError as error:  # the answer to what was asked; no other will come
                self._over = f"the episode has ended with {type(error).__name__}"
                self._owed, self._latest = False, None
                raise
        self._owed = False
        return None if self._lost is not None else frame

    def _truncated(self) -> Step:
        """Return the last observation again, for a step that was lost with its Blender."""
        assert self._latest is not None, "an episode begins with an observation"
        self._over = "the episode was lost with its Blender"
        return Step(self._observation(self._latest), 0.0, False, True, {"blender_died": str(self._lost)})

    def _observation(self, frame: Frame) -> Any:
        try:
            observation = self._arena.read_observation(frame["observation"])
        except Outside as error:
            text = f"step {frame.step} of sample {frame.index} is not in the observation space: {error}"
            raise SampleError(text, index=frame.index) from None
        except KeyError:
            text = f"step {frame.step} of sample {frame.index} has no 'observation', only {list(frame)}"
            raise SampleError(text, index=frame.index) from None
        self._latest = frame
        return observation


def checked_seed(seed: Any) -> int | None:
    """Return a seed as Gymnasium wants it: an int of Python's, or None.

    Raises:
        ConfigError: It is no whole number, or below 0.
    """
    if isinstance(seed, np.integer):
        seed = int(seed)
    if seed is not None:
        check_whole("seed", seed, 0)
    return seed  # type: ignore[no-any-return]


def checked_options(options: Any) -> dict[str, Any]:
    """Return a copy of the options of `reset`.

    Raises:
        ConfigError: They are no mapping.
    """
    if options is not None and not isinstance(options, Mapping):
        raise ConfigError(f"options of reset must be a mapping, or None; got {options!r:.100}")
    return dict(options or {})


def _reward(frame: Frame) -> float:
    reward = frame.get("reward", 0.0)
    if type(reward) is float:
        return reward
    if isinstance(reward, np.ndarray) and reward.ndim == 0:
        reward = reward.item()
    if not isinstance(reward, int | float):
        raise _wrong(frame, "reward", "a number")
    return float(reward)


def _flag(frame: Frame, name: str) -> bool:
    flag = frame.get(name, False)
    if flag is True or flag is False:
        return flag
    if isinstance(flag, np.ndarray) and flag.ndim == 0:
        flag = flag.item()
    if not isinstance(flag, bool):
        raise _wrong(frame, name, "True or False")
    return flag


def _info(frame: Frame) -> dict[str, Any]:
    info = frame.get("info")
    if info is None:
        return {}
    if not isinstance(info, dict):
        raise _wrong(frame, "info", "a dict")
    own: dict[str, Any] = _copied(info)
    return own


def _image(frame: Frame) -> npt.NDArray[np.uint8]:
    image = frame.get("image")
    if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3):
        raise _wrong(frame, "image", "an H x W x 3 array of uint8")
    return image.copy()


def _wrong(frame: Frame, name: str, wanted: str) -> SampleError:
    text = f"{name} of step {frame.step} of sample {frame.index} must be {wanted}; it is {frame.get(name)!r:.200}"
    return SampleError(text, index=frame.index)


def _copied(value: Any) -> Any:
    """Return values that share no memory with their frame."""
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_copied(part) for part in value]
    return value.copy() if isinstance(value, np.ndarray) else value
