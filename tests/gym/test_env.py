"""BlenderEnv: an environment of Gymnasium's, whatever happens to its Blender."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

import asyncblend as ab
from asyncblend.errors import ConfigError, EpisodeOver, SampleError, StreamClosed
from asyncblend.gym import BlenderEnv
from asyncblend.testing import fake_blender
from tests.gym.conftest import WALK, Make

PUSH = np.array([0.25], np.float32)
unbounded = pytest.mark.filterwarnings("ignore:.*A Box observation space m.*imum value is -?infinity")


def play(env: BlenderEnv, steps: int = 8, kill: int | None = None, **reset: Any) -> list[Any]:
    """Return the observations and rewards of an episode's first steps. Kill the Blender after one of them."""
    seen = [env.reset(**reset)[0].tolist()]
    for number in range(1, steps + 1):
        observation, reward, terminated, truncated, info = env.step(PUSH)
        seen.append((observation.tolist(), reward, terminated, truncated))
        if number == kill:
            os.kill(info["pid"], signal.SIGKILL)
        if terminated or truncated:
            break
    return seen


def test_an_env_is_what_gymnasium_checks(make: Make) -> None:
    """Gymnasium's own check passes, with pictures too."""
    with pytest.warns(UserWarning, match="Not able to test alternative render modes"):
        check_env(make.env(render_mode="rgb_array"), skip_close_check=True)


def test_seeds_make_episodes(make: Make) -> None:
    """The same seed gives the same episodes, one after another and in another process; others differ."""
    one, other = make.env(), make.env()
    first = [play(one, seed=5), play(one), play(one)]
    assert [play(other, seed=5), play(other), play(other)] == first
    assert play(one, seed=5) == first[0]
    assert len({str(episode) for episode in (*first, play(one, seed=6))}) == 4
    assert play(make.env()) != play(make.env())  # without a seed nobody knows what comes


def test_options_and_params_reach_the_script(make: Make) -> None:
    """Options are among the task's params, beside those of the config."""
    env = make.env(params=lambda index: {"all": 2.0})
    without, info = env.reset(seed=1)
    assert info == {"params": {"all": 2.0}}
    moved, info = env.reset(seed=1, options={"from": 3.0})
    assert info == {"params": {"all": 2.0, "options": {"from": 3.0}}}
    assert moved[0] == pytest.approx(without[0] + 3.0)


def test_what_is_returned_is_the_callers_own(make: Make) -> None:
    """Arrays can be written to, and later steps leave them alone."""
    env = make.env(render_mode="rgb_array")
    before, _ = env.reset(seed=1)
    _, _, _, _, info = env.step(PUSH)
    picture = env.render()
    assert picture is not None
    for array in (before, info["place"], picture):
        array[...] = 7
        env.step(PUSH)
        assert (array == 7).all()


def test_pictures_show_how_things_are(make: Make) -> None:
    """`render` shows the state after the last step, again and again, and after the end; it takes no step."""
    env = make.env(render_mode="rgb_array")
    with pytest.raises(EpisodeOver, match=r"no episode was begun, so there is nothing to render: call reset\(\)"):
        env.render()
    env.reset(seed=1)
    over, steps = False, 0
    while not over:
        for _ in range(2):
            assert np.all(env.render() == steps)
        _, _, terminated, truncated, _ = env.step(PUSH)
        steps, over = steps + 1, terminated or truncated
    assert np.all(env.render() == steps)


def test_without_a_mode_nothing_is_rendered(make: Make) -> None:
    """As with Gymnasium's own environments, there is a warning."""
    env = make.env()
    env.reset()
    with pytest.warns(UserWarning, match="render_mode='rgb_array'"):
        assert env.render() is None


def test_a_wrong_action_is_not_sent(make: Make) -> None:
    """The error has its value, and the episode goes on as if nothing had happened."""
    env = make.env()
    expected = play(env, 2, seed=3)
    env.reset(seed=3)
    for wrong in (np.array([1.5], np.float32), np.array([np.nan], np.float32), 3, None, [[1], [1, 2]]):
        with pytest.raises(ConfigError, match=r"action.*, in Box\(-1.0, 1.0"):
            env.step(wrong)
    assert env.step(PUSH)[0].tolist() == expected[1][0]


