"""Environments in Blender, for Gymnasium: `BlenderEnv` and `BlenderVectorEnv`.

Importing this registers the environments that come with asyncblend, for `gymnasium.make("asyncblend/CartPole-v0")` and
`gymnasium.make_vec`; without an import there is `gymnasium.make("asyncblend.gym:asyncblend/CartPole-v0")`.

- `env`: BlenderEnv. `vector`: BlenderVectorEnv.
- `player`: plays one episode after another for one agent.
- `arena`: the fleet that they play on, and what the script says of its environment.
- `spaces`: Gymnasium's spaces, from what a script says, and the values that are in them.
- `registering`: the names.

A step goes from the agent through a player to the stream's episode, and as params to the script; the values of the frame
that comes back are checked against the observation space.
"""

try:
    import gymnasium as _gymnasium  # noqa: F401
except ModuleNotFoundError as _missing:
    raise ModuleNotFoundError(
        'asyncblend.gym needs Gymnasium; type: pip install "asyncblend[gym]"', name=_missing.name
    ) from None

from .env import BlenderEnv
from .registering import register_own
from .vector import BlenderVectorEnv

__all__ = ["BlenderEnv", "BlenderVectorEnv"]

register_own()
