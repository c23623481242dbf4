"""BlenderVectorEnv: what Gymnasium's SyncVectorEnv makes of as many environments, but all at once."""

from __future__ import annotations

import os
import signal
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from asyncblend.config import RestartPolicy
from asyncblend.errors import ConfigError, EpisodeLost, EpisodeOver, SampleError, StreamClosed
from asyncblend.gym import BlenderVectorEnv
from asyncblend.stream.sync_episode import SyncEpisode
from tests.gym.conftest import WALK, Make

ENVS = 3
AS_DICT = WALK.replace(
    '{"Box": {"low": -9.0, "high": 9.0, "shape": (2,)}}',
    '{"Dict": {"place": {"Box": {"low": -9.0, "high": 9.0, "shape": (1,)}}, "steps": {"Discrete": {"n": 99}}}}',
)
AS_DICT = AS_DICT.replace("np.array([self.x, 0])", '{"place": [self.x], "steps": 0}')
AS_DICT = AS_DICT.replace("np.array([self.x, self.steps / 2])", '{"place": [self.x], "steps": self.steps}')
AS_NUMBER = WALK.replace('{"Box": {"low": -9.0, "high": 9.0, "shape": (2,)}}', '{"Discrete": {"n": 99}}')
AS_NUMBER = AS_NUMBER.replace("np.array([self.x, 0])", "0").replace("np.array([self.x, self.steps / 2])", "self.steps")


def actions(envs: VectorEnv[Any, Any, Any], number: int) -> Any:
    """Return the actions of a step, the same for each vector environment."""
    return np.random.default_rng(number).uniform(-1, 1, envs.action_space.shape).astype(np.float32)


def told(infos: dict[str, Any]) -> dict[str, Any]:
    """Return infos without what differs from process to process."""
    return {
        name: told(value) if isinstance(value, dict) else value for name, value in infos.items() if "pid" not in name
    }


def play(envs: VectorEnv[Any, Any, Any], steps: int, kill_at: tuple[int, ...] = ()) -> list[Any]:
    """Return all that an agent sees. After some steps, kill the Blender of one environment."""
    seen: list[Any] = [envs.reset(seed=11)]
    for number in range(steps):
        *values, infos = envs.step(actions(envs, number))
        seen.append((*values, told(infos)))
        if number in kill_at:
            pids = infos["pid"]
            os.kill(int(pids[np.flatnonzero(pids)[0]]), signal.SIGKILL)
        if envs.metadata["autoreset_mode"] is AutoresetMode.DISABLED and (ended := values[2] | values[3]).any():
            seen.append(envs.reset(options={"reset_mask": ended}))
    return seen


def assert_same(one: list[Any], other: list[Any]) -> None:
    """Fail where two agents saw different things."""
    assert len(one) == len(other)
    for step, (a, b) in enumerate(zip(one, other, strict=True)):
        assert data_equivalence(a, b, exact=True), (step, a, b)


@pytest.mark.parametrize(
    ("mode", "body"),
    [
        pytest.param(AutoresetMode.NEXT_STEP, WALK, id="next-step-array"),
        pytest.param(AutoresetMode.SAME_STEP, AS_DICT, id="same-step-dict"),
        pytest.param(AutoresetMode.NEXT_STEP, AS_NUMBER, id="next-step-number"),
        pytest.param(AutoresetMode.NEXT_STEP, AS_DICT, id="next-step-dict", marks=pytest.mark.exhaustive),
        pytest.param(AutoresetMode.SAME_STEP, WALK, id="same-step-array", marks=pytest.mark.exhaustive),
        pytest.param(AutoresetMode.DISABLED, WALK, id="disabled-array", marks=pytest.mark.exhaustive),
        pytest.param(AutoresetMode.DISABLED, AS_DICT, id="disabled-dict", marks=pytest.mark.exhaustive),
    ],
)
def test_it_is_gymnasiums_vector_of_single_ones(make: Make, mode: AutoresetMode, body: str) -> None:
    """In each autoreset mode, an agent sees what it would see with SyncVectorEnv over BlenderEnvs."""
    single = SyncVectorEnv([lambda: make.env(body)] * ENVS, autoreset_mode=mode)
    vector = make.vector(body, num_envs=ENVS, autoreset_mode=mode)
    for name in ("num_envs", "observation_space", "action_space", "single_observation_space", "single_action_space"):
        assert getattr(vector, name) == getattr(single, name)
    assert vector.metadata["autoreset_mode"] is mode
    expected = play(single, 30)
    ends = sum(int(values[2].sum() + values[3].sum()) for values in expected if len(values) == 5)
    assert ends > 4, "else this would show nothing"
    assert_same(play(vector, 30), expected)


