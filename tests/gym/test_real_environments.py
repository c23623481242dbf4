"""The cart-poles that come with asyncblend, in real Blenders: checked by Gymnasium, simulated, drawn and killed."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import psutil
import pytest
from gymnasium.utils.env_checker import check_env

pytestmark = [
    pytest.mark.blender,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*A Box observation space m.*imum value is -?infinity"),
]

SMALL = ("--width", "48", "--height", "32", "--samples", "1")
BOTH = ["asyncblend/CartPole-v0", "asyncblend/CartPolePhysics-v0"]
MakeReal = Callable[..., Any]


@pytest.fixture
def make_real(real: Any) -> Iterator[MakeReal]:
    """Make environments in a real Blender, and close them."""
    made = []

    def make(name: str, **options: Any) -> Any:
        made.append(env := gymnasium.make(name, blender=real.blender, **{"script_args": SMALL, **options}))
        return env.unwrapped

    yield make
    for env in made:
        env.close()


def balance(observation: Any) -> float:
    """Return an acceleration, from -1 to 1, that keeps the pole up."""
    place, speed, angle, turn = observation
    return float(np.clip(3 * angle + 0.5 * turn + 0.1 * place + 0.15 * speed, -1, 1))


def play(env: Any, steps: int, picture_at: int | None = None, kill_at: int | None = None) -> Any:
    """Return the observations of an episode that is balanced."""
    seen = [env.reset(seed=4)[0]]
    for number in range(steps):
        observation, _, terminated, truncated, _ = env.step(np.array([balance(seen[-1])], np.float32))
        seen.append(observation)
        if number == picture_at:
            env.render()
        if number == kill_at:
            for process in psutil.Process().children():
                process.send_signal(signal.SIGKILL)
        assert not terminated
        assert not truncated
    return np.array(seen)


@pytest.mark.parametrize("name", BOTH)
def test_gymnasium_checks_them(make_real: MakeReal, name: str) -> None:
    """Spaces, seeds, steps and pictures are as Gymnasium's check wants them."""
    check_env(make_real(name, render_mode="rgb_array"), skip_close_check=True)


@pytest.mark.every_kind
@pytest.mark.exhaustive
def test_rigid_bodies_are_simulated_the_same_again(make_real: MakeReal) -> None:
    """To the bit: in another process, after other episodes, when pictures are taken, and when Blender is killed."""
    env, other = (make_real(BOTH[1], render_mode="rgb_array") for _ in range(2))
    expected = play(env, 60)
    assert np.abs(expected[:, 2]).max() < 0.2
    for options in ({}, {"picture_at": 20}, {}, {"kill_at": 30}):
        assert np.array_equal(play(other, 60, **options), expected), options
    assert other._arena.stream.stats().restarts == 1


def test_a_pole_that_nobody_balances_falls(make_real: MakeReal) -> None:
    """It falls to the side to which it leans, ever faster, and the cart that holds it is pushed to the other side."""
    env = make_real(BOTH[1])
    observation, _ = env.reset(seed=4)
    over, leaned = False, [observation[2]]
    while not over:
        observation, _, over, _, _ = env.step(np.zeros(1, np.float32))
        leaned.append(observation[2])
    angles = np.abs(leaned)
    assert 20 < len(angles) < 200
    assert (np.diff(angles) > 0).all()
    assert angles[-1] > 0.6 > angles[-2]


@pytest.mark.exhaustive
def test_pictures_show_the_pole(make_real: MakeReal) -> None:
    """The pole is drawn where the observation says it is: the orange pixels lean with the angle."""
    env = make_real(
        BOTH[0], render_mode="rgb_array", script_args=("--width", "240", "--height", "160", "--samples", "2")
    )
    observation, _ = env.reset(seed=4)
    for action in (1, 0):
        over = False
        env.reset(seed=4)
        while not over:
            observation, _, over, _, _ = env.step(action)
        image = env.render().astype(int)
        rows, columns = np.nonzero((image[..., 0] > 130) & (image[..., 2] < 90))
        top, bottom = columns[rows < np.quantile(rows, 0.2)].mean(), columns[rows > np.quantile(rows, 0.8)].mean()
        lean = np.arctan2(top - bottom, np.quantile(rows, 0.9) - np.quantile(rows, 0.1))
        assert lean == pytest.approx(observation[2], abs=0.07)


def test_a_picture_may_be_the_observation(make_real: MakeReal) -> None:
    """With `--observe image` it is what the agent sees, and the seed gives the same one."""
    env = make_real(BOTH[0], script_args=(*SMALL, "--observe", "image"))
    assert env.observation_space == gymnasium.spaces.Box(0, 255, (32, 48, 3), np.uint8)
    first, _ = env.reset(seed=4)
    then, *_ = env.step(1)
    again, _ = env.reset(seed=4)
    assert np.array_equal(first, again)
    assert first.std() > 5
    assert then.shape == (32, 48, 3)