def test_an_episode_that_has_ended_goes_on_no_more(make: Make) -> None:
    """Steps before `reset`, and after the end, are errors that say what to do."""
    env = make.env()
    with pytest.raises(EpisodeOver, match=r"no episode was begun: call reset\(\)"):
        env.step(PUSH)
    *_, (_, _, terminated, truncated) = play(env, 12, seed=3)
    assert terminated or truncated
    with pytest.raises(EpisodeOver, match=r"the episode has ended: call reset\(\)"):
        env.step(PUSH)
    assert play(env, 2, seed=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("np.array([self.x, 0])", "np.array([self.x, 0, 0])"), r"step 0 of sample \d+ is not in .*: observation must have"),
        (("np.array([self.x, 0])", "[[self.x], [0, 0]]"), r"step 0 of sample \d+ is not in .*: observation must be an array"),
        (("self.steps / 2", "10 * self.steps"), r"step 1 of sample \d+ is not in the observation space: observation\[1\] is 10"),
        (('"reward": -abs(self.x)', '"reward": None'), r"reward of step 1 of sample \d+ must be a number; it is None"),
        (('abs(self.x) > 4', '"no"'), "terminated of step 1 .* must be True or False; it is 'no'"),
        (('"truncated":', '"done":'), "step returned 'done', which means nothing here"),
        (("self.steps += 1", "self.steps += missing"), "AttributeError|NameError"),
    ],
)  # fmt: skip
def test_a_scripts_mistake_is_named(make: Make, change: tuple[str, str], message: str) -> None:
    """It is a SampleError that has the index of the episode; the next `reset` begins another one."""
    env = make.env(WALK.replace(*change))
    for _ in range(2):
        with pytest.raises(SampleError, match=message) as caught:
            env.reset(seed=1)
            env.step(PUSH)
        assert caught.value.index is not None


def test_after_an_error_only_reset_helps(make: Make) -> None:
    """An error in a step, a picture or the first observation ends the episode, and steps and pictures say so."""
    env = make.env(
        WALK.replace("self.steps += 1", "self.steps += 1; assert action[0] < 1")
        .replace("return np.full", "assert self.steps < 2; return np.full")
        .replace(
            'return {"observation": np.array([self.x, 0])', 'return {"observation": task.params["options"]["first"]'
        ),
        render_mode="rgb_array",
    )
    good = {"first": [0.0, 0.0]}
    for fail in (lambda: env.step([1.0]), lambda: [env.step(PUSH), env.step(PUSH), env.render()]):
        env.reset(options=good)
        with pytest.raises(SampleError, match="AssertionError"):
            fail()
        for then, message in (
            (lambda: env.step(PUSH), r": call"),
            (env.render, ", so there is nothing to render: call"),
        ):
            with pytest.raises(EpisodeOver, match=rf"the episode has ended with SampleError{message} reset\(\)"):
                then()
    with pytest.raises(SampleError, match="not in the observation space"):
        env.reset(options={"first": [0.0]})
    with pytest.raises(EpisodeOver, match=r"no episode was begun: call reset\(\)"):
        env.step(PUSH)
    env.reset(options=good)
    env.step(PUSH)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seed": 1.5}, "seed must be a whole number, at least 0; got 1.5"),
        ({"seed": -1}, "seed must be a whole number, at least 0; got -1"),
        ({"options": 5}, "options of reset must be a mapping, or None; got 5"),
        ({"options": {"from": object()}}, r"options.*cannot travel"),
    ],
)
def test_a_wrong_reset_is_named(make: Make, wrong: dict[str, Any], message: str) -> None:
    """It is a ConfigError, and the next `reset` begins an episode."""
    env = make.env()
    with pytest.raises(ConfigError, match=message):
        env.reset(**wrong)
    first, _ = env.reset(seed=3)
    assert env.reset(seed=np.int64(3))[0].tolist() == first.tolist()  # type: ignore[arg-type]


NO_SPACES = WALK.replace("action_space", "actions").replace("observation_space", "observations")