def test_a_training_run_goes_on_while_blenders_are_killed(make: Make) -> None:
    """With SIGKILL again and again, an agent sees exactly what it sees without."""
    expected = play(make.vector(num_envs=2), 40)
    spoilt = make.vector(num_envs=2)
    assert_same(play(spoilt, 40, kill_at=(3, 15, 33)), expected)
    assert spoilt._arena.stream.stats().restarts == 3


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.exhaustive
def test_a_lost_episode_is_truncated_alone(make: Make, mode: AutoresetMode) -> None:
    """The others go on, and the lost one begins another episode as after any end."""
    envs = make.vector(num_envs=ENVS, on_crash="truncate", autoreset_mode=mode)
    envs.reset(seed=11)
    _, _, _, _, infos = envs.step(actions(envs, 0))
    os.kill(int(infos["pid"][1]), signal.SIGKILL)
    _, rewards, terminations, truncations, infos = envs.step(actions(envs, 1))
    assert (rewards[1], terminations[1], truncations.tolist()) == (0.0, False, [False, True, False])
    if mode is AutoresetMode.SAME_STEP:
        infos = infos["final_info"]
    assert "died after 1 step" in infos["blender_died"][1]
    assert infos["_blender_died"].tolist() == [False, True, False]
    for number in range(2, 6):
        _, _, _, truncations, _ = envs.step(actions(envs, number))
        assert not truncations[1]


def test_a_picture_is_lost_alone(make: Make) -> None:
    """When one Blender dies while pictures are wanted, the next step ends its episode, and the others go on."""
    envs = make.vector(instances=2, render_mode="rgb_array", on_crash="truncate")
    envs.reset(seed=11)
    _, _, _, _, infos = envs.step(actions(envs, 0))
    os.kill(int(infos["pid"][0]), signal.SIGKILL)
    with pytest.raises(EpisodeLost):
        envs.render()
    _, _, _, truncations, _ = envs.step(actions(envs, 1))
    assert truncations.tolist() == [True, False]


def test_it_renders_all(make: Make) -> None:
    """There is a picture of each environment."""
    envs = make.vector(instances=2, render_mode="rgb_array")
    envs.reset(seed=1)
    envs.step(actions(envs, 0))
    pictures = envs.render()
    assert pictures is not None
    assert [picture.tolist() for picture in pictures] == [[[[1] * 3] * 3] * 2] * 2


def test_wrong_arguments_are_named(make: Make) -> None:
    """Nothing is sent then: no environment is a step ahead of the others."""
    envs = make.vector(instances=2)
    envs.reset(seed=1)
    expected = [envs.step(actions(envs, number))[0].tolist() for number in range(2)]
    envs.reset(seed=1)
    assert envs.step(actions(envs, 0))[0].tolist() == expected[0]
    with pytest.raises(ConfigError, match=r"action\[0\] is 2.0"):
        envs.step(np.array([[0.5], [2.0]], np.float32))
    with pytest.raises(ConfigError, match="2 environments need as many actions; got 3"):
        envs.step(np.zeros((3, 1), np.float32))
    with pytest.raises(ConfigError, match="2 environments need as many seeds; got 1"):
        envs.reset(seed=[1])
    for wrong in (None, 5):
        with pytest.raises(ConfigError, match=rf"actions must be 2 in one, in Box\(.*; got {wrong}"):
            envs.step(wrong)
    for seed in (1.5, [1, 1.5], -1):
        with pytest.raises(ConfigError, match=r"seed must be a whole number, at least 0.*; got -?1"):
            envs.reset(seed=seed)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="options of reset must be a mapping, or None; got 5"):
        envs.reset(options=5)  # type: ignore[arg-type]
    for mask in (np.array([True]), [True, False], np.array([False, False])):
        with pytest.raises(ConfigError, match="reset_mask must be 2 bools in an array"):
            envs.reset(options={"reset_mask": mask})
    assert envs.step(actions(envs, 1))[0].tolist() == expected[1]
    with pytest.raises(ConfigError, match="autoreset_mode must be an AutoresetMode or one of"):
        make.vector(autoreset_mode="never")
    with pytest.raises(ConfigError, match="min_instances=1, but each of the 2 environments needs a Blender of its own"):
        make.vector(instances=2, restart=RestartPolicy(min_instances=1))
    with pytest.raises(ConfigError, match="num_envs must be a whole number, at least 1; got 0"):
        make.vector(num_envs=0)


def test_parts_of_actions_that_are_missing_are_named(make: Make) -> None:
    """So are those that are no batch."""
    body = WALK.replace("action_space = {", 'action_space = {"Dict": {"push": {').replace(
        '"shape": (1,)}}', '"shape": (1,)}}}}'
    )
    envs = make.vector(body, instances=2)
    envs.reset(seed=1)
    for wrong in ({}, {"push": 1.0}, 5):
        with pytest.raises(ConfigError, match=r"actions must be 2 in one, in Dict\('push'"):
            envs.step(wrong)


