"""Cluster: what nodes there are, and which Blender they have."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Collection, Mapping

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
    """Makes the Blenders of all nodes agree on a version. It runs as an actor of Ray."""

    def __init__(self) -> None:
        self._first: tuple[str, str] | None = None

    def agree(self, version: str, node: str) -> tuple[str, str]:
        """Return the version and the node of whoever came first."""
        self._first = self._first or (version, node)
        return self._first


class Tally:
    """What the actors of one recording tell the program. It runs as an actor of Ray."""

    def __init__(self) -> None:
        self._samples: dict[int, int] = {}
        self._nodes: set[str] = set()
        self._error: Exception | None = None

    def note(self, shard: int, samples: int, node: str) -> None:
        """Note how many samples of a shard are rendered. Rendered again, it counts once."""
        self._samples[shard] = samples
        self._nodes.add(node)

    def counts(self) -> tuple[dict[int, int], set[str]]:
        """Return how many samples of each shard are rendered, and on which nodes."""
        return self._samples, self._nodes

    def fail(self, error: Exception) -> None:
        """Note why a shard cannot be made. The first error counts."""
        self._error = self._error or error

    def error(self) -> Exception | None:
        """Return why a shard could not be made."""
        return self._error


def start_here(kind: type) -> ray.actor.ActorHandle:
    """Start an actor on this node, as long as which it lives. It ends with its last handle."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)(kind).remote()
