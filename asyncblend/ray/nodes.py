"""Nodes: what nodes there are, and which Blender they have."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_log = logging.getLogger("asyncblend")
_PATIENCE = 10.0  # seconds between two messages that say what is being waited for


def wait_for_nodes(actors: int, each: Mapping[str, float]) -> None:
    """Return when the cluster has nodes for so many actors. Meanwhile say what is wanted and what there is.

    Whether other programs use these nodes just now does not matter here: Ray waits for that, and says so.

    Args:
        actors: How many.
        each: What each of them needs, as Ray's resources.
    """
    needs = {name: value for name, value in each.items() if value}
    if room(needs) >= actors:
        return
    wanted = ", ".join(f"{value:g} {name}" for name, value in needs.items())
    group = placement_group([needs] * actors)  # an autoscaler adds nodes for it
    try:
        began = time.monotonic()
        while room(needs) < actors:
            _log.warning(
                "The cluster is too small: %d x (%s) is wanted, of one node each; there are nodes: %s. Waiting "
                "for more, %.0f s so far; Ctrl-C gives up.",
                *(actors, wanted, describe_nodes(needs), time.monotonic() - began),
            )
            if group.wait(_PATIENCE):
                break
    finally:
        remove_placement_group(group)


def describe_nodes(needs: Mapping[str, float]) -> str:
    """Return how much of these resources each node has, in use or not."""
    nodes = Counter(", ".join(f"{node.get(name, 0):g} {name}" for name in needs) for node in _nodes())
    return ", ".join(f"{count} x ({node})" for node, count in nodes.most_common()) or "none"


def _nodes(*, without: Collection[str] = ()) -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in without]


def room(each: Mapping[str, float], *, without: Collection[str] = ()) -> float:
    """Return for how many actors that need so much each there are nodes, leaving out those with these ids."""
    needs = {name: value for name, value in each.items() if value}
    if not needs:
        return float("inf")
    # Not //, for which 1 has only four times 0.2. Ray itself counts in parts of ten thousand.
    nodes = _nodes(without=without)
    return sum(min(math.floor(node.get(name, 0) / value + 1e-6) for name, value in needs.items()) for node in nodes)


class BlenderVersions:
    """Makes the Blenders of all nodes agree on a version. It runs as an actor of Ray.

    It must not be restarted: it would forget, and let the nodes that come then agree on another version.

    Args:
        version: What they must have. None: what the first of them has.
        whose: Who has it.
    """

    def __init__(self, version: str | None = None, whose: str = "") -> None:
        self._first = None if version is None else (version, whose)

    def agree(self, version: str, whose: str) -> tuple[str, str]:
        """Return the version of whoever came first, and who that is."""
        self._first = self._first or (version, whose)
        return self._first


class Tally:
    """What the actors of one recording tell the program. It runs as an actor of Ray.

    One that was restarted knows only what it has been told since. So the program keeps what it has heard.
    """

    def __init__(self) -> None:
        self._samples: dict[int, int] = {}
        self._nodes: set[str] = set()

    def note(self, shard: int, samples: int, node: str) -> None:
        """Note how many samples of a shard are rendered. Rendered again, it counts once."""
        self._samples[shard] = samples
        self._nodes.add(node)

    def counts(self) -> tuple[dict[int, int], set[str]]:
        """Return how many samples of each shard are rendered, and on which nodes."""
        return self._samples, self._nodes


def start_here(kind: type, *arguments: Any, restarts: bool = False) -> ray.actor.ActorHandle:
    """Start an actor on this node, as long as which it lives. It ends with its last handle.

    Args:
        kind, arguments: Its class, and what that is made with.
        restarts: Whether it is made anew when its process dies.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    times = -1 if restarts else 0
    options = {"num_cpus": 0, "max_restarts": times, "max_task_retries": times, "scheduling_strategy": here}
    return ray.remote(**options)(kind).remote(*arguments)
