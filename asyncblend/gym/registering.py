"""Registers the environments that come with asyncblend, so that `gymnasium.make` and `make_vec` know their names."""

from __future__ import annotations

from gymnasium.envs.registration import register, registry

from ..scripts import script

_SCRIPTS = {"asyncblend/CartPole-v0": "cartpole.py", "asyncblend/CartPolePhysics-v0": "cartpole_physics.py"}


def register_own() -> None:
    """Register them, unless that was done already. Their options are those of BlenderEnv and BlenderVectorEnv."""
    for name, file in _SCRIPTS.items():
        if name not in registry:
            # By their names, so that a spec can be written down, and read by other processes.
            room = __name__.rpartition(".")[0]
            single, vector = f"{room}.env:BlenderEnv", f"{room}.vector:BlenderVectorEnv"
            register(name, single, vector_entry_point=vector, kwargs={"script": str(script(file))})
