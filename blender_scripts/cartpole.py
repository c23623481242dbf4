"""A pole on a cart, to be balanced: an environment for `asyncblend.gym` with the physics of Gymnasium's CartPole-v1.

The physics are Python, so a step takes microseconds, and the scene is made and drawn only where a picture is wanted.
With `--observe image` that is at each step, and the picture is all that the agent sees.
"""

import argparse
import functools
import math
from collections.abc import Callable

import numpy as np

from asyncblend import blender as bl

parser = argparse.ArgumentParser()
parser.add_argument("--width", type=int, default=480)
parser.add_argument("--height", type=int, default=320)
parser.add_argument("--samples", type=int, default=4, help="Cycles' samples a pixel")
parser.add_argument("--observe", choices=("state", "image"), default="state")
parser.add_argument("--steps", type=int, default=500, help="the most steps of an episode")
args, _ = parser.parse_known_args()

GRAVITY, CART_MASS, POLE_MASS, HALF_POLE, FORCE, SECONDS = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
EDGE, LEAN = 2.4, math.radians(12)
"""Beyond these, in metres and radians, the cart has left the track, or the pole has fallen."""

MOST = np.array((2 * EDGE, math.inf, 2 * LEAN, math.inf), np.float32)
STATE = {"low": -MOST, "high": MOST, "dtype": "float32"}
IMAGE = {"low": 0, "high": 255, "shape": (args.height, args.width, 3), "dtype": "uint8"}


class CartPole:
    """Action 0 pushes the cart to the left, and 1 to the right. Each step is worth 1, also the one that ends it.

    The state is the cart's position and velocity, and the pole's angle and angular velocity.
    """

    def __init__(self) -> None:
        self.action_space = {"Discrete": {"n": 2}}
        self.observation_space = {"Box": IMAGE if args.observe == "image" else STATE}
        self.render_fps = round(1 / SECONDS)

    def reset(self, task: bl.Task) -> dict:
        self.state = tuple(task.rng.uniform(-0.05, 0.05, 4).tolist())
        self.steps = 0
        return {"observation": self.observation()}

    def step(self, action: int) -> dict:
        self.state = moved(self.state, FORCE if action == 1 else -FORCE)
        self.steps += 1
        x, _, angle, _ = self.state
        return {
            "observation": self.observation(),
            "reward": 1.0,
            "terminated": abs(x) > EDGE or abs(angle) > LEAN,
            "truncated": self.steps >= args.steps,
        }

    def render(self) -> np.ndarray:
        return drawing()(self.state[0], self.state[2])

    def observation(self) -> np.ndarray:
        return np.array(self.state, np.float32) if args.observe == "state" else self.render()


@functools.cache
def drawing() -> Callable:
    """Make the scene when the first picture is wanted, and return the function that draws it."""
    from cartpole_scene import make_scene

    return make_scene(args.width, args.height, args.samples, EDGE, 2 * HALF_POLE)


def moved(state: tuple, force: float) -> tuple:
    """Return the state a step later: Euler's method, as Barto, Sutton and Anderson's paper of 1983 has it."""
    x, x_speed, angle, angle_speed = state
    mass, sine, cosine = CART_MASS + POLE_MASS, math.sin(angle), math.cos(angle)
    push = (force + POLE_MASS * HALF_POLE * angle_speed**2 * sine) / mass
    turn = (GRAVITY * sine - cosine * push) / (HALF_POLE * (4 / 3 - POLE_MASS * cosine**2 / mass))
    speed_up = push - POLE_MASS * HALF_POLE * turn * cosine / mass
    return (
        x + SECONDS * x_speed,
        x_speed + SECONDS * speed_up,
        angle + SECONDS * angle_speed,
        angle_speed + SECONDS * turn,
    )


bl.serve(CartPole())