def test_the_first_reset_leaves_none_out(make: Make) -> None:
    """There is nothing yet to return of the others."""
    envs = make.vector(instances=2)
    only_first = {"reset_mask": np.array([True, False])}
    with pytest.raises(ConfigError, match=r"leaves out environments \[1\], which were never reset: reset all"):
        envs.reset(options=only_first)
    first, _ = envs.reset(seed=3)
    again, _ = envs.reset(seed=np.int64(3), options=only_first)  # type: ignore[arg-type]
    assert again.tolist() == first.tolist()
    assert envs.reset(seed=np.array([3, 4]))[0].tolist() == first.tolist()  # type: ignore[arg-type]


def test_an_episode_that_nobody_resets_is_over(make: Make) -> None:
    """Without autoreset, a step after an end is an error."""
    envs = make.vector(instances=1, autoreset_mode="Disabled")
    envs.reset(seed=1)
    with pytest.raises(EpisodeOver, match=r"the episode has ended: call reset\(\)"):
        for number in range(13):
            envs.step(actions(envs, number))


def test_it_goes_on_after_a_scripts_mistake(make: Make) -> None:
    """After an error, `reset` begins anew in all environments."""
    envs = make.vector(WALK.replace("self.steps += 1", "self.steps += 1; assert self.steps < 3"), instances=2)
    for _ in range(2):
        first, _ = envs.reset(seed=1)
        with pytest.raises(SampleError, match="AssertionError"):
            for number in range(5):
                envs.step(actions(envs, number))
        with pytest.raises(EpisodeOver, match=r"the episode has ended with SampleError: call reset\(\)"):
            envs.step(actions(envs, 5))
        assert envs.reset(seed=1)[0].tolist() == first.tolist()


def test_a_step_that_was_interrupted_is_not_taken_for_another(make: Make) -> None:
    """After Ctrl-C in a step, its answers are still to come, so that only `reset` helps."""
    body = WALK.replace("self.rng, self.steps", "self.told = task.params.get('options'); self.rng, self.steps")
    ctrl_c = "self.steps += 1; self.steps == 2 and self.told and os.kill(os.getppid(), 2); time.sleep(0.1)"
    envs = make.vector("import time" + body.replace("self.steps += 1", ctrl_c), instances=1)
    first, _ = envs.reset(seed=1, options={"interrupt": True})
    envs.step(actions(envs, 0))
    with pytest.raises(KeyboardInterrupt):
        envs.step(actions(envs, 1))
    with pytest.raises(
        ConfigError, match=r"interrupted, by Ctrl-C .*, and its answer is still to come: call reset\(\)"
    ):
        envs.step(actions(envs, 2))
    assert envs.reset(seed=1)[0].tolist() == first.tolist()


def test_ctrl_c_right_after_an_action_was_sent_is_an_interrupted_step(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer comes although `send` did not return; that of the next step would be taken for it."""
    envs = make.vector(WALK, instances=1)
    first, _ = envs.reset(seed=1)
    send = SyncEpisode.send

    def interrupted(episode: SyncEpisode, params: Any = None) -> None:
        send(episode, params)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SyncEpisode, "send", interrupted)
        with pytest.raises(KeyboardInterrupt):
            envs.step(actions(envs, 0))
    with pytest.raises(ConfigError, match=r"the step before was interrupted, .*: call reset\(\)"):
        envs.step(actions(envs, 1))
    assert envs.reset(seed=1)[0].tolist() == first.tolist()


def test_closing_ends_everything(make: Make) -> None:
    """It may be closed twice, in mid-episode, and does nothing afterwards."""
    envs = make.vector(instances=2)
    envs.reset()
    envs.close()
    envs.close()
    for ask in (lambda: envs.step(actions(envs, 0)), envs.reset) * 2:
        with pytest.raises(StreamClosed):
            ask()


def test_make_vec_knows_cartpole(tmp_path: Any) -> None:
    """The registered name makes a BlenderVectorEnv, with the options of one."""
    from asyncblend.testing import fake_blender

    fake = fake_blender(tmp_path / "fake")
    envs = gymnasium.make_vec("asyncblend/CartPole-v0", num_envs=2, blender=fake, autoreset_mode="SameStep")
    assert isinstance(envs.unwrapped, BlenderVectorEnv)
    observations, _ = envs.reset(seed=1)
    assert observations.shape == (2, 4)
    observations, rewards, *_ = envs.step(np.array([0, 1]))
    assert rewards.tolist() == [1.0, 1.0]
    envs.close()