@pytest.mark.parametrize(
    ("body", "options", "message"),
    [
        (
            "bl.serve(lambda task: {'n': 1})",
            {},
            r"serves no environment: its last line must be bl.serve\(environment\)",
        ),
        (NO_SPACES, {}, "has no observation_space; give it that attribute, or give observation_space here"),
        (
            WALK.replace('{"Box": {"low": -9.0', '{"Bx": {"low": -9.0'),
            {},
            "the script's observation_space must be one of",
        ),
        (WALK.replace("def render", "def draw"), {"render_mode": "rgb_array"}, "has no method render"),
        (WALK, {"render_mode": "human"}, r"render_mode must be None or one of \('rgb_array',\); got 'human'"),
        (WALK, {"on_crash": "ignore"}, "on_crash must be 'replay' or 'truncate'; got 'ignore'"),
        (WALK, {"max_replay_steps": -1}, "max_replay_steps must be a whole number, at least 0; got -1"),
        (WALK, {"instance": 2}, "did you mean 'instances'"),
    ],
)
def test_what_cannot_work_is_said_at_once(make: Make, body: str, options: dict[str, Any], message: str) -> None:
    """A wrong argument or script is an error of the constructor, which leaves nothing running."""
    with pytest.raises(ConfigError, match=message):
        make.env(body, **options)


def test_spaces_can_be_given_here(make: Make) -> None:
    """A space that is given counts more than the script's."""
    env = make.env(NO_SPACES, observation_space=spaces.Box(-9, 9, (2,)), action_space=spaces.Box(-2, 2, (1,)))
    env.reset(seed=1)
    env.step(np.array([1.5], np.float32))
    with pytest.raises(ConfigError, match=r"action\[0\] is 2.5, which is not from -2.0 to 2.0, in Box\(-2.0"):
        env.step(np.array([2.5], np.float32))


def test_a_generator_of_the_scripts_own_is_played(make: Make) -> None:
    """What understands the same params needs no class; when it ends without saying so, the episode is over."""
    body = """
def sample(task):
    for n in range(3):
        params = yield {"observation": n}
bl.serve(sample)
"""
    env = make.env(body, observation_space=spaces.Discrete(3), action_space=spaces.Discrete(2))
    assert env.reset() == (0, {})
    assert env.step(np.array(1)) == (1, 0.0, False, False, {})
    env.step(1)
    with pytest.raises(EpisodeOver, match="its generator has returned"):
        env.step(1)
    with pytest.raises(EpisodeOver, match=r"the episode has ended with EpisodeOver: call reset\(\)"):
        env.step(1)


# -- when Blender dies -------------------------------------------------------------------------------------------


def test_an_episode_is_played_again_after_a_crash(make: Make) -> None:
    """An agent whose Blender is killed sees the same episode, and the next ones are the same too."""
    env, spoilt = make.env(), make.env()
    expected = [play(env, seed=3), play(env)]
    assert len(expected[0]) > 5
    assert [play(spoilt, seed=3, kill=4), play(spoilt)] == expected
    assert spoilt._arena.stream.stats().restarts == 1


@pytest.mark.parametrize("options", [{"on_crash": "truncate"}, {"max_replay_steps": 3}])
def test_an_episode_is_truncated_after_a_crash(make: Make, options: dict[str, Any]) -> None:
    """It ends with the last observation and a note, at the step after the crash; the next one begins as if nothing was."""
    env = make.env(**options)
    expected = [play(env, seed=3), play(env)]
    assert len(expected[0]) > 5
    seen = play(env, 4, kill=4, seed=3)
    assert seen == expected[0][:5]
    observation, reward, terminated, truncated, info = env.step(PUSH)
    assert (observation.tolist(), reward, terminated, truncated) == (seen[-1][0], 0.0, False, True)
    why = "none is played again" if "on_crash" in options else "at most 3 are played again: raise max_replay_steps"
    assert "died after 4 steps" in info["blender_died"]
    assert why in info["blender_died"]
    with pytest.raises(EpisodeOver, match=r"lost with its Blender: call reset\(\)"):
        env.step(PUSH)
    assert play(env) == expected[1]


