"""Warm: starts fleets that outlive the program which starts them, and lists and stops them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable
from typing import Any

import ray
from ray.exceptions import RayError

from ..config import PathLike, StreamConfig
from ..errors import ConfigError, FleetLost
from ..recording.about import source
from ..warm.actor import WarmFleet
from ..warm.connection import connect
from ..warm.finding import NAMESPACE, find, names
from ..warm.told import FleetStatus
from .actors import ENVIRONMENT, Actors
from .nodes import wait_for_nodes
from .placing import Cluster
from .serving import Serving
from .shipping import Shipment

_CALLS = 100_000  # of all programs, that may be waiting at once: each lease is one
_PATIENCE = 30.0  # seconds in which a fleet stops
_ANSWER = 5.0  # seconds in which fleets say how they are


def start(
    config: StreamConfig,
    *,
    name: str,
    files: Iterable[PathLike] = (),
    num_cpus: float | None = None,
    num_gpus: float = 0,
) -> FleetStatus:
    """Start a fleet that stays warm in the cluster, and return when its first Blender is ready:

        asyncblend.ray.start(ab.StreamConfig(script="cube.py", instances=8), name="cubes")

    It goes on when this program ends, until `stop`. Programs attach to it by its name, any number of them at once, and
    get their first frame without waiting for a Blender to start:

        async with ab.BlenderStream(fleet="cubes") as stream: ...
        dataset = ab.BlenderDataset(fleet="cubes", length=1000)

    Each of them has passes, params and an order of its own, as if the fleet were its own. The script, the scene, and
    the Python files beside the script that it imports travel to the node; the node needs asyncblend and a Blender.

    Args:
        config: What to render. What each program has of its own has no meaning here: `length`, `start`, `ordered`,
            `shard`, `params`, `queue_size` and `on_bad_sample`. `threads="auto"` shares out `num_cpus`.
        name: Of the fleet, in this cluster.
        files: What else the script reads, files and folders, as `dataset` has it.
        num_cpus: Ray's CPUs for the whole fleet, which runs on one node. None: one for each Blender. If the config has a
            `cluster`, that says what Blenders need and where they run, and this is for what leads them. None: one.
        num_gpus: Ray's GPUs for the whole fleet.

    Raises:
        ConfigError: An argument is wrong; there is no cluster that outlives this program; or there is such a fleet.
        AsyncblendError: As entering a BlenderStream raises. Nothing is left running.
    """
    if not isinstance(config, StreamConfig):
        raise ConfigError(f"config must be a StreamConfig; got {config!r}")
    if not isinstance(name, str) or not name.strip() or name != name.strip():
        raise ConfigError(f"name must be the name of a fleet, such as 'cubes'; got {name!r}")
    here = config.cluster is None  # where the fleet's own node is
    actors = Actors.checked(1, config.instances if here else 1, num_cpus, num_gpus)
    own = dataclasses.replace(
        config, params=None, length=None, start=0, shard=None, ordered=False, on_bad_sample="raise"
    )
    own = actors.config(own) if here else own
    if isinstance(config.cluster, Cluster):
        files = [*files, *config.cluster.files]
    made_of, shipment = source(own), Shipment.packed(own, files)
    _connect(name, config.cluster.address if isinstance(config.cluster, Cluster) else None)
    if name in names():
        raise _taken(name)
    wait_for_nodes(1, actors.each)
    options: dict[str, Any] = {"name": name, "namespace": NAMESPACE, "lifetime": "detached", "max_concurrency": _CALLS}
    kind = ray.remote(num_cpus=actors.cpus, num_gpus=actors.gpus, runtime_env=ENVIRONMENT)(WarmFleet)
    try:
        fleet = kind.options(**options).remote(Serving, name, shipment, own, made_of)
    except ValueError:  # another program was faster
        raise _taken(name) from None
    try:
        error = ray.get(fleet.call.remote("begin"))
        if error is None:
            status: FleetStatus = ray.get(fleet.call.remote("status"))
    except BaseException as failure:
        ray.kill(fleet)
        if isinstance(failure, RayError):
            raise FleetLost(f"fleet {name!r} could not be started: {failure}", fleet=name) from None
        raise
    if error is not None:
        ray.kill(fleet)
        raise error
    return status


def fleets() -> list[FleetStatus]:
    """Return how each fleet of the cluster is that stays warm, by name.

    One that does not answer within seconds, mostly because Ray has no free CPUs or GPUs for it yet, has no node and no
    Blenders in its status.

    Raises:
        ConfigError: There is no cluster.
    """
    connect("auto", quiet=True)
    calls = {name: fleet.call.remote("status") for name in names() if (fleet := _found(name)) is not None}
    answers, _ = ray.wait(list(calls.values()), num_returns=len(calls), timeout=_ANSWER) if calls else ([], [])
    found = []
    for name, call in calls.items():
        if call not in answers:
            found.append(FleetStatus.silent(name))
            continue
        with contextlib.suppress(RayError):  # it has ended meanwhile
            found.append(ray.get(call))
    return found


def stop(name: str) -> None:
    """Stop a fleet, and return when nothing of it is left. Programs that are attached get a `FleetLost`.

    Raises:
        ConfigError: There is no such fleet. The message names those that there are.
    """
    fleet = find(name)
    with contextlib.suppress(RayError):  # it is gone already, or does not answer: then its Blenders end with it
        ray.get(fleet.call.remote("stop"), timeout=_PATIENCE)
    ray.kill(fleet)


def _found(name: str) -> ray.actor.ActorHandle | None:
    try:
        return ray.get_actor(name, NAMESPACE)
    except ValueError:
        return None


def _connect(name: str, address: str | None) -> None:
    """Connect to a cluster that outlives this program.

    Raises:
        ConfigError: There is none.
    """
    advice = "a fleet that stays warm needs a cluster that outlives this program; type `ray start --head` first"
    try:
        connect(address or "auto", quiet=True)
    except ConfigError as error:
        raise ConfigError(f"{error}; {advice}") from None
    node = ray._private.worker._global_node  # Ray tells nowhere else whether it is this program's own
    if node is not None and node.is_head():
        raise ConfigError(f"fleet {name!r} would end with this program, which has started Ray itself; {advice}")


def _taken(name: str) -> ConfigError:
    return ConfigError(
        f"there is a fleet {name!r} already; attach to it by fleet={name!r}, stop it by `asyncblend fleet stop {name}`, or "
        f"take another name"
    )
