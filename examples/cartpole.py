"""A policy learns to balance a pole on a cart in Blender, with the PPO of Stable-Baselines3.

    pip install "asyncblend[train]"
    python examples/cartpole.py --out cartpole

trains it with three seeds in four Blenders, and with the same seeds in Gymnasium's own CartPole-v1, whose physics are
the same. Both learning curves are drawn into cartpole/learning.png, and an episode of the trained policy, rendered by
Blender, becomes cartpole/policy.gif. It takes some minutes on two cores; `--steps 2000 --seeds 0` shows in one that it
works.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

try:
    import gymnasium
    from gymnasium.vector import AutoresetMode, VectorEnv
    from matplotlib.figure import Figure
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import VecEnv, VecMonitor
except ModuleNotFoundError as error:
    raise SystemExit(f'{error.name} is not installed here. Type: pip install "asyncblend[train]"') from None

import asyncblend.gym

gymnasium.register_envs(asyncblend.gym)
NAME = "asyncblend/CartPole-v0"
COLOURS = {NAME: "#0072b2", "CartPole-v1": "#d55e00"}


class Stepped(VecEnv):
    """A vector environment of Gymnasium's, for Stable-Baselines3, whose own DummyVecEnv takes one step after another."""

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP, "as Stable-Baselines3 expects it"
        self.envs = envs  # before the next line, which asks them for their render_mode
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)
        self.actions: Any = None

    def reset(self) -> Any:
        seeds: Any = None if self._seeds[0] is None else list(self._seeds)
        observations, _ = self.envs.reset(seed=seeds)
        self._reset_seeds()
        return observations

    def step_async(self, actions: Any) -> None:
        self.actions = actions

    def step_wait(self) -> Any:
        observations, rewards, terminations, truncations, infos = self.envs.step(self.actions)
        told: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(terminations | truncations):
            told[i] = {"terminal_observation": infos["final_obs"][i]}
            told[i]["TimeLimit.truncated"] = bool(truncations[i] and not terminations[i])
        return observations, rewards, terminations | truncations, told

    def close(self) -> None:
        self.envs.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self.envs, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        setattr(self.envs, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError("its environments are in other processes")

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


def make(name: str, envs: int, blender: str | None) -> Stepped:
    """Make so many environments of that name."""
    if name == NAME:
        return Stepped(gymnasium.make_vec(name, envs, blender=blender, autoreset_mode=AutoresetMode.SAME_STEP))
    return Stepped(
        gymnasium.make_vec(
            name, envs, vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP}, vectorization_mode="sync"
        )
    )


def train(name: str, seed: int, steps: int, envs: int, blender: str | None) -> tuple[PPO, list[tuple[int, float]]]:
    """Train a policy, and return it with the sums of rewards of its episodes, each with the steps until then."""
    with contextlib.closing(VecMonitor(make(name, envs, blender))) as monitored:
        model = PPO("MlpPolicy", monitored, n_steps=1024 // envs, batch_size=64, n_epochs=10, seed=seed, device="cpu")
        episodes: list[tuple[int, float]] = []

        def note(local: dict[str, Any], _: dict[str, Any]) -> bool:
            episodes.extend((model.num_timesteps, info["episode"]["r"]) for info in local["infos"] if "episode" in info)
            return True

        model.learn(steps, callback=note)
    return model, episodes


def curve(episodes: Sequence[tuple[int, float]], last: int = 20) -> tuple[list[int], list[float]]:
    """Return the steps, and the mean of the last episodes at each of them."""
    rewards = [reward for _, reward in episodes]
    return [step for step, _ in episodes], [
        float(np.mean(rewards[max(0, i - last) : i])) for i in range(1, len(rewards) + 1)
    ]


def draw(path: Path, found: dict[str, list[list[tuple[int, float]]]]) -> None:
    """Draw the learning curves of all runs."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, runs in found.items():
        for number, episodes in enumerate(runs):
            axes.plot(*curve(episodes), color=COLOURS[name], alpha=0.85, lw=1.6, label=name if number == 0 else None)
    axes.set(xlabel="steps", ylabel="reward of an episode (mean of 20)", title="PPO balances a pole", ylim=(0, 520))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="upper left")
    figure.savefig(path, dpi=120)


def film(path: Path, policy: PPO, blender: str | None, pictures: int = 60) -> float:
    """Let the policy play an episode, write every fourth step of it as a GIF, and return its sum of rewards."""
    size = ("--width", "320", "--height", "216", "--samples", "8")
    with contextlib.closing(gymnasium.make(NAME, render_mode="rgb_array", blender=blender, script_args=size)) as env:
        observation, _ = env.reset(seed=1)
        frames: list[Image.Image] = []
        total, over = 0.0, False
        while not over:
            action, _ = policy.predict(observation, deterministic=True)
            observation, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
            if int(total) % 4 == 1 and len(frames) < pictures:
                frames.append(Image.fromarray(env.render()))  # type: ignore[arg-type]
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=80, loop=0)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("cartpole"), help="the folder for the pictures")
    parser.add_argument("--steps", type=int, default=40_000, help="steps to train, of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--envs", type=int, default=4, help="how many Blenders play at the same time")
    parser.add_argument("--blender", help="its executable, its folder, or bpy")
    args = parser.parse_args()

    torch.set_num_threads(1)  # the network is tiny, and threads that wait for it would take the cores from Blender
    args.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[list[tuple[int, float]]]] = {}
    best: tuple[float, PPO] | None = None
    for name in COLOURS:
        found[name] = []
        for seed in args.seeds:
            model, episodes = train(name, seed, args.steps, args.envs, args.blender)
            found[name].append(episodes)
            reached = curve(episodes)[1][-1]
            print(f"{name}, seed {seed}: {len(episodes)} episodes, at last {reached:.0f} a mean one", flush=True)
            if name == NAME and (best is None or reached > best[0]):
                best = reached, model
    draw(args.out / "learning.png", found)
    assert best is not None, "there is a seed"
    total = film(args.out / "policy.gif", best[1], args.blender)
    print(f"the best policy balances for {total:.0f} steps; pictures: {args.out}/learning.png, {args.out}/policy.gif")


if __name__ == "__main__":
    main()