def test_short_episodes_are_played_again_where_long_ones_are_not(make: Make) -> None:
    """The number of steps at the crash is what counts."""
    env = make.env(max_replay_steps=3)
    expected = play(env, 5, seed=3)
    assert play(env, 5, seed=3, kill=2) == expected


def test_pictures_count_among_the_steps_that_are_played_again(make: Make) -> None:
    """Each one that was rendered does: one that is only shown again, because nothing has changed, does not."""
    for pictures, played_again in ((1, True), (3, False)):
        env = make.env(max_replay_steps=5, render_mode="rgb_array")
        env.reset(seed=3)
        for number in range(3):
            _, _, _, _, info = env.step(PUSH)
            if number < pictures:
                env.render()
                env.render()
        os.kill(info["pid"], signal.SIGKILL)
        assert env.step(PUSH)[3] is not played_again


def test_a_crash_while_a_picture_is_wanted(make: Make) -> None:
    """Played again, the picture is the same. Truncated, the last picture stands, and the next step ends the episode."""
    for on_crash in ("replay", "truncate"):
        env = make.env(render_mode="rgb_array", on_crash=on_crash)
        env.reset(seed=3)
        env.step(PUSH)
        assert env.render() is not None
        _, _, _, _, info = env.step(PUSH)
        os.kill(info["pid"], signal.SIGKILL)
        if on_crash == "replay":
            assert np.all(env.render() == 2)
            assert not env.step(PUSH)[3]
        else:
            with pytest.raises(ab.EpisodeLost):
                env.render()
            assert env.step(PUSH)[3]


# -- the end -----------------------------------------------------------------------------------------------------


def test_closing_ends_everything(make: Make) -> None:
    """It may be closed twice, and does nothing afterwards, however often it is asked."""
    env = make.env(render_mode="rgb_array")
    env.reset()
    env.close()
    env.close()
    for ask in (lambda: env.step(PUSH), env.render, env.reset) * 2:
        with pytest.raises(StreamClosed):
            ask()


def test_garbage_collection_closes(make: Make) -> None:
    """An environment that nobody holds any more ends its Blender, in mid-episode too. `no_leaks` looks for it."""
    env = make.env()
    env.reset()
    gone = weakref.ref(env)
    make.made.clear()
    del env
    gc.collect()
    assert gone() is None


def test_a_program_may_end_without_closing(tmp_path: Path) -> None:
    """The end of a program ends the Blenders, in mid-episode too. `no_leaks` looks for them."""
    script = tmp_path / "walk.py"
    script.write_text("import numpy as np\nfrom asyncblend import blender as bl\n" + WALK)
    code = f"""
from asyncblend.gym import BlenderEnv
env = BlenderEnv(script={str(script)!r}, blender={str(fake_blender(tmp_path / "fake"))!r})
env.reset()
print("ends now")
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ends now\n", "")


# -- asyncblend's own --------------------------------------------------------------------------------------------


@unbounded
def test_cartpole_is_gymnasiums(kind: Any) -> None:
    """The registered name makes it in every kind of Blender, it passes the check, and moves as CartPole-v1 does."""
    small = ("--width", "32", "--height", "24", "--samples", "1")
    env = gymnasium.make("asyncblend/CartPole-v0", blender=kind.blender, script_args=small)
    with pytest.warns(UserWarning, match="different from the unwrapped"):
        check_env(env, skip_render_check=True, skip_close_check=True)
    twin: Any = gymnasium.make("CartPole-v1").unwrapped
    observation, _ = env.reset(seed=2)
    twin.reset()
    twin.state = observation.astype(float)
    over, steps = False, 0
    while not over:
        action = steps // 3 % 2
        observation, reward, over, truncated, _ = env.step(action)
        expected, reward_of_twin, over_of_twin, _, _ = twin.step(action)
        np.testing.assert_allclose(observation, expected, rtol=1e-4, atol=1e-5)
        assert (reward, over, truncated) == (reward_of_twin, over_of_twin, False)
        steps += 1
    assert 8 < steps < 100
    env.close()
