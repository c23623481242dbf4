"""Actors: how many render, what each of them has of Ray's resources, and how a dataset is given to them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import ray.data

from ..checks import check_whole
from ..config import StreamConfig
from ..errors import ConfigError
from ..stream.params import is_iterator

_LEAST = 0.0001  # the smallest part of a resource that Ray counts
# Else Ray kills the children of an actor that ends, before it could stop its Blenders, and the sweeper of its files too.
ENVIRONMENT = {"env_vars": {"RAY_kill_child_processes_on_worker_exit": "0"}}
"""The runtime environment of whatever has a fleet."""


@dataclasses.dataclass(frozen=True)
class Actors:
    """Actors that have a fleet each."""

    least: int
    most: int
    instances: int
    """Blenders of each actor."""
    cpus: float
    """Ray's CPUs of each actor."""
    gpus: float

    @classmethod
    def checked(cls, actors: int | tuple[int, int], instances: int, num_cpus: float | None, num_gpus: float) -> Actors:
        """Return the actors that these arguments of a user mean. Without `num_cpus` there is one CPU for each Blender.

        Raises:
            ConfigError: An argument is wrong.
        """
        check_whole("instances_per_actor", instances, 1)
        least, most = _range_of(actors)
        cpus = instances if num_cpus is None else num_cpus
        check_amount("num_cpus", cpus)
        check_amount("num_gpus", num_gpus)
        if num_gpus > 1 and num_gpus % 1:
            raise ConfigError(
                f"num_gpus must be a whole number where it is more than 1, as Ray wants; got {num_gpus!r}"
            )
        return cls(least, most, instances, cpus, num_gpus)

    @property
    def each(self) -> dict[str, float]:
        """What one actor needs, as Ray's resources."""
        return {"CPU": self.cpus, "GPU": self.gpus}

    def config(self, config: StreamConfig) -> StreamConfig:
        """Return the config of each actor's fleet.

        Raises:
            ConfigError: An actor cannot have what the config asks for.
        """
        if config.fleet is not None:
            raise ConfigError(f"fleet={config.fleet!r} runs already; give the script that the nodes are to render")
        if config.gpus is not None:
            raise ConfigError(f"gpus={config.gpus!r}: Ray says which GPUs an actor has; give num_gpus instead")
        if config.cluster is not None:
            raise ConfigError(f"cluster={config.cluster!r}: each actor has its Blenders on its own node")
        if is_iterator(config.params):
            raise ConfigError(
                f"params must not be an iterator, of which each actor would have a copy; give a callable(index), or a "
                f"Dataset; got {config.params!r:.100}"
            )
        threads = max(1, int(self.cpus / self.instances)) if config.threads == "auto" else config.threads
        return dataclasses.replace(config, instances=self.instances, threads=threads, ordered=False)

    def map(
        self,
        rows: ray.data.Dataset,
        renderer: Callable[..., Callable[[pa.Table], Iterator[pa.Table]]],
        *arguments: Any,
        batch_size: int,
        samples: int,
        prefetch: int,
        sparing: bool = False,
    ) -> ray.data.Dataset:
        """Return what the actors make of these rows. Each of them has a `renderer(*arguments)`.

        Args:
            batch_size: How many rows make a batch, which the renderer is called with.
            samples: How many samples a batch stands for.
            prefetch: The config's.
            sparing: Whether an actor is given only what it begins at once, which leaves the rest to actors that are
                still starting. Otherwise Ray gives it some more.
        """
        # One batch ends, some of them fill the Blenders, and one waits for its turn, so that none waits for Ray.
        calls = 2 + math.ceil(self.instances * prefetch / samples)
        if sparing:  # full actors are as busy as they get: then nodes that have come since get actors, too
            rows.context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
        return rows.map_batches(
            renderer,
            fn_constructor_args=arguments,
            batch_size=batch_size,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                min_size=self.least,
                max_size=self.most,
                max_tasks_in_flight_per_actor=calls if sparing else None,
                max_concurrent_calls_per_actor=calls,
                enable_true_multi_threading=True,
            ),
            num_cpus=self.cpus,
            num_gpus=self.gpus,
            runtime_env=ENVIRONMENT,
        )


def check_amount(name: str, number: object) -> None:
    """Check how much is wanted of a resource of Ray's.

    Raises:
        ConfigError: It is no number, or one that Ray does not count.
    """
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < math.inf:
        raise ConfigError(f"{name} must be a number, zero or more; got {number!r}")
    if 0 < number < _LEAST:
        raise ConfigError(f"{name} must be zero or at least {_LEAST}, as Ray counts; got {number!r}")


def _range_of(actors: int | tuple[int, int]) -> tuple[int, int]:
    pair = actors if isinstance(actors, tuple) else (actors, actors)
    if len(pair) != 2:
        raise ConfigError(f"actors must be a number, or a pair (least, greatest); got {actors!r}")
    for number in pair:
        check_whole("actors", number, 1)
    if pair[0] > pair[1]:
        raise ConfigError(f"actors needs least <= greatest; got {actors!r}")
    return pair
