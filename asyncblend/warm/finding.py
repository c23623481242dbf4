"""Finding: the fleets that stay warm in the cluster that this program is connected to, by their names."""

from __future__ import annotations

import ray
import ray.util

from ..errors import ConfigError
from .connection import connect

NAMESPACE = "asyncblend"
"""Where Ray keeps the names of fleets, whichever namespace a program has for itself."""


def names() -> list[str]:
    """Return the names of all fleets of the cluster."""
    found = ray.util.list_named_actors(all_namespaces=True)
    return sorted(one["name"] for one in found if one["namespace"] == NAMESPACE)


def find(name: str) -> ray.actor.ActorHandle:
    """Return the fleet of that name. Connects this program to Ray, if it is not connected.

    Raises:
        ConfigError: There is no such fleet, or no cluster. The message names the fleets that there are.
        ForkedProcessError: As `connect` raises it.
    """
    begin = f"start it: asyncblend fleet start CONFIG --name {name}"
    try:
        connect("auto", quiet=True)
    except ConfigError as error:
        raise ConfigError(f"fleet {name!r} cannot be found: {error}; type `ray start --head`, then {begin}") from None
    try:
        return ray.get_actor(name, NAMESPACE)
    except ValueError:
        running = ", ".join(map(repr, names())) or "none"
        raise ConfigError(f"there is no fleet {name!r}; in this cluster there are: {running}; {begin}") from None
